//! What travels between server and clients: registered once, by the same function on both sides.

use std::any::{TypeId, type_name};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use bevy::ecs::component::Mutable;
use bevy::ecs::entity::{EntityMapper, MapEntities};
use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blend::Blend;
use crate::client;
use crate::input::{self, NetInput};
use crate::message::{self, Channel, NetMessage};
use crate::probe::names_entities;
use crate::protocol::archive::Archive;
use crate::protocol::layout::{ComponentId, Layout, Layouts, NetId};
use crate::protocol::limits::Traffic;
use crate::protocol::reliable::Importance;
use crate::protocol::replica::ValueRef;
use crate::replication::SpawnKey;
#[cfg(not(target_family = "wasm"))]
use crate::server;
use crate::tick::Tick;
use crate::wire::quantize::{Field, MAX_WORDS, Quantize};
use crate::wire::serial;

/// Registers what is replicated. Implemented for [`App`].
///
/// Call it from a function or plugin that both sides add: the handshake compares the two lists, and refuses a client
/// whose list differs with an error that names the first difference.
///
/// ```
/// # use bevy::prelude::*;
/// # use serde::{Serialize, Deserialize};
/// use bevy_tandem::prelude::*;
///
/// # #[derive(Clone, Default, Serialize, Deserialize)] struct Steer(Vec2);
/// # #[derive(Component, Clone, Serialize, Deserialize)] struct Health(u8);
/// # #[derive(Message, Clone, Serialize, Deserialize)] struct Chat(String);
/// fn game(app: &mut App) {
///     app.add_input::<Steer>();
///     app.replicate::<Transform>().quantize(TransformCodec::default()).predict().interpolate();
///     app.replicate::<Health>();
///     app.protocol().add_message::<Chat>(Channel::ReliableOrdered);
/// }
/// # game(&mut App::new());
/// ```
pub trait TandemApp {
    /// Replicates a component; refine it with the methods of [`Registration`].
    ///
    /// # Panics
    ///
    /// When `C` is registered twice, when more than 255 components are, or when the app already runs.
    fn replicate<C>(&mut self) -> Registration<'_, C>
    where
        C: Component<Mutability = Mutable> + Clone + Serialize + DeserializeOwned;

    /// Adds what a player does in one tick; [`InputRegistration`] says how it is made of what frames say.
    ///
    /// # Panics
    ///
    /// When `I` is registered twice, when the app already runs, or when `I` names an entity, as far as that can be seen:
    /// that is [`Self::add_mapped_input`]'s.
    fn add_input<I: NetInput>(&mut self) -> InputRegistration<'_, I>;

    /// Like [`Self::add_input`], for inputs that name entities (a target, say): the server gets its own, and
    /// [`Entity::PLACEHOLDER`] where it does not have one any more. The player's client simulates with its own.
    ///
    /// ```
    /// # use bevy::ecs::entity::MapEntities;
    /// # use bevy::prelude::*;
    /// # use bevy_tandem::prelude::*;
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Clone, Default, Serialize, Deserialize, MapEntities)]
    /// struct Attack {
    ///     #[entities]
    ///     target: Option<Entity>,
    /// }
    ///
    /// fn game(app: &mut App) {
    ///     app.add_mapped_input::<Attack>();
    /// }
    /// # game(&mut App::new());
    /// ```
    ///
    /// # Panics
    ///
    /// When `I` is registered twice, or when the app already runs.
    fn add_mapped_input<I: NetInput + MapEntities>(&mut self) -> InputRegistration<'_, I>;

    /// The registrations, to go on from: `app.protocol().add_message::<Chat>(Channel::ReliableOrdered)`.
    ///
    /// (`App::add_message` is taken: it is Bevy's own, for messages that stay in the app.)
    fn protocol(&mut self) -> Protocol<'_>;
}

impl TandemApp for App {
    fn replicate<C>(&mut self) -> Registration<'_, C>
    where
        C: Component<Mutability = Mutable> + Clone + Serialize + DeserializeOwned,
    {
        register_component::<C>(self, |entity, value| match entity.get_mut::<C>() {
            Some(mut current) => *current = value,
            None => {
                entity.insert(value);
            }
        });
        Registration {
            app: self,
            component: PhantomData,
        }
    }

