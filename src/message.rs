//! Typed messages between a client's game and the server's.
//!
//! Write [`ToServer`] and [`ToClients`] with Bevy's `MessageWriter`, read [`FromServer`] and [`FromClient`] with its
//! `MessageReader`.

use std::any::type_name;

use bevy::ecs::entity::EntityMapper;
use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use crate::entity_map::{FromNet, MapEntity, ToNet};
use crate::protocol::layout::NetId;
use crate::protocol::limits::Traffic;
use crate::protocol::reliable::{Body, Importance};
use crate::tick::Tick;
use crate::transport::SharedBytes;
use crate::wire::serial;

/// What can be a message.
pub trait NetMessage: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<M: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> NetMessage for M {}

/// How messages of a type are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// All of them, in the order in which they were written: those of one type in a frame, and all from frame to frame.
    ReliableOrdered,
    /// All of them, each as soon as it is there.
    ReliableUnordered,
    /// Each at most once; some are lost.
    Unreliable,
}

/// Largest message a client may send, in bytes, serialised. Larger ones are [given back](Undeliverable), with an error in
/// the log: a server accepts no sliced messages, since each would let a client hold its memory.
pub const MAX_CLIENT_MESSAGE_BYTES: usize = 1_024;

/// Largest message a server may send, in bytes, serialised. Those above a datagram travel in slices. Larger ones are
/// [given back](Undeliverable).
pub const MAX_SERVER_MESSAGE_BYTES: usize = 1 << 20;

/// Largest message that a server may send on [`Channel::Unreliable`], in bytes, serialised: it goes at once or not at all,
/// and is lost with any of its slices. Larger ones are [given back](Undeliverable).
pub const MAX_UNRELIABLE_MESSAGE_BYTES: usize = 64_000;

/// A message to the server, written by a client's game. What is written in the frame in which the client leaves arrives;
/// while there is no connection, it [comes back](Undeliverable).
#[derive(Message, Clone, Debug, PartialEq, Eq, Deref)]
pub struct ToServer<M: Send + Sync + 'static>(pub M);

/// A message from a client, read by the server's game.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
pub struct FromClient<M: Send + Sync + 'static> {
    /// The session that sent it.
    pub session: Entity,
    /// The message.
    pub message: M,
}

/// A message to clients, written by the server's game.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
pub struct ToClients<M: Send + Sync + 'static> {
    /// Who gets it.
    pub to: Target,
    /// The message.
    pub message: M,
}

/// A message from the server, read by a client's game.
#[derive(Message, Clone, Debug, PartialEq, Eq, Deref)]
pub struct FromServer<M: Send + Sync + 'static>(pub M);

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every session.
    All,
    /// One session. If there is none, the message [comes back](Undeliverable).
    Session(Entity),
    /// The sessions in a [room](crate::rooms::Room), if there are any. Those that a parent takes there are not meant.
    Room(Entity),
    /// Every session but this one.
    AllExcept(Entity),
}

/// A message of this app's was taken by the game at the other end: handed to its readers, not necessarily read yet.
///
/// For message types registered with [`receipts`](crate::app::MessageRegistration::receipts).
#[derive(Message, Clone, Debug, PartialEq, Eq)]
pub struct Delivered<M: Send + Sync + 'static> {
    /// On a server, the session that took it; on a client, [`Entity::PLACEHOLDER`].
    pub session: Entity,
    /// The message. Entities are again those of this app, or [`Entity::PLACEHOLDER`] if they are gone.
    pub message: M,
}

/// A message of this app's comes back: what is said is heard, or its writer is told so.
///
/// It is for nobody (there is no connection yet or any more, or no such session), too large for its channel, or too much
/// waits already; or it had to make room for a newer one, or was dropped while a client was away. So is a reliable message
/// of which nobody can say whether it was heard, since the session ended before the other side could confirm it.
///
/// What may be lost ([`Channel::Unreliable`]) does not come back once it is on its way, nor when it is for a client that is
/// away. Entities are again those of this app, or [`Entity::PLACEHOLDER`] if they are gone.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
pub struct Undeliverable<M: Send + Sync + 'static> {
    /// On a server, the session for which it was; on a client, [`Entity::PLACEHOLDER`].
    pub session: Entity,
    /// The message.
    pub message: M,
}

impl Channel {
    /// The channel with this number.
    pub(crate) fn from_id(id: u8) -> Option<Self> {
        [
            Self::ReliableOrdered,
            Self::ReliableUnordered,
            Self::Unreliable,
        ]
        .into_iter()
        .find(|channel| channel.id() == id)
    }

    /// Number of the channel on the wire; 0 is the connection's own.
    pub(crate) fn id(self) -> u8 {
        match self {
            Self::ReliableOrdered => 1,
            Self::ReliableUnordered => 2,
            Self::Unreliable => 3,
        }
    }
}

/// What can be done with a message without naming its type.
#[derive(Clone, Copy)]
pub(crate) struct MessageEntry {
    pub name: &'static str,
    pub channel: Channel,
    /// Which of the server's limits it counts towards.
    pub traffic: Traffic,
    pub importance: Importance,
    pub has_receipts: bool,
    /// It may name entities. Those of a server then carry a [`Stamp`].
    pub is_mapped: bool,
    /// Tells the game what has become of a message, given as it was sent; on a client, the session is
    /// [`Entity::PLACEHOLDER`].
    pub tell_fate: fn(&mut World, OwnEntity, Fate, session: Entity, &Letter),
}

