//! Messages at the edges: in the frame in which somebody leaves, before they are in, too large, about what has just come
//! or gone. What is said is heard, or its writer is told.

use std::time::Duration;

use bevy::ecs::entity::MapEntities;
use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::message::{
    MAX_CLIENT_MESSAGE_BYTES, MAX_SERVER_MESSAGE_BYTES, MAX_UNRELIABLE_MESSAGE_BYTES, NetMessage,
    Undeliverable,
};
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::handshake::MAX_REASON_BYTES;
use bevy_tandem::session::Ban;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tag(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Loose(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Blob(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Shout(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, MapEntities)]
struct Hit {
    #[entities]
    whom: Entity,
    tag: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, MapEntities)]
struct Glance {
    #[entities]
    at: Entity,
    tag: u32,
}

/// What an app has heard, and what came back to it.
#[derive(Resource, Default)]
struct Heard {
    notes: Vec<u32>,
    loose: Vec<u32>,
    blobs: Vec<usize>,
    /// Of hits and glances: who was meant, and who is named here.
    named: Vec<(u32, Option<u32>)>,
    back: Vec<String>,
}

fn game(app: &mut App) {
    app.replicate::<Tag>();
    app.protocol()
        .add_message::<Note>(Channel::ReliableOrdered)
        .add_message::<Loose>(Channel::Unreliable)
        .add_message::<Blob>(Channel::Unreliable)
        .add_message::<Shout>(Channel::ReliableUnordered)
        .add_mapped_message::<Hit>(Channel::ReliableOrdered)
        .add_mapped_message::<Glance>(Channel::ReliableUnordered);
    app.init_resource::<Heard>().add_systems(
        First,
        (
            come_back::<Note>,
            come_back::<Loose>,
            come_back::<Blob>,
            come_back::<Shout>,
            come_back::<Hit>,
        )
            .chain()
            .after(bevy::ecs::message::MessageUpdateSystems),
    );
}

fn come_back<M: NetMessage + std::fmt::Debug>(
    mut back: MessageReader<Undeliverable<M>>,
    mut heard: ResMut<Heard>,
) {
    heard.back.extend(back.read().map(|back| {
        let text = format!("{:?}", back.message);
        text.chars().take(8).collect::<String>()
    }));
}

fn listening(app: &mut App) {
    game(app);
    app.add_systems(
        Update,
        (hear_notes, hear_blobs, hear_hits, hear_glances).chain(),
    );
}

fn hear_notes(
    mut notes: MessageReader<FromServer<Note>>,
    mut loose: MessageReader<FromServer<Loose>>,
    mut heard: ResMut<Heard>,
) {
    for note in notes.read() {
        heard.notes.push(note.0.0);
    }
    heard.loose.extend(loose.read().map(|loose| loose.0.0));
}

fn hear_blobs(
    mut blobs: MessageReader<FromServer<Blob>>,
    mut shouts: MessageReader<FromServer<Shout>>,
    mut heard: ResMut<Heard>,
) {
    heard.blobs.extend(blobs.read().map(|blob| blob.0.0.len()));
    heard.blobs.extend(shouts.read().map(|blob| blob.0.0.len()));
}

fn hear_hits(
    mut hits: MessageReader<FromServer<Hit>>,
    tags: Query<&Tag>,
    mut heard: ResMut<Heard>,
) {
    for hit in hits.read() {
        let named = tags.get(hit.0.whom).ok().map(|tag| tag.0);
        heard.named.push((hit.0.tag, named));
    }
}

fn hear_glances(
    mut glances: MessageReader<FromServer<Glance>>,
    tags: Query<&Tag>,
    mut heard: ResMut<Heard>,
) {
    for glance in glances.read() {
        let named = tags.get(glance.0.at).ok().map(|tag| tag.0);
        heard.named.push((glance.0.tag, named));
    }
}

/// A server that hears what clients say.
fn taking(app: &mut App) {
    game(app);
    app.add_systems(
        Update,
        |mut notes: MessageReader<FromClient<Note>>,
         mut loose: MessageReader<FromClient<Loose>>,
         mut heard: ResMut<Heard>| {
            heard.notes.extend(notes.read().map(|note| note.message.0));
            heard.loose.extend(loose.read().map(|note| note.message.0));
        },
    );
}

fn clean() -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    }
}

