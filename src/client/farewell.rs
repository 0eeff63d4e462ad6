//! Links of sessions that this client has left, until the server has what was said before.

use std::time::Duration;

use bevy::prelude::*;

use super::link::{self, Link, OverTransport};
use super::mirror;
use crate::link::mailbox::Mailbox;
use crate::link::peer::{CHANNELS, ChunkKind, Peer};
use crate::message::Letter;
use crate::protocol::handshake::DisconnectReason;
use crate::protocol::reliable::Taken;
use crate::registry::tell_dropped;
use crate::transport::{Arrival, ClientTransport};

/// So many may be waited for: who connects again and again does not pile up links.
const MAX_LEAVING: usize = 4;
/// For how long nothing may come through: some round trips of a bad link. The player is gone, and others should see it.
const PATIENCE: Duration = Duration::from_secs(1);
/// And how long it may take for all.
const MAX_PATIENCE: Duration = Duration::from_secs(5);
/// How often something is sent.
const INTERVAL: Duration = Duration::from_millis(25);

/// What happens to messages that are still to be sent when a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastWords {
    /// They are sent until they have arrived, and the link stays for so long.
    Wait,
    /// They are sent once.
    Once,
    /// The other side does not want them.
    No,
}

/// The links that are still there.
#[derive(Resource, Default)]
pub(super) struct Farewells(Vec<Leaving>);

struct Leaving {
    transport: Box<dyn ClientTransport>,
    peer: Peer,
    mail: Mailbox,
    reason: DisconnectReason,
    since: Duration,
    /// When it was last heard that something had come through.
    progress_at: Duration,
    /// When something was last sent.
    sent_at: Duration,
    is_over: bool,
}

/// Lets a link go, with what is still to be said over it.
pub(super) fn begin(
    world: &mut World,
    link: Option<Link>,
    mail: Option<Mailbox>,
    reason: &DisconnectReason,
    words: LastWords,
) {
    let now = world.resource::<Time<Real>>().elapsed();
    let Some(link) = link else {
        return give_back(world, mail);
    };
    let Link {
        mut transport,
        mut peer,
        ..
    } = link;
    let mut mail = match mail {
        Some(mail) if words != LastWords::No => mail,
        mail => {
            say_goodbye(&mut *transport, &mut peer, now, reason);
            return give_back(world, mail);
        }
    };
    mail.pump(&mut peer);
    let mut to = OverTransport(&mut *transport, now);
    peer.begin(now, 0, &mut to);
    peer.finish(&mut to);
    transport.flush(now);
    let mut leaving = Leaving {
        transport,
        peer,
        mail,
        reason: reason.clone(),
        since: now,
        progress_at: now,
        sent_at: now,
        is_over: words == LastWords::Once,
    };
    leaving.is_over |= leaving.mail.outbox.is_empty();
    if leaving.is_over {
        return leaving.close(world, now);
    }
    let mut farewells = world.resource_mut::<Farewells>();
    farewells.0.push(leaving);
    if farewells.0.len() > MAX_LEAVING {
        farewells.0.remove(0).close(world, now);
    }
}

fn say_goodbye(
    transport: &mut dyn ClientTransport,
    peer: &mut Peer,
    now: Duration,
    reason: &DisconnectReason,
) {
    peer.goodbye(now, reason, &mut OverTransport(transport, now));
    transport.flush(now);
    transport.close();
}

fn give_back(world: &mut World, mail: Option<Mailbox>) {
    for letter in mail.into_iter().flat_map(|mut mail| mail.drain()) {
        tell_dropped(world, mirror::own_entity, Entity::PLACEHOLDER, &letter);
    }
}

/// Also when the app goes before the farewell is over.
impl Drop for Leaving {
    fn drop(&mut self) {
        let now = self.sent_at;
        say_goodbye(&mut *self.transport, &mut self.peer, now, &self.reason);
    }
}

impl Leaving {
    /// Says goodbye.
    fn close(mut self, world: &mut World, now: Duration) {
        self.sent_at = now;
        give_back(world, Some(self.mail.take()));
    }

    /// What the server has taken. All else that it says is for a session that is no more.
    fn receive(&mut self, now: Duration, taken: &mut Vec<Letter>) {
        let mut datagrams = Vec::new();
        self.transport.receive_timed(now, &mut datagrams);
        for Arrival { at, bytes } in &datagrams {
            let mut told = None;
            let received = self.peer.receive(
                *at,
                bytes,
                |_| self.progress_at = now,
                |kind, body| match kind {
                    ChunkKind::Taken => told = Taken::decode(body).ok(),
                    ChunkKind::Goodbye => self.is_over = true,
                    _ => {}
                },
            );
            if let Some((told, _)) = told {
                let outbox = &mut self.mail.outbox;
                outbox.handle_taken(told, |letter| taken.push(letter));
            }
            self.is_over |= received.is_err();
        }
        for channel in 0..CHANNELS {
            while self.peer.next_message(channel).is_some() {}
        }
        self.is_over |= self.mail.outbox.is_empty()
            || self.mail.is_overrun()
            || !self.transport.state().is_connected()
            || now.saturating_sub(self.progress_at) > PATIENCE
            || now.saturating_sub(self.since) > MAX_PATIENCE;
    }

    fn send(&mut self, now: Duration) {
        let waited = now.saturating_sub(self.sent_at);
        if waited < INTERVAL || self.transport.is_congested() {
            return self.transport.flush(now);
        }
        self.sent_at = now;
        self.peer.advance(waited);
        self.mail.pump(&mut self.peer);
        let mut to = OverTransport(&mut *self.transport, now);
        self.peer.begin(now, 0, &mut to);
        self.peer.finish(&mut to);
        self.transport.flush(now);
    }
}

/// Sends what is left, and closes the links over which all has arrived.
pub(super) fn say(world: &mut World) {
    if world.resource::<Farewells>().0.is_empty() {
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    let mut taken = Vec::new();
    for mut leaving in std::mem::take(&mut world.resource_mut::<Farewells>().0) {
        leaving.receive(now, &mut taken);
        if leaving.is_over {
            leaving.close(world, now);
        } else {
            leaving.send(now);
            world.resource_mut::<Farewells>().0.push(leaving);
        }
    }
    link::deliver_receipts(world, &taken);
}

/// Closes all, whatever has arrived: the app exits.
pub(super) fn end_all(world: &mut World) {
    let now = world.resource::<Time<Real>>().elapsed();
    for mut leaving in std::mem::take(&mut world.resource_mut::<Farewells>().0) {
        leaving.send(now);
        leaving.close(world, now);
    }
}