/// Finds the entity of this app that has an id on the network.
pub(crate) type OwnEntity = fn(&World, NetId) -> Option<Entity>;

impl MessageEntry {
    pub fn of<M: NetMessage>(channel: Channel, is_mapped: bool) -> Self {
        Self {
            name: type_name::<M>(),
            channel,
            traffic: Traffic::Messages,
            importance: Importance::Normal,
            has_receipts: false,
            is_mapped,
            tell_fate: tell_fate::<M>,
        }
    }
}

/// A message as it waits to be taken.
#[derive(Clone)]
pub(crate) struct Letter {
    /// The number of its type.
    pub id: u16,
    pub body: SharedBytes,
    /// Where in it the message's value begins.
    pub value_at: usize,
}

impl Letter {
    /// The same for one reader only.
    pub fn for_one(self) -> Self {
        let body = SharedBytes::for_one(self.body.bytes().clone());
        Self { body, ..self }
    }

    /// The message's value.
    pub fn value(&self) -> &[u8] {
        &self.body.bytes()[self.value_at..]
    }
}

impl Body for Letter {
    fn size_bytes(&self) -> usize {
        self.body.bytes().len()
    }
}

/// What to do with a message that names entities which are not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// They may still come.
    Wait,
    /// They are nobody.
    Placeholder,
}

/// What became of a message that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The game has it.
    Told,
    /// It is not told yet, for lack of these.
    Waits(SmallVec<[NetId; 2]>),
}

/// On a server's messages that may name entities: the low bits of the tick of the first snapshot that can tell of all
/// that was there when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u16);

impl Stamp {
    pub fn of(tick: Tick) -> Self {
        Self(tick.0 as u16)
    }

    /// Whether a client that has been told all up to `tick` lacks something that it will still be told. Holds for five
    /// minutes at a hundred ticks a second; a message that is older than that waits for nothing or for a moment.
    pub fn is_newer_than(self, tick: Tick) -> bool {
        (self.0.wrapping_sub(tick.0 as u16)).cast_signed() > 0
    }

    /// The stamp before a message's value, and the value.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (stamp, value) = bytes.split_first_chunk()?;
        Some((Self(u16::from_le_bytes(*stamp)), value))
    }
}

/// What has become of a message.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    Delivered,
    Dropped,
}

/// How one message type travels.
#[derive(Resource)]
pub(crate) struct MessageRule<M> {
    id: u16,
    pub channel: Channel,
    map: fn(&mut M, &mut MapEntity),
    is_mapped: bool,
}

impl<M: NetMessage> MessageRule<M> {
    pub fn new(id: u16, channel: Channel, map: Option<fn(&mut M, &mut MapEntity)>) -> Self {
        Self {
            id,
            channel,
            map: map.unwrap_or(|_, _| {}),
            is_mapped: map.is_some(),
        }
    }

    /// The message as it travels: its number, its stamp if it is a server's and may name entities, and its value.
    pub fn encode(
        &self,
        message: &M,
        stamp: Option<Stamp>,
        nets: &dyn Fn(Entity) -> Option<NetId>,
    ) -> Result<Letter, serial::SerialError> {
        let mut message = message.clone();
        let mut to_net = ToNet { nets };
        (self.map)(&mut message, &mut |entity| to_net.get_mapped(entity));
        let mut bytes = Vec::new();
        serial::encode(&self.id, &mut bytes)?;
        if let Some(Stamp(stamp)) = stamp.filter(|_| self.is_mapped) {
            bytes.extend_from_slice(&stamp.to_le_bytes());
        }
        let value_at = bytes.len();
        serial::encode(&message, &mut bytes)?;
        Ok(Letter {
            id: self.id,
            body: SharedBytes::new(bytes),
            value_at,
        })
    }

    /// Makes a message of its value; `unknown` hears of entities that are not known here.
    pub fn decode(
        &self,
        bytes: &[u8],
        locals: &dyn Fn(NetId) -> Option<Entity>,
        unknown: &mut dyn FnMut(NetId),
    ) -> Result<M, serial::SerialError> {
        let mut message = serial::decode(bytes)?;
        let mut from_net = FromNet { locals, unknown };
        (self.map)(&mut message, &mut |entity| from_net.get_mapped(entity));
        Ok(message)
    }
}

/// Reads the number that precedes a message; returns it and the rest.
pub(crate) fn split(bytes: &[u8]) -> Result<(usize, &[u8]), serial::SerialError> {
    let (id, rest) = serial::decode_prefix::<u16>(bytes)?;
    Ok((usize::from(id), rest))
}

/// Tells the game what has become of a message.
fn tell_fate<M: NetMessage>(
    world: &mut World,
    own: OwnEntity,
    fate: Fate,
    session: Entity,
    letter: &Letter,
) {
    let rule = world.resource::<MessageRule<M>>();
    let own = |net| own(world, net);
    let message = rule.decode(letter.value(), &own, &mut |_| {});
    match (message, fate) {
        (Ok(message), Fate::Delivered) => {
            world.write_message(Delivered { session, message });
        }
        (Ok(message), Fate::Dropped) => {
            world.write_message(Undeliverable { session, message });
        }
        (Err(error), _) => error_once!("a message cannot be read back: {error}"),
    }
}