fn lossy(seed: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(40),
        jitter: Duration::from_millis(15),
        loss: 0.2,
        seed,
        ..default()
    }
}

fn listener() -> ClientConfig {
    ClientConfig {
        name: "Ada".into(),
        ..default()
    }
}

fn heard(app: &App) -> &Heard {
    app.world().resource()
}

fn say<M: NetMessage>(net: &mut TestNet, client: TestClientId, message: M) {
    let world = net.client(client).world_mut();
    world.write_message(ToServer(message));
}

fn tell<M: NetMessage>(net: &mut TestNet, to: Target, message: M) {
    let world = net.server.world_mut();
    world.write_message(ToClients { to, message });
}

fn sessions(net: &mut TestNet) -> usize {
    let world = net.server.world_mut();
    world.query::<&Session>().iter(world).count()
}

// ---- the frame in which somebody leaves ----

#[test]
fn what_a_client_says_in_the_frame_in_which_it_leaves_arrives_also_over_a_bad_link() {
    for seed in 0..12 {
        let mut net = TestNet::new(taking, lossy(seed));
        let ada = net.join_with(game, listener());
        net.run(Ticks(120));
        for n in 0..40 {
            say(&mut net, ada, Note(n));
        }
        net.client(ada).world_mut().trigger(Disconnect);
        for n in 40..60 {
            say(&mut net, ada, Note(n));
        }
        net.run(Ticks(1));
        let state = net.client(ada).world().resource::<Connection>().state();
        assert_eq!(state, ConnectionState::Disconnected, "for the game at once");
        net.run(Ticks(400));
        assert_eq!(sessions(&mut net), 0);
        let all: Vec<_> = (0..60).collect();
        assert_eq!(heard(&net.server).notes, all, "seed {seed}");
        assert_eq!(heard(net.client(ada)).back, [""; 0], "seed {seed}");
    }
}

#[test]
fn who_leaves_from_fixed_update_and_speaks_in_update_is_heard() {
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(game, listener());
    net.run(Ticks(120));
    #[derive(Resource)]
    struct Leaves;
    net.client(ada)
        .insert_resource(Leaves)
        .add_systems(
            FixedUpdate,
            (|mut commands: Commands| commands.trigger(Disconnect))
                .run_if(resource_exists::<Leaves>),
        )
        .add_systems(
            Update,
            (|mut notes: MessageWriter<ToServer<Note>>,
              mut loose: MessageWriter<ToServer<Loose>>,
              mut commands: Commands| {
                notes.write(ToServer(Note(1)));
                loose.write(ToServer(Loose(2)));
                commands.remove_resource::<Leaves>();
            })
            .run_if(resource_exists::<Leaves>),
        );
    net.run(Ticks(60));
    assert_eq!(heard(&net.server).notes, [1]);
    assert_eq!(heard(&net.server).loose, [2]);
}

#[test]
fn a_farewell_that_nobody_answers_is_over_soon_and_gives_back_what_was_said() {
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(game, listener());
    net.run(Ticks(120));
    net.connector().set_conditions(LinkConditions::blackhole());
    say(&mut net, ada, Note(1));
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(30));
    assert_eq!(heard(net.client(ada)).back, [""; 0], "it waits");
    net.run(Ticks(40));
    assert_eq!(heard(net.client(ada)).back, ["Note(1)"]);
    assert_eq!(heard(&net.server).notes, [0; 0]);
}

