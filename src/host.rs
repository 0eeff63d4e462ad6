//! A server whose own player takes part: a listen server.
//!
//! [`HostPlugin`], next to [`TandemServerPlugins`](crate::server::TandemServerPlugins), gives the app that is the
//! server a player of its own: a session without a link, for which nothing is sent. The game sees the same as on
//! either side of a network: `SessionJoined` fires for it, [`LocalInput`](crate::input::LocalInput) steers what it
//! [owns](OwnedBy), [`ToServer`] arrives as [`FromClient`] and [`ToClients`] as [`FromServer`], and
//! [`Connection`] says that it is connected.
//!
//! ```no_run
//! # use bevy::prelude::*;
//! use bevy_tandem::prelude::*;
//!
//! # fn game(_: &mut App) {}
//! let mut app = App::new();
//! app.add_plugins((
//!     DefaultPlugins,
//!     // Friends on a network that you trust: no tokens. On the internet, set `auth` instead.
//!     TandemServerPlugins::with_config(ServerConfig {
//!         udp: Some(([0, 0, 0, 0], 5000).into()),
//!         insecure_anywhere: true,
//!         ..default()
//!     }),
//!     HostPlugin { name: "Ada".into() },
//!     game,
//! ));
//! app.run();
//! ```
//!
//! What differs from a client: the server's entities are there themselves, so nothing is predicted or interpolated,
//! nobody has `Predicted` or `Interpolated`, and what is drawn moves in ticks. The player has no latency, which others
//! may find unfair, and the match ends with their app. Where that matters, run the server as an app of its own and let
//! the player connect to it.

use bevy::prelude::*;

use crate::client::connection::{change, install_state};
use crate::client::sampling::Sampled;
use crate::client::types::ClientTypes;
use crate::client::{
    ClientStats, Connected, Connection, ConnectionState, Disconnect, Disconnected,
};
use crate::identity::Identity;
use crate::message::{
    FromClient, FromServer, NetMessage, Target, ToClients, ToServer, Undeliverable,
};
use crate::protocol::handshake::DisconnectReason;
use crate::protocol::names::validate_name;
use crate::registry::Registry;
use crate::replication::{Owned, OwnedBy, Owns};
use crate::rooms::InRoom;
use crate::schedule::TandemSystems;
use crate::server::{Departures, Sessions};
use crate::session::{Session, SessionJoined, SessionLeft};

/// Gives a server app a local player, from the end of [`Startup`] on.
#[derive(Clone, Debug)]
pub struct HostPlugin {
    /// What the player is called: 1 to 32 characters, no control characters. Another name is replaced by "Host".
    pub name: String,
}

impl Default for HostPlugin {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.into(),
        }
    }
}

const DEFAULT_NAME: &str = "Host";

impl Plugin for HostPlugin {
    fn build(&self, app: &mut App) {
        let name = match validate_name(&self.name) {
            Ok(()) => self.name.clone(),
            Err(error) => {
                warn!(
                    "`{}` is not a possible name: {error}",
                    self.name.escape_debug()
                );
                DEFAULT_NAME.into()
            }
        };
        app.init_resource::<Connection>()
            .init_resource::<ClientStats>()
            .add_systems(PostStartup, move |world: &mut World| join(world, &name))
            .add_systems(FixedPreUpdate, steer.in_set(TandemSystems::Sample))
            .add_observer(mark_owned::<Insert>)
            .add_observer(mark_owned::<Remove>)
            .add_observer(leave)
            .add_observer(note_end);
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        install_state(app);
        for fns in ClientTypes::of(app).inputs.clone().iter() {
            (fns.install)(app);
        }
        for install in HostTypes::of(app).messages.clone() {
            install(app);
        }
    }
}

/// What is done with each registered message type where the player is local, by the registry's numbers.
#[derive(Resource, Default)]
pub(crate) struct HostTypes {
    messages: Vec<fn(&mut App)>,
}

impl HostTypes {
    /// The app's; made when first asked for.
    pub fn of(app: &mut App) -> Mut<'_, Self> {
        app.init_resource::<Self>();
        app.world_mut().resource_mut()
    }

    pub fn add_message<M: NetMessage>(&mut self) {
        self.messages.push(install::<M>);
    }
}

/// The local player's session, while it lasts.
#[derive(Resource, Clone, Copy)]
struct Host(Entity);

