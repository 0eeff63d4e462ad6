//! What a run measured, as one JSON object.
//!
//! The field names are an interface: other tools read them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use bevy::ecs::world::World;
use cpu_time::ProcessTime;
use serde::Serialize;

use super::TickTimings;
use crate::histogram::Histogram;
use crate::server::ServerStats;

/// Median and tail of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Exceeded by one in twenty.
    pub p95: f64,
    /// Exceeded by one in a hundred.
    pub p99: f64,
}

/// [`Percentiles`] with the maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PercentilesAndMax {
    /// The median.
    pub p50: f64,
    /// Exceeded by one in twenty.
    pub p95: f64,
    /// Exceeded by one in a hundred.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Median, far tail and maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MedianAndTail {
    /// The median.
    pub p50: f64,
    /// Exceeded by one in a hundred.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Median and near tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MedianAndP95 {
    /// The median.
    pub p50: f64,
    /// Exceeded by one in twenty.
    pub p95: f64,
}

/// Median and far tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MedianAndP99 {
    /// The median.
    pub p50: f64,
    /// Exceeded by one in a hundred.
    pub p99: f64,
}

impl From<&Histogram> for Percentiles {
    fn from(of: &Histogram) -> Self {
        Self {
            p50: of.quantile(0.5),
            p95: of.quantile(0.95),
            p99: of.quantile(0.99),
        }
    }
}

impl From<&Histogram> for PercentilesAndMax {
    fn from(of: &Histogram) -> Self {
        let Percentiles { p50, p95, p99 } = of.into();
        Self {
            p50,
            p95,
            p99,
            max: of.max(),
        }
    }
}

impl From<&Histogram> for MedianAndTail {
    fn from(of: &Histogram) -> Self {
        Self {
            p50: of.quantile(0.5),
            p99: of.quantile(0.99),
            max: of.max(),
        }
    }
}

impl From<&Histogram> for MedianAndP95 {
    fn from(of: &Histogram) -> Self {
        Self {
            p50: of.quantile(0.5),
            p95: of.quantile(0.95),
        }
    }
}

impl From<&Histogram> for MedianAndP99 {
    fn from(of: &Histogram) -> Self {
        Self {
            p50: of.quantile(0.5),
            p99: of.quantile(0.99),
        }
    }
}

/// A server's run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServerReport {
    /// Ticks simulated.
    pub ticks: u64,
    /// Ticks that ended after the next one was due.
    pub overruns: u64,
    /// Milliseconds spent in a tick, all of it: receiving, simulating, sending.
    pub tick_ms: PercentilesAndMax,
    /// Processor time of the whole process, in seconds, all threads, kernel included.
    pub cpu_s: f64,
    /// Seconds from the first tick to the report.
    pub wall_s: f64,
    /// Resident memory at the end.
    pub rss_bytes: u64,
    /// Most sessions at once.
    pub sessions_peak: u64,
    /// Bytes received, whatever became of them.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Datagrams received, whatever became of them.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams thrown away: malformed, forged, or beyond a limit.
    pub datagrams_rejected: u64,
    /// Sessions that went on over a new link, those that had lost messages included.
    pub sessions_resumed: u64,
    /// Of these, how many had been away for longer than all messages to them could be kept.
    pub sessions_resynced: u64,
    /// Attempts to resume a session that were turned down.
    pub resumes_rejected: u64,
    /// The same figures for each transport, by its name: `udp`, `websocket`.
    pub transports: BTreeMap<String, ServerTransportReport>,
    /// What became of those who broke limits.
    pub limits: LimitsReport,
}

/// What went through one of a server's transports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ServerTransportReport {
    /// Sessions linked over it at the end.
    pub links: u64,
    /// Bytes received, whatever became of them.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Datagrams received, whatever became of them.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams thrown away: malformed, forged, or beyond a limit.
    pub datagrams_rejected: u64,
}

/// How often limits were broken, by what was done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LimitsReport {
    /// Something was dropped, and nothing else.
    pub drops: u64,
    /// The client was warned.
    pub warnings: u64,
    /// The client was disconnected.
    pub disconnects: u64,
    /// The client was banned for a time.
    pub bans: u64,
    /// A link was refused for what its address had done.
    pub refused_links: u64,
}

