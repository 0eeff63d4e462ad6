//! Copies that this client predicts, and what its own simulation does to them.

use std::time::Duration;

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::query::Allow;
use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};

use crate::game::*;
use crate::ships::*;

#[test]
fn a_replay_keeps_what_was_spawned_early_together() {
    for delay in 0..4 {
        let (mut net, ada) = with_ada(
            ships,
            LinkConditions {
                latency: Duration::from_millis(60),
                ..default()
            },
        );
        let ship = ship(&mut net);
        net.server.world_mut().get_mut::<At>(ship).unwrap().0 += 3.0;
        net.run(Ticks(delay));
        control(&mut net, ada, 1, true);
        net.run(Ticks(1));
        control(&mut net, ada, 1, false);
        for frame in 0..60 {
            net.run(Ticks(1));
            let world = net.client(ada).world_mut();
            let shots: Vec<_> = world
                .query_filtered::<Entity, With<Shot>>()
                .iter(world)
                .collect();
            let trails: Vec<_> = world
                .query::<(&SpawnKey, Option<&Trail>, Option<&ChildOf>, Has<Shot>)>()
                .iter(world)
                .filter(|(.., is_shot)| !is_shot)
                .map(|(_, trail, parent, _)| (trail.cloned(), parent.cloned()))
                .collect();
            assert_eq!(shots.len(), 1, "delay {delay}, frame {frame}");
            assert_eq!(
                trails,
                [(Some(Trail(1)), Some(ChildOf(shots[0])))],
                "delay {delay}, frame {frame}"
            );
        }
    }
}

#[test]
fn predicted_references_are_compared_as_this_client_knows_them() {
    let (mut net, ada) = with_ada(ships, clean());
    let ship = ship(&mut net);
    let targets = [spawn(&mut net, Tag(1)), spawn(&mut net, Tag(2))];
    net.run(Ticks(60));
    let before = stats(&mut net, ada).reconciliations;
    for n in 0..10 {
        net.server
            .world_mut()
            .entity_mut(ship)
            .insert(Lock(targets[n % 2]));
        control(&mut net, ada, 1, false);
        net.run(Ticks(30));
    }
    net.run(Ticks(30));
    let after = stats(&mut net, ada).reconciliations;
    assert!(after - before <= 12, "{} corrections", after - before);
    let target = copy(&mut net, ada, 2).unwrap();
    let world = net.client(ada).world_mut();
    let lock = world.query::<&Lock>().single(world).unwrap();
    assert_eq!(*lock, Lock(target));
}

#[test]
fn a_smoothed_predicted_component_comes_back_with_its_new_value() {
    let (mut net, ada) = with_ada(ships, clean());
    let ship = ship(&mut net);
    net.server.world_mut().entity_mut(ship).insert(Place(1.0));
    for n in 0..60 {
        net.server.world_mut().get_mut::<Place>(ship).unwrap().0 = n as f32;
        net.run(Ticks(1));
    }
    net.server.world_mut().entity_mut(ship).remove::<Place>();
    net.run(Ticks(60));
    let seen = |net: &mut TestNet| {
        let world = net.client(ada).world_mut();
        let mut query = world.query_filtered::<Option<&Place>, With<Ship>>();
        query.single(world).unwrap().cloned()
    };
    assert_eq!(seen(&mut net), None);
    net.server.world_mut().entity_mut(ship).insert(Place(500.0));
    net.run(Ticks(120));
    assert_eq!(seen(&mut net), Some(Place(500.0)));
}

#[test]
fn a_predicted_thing_at_rest_is_not_changed_every_frame() {
    #[derive(Resource, Default)]
    struct Changes([u32; 2]);
    fn watched(app: &mut App) {
        ships(app);
        app.init_resource::<Changes>();
        app.add_systems(
            Update,
            |at: Query<(), Changed<At>>,
             place: Query<(), Changed<Place>>,
             mut changes: ResMut<Changes>| {
                changes.0[0] += at.iter().count() as u32;
                changes.0[1] += place.iter().count() as u32;
            },
        );
    }
    // Nothing steers: no input.
    fn still(app: &mut App) {
        watched(app);
    }
    let (mut net, ada) = with_ada(still, clean());
    let ship = ship(&mut net);
    net.server
        .world_mut()
        .entity_mut(ship)
        .insert(Place(1.0))
        .remove::<At>();
    net.run(Ticks(120));
    *net.client(ada).world_mut().resource_mut::<Changes>() = Changes::default();
    net.run(Ticks(60));
    let changes = net.client(ada).world().resource::<Changes>().0;
    assert_eq!(changes, [0, 0], "marked as changed in a second of rest");
}

