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

#[test]
fn it_does_not_matter_what_is_registered_first() {
    first_place_is_right(|app| {
        app.replicate::<Transform>()
            .quantize(TransformCodec::default())
            .interpolate();
        app.replicate::<Unit>();
        app.replicate::<Tag>();
    });
    first_place_is_right(|app| {
        app.replicate::<Unit>();
        app.replicate::<Transform>()
            .quantize(TransformCodec::default());
        app.replicate::<Tag>();
    });
    first_place_is_right(|app| {
        app.replicate::<Unit>();
        app.replicate::<Transform>().interpolate_step();
        app.replicate::<Tag>();
    });
    first_place_is_right(|app| {
        app.replicate::<Unit>();
        app.replicate::<Tag>();
        app.replicate::<Transform>().predict().interpolate();
    });
}

fn give_picture<C: Component>(added: On<Add, C>, mut commands: Commands) {
    commands.entity(added.entity).insert(Picture);
}

#[test]
fn what_a_clients_observer_inserts_moves_nothing_to_the_origin() {
    first_place_is_right(|app| {
        units(app);
        app.add_observer(give_picture::<Tag>);
    });
    first_place_is_right(|app| {
        units(app);
        app.add_observer(give_picture::<Replicated>);
    });
    first_place_is_right(|app| {
        units(app);
        app.add_observer(give_picture::<Interpolated>);
    });
    first_place_is_right(|app| {
        units(app);
        app.add_observer(give_picture::<Owner>);
        app.add_systems(
            PreUpdate,
            |new: Query<Entity, (With<Replicated>, Without<Picture>)>, mut commands: Commands| {
                for entity in &new {
                    commands.entity(entity).insert(Picture);
                }
            },
        );
    });
}

/// All places in which a copy was seen, with the world as it is whenever somebody looks: observers, systems, replays.
#[derive(Resource, Default)]
struct Looks(Vec<f32>);

fn looking(app: &mut App) {
    fn look(places: Query<&Transform, With<Replicated>>, mut looks: ResMut<Looks>) {
        looks.0.extend(places.iter().map(|at| at.translation.x));
    }
    fn glance<E: EntityEvent, C: Component>(
        on: On<E, C>,
        places: Query<&Transform>,
        mut looks: ResMut<Looks>,
    ) {
        let at = places.get(on.event_target()).map(|at| at.translation.x);
        looks.0.extend(at.ok());
    }
    units(app);
    app.init_resource::<Looks>()
        .add_observer(give_picture::<Unit>)
        .add_observer(glance::<Add, Tag>)
        .add_observer(glance::<Add, Unit>)
        .add_observer(glance::<Insert, Transform>)
        .add_observer(glance::<Add, Transform>)
        .add_observer(glance::<Add, Picture>)
        .add_observer(glance::<Remove, Unit>)
        .add_observer(glance::<Despawn, Unit>)
        .add_systems(PreUpdate, look.after(TandemSystems::Apply))
        .add_systems(FixedUpdate, look)
        .add_systems(Update, look)
        .add_systems(Last, look);
}

#[test]
fn nobody_ever_sees_a_copy_where_it_never_was() {
    for by in [PredictedBy::Nobody, PredictedBy::Everyone] {
        for seed in 0..3 {
            let mut net = TestNet::new(looking, lossy(seed));
            let unit = |x| (Tag(1), Unit, by, Transform::from_xyz(x, 0.0, 0.0));
            let mover = spawn(&mut net, unit(100.0));
            let ada = net.join("Ada");
            let mut mover = mover;
            for n in 0..300 {
                let x = 100.0 + n as f32;
                change::<Transform>(&mut net, mover, |at| at.translation.x = x);
                if n % 40 == 39 {
                    on_server(&mut net, mover).despawn();
                    mover = spawn(&mut net, unit(x));
                }
                if n == 200 {
                    net.cut(ada);
                }
                net.run(Ticks(1));
            }
            net.run(Ticks(240));
            let looks = &net.client(ada).world().resource::<Looks>().0;
            assert!(looks.len() > 600);
            let wrong: Vec<_> = looks
                .iter()
                // Motion may go on for a moment when nothing comes.
                .filter(|x| !(99.0..=420.0).contains(*x))
                .collect();
            assert!(wrong.is_empty(), "{by:?}, seed {seed}: {wrong:?}");
        }
    }
}

