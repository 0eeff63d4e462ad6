//! What becomes of components and entities that come, change and go.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;

#[test]
fn a_component_removed_and_inserted_in_one_tick_has_the_new_value() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let entity = spawn(&mut net, (Tag(1), Health(1)));
        net.run(Ticks(60));
        let mut at = net.server.world_mut().entity_mut(entity);
        at.remove::<Health>();
        at.insert(Health(2));
        net.run(Ticks(120));
        assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
        // And inserted, then removed.
        let mut at = net.server.world_mut().entity_mut(entity);
        at.insert(Health(3));
        at.remove::<Health>();
        net.run(Ticks(120));
        assert_eq!(value::<Health>(&mut net, ada, 1), None);
    }
}

#[test]
fn an_interpolated_component_that_went_while_it_moved_comes_back_with_its_new_value() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Place(0.0)));
    net.run(Ticks(30));
    for n in 1..=30 {
        net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        net.run(Ticks(1));
    }
    net.server.world_mut().entity_mut(entity).remove::<Place>();
    net.run(Ticks(60));
    assert_eq!(value::<Place>(&mut net, ada, 1), None);
    net.server
        .world_mut()
        .entity_mut(entity)
        .insert(Place(100.0));
    net.run(Ticks(120));
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(100.0)));
}

#[test]
fn an_interpolated_component_replaced_in_one_tick_while_it_moves_settles() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Place(0.0)));
    net.run(Ticks(30));
    for n in 1..=30 {
        net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        net.run(Ticks(1));
    }
    let mut at = net.server.world_mut().entity_mut(entity);
    at.remove::<Place>();
    at.insert(Place(100.0));
    net.run(Ticks(120));
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(100.0)));
}

#[test]
fn what_comes_and_goes_within_a_tick_leaves_nothing() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        for n in 0..20 {
            let entity = spawn(&mut net, (Tag(1), Health(n)));
            net.server.world_mut().despawn(entity);
            net.run(Ticks(1));
        }
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
    }
}

#[test]
fn despawn_and_respawn_in_one_tick_leaves_one_with_the_new_values() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let mut entity = spawn(&mut net, (Tag(1), Health(0)));
        for n in 1..30 {
            net.server.world_mut().despawn(entity);
            entity = spawn(&mut net, (Tag(1), Health(n)));
            net.run(Ticks(n % 5));
        }
        net.run(Ticks(180));
        assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(29)));
    }
}

#[test]
fn a_change_in_the_frame_of_the_spawn_is_not_lost() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 2;
    net.run(Ticks(1));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 3;
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(3)));
}

#[test]
fn what_was_there_before_anybody_joined_is_told_empty_entities_too() {
    let mut net = TestNet::new(game, clean());
    spawn(&mut net, ());
    let gone = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    net.server.world_mut().entity_mut(gone).remove::<Health>();
    net.run(Ticks(60));
    let ada = net.join("Ada");
    net.run(Ticks(60));
    let world = net.client(ada).world_mut();
    let count = world.query::<&Replicated>().iter(world).count();
    assert_eq!(count, 2);
    assert_eq!(value::<Health>(&mut net, ada, 1), None, "removed before");
}