impl ServerReport {
    /// Sums up a server that ran for `wall` with a [`HeadlessPlugin`](super::HeadlessPlugin).
    pub fn of(world: &World, wall: Duration) -> Self {
        let timings = world
            .get_resource::<TickTimings>()
            .cloned()
            .unwrap_or_default();
        let network = world
            .get_resource::<ServerStats>()
            .cloned()
            .unwrap_or_default();
        let mut transports = BTreeMap::<String, ServerTransportReport>::new();
        for transport in &network.transports {
            let report = transports.entry(transport.kind.to_string()).or_default();
            report.links += transport.links as u64;
            report.bytes_in += transport.stats.bytes_in;
            report.bytes_out += transport.stats.bytes_out;
            report.datagrams_in += transport.stats.datagrams_in;
            report.datagrams_out += transport.stats.datagrams_out;
            report.datagrams_rejected += transport.stats.rejected.total();
        }
        Self {
            ticks: timings.tick_ms.count(),
            overruns: timings.overruns,
            tick_ms: (&timings.tick_ms).into(),
            cpu_s: cpu_time().as_secs_f64(),
            wall_s: wall.as_secs_f64(),
            rss_bytes: resident_bytes().unwrap_or(0),
            sessions_peak: network.sessions_peak as u64,
            bytes_in: network.transport.bytes_in,
            bytes_out: network.transport.bytes_out,
            datagrams_in: network.transport.datagrams_in,
            datagrams_out: network.transport.datagrams_out,
            datagrams_rejected: network.transport.rejected.total(),
            sessions_resumed: network.resumed,
            sessions_resynced: network.resynced,
            resumes_rejected: network.resumes_rejected,
            transports,
            limits: LimitsReport {
                drops: network.limits.drops,
                warnings: network.limits.warnings,
                disconnects: network.limits.disconnects,
                bans: network.limits.bans,
                refused_links: network.limits.refused_links,
            },
        }
    }
}

/// What a group of clients saw, together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClientsReport {
    /// How many clients there were to be.
    pub requested: u64,
    /// How many of them connected.
    pub connected: u64,
    /// How often a session ended before its client left: a lost link that was resumed is none.
    pub disconnects: u64,
    /// Length of the run.
    pub seconds: f64,
    /// From a client's first attempt to join until it was in, all attempts included.
    pub join_ms: MedianAndP99,
    /// Attempts to join of all clients together: one for each, if all went well.
    pub join_attempts: u64,
    /// Round trips.
    pub rtt_ms: Percentiles,
    /// Bytes received by a client each second.
    pub bytes_down_per_client_s: f64,
    /// Bytes sent by a client each second.
    pub bytes_up_per_client_s: f64,
    /// Datagrams received by a client each second.
    pub datagrams_down_per_client_s: f64,
    /// Datagrams sent by a client each second.
    pub datagrams_up_per_client_s: f64,
    /// Snapshots received by a client each second.
    pub snapshots_per_client_s: f64,
    /// Replays after a wrong prediction, of a client each second.
    pub reconciliations_per_client_s: f64,
    /// How far predictions were off, in units of the world.
    pub prediction_error: MedianAndTail,
    /// Corrections too large or too old to replay or smooth.
    pub snaps: u64,
    /// How far in the past other players were drawn.
    pub interpolation_delay_ms: MedianAndP95,
    /// Share of frames that had no snapshot to interpolate towards.
    pub interpolation_starved_ratio: f64,
    /// Share of inputs that reached the server after their tick.
    pub inputs_late_ratio: f64,
    /// Numbered reliable messages sent to the server, which answers each.
    pub reliable_sent: u64,
    /// Answers to them.
    pub reliable_echoed: u64,
    /// Messages without an answer, except those of the last three seconds.
    pub reliable_lost: u64,
    /// Answers that came again, or to nothing that was sent.
    pub reliable_duplicated: u64,
    /// Answers that came after that to a later message.
    pub reliable_reordered: u64,
    /// Links that clients cut without a goodbye.
    pub cuts: u64,
    /// Sessions that went on over a new link and had lost nothing.
    pub resumed: u64,
    /// Sessions that went on, but had been away for longer than all messages to them could be kept.
    pub resynced: u64,
    /// Attempts to resume a session that the server turned down.
    pub rejected: u64,
    /// From the loss of a link until the session went on: the wait before each attempt included.
    pub resume_ms: MedianAndP99,
    /// How often a player found itself with another entity than before.
    pub respawned: u64,
    /// Some of these for the clients of each transport, by its name: `udp`, `websocket`.
    pub transports: BTreeMap<String, ClientTransportReport>,
}