    fn add_input<I: NetInput>(&mut self) -> InputRegistration<'_, I> {
        assert!(
            !names_entities::<I>(),
            "`{}` names an entity, which is another one on the server; register it with `add_mapped_input`",
            type_name::<I>(),
        );
        register_input(self, input::InputRule::default())
    }

    fn add_mapped_input<I: NetInput + MapEntities>(&mut self) -> InputRegistration<'_, I> {
        register_input(
            self,
            input::InputRule {
                map: Some(message::map_entities),
                ..default()
            },
        )
    }

    fn protocol(&mut self) -> Protocol<'_> {
        Protocol { app: self }
    }
}

/// The list of registrations; see [`TandemApp`].
pub struct Protocol<'a> {
    app: &'a mut App,
}

impl<'a> Protocol<'a> {
    /// See [`TandemApp::replicate`].
    pub fn replicate<C>(self) -> Registration<'a, C>
    where
        C: Component<Mutability = Mutable> + Clone + Serialize + DeserializeOwned,
    {
        self.app.replicate()
    }

    /// See [`TandemApp::add_input`].
    pub fn add_input<I: NetInput>(self) -> InputRegistration<'a, I> {
        self.app.add_input()
    }

    /// See [`TandemApp::add_mapped_input`].
    pub fn add_mapped_input<I: NetInput + MapEntities>(self) -> InputRegistration<'a, I> {
        self.app.add_mapped_input()
    }

    /// Adds a message that either side may send: [`ToServer`](crate::message::ToServer) and
    /// [`ToClients`](crate::message::ToClients).
    ///
    /// # Panics
    ///
    /// When `M` is registered twice, or when the app already runs.
    pub fn add_message<M: NetMessage>(self, channel: Channel) -> MessageRegistration<'a> {
        let id = message::register::<M>(self.app, channel, None);
        MessageRegistration { app: self.app, id }
    }

    /// Like [`Self::add_message`], for messages that name entities: those are mapped to the receiver's own, and to
    /// [`Entity::PLACEHOLDER`] where the receiver does not have them.
    ///
    /// A client that is still to be told of an entity keeps the message back until it is, and with it what comes after it
    /// on [`Channel::ReliableOrdered`]: for two seconds at most.
    ///
    /// # Panics
    ///
    /// When `M` is registered twice, or when the app already runs.
    pub fn add_mapped_message<M: NetMessage + MapEntities>(
        self,
        channel: Channel,
    ) -> MessageRegistration<'a> {
        let id = message::register::<M>(self.app, channel, Some(message::map_entities));
        MessageRegistration { app: self.app, id }
    }
}

/// One message type, to refine and to go on from.
pub struct MessageRegistration<'a> {
    app: &'a mut App,
    id: u16,
}

impl<'a> MessageRegistration<'a> {
    /// What goes first when not everything can go at once; [`Importance::Normal`] unless told. Messages on
    /// [`Channel::ReliableOrdered`] keep their order among those of the same importance.
    pub fn importance(mut self, importance: Importance) -> Self {
        self.entry().importance = importance;
        self
    }

    /// Counts it towards the server's limits for chat, which are tighter than those for other messages.
    pub fn chat(mut self) -> Self {
        self.entry().traffic = Traffic::Chat;
        self
    }

    /// Tells this app with [`Delivered`](crate::message::Delivered) when the game at the other end has taken one. Only
    /// for the reliable channels.
    ///
    /// # Panics
    ///
    /// When the channel is unreliable.
    pub fn receipts(mut self) -> Self {
        let entry = self.entry();
        assert!(
            entry.channel != Channel::Unreliable,
            "`{}` may be lost, so nobody can say whether it was taken; use a reliable channel for receipts",
            entry.name
        );
        entry.has_receipts = true;
        self
    }

    /// See [`Protocol::add_message`].
    pub fn add_message<M: NetMessage>(self, channel: Channel) -> Self {
        self.app.protocol().add_message::<M>(channel)
    }