#[test]
fn each_component_of_a_new_copy_sees_all_others() {
    #[derive(Resource, Default)]
    struct Incomplete(Vec<&'static str>, u32);
    fn look<E: EntityEvent, C: Component>(
        on: On<E, C>,
        whole: Query<
            (),
            (
                (With<Tag>, With<Health>, With<Place>, With<Mode>, With<Aim>),
                (With<Unit>, With<Transform>, With<Replicated>, With<Owner>),
                Or<(With<Predicted>, With<Interpolated>)>,
            ),
        >,
        mut incomplete: ResMut<Incomplete>,
    ) {
        incomplete.1 += 1;
        if !whole.contains(on.event_target()) {
            incomplete.0.push(std::any::type_name::<(E, C)>());
        }
    }
    fn watch<C: Component>(app: &mut App) {
        app.add_observer(look::<Add, C>)
            .add_observer(look::<Insert, C>);
    }
    fn watching(app: &mut App) {
        game(app);
        app.replicate::<Unit>();
        app.replicate::<Transform>().interpolate();
        app.init_resource::<Incomplete>();
        watch::<Tag>(app);
        watch::<Health>(app);
        watch::<Place>(app);
        watch::<Mode>(app);
        watch::<Aim>(app);
        watch::<Unit>(app);
        watch::<Transform>(app);
        watch::<Replicated>(app);
        watch::<Owner>(app);
        watch::<Predicted>(app);
        watch::<Interpolated>(app);
        watch::<ChildOf>(app);
    }
    for by in [PredictedBy::Nobody, PredictedBy::Everyone] {
        let (mut net, ada) = with_ada_playing(
            |app| {
                game(app);
                app.replicate::<Unit>();
                app.replicate::<Transform>().interpolate();
            },
            watching,
            clean(),
        );
        let session = net.session(ada).unwrap();
        let parent = spawn(&mut net, Tag(9));
        net.run(Ticks(60));
        net.client(ada).insert_resource(Incomplete::default());
        for n in 0..3 {
            spawn(
                &mut net,
                (
                    (Tag(n), Health(1), Place(1.0), Mode(1), Aim(parent)),
                    (Unit, Transform::from_xyz(9.0, 0.0, 0.0), ChildOf(parent)),
                    (OwnedBy(session), by),
                ),
            );
        }
        net.run(Ticks(60));
        let incomplete = net.client(ada).world().resource::<Incomplete>();
        assert!(incomplete.1 >= 60, "{} were looked at", incomplete.1);
        assert!(incomplete.0.is_empty(), "{by:?}: {:?}", incomplete.0);
    }
}

#[test]
fn hooks_and_required_components_see_a_whole_copy() {
    use bevy::ecs::lifecycle::HookContext;
    use bevy::ecs::world::DeferredWorld;

    #[derive(Resource, Default)]
    struct Seen(Vec<(Option<u32>, Option<f32>)>);
    fn hooked(app: &mut App) {
        game(app);
        app.init_resource::<Seen>();
        fn hook(mut world: DeferredWorld, context: HookContext) {
            let health = world.get::<Health>(context.entity).map(|health| health.0);
            let place = world.get::<Place>(context.entity).map(|place| place.0);
            world.resource_mut::<Seen>().0.push((health, place));
        }
        app.world_mut()
            .register_component_hooks::<Tag>()
            .on_add(hook);
        app.world_mut()
            .register_component_hooks::<Mode>()
            .on_add(hook);
    }
    let (mut net, ada) = with_ada(hooked, clean());
    spawn(&mut net, (Mode(1), Tag(1), Health(5), Place(6.0)));
    net.run(Ticks(60));
    let seen = &net.client(ada).world().resource::<Seen>().0;
    assert_eq!(*seen, [(Some(5), Some(6.0)); 2]);
}

#[test]
fn components_inserted_in_one_tick_see_each_other_on_clients() {
    #[derive(Resource, Default)]
    struct Seen(Vec<bool>);
    fn observed(app: &mut App) {
        game(app);
        app.init_resource::<Seen>()
            .add_observer(
                |on: On<Add, Health>, aims: Query<&Aim>, mut seen: ResMut<Seen>| {
                    seen.0.push(aims.contains(on.entity));
                },
            )
            .add_observer(
                |on: On<Add, Aim>, of: Query<&Health>, mut seen: ResMut<Seen>| {
                    seen.0.push(of.contains(on.entity));
                },
            )
            .add_observer(
                |on: On<Add, Place>, of: Query<&Mode>, mut seen: ResMut<Seen>| {
                    seen.0.push(of.contains(on.entity));
                },
            )
            .add_observer(
                |on: On<Add, Mode>, of: Query<&Place>, mut seen: ResMut<Seen>| {
                    seen.0.push(of.contains(on.entity));
                },
            );
    }
    let (mut net, ada) = with_ada(observed, clean());
    let entity = spawn(&mut net, Tag(1));
    net.run(Ticks(60));
    on_server(&mut net, entity).insert((Health(1), Aim(entity), Place(1.0), Mode(1)));
    net.run(Ticks(60));
    let seen = &net.client(ada).world().resource::<Seen>().0;
    assert_eq!(*seen, [true; 4]);
}

#[test]
fn a_copy_appears_on_arrival_and_not_when_playback_reaches_it() {
    let (mut net, ada) = with_ada(game, clean());
    spawn(&mut net, (Tag(1), Place(7.0), Mode(3)));
    let mut after = 0;
    while copy(&mut net, ada, 1).is_none() {
        net.run(Ticks(1));
        after += 1;
    }
    // 30 ms on the way, and up to a send interval.
    assert!(after <= 5, "after {after} ticks");
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(7.0)));
    assert_eq!(value::<Mode>(&mut net, ada, 1), Some(Mode(3)));
}

