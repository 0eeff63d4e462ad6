//! From the archive to datagrams: one snapshot for each session, at the send rate.

use std::time::Duration;

use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;

use super::ServerConfig;
use super::adapt::Pacing;
use super::collect::Replication;
use super::farewell;
use super::inputs::SessionInputs;
use super::links::{Link, LinkStats, Links, SessionMail};
use crate::peer::{CONTROL_CHANNEL, ChunkKind};
use crate::protocol::archive::PartitionId;
use crate::protocol::handshake::Control;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::snapshot::InputReport;
use crate::protocol::view::{ApartValue, BlockCache, SnapshotBudget, View};
use crate::schedule::{CurrentTick, TandemSystems};
use crate::tick::{Tick, Ticks};
use crate::transport::SharedBytes;
use crate::wire::bits::BitWriter;
use crate::wire::serial;

/// Sends snapshots.
#[derive(Clone, Default)]
pub struct SendPlugin {
    /// The server's settings.
    pub config: ServerConfig,
}

impl Plugin for SendPlugin {
    fn build(&self, app: &mut App) {
        let interval = (self.config.tick_rate_hz / self.config.send_rate_hz)
            .round()
            .max(1.0);
        app.insert_resource(SendSchedule {
            interval: Ticks(interval as u32),
            last: None,
            max_snapshot_bytes: self.config.max_snapshot_bytes,
        })
        .add_systems(
            PostUpdate,
            (
                measure_links,
                farewell::say,
                send_snapshots,
                forget_what_all_know,
            )
                .chain()
                .in_set(TandemSystems::Send)
                .run_if(is_send_tick),
        )
        .add_systems(
            PostUpdate,
            note_send.after(TandemSystems::Send).run_if(is_send_tick),
        );
    }
}

/// When snapshots are sent.
#[derive(Resource)]
pub(super) struct SendSchedule {
    interval: Ticks,
    last: Option<Tick>,
    max_snapshot_bytes: usize,
}

impl SendSchedule {
    /// The tick of the next snapshot, at the earliest.
    pub fn next_snapshot(&self, now: Tick) -> Tick {
        match self.last {
            // It has left already.
            Some(last) if !now.is_newer_than(last) => last + Ticks(1),
            _ => now,
        }
    }
}

/// Run condition: this frame ends with snapshots.
pub(super) fn is_send_tick(schedule: Res<SendSchedule>, tick: Res<CurrentTick>) -> bool {
    schedule
        .last
        .is_none_or(|last| tick.0.distance_from(last) >= schedule.interval.0.cast_signed())
}

fn note_send(mut schedule: ResMut<SendSchedule>, tick: Res<CurrentTick>) {
    schedule.last = Some(tick.0);
}

/// What a session is told.
#[derive(Component)]
pub(super) struct Outgoing {
    pub view: View,
    /// When the client was last told everything.
    pub told_all: Tick,
    /// With a slower pace than others: what of the next snapshot is due.
    due: f32,
}

impl Outgoing {
    pub fn new(now: Tick) -> Self {
        Self {
            view: View::new(now),
            told_all: now,
            due: 0.0,
        }
    }
}

fn send_snapshots(
    mut sessions: Query<(
        &mut Link,
        &mut Outgoing,
        &mut SessionMail,
        &SessionInputs,
        &LinkStats,
        Option<&Pacing>,
    )>,
    mut links: ResMut<Links>,
    replication: Res<Replication>,
    schedule: Res<SendSchedule>,
    tick: Res<CurrentTick>,
    time: Res<Time<Real>>,
    fixed: Res<Time<Fixed>>,
    mut cache: Local<BlockCache>,
    mut snapshot: Local<BitWriter>,
    mut apart: Local<Vec<ApartValue>>,
    mut letters: Local<LargeValues>,
    mut reported: Local<HashSet<NetId>>,
) {
    let now = time.elapsed();
    cache.clear();
    letters.0.clear();
    for (mut link, mut outgoing, mut mail, inputs, stats, pacing) in &mut sessions {
        let Link {
            id,
            peer,
            last_heard,
            last_sent,
            bytes_out,
            ..
        } = &mut *link;
        let is_listening = now.saturating_sub(*last_heard) < QUIET_AFTER
            || now.saturating_sub(*last_sent) >= QUIET_INTERVAL;
        // What waits at a congested link would be outdated when it is read: the next snapshot will be newer.
        if stats.is_congested || !is_listening {
            continue;
        }
        let (mut interval, mut max_bytes) = (schedule.interval, schedule.max_snapshot_bytes);
        if let Some(pacing) = pacing {
            interval = Ticks((interval.0 as f32 / pacing.rate).ceil() as u32);
            max_bytes = (max_bytes as f32 * pacing.budget) as usize;
            outgoing.due += pacing.rate;
            if outgoing.due < 0.999 {
                continue;
            }
            outgoing.due -= 1.0;
        }
        *last_sent = now;
        let mut to = links.over(now, *id);
        mail.0.pump_link(peer, stats.queued_bytes);
        let seq = peer.begin(now, stats.queued_bytes, &mut to);
        mail.0.tell_taken(peer, seq);
        let budget = SnapshotBudget {
            max_bytes: max_bytes.min(peer.room()),
            resend_after: resend_after(stats, fixed.timestep(), interval),
        };
        let report = inputs.buffer.newest().map(|newest| InputReport {
            newest,
            margin: inputs.buffer.margin(),
            late: (inputs.buffer.counts().late % 16) as u8,
        });
        snapshot.clear();
        let encoded = outgoing.view.encode(
            &replication.archive,
            tick.0,
            seq,
            report,
            budget,
            &mut cache,
            &mut snapshot,
            &mut apart,
        );
        if let Some(net) = encoded.oversized
            && let Some(entity) = replication.entity(net)
            && reported.len() < MAX_REPORTED
            && reported.insert(net)
        {
            warn!(
                "{entity} does not fit a snapshot of {} bytes and is not sent: quantize it to fewer fields",
                budget.max_bytes
            );
        }
        peer.chunk(ChunkKind::Snapshot, snapshot.finish());
        peer.finish(&mut to);
        *bytes_out += to.sent;
        for value in apart.drain(..) {
            let is_sent = letters
                .letter(&value)
                .is_some_and(|letter| peer.send_message(CONTROL_CHANNEL, letter));
            if !is_sent {
                // The channel is full, or the value above what one message may have.
                warn_once!(
                    "a component of {} bytes could not be sent and is tried again",
                    value.bytes.len()
                );
                outgoing.view.handle_unsent(&value, tick.0);
            }
        }
    }
    links.flush(now);
}

