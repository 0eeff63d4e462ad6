//! Sessions that the game has ended, until their clients have what was sent to them before.

use std::time::Duration;

use bevy::prelude::*;

use super::collect;
use super::departures::Gone;
use super::links::{Link, Links, SessionMail};
use crate::link::mailbox::Mailbox;
use crate::link::peer::{CHANNELS, ChunkKind, Peer};
use crate::protocol::handshake::DisconnectReason;
use crate::protocol::reliable::Taken;
use crate::registry::Registry;
use crate::registry::give_back;
use crate::transport::LinkId;

/// So many may be waited for; others get what one round carries.
const MAX_LEAVING: usize = 256;
/// For how long nothing may come through: several round trips of a bad link.
const PATIENCE: Duration = Duration::from_secs(2);
/// And how long it may take for all: some MiB.
const MAX_PATIENCE: Duration = Duration::from_secs(10);

/// The link of a session that has ended.
pub(super) struct Leaving {
    session: Entity,
    peer: Peer,
    mail: Mailbox,
    reason: DisconnectReason,
    since: Duration,
    /// When it was last heard that something had come through.
    progress_at: Duration,
    advanced_at: Duration,
    is_over: bool,
}

/// Takes from a session what its client is told over, and what it is told.
pub(super) fn take_link(world: &mut World, session: Entity) -> Option<Gone> {
    let mut entity = world.get_entity_mut(session).ok()?;
    let link = Some(entity.take::<Link>()?);
    let mail = entity.take::<SessionMail>()?.0;
    Some(Gone { link, mail })
}

/// Whether a client has to be waited for.
pub(super) fn is_needed(links: &Links, mail: &Mailbox) -> bool {
    links.leaving.len() < MAX_LEAVING && !mail.outbox.is_empty()
}

/// Keeps a session's link until its client has all messages.
pub(super) fn begin(
    links: &mut Links,
    now: Duration,
    session: Entity,
    link: Link,
    mail: Mailbox,
    reason: DisconnectReason,
) {
    links.sessions.remove(&link.id);
    let leaving = Leaving {
        session,
        peer: link.peer,
        mail,
        reason,
        since: now,
        progress_at: now,
        advanced_at: now,
        is_over: false,
    };
    links.leaving.insert(link.id, leaving);
}

/// Sends what one round carries, and closes a session's link.
pub(super) fn close(
    links: &mut Links,
    now: Duration,
    mut link: Link,
    mail: &mut Mailbox,
    reason: &DisconnectReason,
) {
    mail.pump(&mut link.peer);
    link.peer.begin(now, 0, &mut links.over(now, link.id));
    link.peer.finish(&mut links.over(now, link.id));
    links.close(now, link.id, &mut link.peer, reason);
}

impl Leaving {
    /// What its client has taken. All else that it says is for a session that is no more.
    pub fn receive(&mut self, now: Duration, at: Duration, datagram: &[u8]) {
        let mut taken = None;
        let received = self.peer.receive(
            at,
            datagram,
            |_| self.progress_at = now,
            |kind, body| match kind {
                ChunkKind::Taken => taken = Taken::decode(body).ok(),
                ChunkKind::Goodbye => self.is_over = true,
                _ => {}
            },
        );
        for channel in 0..CHANNELS {
            while self.peer.next_message(channel).is_some() {}
        }
        if let Some((taken, _)) = taken {
            self.mail.outbox.handle_taken(taken, |_| {});
        }
        self.is_over |= received.is_err() || self.mail.outbox.is_empty();
    }

    /// Its client has closed the link.
    pub fn is_gone(&mut self) {
        self.is_over = true;
    }

    fn send(&mut self, links: &mut Links, now: Duration, link: LinkId) {
        self.peer.advance(now.saturating_sub(self.advanced_at));
        self.advanced_at = now;
        let queued = links
            .transport(link)
            .map_or(0, |transport| transport.queued_bytes(link));
        self.mail.pump_link(&mut self.peer, queued);
        let mut to = links.over(now, link);
        self.peer.begin(now, queued, &mut to);
        self.peer.finish(&mut to);
    }
}

/// Sends what is left, and closes the links of those who have all.
pub(super) fn say(
    mut links: ResMut<Links>,
    time: Res<Time<Real>>,
    registry: Res<Registry>,
    mut commands: Commands,
) {
    let now = time.elapsed();
    let links = &mut *links;
    let mut leaving = std::mem::take(&mut links.leaving);
    leaving.retain(|&link, it| {
        let is_late = now.saturating_sub(it.progress_at) > PATIENCE
            || now.saturating_sub(it.since) > MAX_PATIENCE;
        if !it.is_over {
            it.send(links, now, link);
        }
        let is_over = it.is_over || it.mail.is_overrun() || is_late;
        if is_over {
            links.close(now, link, &mut it.peer, &it.reason);
            give_back(
                &mut commands,
                &registry,
                collect::living,
                it.session,
                it.mail.drain(),
            );
        }
        !is_over
    });
    links.leaving = leaving;
}

/// Closes all, whatever they have: the server goes. Returns what they may not have.
pub(super) fn end_all(links: &mut Links, now: Duration) -> Vec<(Entity, Mailbox)> {
    let leaving = std::mem::take(&mut links.leaving);
    leaving
        .into_iter()
        .map(|(link, mut it)| {
            it.send(links, now, link);
            links.close(now, link, &mut it.peer, &it.reason);
            (it.session, it.mail)
        })
        .collect()
}