#[test]
fn what_a_client_has_put_on_its_copies_survives_a_lost_link_whatever_they_are() {
    fn placed(app: &mut App) {
        game(app);
        app.replicate::<Transform>().predict().interpolate();
    }
    for by in [PredictedBy::Nobody, PredictedBy::Everyone] {
        let (mut net, ada) = with_ada(placed, lossy(3));
        // One more that the server's entity has, which goes meanwhile.
        let entity = spawn(&mut net, (Tag(1), by, Mode(1), Place(5.0)));
        net.run(Ticks(60));
        let seen = copy(&mut net, ada, 1).unwrap();
        let world = net.client(ada).world_mut();
        let root = world.spawn(Transform::default()).id();
        world.entity_mut(seen).insert((
            Transform::from_xyz(3.0, 0.0, 0.0),
            Health(77),
            ChildOf(root),
        ));
        net.run(Ticks(30));
        for _ in 0..2 {
            lose_the_link(&mut net, ada, |net| {
                on_server(net, entity).remove::<Mode>();
            });
            let at = net.client(ada).world().entity(seen);
            let place = at.get::<Transform>().map(|at| at.translation.x);
            // A predicted component that the game inserts is a prediction, and the server does not share it.
            let is_predicted = by == PredictedBy::Everyone;
            assert_eq!(place, (!is_predicted).then_some(3.0), "{by:?}");
            assert_eq!(at.get::<Health>(), Some(&Health(77)), "{by:?}");
            assert_eq!(at.get::<ChildOf>(), Some(&ChildOf(root)), "{by:?}");
            assert_eq!(at.get::<Mode>(), None, "{by:?}: the server's own is gone");
            assert_eq!(at.get::<Place>(), Some(&Place(5.0)), "{by:?}");
        }
    }
}

/// Hands an item over while everybody moves, and watches where it is drawn.
fn is_handed_over_smoothly(interpolate: fn(&mut App), conditions: LinkConditions) {
    let (mut net, ada) = with_ada(interpolate, conditions);
    let carriers = [0.0, 1_000.0].map(|x| spawn(&mut net, Transform::from_xyz(x, 0.0, 0.0)));
    let item = spawn(&mut net, (Tag(2), Transform::from_xyz(1.0, 0.0, 0.0)));
    net.run(Ticks(90));
    let mut all = Vec::new();
    for round in 0..12 {
        // In the carrier's space near its middle, at home near 1, with the second near 1,001.
        let (parent, x) = match round % 4 {
            0 => (Some(carriers[0]), 0.5),
            1 => (Some(carriers[1]), 0.5),
            2 => (None, 1.0),
            _ => (Some(carriers[1]), 0.0),
        };
        let mut at = on_server(&mut net, item);
        at.insert(Transform::from_xyz(x, 0.0, 0.0));
        match parent {
            Some(parent) => at.insert(ChildOf(parent)),
            None => at.remove::<ChildOf>(),
        };
        for _ in 0..15 {
            net.run(Ticks(1));
            all.push(
                value::<GlobalTransform>(&mut net, ada, 2)
                    .unwrap()
                    .translation()
                    .x,
            );
        }
    }
    net.run(Ticks(60));
    all.push(
        value::<GlobalTransform>(&mut net, ada, 2)
            .unwrap()
            .translation()
            .x,
    );
    let is_right = |x: &f32| (-0.1..1.6).contains(x) || (999.9..1_001.6).contains(x);
    let wrong: Vec<_> = all.iter().filter(|x| !is_right(x)).collect();
    assert!(wrong.is_empty(), "in a space that it was not in: {wrong:?}");
    assert_eq!(*all.last().unwrap(), 1_000.0);
}

