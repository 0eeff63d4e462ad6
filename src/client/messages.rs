//! Typed messages at the client's end.

use bevy::prelude::*;

use super::apply::Mirror;
use super::connection::{Connection, Link};
use crate::message::{FromServer, MAX_CLIENT_MESSAGE_BYTES, MessageRule, NetMessage, ToServer};
use crate::registry::Registry;
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
            (entry.install_client)(app);
        }
    }
}

pub(crate) fn install<M: NetMessage>(app: &mut App) {
    app.add_message::<FromServer<M>>()
        .add_message::<ToServer<M>>()
        .add_systems(PostUpdate, send::<M>.in_set(TandemSystems::Collect));
}

pub(crate) fn receive<M: NetMessage>(
    world: &mut World,
    bytes: &[u8],
) -> Result<(), serial::SerialError> {
    let mirror = world.resource::<Mirror>();
    let locals = |net| mirror.entity(net);
    let message = world.resource::<MessageRule<M>>().decode(bytes, &locals)?;
    world.write_message(FromServer(message));
    Ok(())
}

/// Until the client is in, messages are dropped: there is nobody to whom they were said.
fn send<M: NetMessage>(
    mut messages: MessageReader<ToServer<M>>,
    rule: Res<MessageRule<M>>,
    link: Option<ResMut<Link>>,
    connection: Res<Connection>,
    mirror: Res<Mirror>,
) {
    let Some(mut link) = link.filter(|_| connection.session().is_some()) else {
        messages.clear();
        return;
    };
    for ToServer(message) in messages.read() {
        match rule.encode(message, &|entity| mirror.net_id(entity)) {
            Ok(bytes) if bytes.len() <= MAX_CLIENT_MESSAGE_BYTES => {
                if !link.peer.send_message(rule.channel.id(), bytes) {
                    warn!("a message is dropped: too many are waiting to be acknowledged");
                }
            }
            Ok(bytes) => error!(
                "a message of {} bytes is not sent: a client's may have {MAX_CLIENT_MESSAGE_BYTES}; split it",
                bytes.len(),
            ),
            Err(error) => error!("a message cannot be sent: {error}"),
        }
    }
}