/// What the clients of one transport saw, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ClientTransportReport {
    /// How many clients there were to be.
    pub requested: u64,
    /// How many of them connected.
    pub connected: u64,
    /// How often a session ended before its client left.
    pub disconnects: u64,
    /// Links that clients cut without a goodbye.
    pub cuts: u64,
    /// Sessions that went on over a new link and had lost nothing.
    pub resumed: u64,
    /// Sessions that went on, but had lost messages.
    pub resynced: u64,
    /// Attempts to resume a session that the server turned down.
    pub rejected: u64,
    /// Numbered reliable messages without an answer.
    pub reliable_lost: u64,
    /// Bytes received.
    pub bytes_down: u64,
    /// Bytes sent.
    pub bytes_up: u64,
    /// Snapshots received.
    pub snapshots: u64,
}

/// Writes a report as JSON.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(path: &Path, report: &impl Serialize) -> io::Result<()> {
    let mut json = serde_json::to_string_pretty(report)?;
    json.push('\n');
    fs::write(path, json)
}

/// Processor time that this process has used: user and kernel, all threads.
pub fn cpu_time() -> Duration {
    ProcessTime::try_now().map_or(Duration::ZERO, |time| time.as_duration())
}

/// Resident memory of this process, where the system tells.
pub fn resident_bytes() -> Option<u64> {
    memory_stats::memory_stats().map(|stats| stats.physical_mem as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_have_exactly_the_promised_fields() {
        let keys = |report: serde_json::Value| {
            let object = report.as_object().cloned().unwrap_or_default();
            let mut keys: Vec<String> = object.keys().cloned().collect();
            keys.sort();
            keys.join(" ")
        };
        assert_eq!(
            keys(serde_json::to_value(ServerReport::default()).expect("plain numbers")),
            "bytes_in bytes_out cpu_s datagrams_in datagrams_out datagrams_rejected limits overruns \
             resumes_rejected rss_bytes sessions_peak sessions_resumed sessions_resynced tick_ms ticks \
             transports wall_s"
        );
        assert_eq!(
            keys(serde_json::to_value(ClientsReport::default()).expect("plain numbers")),
            "bytes_down_per_client_s bytes_up_per_client_s connected cuts datagrams_down_per_client_s \
             datagrams_up_per_client_s disconnects inputs_late_ratio interpolation_delay_ms \
             interpolation_starved_ratio join_attempts join_ms prediction_error reconciliations_per_client_s rejected \
             reliable_duplicated reliable_echoed reliable_lost reliable_reordered reliable_sent requested \
             respawned resume_ms resumed resynced rtt_ms seconds snaps snapshots_per_client_s transports"
        );
        assert_eq!(
            keys(serde_json::to_value(ServerTransportReport::default()).expect("plain numbers")),
            "bytes_in bytes_out datagrams_in datagrams_out datagrams_rejected links"
        );
        assert_eq!(
            keys(serde_json::to_value(LimitsReport::default()).expect("plain numbers")),
            "bans disconnects drops refused_links warnings"
        );
        assert_eq!(
            keys(serde_json::to_value(ClientTransportReport::default()).expect("plain numbers")),
            "bytes_down bytes_up connected cuts disconnects rejected reliable_lost requested resumed \
             resynced snapshots"
        );
    }

    #[test]
    fn a_process_knows_its_own_cost() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000));
        let before = cpu_time();
        let mut sum = 0u64;
        for i in 0..20_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_add(i));
        }
        assert!(cpu_time() > before, "work takes processor time");
    }
}