#[test]
fn what_is_handed_over_is_never_drawn_in_the_wrong_space() {
    fn blended(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Transform>().interpolate();
    }
    fn quantized(app: &mut App) {
        app.replicate::<Transform>()
            .quantize(TransformCodec::default())
            .interpolate();
        app.replicate::<Tag>();
    }
    fn stepped(app: &mut App) {
        app.replicate::<Transform>().interpolate_step();
        app.replicate::<Tag>();
    }
    fn plain(app: &mut App) {
        app.replicate::<Transform>();
        app.replicate::<Tag>();
    }
    for conditions in [clean(), lossy(1), lossy(2)] {
        is_handed_over_smoothly(blended, conditions.clone());
        is_handed_over_smoothly(quantized, conditions.clone());
        is_handed_over_smoothly(stepped, conditions.clone());
    }
    is_handed_over_smoothly(plain, clean());
}

#[test]
fn what_rests_is_no_change_for_a_client_whatever_it_is() {
    #[derive(Resource, Default)]
    struct Changes([u32; 5]);
    fn watched(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Health>().predict();
        app.replicate::<Place>().predict().interpolate();
        app.replicate::<Mode>().interpolate_step();
        app.replicate::<Aim>();
        app.replicate::<Transform>()
            .quantize(TransformCodec::default())
            .predict()
            .interpolate();
        app.init_resource::<Changes>();
        app.add_systems(
            Last,
            |health: Query<(), Changed<Health>>,
             place: Query<(), Changed<Place>>,
             mode: Query<(), Changed<Mode>>,
             aim: Query<(), Changed<Aim>>,
             at: Query<(), Changed<Transform>>,
             mut changes: ResMut<Changes>| {
                changes.0[0] += health.iter().count() as u32;
                changes.0[1] += place.iter().count() as u32;
                changes.0[2] += mode.iter().count() as u32;
                changes.0[3] += aim.iter().count() as u32;
                changes.0[4] += at.iter().count() as u32;
            },
        );
    }
    for by in [PredictedBy::Nobody, PredictedBy::Everyone] {
        let (mut net, ada) = with_ada(watched, lossy(1));
        let entity = spawn(
            &mut net,
            (
                (Tag(1), by, Health(1), Place(1.0), Mode(1)),
                Transform::from_xyz(1.3, 2.6, 3.9).with_rotation(Quat::from_rotation_y(0.7)),
            ),
        );
        on_server(&mut net, entity).insert(Aim(entity));
        // A neighbour that is corrected all the time: replays concern those who rest, too.
        let neighbour = spawn(&mut net, (Tag(2), PredictedBy::Everyone));
        for n in 0..30 {
            change::<Place>(&mut net, entity, |place| place.0 = n as f32);
            change::<Transform>(&mut net, entity, |at| at.translation.x = n as f32);
            net.run(Ticks(1));
        }
        net.run(Ticks(180));
        net.client(ada).insert_resource(Changes::default());
        for n in 0..120 {
            on_server(&mut net, neighbour).insert(SpawnKey::new(7, Tick(n), 0));
            net.run(Ticks(1));
        }
        let changes = net.client(ada).world().resource::<Changes>().0;
        assert_eq!(changes, [0; 5], "{by:?}: changes in two seconds of rest");
    }
}

#[test]
fn what_is_inserted_later_comes_with_what_it_requires_also_where_that_is_drawn_or_predicted() {
    /// Requires what is interpolated, or predicted.
    #[derive(Component, Clone, Serialize, Deserialize)]
    #[require(Place = Place(0.0))]
    struct Tower;

    #[derive(Resource, Default)]
    struct Seen(Vec<f32>);

    fn towers(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Tower>();
        app.replicate::<Place>().predict().interpolate();
        app.init_resource::<Seen>().add_observer(
            |added: On<Add, Tower>, places: Query<&Place>, mut seen: ResMut<Seen>| {
                seen.0.push(places.get(added.entity).unwrap().0);
            },
        );
        app.add_observer(|added: On<Add, Place>, places: Query<&Place>| {
            assert_ne!(places.get(added.entity).unwrap(), &Place(0.0));
        });
    }
    for predicted_by in [PredictedBy::Nobody, PredictedBy::Everyone] {
        let (mut net, ada) = with_ada(towers, clean());
        let site = spawn(&mut net, (Tag(1), predicted_by));
        net.run(Ticks(60));
        on_server(&mut net, site).insert((Place(7.0), Tower));
        for _ in 0..60 {
            net.run(Ticks(1));
            let place: Option<Place> = value(&mut net, ada, 1);
            assert!(place.is_none_or(|place| place == Place(7.0)));
        }
        assert_eq!(net.client(ada).world().resource::<Seen>().0, [7.0]);
        change::<Place>(&mut net, site, |place| place.0 = 9.0);
        net.run(Ticks(60));
        assert_eq!(value(&mut net, ada, 1), Some(Place(9.0)));
    }
}
