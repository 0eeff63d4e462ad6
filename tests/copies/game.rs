//! What the small games share.

use std::time::Duration;

use bevy::ecs::component::Mutable;
use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

macro_rules! component {
    ($($(#[$meta:meta])* $name:ident($type:ty);)*) => {$(
        $(#[$meta])*
        #[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name(pub $type);
    )*};
}

component! {
    /// Tells entities apart.
    Tag(u32);
    Health(u32);
    Big(Vec<u8>);
    /// Interpolated.
    Place(f32);
    /// Shown when its moment has come, without blending.
    Mode(u32);
}

/// Names an entity.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aim(#[entities] pub Entity);

impl Blend for Place {
    fn blend(&self, to: &Self, t: f32) -> Self {
        Self(self.0 + (to.0 - self.0) * t)
    }
    fn separation(&self, to: &Self) -> f32 {
        (to.0 - self.0).abs()
    }
    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        Self(self.0 + (from.0 - to.0) * weight)
    }
}

/// State, and no simulation.
pub fn game(app: &mut App) {
    app.replicate::<Tag>();
    app.replicate::<Health>();
    app.replicate::<Aim>();
    app.replicate::<Big>();
    app.replicate::<Place>().interpolate();
    app.replicate::<Mode>().interpolate_step();
}

pub fn clean() -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    }
}

pub fn lossy(seed: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(40),
        jitter: Duration::from_millis(15),
        loss: 0.2,
        seed,
        ..default()
    }
}

/// A match that a player is in.
pub fn with_ada(game: fn(&mut App), link: LinkConditions) -> (TestNet, TestClientId) {
    let mut net = TestNet::new(game, link);
    let ada = net.join("Ada");
    net.run(Ticks(90));
    (net, ada)
}

/// The same, where the client's app is not the server's.
pub fn with_ada_playing(
    server: fn(&mut App),
    client: fn(&mut App),
    link: LinkConditions,
) -> (TestNet, TestClientId) {
    let mut net = TestNet::new(server, link);
    let config = ClientConfig {
        name: "Ada".into(),
        ..default()
    };
    let ada = net.join_with(client, config);
    net.run(Ticks(90));
    (net, ada)
}

/// All copies with this tag.
pub fn tagged(app: &mut App, tag: u32) -> Vec<Entity> {
    let world = app.world_mut();
    let mut query = world.query_filtered::<(Entity, &Tag), With<Replicated>>();
    query
        .iter(world)
        .filter(|(_, other)| other.0 == tag)
        .map(|(entity, _)| entity)
        .collect()
}

/// The only copy with this tag.
pub fn copy(net: &mut TestNet, client: TestClientId, tag: u32) -> Option<Entity> {
    let found = tagged(net.client(client), tag);
    assert!(found.len() <= 1, "{} copies with tag {tag}", found.len());
    found.first().copied()
}

/// A component of the only copy with this tag.
pub fn value<C: Component + Clone>(net: &mut TestNet, client: TestClientId, tag: u32) -> Option<C> {
    let entity = copy(net, client, tag)?;
    net.client(client).world().get::<C>(entity).cloned()
}

pub fn spawn(net: &mut TestNet, bundle: impl Bundle) -> Entity {
    net.server.world_mut().spawn((Replicated, bundle)).id()
}

/// An entity of the server's.
pub fn on_server(net: &mut TestNet, entity: Entity) -> EntityWorldMut<'_> {
    net.server.world_mut().entity_mut(entity)
}

/// Changes a component on the server in place.
pub fn change<C: Component<Mutability = Mutable>>(
    net: &mut TestNet,
    entity: Entity,
    change: impl FnOnce(&mut C),
) {
    let mut value = net.server.world_mut().get_mut::<C>(entity).unwrap();
    change(&mut value);
}

/// Two rooms; the session is in the first.
pub fn two_rooms(net: &mut TestNet, session: Entity) -> (Entity, Entity) {
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    (red, blue)
}

pub fn stats(net: &mut TestNet, client: TestClientId) -> ClientStats {
    net.client(client).world().resource::<ClientStats>().clone()
}

pub fn state(net: &mut TestNet, client: TestClientId) -> ConnectionState {
    net.client(client).world().resource::<Connection>().state()
}

pub fn sessions(net: &mut TestNet) -> usize {
    let world = net.server.world_mut();
    world.query::<&Session>().iter(world).count()
}

/// Where a client's connection stands, and why.
pub fn reason(net: &mut TestNet, client: TestClientId) -> String {
    let connection = net.client(client).world().resource::<Connection>();
    format!("{:?} {:?}", connection.state(), connection.reason())
}

/// Loses the link, runs, and expects the client to be back.
pub fn lose_the_link(
    net: &mut TestNet,
    client: TestClientId,
    meanwhile: impl FnOnce(&mut TestNet),
) {
    net.cut(client);
    net.run(Ticks(10));
    meanwhile(net);
    net.run(Ticks(600));
    assert_eq!(state(net, client), ConnectionState::Connected);
}

/// What observers were told, in order: the event, the component, and the tag of the entity if it has one at that moment.
#[derive(Resource, Default, Debug)]
pub struct Told(pub Vec<(&'static str, &'static str, Option<u32>)>);

/// Lets observers write down what happens to a component.
pub fn tell_of<C: Component>(app: &mut App) {
    app.init_resource::<Told>();
    let name = || std::any::type_name::<C>().rsplit("::").next().unwrap();
    app.add_observer(
        move |on: On<Add, C>, tags: Query<&Tag>, mut told: ResMut<Told>| {
            let tag = tags.get(on.entity).ok().map(|tag| tag.0);
            told.0.push(("add", name(), tag));
        },
    );
    app.add_observer(
        move |on: On<Insert, C>, tags: Query<&Tag>, mut told: ResMut<Told>| {
            let tag = tags.get(on.entity).ok().map(|tag| tag.0);
            told.0.push(("insert", name(), tag));
        },
    );
    app.add_observer(
        move |on: On<Remove, C>, tags: Query<&Tag>, mut told: ResMut<Told>| {
            let tag = tags.get(on.entity).ok().map(|tag| tag.0);
            told.0.push(("remove", name(), tag));
        },
    );
    app.add_observer(
        move |on: On<Despawn, C>, tags: Query<&Tag>, mut told: ResMut<Told>| {
            let tag = tags.get(on.entity).ok().map(|tag| tag.0);
            told.0.push(("despawn", name(), tag));
        },
    );
}

/// Takes what was told so far.
pub fn told(net: &mut TestNet, client: TestClientId) -> Told {
    std::mem::take(&mut *net.client(client).world_mut().resource_mut::<Told>())
}
