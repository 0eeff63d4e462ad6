//! Typed messages at the client's end.

use bevy::prelude::*;
use smallvec::SmallVec;

use super::apply;
use super::arrivals;
use super::connection::{Connection, connected};
use super::link::{Keepsakes, Link};
use super::mirror;
use super::mirror::Mirror;
use super::types::ClientTypes;
use crate::message::Letter;
use crate::message::{
    Channel, Delivered, FromServer, MAX_CLIENT_MESSAGE_BYTES, MessageRule, NetMessage, Reading,
    ToServer, Undeliverable, Unknown,
};
use crate::registry::Registry;
use crate::registry::give_back;
use crate::schedule::TandemSystems;
use crate::wire::serial;

/// Sends and receives registered messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessagePlugin;

impl Plugin for MessagePlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(
            PreUpdate,
            arrivals::tell
                .after(apply::apply_snapshots)
                .in_set(TandemSystems::Apply)
                .run_if(connected),
        );
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        for fns in ClientTypes::of(app).messages.clone().iter() {
            (fns.install)(app);
        }
    }
}

pub(crate) fn install<M: NetMessage>(app: &mut App) {
    app.add_message::<FromServer<M>>()
        .add_message::<ToServer<M>>()
        .add_message::<Delivered<M>>()
        .add_message::<Undeliverable<M>>()
        .add_systems(PostUpdate, send::<M>.in_set(TandemSystems::Collect));
}

/// So many of the entities for which a message waits are remembered: a message can name a million.
const MAX_MISSING: usize = 16;

pub(crate) fn receive<M: NetMessage>(
    world: &mut World,
    value: &[u8],
    unknown: Unknown,
) -> Result<Reading, serial::SerialError> {
    let mirror = world.resource::<Mirror>();
    let mut missing = SmallVec::new();
    let message = world.resource::<MessageRule<M>>().decode(
        value,
        &|net| mirror.entity(net),
        // When these are here, the others are looked for.
        &mut |net| {
            if missing.len() < MAX_MISSING {
                missing.push(net);
            }
        },
    )?;
    if unknown == Unknown::Wait && !missing.is_empty() {
        return Ok(Reading::Waits(missing));
    }
    world.write_message(FromServer(message));
    Ok(Reading::Told)
}

/// Until the client is in, and after, messages come back: there is nobody to whom they were said. While it tries to come
/// back, reliable ones wait.
fn send<M: NetMessage>(
    mut messages: MessageReader<ToServer<M>>,
    mut undeliverable: MessageWriter<Undeliverable<M>>,
    rule: Res<MessageRule<M>>,
    registry: Res<Registry>,
    mut commands: Commands,
    mut link: Option<ResMut<Link>>,
    mut keepsakes: ResMut<Keepsakes>,
    connection: Res<Connection>,
    mirror: Res<Mirror>,
) {
    let mut mail = keepsakes
        .mail
        .as_mut()
        .filter(|_| connection.session().is_some());
    for ToServer(message) in messages.read() {
        let dropped = mail.as_mut().and_then(|mail| {
            let letter = rule.encode(message, None, &|entity| mirror.net_id(entity));
            let letter = letter.map_err(|error| error.to_string()).and_then(fits);
            let letter = letter
                .inspect_err(|error| error!("a message is not sent: {error}"))
                .ok()?;
            let peer = link.as_mut().map(|link| &mut link.peer);
            if peer.is_none() && rule.channel == Channel::Unreliable {
                return None;
            }
            let dropped = mail.post(peer, &registry.messages, rule.channel, letter);
            if dropped.is_none() {
                warn_once!("messages are not sent: too many wait to be acknowledged");
            }
            dropped
        });
        match dropped {
            Some(dropped) => {
                give_back(
                    &mut commands,
                    &registry,
                    mirror::own_entity,
                    Entity::PLACEHOLDER,
                    dropped,
                );
            }
            None => {
                undeliverable.write(Undeliverable {
                    session: Entity::PLACEHOLDER,
                    message: message.clone(),
                });
            }
        }
    }
}

fn fits(letter: Letter) -> Result<Letter, String> {
    match letter.body.bytes().len() {
        bytes if bytes > MAX_CLIENT_MESSAGE_BYTES => Err(format!(
            "it has {bytes} bytes, and a client's may have {MAX_CLIENT_MESSAGE_BYTES}; split it"
        )),
        _ => Ok(letter),
    }
}
