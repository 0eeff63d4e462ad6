//! Each session's inputs, used in exactly their tick.

use bevy::prelude::*;

use super::collect::Replication;
use crate::protocol::input::InputBuffer;
use crate::registry::Registry;
use crate::replication::{OwnedBy, Owns};
use crate::schedule::{CurrentTick, TandemSystems};

/// Steers what sessions own by their inputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct InputPlugin;

impl Plugin for InputPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(FixedPreUpdate, apply_inputs.in_set(TandemSystems::Sample))
            .add_observer(take_over)
            .add_observer(let_go);
    }
}

/// The inputs of a session that are still to be used.
#[derive(Component, Default)]
pub(super) struct SessionInputs {
    pub buffer: InputBuffer,
}

/// Gives what a session owns the inputs of this tick.
fn apply_inputs(
    world: &mut World,
    sessions: &mut QueryState<(Entity, &mut SessionInputs, Option<&Owns>)>,
    mut steered: Local<Vec<(Entity, Vec<u8>, Vec<Entity>)>>,
    mut nothing: Local<Vec<u8>>,
) {
    let tick = world.resource::<CurrentTick>().0;
    let entries = world.resource::<Registry>().inputs.clone();
    nothing.clear();
    for entry in entries.iter() {
        (entry.encode_default)(&mut nothing);
    }
    let mut used = 0;
    for (session, mut inputs, owns) in sessions.iter_mut(world) {
        // Every input is taken, also of those who own nothing yet: its time is over either way.
        // Who has been silent for long lets go of the keys.
        let bytes = inputs.buffer.take(tick).bytes().unwrap_or(&nothing);
        let Some(owns) = owns else { continue };
        if used == steered.len() {
            steered.push((session, Vec::new(), Vec::new()));
        }
        let (entity, copy, entities) = &mut steered[used];
        *entity = session;
        copy.clear();
        copy.extend_from_slice(bytes);
        entities.clear();
        entities.extend(owns.iter());
        used += 1;
    }
    world.resource_scope(|world, replication: Mut<Replication>| {
        // What an input names is looked up now: it may have gone since that was sent.
        let locals = |net| replication.entity(net);
        for (session, bytes, entities) in &steered[..used] {
            let mut rest = &bytes[..];
            for entry in entries.iter() {
                match (entry.apply)(world, entities, rest, Some(&locals)) {
                    Ok(tail) => rest = tail,
                    Err(error) => {
                        debug!("input of session {session} is not understood: {error}");
                        break;
                    }
                }
            }
        }
    });
}

fn take_over(owned: On<Insert, OwnedBy>, mut commands: Commands) {
    let entity = owned.entity;
    commands.queue(move |world: &mut World| {
        let entries = world.resource::<Registry>().inputs.clone();
        // Bevy, or a command before this one, may have taken it away again.
        if let Ok(mut entity) = world.get_entity_mut(entity)
            && entity.contains::<OwnedBy>()
        {
            for entry in entries.iter() {
                (entry.insert_default)(&mut entity);
            }
        }
    });
}

fn let_go(disowned: On<Remove, OwnedBy>, mut commands: Commands) {
    let entity = disowned.entity;
    commands.queue(move |world: &mut World| {
        let entries = world.resource::<Registry>().inputs.clone();
        // Handed from one owner to the next, it is owned again by now.
        if let Ok(mut entity) = world.get_entity_mut(entity)
            && !entity.contains::<OwnedBy>()
        {
            for entry in entries.iter() {
                (entry.remove)(&mut entity);
            }
        }
    });
}
