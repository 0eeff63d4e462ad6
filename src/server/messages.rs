//! Typed messages at the server's end.

use bevy::prelude::*;

use super::collect::{self, NetIds};
use super::links::{Link, SessionMail};
use crate::message::{
    self, Delivered, FromClient, MAX_SERVER_MESSAGE_BYTES, MessageRule, NetMessage, Target,
    ToClients, Undeliverable,
};
use crate::registry::Registry;
use crate::rooms::InRoom;
use crate::schedule::TandemSystems;
use crate::wire::serial;

/// Sends and receives registered messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessagePlugin;

impl Plugin for MessagePlugin {
    fn build(&self, _: &mut App) {}

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        for entry in app.world().resource::<Registry>().messages.clone().iter() {
            (entry.install_server)(app);
        }
    }
}

pub(crate) fn install<M: NetMessage>(app: &mut App) {
    app.add_message::<FromClient<M>>()
        .add_message::<ToClients<M>>()
        .add_message::<Delivered<M>>()
        .add_message::<Undeliverable<M>>()
        .add_systems(PostUpdate, send::<M>.in_set(TandemSystems::Collect));
}

pub(crate) fn receive<M: NetMessage>(
    world: &mut World,
    session: Entity,
    bytes: &[u8],
) -> Result<(), serial::SerialError> {
    let locals = |net| collect::living(world, net);
    let message = world.resource::<MessageRule<M>>().decode(bytes, &locals)?;
    world.write_message(FromClient { session, message });
    Ok(())
}

/// Encoded once, whoever many it is for.
fn send<M: NetMessage>(
    mut messages: MessageReader<ToClients<M>>,
    mut undeliverable: MessageWriter<Undeliverable<M>>,
    rule: Res<MessageRule<M>>,
    registry: Res<Registry>,
    mut commands: Commands,
    mut sessions: Query<(Entity, &mut SessionMail, Option<&mut Link>, Option<&InRoom>)>,
    nets: NetIds,
) {
    for ToClients { to, message } in messages.read() {
        let letter = match rule.encode(message, &|entity| nets.get(entity)) {
            Ok(letter) if letter.body.bytes().len() <= MAX_SERVER_MESSAGE_BYTES => letter,
            Ok(letter) => {
                error!(
                    "a message of {} bytes is not sent: at most {MAX_SERVER_MESSAGE_BYTES} are possible; split it",
                    letter.body.bytes().len(),
                );
                continue;
            }
            Err(error) => {
                error!("a message cannot be sent: {error}");
                continue;
            }
        };
        let letter = match to {
            Target::Session(_) => letter.for_one(),
            _ => letter,
        };
        for (session, mut mail, mut link, room) in &mut sessions {
            let is_meant = match *to {
                Target::All => true,
                Target::Session(other) => session == other,
                Target::AllExcept(other) => session != other,
                Target::Room(other) => room.is_some_and(|room| room.0 == other),
            };
            if !is_meant {
                continue;
            }
            let peer = link.as_mut().map(|link| &mut link.peer);
            let posted = mail
                .0
                .post(peer, &registry.messages, rule.channel, letter.clone());
            if let Some(dropped) = posted {
                message::give_back(&mut commands, &registry, session, dropped);
            } else {
                debug!("a message to session {session} is not sent: too much waits for it");
                undeliverable.write(Undeliverable {
                    session,
                    message: message.clone(),
                });
            }
        }
    }
}
