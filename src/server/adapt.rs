//! Sends each client what its link can carry.
//!
//! Off unless [`ServerConfig::adaptive`](super::ServerConfig::adaptive) is set: then each session has [`Pacing`], and
//! every change is told by [`PacingChanged`] and counted in [`PacingStats`].

use std::time::Duration;

use bevy::platform::collections::HashMap;
use bevy::prelude::*;

use super::links::{Link, LinkStats, Links};
use crate::protocol::pacing::{Pacer, PacingReason, PacingSettings, Reading};
use crate::schedule::TandemSystems;
use crate::transport::LinkPace;

/// Adapts what clients are sent to their links.
#[derive(Clone, Debug, Default)]
pub struct AdaptPlugin {
    /// Within which limits.
    pub settings: PacingSettings,
    /// How datagrams are gathered and compressed at the first grade.
    pub pace: LinkPace,
}

impl Plugin for AdaptPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Adaptation(self.clone()))
            .init_resource::<PacingStats>()
            .add_systems(PostUpdate, adapt.before(TandemSystems::Send));
    }
}

#[derive(Resource)]
struct Adaptation(AdaptPlugin);

/// What a session is sent.
#[derive(Component, Clone, Copy, Debug, PartialEq)]
pub struct Pacing {
    /// Grade of the link, from 0: as configured.
    pub grade: usize,
    /// Share of the configured send rate, 0 to 1.
    pub rate: f32,
    /// Share of the configured size of snapshots, 0 to 1.
    pub budget: f32,
}

impl Pacing {
    const FULL: Self = Self {
        grade: 0,
        rate: 1.0,
        budget: 1.0,
    };
}

/// A session is sent more or less than before.
#[derive(EntityEvent, Clone, Copy, Debug)]
pub struct PacingChanged {
    /// The session.
    pub entity: Entity,
    /// What it was.
    pub from: usize,
    /// Its grade now.
    pub to: usize,
    /// Why.
    pub reason: PacingReason,
}

/// How often links went to other grades.
#[derive(Resource, Clone, Debug, Default)]
pub struct PacingStats {
    /// By reason.
    pub decisions: HashMap<PacingReason, u64>,
}

/// What is remembered of a session's link.
#[derive(Component)]
pub(super) struct Observed {
    link: crate::transport::LinkId,
    pacer: Pacer,
    seen_at: Duration,
    bytes_out: u64,
}

impl Observed {
    fn new(link: &Link, now: Duration, settings: &PacingSettings) -> Self {
        Self {
            link: link.id,
            pacer: Pacer::new(now, settings),
            seen_at: now,
            bytes_out: link.bytes_out,
        }
    }

    /// What has been measured since the last time, if that is long enough ago.
    fn read(&mut self, link: &Link, measured: &LinkStats, now: Duration) -> Option<Reading> {
        let elapsed = now.saturating_sub(self.seen_at);
        if elapsed < INTERVAL {
            return None;
        }
        let sent = link.bytes_out - self.bytes_out;
        self.seen_at = now;
        self.bytes_out = link.bytes_out;
        Some(Reading {
            rtt: measured.rtt,
            jitter: measured.jitter,
            loss: measured.loss,
            is_congested: measured.is_congested,
            bytes_per_s: sent as f32 / elapsed.as_secs_f32(),
        })
    }
}

/// How often a link is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

fn adapt(
    mut sessions: Query<(Entity, &Link, &LinkStats, Option<&mut Observed>)>,
    mut links: ResMut<Links>,
    mut stats: ResMut<PacingStats>,
    adaptation: Res<Adaptation>,
    time: Res<Time<Real>>,
    mut commands: Commands,
) {
    let now = time.elapsed();
    let AdaptPlugin { settings, pace } = &adaptation.0;
    for (session, link, measured, observed) in &mut sessions {
        let Some(mut observed) = observed.filter(|observed| observed.link == link.id) else {
            // A new link is another story.
            let observed = Observed::new(link, now, settings);
            commands
                .entity(session)
                .try_insert((observed, Pacing::FULL));
            continue;
        };
        let Some(reading) = observed.read(link, measured, now) else {
            continue;
        };
        let Some(decision) = observed.pacer.observe(now, &reading, settings) else {
            continue;
        };
        let Some(grade) = settings.grades.get(decision.to) else {
            continue;
        };
        debug!(
            "session {session} goes from grade {} to {}: {}",
            decision.from, decision.to, decision.reason
        );
        *stats.decisions.entry(decision.reason).or_default() += 1;
        if let Some(transport) = links.transport(link.id) {
            transport.set_pace(link.id, grade.pace.unwrap_or(*pace));
        }
        commands.entity(session).try_insert(Pacing {
            grade: decision.to,
            rate: grade.rate,
            budget: grade.budget,
        });
        commands.trigger(PacingChanged {
            entity: session,
            from: decision.from,
            to: decision.to,
            reason: decision.reason,
        });
    }
}
