//! What travels between server and clients, and how: the same list on both sides.
//!
//! Types become numbers here, by the order of their registration. What either side does with them it keeps in a list of
//! its own, under the same numbers.

use std::any::{TypeId, type_name};
use std::cell::Cell;
use std::sync::Arc;

use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::entity_map::{FromNet, MapEntity, ToNet};
use crate::input::{InputEntry, InputRule, NetInput};
use crate::message::{Channel, Fate, Letter, MessageEntry, MessageRule, NetMessage, OwnEntity};
use crate::protocol::archive::Archive;
use crate::protocol::layout::{ComponentId, Layout, Layouts, NetId};
use crate::protocol::replica::ValueRef;
use crate::replication::SpawnKey;
use crate::tick::Tick;
use crate::wire::quantize::{Field, MAX_WORDS, Quantize};
use crate::wire::serial;

/// How one component travels.
#[derive(Resource)]
pub(crate) struct ComponentRule<C> {
    pub id: ComponentId,
    pub codec: Codec<C>,
    /// It means nothing without the entity that it names.
    is_relationship: bool,
    pub predicted: bool,
    pub differs: Option<fn(&C, &C) -> bool>,
    pub interpolation: Option<Interpolation<C>>,
    /// Writes a value to an entity.
    set: fn(&mut EntityWorldMut, C),
    /// Serialises it whole, however it travels: two values are the same when their bytes are.
    encode: fn(&C, &mut Vec<u8>) -> Result<(), serial::SerialError>,
}

/// Memory for comparing values, to be used again.
#[derive(Default)]
pub(crate) struct Scratch(Vec<u8>, Vec<u8>);

pub(crate) enum Codec<C> {
    Serialized {
        encode: fn(&C, &mut Vec<u8>) -> Result<(), serial::SerialError>,
        decode: fn(&[u8]) -> Result<C, serial::SerialError>,
    },
    Quantized {
        quantizer: Box<dyn Quantize<C>>,
        fields: Vec<Field>,
    },
}

/// How one component is drawn.
pub(crate) struct Interpolation<C> {
    pub blend: Option<BlendFns<C>>,
    pub teleport_distance: Option<f32>,
    pub install: fn(&mut App),
}

/// [`Blend`], for types that are not known to implement it.
pub(crate) struct BlendFns<C> {
    pub distance: fn(&C, &C) -> f32,
    pub offset: fn(&C, &C, &C, f32) -> C,
}

impl<C> Clone for BlendFns<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for BlendFns<C> {}

/// A predicted quantised value may differ from the server's by this many steps: one for rounding, and one for the
/// rounding of the state that the prediction started from.
const TOLERANCE_STEPS: u32 = 2;

impl<C: Component + Clone> ComponentRule<C> {
    /// Hands a value to the archive.
    pub fn store(
        &self,
        archive: &mut Archive,
        tick: Tick,
        net: NetId,
        value: &C,
        nets: &dyn Fn(Entity) -> Option<NetId>,
        scratch: &mut Vec<u8>,
    ) {
        match &self.codec {
            Codec::Quantized { quantizer, fields } => {
                let mut words = [0; MAX_WORDS];
                let words = &mut words[..fields.len()];
                quantizer.quantize(value, words);
                archive.set_words(tick, net, self.id, words);
            }
            Codec::Serialized { encode, .. } => {
                let mut value = value.clone();
                let is_unknown = Cell::new(false);
                let find = |entity| {
                    let net = nets(entity);
                    is_unknown.set(is_unknown.get() || net.is_none());
                    net
                };
                C::map_entities(&mut value, &mut ToNet { nets: &find });
                if self.is_relationship && is_unknown.get() {
                    return archive.remove(tick, net, self.id);
                }
                scratch.clear();
                match encode(&value, scratch) {
                    Ok(()) => archive.set_bytes(tick, net, self.id, scratch),
                    Err(error) => {
                        error_once!("`{}` cannot be sent: {error}", type_name::<C>());
                    }
                }
            }
        }
    }

    /// Makes a value of what came from the server. Entities in it are mapped; `unknown` hears of those that cannot be.
    pub fn load(
        &self,
        value: ValueRef,
        locals: &dyn Fn(NetId) -> Option<Entity>,
        unknown: &mut dyn FnMut(NetId),
    ) -> Option<C> {
        match (value, &self.codec) {
            (ValueRef::Words(words), Codec::Quantized { quantizer, .. }) => {
                Some(quantizer.dequantize(words))
            }
            (ValueRef::Bytes(bytes), Codec::Serialized { decode, .. }) => {
                let mut value = decode(bytes)
                    .inspect_err(|error| debug!("`{}` not understood: {error}", type_name::<C>()))
                    .ok()?;
                C::map_entities(&mut value, &mut FromNet { locals, unknown });
                Some(value)
            }
            _ => None,
        }
    }