#[test]
fn ticks_may_wrap_around() {
    let mut net = TestNet::new(ships, lossy(3));
    net.server.world_mut().resource_mut::<CurrentTick>().0 = Tick(u32::MAX - 300);
    let ada = net.join("Ada");
    net.run(Ticks(120));
    let session = net.session(ada).unwrap();
    let room = net.server.world_mut().spawn(Room).id();
    net.server
        .world_mut()
        .entity_mut(session)
        .insert(InRoom(room));
    let entity = spawn(&mut net, (Tag(1), Place(0.0), InRoom(room)));
    let before = stats(&mut net, ada);
    for n in 0..600 {
        net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        control(&mut net, ada, if n % 40 < 20 { 1 } else { -1 }, n % 50 == 0);
        net.run(Ticks(1));
        if n > 60 {
            let place = value::<Place>(&mut net, ada, 1).unwrap().0;
            assert!(
                (n as f32 - 40.0..=n as f32).contains(&place),
                "{n}: {place}"
            );
        }
    }
    assert!(
        net.server.world().resource::<CurrentTick>().0.0 < 1_000,
        "it has wrapped"
    );
    let after = stats(&mut net, ada);
    assert_eq!(after.clock_snaps, before.clock_snaps);
    let late = after.inputs_late - before.inputs_late;
    assert!(late < 30, "{late}");
    steering_works(&mut net, ada);
}

#[test]
fn a_predicted_despawn_that_is_refused_brings_back_what_hung_below() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(ships, lossy(seed));
        let ship = ship(&mut net);
        let turret = spawn(&mut net, (Tag(2), Health(3), ChildOf(ship)));
        spawn(&mut net, (Tag(3), Place(4.0), ChildOf(turret)));
        net.run(Ticks(120));
        assert!(copy(&mut net, ada, 3).is_some());
        net.client(ada).insert_resource(Believes);
        net.run(Ticks(3));
        let world = net.client(ada).world_mut();
        world.remove_resource::<Believes>();
        let ships = world.query::<&Ship>().iter(world).count();
        assert_eq!(ships, 0, "the client believes it is gone");
        net.run(Ticks(240));
        let world = net.client(ada).world_mut();
        let ship = world
            .query_filtered::<Entity, With<Ship>>()
            .single(world)
            .expect("it is back");
        assert_eq!(
            value::<ChildOf>(&mut net, ada, 2),
            Some(ChildOf(ship)),
            "seed {seed}"
        );
        let turret = copy(&mut net, ada, 2).unwrap();
        assert_eq!(
            value::<ChildOf>(&mut net, ada, 3),
            Some(ChildOf(turret)),
            "seed {seed}"
        );
        steering_works(&mut net, ada);
    }
}

/// Fires shots whose trails are spawned with them.
fn nested(app: &mut App) {
    app.add_input::<Control>();
    app.replicate::<Tag>();
    app.replicate::<At>().predict();
    app.replicate::<Ship>();
    app.replicate::<Shot>().predict();
    app.replicate::<Trail>();
    app.add_systems(FixedUpdate, (steer, fly, fire_nested).chain());
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Ship, At(0.0)));
    });
}

fn fire_nested(
    ships: Query<(&Input<Control>, &At, &Owner), (With<Ship>, With<Simulated>)>,
    tick: Res<CurrentTick>,
    mut commands: Commands,
) {
    for (input, at, owner) in &ships {
        if input.fires {
            commands.spawn((
                Replicated,
                SpawnKey::new(owner.0.0, tick.0, 0),
                Shot(120),
                At(at.0),
                children![(Replicated, SpawnKey::new(owner.0.0, tick.0, 1), Trail(1),)],
            ));
        }
    }
}