fn join(world: &mut World, name: &str) {
    let id = world.resource_mut::<Sessions>().allocate();
    let session = Session {
        id,
        name: name.to_owned(),
        platform: "host".into(),
    };
    let entity = world.spawn_empty().id();
    world.resource_mut::<Sessions>().add_local(id, entity);
    world.insert_resource(Host(entity));
    world
        .entity_mut(entity)
        .insert((session, Identity::of_host()));
    // Observers may have despawned it.
    if world.contains_resource::<Host>() {
        change(world, ConnectionState::Connected, Some(id), None);
        world.trigger(Connected { session: id });
        world.flush();
    }
    if world.contains_resource::<Host>() {
        world.trigger(SessionJoined { entity });
        world.flush();
    }
}

/// Samples the local player's inputs and puts them on what they own, checked like everybody's.
fn steer(world: &mut World, mut sampled: Local<Sampled>) {
    let Some(&Host(session)) = world.get_resource::<Host>() else {
        return;
    };
    let Some(owned) = world.get::<Owns>(session) else {
        return;
    };
    let owned: Vec<_> = owned.iter().collect();
    let types = world.resource::<ClientTypes>().inputs.clone();
    world.resource_scope(|world, registry: Mut<Registry>| {
        for (entry, fns) in registry.inputs.iter().zip(types.iter()) {
            sampled.clear();
            (fns.sample)(world, &|_| None, &mut sampled);
            if let Err(error) = (entry.apply)(world, &owned, &sampled.own, None) {
                error_once!("an input cannot be read back: {error}");
            }
        }
    });
}

fn mark_owned<E: EntityEvent>(event: On<E, OwnedBy>, mut commands: Commands) {
    let entity = event.event_target();
    commands.queue(move |world: &mut World| {
        // A command before this one may have handed it on.
        let host = world.get_resource::<Host>().map(|host| host.0);
        let owner = world.get::<OwnedBy>(entity).map(|owner| owner.0);
        let Ok(mut entity) = world.get_entity_mut(entity) else {
            return;
        };
        match owner.is_some() && owner == host {
            true => drop(entity.insert_if_new(Owned)),
            false => drop(entity.remove::<Owned>()),
        }
    });
}

fn leave(_: On<Disconnect>, host: Option<Res<Host>>, mut departures: ResMut<Departures>) {
    if let Some(host) = host {
        departures.add(host.0, DisconnectReason::ClientLeft);
    }
}

/// The session has ended: by the player, a kick, or with the server.
fn note_end(left: On<SessionLeft>, host: Option<Res<Host>>, mut commands: Commands) {
    if host.is_some_and(|host| host.0 == left.entity) {
        let reason = left.reason.clone();
        commands.remove_resource::<Host>();
        commands.queue(move |world: &mut World| {
            let why = Some(reason.clone());
            change(world, ConnectionState::Disconnected, None, why);
            world.trigger(Disconnected { reason });
            world.flush();
        });
    }
}

/// Lets messages of a type reach the local player, and theirs the game.
fn install<M: NetMessage>(app: &mut App) {
    app.add_message::<ToServer<M>>()
        .add_message::<FromServer<M>>()
        // Before sessions end in this frame, as for everybody else.
        .add_systems(
            PostUpdate,
            (hand_in::<M>, hand_out::<M>).in_set(TandemSystems::Collect),
        );
}

fn hand_in<M: NetMessage>(
    mut messages: MessageReader<ToServer<M>>,
    mut received: MessageWriter<FromClient<M>>,
    mut undeliverable: MessageWriter<Undeliverable<M>>,
    host: Option<Res<Host>>,
) {
    for ToServer(message) in messages.read() {
        let message = message.clone();
        match &host {
            Some(host) => {
                let session = host.0;
                received.write(FromClient { session, message });
            }
            None => {
                let session = Entity::PLACEHOLDER;
                undeliverable.write(Undeliverable { session, message });
            }
        }
    }
}

fn hand_out<M: NetMessage>(
    mut messages: MessageReader<ToClients<M>>,
    mut received: MessageWriter<FromServer<M>>,
    host: Option<Res<Host>>,
    rooms: Query<&InRoom>,
) {
    for ToClients { to, message } in messages.read() {
        let Some(host) = &host else { continue };
        let is_meant = match *to {
            Target::All => true,
            Target::Session(session) => session == host.0,
            Target::AllExcept(session) => session != host.0,
            Target::Room(room) => rooms.get(host.0).is_ok_and(|at| at.0 == room),
        };
        if is_meant {
            received.write(FromServer(message.clone()));
        }
    }
}