#[test]
fn an_app_that_exits_still_says_what_it_has_to_say() {
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(game, listener());
    net.run(Ticks(120));
    say(&mut net, ada, Note(1));
    net.client(ada).world_mut().write_message(AppExit::Success);
    net.run(Ticks(30));
    assert_eq!(heard(&net.server).notes, [1]);
    assert_eq!(sessions(&mut net), 0);
}

#[test]
fn what_is_written_to_a_session_in_the_frame_of_its_end_arrives_however_the_game_ends_it() {
    let ends: [fn(&mut World, Entity); 3] = [
        |world, session| {
            let reason = "enough".into();
            world.trigger(Kick { session, reason });
        },
        |world, session| {
            world.despawn(session);
        },
        |world, session| {
            world.entity_mut(session).remove::<Session>();
        },
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let mut net = TestNet::new(game, lossy(n as u64));
        let ada = net.join_with(listening, listener());
        net.run(Ticks(120));
        let session = net.session(ada).unwrap();
        for note in 0..30 {
            tell(&mut net, Target::Session(session), Note(note));
        }
        end(net.server.world_mut(), session);
        net.run(Ticks(1));
        tell(&mut net, Target::Session(session), Note(1_000));
        net.run(Ticks(240));
        let all: Vec<_> = (0..30).collect();
        assert_eq!(heard(net.client(ada)).notes, all, "{n}");
        let back = &heard(&net.server).back;
        assert_eq!(*back, ["Note(100"], "{n}: nobody is there any more");
        let reason = net.client(ada).world().resource::<Connection>().reason();
        assert!(matches!(reason, Some(DisconnectReason::Kicked(_))), "{n}");
    }
}

#[test]
fn messages_to_nobody_come_back_and_to_an_empty_room_do_not() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(listening, listener());
    net.run(Ticks(120));
    let world = net.server.world_mut();
    let (room, thing) = (world.spawn(Room).id(), world.spawn_empty().id());
    tell(&mut net, Target::Room(room), Note(1));
    tell(&mut net, Target::Room(thing), Note(2));
    tell(&mut net, Target::Session(thing), Note(3));
    tell(&mut net, Target::Session(Entity::PLACEHOLDER), Note(4));
    tell(&mut net, Target::AllExcept(thing), Note(5));
    net.run(Ticks(30));
    assert_eq!(heard(&net.server).back, ["Note(3)", "Note(4)"]);
    assert_eq!(heard(net.client(ada)).notes, [5]);
}

#[test]
fn a_room_is_told_through_its_members_and_only_they_hear() {
    let mut net = TestNet::new(game, clean());
    let (ada, bob) = (
        net.join_with(listening, listener()),
        net.join_with(listening, listener()),
    );
    net.run(Ticks(120));
    let (ada_there, bob_there) = (net.session(ada).unwrap(), net.session(bob).unwrap());
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(ada_there).insert(InRoom(red));
    world.entity_mut(bob_there).insert(InRoom(blue));
    for _ in 0..10 {
        world.spawn((Replicated, Tag(0), InRoom(red)));
    }
    tell(&mut net, Target::Room(red), Note(1));
    tell(&mut net, Target::Room(blue), Note(2));
    net.run(Ticks(1));
    net.server
        .world_mut()
        .entity_mut(ada_there)
        .insert(InRoom(blue));
    tell(&mut net, Target::Room(blue), Note(3));
    tell(&mut net, Target::Room(red), Note(4));
    net.run(Ticks(30));
    assert_eq!(heard(net.client(ada)).notes, [1, 3]);
    assert_eq!(heard(net.client(bob)).notes, [2, 3]);
    assert_eq!(heard(&net.server).back, [""; 0]);
}

// ---- before, after, and too large ----

