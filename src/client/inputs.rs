//! The local player's inputs: sampled once per tick, kept for replays, and sent until the server has them.

use bevy::prelude::*;

use super::link::is_synchronised;
use super::stats::ClientStats;
use crate::protocol::input::InputHistory;
use crate::registry::Registry;
use crate::replication::Owned;
use crate::schedule::{CurrentTick, Replaying, TandemSystems};

/// Samples [`LocalInput`](crate::input::LocalInput), and steers what the player owns by it.
#[derive(Clone, Copy, Debug, Default)]
pub struct InputPlugin;

impl Plugin for InputPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<SentInputs>().add_systems(
            FixedPreUpdate,
            sample.in_set(TandemSystems::Sample).run_if(is_synchronised),
        );
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        for entry in app.world().resource::<Registry>().inputs.clone().iter() {
            (entry.install_local)(app);
        }
    }
}

/// Recent inputs.
#[derive(Resource, Default)]
pub(super) struct SentInputs {
    pub history: InputHistory,
}

fn sample(
    world: &mut World,
    owned: &mut QueryState<Entity, With<Owned>>,
    mut bytes: Local<Vec<u8>>,
    mut entities: Local<Vec<Entity>>,
) {
    let tick = world.resource::<CurrentTick>().0;
    let is_replaying = world.resource::<Replaying>().0;
    world.resource_scope(|world, registry: Mut<Registry>| {
        if registry.inputs.is_empty() {
            return;
        }
        bytes.clear();
        if is_replaying {
            match world.resource::<SentInputs>().history.get(tick) {
                Some(input) => bytes.extend_from_slice(input),
                // Before the first one: what the entities have is as good as anything.
                None => return,
            }
        } else {
            for entry in registry.inputs.iter() {
                (entry.sample)(world, &mut bytes);
            }
            if let Err(error) = world
                .resource_mut::<SentInputs>()
                .history
                .push(tick, &bytes)
            {
                error_once!("the inputs of a tick cannot be sent: {error}");
                return;
            }
            world.resource_mut::<ClientStats>().inputs_sent += 1;
        }
        entities.clear();
        entities.extend(owned.iter(world));
        let mut rest = &bytes[..];
        for entry in registry.inputs.iter() {
            match (entry.apply)(world, &entities, rest) {
                Ok(tail) => rest = tail,
                Err(error) => {
                    error_once!("an input cannot be read back: {error}");
                    return;
                }
            }
        }
    });
}
