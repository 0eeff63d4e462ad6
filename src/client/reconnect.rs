//! Coming back after the link is lost.
//!
//! The client tries again after a growing, random time ([`Backoff`]), over a link that its [`Connector`] makes. The
//! server keeps the session meanwhile; see [`session`](crate::session). A client that was never in tries again in the
//! same way, but only if the server says that it can take it later.

use std::time::Duration;

use bevy::prelude::*;

use super::connection::{self, Connection, ConnectionState, Settings};
use super::farewell::LastWords;
use super::link::{self, Keepsakes, Link};
use super::mirror::Mirror;
use super::orders;
use crate::protocol::backoff::{Backoff, BackoffSettings};
use crate::protocol::handshake::{DisconnectReason, ResumeRejection};
use crate::transport::ClientTransport;

/// Makes links to the server: the first one, and one for each attempt to come back.
pub trait Connector: Send + Sync + 'static {
    /// Begins to connect.
    ///
    /// `token` is the connect token that the server has given this client for its next link, if it came with one; see
    /// [`token::from_bytes`](crate::transport::udp::token::from_bytes).
    ///
    /// # Errors
    ///
    /// What stands in the way. Counts as a failed attempt.
    fn connect(&mut self, token: Option<&[u8]>) -> Result<Box<dyn ClientTransport>, String>;
}

impl<F> Connector for F
where
    F: FnMut(Option<&[u8]>) -> Result<Box<dyn ClientTransport>, String> + Send + Sync + 'static,
{
    fn connect(&mut self, token: Option<&[u8]>) -> Result<Box<dyn ClientTransport>, String> {
        self(token)
    }
}

/// How a client comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReconnectSettings {
    /// Whether it tries. Default: yes.
    pub enabled: bool,
    /// How long to wait between attempts, and how many to make. Default: 1 s, doubling to 30 s, 10 attempts.
    pub backoff: BackoffSettings,
    /// How long each attempt may take. Default: 10 s.
    pub attempt_timeout: Duration,
}

impl Default for ReconnectSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            backoff: BackoffSettings::default(),
            attempt_timeout: Duration::from_secs(10),
        }
    }
}

/// The link is lost, or an attempt has failed; there will be another. Also while connecting for the first time, when the
/// server is [not ready](DisconnectReason::NotReady).
#[derive(Event, Clone, Debug)]
pub struct ReconnectScheduled {
    /// Its number, from 1.
    pub attempt: u32,
    /// Time until it begins.
    pub delay: Duration,
    /// How the link, or the last attempt, ended.
    pub reason: DisconnectReason,
}

/// The client has come back, or the server has said that it cannot.
#[derive(Event, Clone, Copy, Debug)]
pub struct ResumeFinished {
    /// With what.
    pub outcome: ResumeOutcome,
    /// Time since the link was lost.
    pub took: Duration,
}

/// What became of a session whose link was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeOutcome {
    /// It goes on, and no message is lost.
    Resumed,
    /// It goes on, but the client was away for longer than all messages to it could be kept.
    Resynced {
        /// How many are lost.
        lost: u64,
    },
    /// It does not go on.
    Rejected(ResumeRejection),
}

/// The connector, and how far reconnecting has come.
#[derive(Resource, Default)]
pub(super) struct Reconnect {
    connector: Option<Box<dyn Connector>>,
    backoff: Option<Backoff>,
    /// When the next attempt begins.
    due: Option<Duration>,
    lost_at: Option<Duration>,
}

/// Has later links made by this connector.
pub(super) fn set_connector(world: &mut World, connector: Option<Box<dyn Connector>>) {
    world.get_resource_or_init::<Reconnect>().connector = connector;
}

