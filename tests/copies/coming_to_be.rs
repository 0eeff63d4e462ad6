//! How a copy comes to be, and what on it is the game's own.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;
use serde::{Deserialize, Serialize};

use crate::game::*;

#[derive(Component, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[require(Transform)]
struct Unit;

fn units(app: &mut App) {
    app.replicate::<Tag>();
    app.replicate::<Unit>();
    app.replicate::<Transform>()
        .quantize(TransformCodec::default())
        .interpolate();
}

fn first_place_is_right(game: fn(&mut App)) {
    let (mut net, ada) = with_ada(game, clean());
    spawn(
        &mut net,
        (Tag(1), Unit, Transform::from_xyz(100.0, 0.0, 0.0)),
    );
    let mut seen = Vec::new();
    for _ in 0..60 {
        net.run(Ticks(1));
        if let Some(at) = value::<Transform>(&mut net, ada, 1) {
            seen.push(at.translation.x);
        }
    }
    assert!(seen.len() > 40);
    assert!(seen.iter().all(|x| (x - 100.0).abs() < 0.01), "{seen:?}");
}

#[test]
fn what_requires_a_transform_appears_in_its_place() {
    first_place_is_right(units);
}

/// As a sprite or a mesh: only on the client, and it requires a transform.
#[derive(Component, Default)]
#[require(Transform)]
struct Picture;

#[test]
fn an_observer_of_one_component_sees_the_others() {
    #[derive(Resource, Default)]
    struct Seen(Vec<(bool, bool)>);
    fn observed(app: &mut App) {
        game(app);
        app.init_resource::<Seen>();
        app.add_observer(
            |added: On<Add, Tag>,
             others: Query<(Has<Health>, Has<Place>)>,
             mut seen: ResMut<Seen>| {
                seen.0.push(others.get(added.entity).unwrap());
            },
        );
    }
    let (mut net, ada) = with_ada(observed, clean());
    spawn(&mut net, (Tag(1), Health(1), Place(1.0)));
    net.run(Ticks(60));
    let seen = &net.client(ada).world().resource::<Seen>().0;
    assert_eq!(*seen, [(true, true)]);
}

#[test]
fn replacing_a_component_is_observed_on_the_client_as_on_the_server() {
    #[derive(Resource, Default)]
    struct Inserted(Vec<u32>);
    fn observed(app: &mut App) {
        game(app);
        app.init_resource::<Inserted>();
        app.add_observer(
            |inserted: On<Insert, Health>, health: Query<&Health>, mut seen: ResMut<Inserted>| {
                seen.0.push(health.get(inserted.entity).unwrap().0);
            },
        );
    }
    let (mut net, ada) = with_ada(observed, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    let mut at = net.server.world_mut().entity_mut(entity);
    at.remove::<Health>();
    at.insert(Health(2));
    net.run(Ticks(60));
    assert_eq!(net.client(ada).world().resource::<Inserted>().0, [1, 2]);
}

#[test]
fn equal_values_are_no_change_for_a_client() {
    #[derive(Resource, Default)]
    struct Changes(u32);
    fn watched(app: &mut App) {
        game(app);
        app.init_resource::<Changes>();
        app.add_systems(
            Update,
            |changed: Query<(), (Changed<Health>, Without<Simulated>)>,
             mut changes: ResMut<Changes>| {
                changes.0 += changed.iter().count() as u32;
            },
        );
    }
    let (mut net, ada) = with_ada(watched, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    net.client(ada).world_mut().resource_mut::<Changes>().0 = 0;
    for _ in 0..60 {
        net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 1;
        net.run(Ticks(1));
    }
    assert_eq!(net.client(ada).world().resource::<Changes>().0, 0);
}

#[test]
fn a_late_joiner_sees_movers_where_they_are() {
    fn movers(app: &mut App) {
        game(app);
        app.add_systems(
            FixedUpdate,
            |mut all: Query<&mut Place, With<Simulated>>| {
                for mut place in &mut all {
                    place.0 += 0.1;
                }
            },
        );
    }
    let (mut net, _) = with_ada(movers, clean());
    let entity = spawn(&mut net, (Tag(1), Place(0.0)));
    net.run(Ticks(600));
    let bob = net.join("Bob");
    let mut seen = 0;
    for _ in 0..120 {
        net.run(Ticks(1));
        let real = net.server.world().get::<Place>(entity).unwrap().0;
        if let Some(place) = value::<Place>(&mut net, bob, 1) {
            let behind = real - place.0;
            assert!((0.0..2.5).contains(&behind), "behind by {behind}");
            seen += 1;
        }
    }
    assert!(seen > 60);
}

#[test]
fn who_predicts_may_be_changed_in_place() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), PredictedBy::Owner));
    net.run(Ticks(60));
    let seen = copy(&mut net, ada, 1).unwrap();
    assert!(net.client(ada).world().get::<Interpolated>(seen).is_some());
    *net.server
        .world_mut()
        .get_mut::<PredictedBy>(entity)
        .unwrap() = PredictedBy::Everyone;
    net.run(Ticks(60));
    assert!(net.client(ada).world().get::<Predicted>(seen).is_some());
}

