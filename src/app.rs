//! What a game registers, once for both sides: [`TandemApp`] and what it returns.
//!
//! The one place that knows server and client both. Each type goes to three lists with the same numbers: the registry's,
//! which says how it travels, and one of functions on either side.

use std::any::type_name;
use std::marker::PhantomData;
use std::sync::Arc;

use bevy::ecs::component::Mutable;
use bevy::ecs::entity::MapEntities;
use bevy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blend::Blend;
use crate::client::interpolate;
use crate::client::types::ClientTypes;
use crate::entity_map::{MapEntity, map_entities};
#[cfg(not(target_family = "wasm"))]
use crate::host::HostTypes;
use crate::input::{Frame, InputRule, NetInput};
use crate::message::{Channel, MessageEntry, NetMessage};
use crate::probe::names_entities;
use crate::protocol::limits::Traffic;
use crate::protocol::reliable::Importance;
use crate::registry::{BlendFns, Codec, ComponentRule, Interpolation, Registry};
#[cfg(not(target_family = "wasm"))]
use crate::server::types::ServerTypes;
use crate::wire::quantize::{MAX_WORDS, Quantize};

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
        register_input(self, InputRule::default())
    }

    fn add_mapped_input<I: NetInput + MapEntities>(&mut self) -> InputRegistration<'_, I> {
        register_input(
            self,
            InputRule {
                map: Some(map_entities),
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
        register_message::<M>(self.app, channel, None)
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
        register_message::<M>(self.app, channel, Some(map_entities))
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

    fn entry(&mut self) -> &mut MessageEntry {
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
            .insert_resource(interpolate::HermiteRule::<C, V> { advance });
        let install = interpolate::install_hermite::<C, V>;
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
    /// since what is held goes on; [`Frame::is_new`](Frame::is_new) tells the first, for what is summed up (how
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
    pub fn accumulate(mut self, accumulate: fn(&mut I, Frame<I>)) -> Self {
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

    fn rule(&mut self) -> Mut<'_, InputRule<I>> {
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

impl<C: Component<Mutability = Mutable> + Clone> Interpolation<C> {
    fn step() -> Self {
        Self {
            blend: None,
            teleport_distance: None,
            install: interpolate::install_step::<C>,
        }
    }
}

impl<C: Component<Mutability = Mutable> + Blend> Interpolation<C> {
    fn linear() -> Self {
        Self {
            blend: Some(BlendFns {
                distance: C::separation,
                offset: C::offset,
            }),
            teleport_distance: None,
            install: interpolate::install_linear::<C>,
        }
    }
}

fn register_component<C>(app: &mut App, set: fn(&mut EntityWorldMut, C))
where
    C: Component + Clone + Serialize + DeserializeOwned,
{
    Registry::add_component::<C>(app, set);
    #[cfg(not(target_family = "wasm"))]
    ServerTypes::of(app).add_component::<C>();
    ClientTypes::of(app).add_component::<C>();
}

fn register_input<I: NetInput>(app: &mut App, rule: InputRule<I>) -> InputRegistration<'_, I> {
    Registry::add_input(app, rule);
    ClientTypes::of(app).add_input::<I>();
    InputRegistration {
        app,
        input: PhantomData,
    }
}

fn register_message<M: NetMessage>(
    app: &mut App,
    channel: Channel,
    map: Option<fn(&mut M, &mut MapEntity)>,
) -> MessageRegistration<'_> {
    let id = Registry::add_message(app, channel, map);
    #[cfg(not(target_family = "wasm"))]
    {
        ServerTypes::of(app).add_message::<M>();
        HostTypes::of(app).add_message::<M>();
    }
    ClientTypes::of(app).add_message::<M>();
    MessageRegistration { app, id }
}
