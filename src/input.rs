//! What players do, tick by tick.
//!
//! A client samples [`LocalInput`] once per tick and sends it until the server has it. The server uses each input in
//! exactly its tick, on the entities that the session [owns](crate::replication::OwnedBy); where one is missing it
//! repeats the last.

use std::any::type_name;

use bevy::ecs::bundle::BundleWriter;
use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::copies;
use crate::message::MapEntity;
use crate::registry::Naming;
use crate::wire::serial;

/// What can be an input: small, plain data.
///
/// One that names entities (a target, say) is registered with
/// [`map_entities`](crate::registry::InputRegistration::map_entities).
pub trait NetInput: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<I: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static> NetInput for I {}

/// The input that steers this entity in the current tick.
///
/// Every entity with [`OwnedBy`](crate::replication::OwnedBy) has it, for every registered input; on clients those
/// that they own.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Deref, DerefMut)]
pub struct Input<I: Send + Sync + 'static>(pub I);

/// What the local player does now. The game writes it; it is sampled once per tick.
///
/// Write it in [`PreUpdate`] or [`Update`] from the keyboard, or in [`FixedPreUpdate`] before
/// [`TandemSystems::Sample`](crate::schedule::TandemSystems::Sample).
#[derive(Resource, Clone, Copy, Debug, Default, PartialEq, Deref, DerefMut)]
pub struct LocalInput<I: Send + Sync + 'static>(pub I);

/// How an input is checked.
#[derive(Resource)]
pub(crate) struct InputRule<I> {
    pub clamp: Option<fn(&mut I)>,
    /// Maps the entities that it names, if the game says that it names some.
    pub map: Option<fn(&mut I, &mut MapEntity)>,
}

impl<I> Default for InputRule<I> {
    fn default() -> Self {
        Self {
            clamp: None,
            map: None,
        }
    }
}

/// What can be done with an input without naming its type.
#[derive(Clone, Copy)]
pub(crate) struct InputEntry {
    pub name: &'static str,
    /// Prepares an app whose player is local.
    pub install_local: fn(&mut App),
    /// Gives an entity the default input, unless it has one.
    pub insert_default: fn(&mut EntityWorldMut),
    /// Adds the default input to what is inserted together.
    pub assemble_default: fn(&World, &mut BundleWriter),
    pub remove: fn(&mut EntityWorldMut),
    /// Appends the default input.
    pub encode_default: fn(&mut Vec<u8>),
    /// Appends the local player's input.
    pub sample: fn(&World, &mut Vec<u8>),
    /// Reads one input, checks it, and puts it on the entities; returns the bytes after it.
    pub apply: for<'a> fn(&mut World, &[Entity], &'a [u8]) -> Result<&'a [u8], serial::SerialError>,
}

pub(crate) fn entry<I: NetInput>() -> InputEntry {
    InputEntry {
        name: type_name::<I>(),
        install_local: |app| {
            app.init_resource::<LocalInput<I>>();
            app.world_mut().register_component::<Input<I>>();
        },
        insert_default: |entity| {
            entity.insert_if_new(Input::<I>(I::default()));
        },
        assemble_default: |world, out| copies::push(world, Input::<I>(I::default()), out),
        remove: |entity| {
            entity.remove::<Input<I>>();
        },
        encode_default: |out| {
            // What cannot be sent is reported where a player's own input is.
            serial::encode(&I::default(), out).ok();
        },
        sample: |world, out| {
            let input = &world.resource::<LocalInput<I>>().0;
            let encoded = match world.resource::<InputRule<I>>().map {
                None => serial::encode(input, out),
                Some(map) => {
                    let mut input = input.clone();
                    map(&mut input, &mut |entity| Naming::to_net(world, entity));
                    serial::encode(&input, out)
                }
            };
            if let Err(error) = encoded {
                error_once!("`{}` cannot be sent: {error}", type_name::<I>());
            }
        },
        apply: apply::<I>,
    }
}

fn apply<'a, I: NetInput>(
    world: &mut World,
    entities: &[Entity],
    bytes: &'a [u8],
) -> Result<&'a [u8], serial::SerialError> {
    let (mut input, rest) = serial::decode_prefix::<I>(bytes)?;
    if let Some(map) = world.resource::<InputRule<I>>().map {
        map(&mut input, &mut |entity| Naming::from_net(world, entity));
    }
    if let Some(clamp) = world.resource::<InputRule<I>>().clamp {
        clamp(&mut input);
    }
    for &entity in entities {
        if let Some(mut current) = world.get_mut::<Input<I>>(entity) {
            current.0 = input.clone();
        }
    }
    Ok(rest)
}