#[test]
fn what_a_client_says_while_nobody_listens_comes_back() {
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(game, listener());
    say(&mut net, ada, Note(1));
    say(&mut net, ada, Loose(2));
    net.run(Ticks(120));
    let before = ["Note(1)", "Loose(2)"];
    assert_eq!(heard(net.client(ada)).back, before, "before it is in");
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(60));
    say(&mut net, ada, Note(3));
    net.run(Ticks(60));
    assert_eq!(heard(net.client(ada)).back[2..], ["Note(3)"], "after");
    assert_eq!(heard(&net.server).notes, [0; 0]);
}

#[test]
fn what_a_client_says_between_two_links_arrives_or_comes_back() {
    for comes_back in [true, false] {
        let mut net = TestNet::new(taking, clean());
        let ada = net.join_with(game, listener());
        net.run(Ticks(120));
        net.cut(ada);
        net.run(Ticks(2));
        say(&mut net, ada, Note(1));
        say(&mut net, ada, Loose(2));
        net.run(Ticks(2));
        if !comes_back {
            net.client(ada).world_mut().trigger(Disconnect);
        }
        net.run(Ticks(400));
        let back = heard(net.client(ada)).back.clone();
        if comes_back {
            assert_eq!(heard(&net.server).notes, [1]);
            assert_eq!(back, ["Loose(2)"], "that would not be kept");
        } else {
            assert_eq!(heard(&net.server).notes, [0; 0]);
            assert_eq!(back, ["Loose(2)", "Note(1)"]);
        }
    }
}

#[test]
fn what_is_too_large_for_its_channel_comes_back_on_both_sides() {
    let mut net = TestNet::new(taking, clean());
    let ada = net.join_with(listening, listener());
    net.run(Ticks(120));
    say(&mut net, ada, Blob(vec![7; MAX_CLIENT_MESSAGE_BYTES]));
    say(&mut net, ada, Shout(vec![7; MAX_CLIENT_MESSAGE_BYTES]));
    let blob = |bytes| Blob(vec![7; bytes]);
    tell(&mut net, Target::All, blob(MAX_UNRELIABLE_MESSAGE_BYTES));
    let shout = Shout(vec![7; MAX_SERVER_MESSAGE_BYTES]);
    tell(&mut net, Target::All, shout);
    tell(&mut net, Target::All, blob(60_000));
    net.run(Ticks(60));
    assert_eq!(heard(net.client(ada)).back, ["Blob([7,", "Shout([7"]);
    assert_eq!(heard(&net.server).back, ["Blob([7,", "Shout([7"]);
    assert_eq!(heard(net.client(ada)).blobs, [60_000]);
}

#[test]
fn unreliable_messages_of_any_size_arrive_beside_much_that_is_reliable() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(listening, listener());
    net.run(Ticks(120));
    let mut sizes = Vec::new();
    for n in 0..40 {
        tell(&mut net, Target::All, Shout(vec![1; 100_000]));
        let size = [100, 1_300, 20_000, 60_000, 63_900][n % 5];
        tell(&mut net, Target::All, Blob(vec![7; size]));
        sizes.push(size);
        net.run(Ticks(8));
    }
    net.run(Ticks(240));
    let blobs = &heard(net.client(ada)).blobs;
    let fleeting: Vec<_> = blobs
        .iter()
        .copied()
        .filter(|size| *size != 100_000)
        .collect();
    assert_eq!(fleeting, sizes);
    assert_eq!(blobs.len(), 80, "and all that is reliable");
}

#[test]
fn a_reason_of_any_length_is_read_by_who_is_kicked_or_banned() {
    for length in [10, MAX_REASON_BYTES, 5_000, 100_000] {
        for bans in [false, true] {
            let mut net = TestNet::new(game, clean());
            let ada = net.join_with(game, listener());
            net.run(Ticks(60));
            let session = net.session(ada).unwrap();
            let reason = "é".repeat(length / 2);
            let world = net.server.world_mut();
            if bans {
                world.trigger(Ban {
                    session,
                    reason: reason.clone(),
                    duration: Duration::from_secs(1),
                });
            } else {
                world.trigger(Kick {
                    session,
                    reason: reason.clone(),
                });
            }
            net.run(Ticks(10));
            let connection = net.client(ada).world().resource::<Connection>();
            let (Some(DisconnectReason::Kicked(read))
            | Some(DisconnectReason::Banned { reason: read, .. })) = connection.reason()
            else {
                panic!("{connection:?}");
            };
            match read.strip_suffix('…') {
                None => assert_eq!(*read, reason),
                Some(read) => {
                    assert!(length > MAX_REASON_BYTES && reason.starts_with(read));
                    assert!(read.len() > MAX_REASON_BYTES - 8);
                }
            }
        }
    }
}

