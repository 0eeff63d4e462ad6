//! Messages that have come, until the game can be told.
//!
//! They are told after the snapshots that came with them, so that the game hears of a hit when it sees who was hit. One
//! that names an entity of which this client is still to be told waits for it: not for longer than until it has been told
//! all that there was when the message was written, or [`PATIENCE`] is over. What comes after it on the ordered channel
//! waits with it.

use std::collections::VecDeque;
use std::time::Duration;

use bevy::prelude::*;
use bytes::Bytes;
use smallvec::SmallVec;

use super::link::{Keepsakes, Link};
use super::mirror::Mirror;
use super::types::ClientTypes;
use crate::link::peer::CONTROL_CHANNEL;
use crate::message::{self, Channel, Reading, Stamp, Unknown};
use crate::protocol::handshake::DisconnectReason;
use crate::protocol::layout::NetId;
use crate::registry::Registry;
use crate::wire::serial::SerialError;

/// For how long a message waits: loss and a byte budget delay what it names, but hardly for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many messages may wait, with what comes after them.
const MAX_WAITING: usize = 1_024;
/// And so many bytes of them: some of the largest that there are.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// The messages that wait.
#[derive(Resource, Default)]
pub(super) struct Arrivals {
    ordered: VecDeque<Arrival>,
    others: VecDeque<Arrival>,
    bytes: usize,
}

/// One message.
struct Arrival {
    receive: fn(&mut World, &[u8], Unknown) -> Result<Reading, SerialError>,
    stamp: Option<Stamp>,
    value: Bytes,
    /// What it names that was not here when it was last looked at.
    missing: SmallVec<[NetId; 2]>,
    since: Duration,
}

impl Arrivals {
    fn is_full(&self) -> bool {
        self.ordered.len() + self.others.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES
    }
}

/// Tells the game all that it can be told.
pub(super) fn tell(world: &mut World) {
    let now = world.resource::<Time<Real>>().elapsed();
    tell_waiting(world, now);
    let taken = world.resource_scope(|world, mut link: Mut<Link>| take_in(world, &mut link, now));
    if let Err(reason) = taken {
        world.resource_mut::<Link>().lost.get_or_insert(reason);
    }
}

/// Takes what has come over the link.
fn take_in(world: &mut World, link: &mut Link, now: Duration) -> Result<(), DisconnectReason> {
    for channel in CONTROL_CHANNEL + 1..=3 {
        while let Some(bytes) = link.peer.next_message(channel) {
            let Some(channel) = Channel::from_id(channel) else {
                continue;
            };
            let bytes = match (
                channel.stream(),
                &mut world.resource_mut::<Keepsakes>().mail,
            ) {
                (None, _) => bytes,
                (Some(stream), Some(mail)) => match mail.accept(stream, &bytes)? {
                    Some(bytes) => bytes,
                    None => continue,
                },
                (Some(_), None) => return Ok(()),
            };
            match read(world, now, &bytes) {
                Some(arrival) => arrive(world, now, channel, arrival),
                None => debug!("a message is not understood"),
            }
        }
    }
    Ok(())
}

fn read(world: &World, now: Duration, bytes: &Bytes) -> Option<Arrival> {
    let (id, rest) = message::split(bytes).ok()?;
    let entry = *world.resource::<Registry>().messages.get(id)?;
    let receive = world.resource::<ClientTypes>().messages.get(id)?.receive;
    let (stamp, value) = match entry.is_mapped {
        true => Stamp::split(rest).map(|(stamp, value)| (Some(stamp), value))?,
        false => (None, rest),
    };
    Some(Arrival {
        receive,
        stamp,
        value: bytes.slice_ref(value),
        missing: SmallVec::new(),
        since: now,
    })
}

/// Tells the game a message that has just come, or lets it wait.
fn arrive(world: &mut World, now: Duration, channel: Channel, mut arrival: Arrival) {
    let is_ordered = channel == Channel::ReliableOrdered;
    let is_behind = is_ordered && !world.resource::<Arrivals>().ordered.is_empty();
    if !is_behind && arrival.try_tell(world, now) {
        return;
    }
    let mut arrivals = world.resource_mut::<Arrivals>();
    arrivals.bytes += arrival.value.len();
    match is_ordered {
        true => arrivals.ordered.push_back(arrival),
        false => arrivals.others.push_back(arrival),
    }
    while world.resource::<Arrivals>().is_full() {
        tell_oldest(world, now);
    }
}

/// Looks at the messages that wait.
fn tell_waiting(world: &mut World, now: Duration) {
    while let Some(mut first) = world.resource_mut::<Arrivals>().ordered.pop_front() {
        if !first.try_tell(world, now) {
            world.resource_mut::<Arrivals>().ordered.push_front(first);
            break;
        }
        world.resource_mut::<Arrivals>().bytes -= first.value.len();
    }
    for mut other in std::mem::take(&mut world.resource_mut::<Arrivals>().others) {
        let is_told = other.try_tell(world, now);
        let mut arrivals = world.resource_mut::<Arrivals>();
        if is_told {
            arrivals.bytes -= other.value.len();
        } else {
            arrivals.others.push_back(other);
        }
    }
}

/// Makes room: too many wait.
fn tell_oldest(world: &mut World, now: Duration) {
    let mut arrivals = world.resource_mut::<Arrivals>();
    let oldest = match arrivals.ordered.pop_front() {
        None => arrivals.others.pop_front(),
        first => first,
    };
    if let Some(oldest) = oldest {
        arrivals.bytes -= oldest.value.len();
        oldest.tell(world);
    }
    tell_waiting(world, now);
}

/// Tells all, whatever they name: the session is over.
pub(super) fn tell_all(world: &mut World) {
    let arrivals = std::mem::take(&mut *world.resource_mut::<Arrivals>());
    for arrival in arrivals.ordered.into_iter().chain(arrivals.others) {
        arrival.tell(world);
    }
}

/// The session goes on over a new link: what was missing is told anew, and time counts from here.
pub(super) fn start_link(world: &mut World) {
    let now = world.resource::<Time<Real>>().elapsed();
    let arrivals = &mut *world.resource_mut::<Arrivals>();
    for arrival in arrivals.ordered.iter_mut().chain(&mut arrivals.others) {
        arrival.since = now;
    }
}

impl Arrival {
    /// Tells the game, unless what the message names may still come.
    fn try_tell(&mut self, world: &mut World, now: Duration) -> bool {
        let mirror = world.resource::<Mirror>();
        let may_come = now.saturating_sub(self.since) < PATIENCE
            && self.stamp.is_some_and(|stamp| {
                let told = mirror.replica().newest_complete();
                told.is_none_or(|told| stamp.is_newer_than(told))
            });
        if may_come && self.missing.iter().any(|net| mirror.entity(*net).is_none()) {
            return false;
        }
        let unknown = match may_come {
            true => Unknown::Wait,
            false => Unknown::Placeholder,
        };
        match (self.receive)(world, &self.value, unknown) {
            Ok(Reading::Waits(missing)) => {
                self.missing = missing;
                false
            }
            Ok(Reading::Told) => true,
            Err(error) => {
                debug!("a message is not understood: {error}");
                true
            }
        }
    }

    /// Tells the game, with nobody in the place of what is not here.
    fn tell(&self, world: &mut World) {
        let told = (self.receive)(world, &self.value, Unknown::Placeholder);
        if let Err(error) = told {
            debug!("a message is not understood: {error}");
        }
    }
}
