//! Parents and children.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;

#[test]
fn what_is_dropped_by_who_dies_stays() {
    for seed in 0..6 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let carrier = spawn(&mut net, Tag(1));
        let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
        net.run(Ticks(120));
        assert!(value::<ChildOf>(&mut net, ada, 2).is_some());
        net.server.world_mut().entity_mut(item).remove::<ChildOf>();
        net.server.world_mut().despawn(carrier);
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
        assert!(copy(&mut net, ada, 2).is_some(), "seed {seed}: the item");
    }
}

#[test]
fn what_is_dropped_by_a_predicted_player_who_dies_stays() {
    for seed in 0..6 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let session = net.session(ada).unwrap();
        let carrier = spawn(&mut net, (Tag(1), OwnedBy(session)));
        let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
        net.run(Ticks(120));
        assert!(value::<ChildOf>(&mut net, ada, 2).is_some());
        net.server.world_mut().entity_mut(item).remove::<ChildOf>();
        net.server.world_mut().despawn(carrier);
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
        assert!(copy(&mut net, ada, 2).is_some(), "seed {seed}: the item");
    }
}

#[test]
fn what_is_dropped_in_a_crowd_on_a_full_link_stays() {
    fn busy(app: &mut App) {
        game(app);
        app.add_systems(
            FixedUpdate,
            |mut all: Query<&mut Health, With<Simulated>>| {
                for mut health in &mut all {
                    health.0 = health.0.wrapping_add(1);
                }
            },
        );
    }
    for seed in 0..3 {
        let (mut net, ada) = with_ada(busy, lossy(seed));
        for n in 0..1_500 {
            spawn(&mut net, (Tag(100 + n), Health(n)));
        }
        let mut items = Vec::new();
        for n in 0..20 {
            let carrier = spawn(&mut net, (Tag(2 * n), Health(0)));
            let item = spawn(&mut net, (Tag(2 * n + 1), Health(0), ChildOf(carrier)));
            items.push((carrier, item));
        }
        net.run(Ticks(600));
        let known = (0..40)
            .filter(|n| copy(&mut net, ada, *n).is_some())
            .count();
        assert_eq!(
            known, 40,
            "seed {seed}: all are there, and children of theirs"
        );
        for (carrier, item) in items {
            net.server.world_mut().entity_mut(item).remove::<ChildOf>();
            net.server.world_mut().despawn(carrier);
            net.run(Ticks(7));
        }
        net.run(Ticks(300));
        let left: Vec<_> = (0..40)
            .filter(|n| copy(&mut net, ada, *n).is_some())
            .collect();
        let items: Vec<_> = (0..20).map(|n| 2 * n + 1).collect();
        assert_eq!(left, items, "seed {seed}");
    }
}

#[test]
fn a_new_parent_that_is_not_replicated_is_no_parent() {
    let (mut net, ada) = with_ada(game, clean());
    let parent = spawn(&mut net, Tag(1));
    let child = spawn(&mut net, (Tag(2), ChildOf(parent)));
    net.run(Ticks(60));
    assert!(value::<ChildOf>(&mut net, ada, 2).is_some());
    let hidden = net.server.world_mut().spawn_empty().id();
    net.server
        .world_mut()
        .entity_mut(child)
        .insert(ChildOf(hidden));
    net.run(Ticks(60));
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), None, "of no copy");
}

#[test]
fn a_child_in_view_outlives_a_parent_that_leaves_the_view() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    let parent = spawn(&mut net, (Tag(1), InRoom(red)));
    let child = spawn(&mut net, (Tag(2), Health(1), InRoom(red), ChildOf(parent)));
    net.run(Ticks(60));
    let seen = copy(&mut net, ada, 1).unwrap();
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(seen)));
    net.server
        .world_mut()
        .entity_mut(parent)
        .insert(InRoom(blue));
    net.run(Ticks(60));
    net.server.world_mut().get_mut::<Health>(child).unwrap().0 = 2;
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 1), None);
    assert_eq!(
        value::<Health>(&mut net, ada, 2),
        Some(Health(2)),
        "still there"
    );
    net.server
        .world_mut()
        .entity_mut(parent)
        .insert(InRoom(red));
    net.run(Ticks(60));
    let again = copy(&mut net, ada, 1).unwrap();
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(again)));
}

#[test]
fn what_was_dropped_while_a_client_was_away_is_there_when_it_is_back() {
    let (mut net, ada) = with_ada(game, clean());
    let carrier = spawn(&mut net, Tag(1));
    let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
    net.run(Ticks(60));
    net.cut(ada);
    net.run(Ticks(10));
    net.server.world_mut().entity_mut(item).remove::<ChildOf>();
    net.server.world_mut().despawn(carrier);
    net.run(Ticks(600));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(copy(&mut net, ada, 1), None);
    assert!(copy(&mut net, ada, 2).is_some());
}

