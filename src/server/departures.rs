//! How sessions end, whoever ends them.
//!
//! The game may end one from any system, observer or hook: while links are being served, while another ends, twice. What
//! it asks for waits in [`Departures`] until [`end_departing`], once in a frame, after what was written to the session has
//! been collected. A session entity that it despawns is gone at once, and its link follows there.
#![allow(
    unsafe_code,
    reason = "an event whose type is known only here is triggered for an entity that is being despawned"
)]

use std::time::Duration;

use bevy::ecs::event::EntityTrigger;
use bevy::ecs::lifecycle::{Despawn, Remove};
use bevy::ecs::relationship::RelationshipTarget;
use bevy::ecs::world::DeferredWorld;
use bevy::platform::collections::HashMap;
use bevy::prelude::*;

use super::ServerStats;
use super::collect;
use super::farewell;
use super::limits::Doors;
use super::links::{ClientAddress, Link, Links, SessionMail};
use super::sessions::{Sessions, tell};
use crate::identity::Identity;
use crate::link::mailbox::Mailbox;
use crate::link::peer::{Peer, Side};
use crate::protocol::handshake::{Control, DisconnectReason};
use crate::registry::tell_dropped;
use crate::replication::{OwnedBy, Owns};
use crate::schedule::TandemSystems;
use crate::session::{Ban, Kick, Session, SessionLeft, ShutdownRequested};
use crate::transport::Delivery;

/// Ends sessions.
pub(super) struct DeparturePlugin;

impl Plugin for DeparturePlugin {
    fn build(&self, app: &mut App) {
        app.world_mut().register_event_key::<SessionLeft>();
        app.init_resource::<Departures>()
            // What the game wrote to a session in this frame has been collected, and goes out with its farewell.
            .add_systems(
                PostUpdate,
                end_departing
                    .after(TandemSystems::Collect)
                    .before(TandemSystems::Send),
            )
            .add_systems(Last, shut_down.run_if(on_message::<AppExit>))
            .add_observer(kick)
            .add_observer(ban)
            .add_observer(announce_shutdown)
            .add_observer(note_despawn)
            .add_observer(note_removal);
    }
}

/// Sessions to be ended, and what is left of those that the game has despawned.
#[derive(Resource, Default)]
pub(crate) struct Departures {
    asked: Vec<(Entity, DisconnectReason)>,
    gone: HashMap<Entity, Gone>,
    /// Nobody is let in any more, though the links have yet to hear of it.
    is_closing: bool,
}

/// What is left of a session that the game has despawned.
pub(super) struct Gone {
    pub link: Option<Link>,
    pub mail: Mailbox,
}

impl Departures {
    /// Ends a session before the next snapshots are sent.
    pub fn add(&mut self, session: Entity, reason: DisconnectReason) {
        self.asked.push((session, reason));
    }

    /// A session that the game has despawned in this frame: what is written to it still goes out.
    pub(super) fn gone(&mut self, session: Entity) -> Option<&mut Gone> {
        self.gone.get_mut(&session)
    }

    /// The sessions that the game has despawned in this frame.
    pub(super) fn sessions(&self) -> impl Iterator<Item = Entity> {
        self.gone.keys().copied()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing
    }

    fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.gone.is_empty() && !self.is_closing
    }
}

/// What a client is told whose session the game has despawned.
pub(super) fn ended_by_game() -> DisconnectReason {
    DisconnectReason::Kicked("the game has ended the session".into())
}

/// Tells the game, then removes the session and all that it owns.
pub(super) fn end_session(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    session: Entity,
    reason: DisconnectReason,
) {
    let Ok(mut entity) = world.get_entity_mut(session) else {
        return;
    };
    if !entity.contains::<Session>() {
        return;
    }
    // The player of a listen server has neither.
    let (link, mail) = (entity.take::<Link>(), entity.take::<SessionMail>());
    if let Some(SessionMail(mut mail)) = mail {
        if let Some(link) = link {
            farewell::close(links, now, link, &mut mail, &reason);
        }
        give_back(world, session, mail);
    }
    debug!("session {session} has left: {reason}");
    forget(&mut DeferredWorld::from(&mut *world), session);
    let left = SessionLeft {
        entity: session,
        reason,
    };
    // The game may give what the session owns to somebody else.
    tell(world, left);
    world.try_despawn(session).ok();
}

/// Takes away all by which the server would find a session. Returns `false` if that was done before.
fn forget(world: &mut DeferredWorld, session: Entity) -> bool {
    if !world.resource_mut::<Sessions>().remove(session) {
        return false;
    }
    super::tokens::forget(world, session);
    let addr = world.get::<ClientAddress>(session).map(|at| at.0.ip());
    if let Some(addr) = addr {
        world.resource_mut::<Doors>().leave(addr);
    }
    true
}

/// Tells the game of messages that nobody will read.
fn give_back(world: &mut World, session: Entity, mut mail: Mailbox) {
    for letter in mail.drain() {
        tell_dropped(world, collect::living, session, &letter);
    }
}

/// The game despawns a session. Its client has to be told, and its slot is free.
fn note_despawn(despawned: On<Despawn, Session>, mut world: DeferredWorld) {
    let session = despawned.entity;
    if !lose(&mut world, session) {
        return;
    }
    // Before Bevy despawns them: the observers who have just been told may have commands that give them away.
    let owned: Vec<_> = world
        .get_mut::<Owns>(session)
        .map(|mut owns| std::mem::take(owns.collection_mut_risky()))
        .unwrap_or_default();
    world.commands().queue(move |world: &mut World| {
        for entity in owned {
            let owner = world.get::<OwnedBy>(entity).map(|owner| owner.0);
            if owner == Some(session) {
                world.try_despawn(entity).ok();
            }
        }
    });
}

