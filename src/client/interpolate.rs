//! Interpolation of entities that others control.
//!
//! Snapshots arrive unevenly, so the recent past is drawn, where two of them usually surround the moment shown. More
//! delay hides more loss, less feels more immediate: [`Timeline`](crate::protocol::interpolation::Timeline) finds the
//! least that suffices.
//!
//! A component has a buffer only while it changes: what stands still costs nothing.

use bevy::ecs::bundle::BundleWriter;
use bevy::ecs::component::Mutable;
use bevy::prelude::*;

use super::component;
use super::connection::connected;
use super::copies;
use super::link::Link;
use super::smooth;
use super::stats::ClientStats;
use crate::blend::Blend;
use crate::protocol::interpolation::{Playback, Sample, SampleBuffer};
use crate::registry::{ComponentRule, Scratch};
use crate::replication::Interpolated;
use crate::schedule::TandemSystems;
use crate::tick::Tick;

/// Draws interpolated entities between snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub struct InterpolationPlugin;

/// After [`TandemSystems::Apply`], in [`PreUpdate`].
#[derive(SystemSet, Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct InterpolationSystems;

impl Plugin for InterpolationPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Playhead>()
            .configure_sets(PreUpdate, InterpolationSystems.after(TandemSystems::Apply))
            .add_systems(
                PreUpdate,
                (advance, copies::play, copies::despawn_due)
                    .chain()
                    .after(TandemSystems::Apply)
                    .before(InterpolationSystems)
                    .run_if(connected),
            );
    }
}

/// The moment that is drawn.
#[derive(Resource, Clone, Copy, Default)]
pub(super) struct Playhead(pub Option<Playback>);

/// Recent values of a component that changes.
#[derive(Component)]
pub(super) struct Buffer<C: Send + Sync + 'static>(SampleBuffer<C>);

/// How far a component gets in some seconds at a velocity.
#[derive(Resource)]
pub(crate) struct HermiteRule<C, V> {
    pub advance: fn(&C, &V, f32) -> C,
}

pub(crate) fn install_linear<C: Component<Mutability = Mutable> + Blend>(app: &mut App) {
    app.add_systems(PreUpdate, interpolate::<C>.in_set(InterpolationSystems));
    smooth::install::<C>(app);
}

pub(crate) fn install_hermite<C: Component<Mutability = Mutable> + Blend, V: Component + Clone>(
    app: &mut App,
) {
    app.add_systems(
        PreUpdate,
        interpolate_hermite::<C, V>.in_set(InterpolationSystems),
    );
    smooth::install::<C>(app);
}

pub(crate) fn install_step<C: Component<Mutability = Mutable> + Clone>(app: &mut App) {
    app.add_systems(PreUpdate, step::<C>.in_set(InterpolationSystems));
}

/// Adds a value to a component's recent ones. The value before it is known to have held until `held`; nothing moves from
/// there to this one if it `is_cut`.
pub(super) fn push<C: Component + Clone>(
    entity: &mut EntityWorldMut,
    tick: Tick,
    held: Tick,
    value: C,
    is_cut: bool,
) {
    if !entity.contains::<Buffer<C>>() {
        let mut buffer = SampleBuffer::new();
        if let Some(before) = entity.get::<C>() {
            buffer.insert(held, before.clone(), None);
        }
        entity.insert(Buffer(buffer));
    }
    if let Some(mut buffer) = entity.get_mut::<Buffer<C>>() {
        match is_cut {
            true => buffer.0.insert_cut(tick, value),
            false => buffer.0.insert(tick, value, Some(held)),
        }
    }
}

/// Adds the value of the drawn moment to what is inserted together.
pub(super) fn assemble_drawn<C: Component + Clone>(
    world: &World,
    entity: Entity,
    at: &Playback,
    out: &mut BundleWriter,
) {
    let buffer = world.get::<Buffer<C>>(entity);
    let value = buffer.and_then(|buffer| buffer.0.sample(at).blend(|a, _, _| a.clone()));
    if let Some(value) = value {
        component::push(world, value, out);
    }
}

pub(super) fn skip_to_cut<C: Component>(entity: &mut EntityWorldMut) {
    if let Some(mut buffer) = entity.get_mut::<Buffer<C>>() {
        buffer.0.skip_to_cut();
    }
}

fn advance(
    mut link: ResMut<Link>,
    real: Res<Time<Real>>,
    mut playhead: ResMut<Playhead>,
    mut stats: ResMut<ClientStats>,
) {
    if link.standstill.is_some() {
        link.timeline.stand_still();
    }
    playhead.0 = link.timeline.advance(real.elapsed());
    if let Some(playback) = playhead.0 {
        stats.interpolation_delay = playback.delay;
    }
    let starvation = link.timeline.starvation();
    stats.count_frames(starvation.frames, starvation.starved);
}

