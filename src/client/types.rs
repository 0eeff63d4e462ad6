//! What a client does with each registered type, without naming it.

use std::sync::Arc;

use bevy::ecs::bundle::BundleWriter;
use bevy::prelude::*;

use super::component::{self, CopyFns};
use super::messages;
use super::sampling::{self, Sampled};
use crate::input::{Input, NetInput};
use crate::message::{NetMessage, Reading, Unknown};
use crate::protocol::layout::NetId;
use crate::replication::SpawnKey;
use crate::wire::serial::SerialError;

/// Functions for the types of the [`Registry`](crate::registry::Registry), by the same numbers. Shared lists, so that
/// one can be walked while the world is changed.
#[derive(Resource)]
pub(crate) struct ClientTypes {
    pub components: Arc<Vec<CopyFns>>,
    pub inputs: Arc<Vec<SampleFns>>,
    pub messages: Arc<Vec<HearFns>>,
}

/// Client-side work on one input type.
#[derive(Clone, Copy)]
pub(crate) struct SampleFns {
    /// Prepares an app whose player is local.
    pub install: fn(&mut App),
    /// Adds the default input to what is inserted together.
    pub assemble_default: fn(&World, &mut BundleWriter),
    /// Appends the local player's input for the next tick.
    pub sample: fn(&mut World, &dyn Fn(Entity) -> Option<NetId>, &mut Sampled),
}

/// Client-side work on one message type.
#[derive(Clone, Copy)]
pub(crate) struct HearFns {
    pub install: fn(&mut App),
    /// Makes a message of bytes from the server.
    pub receive: fn(&mut World, &[u8], Unknown) -> Result<Reading, SerialError>,
}

impl Default for ClientTypes {
    /// What is always registered.
    fn default() -> Self {
        let components = vec![CopyFns::of::<ChildOf>(), CopyFns::of::<SpawnKey>()];
        Self {
            components: Arc::new(components),
            inputs: default(),
            messages: default(),
        }
    }
}

impl ClientTypes {
    /// The app's; made when first asked for.
    pub fn of(app: &mut App) -> Mut<'_, Self> {
        app.init_resource::<Self>();
        app.world_mut().resource_mut()
    }

    pub fn add_component<C: Component + Clone>(&mut self) {
        Arc::make_mut(&mut self.components).push(CopyFns::of::<C>());
    }

    pub fn add_input<I: NetInput>(&mut self) {
        Arc::make_mut(&mut self.inputs).push(SampleFns {
            install: sampling::install::<I>,
            assemble_default: |world, out| component::push(world, Input::<I>(I::default()), out),
            sample: sampling::sample::<I>,
        });
    }

    pub fn add_message<M: NetMessage>(&mut self) {
        Arc::make_mut(&mut self.messages).push(HearFns {
            install: messages::install::<M>,
            receive: messages::receive::<M>,
        });
    }
}