// ---- entities in messages ----

#[test]
fn a_message_comes_with_the_state_of_its_tick() {
    let mut net = TestNet::new(game, clean());
    #[derive(Resource, Default)]
    struct Seen(Vec<(u32, u32)>);
    fn watching(app: &mut App) {
        game(app);
        app.init_resource::<Seen>().add_systems(
            PreUpdate,
            (|mut notes: MessageReader<FromServer<Note>>,
              tags: Query<&Tag>,
              mut seen: ResMut<Seen>| {
                for note in notes.read() {
                    seen.0.push((note.0.0, tags.single().unwrap().0));
                }
            })
            .after(TandemSystems::Apply),
        );
    }
    let ada = net.join_with(watching, listener());
    let entity = net.server.world_mut().spawn((Replicated, Tag(0))).id();
    net.run(Ticks(120));
    for n in 1..60 {
        net.server.world_mut().get_mut::<Tag>(entity).unwrap().0 = n;
        tell(&mut net, Target::All, Note(n));
        net.run(Ticks(1));
    }
    net.run(Ticks(60));
    let seen = &net.client(ada).world().resource::<Seen>().0;
    assert_eq!(seen.len(), 59);
    assert!(seen.iter().all(|(note, tag)| tag >= note), "{seen:?}");
}

#[test]
fn a_message_about_what_was_spawned_a_little_before_names_it_on_a_bad_link() {
    for seed in 0..6 {
        let mut net = TestNet::new(game, lossy(seed));
        let ada = net.join_with(listening, listener());
        net.run(Ticks(120));
        let mut meant = Vec::new();
        for n in 0..60 {
            let whom = net.server.world_mut().spawn((Replicated, Tag(n))).id();
            // So that it is known to the network.
            net.run(Ticks(2));
            tell(&mut net, Target::All, Hit { whom, tag: n });
            tell(&mut net, Target::All, Note(n));
            meant.push((n, Some(n)));
        }
        net.run(Ticks(240));
        let heard = heard(net.client(ada));
        assert_eq!(heard.named, meant, "seed {seed}");
        let notes: Vec<_> = (0..60).collect();
        assert_eq!(heard.notes, notes, "seed {seed}");
    }
}

#[test]
fn a_message_may_name_what_was_spawned_in_its_frame() {
    for seed in 0..4 {
        let mut net = TestNet::new(game, lossy(seed));
        let ada = net.join_with(listening, listener());
        net.run(Ticks(120));
        let mut meant = Vec::new();
        for n in 0..40 {
            let whom = net.server.world_mut().spawn((Replicated, Tag(n))).id();
            tell(&mut net, Target::All, Hit { whom, tag: n });
            meant.push((n, Some(n)));
            net.run(Ticks(1));
        }
        net.run(Ticks(240));
        assert_eq!(heard(net.client(ada)).named, meant, "seed {seed}");
    }
}

#[test]
fn a_message_about_what_is_despawned_in_its_frame_names_its_copy() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(listening, listener());
    let whom = net.server.world_mut().spawn((Replicated, Tag(5))).id();
    net.run(Ticks(120));
    tell(&mut net, Target::All, Hit { whom, tag: 5 });
    net.server.world_mut().despawn(whom);
    net.run(Ticks(60));
    assert_eq!(heard(net.client(ada)).named, [(5, Some(5))]);
}

