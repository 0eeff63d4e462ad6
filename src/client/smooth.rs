//! What is drawn of predicted entities: smooth between ticks, and after corrections.
//!
//! The simulation's own values are put back before the next tick, so that nothing of this reaches it.

use std::time::Duration;

use bevy::app::RunFixedMainLoopSystems;
use bevy::ecs::component::Mutable;
use bevy::prelude::*;

use super::predict::{History, PredictionSettings};
use super::stats::ClientStats;
use crate::blend::Blend;
use crate::registry::{ComponentRule, Scratch};
use crate::replication::Predicted;
use crate::schedule::{CurrentTick, TandemSystems};
use crate::tick::Ticks;

/// What is drawn instead of the simulation's value.
#[derive(Component)]
pub(super) struct Smoothed<C: Send + Sync + 'static> {
    simulated: C,
    /// Whether the component holds the drawn value now, and [`Self::simulated`] the simulation's.
    is_drawn: bool,
    correction: Option<Correction<C>>,
    /// The simulation's value before the replay that is going on.
    before_replay: Option<C>,
}

/// A correction that is being hidden: the difference between two values, less and less of it.
struct Correction<C> {
    from: C,
    to: C,
    weight: f32,
}

pub(super) fn install<C: Component<Mutability = Mutable> + Blend>(app: &mut App) {
    if app.world().resource::<ComponentRule<C>>().predicted {
        app.add_systems(PreUpdate, put_back::<C>.before(TandemSystems::Receive))
            .add_systems(
                RunFixedMainLoop,
                draw::<C>.in_set(RunFixedMainLoopSystems::AfterFixedMainLoop),
            );
    }
}

fn put_back<C: Component<Mutability = Mutable> + Blend>(
    mut predicted: Query<(&mut C, &mut Smoothed<C>)>,
) {
    for (mut value, mut smoothed) in &mut predicted {
        if smoothed.is_drawn {
            smoothed.is_drawn = false;
            *value = smoothed.simulated.clone();
        }
    }
}

fn draw<C: Component<Mutability = Mutable> + Blend>(
    mut predicted: Query<(Entity, &mut C, &History<C>, Option<&mut Smoothed<C>>), With<Predicted>>,
    rule: Res<ComponentRule<C>>,
    settings: Res<PredictionSettings>,
    tick: Res<CurrentTick>,
    fixed: Res<Time<Fixed>>,
    time: Res<Time<Real>>,
    mut scratch: Local<Scratch>,
    mut commands: Commands,
) {
    let fraction = fixed.overstep_fraction();
    let decay = decay(time.delta(), settings.smoothing);
    for (entity, mut value, history, smoothed) in &mut predicted {
        let Some(mut smoothed) = smoothed else {
            commands.entity(entity).try_insert(Smoothed {
                simulated: value.clone(),
                is_drawn: false,
                correction: None,
                before_replay: None,
            });
            continue;
        };
        let before = history.at(tick.0 - Ticks(1)).flatten().filter(|before| {
            !rule.is_teleport(before, &value) && !rule.is_same(before, &value, &mut scratch)
        });
        if before.is_none() && smoothed.correction.is_none() {
            // What rests is not touched, so that nothing takes it for changed.
            continue;
        }
        let mut drawn =
            before.map_or_else(|| value.clone(), |before| before.blend(&value, fraction));
        if let Some(correction) = &mut smoothed.correction {
            correction.weight *= decay;
            drawn = drawn.offset(&correction.from, &correction.to, correction.weight);
            if correction.weight < 0.01 {
                smoothed.correction = None;
            }
        }
        smoothed.simulated = std::mem::replace(&mut *value, drawn);
        smoothed.is_drawn = true;
    }
}

/// What is left of a correction after `elapsed`.
fn decay(elapsed: Duration, time_constant: Duration) -> f32 {
    (-elapsed.as_secs_f32() / time_constant.as_secs_f32().max(1e-6)).exp()
}

/// What is drawn is the simulation's value, which the component holds between frames' beginnings and ends.
pub(super) fn forget<C: Component>(entity: &mut EntityWorldMut) {
    entity.remove::<Smoothed<C>>();
}

/// Remembers what is shown before ticks are replayed.
pub(super) fn before_replay<C: Component + Clone>(entity: &mut EntityWorldMut) {
    let Some(value) = entity.get::<C>().cloned() else {
        return;
    };
    if let Some(mut smoothed) = entity.get_mut::<Smoothed<C>>() {
        smoothed.before_replay = Some(value);
    }
}

/// Hides the difference that a replay made, unless it is too large to be hidden.
pub(super) fn after_replay<C: Component + Clone>(world: &mut World, entity: Entity) {
    let Some(blend) = world.resource::<ComponentRule<C>>().blend_fns() else {
        return;
    };
    let snap_distance = world.resource::<PredictionSettings>().snap_distance;
    let Ok(mut entity) = world.get_entity_mut(entity) else {
        return;
    };
    let Some(after) = entity.get::<C>().cloned() else {
        return;
    };
    let Some(mut smoothed) = entity.get_mut::<Smoothed<C>>() else {
        return;
    };
    let Some(mut from) = smoothed.before_replay.take() else {
        return;
    };
    if let Some(earlier) = &smoothed.correction {
        from = (blend.offset)(&from, &earlier.from, &earlier.to, earlier.weight);
    }
    let distance = (blend.distance)(&from, &after);
    let is_snap = distance > snap_distance;
    smoothed.correction = (!is_snap).then_some(Correction {
        from,
        to: after,
        weight: 1.0,
    });
    if is_snap {
        world.resource_mut::<ClientStats>().snaps += 1;
    }
}