#[test]
fn a_crowd_that_is_there_for_one_tick_is_gone_afterwards() {
    for seed in 0..2 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let crowd: Vec<_> = (0..3_000)
            .map(|n| spawn(&mut net, (Tag(n), Health(n))))
            .collect();
        net.run(Ticks(3));
        for entity in &crowd[10..] {
            net.server.world_mut().despawn(*entity);
        }
        net.run(Ticks(300));
        let world = net.client(ada).world_mut();
        let mut left: Vec<_> = world.query::<&Tag>().iter(world).map(|tag| tag.0).collect();
        left.sort_unstable();
        assert_eq!(left, (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn the_marker_taken_and_given_back_in_one_tick_leaves_one_live_copy() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    let mut at = net.server.world_mut().entity_mut(entity);
    at.remove::<Replicated>();
    at.insert(Replicated);
    net.run(Ticks(60));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 2;
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
    assert!(net.server.world().get::<Simulated>(entity).is_some());
}

/// What observers are told of, on a client.
fn observed(app: &mut App) {
    game(app);
    tell_of::<Health>(app);
    tell_of::<Aim>(app);
    tell_of::<Tag>(app);
}

#[test]
fn observers_see_the_net_difference_of_two_snapshots() {
    let (mut net, ada) = with_ada(observed, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    told(&mut net, ada);
    for n in 0..3 {
        let mut at = on_server(&mut net, entity);
        at.remove::<Health>();
        at.insert(Health(10 + n));
        // And what comes and goes.
        at.insert(Aim(entity));
        at.remove::<Aim>();
    }
    net.run(Ticks(60));
    let told = told(&mut net, ada);
    assert_eq!(
        told.0,
        [
            ("remove", "Health", Some(1)),
            ("add", "Health", Some(1)),
            ("insert", "Health", Some(1)),
        ]
    );
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(12)));
}

#[test]
fn an_entity_that_comes_and_goes_between_two_snapshots_is_not_told_of() {
    let (mut net, ada) = with_ada(observed, clean());
    told(&mut net, ada);
    for _ in 0..10 {
        let entity = spawn(&mut net, (Tag(1), Health(1)));
        on_server(&mut net, entity).despawn();
        net.run(Ticks(2));
    }
    net.run(Ticks(60));
    assert_eq!(told(&mut net, ada).0, []);
}

#[test]
fn what_is_replaced_in_one_tick_has_the_new_value_whatever_it_is_and_whoever_predicts_it() {
    fn predicted(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Health>().predict();
        app.replicate::<Place>().predict().interpolate();
        app.replicate::<Mode>().predict();
        app.replicate::<Big>();
        app.replicate::<Transform>()
            .quantize(TransformCodec::default())
            .predict()
            .interpolate();
    }
    let by = [
        PredictedBy::Owner,
        PredictedBy::Everyone,
        PredictedBy::Nobody,
    ];
    for (seed, by) in by.into_iter().enumerate() {
        for conditions in [clean(), lossy(seed as u64)] {
            let (mut net, ada) = with_ada(predicted, conditions);
            let all = |n: u32| {
                let size = 300 + n as usize;
                (
                    (Health(n), Place(n as f32), Mode(n), Big(vec![7; size])),
                    Transform::from_xyz(n as f32, 0.0, 0.0),
                )
            };
            let session = net.session(ada).unwrap();
            let entity = spawn(&mut net, (Tag(1), OwnedBy(session), by, all(1)));
            net.run(Ticks(60));
            for n in 2..30 {
                let mut at = on_server(&mut net, entity);
                at.remove::<((Health, Place, Mode, Big), Transform)>();
                at.insert(all(n));
                net.run(Ticks(n % 4));
            }
            net.run(Ticks(240));
            let what = format!("{by:?}, seed {seed}");
            assert_eq!(value(&mut net, ada, 1), Some(Health(29)), "{what}");
            assert_eq!(value(&mut net, ada, 1), Some(Place(29.0)), "{what}");
            assert_eq!(value(&mut net, ada, 1), Some(Mode(29)), "{what}");
            assert_eq!(value(&mut net, ada, 1), Some(Big(vec![7; 329])), "{what}");
            let at = value::<Transform>(&mut net, ada, 1).unwrap();
            assert_eq!(at.translation.x, 29.0, "{what}");
            on_server(&mut net, entity).remove::<((Health, Place, Mode, Big), Transform)>();
            net.run(Ticks(240));
            let copy = copy(&mut net, ada, 1).unwrap();
            let at = net.client(ada).world().entity(copy);
            assert!(!at.contains::<Health>(), "{what}");
            assert!(!at.contains::<Place>(), "{what}");
            assert!(!at.contains::<Mode>(), "{what}");
            assert!(!at.contains::<Big>(), "{what}");
            assert!(!at.contains::<Transform>(), "{what}");
        }
    }
}

#[test]
fn insertions_and_removals_of_what_is_drawn_in_the_past_happen_there_and_others_on_arrival() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(0), Mode(0), Place(0.0)));
    for n in 0..60 {
        change::<Place>(&mut net, entity, |place| place.0 = n as f32);
        net.run(Ticks(1));
    }
    let mut at = on_server(&mut net, entity);
    at.remove::<Place>().insert((Health(1), Mode(1)));
    let mut frames = [None; 3];
    for frame in 0..60 {
        net.run(Ticks(1));
        let has_happened = [
            value::<Health>(&mut net, ada, 1) == Some(Health(1)),
            value::<Mode>(&mut net, ada, 1) == Some(Mode(1)),
            value::<Place>(&mut net, ada, 1).is_none(),
        ];
        for (at, has_happened) in frames.iter_mut().zip(has_happened) {
            if has_happened && at.is_none() {
                *at = Some(frame);
            }
        }
    }
    let [on_arrival, stepped, removed] = frames.map(|frame| frame.expect("it happens"));
    assert_eq!(stepped, removed, "in one moment");
    assert!(on_arrival < stepped, "{on_arrival}, then {stepped}");
    // And back.
    on_server(&mut net, entity).insert((Place(500.0), Mode(2), Health(2)));
    let mut last = (false, false);
    for _ in 0..60 {
        net.run(Ticks(1));
        let place = value::<Place>(&mut net, ada, 1);
        assert!(place.is_none() || place == Some(Place(500.0)), "{place:?}");
        last = (
            place.is_some(),
            value::<Mode>(&mut net, ada, 1) == Some(Mode(2)),
        );
        assert_eq!(last.0, last.1, "in one moment");
    }
    assert_eq!(last, (true, true));
}

