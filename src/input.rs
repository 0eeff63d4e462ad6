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
//! [registration](crate::app::InputRegistration) say what the game means:
//!
//! - [`accumulate`](crate::app::InputRegistration::accumulate) merges frames into the tick's input, for what is
//!   held: sticks, and keys read with `pressed`.
//! - [`tap`](crate::app::InputRegistration::tap) names a field that counts once, in one tick, for keys read with
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

use bevy::ecs::entity::EntityMapper;
use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::entity_map::{FromNet, MapEntity};
use crate::protocol::layout::NetId;
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
    pub fn merge(&self, gathered: Option<I>, input: &I, is_new: bool) -> I {
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

/// What can be done with an input without naming its type.
#[derive(Clone, Copy)]
pub(crate) struct InputEntry {
    pub name: &'static str,
    /// Whether entities in it are mapped.
    pub is_mapped: bool,
    /// Gives an entity the default input, unless it has one.
    pub insert_default: fn(&mut EntityWorldMut),
    pub remove: fn(&mut EntityWorldMut),
    /// Appends the default input.
    pub encode_default: fn(&mut Vec<u8>),
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

impl InputEntry {
    pub fn of<I: NetInput>(is_mapped: bool) -> Self {
        Self {
            name: type_name::<I>(),
            is_mapped,
            insert_default: |entity| {
                entity.insert_if_new(Input::<I>(I::default()));
            },
            remove: |entity| {
                entity.remove::<Input<I>>();
            },
            encode_default: |out| {
                // What cannot be sent is reported where a player's own input is.
                serial::encode(&I::default(), out).ok();
            },
            apply: apply::<I>,
        }
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
