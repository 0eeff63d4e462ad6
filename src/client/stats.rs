//! How the client's connection does.

use std::time::Duration;

use bevy::prelude::*;

use crate::histogram::Histogram;
use crate::transport::TransportStats;

/// Figures of the client's connection, since it was made unless said otherwise.
#[derive(Resource, Clone, Debug, Default)]
pub struct ClientStats {
    /// Bytes and datagrams.
    pub transport: TransportStats,
    /// Smoothed round-trip time now.
    ///
    /// Over UDP it is that of the network: neither side's frames are in it, as datagrams are stamped when they leave and
    /// when they arrive (on Linux by the kernel). On other systems, a datagram arrives when the client reads it, so its
    /// wait for the next frame, half a frame on average, is included. So it is over WebSocket, in a browser or not, and
    /// there a whole frame of the server may be too, and what TCP repeats or what waits to be
    /// [sent together](crate::transport::LinkPace). On local links, datagrams arrive when the other side's frame begins.
    pub rtt: Duration,
    /// Its mean deviation now.
    pub jitter: Duration,
    /// Share of this client's datagrams that are lost lately: 0 to 1.
    pub loss: f32,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Snapshots not taken: they came too late, or could not be read.
    pub snapshots_dropped: u64,
    /// By how many ticks inputs precede their use at the server, as reported last.
    pub input_margin: f32,
    /// Inputs sampled.
    pub inputs_sent: u64,
    /// Of these, how many reached the server after their tick, as it counts them.
    pub inputs_late: u64,
    /// [`Self::inputs_late`] modulo 16, as the server told it last.
    late_told: u8,
    /// How far in the past other entities are drawn now, besides the way that snapshots take.
    pub interpolation_delay: Duration,
    /// Frames whose playback moment can be judged.
    pub frames: u64,
    /// Of these, how many had no snapshot after the moment that they showed.
    pub starved_frames: u64,
    /// Times that a prediction was wrong and ticks were replayed.
    pub reconciliations: u64,
    /// Ticks that were replayed.
    pub replayed_ticks: u64,
    /// Corrections too large, or too late, to be smoothed: what the player saw jumped.
    pub snaps: u64,
    /// Times that the clock was set rather than stretched.
    pub clock_snaps: u64,
    /// Bytes and datagrams of links that have ended.
    transport_before: TransportStats,
    /// Frames, and starved ones, of links that have ended.
    frames_before: (u64, u64),
    /// How far predictions of interpolated components were off when the server's state came, in units.
    pub prediction_error: Histogram,
}

impl ClientStats {
    /// What a link has carried so far is added to what those before it have.
    pub(super) fn count_transport(&mut self, now: TransportStats) {
        self.transport = self.transport_before + now;
    }

    /// The same for frames.
    pub(super) fn count_frames(&mut self, frames: u64, starved: u64) {
        self.frames = self.frames_before.0 + frames;
        self.starved_frames = self.frames_before.1 + starved;
    }

    /// A link has ended, after it had carried so much.
    pub(super) fn end_link(&mut self, carried: TransportStats) {
        self.count_transport(carried);
        self.transport_before = self.transport;
        self.frames_before = (self.frames, self.starved_frames);
    }

    /// The session goes on over a new link: the server counts late inputs anew.
    pub(super) fn begin_link(&mut self) {
        self.late_told = 0;
    }

    /// Counts along with the server, which tells its count modulo 16.
    pub(super) fn count_late(&mut self, told: u8) {
        self.inputs_late += u64::from(told.wrapping_sub(self.late_told) % 16);
        self.late_told = told;
    }
}
