//! What players do, tick by tick.
//!
//! A client's game writes [`LocalInput`] in every frame. Frames and ticks do not match: at 240 frames a second most
//! frames have no tick, at 20 a frame has three. So what frames say is gathered until the next tick, which takes it as
//! its input; a further tick of the same frame goes on with what is held. The server uses each input in exactly its tick,
//! on the entities that the session [owns](crate::replication::OwnedBy); where one is missing it repeats the last.
//!
//! # Held and tapped
//!
//! By default the newest frame counts. So a key that goes down and up between two ticks is missed, and what was
//! *just* pressed is missed in a frame without a tick, and counts three times in a frame with three. Two methods of the
//! [registration](crate::registry::InputRegistration) say what the game means:
//!
//! - [`accumulate`](crate::registry::InputRegistration::accumulate) merges frames into the tick's input, for what is
//!   held: sticks, and keys read with `pressed`.
//! - [`tap`](crate::registry::InputRegistration::tap) names a field that counts once, in one tick, for keys read with
//!   `just_pressed`.
//!
//! ```
//! # use bevy::prelude::*;
//! # use bevy_tandem::prelude::*;
//! # use serde::{Deserialize, Serialize};
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Control {
//!     run: Vec2,
//!     shoots: bool,
//!     jumps: bool,
//! }
//!
//! fn game(app: &mut App) {
//!     app.add_input::<Control>()
//!         .accumulate(|tick, frame| {
//!             tick.run = frame.run; // a stick: where it is
//!             tick.shoots |= frame.shoots; // a trigger: down in any frame
//!         })
//!         .tap(|control| &mut control.jumps); // just pressed: once
//! }
//! # game(&mut App::new());
//! ```

use std::any::type_name;
use std::ops::Deref;

use bevy::ecs::bundle::BundleWriter;
use bevy::ecs::change_detection::Tick as ChangeTick;
use bevy::ecs::entity::EntityMapper;
use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::component;
use crate::message::MapEntity;
use crate::protocol::layout::NetId;
use crate::registry::{FromNet, ToNet};
use crate::schedule::CurrentTick;
use crate::tick::Tick;
use crate::wire::serial;

/// What can be an input: small, plain data.
pub trait NetInput: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<I: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static> NetInput for I {}

/// The input that steers this entity in the current tick.
///
/// Every entity with [`OwnedBy`](crate::replication::OwnedBy) has it, for every registered input; on clients those
/// that they own.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Deref, DerefMut)]
pub struct Input<I: Send + Sync + 'static>(pub I);

/// What the local player does now. The game writes it in every frame; the next tick takes what the frames since the last
/// one have said.
///
/// Write it in [`PreUpdate`] from the keyboard; written in [`Update`], it is a frame later. Written in
/// [`FixedPreUpdate`] before [`TandemSystems::Sample`](crate::schedule::TandemSystems::Sample), it is for that tick
/// alone, whatever the frames have said.
#[derive(Resource, Clone, Copy, Debug, Default, PartialEq, Deref, DerefMut)]
pub struct LocalInput<I: Send + Sync + 'static>(pub I);

/// What [`LocalInput`] says in one frame. Read the input through it: `frame.jumps`.
#[derive(Debug)]
pub struct Frame<'a, I> {
    input: &'a I,
    is_new: bool,
}

impl<I> Frame<'_, I> {
    /// Whether no tick has used this frame yet. `false` for the further ticks of a frame that has several: then what the
    /// player holds still counts, and what they did once does not.
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

impl<I> Deref for Frame<'_, I> {
    type Target = I;

    fn deref(&self) -> &I {
        self.input
    }
}

/// How an input is made and checked.
#[derive(Resource)]
pub(crate) struct InputRule<I> {
    pub clamp: Option<fn(&mut I)>,
    pub accumulate: Option<fn(&mut I, Frame<I>)>,
    pub taps: Vec<fn(&mut I) -> &mut bool>,
    /// Maps the entities that it names.
    pub map: Option<fn(&mut I, &mut MapEntity)>,
}

impl<I> Default for InputRule<I> {
    fn default() -> Self {
        Self {
            clamp: None,
            accumulate: None,
            taps: Vec::new(),
            map: None,
        }
    }
}