/// Entities of which the log says that they do not fit. Those beyond it are as many again, and no news.
const MAX_REPORTED: usize = 64;

/// The messages with large values of one frame: encoded once, whoever many get them.
#[derive(Default)]
struct LargeValues(HashMap<(NetId, ComponentId, u32), SharedBytes>);

impl LargeValues {
    /// `None` if the value cannot be encoded.
    fn letter(&mut self, value: &ApartValue) -> Option<&SharedBytes> {
        let key = (value.net, value.component, value.version);
        if !self.0.contains_key(&key) {
            let control = Control::Value {
                net: value.net.index(),
                generation: value.net.generation(),
                component: value.component.0,
                version: value.version,
                bytes: value.bytes.clone(),
            };
            let mut bytes = Vec::with_capacity(value.bytes.len() + 32);
            serial::encode(&control, &mut bytes).ok()?;
            self.0.insert(key, SharedBytes::new(bytes));
        }
        self.0.get(&key)
    }
}

/// A client of which nothing was heard for so long (a browser tab in the background, say, or a dead link) is not sent
/// everything that happens, only a snapshot now and then.
const QUIET_AFTER: Duration = Duration::from_secs(1);
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// A round trip with its deviation, and the time the client needs to answer.
fn resend_after(stats: &LinkStats, tick: Duration, interval: Ticks) -> Ticks {
    let round_trip = stats.rtt + 4 * stats.jitter;
    Ticks((round_trip.as_secs_f64() / tick.as_secs_f64()).ceil() as u32 + interval.0 + 1)
}

/// Lets go of history, tombstones and ids that no client needs any more.
fn forget_what_all_know(
    mut views: Query<&mut Outgoing>,
    mut replication: ResMut<Replication>,
    tick: Res<CurrentTick>,
    mut oldest: Local<HashMap<PartitionId, Tick>>,
) {
    oldest.clear();
    let mut known_everywhere = tick.0;
    for mut outgoing in &mut views {
        // Who reads but never answers must not make the server remember for ever.
        if outgoing.view.is_left_behind(&replication.archive, tick.0) {
            outgoing.told_all = tick.0;
            outgoing.view.start_over(&replication.archive, tick.0);
        }
        let baseline = outgoing.view.baseline();
        known_everywhere = known_everywhere.earliest(outgoing.view.forgotten_before());
        for &partition in outgoing.view.partitions() {
            let entry = oldest.entry(partition).or_insert(baseline);
            *entry = entry.earliest(baseline);
        }
    }
    let archive = &mut replication.archive;
    archive.forget(|partition| oldest.get(&partition).copied().unwrap_or(tick.0));
    archive.reclaim(known_everywhere);
}

fn measure_links(mut sessions: Query<(&Link, &mut LinkStats)>, mut links: ResMut<Links>) {
    for (link, mut stats) in &mut sessions {
        let acks = &link.peer.acks;
        stats.rtt = acks.rtt().unwrap_or_default();
        stats.jitter = acks.jitter().unwrap_or_default();
        stats.loss = acks.loss_ratio();
        if let Some(transport) = links.transport(link.id) {
            stats.is_congested = transport.is_congested(link.id);
            stats.queued_bytes = transport.queued_bytes(link.id);
        }
    }
}