#[test]
fn what_is_spawned_early_as_children_stays_together() {
    for (seed, push) in (0..4).flat_map(|seed| [(seed, 0.0), (seed, 3.0)]) {
        let (mut net, ada) = with_ada(nested, lossy(seed));
        let ship = ship(&mut net);
        change::<At>(&mut net, ship, |at| at.0 += push);
        net.run(Ticks(2));
        control(&mut net, ada, 1, true);
        net.run(Ticks(1));
        control(&mut net, ada, 1, false);
        for frame in 0..80 {
            net.run(Ticks(1));
            let world = net.client(ada).world_mut();
            let mut shots: Vec<_> = world
                .query_filtered::<Entity, With<Shot>>()
                .iter(world)
                .collect();
            let mut trails: Vec<_> = world
                .query::<(&Trail, &ChildOf)>()
                .iter(world)
                .map(|(_, parent)| parent.parent())
                .collect();
            shots.sort_unstable();
            trails.sort_unstable();
            assert_eq!(
                trails, shots,
                "seed {seed}, pushed by {push}, frame {frame}"
            );
            // A frame may have two ticks, when the client catches up.
            assert!(shots.len() <= 2, "seed {seed}, frame {frame}");
        }
        net.run(Ticks(240));
        let world = net.client(ada).world_mut();
        let left = world.query_filtered::<(), Or<(With<Shot>, With<Trail>)>>();
        let mut left = left;
        assert_eq!(left.iter(world).count(), 0, "seed {seed}");
    }
}

#[test]
fn a_large_predicted_component_keeps_its_value_until_the_next_has_come() {
    #[derive(Resource, Default)]
    struct Gaps(u32);
    fn large(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Big>().predict();
        app.replicate::<At>().predict();
        app.init_resource::<Gaps>().add_systems(
            Last,
            |things: Query<Has<Big>, With<At>>, mut gaps: ResMut<Gaps>| {
                gaps.0 += things.iter().filter(|has| !has).count() as u32;
            },
        );
    }
    for seed in 0..3 {
        let (mut net, ada) = with_ada(large, lossy(seed));
        let by = PredictedBy::Everyone;
        let entity = spawn(&mut net, (Tag(1), by, At(0.0), Big(vec![0; 4_000])));
        net.run(Ticks(180));
        assert_eq!(value(&mut net, ada, 1), Some(Big(vec![0; 4_000])));
        net.client(ada).insert_resource(Gaps::default());
        for n in 1..20 {
            change::<Big>(&mut net, entity, |big| {
                big.0 = vec![n; 4_000 + usize::from(n)];
            });
            // Corrections and replays meanwhile.
            change::<At>(&mut net, entity, |at| at.0 += 1.0);
            net.run(Ticks(6));
        }
        net.run(Ticks(180));
        assert_eq!(
            value(&mut net, ada, 1),
            Some(Big(vec![19; 4_019])),
            "seed {seed}"
        );
        assert_eq!(
            net.client(ada).world().resource::<Gaps>().0,
            0,
            "seed {seed}"
        );
    }
}