#[test]
fn a_message_about_what_a_client_cannot_see_names_nobody_and_holds_nothing_up() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(listening, listener());
    let room = net.server.world_mut().spawn(Room).id();
    let hidden = (Replicated, Tag(5), InRoom(room));
    let whom = net.server.world_mut().spawn(hidden).id();
    net.run(Ticks(120));
    tell(&mut net, Target::All, Hit { whom, tag: 5 });
    tell(&mut net, Target::All, Note(1));
    net.run(Ticks(12));
    let heard = heard(net.client(ada));
    assert_eq!(heard.named, [(5, None)]);
    assert_eq!(
        heard.notes,
        [1],
        "a complete snapshot says that it will not come"
    );
}

#[test]
fn what_comes_after_a_message_that_waits_keeps_its_order_and_other_channels_go_on() {
    // So little that the entities need a second to come in.
    let config = ServerConfig {
        max_snapshot_bytes: 120,
        ..default()
    };
    let mut net = TestNet::with_config(game, clean(), config);
    let near = net.server.world_mut().spawn((Replicated, Tag(7))).id();
    let ada = net.join_with(listening, listener());
    net.run(Ticks(120));
    let world = net.server.world_mut();
    for n in 0..600 {
        world.spawn((Replicated, Tag(n), Priority(2.0)));
    }
    let far = (Replicated, Tag(1_000), Priority(0.01));
    let far = world.spawn(far).id();
    net.run(Ticks(2));
    let mut expected = Vec::new();
    for n in 0..8 {
        let (whom, tag) = if n == 0 { (far, 1_000) } else { (near, 7) };
        tell(&mut net, Target::All, Hit { whom, tag });
        tell(&mut net, Target::All, Shout(vec![0; 10]));
        expected.push((tag, Some(tag)));
        net.run(Ticks(1));
        tell(&mut net, Target::All, Note(n));
    }
    net.run(Ticks(8));
    let waiting = heard(net.client(ada));
    assert_eq!(waiting.named, [], "the first hit waits, and all behind it");
    assert_eq!(waiting.notes, [0; 0], "of whatever type");
    assert_eq!(waiting.blobs.len(), 8, "but not another channel");
    net.run(Ticks(400));
    let heard = heard(net.client(ada));
    assert_eq!(heard.named, expected);
    assert_eq!(heard.notes, (0..8).collect::<Vec<_>>());
}

/// A match in which a client is still to be told of an entity for some seconds: what fits goes to a crowd.
fn crowded() -> (TestNet, TestClientId, Entity, Entity) {
    let config = ServerConfig {
        max_snapshot_bytes: 120,
        ..default()
    };
    let mut net = TestNet::with_config(game, clean(), config);
    let near = net.server.world_mut().spawn((Replicated, Tag(7))).id();
    let ada = net.join_with(listening, listener());
    net.run(Ticks(120));
    let world = net.server.world_mut();
    for n in 0..4_000 {
        world.spawn((Replicated, Tag(n), Priority(2.0)));
    }
    let far = (Replicated, Tag(1_000), Priority(0.001));
    let far = world.spawn(far).id();
    net.run(Ticks(2));
    (net, ada, near, far)
}

#[test]
fn an_unordered_message_waits_alone() {
    let (mut net, ada, near, far) = crowded();
    for (at, tag) in [(far, 1_000), (near, 7), (far, 1_000), (near, 7)] {
        tell(&mut net, Target::All, Glance { at, tag });
    }
    net.run(Ticks(10));
    let near = (7, Some(7));
    assert_eq!(heard(net.client(ada)).named, [near, near]);
    net.run(Ticks(120));
    assert_eq!(heard(net.client(ada)).named.len(), 4);
}

