//! The local player's inputs: sampled once per tick, kept for replays, and sent until the server has them.

use std::collections::VecDeque;

use bevy::prelude::*;

use super::link::is_synchronised;
use super::mirror::Mirror;
use super::sampling::Sampled;
use super::stats::ClientStats;
use super::types::ClientTypes;
use crate::protocol::input::{InputError, InputHistory, MAX_INPUTS};
use crate::registry::Registry;
use crate::replication::Owned;
use crate::schedule::{CurrentTick, Replaying, TandemSystems};
use crate::tick::Tick;

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
        for fns in ClientTypes::of(app).inputs.clone().iter() {
            (fns.install)(app);
        }
    }
}

/// Recent inputs.
#[derive(Resource, Default)]
pub(super) struct SentInputs {
    /// As they travel.
    pub history: InputHistory,
    /// As this client's game sees them, where that differs: they name entities. Newest last.
    own: VecDeque<(Tick, Vec<u8>)>,
}

impl SentInputs {
    fn push(&mut self, tick: Tick, sampled: &Sampled, is_mapped: bool) -> Result<(), InputError> {
        self.history.push(tick, &sampled.sent)?;
        if is_mapped {
            // After the clock was set back, ticks come again.
            self.own.retain(|(of, _)| tick.is_newer_than(*of));
            if self.own.len() == MAX_INPUTS {
                self.own.pop_front();
            }
            self.own.push_back((tick, sampled.own.clone()));
        }
        Ok(())
    }

    /// The input of a tick, as it was used then.
    fn used(&self, tick: Tick, is_mapped: bool) -> Option<&[u8]> {
        if !is_mapped {
            return self.history.get(tick);
        }
        let found = self.own.iter().rev().find(|(of, _)| *of == tick);
        found.map(|(_, own)| &own[..])
    }
}

fn sample(
    world: &mut World,
    owned: &mut QueryState<Entity, With<Owned>>,
    mut sampled: Local<Sampled>,
    mut entities: Local<Vec<Entity>>,
) {
    let tick = world.resource::<CurrentTick>().0;
    let is_replaying = world.resource::<Replaying>().0;
    world.resource_scope(|world, registry: Mut<Registry>| {
        if registry.inputs.is_empty() {
            return;
        }
        sampled.clear();
        let is_mapped = registry.inputs.iter().any(|entry| entry.is_mapped);
        if is_replaying {
            match world.resource::<SentInputs>().used(tick, is_mapped) {
                Some(input) => sampled.own.extend_from_slice(input),
                // Before the first one: what the entities have is as good as anything.
                None => return,
            }
        } else {
            let types = world.resource::<ClientTypes>().inputs.clone();
            world.resource_scope(|world, mirror: Mut<Mirror>| {
                for fns in types.iter() {
                    (fns.sample)(world, &|entity| mirror.net_id(entity), &mut sampled);
                }
            });
            let mut inputs = world.resource_mut::<SentInputs>();
            if let Err(error) = inputs.push(tick, &sampled, is_mapped) {
                error_once!("the inputs of a tick cannot be sent: {error}");
                return;
            }
            world.resource_mut::<ClientStats>().inputs_sent += 1;
        }
        entities.clear();
        entities.extend(owned.iter(world));
        let mut rest = &sampled.own[..];
        for entry in registry.inputs.iter() {
            match (entry.apply)(world, &entities, rest, None) {
                Ok(tail) => rest = tail,
                Err(error) => {
                    error_once!("an input cannot be read back: {error}");
                    return;
                }
            }
        }
    });
}
