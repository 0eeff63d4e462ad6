//! How connections do, as diagnostics of Bevy's: for graphs, overlays and logs.
//!
//! Add [`DiagnosticsPlugin`] to either side. With Bevy's `LogDiagnosticsPlugin` the values appear in the log.

use std::time::Duration;

use bevy::diagnostic::{Diagnostic, DiagnosticPath, Diagnostics, RegisterDiagnostic};
use bevy::prelude::*;

use crate::client::{ClientStats, Connection};
use crate::protocol::pacing::PacingReason;
#[cfg(not(target_family = "wasm"))]
use crate::server::{LinkStats, Pacing, PacingStats, ServerStats};
#[cfg(not(target_family = "wasm"))]
use crate::session::{Away, Session};
use crate::transport::TransportStats;

/// Round trip to the server, in milliseconds; on a server, the mean over its sessions.
pub const RTT_MS: DiagnosticPath = DiagnosticPath::const_new("tandem/rtt_ms");
/// Mean deviation of round trips, in milliseconds.
pub const JITTER_MS: DiagnosticPath = DiagnosticPath::const_new("tandem/jitter_ms");
/// Lost datagrams, in percent.
pub const LOSS_PERCENT: DiagnosticPath = DiagnosticPath::const_new("tandem/loss_percent");
/// Bytes received each second.
pub const BYTES_IN: DiagnosticPath = DiagnosticPath::const_new("tandem/bytes_in_per_s");
/// Bytes sent each second.
pub const BYTES_OUT: DiagnosticPath = DiagnosticPath::const_new("tandem/bytes_out_per_s");
/// Sessions with a link.
pub const SESSIONS: DiagnosticPath = DiagnosticPath::const_new("tandem/sessions");
/// Sessions whose client has lost its link.
pub const AWAY: DiagnosticPath = DiagnosticPath::const_new("tandem/away");
/// Sessions that do not read what is sent to them.
pub const CONGESTED: DiagnosticPath = DiagnosticPath::const_new("tandem/congested");
/// Sessions that are sent less than configured, because their links carry no more.
pub const SLOWED: DiagnosticPath = DiagnosticPath::const_new("tandem/slowed");

/// How often the [adaptive mode](crate::server::ServerConfig::adaptive) has slowed somebody, or let them have more
/// again, since the server was started: by [`PacingReason`].
pub const PACING: [(PacingReason, DiagnosticPath); 5] = [
    (
        PacingReason::Congestion,
        DiagnosticPath::const_new("tandem/pacing/congestion"),
    ),
    (
        PacingReason::Loss,
        DiagnosticPath::const_new("tandem/pacing/loss"),
    ),
    (
        PacingReason::Delay,
        DiagnosticPath::const_new("tandem/pacing/delay"),
    ),
    (
        PacingReason::Bytes,
        DiagnosticPath::const_new("tandem/pacing/bytes"),
    ),
    (
        PacingReason::Recovered,
        DiagnosticPath::const_new("tandem/pacing/recovered"),
    ),
];

/// Measures four times a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiagnosticsPlugin;

const INTERVAL: Duration = Duration::from_millis(250);

impl Plugin for DiagnosticsPlugin {
    fn build(&self, app: &mut App) {
        let paths = [
            (RTT_MS, " ms"),
            (JITTER_MS, " ms"),
            (LOSS_PERCENT, " %"),
            (BYTES_IN, " B/s"),
            (BYTES_OUT, " B/s"),
            (SESSIONS, ""),
            (AWAY, ""),
            (CONGESTED, ""),
            (SLOWED, ""),
        ];
        for (path, suffix) in paths {
            app.register_diagnostic(Diagnostic::new(path).with_suffix(suffix));
        }
        for (_, path) in PACING {
            app.register_diagnostic(Diagnostic::new(path));
        }
        app.add_systems(Last, measure_client.run_if(resource_exists::<ClientStats>));
        #[cfg(not(target_family = "wasm"))]
        app.add_systems(Last, measure_server.run_if(resource_exists::<ServerStats>));
    }
}

/// When was measured last, and what had gone through the transports by then.
#[derive(Default)]
struct Before {
    at: Duration,
    transport: TransportStats,
}

impl Before {
    /// Adds rates, if it is time. `false` if not.
    fn measure(
        &mut self,
        now: Duration,
        transport: TransportStats,
        diagnostics: &mut Diagnostics,
    ) -> bool {
        let elapsed = now.saturating_sub(self.at);
        if elapsed < INTERVAL {
            return false;
        }
        let before = std::mem::replace(self, Self { at: now, transport }).transport;
        let rate =
            |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed.as_secs_f64();
        diagnostics.add_measurement(&BYTES_IN, || rate(transport.bytes_in, before.bytes_in));
        diagnostics.add_measurement(&BYTES_OUT, || rate(transport.bytes_out, before.bytes_out));
        true
    }
}

fn measure_client(
    stats: Res<ClientStats>,
    connection: Res<Connection>,
    time: Res<Time<Real>>,
    mut before: Local<Before>,
    mut diagnostics: Diagnostics,
) {
    if connection.session().is_none()
        || !before.measure(time.elapsed(), stats.transport, &mut diagnostics)
    {
        return;
    }
    diagnostics.add_measurement(&RTT_MS, || stats.rtt.as_secs_f64() * 1e3);
    diagnostics.add_measurement(&JITTER_MS, || stats.jitter.as_secs_f64() * 1e3);
    diagnostics.add_measurement(&LOSS_PERCENT, || f64::from(stats.loss) * 100.0);
}

#[cfg(not(target_family = "wasm"))]
fn measure_server(
    stats: Res<ServerStats>,
    pacing: Option<Res<PacingStats>>,
    sessions: Query<(Option<&LinkStats>, Has<Away>, Option<&Pacing>), With<Session>>,
    time: Res<Time<Real>>,
    mut before: Local<Before>,
    mut diagnostics: Diagnostics,
) {
    if !before.measure(time.elapsed(), stats.transport, &mut diagnostics) {
        return;
    }
    if let Some(pacing) = pacing {
        for (reason, path) in &PACING {
            let decisions = pacing.decisions.get(reason).copied().unwrap_or_default();
            diagnostics.add_measurement(path, || decisions as f64);
        }
    }
    let (mut linked, mut away, mut congested, mut slowed) = (0, 0, 0, 0);
    let (mut rtt, mut jitter, mut loss) = (0.0, 0.0, 0.0);
    for (link, is_away, pacing) in &sessions {
        if is_away {
            away += 1;
        } else if let Some(link) = link {
            linked += 1;
            rtt += link.rtt.as_secs_f64() * 1e3;
            jitter += link.jitter.as_secs_f64() * 1e3;
            loss += f64::from(link.loss) * 100.0;
            congested += u32::from(link.is_congested);
            slowed += u32::from(pacing.is_some_and(|pacing| pacing.grade > 0));
        }
    }
    let each = f64::from(linked.max(1));
    diagnostics.add_measurement(&SESSIONS, || f64::from(linked));
    diagnostics.add_measurement(&AWAY, || f64::from(away));
    diagnostics.add_measurement(&CONGESTED, || f64::from(congested));
    diagnostics.add_measurement(&SLOWED, || f64::from(slowed));
    diagnostics.add_measurement(&RTT_MS, || rtt / each);
    diagnostics.add_measurement(&JITTER_MS, || jitter / each);
    diagnostics.add_measurement(&LOSS_PERCENT, || loss / each);
}