#[test]
fn who_owns_and_predicts_may_change_again_and_again() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(ships, lossy(seed));
        let session = net.session(ada).unwrap();
        let entity = spawn(&mut net, (Tag(5), At(1.0), Place(2.0), Trail(3)));
        let mut rng = fastrand::Rng::with_seed(seed);
        for n in 0..80 {
            let mut at = on_server(&mut net, entity);
            match rng.u8(0..6) {
                0 => {
                    at.insert(OwnedBy(session));
                }
                1 => {
                    at.remove::<OwnedBy>();
                }
                2 => {
                    at.insert(PredictedBy::Everyone);
                }
                3 => {
                    at.remove::<PredictedBy>();
                }
                4 => {
                    at.remove::<(At, Place)>().insert(Place(n as f32));
                }
                _ => {
                    at.insert((At(n as f32), Trail(n as u8)));
                }
            }
            net.run(Ticks(rng.u32(0..8)));
        }
        net.run(Ticks(240));
        let at = net.server.world().entity(entity);
        let wanted = (
            at.get::<At>().cloned(),
            at.get::<Place>().cloned(),
            at.get::<Trail>().cloned(),
        );
        let by = at.get::<PredictedBy>().copied().unwrap_or_default();
        let is_predicted = by == PredictedBy::Everyone || at.contains::<OwnedBy>();
        let copy = copy(&mut net, ada, 5).unwrap();
        let at = net.client(ada).world().entity(copy);
        let seen = (
            at.get::<At>().cloned(),
            at.get::<Place>().cloned(),
            at.get::<Trail>().cloned(),
        );
        assert_eq!(seen, wanted, "seed {seed}");
        assert_eq!(at.contains::<Predicted>(), is_predicted, "seed {seed}");
        assert_eq!(at.contains::<Simulated>(), is_predicted, "seed {seed}");
        assert_eq!(at.contains::<Interpolated>(), !is_predicted, "seed {seed}");
    }
}

/// On a client whose simulation hangs things elsewhere than the server does.
#[derive(Resource)]
struct Grabs(bool);

fn grab(
    things: Query<(Entity, Has<ChildOf>), With<Tag>>,
    ships: Query<Entity, (With<Ship>, With<Predicted>)>,
    grabs: Option<Res<Grabs>>,
    mut commands: Commands,
) {
    let (Some(grabs), Ok(ship)) = (grabs, ships.single()) else {
        return;
    };
    for (thing, has_parent) in &things {
        match (grabs.0, has_parent) {
            (true, false) => drop(commands.entity(thing).insert(ChildOf(ship))),
            (false, true) => drop(commands.entity(thing).remove::<ChildOf>()),
            _ => {}
        }
    }
}

fn grabbing(app: &mut App) {
    ships(app);
    app.add_systems(FixedUpdate, grab.after(believe));
}

#[test]
fn a_parent_that_only_a_clients_simulation_gives_or_takes_is_put_back() {
    for by in [PredictedBy::Nobody, PredictedBy::Everyone] {
        for seed in 0..3 {
            let (mut net, ada) = with_ada(grabbing, lossy(seed));
            let ship = ship(&mut net);
            let thing = spawn(&mut net, (Tag(1), by, Place(1.0)));
            net.run(Ticks(60));
            for grabs in [true, false] {
                net.client(ada).insert_resource(Grabs(grabs));
                net.run(Ticks(3));
                let predicted = value::<ChildOf>(&mut net, ada, 1).is_some();
                assert_eq!(predicted, grabs, "{by:?}, seed {seed}: at once");
                net.client(ada).world_mut().remove_resource::<Grabs>();
                net.run(Ticks(120));
                let put_back = value::<ChildOf>(&mut net, ada, 1).is_some();
                assert_eq!(put_back, !grabs, "{by:?}, seed {seed}");
                // Next, the server does what the client had believed.
                let mut thing = net.server.world_mut().entity_mut(thing);
                thing.insert(ChildOf(ship));
                net.run(Ticks(120));
            }
        }
    }
}

#[test]
fn a_copy_that_an_observer_despawns_when_it_changes_hands_harms_nothing() {
    fn despawn<E: EntityEvent, C: Component>(on: On<E, C>, mut commands: Commands) {
        commands.entity(on.event_target()).try_despawn();
    }
    let observed: [fn(&mut App); 7] = [
        |app| {
            app.add_observer(despawn::<Insert, Owner>);
        },
        |app| {
            app.add_observer(despawn::<Remove, Owner>);
        },
        |app| {
            app.add_observer(despawn::<Add, Input<Control>>);
        },
        |app| {
            app.add_observer(despawn::<Remove, Input<Control>>);
        },
        |app| {
            app.add_observer(despawn::<Add, Owned>);
        },
        |app| {
            app.add_observer(despawn::<Remove, Interpolated>);
        },
        |app| {
            app.add_observer(despawn::<Remove, Predicted>);
        },
    ];
    for observe in observed {
        let (mut net, ada) = with_ada(ships, clean());
        let session = net.session(ada).unwrap();
        let entity = spawn(&mut net, (Tag(5), At(1.0), Place(2.0)));
        net.run(Ticks(60));
        assert!(copy(&mut net, ada, 5).is_some());
        observe(net.client(ada));
        on_server(&mut net, entity).insert(OwnedBy(session));
        net.run(Ticks(60));
        on_server(&mut net, entity).remove::<OwnedBy>();
        net.run(Ticks(60));
        // Where it was predicted, that was a prediction: it may be back. At most once, which `copy` checks.
        copy(&mut net, ada, 5);
        assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    }
}