    /// Whether a prediction is far enough from what the server says to be corrected.
    pub fn is_wrong(
        &self,
        confirmed: ValueRef,
        confirmed_value: &C,
        predicted: &C,
        scratch: &mut Scratch,
    ) -> bool {
        if let Some(differs) = self.differs {
            return differs(confirmed_value, predicted);
        }
        match (&self.codec, confirmed) {
            (Codec::Quantized { quantizer, fields }, ValueRef::Words(confirmed)) => {
                let mut words = [0; MAX_WORDS];
                let words = &mut words[..fields.len()];
                quantizer.quantize(predicted, words);
                quantizer.distance(confirmed, words) > TOLERANCE_STEPS
            }
            // Compared as the game sees them, after entities were mapped.
            (Codec::Serialized { .. }, _) => !self.is_same(confirmed_value, predicted, scratch),
            _ => true,
        }
    }

    /// Whether two values are the same to the last bit.
    pub fn is_same(&self, a: &C, b: &C, scratch: &mut Scratch) -> bool {
        let Scratch(of_a, of_b) = scratch;
        of_a.clear();
        of_b.clear();
        (self.encode)(a, of_a).is_ok() && (self.encode)(b, of_b).is_ok() && of_a == of_b
    }

    /// Writes a value to an entity.
    pub fn setter(&self) -> fn(&mut EntityWorldMut, C) {
        self.set
    }

    pub fn blend_fns(&self) -> Option<BlendFns<C>> {
        self.interpolation.as_ref()?.blend
    }

    /// Whether two values are too far apart to be drawn between.
    pub fn is_teleport(&self, a: &C, b: &C) -> bool {
        self.interpolation.as_ref().is_some_and(|interpolation| {
            let blend = interpolation.blend;
            let limit = interpolation.teleport_distance;
            blend
                .zip(limit)
                .is_some_and(|(blend, limit)| (blend.distance)(a, b) > limit)
        })
    }

    fn layout(&self) -> Layout {
        match &self.codec {
            Codec::Serialized { .. } => Layout::Bytes,
            Codec::Quantized { fields, .. } => Layout::Words(fields.clone().into()),
        }
    }

    /// What must be the same on both sides.
    fn describe(&self) -> String {
        let mut text = format!("component {}", without_crates(type_name::<C>()));
        if let Codec::Quantized { quantizer, fields } = &self.codec {
            let widths: Vec<_> = fields
                .iter()
                .map(|field| field.bits().to_string())
                .collect();
            text += &format!(" quantized to {} bits", widths.join("+"));
            let settings = quantizer.settings();
            if !settings.is_empty() {
                text += &format!(" by {settings}");
            }
        }
        if self.predicted {
            text += ", predicted";
        }
        if self.interpolation.is_some() {
            text += ", interpolated";
        }
        text
    }
}

/// Everything that is registered, in order. Shared lists, so that one can be walked while the world is changed.
#[derive(Resource)]
pub(crate) struct Registry {
    pub components: Arc<Vec<ComponentEntry>>,
    pub inputs: Arc<Vec<InputEntry>>,
    pub messages: Arc<Vec<MessageEntry>>,
    frozen: bool,
}

/// What can be done with a component without naming its type.
#[derive(Clone, Copy)]
pub(crate) struct ComponentEntry {
    type_id: TypeId,
    pub name: &'static str,
    describe: fn(&World) -> String,
    layout: fn(&World) -> Layout,
    pub is_predicted: fn(&World) -> bool,
    pub is_interpolated: fn(&World) -> bool,
}

impl ComponentEntry {
    fn of<C: Component + Clone>() -> Self {
        Self {
            type_id: TypeId::of::<C>(),
            name: type_name::<C>(),
            describe: |world| world.resource::<ComponentRule<C>>().describe(),
            layout: |world| world.resource::<ComponentRule<C>>().layout(),
            is_predicted: |world| world.resource::<ComponentRule<C>>().predicted,
            is_interpolated: |world| {
                let rule = world.resource::<ComponentRule<C>>();
                rule.interpolation.is_some()
            },
        }
    }
}