    /// See [`Protocol::add_mapped_message`].
    pub fn add_mapped_message<M: NetMessage + MapEntities>(self, channel: Channel) -> Self {
        self.app.protocol().add_mapped_message::<M>(channel)
    }

    fn entry(&mut self) -> &mut message::MessageEntry {
        let messages = Arc::make_mut(
            &mut self
                .app
                .world_mut()
                .resource_mut::<Registry>()
                .into_inner()
                .messages,
        );
        &mut messages[usize::from(self.id)]
    }
}

/// One replicated component, to refine and to go on from.
pub struct Registration<'a, C> {
    app: &'a mut App,
    component: PhantomData<C>,
}

impl<'a, C: Component + Clone> Registration<'a, C> {
    /// Sends it quantised: small numbers, and only their differences to what the client has.
    ///
    /// Each quantiser states its bounds, such as [`TransformCodec`](crate::wire::quantize::TransformCodec).
    pub fn quantize(mut self, quantizer: impl Quantize<C>) -> Self {
        let fields = quantizer.fields();
        assert!(
            fields.len() <= MAX_WORDS,
            "the quantizer of `{}` has {} fields; at most {MAX_WORDS} are possible",
            type_name::<C>(),
            fields.len(),
        );
        self.rule().codec = Codec::Quantized {
            quantizer: Box::new(quantizer),
            fields,
        };
        self
    }

    /// Simulates it ahead on the clients that predict its entity, and corrects it when the server disagrees.
    ///
    /// The server disagrees when a quantised value differs by more than two steps, or serialised bytes differ at all;
    /// [`Self::correct_when`] sets another rule.
    pub fn predict(mut self) -> Self {
        self.rule().predicted = true;
        self
    }

    /// Predicts it, and corrects it when `differs(server, client)`.
    pub fn correct_when(mut self, differs: fn(&C, &C) -> bool) -> Self {
        let mut rule = self.rule();
        rule.predicted = true;
        rule.differs = Some(differs);
        self
    }

    /// Shows it delayed with the rest of an interpolated entity, without values in between.
    pub fn interpolate_step(mut self) -> Self
    where
        C: Component<Mutability = Mutable>,
    {
        self.rule().interpolation = Some(Interpolation::step());
        self
    }

    /// Ends this registration; the app is free for others.
    pub fn protocol(self) -> Protocol<'a> {
        Protocol { app: self.app }
    }

    /// See [`TandemApp::replicate`].
    pub fn replicate<D>(self) -> Registration<'a, D>
    where
        D: Component<Mutability = Mutable> + Clone + Serialize + DeserializeOwned,
    {
        self.app.replicate()
    }

    /// See [`TandemApp::add_input`].
    pub fn add_input<I: NetInput>(self) -> InputRegistration<'a, I> {
        self.app.add_input()
    }

    /// See [`TandemApp::add_mapped_input`].
    pub fn add_mapped_input<I: NetInput + MapEntities>(self) -> InputRegistration<'a, I> {
        self.app.add_mapped_input()
    }

    /// See [`Protocol::add_message`].
    pub fn add_message<M: NetMessage>(self, channel: Channel) -> MessageRegistration<'a> {
        self.protocol().add_message::<M>(channel)
    }

    fn rule(&mut self) -> Mut<'_, ComponentRule<C>> {
        self.app.world_mut().resource_mut()
    }
}

impl<C: Component<Mutability = Mutable> + Blend> Registration<'_, C> {
    /// Draws it between two snapshots on interpolated entities, and smoothly between ticks and after corrections on
    /// predicted ones.
    pub fn interpolate(mut self) -> Self {
        self.rule().interpolation = Some(Interpolation::linear());
        self
    }

    /// Like [`Self::interpolate`], along a cubic that has the right velocity at both ends.
    ///
    /// `advance` gives the value that is reached after some seconds (negative ones too) at that velocity. `V` must be
    /// interpolated too, at least in steps; where it is unknown, the line is straight.
    pub fn interpolate_hermite<V: Component + Clone>(
        mut self,
        advance: fn(&C, &V, f32) -> C,
    ) -> Self {
        self.app
            .insert_resource(client::interpolate::HermiteRule::<C, V> { advance });
        let install = client::interpolate::install_hermite::<C, V>;
        self.rule().interpolation = Some(Interpolation {
            install,
            ..Interpolation::linear()
        });
        self
    }

    /// Values further apart than this, in units, are jumped between, not drawn through.
    ///
    /// # Panics
    ///
    /// When the component is not interpolated.
    pub fn teleport_distance(mut self, units: f32) -> Self {
        self.rule()
            .interpolation
            .as_mut()
            .expect("call `interpolate` before `teleport_distance`")
            .teleport_distance = Some(units);
        self
    }
}

