//! What is said, and when it is heard.

use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;
use serde::{Deserialize, Serialize};

use crate::game::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bevy::ecs::entity::MapEntities)]
struct Hit {
    #[entities]
    whom: Entity,
    tag: u32,
}

#[derive(Resource, Default)]
struct Heard {
    notes: Vec<u32>,
    /// Tags of who was meant, and of who was named here.
    hits: Vec<(u32, Option<u32>)>,
    fixed: Vec<u32>,
    /// Note, and the health of the only entity that has one.
    with_health: Vec<(u32, Option<u32>)>,
}

fn talk(app: &mut App) {
    game(app);
    app.protocol()
        .add_message::<Note>(Channel::ReliableOrdered)
        .add_mapped_message::<Hit>(Channel::ReliableOrdered);
    app.init_resource::<Heard>();
}

fn listening(app: &mut App) {
    talk(app);
    app.add_systems(
        Update,
        |mut notes: MessageReader<FromServer<Note>>,
         mut hits: MessageReader<FromServer<Hit>>,
         tags: Query<&Tag>,
         health: Query<&Health>,
         mut heard: ResMut<Heard>| {
            for note in notes.read() {
                heard.notes.push(note.0.0);
                let health = health.single().ok().map(|health| health.0);
                heard.with_health.push((note.0.0, health));
            }
            for hit in hits.read() {
                let named = tags.get(hit.0.whom).ok().map(|tag| tag.0);
                heard.hits.push((hit.0.tag, named));
            }
        },
    );
    app.add_systems(
        FixedUpdate,
        |mut notes: MessageReader<FromServer<Note>>, mut heard: ResMut<Heard>| {
            heard.fixed.extend(notes.read().map(|note| note.0.0));
        },
    );
}

fn listener(name: &str) -> ClientConfig {
    ClientConfig {
        name: name.into(),
        ..default()
    }
}

fn tell(net: &mut TestNet, to: Target, note: u32) {
    net.server.world_mut().write_message(ToClients {
        to,
        message: Note(note),
    });
}

#[test]
fn what_is_said_to_who_joins_in_that_very_frame_is_heard_once() {
    fn greeting(app: &mut App) {
        talk(app);
        app.add_observer(
            |joined: On<SessionJoined>, mut notes: MessageWriter<ToClients<Note>>| {
                let mut tell = |to, note| {
                    notes.write(ToClients {
                        to,
                        message: Note(note),
                    });
                };
                tell(Target::Session(joined.entity), 1);
                tell(Target::All, 2);
                tell(Target::AllExcept(joined.entity), 3);
            },
        );
    }
    for seed in 0..4 {
        let mut net = TestNet::new(greeting, lossy(seed));
        let ada = net.join_with(listening, listener("Ada"));
        net.run(Ticks(240));
        let heard = net.client(ada).world().resource::<Heard>();
        assert_eq!(heard.notes, [1, 2]);
        assert_eq!(heard.fixed, [1, 2]);
    }
}

#[test]
fn systems_in_fixed_update_hear_every_message_once_at_any_frame_rate() {
    for fps in [15.0, 60.0, 240.0] {
        let mut net = TestNet::new(talk, lossy(1));
        let ada = net.join_with(listening, listener("Ada"));
        net.set_frame_rate(ada, fps);
        net.run(Ticks(240));
        for n in 0..200 {
            tell(&mut net, Target::All, n);
            net.run(Ticks(1));
        }
        net.run(Ticks(240));
        let heard = net.client(ada).world().resource::<Heard>();
        assert_eq!(heard.fixed, (0..200).collect::<Vec<_>>(), "{fps}");
        assert_eq!(heard.notes, heard.fixed, "{fps}");
    }
}

#[test]
fn a_message_about_what_is_gone_names_no_stranger() {
    let mut strangers = Vec::new();
    for seed in 0..8 {
        let link = LinkConditions {
            latency: Duration::from_millis(5),
            loss: 0.3,
            seed,
            ..default()
        };
        let mut net = TestNet::new(talk, link);
        let ada = net.join_with(listening, listener("Ada"));
        net.run(Ticks(120));
        for n in 0..60 {
            let victim = spawn(&mut net, Tag(n));
            net.run(Ticks(20));
            net.server.world_mut().write_message(ToClients {
                to: Target::All,
                message: Hit {
                    whom: victim,
                    tag: n,
                },
            });
            net.run(Ticks(1));
            net.server.world_mut().despawn(victim);
            let mut newcomers = Vec::new();
            for _ in 0..40 {
                newcomers.push(spawn(&mut net, Tag(1_000 + n)));
                net.run(Ticks(1));
            }
            for newcomer in newcomers {
                net.server.world_mut().despawn(newcomer);
            }
            net.run(Ticks(20));
        }
        net.run(Ticks(300));
        let heard = net.client(ada).world().resource::<Heard>();
        assert_eq!(heard.hits.len(), 60);
        let wrong = heard
            .hits
            .iter()
            .filter(|(tag, named)| named.is_some_and(|named| named != *tag));
        strangers.extend(wrong.map(|hit| (seed, *hit)));
    }
    assert_eq!(strangers, [], "hits on those who were not hit");
}

