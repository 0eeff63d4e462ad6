//! Typed messages between the two sides.

use bevy::ecs::entity::MapEntities;
use bevy::prelude::*;
use bevy_tandem::message::{MAX_CLIENT_MESSAGE_BYTES, MAX_SERVER_MESSAGE_BYTES, NetMessage};
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::limits::SessionLimits;
use bevy_tandem::server::LimitSettings;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u8);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ordered(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Unordered(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Fleeting(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Blob(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, MapEntities)]
struct Look {
    #[entities]
    at: Entity,
}

fn game(app: &mut App) {
    app.replicate::<Health>();
    app.protocol()
        .add_message::<Ordered>(Channel::ReliableOrdered)
        .add_message::<Unordered>(Channel::ReliableUnordered)
        .add_message::<Fleeting>(Channel::Unreliable)
        .add_message::<Blob>(Channel::ReliableOrdered)
        .add_mapped_message::<Look>(Channel::ReliableOrdered);
}

fn tell_server<M: NetMessage>(net: &mut TestNet, client: TestClientId, message: M) {
    net.client(client)
        .world_mut()
        .write_message(ToServer(message));
}

fn tell_clients<M: NetMessage>(net: &mut TestNet, to: Target, message: M) {
    net.server
        .world_mut()
        .write_message(ToClients { to, message });
}

/// What has come to the server since the last call, which must be in the frame before.
fn server_inbox<M: NetMessage>(net: &mut TestNet) -> Vec<(Entity, M)> {
    let mut messages = net
        .server
        .world_mut()
        .resource_mut::<Messages<FromClient<M>>>();
    messages
        .drain()
        .map(|message| (message.session, message.message))
        .collect()
}

/// The same for a client.
fn inbox<M: NetMessage>(net: &mut TestNet, client: TestClientId) -> Vec<M> {
    let world = net.client(client).world_mut();
    let mut messages = world.resource_mut::<Messages<FromServer<M>>>();
    messages.drain().map(|message| message.0).collect()
}

/// Runs, and gathers what comes to a client.
fn run_and_gather<M: NetMessage>(net: &mut TestNet, client: TestClientId, ticks: u32) -> Vec<M> {
    let mut gathered = Vec::new();
    for _ in 0..ticks {
        net.run(Ticks(1));
        gathered.extend(inbox(net, client));
    }
    gathered
}

fn sorted(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_unstable();
    numbers
}

#[test]
fn channels_keep_their_promises_both_ways_on_a_bad_link() {
    const COUNT: u32 = 400;
    for seed in 0..3 {
        let link = LinkConditions {
            loss: 0.2,
            duplication: 0.1,
            reordering: 0.2,
            ..LinkConditions::mobile().with_seed(seed)
        };
        // More than the server lets clients say by default.
        let config = ServerConfig {
            limits: LimitSettings {
                session: SessionLimits::UNLIMITED,
                ..default()
            },
            ..default()
        };
        let mut net = TestNet::with_config(game, link, config);
        let ada = net.join("Ada");
        net.run(Ticks(300));
        let (mut up, mut down) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
        for tick in 0..COUNT + 400 {
            if tick < COUNT {
                tell_server(&mut net, ada, Ordered(tick));
                tell_server(&mut net, ada, Unordered(tick));
                tell_server(&mut net, ada, Fleeting(tick));
                tell_clients(&mut net, Target::All, Ordered(tick));
                tell_clients(&mut net, Target::All, Unordered(tick));
                tell_clients(&mut net, Target::All, Fleeting(tick));
            }
            net.run(Ticks(1));
            up[0].extend(server_inbox::<Ordered>(&mut net).iter().map(|(_, m)| m.0));
            up[1].extend(server_inbox::<Unordered>(&mut net).iter().map(|(_, m)| m.0));
            up[2].extend(server_inbox::<Fleeting>(&mut net).iter().map(|(_, m)| m.0));
            down[0].extend(inbox::<Ordered>(&mut net, ada).iter().map(|m| m.0));
            down[1].extend(inbox::<Unordered>(&mut net, ada).iter().map(|m| m.0));
            down[2].extend(inbox::<Fleeting>(&mut net, ada).iter().map(|m| m.0));
        }
        let all: Vec<u32> = (0..COUNT).collect();
        for (way, [ordered, unordered, fleeting]) in [("up", up), ("down", down)] {
            assert_eq!(ordered, all, "{way}: all, in order, once");
            assert_ne!(unordered, all, "{way}: each as soon as it is there");
            assert_eq!(sorted(unordered), all, "{way}: all, once");
            let arrived = fleeting.len();
            let fleeting = sorted(fleeting);
            assert!(
                fleeting.windows(2).all(|pair| pair[0] < pair[1]),
                "{way}: at most once"
            );
            assert!((200..400).contains(&arrived), "{way}: {arrived} arrived");
        }
    }
}

#[test]
fn the_server_knows_who_speaks() {
    let mut net = TestNet::new(game, LinkConditions::wifi().with_seed(2));
    let (ada, bob) = (net.join("Ada"), net.join("Bob"));
    net.run(Ticks(60));
    tell_server(&mut net, bob, Ordered(2));
    tell_server(&mut net, ada, Ordered(1));
    let mut received = Vec::new();
    for _ in 0..30 {
        net.run(Ticks(1));
        received.extend(server_inbox::<Ordered>(&mut net));
    }
    let (ada, bob) = (net.session(ada).unwrap(), net.session(bob).unwrap());
    received.sort_by_key(|(_, message)| message.0);
    assert_eq!(received, [(ada, Ordered(1)), (bob, Ordered(2))]);
}

#[test]
fn messages_reach_those_who_are_meant() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let clients = ["Ada", "Bob", "Cyd"].map(|name| net.join(name));
    net.run(Ticks(60));
    let sessions = clients.map(|client| net.session(client).unwrap());
    let room = net.server.world_mut().spawn(Room).id();
    for session in &sessions[1..] {
        net.server
            .world_mut()
            .entity_mut(*session)
            .insert(InRoom(room));
    }
    net.run(Ticks(2));
    let nobody = net.server.world_mut().spawn_empty().id();
    let cases = [
        (Target::All, [true, true, true]),
        (Target::Session(sessions[1]), [false, true, false]),
        (Target::AllExcept(sessions[1]), [true, false, true]),
        (Target::Room(room), [false, true, true]),
        (Target::Session(nobody), [false, false, false]),
        (Target::Room(nobody), [false, false, false]),
        (Target::AllExcept(nobody), [true, true, true]),
    ];
    for (n, (to, meant)) in cases.into_iter().enumerate() {
        tell_clients(&mut net, to, Ordered(n as u32));
        let mut got = [false; 3];
        for _ in 0..20 {
            net.run(Ticks(1));
            for (client, got) in clients.into_iter().zip(&mut got) {
                *got |= !inbox::<Ordered>(&mut net, client).is_empty();
            }
        }
        assert_eq!(got, meant, "{to:?}");
    }
}

#[test]
fn entities_in_messages_are_mapped_both_ways() {
    let mut net = TestNet::new(game, LinkConditions::default());
    // The two worlds number their entities differently.
    net.server
        .world_mut()
        .spawn_batch(vec![Health(0); 9])
        .count();
    let ada = net.join("Ada");
    let target = net.server.world_mut().spawn((Replicated, Health(7))).id();
    net.run(Ticks(60));
    tell_clients(&mut net, Target::All, Look { at: target });
    let looks: Vec<Look> = run_and_gather(&mut net, ada, 20);
    let copy = looks[0].at;
    assert_eq!(
        net.client(ada).world().get::<Health>(copy),
        Some(&Health(7))
    );

    tell_server(&mut net, ada, Look { at: copy });
    let local = net.client(ada).world_mut().spawn_empty().id();
    tell_server(&mut net, ada, Look { at: local });
    let mut received = Vec::new();
    for _ in 0..20 {
        net.run(Ticks(1));
        received.extend(server_inbox::<Look>(&mut net));
    }
    assert_eq!(received[0].1.at, target, "back to the original");
    assert_eq!(
        received[1].1.at,
        Entity::PLACEHOLDER,
        "the server has none for it"
    );

    let unseen = net.server.world_mut().spawn_empty().id();
    tell_clients(&mut net, Target::All, Look { at: unseen });
    let looks: Vec<Look> = run_and_gather(&mut net, ada, 20);
    assert_eq!(looks[0].at, Entity::PLACEHOLDER, "the client has none");
}

#[test]
fn a_client_message_that_is_too_large_is_refused_and_no_other() {
    let mut net = TestNet::new(game, LinkConditions::wifi().with_seed(6));
    let ada = net.join("Ada");
    net.run(Ticks(60));
    let largest = Blob(vec![5; MAX_CLIENT_MESSAGE_BYTES - 4]);
    tell_server(&mut net, ada, Blob(vec![1]));
    tell_server(&mut net, ada, Blob(vec![2; MAX_CLIENT_MESSAGE_BYTES + 1]));
    tell_server(&mut net, ada, Blob(vec![3; 3 << 20]));
    tell_server(&mut net, ada, largest.clone());
    tell_server(&mut net, ada, Blob(vec![4]));
    let mut received = Vec::new();
    for _ in 0..60 {
        net.run(Ticks(1));
        received.extend(server_inbox::<Blob>(&mut net).into_iter().map(|(_, m)| m));
    }
    assert_eq!(received, [Blob(vec![1]), largest, Blob(vec![4])]);
    assert!(net.session(ada).is_some());
}

#[test]
fn a_large_server_message_arrives_whole() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(9));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    let large = Blob((0..200_000_u32).map(|n| (n % 251) as u8).collect());
    tell_clients(&mut net, Target::All, large.clone());
    tell_clients(
        &mut net,
        Target::All,
        Blob(vec![1; MAX_SERVER_MESSAGE_BYTES + 1]),
    );
    tell_clients(&mut net, Target::All, Blob(vec![2]));
    let received: Vec<Blob> = run_and_gather(&mut net, ada, 900);
    assert!(received[0] == large, "byte by byte");
    assert!(received[1..] == [Blob(vec![2])], "one too large is refused");
}