impl Registry {
    /// The app's registry; made, with what is always replicated, when first asked for.
    fn of(app: &mut App) -> Mut<'_, Self> {
        if !app.world().contains_resource::<Self>() {
            app.insert_resource(Self {
                components: default(),
                inputs: default(),
                messages: default(),
                frozen: false,
            });
            // A relationship cannot be changed in place, only inserted anew.
            Self::add_component::<ChildOf>(app, |entity, value| {
                if value.parent() != Entity::PLACEHOLDER {
                    entity.insert(value);
                }
            });
            app.world_mut()
                .resource_mut::<ComponentRule<ChildOf>>()
                .is_relationship = true;
            Self::add_component::<SpawnKey>(app, |entity, value| {
                entity.insert(value);
            });
        }
        app.world_mut().resource_mut()
    }

    /// Ends registration and returns the layouts. Called by the plugins when the app is built.
    pub fn freeze(app: &mut App) -> Layouts {
        Self::of(app).frozen = true;
        let entries = app.world().resource::<Self>().components.clone();
        Layouts::new(entries.iter().map(|entry| (entry.layout)(app.world())))
    }

    /// What the handshake compares.
    pub fn describe(world: &World) -> Vec<String> {
        let registry = world.resource::<Self>();
        let components = registry
            .components
            .iter()
            .map(|entry| (entry.describe)(world));
        let inputs = registry.inputs.iter().map(|entry| {
            let mapped = if entry.is_mapped { ", mapped" } else { "" };
            format!("input {}{mapped}", without_crates(entry.name))
        });
        let messages = registry.messages.iter().map(|entry| {
            format!(
                "message {} on {:?}",
                without_crates(entry.name),
                entry.channel
            )
        });
        components.chain(inputs).chain(messages).collect()
    }

    /// Adds a component that is serialised whole, unless told otherwise.
    pub fn add_component<C>(app: &mut App, set: fn(&mut EntityWorldMut, C))
    where
        C: Component + Clone + Serialize + DeserializeOwned,
    {
        let entry = ComponentEntry::of::<C>();
        let mut registry = Self::of(app);
        let mut others = registry.components.iter();
        let is_known = others.any(|other| other.type_id == entry.type_id);
        registry.check(entry.name, is_known);
        let id =
            u8::try_from(registry.components.len()).expect("at most 256 components are registered");
        Arc::make_mut(&mut registry.components).push(entry);
        app.insert_resource(ComponentRule::<C> {
            id: ComponentId(id),
            codec: Codec::Serialized {
                encode: serial::encode::<C>,
                decode: serial::decode::<C>,
            },
            is_relationship: false,
            predicted: false,
            differs: None,
            interpolation: None,
            set,
            encode: serial::encode::<C>,
        });
    }

    /// Adds an input.
    pub fn add_input<I: NetInput>(app: &mut App, rule: InputRule<I>) {
        let entry = InputEntry::of::<I>(rule.map.is_some());
        let mut registry = Self::of(app);
        let is_known = registry.inputs.iter().any(|other| other.name == entry.name);
        registry.check(entry.name, is_known);
        Arc::make_mut(&mut registry.inputs).push(entry);
        app.insert_resource(rule);
    }

    /// Adds a message, and returns its number. `map` maps the entities that it names.
    pub fn add_message<M: NetMessage>(
        app: &mut App,
        channel: Channel,
        map: Option<fn(&mut M, &mut MapEntity)>,
    ) -> u16 {
        let entry = MessageEntry::of::<M>(channel, map.is_some());
        let mut registry = Self::of(app);
        let mut others = registry.messages.iter();
        let is_known = others.any(|other| other.name == entry.name);
        registry.check(entry.name, is_known);
        let id = registry.messages.len() as u16;
        Arc::make_mut(&mut registry.messages).push(entry);
        app.insert_resource(MessageRule::new(id, channel, map));
        id
    }

    fn check(&self, name: &str, is_known: bool) {
        assert!(
            !is_known,
            "`{name}` is registered twice; remove one of the two calls"
        );
        assert!(
            !self.frozen,
            "`{name}` is registered after the app was built; do it in a plugin or before `App::run`",
        );
    }
}

/// Tells the game of a message that will not be heard.
pub(crate) fn tell_dropped(world: &mut World, own: OwnEntity, session: Entity, letter: &Letter) {
    let messages = &world.resource::<Registry>().messages;
    if let Some(entry) = messages.get(usize::from(letter.id)) {
        (entry.tell_fate)(world, own, Fate::Dropped, session, letter);
    }
}

/// Tells the game of messages that will not be heard, or had to make room for newer ones.
pub(crate) fn give_back(
    commands: &mut Commands,
    registry: &Registry,
    own: OwnEntity,
    session: Entity,
    dropped: Vec<Letter>,
) {
    for letter in dropped {
        if let Some(entry) = registry.messages.get(usize::from(letter.id)) {
            let tell_fate = entry.tell_fate;
            commands.queue(move |world: &mut World| {
                tell_fate(world, own, Fate::Dropped, session, &letter);
            });
        }
    }
}

/// A type's name without the crates in it.
///
/// Server and client are often two binaries that share a module, and each is a crate of its own: their
/// `server::game::Health` and `client::game::Health` are one type to the protocol.
fn without_crates(type_name: &str) -> String {
    type_name
        .split_inclusive(['<', '>', '(', ')', '[', ']', ',', ';', '&', ' '])
        .map(|path| path.split_once("::").map_or(path, |(_, rest)| rest))
        .collect()
}