/// One input, to refine and to go on from.
pub struct InputRegistration<'a, I> {
    app: &'a mut App,
    input: PhantomData<I>,
}

impl<'a, I: NetInput> InputRegistration<'a, I> {
    /// Lets the server check every input before it is used: clamp what is out of range.
    pub fn validate(mut self, clamp: fn(&mut I)) -> Self {
        self.rule().clamp = Some(clamp);
        self
    }

    /// Says how what frames say becomes the input of a tick: `accumulate(tick, frame)` adds a frame to what the next tick
    /// will use, which begins as the default. Without it, the newest frame counts.
    ///
    /// For what is *held*: sticks, and keys read with `pressed`. It is called for every frame, so that a key counts
    /// which was down in any of them. Where a frame has several ticks it is called for each of them, with the same frame,
    /// since what is held goes on; [`Frame::is_new`](input::Frame::is_new) tells the first, for what is summed up (how
    /// far a mouse has moved). Keys read with `just_pressed` are for [`Self::tap`].
    ///
    /// ```
    /// # use bevy::prelude::*;
    /// # use bevy_tandem::prelude::*;
    /// # #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
    /// # struct Look { run: Vec2, shoots: bool, turn: Vec2 }
    /// # let mut app = App::new();
    /// app.add_input::<Look>().accumulate(|tick, frame| {
    ///     tick.run = frame.run;
    ///     tick.shoots |= frame.shoots;
    ///     if frame.is_new() {
    ///         tick.turn += frame.turn;
    ///     }
    /// });
    /// ```
    pub fn accumulate(mut self, accumulate: fn(&mut I, input::Frame<I>)) -> Self {
        self.rule().accumulate = Some(accumulate);
        self
    }

    /// Names a field that counts once: true in some frame, it is true in exactly one tick, the next. For keys read with
    /// `just_pressed`, at whatever frame rate: `tap(|control| &mut control.jumps)`. Call it for each such field.
    pub fn tap(mut self, field: fn(&mut I) -> &mut bool) -> Self {
        self.rule().taps.push(field);
        self
    }

    /// See [`TandemApp::add_input`].
    pub fn add_input<J: NetInput>(self) -> InputRegistration<'a, J> {
        self.app.add_input()
    }

    /// See [`TandemApp::add_mapped_input`].
    pub fn add_mapped_input<J: NetInput + MapEntities>(self) -> InputRegistration<'a, J> {
        self.app.add_mapped_input()
    }

    fn rule(&mut self) -> Mut<'_, input::InputRule<I>> {
        self.app.world_mut().resource_mut()
    }

    /// Ends this registration; the app is free for others.
    pub fn protocol(self) -> Protocol<'a> {
        Protocol { app: self.app }
    }

    /// See [`TandemApp::replicate`].
    pub fn replicate<C>(self) -> Registration<'a, C>
    where
        C: Component<Mutability = Mutable> + Clone + Serialize + DeserializeOwned,
    {
        self.app.replicate()
    }
}

/// How one component travels.
#[derive(Resource)]
pub(crate) struct ComponentRule<C> {
    pub id: ComponentId,
    codec: Codec<C>,
    /// It means nothing without the entity that it names.
    is_relationship: bool,
    pub predicted: bool,
    differs: Option<fn(&C, &C) -> bool>,
    pub interpolation: Option<Interpolation<C>>,
    /// Writes a value to an entity.
    set: fn(&mut EntityWorldMut, C),
    /// Serialises it whole, however it travels: two values are the same when their bytes are.
    encode: fn(&C, &mut Vec<u8>) -> Result<(), serial::SerialError>,
}