impl<C: Clone + Send + Sync + 'static> Buffer<C> {
    /// The value of a tick, as it is known at `now`.
    fn at(&self, tick: Tick, now: &Playback) -> Option<C> {
        let then = Playback {
            tick,
            fraction: 0.0,
            ..*now
        };
        self.0.sample(&then).blend(|before, _, _| before.clone())
    }

    /// Whether the newest value is what is shown, and stays.
    fn is_settled(&self, at: &Playback, sample: &Sample<C>) -> bool {
        let has_passed = |(tick, _): (Tick, &C)| !tick.is_newer_than(at.tick);
        matches!(sample, Sample::Hold(_)) && self.0.newest().is_none_or(has_passed)
    }
}

fn interpolate<C: Component<Mutability = Mutable> + Blend>(
    playhead: Res<Playhead>,
    rule: Res<ComponentRule<C>>,
    mut changing: Query<(Entity, &mut C, &mut Buffer<C>), With<Interpolated>>,
    mut scratch: Local<Scratch>,
    mut commands: Commands,
) {
    let Some(at) = playhead.0 else { return };
    for (entity, mut value, mut buffer) in &mut changing {
        let sample = buffer.0.sample(&at).snap_if(|a, b| rule.is_teleport(a, b));
        let is_settled = buffer.is_settled(&at, &sample);
        if !is_shown(&rule, &sample, &value, &mut scratch)
            && let Some(drawn) = sample.blend(C::blend)
        {
            *value = drawn;
        }
        if is_settled {
            commands.entity(entity).try_remove::<Buffer<C>>();
        } else {
            buffer.0.discard_before(at.tick);
        }
    }
}

/// A cubic through two values with the right velocity at both: De Casteljau's construction, from blends alone.
fn interpolate_hermite<C: Component<Mutability = Mutable> + Blend, V: Component + Clone>(
    playhead: Res<Playhead>,
    rule: Res<ComponentRule<C>>,
    hermite: Res<HermiteRule<C, V>>,
    fixed: Res<Time<Fixed>>,
    mut changing: Query<
        (
            Entity,
            &mut C,
            &mut Buffer<C>,
            Option<&V>,
            Option<&Buffer<V>>,
        ),
        With<Interpolated>,
    >,
    mut scratch: Local<Scratch>,
    mut commands: Commands,
) {
    let Some(at) = playhead.0 else { return };
    let seconds_per_tick = fixed.timestep().as_secs_f32();
    for (entity, mut value, mut buffer, velocity, velocities) in &mut changing {
        let sample = buffer.0.sample(&at).snap_if(|a, b| rule.is_teleport(a, b));
        let is_settled = buffer.is_settled(&at, &sample);
        let velocity_at = |tick: Tick| match velocities {
            Some(buffer) => buffer.at(tick, &at),
            None => velocity.cloned(),
        };
        let drawn = match &sample {
            &Sample::Between {
                before: (from, a),
                after: (to, b),
                t,
            } => match (velocity_at(from), velocity_at(to)) {
                (Some(va), Some(vb)) => {
                    let third = to.distance_from(from) as f32 * seconds_per_tick / 3.0;
                    let c1 = (hermite.advance)(a, &va, third);
                    let c2 = (hermite.advance)(b, &vb, -third);
                    Some(bezier(a, &c1, &c2, b, t))
                }
                _ => Some(a.blend(b, t)),
            },
            _ => sample.clone().blend(C::blend),
        };
        if !is_shown(&rule, &sample, &value, &mut scratch)
            && let Some(drawn) = drawn
        {
            *value = drawn;
        }
        if is_settled {
            commands.entity(entity).try_remove::<Buffer<C>>();
        } else {
            buffer.0.discard_before(at.tick);
        }
    }
}

fn bezier<C: Blend>(a: &C, b: &C, c: &C, d: &C, t: f32) -> C {
    let (ab, bc, cd) = (a.blend(b, t), b.blend(c, t), c.blend(d, t));
    ab.blend(&bc, t).blend(&bc.blend(&cd, t), t)
}

/// Whether a value that does not move is what is shown already: to write it again would mark it as changed.
fn is_shown<C: Component + Clone>(
    rule: &ComponentRule<C>,
    sample: &Sample<C>,
    shown: &C,
    scratch: &mut Scratch,
) -> bool {
    matches!(sample, Sample::Hold(value) if rule.is_same(value, shown, scratch))
}

fn step<C: Component<Mutability = Mutable> + Clone>(
    playhead: Res<Playhead>,
    rule: Res<ComponentRule<C>>,
    mut changing: Query<(Entity, &mut C, &mut Buffer<C>), With<Interpolated>>,
    mut scratch: Local<Scratch>,
    mut commands: Commands,
) {
    let Some(at) = playhead.0 else { return };
    for (entity, mut value, mut buffer) in &mut changing {
        let sample = buffer.0.sample(&at);
        let is_settled = buffer.is_settled(&at, &sample);
        match sample {
            Sample::Hold(shown)
            | Sample::Between {
                before: (_, shown), ..
            }
            | Sample::Extrapolate {
                last: (_, shown), ..
            } => {
                if !rule.is_same(shown, &value, &mut scratch) {
                    *value = shown.clone();
                }
            }
            Sample::Empty => {}
        }
        if is_settled {
            commands.entity(entity).try_remove::<Buffer<C>>();
        } else {
            buffer.0.discard_before(at.tick);
        }
    }
}
