//! What a server does with each registered type, without naming it.

use std::sync::Arc;

use bevy::prelude::*;

use super::collect::CaptureFns;
use super::messages;
use crate::message::NetMessage;
use crate::replication::SpawnKey;
use crate::wire::serial::SerialError;

/// Functions for the types of the [`Registry`](crate::registry::Registry), by the same numbers. Shared lists, so that
/// one can be walked while the world is changed.
#[derive(Resource)]
pub(crate) struct ServerTypes {
    pub components: Arc<Vec<CaptureFns>>,
    pub messages: Arc<Vec<ReceiveFns>>,
}

/// Server-side work on one message type.
#[derive(Clone, Copy)]
pub(crate) struct ReceiveFns {
    pub install: fn(&mut App),
    /// Makes a message of bytes from a client.
    pub receive: fn(&mut World, session: Entity, &[u8]) -> Result<(), SerialError>,
}

impl Default for ServerTypes {
    /// What is always registered.
    fn default() -> Self {
        let components = vec![CaptureFns::of::<ChildOf>(), CaptureFns::of::<SpawnKey>()];
        Self {
            components: Arc::new(components),
            messages: default(),
        }
    }
}

impl ServerTypes {
    /// The app's; made when first asked for.
    pub fn of(app: &mut App) -> Mut<'_, Self> {
        app.init_resource::<Self>();
        app.world_mut().resource_mut()
    }

    pub fn add_component<C: Component + Clone>(&mut self) {
        Arc::make_mut(&mut self.components).push(CaptureFns::of::<C>());
    }

    pub fn add_message<M: NetMessage>(&mut self) {
        Arc::make_mut(&mut self.messages).push(ReceiveFns {
            install: messages::install::<M>,
            receive: messages::receive::<M>,
        });
    }
}