#[test]
fn a_message_may_name_what_was_spawned_in_its_frame() {
    let mut net = TestNet::new(talk, clean());
    let ada = net.join_with(listening, listener("Ada"));
    net.run(Ticks(120));
    let new = spawn(&mut net, Tag(5));
    net.server.world_mut().write_message(ToClients {
        to: Target::All,
        message: Hit { whom: new, tag: 5 },
    });
    net.run(Ticks(60));
    let heard = net.client(ada).world().resource::<Heard>();
    assert_eq!(heard.hits, [(5, Some(5))]);
}

#[test]
fn on_a_clean_link_a_message_comes_with_the_state_of_its_tick() {
    let mut net = TestNet::new(talk, clean());
    let ada = net.join_with(listening, listener("Ada"));
    let entity = spawn(&mut net, Health(0));
    net.run(Ticks(120));
    for n in 1..60 {
        net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = n;
        tell(&mut net, Target::All, n);
        net.run(Ticks(1));
    }
    net.run(Ticks(60));
    let heard = net.client(ada).world().resource::<Heard>();
    let behind: Vec<_> = heard
        .with_health
        .iter()
        .filter(|(note, health)| health.is_none_or(|health| health < *note))
        .collect();
    assert_eq!(heard.with_health.len(), 59);
    assert!(behind.is_empty(), "messages before their state: {behind:?}");
}

#[test]
fn what_a_client_says_in_the_frame_in_which_it_leaves_arrives() {
    fn taking(app: &mut App) {
        talk(app);
        app.add_systems(
            Update,
            |mut notes: MessageReader<FromClient<Note>>, mut heard: ResMut<Heard>| {
                heard.notes.extend(notes.read().map(|note| note.message.0));
            },
        );
    }
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(talk, listener("Ada"));
    net.run(Ticks(120));
    net.client(ada).world_mut().write_message(ToServer(Note(1)));
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(60));
    assert_eq!(sessions(&mut net), 0);
    assert_eq!(net.server.world().resource::<Heard>().notes, [1]);
}

#[test]
fn what_a_client_says_before_it_is_in_is_heard_or_given_back() {
    use bevy_tandem::message::Undeliverable;
    #[derive(Resource, Default)]
    struct Returned(u32);
    fn taking(app: &mut App) {
        talk(app);
        app.add_systems(
            Update,
            |mut notes: MessageReader<FromClient<Note>>, mut heard: ResMut<Heard>| {
                heard.notes.extend(notes.read().map(|note| note.message.0));
            },
        );
    }
    fn saying(app: &mut App) {
        talk(app);
        app.init_resource::<Returned>();
        app.add_systems(
            Update,
            |mut back: MessageReader<Undeliverable<Note>>, mut returned: ResMut<Returned>| {
                returned.0 += back.read().count() as u32;
            },
        );
    }
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(saying, listener("Ada"));
    net.client(ada).world_mut().write_message(ToServer(Note(1)));
    net.run(Ticks(120));
    let heard = net.server.world().resource::<Heard>().notes.len();
    let returned = net.client(ada).world().resource::<Returned>().0;
    assert_eq!(heard as u32 + returned, 1, "neither heard nor given back");
}

#[test]
fn messages_arrive_while_the_servers_game_is_paused() {
    let mut net = TestNet::new(talk, clean());
    let ada = net.join_with(listening, listener("Ada"));
    net.run(Ticks(120));
    net.server
        .world_mut()
        .resource_mut::<Time<Virtual>>()
        .pause();
    net.run(Ticks(10));
    tell(&mut net, Target::All, 1);
    net.run(Ticks(120));
    assert_eq!(net.client(ada).world().resource::<Heard>().notes, [1]);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Blob(Vec<u8>);

#[derive(Resource, Default)]
struct Blobs(Vec<usize>);

fn blobs(app: &mut App) {
    app.protocol().add_message::<Blob>(Channel::Unreliable);
    app.init_resource::<Blobs>();
}

fn taking_blobs(app: &mut App) {
    blobs(app);
    app.add_systems(
        Update,
        |mut came: MessageReader<FromServer<Blob>>, mut blobs: ResMut<Blobs>| {
            blobs.0.extend(came.read().map(|blob| blob.0.0.len()));
        },
    );
}

#[test]
fn an_unreliable_message_larger_than_a_datagram_arrives() {
    let mut net = TestNet::new(blobs, clean());
    let ada = net.join_with(taking_blobs, listener("Ada"));
    net.run(Ticks(60));
    for size in [900, 1_300, 5_000, 60_000] {
        net.server.world_mut().write_message(ToClients {
            to: Target::All,
            message: Blob(vec![7; size]),
        });
        net.run(Ticks(60));
    }
    let blobs = &net.client(ada).world().resource::<Blobs>().0;
    assert_eq!(*blobs, [900, 1_300, 5_000, 60_000]);
}