/// Memory for comparing values, to be used again.
#[derive(Default)]
pub(crate) struct Scratch(Vec<u8>, Vec<u8>);

enum Codec<C> {
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

impl<C: Component<Mutability = Mutable> + Clone> Interpolation<C> {
    fn step() -> Self {
        let install = client::interpolate::install_step::<C>;
        Self {
            blend: None,
            teleport_distance: None,
            install,
        }
    }
}

impl<C: Component<Mutability = Mutable> + Blend> Interpolation<C> {
    fn linear() -> Self {
        let blend = BlendFns {
            distance: C::separation,
            offset: C::offset,
        };
        let install = client::interpolate::install_linear::<C>;
        Self {
            blend: Some(blend),
            teleport_distance: None,
            install,
        }
    }
}

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

/// Maps entities of this app to their network ids, on the way out.
pub(crate) struct ToNet<'a> {
    pub nets: &'a dyn Fn(Entity) -> Option<NetId>,
}

impl EntityMapper for ToNet<'_> {
    fn get_mapped(&mut self, source: Entity) -> Entity {
        (self.nets)(source)
            .and_then(reference_to)
            .unwrap_or(Entity::PLACEHOLDER)
    }

    fn set_mapped(&mut self, _: Entity, _: Entity) {}
}

/// Maps network ids to entities of this app, on the way in.
pub(crate) struct FromNet<'a> {
    pub locals: &'a dyn Fn(NetId) -> Option<Entity>,
    pub unknown: &'a mut dyn FnMut(NetId),
}

impl EntityMapper for FromNet<'_> {
    fn get_mapped(&mut self, source: Entity) -> Entity {
        if source == Entity::PLACEHOLDER {
            return source;
        }
        let Some(net) = referred_to(source) else {
            return Entity::PLACEHOLDER;
        };
        (self.locals)(net).unwrap_or_else(|| {
            (self.unknown)(net);
            Entity::PLACEHOLDER
        })
    }

    fn set_mapped(&mut self, _: Entity, _: Entity) {}
}

/// Network ids travel in the place of entities, whose codec writes their 64 bits with as many bytes as they need.
///
/// ```text
/// 2 (index + 1)                     of generation 0: 1 byte up to index 124, 3 up to 32,766, 5 above
/// 2 (generation << 16 | index) + 1  where both are small: 5 bytes
/// generation << 32 | index + 1      otherwise: 9 bytes
/// ```
fn reference_to(net: NetId) -> Option<Entity> {
    let (index, generation) = (u64::from(net.index()), u64::from(net.generation()));
    let bits = match (index, generation) {
        (0..0x7fff_ffff, 0) => 2 * (index + 1),
        (0..=0xffff, 1..=0x7fff) => 2 * (generation << 16 | index) + 1,
        (0..0xffff_ffff, 1..) => generation << 32 | (index + 1),
        // The archive has no room for so many.
        _ => return None,
    };
    Entity::try_from_bits(bits)
}

fn referred_to(reference: Entity) -> Option<NetId> {
    let bits = reference.to_bits();
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    let (index, generation) = match (low % 2, high) {
        (0, 0) => ((low / 2).checked_sub(1)?, 0),
        (_, 0) => ((low / 2) & 0xffff, (low / 2) >> 16),
        _ => (low.checked_sub(1)?, high),
    };
    Some(NetId::new(index, generation))
}

