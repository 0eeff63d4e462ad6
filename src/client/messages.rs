//! Typed messages at the client's end.

use bevy::prelude::*;

use super::connection::Connection;
use super::link::{Keepsakes, Link};
use super::mirror::Mirror;
use crate::message::{
    self, Delivered, FromServer, MAX_CLIENT_MESSAGE_BYTES, MessageRule, NetMessage, ToServer,
    Undeliverable,
};
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
        .add_message::<Delivered<M>>()
        .add_message::<Undeliverable<M>>()
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

/// Until the client is in, messages are dropped: there is nobody to whom they were said. While it tries to come back,
/// reliable ones wait.
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
    let Some(mail) = keepsakes
        .mail
        .as_mut()
        .filter(|_| connection.session().is_some())
    else {
        messages.clear();
        return;
    };
    for ToServer(message) in messages.read() {
        let letter = match rule.encode(message, &|entity| mirror.net_id(entity)) {
            Ok(letter) => letter,
            Err(error) => {
                error!("a message cannot be sent: {error}");
                continue;
            }
        };
        let bytes = letter.body.bytes().len();
        if bytes > MAX_CLIENT_MESSAGE_BYTES {
            error!(
                "a message of {bytes} bytes is not sent: a client's may have {MAX_CLIENT_MESSAGE_BYTES}; split it"
            );
            continue;
        }
        let peer = link.as_mut().map(|link| &mut link.peer);
        if let Some(dropped) = mail.post(peer, &registry.messages, rule.channel, letter) {
            message::give_back(&mut commands, &registry, Entity::PLACEHOLDER, dropped);
        } else {
            warn_once!("messages are not sent: too many wait to be acknowledged");
            undeliverable.write(Undeliverable {
                session: Entity::PLACEHOLDER,
                message: message.clone(),
            });
        }
    }
}