#[test]
fn ownership_taken_and_given_back_in_one_tick_is_kept() {
    fn with_input(app: &mut App) {
        game(app);
        app.add_input::<u8>();
    }
    let (mut net, ada) = with_ada(with_input, clean());
    let session = net.session(ada).unwrap();
    let entity = spawn(&mut net, (Tag(1), OwnedBy(session)));
    net.run(Ticks(60));
    let mut at = net.server.world_mut().entity_mut(entity);
    at.remove::<OwnedBy>();
    at.insert(OwnedBy(session));
    net.client(ada).insert_resource(LocalInput(9_u8));
    net.run(Ticks(60));
    let seen = copy(&mut net, ada, 1).unwrap();
    assert!(net.client(ada).world().get::<Owned>(seen).is_some());
    assert_eq!(net.server.world().get::<Input<u8>>(entity), Some(&Input(9)));
    assert_eq!(
        net.client(ada).world().get::<Input<u8>>(seen),
        Some(&Input(9))
    );
}

#[test]
fn what_a_client_has_added_to_its_copy_survives_a_lost_link() {
    fn placed(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Transform>().interpolate();
    }
    let (mut net, ada) = with_ada(placed, clean());
    // The server gives it no place and no parent: it is an item in a list, say, which the client shows where it likes.
    spawn(&mut net, Tag(1));
    net.run(Ticks(60));
    let seen = copy(&mut net, ada, 1).unwrap();
    let world = net.client(ada).world_mut();
    let root = world.spawn(Transform::default()).id();
    world
        .entity_mut(seen)
        .insert((Transform::from_xyz(3.0, 0.0, 0.0), ChildOf(root)));
    net.run(Ticks(60));
    let has = |net: &mut TestNet| {
        let world = net.client(ada).world();
        (
            world.get::<Transform>(seen).map(|at| at.translation.x),
            world.get::<ChildOf>(seen).cloned(),
        )
    };
    assert_eq!(has(&mut net), (Some(3.0), Some(ChildOf(root))), "before");
    net.cut(ada);
    net.run(Ticks(600));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(has(&mut net), (Some(3.0), Some(ChildOf(root))), "after");
}

#[test]
fn what_is_picked_up_does_not_flicker() {
    fn items(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Transform>()
            .quantize(TransformCodec::default())
            .interpolate();
    }
    let (mut net, ada) = with_ada(items, clean());
    let carrier = spawn(&mut net, (Tag(1), Transform::from_xyz(100.0, 0.0, 0.0)));
    let item = spawn(&mut net, (Tag(2), Transform::from_xyz(101.0, 0.0, 0.0)));
    net.run(Ticks(60));
    // From beside the carrier to its hand: a unit away, in the carrier's space.
    net.server
        .world_mut()
        .entity_mut(item)
        .insert((ChildOf(carrier), Transform::from_xyz(0.0, 0.0, 0.0)));
    let mut seen = Vec::new();
    for _ in 0..40 {
        net.run(Ticks(1));
        let at = value::<GlobalTransform>(&mut net, ada, 2).unwrap();
        seen.push(at.translation().x);
    }
    assert_eq!(*seen.last().unwrap(), 100.0);
    assert!(seen.iter().all(|x| (99.9..101.1).contains(x)), "{seen:?}");
}
