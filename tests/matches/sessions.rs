//! Who comes, goes, and is sent away.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;
use crate::ships::*;

#[test]
fn who_leaves_in_the_frame_of_connecting_leaves_nothing_and_may_come_again() {
    let mut net = TestNet::new(ships, clean());
    let ada = net.join("Ada");
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(240));
    assert_eq!(sessions(&mut net), 0);
    assert_eq!(state(&mut net, ada), ConnectionState::Disconnected);
    for frames in 0..12 {
        net.connect(ada);
        net.run(Ticks(frames));
        net.client(ada).world_mut().trigger(Disconnect);
        net.run(Ticks(1));
    }
    net.run(Ticks(400));
    assert_eq!(sessions(&mut net), 0);
    net.connect(ada);
    net.run(Ticks(120));
    assert_eq!(sessions(&mut net), 1);
    steering_works(&mut net, ada);
}

#[test]
fn connecting_twice_leaves_one_session() {
    for frames in [0, 1, 3, 7, 60] {
        let mut net = TestNet::new(ships, clean());
        let ada = net.join("Ada");
        net.run(Ticks(frames));
        net.connect(ada);
        net.run(Ticks(600));
        assert_eq!(sessions(&mut net), 1, "{frames}");
        steering_works(&mut net, ada);
    }
}

#[test]
fn a_session_that_the_game_despawns_ends_for_its_client_too() {
    let (mut net, ada) = with_ada(ships, clean());
    let session = net.session(ada).unwrap();
    net.server.world_mut().despawn(session);
    net.run(Ticks(60));
    assert_eq!(sessions(&mut net), 0);
    assert_ne!(state(&mut net, ada), ConnectionState::Connected);
    // And the server still lets people in.
    let bob = net.join("Bob");
    net.run(Ticks(240));
    assert_eq!(state(&mut net, bob), ConnectionState::Connected);
}

#[test]
fn who_leaves_while_being_spawned_for_leaves_nothing() {
    for frames in 0..20 {
        let mut net = TestNet::new(ships, clean());
        let ada = net.join("Ada");
        net.run(Ticks(frames));
        net.client(ada).world_mut().trigger(Disconnect);
        net.run(Ticks(600));
        assert_eq!(sessions(&mut net), 0, "{frames}");
        let world = net.server.world_mut();
        assert_eq!(world.query::<&Ship>().iter(world).count(), 0, "{frames}");
        let world = net.client(ada).world_mut();
        assert_eq!(world.query::<&Replicated>().iter(world).count(), 0);
    }
}

#[test]
fn who_goes_to_a_younger_server_is_predicted_and_shown_there() {
    let (mut net, ada) = with_ada(ships, clean());
    net.run(Ticks(2_000));
    let mut other = TestNet::new(ships, clean());
    // Local links want all apps to have one clock; its ticks are still young.
    other
        .server
        .world_mut()
        .resource_mut::<Time<Virtual>>()
        .pause();
    other.run(Ticks(2_090));
    other
        .server
        .world_mut()
        .resource_mut::<Time<Virtual>>()
        .unpause();
    let entity = spawn(&mut other, (Tag(1), Place(0.0)));
    let link = other.connector().connect();
    net.connect_over(ada, link);
    let both = |net: &mut TestNet, other: &mut TestNet, ticks: u32| {
        for _ in 0..ticks {
            other.run(Ticks(1));
            net.run(Ticks(1));
        }
    };
    both(&mut net, &mut other, 120);
    assert_eq!(reason(&mut net, ada), "Connected None");
    assert_eq!(sessions(&mut net), 0, "and has left the old one");
    control(&mut net, ada, 1, false);
    for n in 0..60 {
        other.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        both(&mut net, &mut other, 1);
    }
    control(&mut net, ada, 0, false);
    both(&mut net, &mut other, 90);
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(59.0)));
    let real = real(&mut other);
    assert!((real - 7.5).abs() < 0.7, "{real}");
    assert_eq!(own(&mut net, ada), real);
}

#[test]
fn a_message_counter_far_beyond_16_bits_goes_on() {
    // 70,000 ticks: datagram numbers wrap.
    let (mut net, ada) = with_ada(ships, lossy(2));
    let entity = spawn(&mut net, (Tag(1), Place(0.0)));
    for n in 0..70_000 {
        if n % 10 == 0 {
            net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        }
        net.run(Ticks(1));
    }
    net.run(Ticks(60));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(69_990.0)));
    steering_works(&mut net, ada);
}

#[test]
fn kicks_of_nobody_and_twice_harm_nothing() {
    let (mut net, ada) = with_ada(ships, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let kick = |session| Kick {
        session,
        reason: "enough".into(),
    };
    world.trigger(kick(Entity::PLACEHOLDER));
    world.trigger(kick(session));
    world.trigger(kick(session));
    net.run(Ticks(1));
    net.server.world_mut().trigger(kick(session));
    net.run(Ticks(120));
    assert_eq!(sessions(&mut net), 0);
    assert!(
        reason(&mut net, ada).starts_with("Disconnected Some(Kicked"),
        "{}",
        reason(&mut net, ada)
    );
}

#[test]
fn a_long_reason_for_a_kick_is_read() {
    let (mut net, ada) = with_ada(ships, clean());
    let session = net.session(ada).unwrap();
    net.server.world_mut().trigger(Kick {
        session,
        reason: "x".repeat(1_200),
    });
    net.run(Ticks(600));
    let seen = reason(&mut net, ada);
    assert!(seen.starts_with("Disconnected Some(Kicked"), "{seen}");
}