/// Everything that is registered, in order. Shared lists, so that one can be walked while the world is changed.
#[derive(Resource)]
pub(crate) struct Registry {
    pub components: Arc<Vec<ComponentEntry>>,
    pub inputs: Arc<Vec<input::InputEntry>>,
    pub messages: Arc<Vec<message::MessageEntry>>,
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
    #[cfg(not(target_family = "wasm"))]
    pub install_server: fn(&mut App),
    pub install_client: fn(&mut App),
    #[cfg(not(target_family = "wasm"))]
    pub server: server::collect::ComponentFns,
    pub client: client::component::ComponentFns,
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
            register_component::<ChildOf>(app, |entity, value| {
                if value.parent() != Entity::PLACEHOLDER {
                    entity.insert(value);
                }
            });
            app.world_mut()
                .resource_mut::<ComponentRule<ChildOf>>()
                .is_relationship = true;
            register_component::<SpawnKey>(app, |entity, value| {
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

    fn push_component(&mut self, entry: ComponentEntry) -> ComponentId {
        self.check(
            entry.name,
            self.components
                .iter()
                .any(|other| other.type_id == entry.type_id),
        );
        let id =
            u8::try_from(self.components.len()).expect("at most 256 components are registered");
        Arc::make_mut(&mut self.components).push(entry);
        ComponentId(id)
    }

    fn push_input(&mut self, entry: input::InputEntry) {
        self.check(
            entry.name,
            self.inputs.iter().any(|other| other.name == entry.name),
        );
        Arc::make_mut(&mut self.inputs).push(entry);
    }

    pub fn push_message(app: &mut App, entry: message::MessageEntry) -> u16 {
        let mut registry = Self::of(app);
        registry.check(
            entry.name,
            registry
                .messages
                .iter()
                .any(|other| other.name == entry.name),
        );
        Arc::make_mut(&mut registry.messages).push(entry);
        (registry.messages.len() - 1) as u16
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

fn register_component<C>(app: &mut App, set: fn(&mut EntityWorldMut, C))
where
    C: Component + Clone + Serialize + DeserializeOwned,
{
    let entry = ComponentEntry {
        type_id: TypeId::of::<C>(),
        name: type_name::<C>(),
        describe: |world| world.resource::<ComponentRule<C>>().describe(),
        layout: |world| world.resource::<ComponentRule<C>>().layout(),
        is_predicted: |world| world.resource::<ComponentRule<C>>().predicted,
        is_interpolated: |world| {
            let rule = world.resource::<ComponentRule<C>>();
            rule.interpolation.is_some()
        },
        #[cfg(not(target_family = "wasm"))]
        install_server: server::collect::install::<C>,
        install_client: client::apply::install::<C>,
        #[cfg(not(target_family = "wasm"))]
        server: server::collect::ComponentFns::of::<C>(),
        client: client::component::ComponentFns::of::<C>(),
    };
    let id = Registry::of(app).push_component(entry);
    app.insert_resource(ComponentRule::<C> {
        id,
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

fn register_input<I: NetInput>(
    app: &mut App,
    rule: input::InputRule<I>,
) -> InputRegistration<'_, I> {
    let entry = input::entry::<I>(rule.map.is_some());
    Registry::of(app).push_input(entry);
    app.insert_resource(rule);
    InputRegistration {
        app,
        input: PhantomData,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn len(net: NetId) -> usize {
        let mut bytes = Vec::new();
        serial::encode(&reference_to(net), &mut bytes).unwrap();
        bytes.len() - 1 // the option's own
    }

    #[test]
    fn references_are_short() {
        assert_eq!(len(NetId::new(0, 0)), 1);
        assert_eq!(len(NetId::new(124, 0)), 1);
        assert_eq!(len(NetId::new(32_000, 0)), 3);
        assert_eq!(len(NetId::new(1_000_000, 0)), 5);
        assert_eq!(len(NetId::new(65_535, 32_767)), 5);
        assert_eq!(len(NetId::new(65_535, 32_768)), 9);
    }

    fn any_u32() -> impl Strategy<Value = u32> {
        prop_oneof![0..300u32, 0x7ff0..0x1_0010u32, any::<u32>()]
    }

    proptest! {
        #[test]
        fn a_reference_names_whom_it_was_made_for(index in any_u32(), generation in any_u32()) {
            let net = NetId::new(index, generation);
            match reference_to(net) {
                Some(reference) => {
                    prop_assert_ne!(reference, Entity::PLACEHOLDER);
                    prop_assert_eq!(referred_to(reference), Some(net));
                }
                None => prop_assert!(index >= 0x7fff_ffff),
            }
        }

        #[test]
        fn any_reference_can_be_read(bits: u64) {
            if let Some(reference) = Entity::try_from_bits(bits) {
                referred_to(reference);
            }
        }
    }
}