/// Ships that lay mines for good.
fn mines(app: &mut App) {
    fn lay(
        ships: Query<(&Input<Control>, &Owner), (With<Ship>, With<Simulated>)>,
        tick: Res<CurrentTick>,
        mut commands: Commands,
    ) {
        for (input, owner) in &ships {
            if input.fires {
                let key = SpawnKey::new(owner.0.0, tick.0, 0);
                commands.spawn((Tag(77), Replicated, key, At(0.0)));
            }
        }
    }
    app.add_input::<Control>();
    app.replicate::<Tag>();
    app.replicate::<Ship>();
    app.replicate::<At>().predict();
    app.add_systems(FixedUpdate, lay);
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Ship, At(0.0)));
    });
}

fn lay_a_mine(net: &mut TestNet, ada: TestClientId) {
    control(net, ada, 0, true);
    net.run(Ticks(1));
    control(net, ada, 0, false);
    net.run(Ticks(40));
}

#[test]
fn what_a_player_has_spawned_survives_a_lost_link() {
    let (mut net, ada) = with_ada(mines, clean());
    lay_a_mine(&mut net, ada);
    let mine = copy(&mut net, ada, 77).expect("the mine");
    lose_the_link(&mut net, ada, |_| {});
    assert_eq!(copy(&mut net, ada, 77), Some(mine));

    // One of which the server has never heard goes with the link.
    control(&mut net, ada, 0, true);
    net.run(Ticks(1));
    control(&mut net, ada, 0, false);
    net.cut(ada);
    net.run(Ticks(600));
    let seen = tagged(net.client(ada), 77).len();
    assert_eq!(seen, tagged(&mut net.server, 77).len());
}

#[test]
fn what_a_player_has_spawned_and_the_server_hands_on_is_the_other_players() {
    let (mut net, ada) = with_ada(mines, clean());
    let bob = net.join("Bob");
    net.run(Ticks(90));
    lay_a_mine(&mut net, ada);
    let mine = tagged(&mut net.server, 77)[0];
    let (hers, his) = (net.session(ada).unwrap(), net.session(bob).unwrap());
    on_server(&mut net, mine).insert(OwnedBy(hers));
    net.run(Ticks(60));
    let has = |net: &mut TestNet, client| {
        let mine = copy(net, client, 77).unwrap();
        let mine = net.client(client).world().entity(mine);
        [
            mine.contains::<Predicted>(),
            mine.contains::<Interpolated>(),
            mine.contains::<Owned>(),
        ]
    };
    assert_eq!(has(&mut net, ada), [true, false, true]);
    on_server(&mut net, mine).insert(OwnedBy(his));
    net.run(Ticks(60));
    assert_eq!(has(&mut net, ada), [false, true, false]);
    assert_eq!(has(&mut net, bob), [true, false, true]);
}

#[test]
fn an_observer_may_despawn_what_is_just_spawned_early() {
    fn limited(app: &mut App) {
        mines(app);
        app.add_observer(|added: On<Add, Tag>, mut commands: Commands| {
            commands.entity(added.entity).despawn();
        });
    }
    let (mut net, ada) = with_ada_playing(mines, limited, clean());
    for _ in 0..3 {
        lay_a_mine(&mut net, ada);
    }
    assert_eq!(tagged(&mut net.server, 77).len(), 3);
    assert_eq!(tagged(net.client(ada), 77).len(), 0);
}