#[test]
fn grandchildren_may_swap_places() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let a = spawn(&mut net, Tag(1));
        let b = spawn(&mut net, (Tag(2), ChildOf(a)));
        let c = spawn(&mut net, (Tag(3), ChildOf(b)));
        net.run(Ticks(120));
        // c - b - a, in one tick.
        let world = net.server.world_mut();
        world.entity_mut(c).remove::<ChildOf>();
        world.entity_mut(b).insert(ChildOf(c));
        world.entity_mut(a).insert(ChildOf(b));
        net.run(Ticks(180));
        let copies: Vec<_> = (1..4).map(|n| copy(&mut net, ada, n).unwrap()).collect();
        assert_eq!(value::<ChildOf>(&mut net, ada, 3), None);
        assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(copies[2])));
        assert_eq!(value::<ChildOf>(&mut net, ada, 1), Some(ChildOf(copies[1])));
    }
}

#[test]
fn a_child_of_what_is_no_longer_replicated_lives_on() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let parent = spawn(&mut net, Tag(1));
        let child = spawn(&mut net, (Tag(2), Health(1), ChildOf(parent)));
        let grandchild = spawn(&mut net, (Tag(3), ChildOf(child)));
        net.run(Ticks(120));
        on_server(&mut net, parent).remove::<Replicated>();
        net.run(Ticks(60));
        change::<Health>(&mut net, child, |health| health.0 = 2);
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
        assert_eq!(
            value::<Health>(&mut net, ada, 2),
            Some(Health(2)),
            "seed {seed}"
        );
        assert_eq!(value::<ChildOf>(&mut net, ada, 2), None, "seed {seed}");
        let seen = copy(&mut net, ada, 2).unwrap();
        assert_eq!(value::<ChildOf>(&mut net, ada, 3), Some(ChildOf(seen)));
        on_server(&mut net, parent).insert(Replicated);
        net.run(Ticks(120));
        let again = copy(&mut net, ada, 1).unwrap();
        assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(again)));
        let _ = grandchild;
    }
}

#[test]
fn a_child_is_there_before_its_parent_and_is_given_it_later() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let (red, blue) = two_rooms(&mut net, session);
    let parent = spawn(&mut net, (Tag(1), InRoom(blue)));
    let child = spawn(&mut net, (Tag(2), InRoom(red), ChildOf(parent)));
    let plain = net.server.world_mut().spawn(Tag(4)).id();
    spawn(&mut net, (Tag(3), InRoom(red), ChildOf(plain)));
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 2).is_some());
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), None);
    assert_eq!(value::<ChildOf>(&mut net, ada, 3), None);
    on_server(&mut net, parent).insert(InRoom(red));
    on_server(&mut net, plain).insert(Replicated);
    net.run(Ticks(60));
    let parents = [1, 4].map(|tag| copy(&mut net, ada, tag).unwrap());
    assert_eq!(
        value::<ChildOf>(&mut net, ada, 2),
        Some(ChildOf(parents[0]))
    );
    assert_eq!(
        value::<ChildOf>(&mut net, ada, 3),
        Some(ChildOf(parents[1]))
    );
    // Taken off before the parent leaves again: it stays where it is.
    on_server(&mut net, child).remove::<ChildOf>();
    on_server(&mut net, parent).insert(InRoom(blue));
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 2).is_some());
}

#[test]
fn who_dies_takes_along_what_is_below() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let mut at = spawn(&mut net, Tag(0));
        let top = at;
        for n in 1..6 {
            at = spawn(&mut net, (Tag(n), Place(1.0), ChildOf(at)));
        }
        net.run(Ticks(120));
        on_server(&mut net, top).despawn();
        net.run(Ticks(120));
        let left: Vec<_> = (0..6)
            .filter(|n| copy(&mut net, ada, *n).is_some())
            .collect();
        assert_eq!(left, Vec::<u32>::new(), "seed {seed}");
    }
}

#[test]
fn what_goes_over_to_another_in_the_tick_in_which_its_parent_dies_is_with_that() {
    for seed in 0..6 {
        for by in [PredictedBy::Nobody, PredictedBy::Everyone] {
            let (mut net, ada) = with_ada(game, lossy(seed));
            let old = spawn(&mut net, (Tag(1), by));
            let new = spawn(&mut net, Tag(2));
            let item = spawn(&mut net, (Tag(3), by, ChildOf(old)));
            let below = spawn(&mut net, (Tag(4), ChildOf(item)));
            net.run(Ticks(120));
            on_server(&mut net, item).insert(ChildOf(new));
            on_server(&mut net, old).despawn();
            net.run(Ticks(120));
            assert_eq!(copy(&mut net, ada, 1), None);
            let copies: Vec<_> = (2..5).map(|n| copy(&mut net, ada, n)).collect();
            assert!(
                copies.iter().all(Option::is_some),
                "seed {seed}: {copies:?}"
            );
            let [new, item] = [copies[0].unwrap(), copies[1].unwrap()];
            assert_eq!(value::<ChildOf>(&mut net, ada, 3), Some(ChildOf(new)));
            assert_eq!(value::<ChildOf>(&mut net, ada, 4), Some(ChildOf(item)));
            let _ = below;
        }
    }
}