#[test]
fn only_so_many_messages_wait_and_all_are_told_in_order_or_given_back() {
    const COUNT: u32 = 3_000;
    let (mut net, ada, _, whom) = crowded();
    let mut told_by_then = 0;
    for n in 0..COUNT {
        tell(&mut net, Target::All, Hit { whom, tag: n });
        if n % 60 == 0 {
            net.run(Ticks(1));
        }
        if n + 1 == COUNT {
            net.run(Ticks(20));
            told_by_then = heard(net.client(ada)).named.len();
        }
    }
    assert!(told_by_then > 1_500, "{told_by_then} did not wait any more");
    net.run(Ticks(300));
    let named = &heard(net.client(ada)).named;
    let tags: Vec<_> = named.iter().map(|(tag, _)| *tag).collect();
    assert!(tags.is_sorted_by(|a, b| a < b), "each once, and in order");
    // More of them than a session's queue holds: the server's game knows which.
    let back = heard(&net.server).back.len();
    assert_eq!(tags.len() + back, COUNT as usize);
    assert!((1..500).contains(&back), "{back} are given back");
}

#[test]
fn a_message_waits_for_what_it_names_no_longer_than_two_seconds() {
    // Nothing more fits, so no snapshot is complete.
    let config = ServerConfig {
        max_snapshot_bytes: 120,
        ..default()
    };
    let mut net = TestNet::with_config(game, clean(), config);
    let ada = net.join_with(listening, listener());
    net.run(Ticks(120));
    let mut crowd = Vec::new();
    for n in 0..200 {
        let thing = (Replicated, Tag(n), Priority(1_000.0));
        crowd.push(net.server.world_mut().spawn(thing).id());
    }
    net.run(Ticks(300));
    let last = (Replicated, Tag(1_000), Priority(0.0));
    let whom = net.server.world_mut().spawn(last).id();
    let mut waited = 0;
    for tick in 0..300 {
        for thing in &crowd {
            let world = net.server.world_mut();
            world.get_mut::<Tag>(*thing).unwrap().0 = tick;
        }
        if tick == 2 {
            tell(&mut net, Target::All, Hit { whom, tag: 1_000 });
        }
        net.run(Ticks(1));
        waited += u32::from(heard(net.client(ada)).named.is_empty());
    }
    let heard = heard(net.client(ada));
    assert_eq!(heard.named.len(), 1);
    assert!(waited < 140, "{waited} ticks");
}

#[test]
fn a_message_that_waits_is_told_when_the_session_ends_or_the_link_comes_back() {
    for cuts in [true, false] {
        let config = ServerConfig {
            max_snapshot_bytes: 120,
            ..default()
        };
        let mut net = TestNet::with_config(game, clean(), config);
        let ada = net.join_with(listening, listener());
        net.run(Ticks(120));
        let world = net.server.world_mut();
        for n in 0..200 {
            world.spawn((Replicated, Tag(n), Priority(2.0)));
        }
        let last = (Replicated, Tag(1_000), Priority(0.01));
        let whom = world.spawn(last).id();
        net.run(Ticks(2));
        tell(&mut net, Target::All, Hit { whom, tag: 1_000 });
        net.run(Ticks(10));
        assert_eq!(heard(net.client(ada)).named, []);
        match cuts {
            true => net.cut(ada),
            false => net.client(ada).world_mut().trigger(Disconnect),
        }
        net.run(Ticks(400));
        let named = &heard(net.client(ada)).named;
        match cuts {
            true => assert_eq!(*named, [(1_000, Some(1_000))]),
            false => assert_eq!(*named, [(1_000, None)]),
        }
    }
}

