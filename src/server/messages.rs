//! Typed messages at the server's end.

use bevy::prelude::*;

use super::collect::{NetIds, Replication};
use super::links::Link;
use crate::message::{
    FromClient, MAX_SERVER_MESSAGE_BYTES, MessageRule, NetMessage, Target, ToClients,
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
        .add_systems(PostUpdate, send::<M>.in_set(TandemSystems::Collect));
}

pub(crate) fn receive<M: NetMessage>(
    world: &mut World,
    session: Entity,
    bytes: &[u8],
) -> Result<(), serial::SerialError> {
    let replication = world.resource::<Replication>();
    let locals = |net| replication.entity(net);
    let message = world.resource::<MessageRule<M>>().decode(bytes, &locals)?;
    world.write_message(FromClient { session, message });
    Ok(())
}

fn send<M: NetMessage>(
    mut messages: MessageReader<ToClients<M>>,
    rule: Res<MessageRule<M>>,
    mut sessions: Query<(Entity, &mut Link, Option<&InRoom>)>,
    nets: NetIds,
) {
    for ToClients { to, message } in messages.read() {
        let bytes = match rule.encode(message, &|entity| nets.get(entity)) {
            Ok(bytes) if bytes.len() <= MAX_SERVER_MESSAGE_BYTES => bytes,
            Ok(bytes) => {
                error!(
                    "a message of {} bytes is not sent: at most {MAX_SERVER_MESSAGE_BYTES} are possible; split it",
                    bytes.len(),
                );
                continue;
            }
            Err(error) => {
                error!("a message cannot be sent: {error}");
                continue;
            }
        };
        for (session, mut link, room) in &mut sessions {
            let is_meant = match *to {
                Target::All => true,
                Target::Session(other) => session == other,
                Target::AllExcept(other) => session != other,
                Target::Room(other) => room.is_some_and(|room| room.0 == other),
            };
            if is_meant && !link.peer.send_message(rule.channel.id(), bytes.clone()) {
                debug!("a message to session {session} is dropped: its channel is full");
            }
        }
    }
}
