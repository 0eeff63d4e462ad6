//! The local player's input, from frames to ticks.

use std::any::type_name;

use bevy::ecs::change_detection::Tick as ChangeTick;
use bevy::ecs::entity::EntityMapper;
use bevy::prelude::*;

use crate::entity_map::ToNet;
use crate::input::{Input, InputRule, LocalInput, NetInput};
use crate::protocol::layout::NetId;
use crate::schedule::CurrentTick;
use crate::tick::Tick;
use crate::wire::serial;

/// Prepares an app whose player is local.
pub(super) fn install<I: NetInput>(app: &mut App) {
    app.init_resource::<LocalInput<I>>()
        .init_resource::<Gathered<I>>()
        .add_systems(
            RunFixedMainLoop,
            gather::<I>.in_set(RunFixedMainLoopSystems::BeforeFixedMainLoop),
        );
    app.world_mut().register_component::<Input<I>>();
}

/// What the frames since the last tick have said.
#[derive(Resource)]
struct Gathered<I> {
    /// `None` once a tick has taken it.
    input: Option<I>,
    /// When [`LocalInput`] was last written, as far as was seen.
    written: Option<ChangeTick>,
    /// The newest tick when it was gathered.
    tick: Tick,
}

impl<I> Default for Gathered<I> {
    fn default() -> Self {
        Self {
            input: None,
            written: None,
            tick: Tick(0),
        }
    }
}

/// Adds this frame to what the next tick will use.
fn gather<I: NetInput>(
    local: Res<LocalInput<I>>,
    rule: Res<InputRule<I>>,
    mut gathered: ResMut<Gathered<I>>,
    tick: Res<CurrentTick>,
    time: Res<Time<Virtual>>,
) {
    // Ticks have passed that took nothing: before the connection is made, say. What was pressed then is over.
    if gathered.tick != tick.0 {
        gathered.input = None;
    }
    gathered.tick = tick.0;
    gathered.written = Some(local.last_changed());
    let before = gathered.input.take();
    if !time.is_paused() {
        gathered.input = Some(rule.merge(before, &local.0, true));
    }
}

/// The input of the next tick.
fn take<I: NetInput>(world: &mut World) -> I {
    world.resource_scope(|world, mut gathered: Mut<Gathered<I>>| {
        gathered.tick = world.resource::<CurrentTick>().0;
        let rule = world.resource::<InputRule<I>>();
        let Some(local) = world.get_resource_ref::<LocalInput<I>>() else {
            return I::default();
        };
        let written = Some(local.last_changed());
        if gathered.written != written {
            // The game has written it for this very tick.
            gathered.written = written;
            gathered.input = None;
            return rule.merge(None, &local.0, true);
        }
        let input = gathered.input.take();
        input.unwrap_or_else(|| rule.merge(None, &local.0, false))
    })
}

/// A tick's input as bytes.
#[derive(Default)]
pub(crate) struct Sampled {
    /// As this app sees it.
    pub own: Vec<u8>,
    /// As it travels: entities have network ids.
    pub sent: Vec<u8>,
}

impl Sampled {
    pub fn clear(&mut self) {
        self.own.clear();
        self.sent.clear();
    }
}

/// Appends the local player's input for the next tick.
pub(super) fn sample<I: NetInput>(
    world: &mut World,
    nets: &dyn Fn(Entity) -> Option<NetId>,
    out: &mut Sampled,
) {
    let mut input = take::<I>(world);
    let start = out.own.len();
    let mut encoded = serial::encode(&input, &mut out.own);
    if let Some(map) = world.resource::<InputRule<I>>().map {
        let mut to_net = ToNet { nets };
        map(&mut input, &mut |entity| to_net.get_mapped(entity));
        encoded = encoded.and_then(|()| serial::encode(&input, &mut out.sent));
    } else {
        out.sent.extend_from_slice(&out.own[start..]);
    }
    if let Err(error) = encoded {
        error_once!("`{}` cannot be sent: {error}", type_name::<I>());
    }
}