/// Things that this client's simulation despawns, and the server's does not.
fn mistaken(app: &mut App) {
    app.replicate::<Tag>();
    app.replicate::<At>().predict();
    app.add_systems(
        FixedUpdate,
        |things: Query<Entity, (With<At>, With<Predicted>)>,
         believes: Option<Res<Believes>>,
         mut commands: Commands| {
            if believes.is_some() {
                for thing in &things {
                    commands.entity(thing).despawn();
                }
            }
        },
    );
}

#[test]
fn a_mistaken_despawn_is_taken_back_also_when_the_entity_is_told_anew_meanwhile() {
    let meanwhile: [fn(&mut TestNet, TestClientId, Entity); 3] = [
        |net, _, thing| {
            on_server(net, thing).insert(PredictedBy::Nobody);
        },
        |net, ada, _| net.cut(ada),
        |net, _, thing| {
            let world = net.server.world_mut();
            let red = world.spawn(Room).id();
            world.entity_mut(thing).insert(InRoom(red));
            net.run(Ticks(10));
            on_server(net, thing).remove::<InRoom>();
        },
    ];
    for (case, meanwhile) in meanwhile.into_iter().enumerate() {
        let (mut net, ada) = with_ada(mistaken, clean());
        let thing = spawn(&mut net, (Tag(1), At(1.0), PredictedBy::Everyone));
        net.run(Ticks(60));
        assert!(copy(&mut net, ada, 1).is_some());
        net.client(ada).insert_resource(Believes);
        net.run(Ticks(1));
        net.client(ada).world_mut().remove_resource::<Believes>();
        assert_eq!(copy(&mut net, ada, 1), None);
        meanwhile(&mut net, ada, thing);
        net.run(Ticks(600));
        assert_eq!(value(&mut net, ada, 1), Some(At(1.0)), "case {case}");
    }
}

#[test]
fn a_predicted_copy_that_its_client_disables_follows_the_server_and_goes_on_when_it_is_enabled() {
    let (mut net, ada) = with_ada(ships, clean());
    let ship = ship(&mut net);
    net.run(Ticks(60));
    let world = net.client(ada).world_mut();
    let mut ships = world.query_filtered::<Entity, (With<Ship>, With<Owned>)>();
    let seen = ships.single(world).unwrap();
    world.entity_mut(seen).insert(Disabled);
    let before = stats(&mut net, ada).reconciliations;
    net.server.world_mut().get_mut::<At>(ship).unwrap().0 += 10.0;
    on_server(&mut net, ship).insert(Lock(ship));
    net.run(Ticks(120));
    let at = |net: &mut TestNet| net.client(ada).world().get::<At>(seen).cloned();
    assert_eq!(at(&mut net), Some(At(10.0)));
    assert!(net.client(ada).world().get::<Lock>(seen).is_some());
    let replays = stats(&mut net, ada).reconciliations - before;
    assert!(
        replays <= 1,
        "{replays} corrections of what is not simulated"
    );

    net.client(ada)
        .world_mut()
        .entity_mut(seen)
        .remove::<Disabled>();
    steering_works(&mut net, ada);
}

#[test]
fn what_is_spawned_early_and_disabled_is_not_doubled_by_replays() {
    let (mut net, ada) = with_ada(mines, clean());
    let ship = {
        let world = net.server.world_mut();
        let mut ships = world.query_filtered::<Entity, With<Ship>>();
        ships.single(world).unwrap()
    };
    control(&mut net, ada, 0, true);
    net.run(Ticks(1));
    control(&mut net, ada, 0, false);
    let mine = copy(&mut net, ada, 77);
    let mines = |net: &mut TestNet| {
        let world = net.client(ada).world_mut();
        let mut mines = world.query_filtered::<&Tag, Allow<Disabled>>();
        mines.iter(world).count()
    };
    if let Some(mine) = mine {
        net.client(ada)
            .world_mut()
            .entity_mut(mine)
            .insert(Disabled);
    }
    for _ in 0..30 {
        // Each is corrected, and so replayed.
        net.server.world_mut().get_mut::<At>(ship).unwrap().0 += 1.0;
        net.run(Ticks(1));
        assert!(mines(&mut net) <= 1);
    }
    net.run(Ticks(60));
    assert_eq!(mines(&mut net), 1);
}