#[test]
fn what_is_written_without_a_connection_is_heard_by_nobody() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(1));
    let ada = net.join("Ada");
    tell_server(&mut net, ada, Ordered(1));
    net.run(Ticks(3));
    tell_server(&mut net, ada, Ordered(2));
    while net.session(ada).is_none() {
        net.run(Ticks(1));
    }
    tell_server(&mut net, ada, Ordered(3));
    let mut received = Vec::new();
    for _ in 0..60 {
        net.run(Ticks(1));
        received.extend(server_inbox::<Ordered>(&mut net).iter().map(|(_, m)| m.0));
    }
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(30));
    tell_server(&mut net, ada, Ordered(4));
    tell_clients(&mut net, Target::All, Ordered(5));
    net.run(Ticks(30));
    net.connect(ada);
    for _ in 0..120 {
        net.run(Ticks(1));
        received.extend(server_inbox::<Ordered>(&mut net).iter().map(|(_, m)| m.0));
        assert_eq!(inbox::<Ordered>(&mut net, ada), []);
    }
    assert_eq!(received, [3], "only what was said to somebody");
}

#[test]
fn writing_more_than_a_channel_holds_does_not_end_the_connection() {
    let mut net = TestNet::new(game, LinkConditions::wifi().with_seed(1));
    let ada = net.join("Ada");
    net.run(Ticks(60));
    for n in 0..200 {
        tell_server(&mut net, ada, Blob(vec![n; 1_000]));
        tell_clients(&mut net, Target::All, Blob(vec![n; 50_000]));
    }
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..3_600 {
        net.run(Ticks(1));
        up.extend(server_inbox::<Blob>(&mut net).iter().map(|(_, m)| m.0[0]));
        down.extend(inbox::<Blob>(&mut net, ada).iter().map(|m| m.0[0]));
    }
    for (way, received) in [("up", up), ("down", down)] {
        assert!(
            received.len() > 30,
            "{way}: what fits arrives: {}",
            received.len()
        );
        assert!(
            received.windows(2).all(|pair| pair[0] < pair[1]),
            "{way}: in order"
        );
    }
    tell_server(&mut net, ada, Ordered(1));
    tell_clients(&mut net, Target::All, Ordered(2));
    let mut heard = 0;
    for _ in 0..60 {
        net.run(Ticks(1));
        heard += server_inbox::<Ordered>(&mut net).len() + inbox::<Ordered>(&mut net, ada).len();
    }
    assert_eq!(heard, 2, "and the channels are free again");
}