#[test]
fn a_predicted_copy_gets_everything_on_arrival() {
    fn predicted(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Health>();
        app.replicate::<Mode>().interpolate_step();
        app.replicate::<Place>().predict().interpolate();
    }
    let (mut net, ada) = with_ada(predicted, clean());
    let entity = spawn(&mut net, (Tag(1), PredictedBy::Everyone, Place(1.0)));
    net.run(Ticks(60));
    on_server(&mut net, entity).insert((Health(1), Mode(1)));
    for _ in 0..60 {
        net.run(Ticks(1));
        let health = value::<Health>(&mut net, ada, 1).is_some();
        assert_eq!(health, value::<Mode>(&mut net, ada, 1).is_some());
    }
    assert_eq!(value::<Mode>(&mut net, ada, 1), Some(Mode(1)));
}

#[test]
fn what_goes_and_comes_several_times_is_right_after_a_slow_frame() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Place(0.0), Mode(0)));
    net.run(Ticks(60));
    for last in [true, false] {
        net.set_frame_rate(ada, 2.0);
        for n in 0..60 {
            let mut at = on_server(&mut net, entity);
            match n % 4 < 2 {
                true => at.remove::<(Place, Mode)>(),
                false => at.insert((Place(n as f32), Mode(n))),
            };
            net.run(Ticks(2));
        }
        let mut at = on_server(&mut net, entity);
        match last {
            true => at.insert((Place(70.0), Mode(70))),
            false => at.remove::<(Place, Mode)>(),
        };
        net.run(Ticks(120));
        net.set_frame_rate(ada, 60.0);
        net.run(Ticks(120));
        assert_eq!(value(&mut net, ada, 1), last.then_some(Place(70.0)));
        assert_eq!(value(&mut net, ada, 1), last.then_some(Mode(70)));
    }
}

#[test]
fn a_marker_that_an_observer_takes_back_at_once_leaves_nothing() {
    let (mut net, ada) = with_ada(game, clean());
    net.server
        .world_mut()
        .add_observer(|added: On<Add, Tag>, mut commands: Commands| {
            commands.entity(added.entity).remove::<Replicated>();
        });
    let world = net.server.world_mut();
    let secret = world.spawn((Tag(1), Replicated)).id();
    assert!(!world.entity(secret).contains::<Simulated>());
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 1), None);

    // Given back later, it is replicated like any other.
    on_server(&mut net, secret).insert(Replicated);
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 1).is_some());
    assert!(on_server(&mut net, secret).contains::<Simulated>());
}