#[test]
fn a_message_about_what_is_gone_names_no_stranger() {
    let mut strangers = Vec::new();
    for seed in 0..4 {
        let link = LinkConditions {
            latency: Duration::from_millis(5),
            loss: 0.3,
            seed,
            ..default()
        };
        let mut net = TestNet::new(game, link);
        let ada = net.join_with(listening, listener());
        net.run(Ticks(120));
        for n in 0..40 {
            let victim = net.server.world_mut().spawn((Replicated, Tag(n))).id();
            net.run(Ticks(20));
            let hit = Hit {
                whom: victim,
                tag: n,
            };
            tell(&mut net, Target::All, hit);
            net.run(Ticks(1));
            net.server.world_mut().despawn(victim);
            let mut newcomers = Vec::new();
            for _ in 0..40 {
                let newcomer = (Replicated, Tag(1_000 + n));
                newcomers.push(net.server.world_mut().spawn(newcomer).id());
                net.run(Ticks(1));
            }
            for newcomer in newcomers {
                net.server.world_mut().despawn(newcomer);
            }
            net.run(Ticks(20));
        }
        net.run(Ticks(300));
        let named = &heard(net.client(ada)).named;
        assert_eq!(named.len(), 40);
        let wrong = named
            .iter()
            .filter(|(tag, named)| named.is_some_and(|named| named != *tag));
        strangers.extend(wrong.copied());
    }
    assert_eq!(strangers, [], "hits on those who were not hit");
}

#[test]
fn what_comes_back_names_the_writers_own_entities() {
    #[derive(Resource, Default)]
    struct Back(Vec<Entity>);
    fn writer(app: &mut App) {
        game(app);
        app.init_resource::<Back>().add_systems(
            Update,
            |mut back: MessageReader<Undeliverable<Hit>>, mut all: ResMut<Back>| {
                all.0.extend(back.read().map(|back| back.message.whom));
            },
        );
    }
    let mut net = TestNet::new(writer, clean());
    let ada = net.join_with(listening, listener());
    for n in 0..5 {
        net.server.world_mut().spawn_empty();
        net.server.world_mut().spawn((Replicated, Tag(n)));
    }
    let whom = net.server.world_mut().spawn((Replicated, Tag(9))).id();
    net.run(Ticks(120));
    // It goes without a word, so nobody can say whether it has heard this.
    net.pause(ada, true);
    let session = net.session(ada).unwrap();
    tell(&mut net, Target::Session(session), Hit { whom, tag: 9 });
    net.run(Ticks(4));
    let reason = "gone".into();
    net.server.world_mut().trigger(Kick { session, reason });
    net.run(Ticks(180));
    assert_eq!(net.server.world().resource::<Back>().0, [whom]);
}

// ---- the player of a listen server ----

#[test]
fn what_a_host_says_and_is_told_in_the_frame_of_its_end_is_heard() {
    #[derive(Resource, Default)]
    struct Said(Vec<u32>, Vec<u32>);
    fn hosting(app: &mut App) {
        game(app);
        app.add_plugins(HostPlugin { name: "Ada".into() })
            .init_resource::<Said>()
            .add_systems(
                Update,
                |mut said: MessageReader<FromClient<Note>>,
                 mut told: MessageReader<FromServer<Note>>,
                 mut all: ResMut<Said>| {
                    all.0.extend(said.read().map(|said| said.message.0));
                    all.1.extend(told.read().map(|told| told.0.0));
                },
            );
    }
    let mut net = TestNet::new(hosting, clean());
    net.run(Ticks(10));
    let world = net.server.world_mut();
    let session = world
        .query_filtered::<Entity, With<Session>>()
        .single(world)
        .unwrap();
    world.write_message(ToServer(Note(1)));
    tell(&mut net, Target::Session(session), Note(2));
    net.server.world_mut().trigger(Disconnect);
    net.run(Ticks(3));
    let world = net.server.world_mut();
    world.write_message(ToServer(Note(3)));
    tell(&mut net, Target::Session(session), Note(4));
    net.run(Ticks(3));
    let said = net.server.world().resource::<Said>();
    assert_eq!(said.0, [1]);
    assert_eq!(said.1, [2]);
    let mut back = heard(&net.server).back.clone();
    back.sort_unstable();
    assert_eq!(back, ["Note(3)", "Note(4)"]);
}