/// The game takes away what makes an entity a session. The entity stays, and what it owns.
fn note_removal(removed: On<Remove, Session>, mut world: DeferredWorld) {
    lose(&mut world, removed.entity);
}

/// A session ends here and now. Returns `false` if it had ended.
fn lose(world: &mut DeferredWorld, session: Entity) -> bool {
    if !forget(world, session) {
        return false;
    }
    let reason = ended_by_game();
    debug!("session {session} is despawned by the game");
    let left = SessionLeft {
        entity: session,
        reason,
    };
    tell_while_it_is_there(world, left);
    let link = world.get_mut::<Link>(session).map(|mut link| Link {
        id: link.id,
        peer: std::mem::replace(&mut link.peer, Peer::new(Side::Server, Delivery::Stream)),
        ..*link
    });
    let mail = world.get_mut::<SessionMail>(session);
    if let Some(mail) = mail.map(|mut mail| mail.0.take()) {
        let gone = Gone { link, mail };
        world
            .resource_mut::<Departures>()
            .gone
            .insert(session, gone);
    }
    true
}

/// Tells the game of a session that it despawns, while observers still see its components.
fn tell_while_it_is_there(world: &mut DeferredWorld, mut left: SessionLeft) {
    let Some(key) = world.event_key::<SessionLeft>() else {
        return;
    };
    let caller = bevy::ecs::change_detection::MaybeLocation::caller();
    // SAFETY: the key is that of `SessionLeft`, which this world has registered.
    unsafe { world.trigger_raw(key, &mut left, &mut EntityTrigger, caller) };
}

fn kick(kick: On<Kick>, mut departures: ResMut<Departures>) {
    departures.add(kick.session, DisconnectReason::Kicked(kick.reason.clone()));
}

fn ban(
    ban: On<Ban>,
    sessions: Query<(Option<&Identity>, Option<&ClientAddress>), With<Session>>,
    mut doors: ResMut<Doors>,
    mut departures: ResMut<Departures>,
    time: Res<Time<Real>>,
) {
    let Ok((identity, address)) = sessions.get(ban.session) else {
        return;
    };
    doors.ban(
        time.elapsed(),
        identity,
        address.map(|at| at.0),
        &ban.reason,
        ban.duration,
    );
    departures.add(
        ban.session,
        DisconnectReason::banned(&ban.reason, ban.duration),
    );
}

/// Ends what is to be ended: the one place for it while the server runs. What the game asks for meanwhile has its turn in
/// the next frame.
fn end_departing(world: &mut World) {
    if world.resource::<Departures>().is_empty() {
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, mut links: Mut<Links>| {
        let departures = std::mem::take(&mut *world.resource_mut::<Departures>());
        if departures.is_closing {
            links.stop_accepting();
        }
        for (session, gone) in departures.gone {
            part(world, &mut links, now, session, gone, ended_by_game());
            clear(world, session);
        }
        for (session, reason) in departures.asked {
            if let Some(gone) = farewell::take_link(world, session) {
                part(world, &mut links, now, session, gone, reason.clone());
            }
            end_session(world, &mut links, now, session, reason);
        }
    });
}

/// Lets a client have what was written to it, and closes its link.
fn part(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    session: Entity,
    Gone { link, mut mail }: Gone,
    reason: DisconnectReason,
) {
    let Some(link) = link else {
        return give_back(world, session, mail);
    };
    if farewell::is_needed(links, &mail) {
        farewell::begin(links, now, session, link, mail, reason);
    } else {
        farewell::close(links, now, link, &mut mail, &reason);
        give_back(world, session, mail);
    }
}

/// Takes from an entity what it had as a session, if the game has kept the entity.
fn clear(world: &mut World, session: Entity) {
    if let Ok(mut entity) = world.get_entity_mut(session) {
        super::sessions::clear(&mut entity);
    }
}

/// Lets nobody in any more, and tells everybody when the server goes.
fn announce_shutdown(
    shutdown: On<ShutdownRequested>,
    links: Option<ResMut<Links>>,
    mut departures: ResMut<Departures>,
    mut sessions: Query<&mut Link>,
) {
    match links {
        Some(mut links) => links.stop_accepting(),
        // They are being served.
        None => departures.is_closing = true,
    }
    let in_ms = u32::try_from(shutdown.grace.as_millis()).unwrap_or(u32::MAX);
    for mut link in &mut sessions {
        super::sessions::send_control(&mut link.peer, &Control::Closing { in_ms });
    }
}

/// Tells every client that the server goes, and closes.
fn shut_down(world: &mut World) {
    end_departing(world);
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, mut links: Mut<Links>| {
        let mut sessions = world.query_filtered::<Entity, With<Session>>();
        let sessions: Vec<_> = sessions.iter(world).collect();
        for session in sessions {
            let reason = DisconnectReason::ServerShutdown;
            end_session(world, &mut links, now, session, reason);
        }
    });
    // Observers of these ends may have despawned others.
    end_departing(world);
    world.resource_scope(|world, mut links: Mut<Links>| {
        for (session, mail) in farewell::end_all(&mut links, now) {
            give_back(world, session, mail);
        }
        links.flush(now);
        for transport in &mut links.transports {
            transport.shutdown();
        }
        world.resource_mut::<ServerStats>().transport = links.stats();
    });
}