/// The link is dead, or an attempt to make another: try again, or give up.
pub(super) fn lose(world: &mut World, reason: DisconnectReason) {
    let state = world.resource::<Connection>().state();
    let settings = world.resource::<Settings>().0.reconnect;
    if !is_worth_another_attempt(world, state, &reason) || !settings.enabled {
        give_up(world, reason);
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    let mut reconnect = world.resource_mut::<Reconnect>();
    if reconnect.connector.is_none() {
        give_up(world, reason);
        return;
    }
    if state != ConnectionState::Connecting {
        reconnect.lost_at.get_or_insert(now);
    }
    let backoff = reconnect.backoff.get_or_insert_with(|| {
        Backoff::new(settings.backoff).unwrap_or_else(|error| {
            error!("the settings for reconnecting are not usable, so the defaults are: {error}");
            Backoff::default()
        })
    });
    let Some(next) = backoff.next(fastrand::f64()) else {
        give_up(world, reason);
        return;
    };
    reconnect.due = Some(now + next.delay);
    drop_link(world);
    let session = world.resource::<Connection>().session();
    let next_state = match state {
        ConnectionState::Connecting => ConnectionState::Connecting,
        _ => ConnectionState::Reconnecting,
    };
    connection::change(world, next_state, session, Some(reason.clone()));
    connection::note_attempt(world, next.attempt);
    debug!(
        "the link is lost ({reason}); attempt {} in {:?}",
        next.attempt, next.delay
    );
    world.trigger(ReconnectScheduled {
        attempt: next.attempt,
        delay: next.delay,
        reason,
    });
}

fn is_worth_another_attempt(
    world: &World,
    state: ConnectionState,
    reason: &DisconnectReason,
) -> bool {
    // The server was there: it may be gone for a moment while it restarts.
    let was_put_off = world.resource::<Reconnect>().backoff.is_some();
    match state {
        ConnectionState::Connecting if !was_put_off => {
            matches!(reason, DisconnectReason::NotReady(_))
        }
        ConnectionState::Connected => {
            reason.is_loss() && world.resource::<Keepsakes>().token.is_some()
        }
        // An attempt that the network has undone is worth another, and so is one for which a server is too full that may
        // not have noticed yet that the link before it is dead. What else the server said is final.
        ConnectionState::Connecting | ConnectionState::Reconnecting => {
            reason.is_loss()
                || matches!(
                    reason,
                    DisconnectReason::ConnectTimedOut | DisconnectReason::ServerFull
                )
        }
        _ => false,
    }
}

fn drop_link(world: &mut World) {
    if let Some(mut link) = world.remove_resource::<Link>() {
        link.vanish();
        link::note_end_of_link(world, &link);
    }
    Mirror::freeze(world);
    world
        .resource_mut::<Time<Virtual>>()
        .set_relative_speed(1.0);
}

fn give_up(world: &mut World, reason: DisconnectReason) {
    if let DisconnectReason::ResumeRejected(why) = reason {
        finish(world, ResumeOutcome::Rejected(why));
    }
    connection::end(world, reason, LastWords::No);
}

/// Reconnecting is over, one way or the other.
pub(super) fn finish(world: &mut World, outcome: ResumeOutcome) {
    let now = world.resource::<Time<Real>>().elapsed();
    let mut reconnect = world.resource_mut::<Reconnect>();
    let lost_at = reconnect.lost_at.take().unwrap_or(now);
    reconnect.backoff = None;
    reconnect.due = None;
    world.trigger(ResumeFinished {
        outcome,
        took: now.saturating_sub(lost_at),
    });
}

/// Makes the next attempt when it is due.
pub(super) fn try_again(world: &mut World) {
    let Some(due) = world.resource::<Reconnect>().due else {
        return;
    };
    let now = world.resource::<Time<Real>>().elapsed();
    if now < due || world.contains_resource::<Link>() {
        return;
    }
    let made = world.resource_scope(|world, mut reconnect: Mut<Reconnect>| {
        reconnect.due = None;
        // A token that has been tried is the last to be tried again.
        let tokens = &mut world.resource_mut::<Keepsakes>().connect_tokens;
        let token = tokens.pop_back();
        tokens.extend(token.clone());
        tokens.rotate_right(usize::from(token.is_some()));
        let connector = reconnect.connector.as_mut()?;
        Some(connector.connect(token.as_deref()))
    });
    match made {
        Some(Ok(transport)) => link::begin(world, transport),
        Some(Err(error)) => orders::busy(world, |world| {
            lose(world, DisconnectReason::Link(error));
        }),
        None => {}
    }
}

/// Goes on over another transport, without waiting for the link to fail.
pub(super) fn resume_over(world: &mut World, transport: Box<dyn ClientTransport>) {
    let connection = world.resource::<Connection>();
    let session = connection.session();
    if session.is_none() {
        link::connect(world, transport);
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    let mut reconnect = world.resource_mut::<Reconnect>();
    reconnect.lost_at.get_or_insert(now);
    reconnect.due = None;
    drop_link(world);
    connection::change(world, ConnectionState::Reconnecting, session, None);
    link::begin(world, transport);
}

/// No more attempts.
pub(super) fn stop(world: &mut World) {
    if let Some(mut reconnect) = world.get_resource_mut::<Reconnect>() {
        reconnect.due = None;
        reconnect.backoff = None;
        reconnect.lost_at = None;
    }
}