impl<I: NetInput> InputRule<I> {
    /// Adds a frame to what the next tick will use.
    fn merge(&self, gathered: Option<I>, input: &I, is_new: bool) -> I {
        let mut frame = input.clone();
        if !is_new {
            self.clear_taps(&mut frame);
        }
        let mut tick = gathered.unwrap_or_default();
        let tapped: Vec<_> = self.taps.iter().map(|tap| *tap(&mut tick)).collect();
        match self.accumulate {
            Some(accumulate) => {
                let input = &frame;
                accumulate(&mut tick, Frame { input, is_new });
            }
            None => tick = frame.clone(),
        }
        for (tap, before) in self.taps.iter().zip(tapped) {
            *tap(&mut tick) = before || *tap(&mut frame);
        }
        tick
    }

    fn clear_taps(&self, input: &mut I) {
        for tap in &self.taps {
            *tap(input) = false;
        }
    }
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

/// What can be done with an input without naming its type.
#[derive(Clone, Copy)]
pub(crate) struct InputEntry {
    pub name: &'static str,
    /// Whether entities in it are mapped.
    pub is_mapped: bool,
    /// Prepares an app whose player is local.
    pub install_local: fn(&mut App),
    /// Gives an entity the default input, unless it has one.
    pub insert_default: fn(&mut EntityWorldMut),
    /// Adds the default input to what is inserted together.
    pub assemble_default: fn(&World, &mut BundleWriter),
    pub remove: fn(&mut EntityWorldMut),
    /// Appends the default input.
    pub encode_default: fn(&mut Vec<u8>),
    /// Appends the local player's input for the next tick.
    pub sample: fn(&mut World, &dyn Fn(Entity) -> Option<NetId>, &mut Sampled),
    /// Reads one input, checks it, and puts it on the entities; returns the bytes after it.
    pub apply: for<'a> fn(
        &mut World,
        &[Entity],
        &'a [u8],
        Option<Locals>,
    ) -> Result<&'a [u8], serial::SerialError>,
}

/// This app's entities by their network ids, for inputs that came over the network.
pub(crate) type Locals<'a> = &'a dyn Fn(NetId) -> Option<Entity>;

pub(crate) fn entry<I: NetInput>(is_mapped: bool) -> InputEntry {
    InputEntry {
        name: type_name::<I>(),
        is_mapped,
        install_local: |app| {
            app.init_resource::<LocalInput<I>>()
                .init_resource::<Gathered<I>>()
                .add_systems(
                    RunFixedMainLoop,
                    gather::<I>.in_set(RunFixedMainLoopSystems::BeforeFixedMainLoop),
                );
            app.world_mut().register_component::<Input<I>>();
        },
        insert_default: |entity| {
            entity.insert_if_new(Input::<I>(I::default()));
        },
        assemble_default: |world, out| component::push(world, Input::<I>(I::default()), out),
        remove: |entity| {
            entity.remove::<Input<I>>();
        },
        encode_default: |out| {
            // What cannot be sent is reported where a player's own input is.
            serial::encode(&I::default(), out).ok();
        },
        sample: sample::<I>,
        apply: apply::<I>,
    }
}

fn sample<I: NetInput>(
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

fn apply<'a, I: NetInput>(
    world: &mut World,
    entities: &[Entity],
    bytes: &'a [u8],
    locals: Option<Locals>,
) -> Result<&'a [u8], serial::SerialError> {
    let (mut input, rest) = serial::decode_prefix::<I>(bytes)?;
    let rule = world.resource::<InputRule<I>>();
    if let (Some(map), Some(locals)) = (rule.map, locals) {
        let unknown = &mut |_| {};
        let mut from_net = FromNet { locals, unknown };
        map(&mut input, &mut |entity| from_net.get_mapped(entity));
    }
    if let Some(clamp) = rule.clamp {
        clamp(&mut input);
    }
    for &entity in entities {
        if let Some(mut current) = world.get_mut::<Input<I>>(entity) {
            current.0 = input.clone();
        }
    }
    Ok(rest)
}