#[test]
fn what_a_leaving_player_dropped_stays() {
    for seed in 0..4 {
        let mut net = TestNet::new(game, lossy(seed));
        let (ada, bob) = (net.join("Ada"), net.join("Bob"));
        net.run(Ticks(120));
        let session = net.session(bob).unwrap();
        let carrier = spawn(&mut net, (Tag(1), OwnedBy(session)));
        let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
        net.run(Ticks(120));
        net.client(bob).world_mut().trigger(Disconnect);
        net.server
            .world_mut()
            .add_observer(move |_: On<SessionLeft>, mut commands: Commands| {
                commands.entity(item).remove::<ChildOf>();
            });
        net.run(Ticks(240));
        assert_eq!(copy(&mut net, ada, 1), None, "seed {seed}");
        assert!(copy(&mut net, ada, 2).is_some(), "seed {seed}");
    }
}

#[test]
fn a_parent_changed_again_and_again_is_the_last_one() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let parents: Vec<_> = (0..4).map(|n| spawn(&mut net, Tag(n))).collect();
        let child = spawn(&mut net, (Tag(9), Place(0.0)));
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut last = None;
        for n in 0..120 {
            for _ in 0..rng.u8(0..3) {
                last = (rng.u8(0..4) > 0).then(|| rng.usize(0..4));
                match last {
                    Some(parent) => on_server(&mut net, child).insert(ChildOf(parents[parent])),
                    None => on_server(&mut net, child).remove::<ChildOf>(),
                };
            }
            change::<Place>(&mut net, child, |place| place.0 = n as f32);
            net.run(Ticks(1));
        }
        net.run(Ticks(120));
        let wanted = last.map(|n| ChildOf(copy(&mut net, ada, n as u32).unwrap()));
        assert_eq!(value::<ChildOf>(&mut net, ada, 9), wanted, "seed {seed}");
    }
}

#[test]
fn what_a_client_hangs_below_a_copy_goes_with_it_and_nothing_else() {
    let (mut net, ada) = with_ada(game, clean());
    let parent = spawn(&mut net, Tag(1));
    let child = spawn(&mut net, (Tag(2), ChildOf(parent)));
    net.run(Ticks(60));
    let copies = [1, 2].map(|tag| copy(&mut net, ada, tag).unwrap());
    let world = net.client(ada).world_mut();
    let wheels = copies.map(|copy| world.spawn(ChildOf(copy)).id());
    on_server(&mut net, child).remove::<ChildOf>();
    net.run(Ticks(1));
    on_server(&mut net, parent).despawn();
    net.run(Ticks(60));
    let is_there = wheels.map(|wheel| net.client(ada).world().get_entity(wheel).is_ok());
    assert_eq!(is_there, [false, true]);
    assert_eq!(copy(&mut net, ada, 2), Some(copies[1]));
}

#[test]
fn a_child_that_comes_while_its_parent_is_about_to_leave_is_below_it_when_that_stays() {
    for wait in 0..12 {
        let (mut net, ada) = with_ada(game, clean());
        let session = net.session(ada).unwrap();
        let (red, blue) = two_rooms(&mut net, session);
        let parent = spawn(&mut net, (Tag(1), Place(0.0), InRoom(red)));
        net.run(Ticks(60));
        on_server(&mut net, parent).insert(InRoom(blue));
        net.run(Ticks(wait));
        let child = spawn(
            &mut net,
            (Tag(2), Aim(parent), InRoom(red), ChildOf(parent)),
        );
        net.run(Ticks(2));
        on_server(&mut net, parent).insert(InRoom(red));
        net.run(Ticks(120));
        let seen = copy(&mut net, ada, 1).unwrap();
        assert_eq!(value(&mut net, ada, 2), Some(ChildOf(seen)), "after {wait}");
        assert_eq!(value(&mut net, ada, 2), Some(Aim(seen)), "after {wait}");
        let _ = child;
    }
}

#[test]
fn entities_that_hang_below_one_another_stop_nobody() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let (red, blue) = two_rooms(&mut net, session);
    let above = spawn(&mut net, Tag(1));
    let below = spawn(&mut net, (Tag(2), ChildOf(above), Place(1.0)));
    let beside = spawn(&mut net, (Tag(3), ChildOf(below)));
    net.run(Ticks(60));
    // Bevy does not forbid it.
    on_server(&mut net, above).insert(ChildOf(below));
    net.run(Ticks(60));
    on_server(&mut net, beside).insert(InRoom(blue));
    on_server(&mut net, below).insert(Place(2.0));
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 3), None);
    on_server(&mut net, above).remove::<ChildOf>();
    on_server(&mut net, beside).insert(InRoom(red));
    net.run(Ticks(60));
    assert_eq!(value::<ChildOf>(&mut net, ada, 1), None);
    let parent = copy(&mut net, ada, 2).map(ChildOf);
    assert_eq!(value(&mut net, ada, 3), parent);

    // On a client, with an entity of its own, when the copy goes.
    let carrier = copy(&mut net, ada, 3).unwrap();
    let world = net.client(ada).world_mut();
    let own = world.spawn(ChildOf(carrier)).id();
    world.entity_mut(carrier).insert(ChildOf(own));
    net.server.world_mut().despawn(beside);
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 3), None);
}
