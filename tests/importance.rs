//! Important messages overtake others that wait, from one game to the other.

use std::time::Duration;

use bevy::diagnostic::FrameCount;
use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::limits::SessionLimits;
use bevy_tandem::protocol::reliable::{Importance, OutboxLimits};
use bevy_tandem::server::{LimitSettings, ListenAddresses};
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::ws::{WsClientConfig, WsServerConfig};
use serde::{Deserialize, Serialize};

mod support;
use support::wait_for;

const ORDERED: u8 = 0;
const UNORDERED: u8 = 1;

const LOW: u8 = 0;
const NORMAL: u8 = 1;
const HIGH: u8 = 2;

/// A message type for each channel and importance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ranked<const CHANNEL: u8, const RANK: u8> {
    number: u32,
    ballast: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Arrival {
    frame: u32,
    channel: u8,
    rank: u8,
    number: u32,
}

/// What has come to an app, from the other side.
#[derive(Resource, Default)]
struct Arrived(Vec<Arrival>);

fn game(app: &mut App) {
    app.init_resource::<Arrived>();
    register::<ORDERED>(app, Channel::ReliableOrdered);
    register::<UNORDERED>(app, Channel::ReliableUnordered);
}

fn register<const CHANNEL: u8>(app: &mut App, channel: Channel) {
    app.protocol()
        .add_message::<Ranked<CHANNEL, LOW>>(channel)
        .importance(Importance::Low)
        .add_message::<Ranked<CHANNEL, NORMAL>>(channel)
        .add_message::<Ranked<CHANNEL, HIGH>>(channel)
        .importance(Importance::High);
    app.add_systems(
        Update,
        (
            hear::<CHANNEL, LOW>,
            hear::<CHANNEL, NORMAL>,
            hear::<CHANNEL, HIGH>,
        ),
    );
}

fn hear<const CHANNEL: u8, const RANK: u8>(
    from_server: Option<MessageReader<FromServer<Ranked<CHANNEL, RANK>>>>,
    from_client: Option<MessageReader<FromClient<Ranked<CHANNEL, RANK>>>>,
    frame: Res<FrameCount>,
    mut arrived: ResMut<Arrived>,
) {
    let mut note = |number| {
        arrived.0.push(Arrival {
            frame: frame.0,
            channel: CHANNEL,
            rank: RANK,
            number,
        });
    };
    if let Some(mut messages) = from_server {
        messages.read().for_each(|it| note(it.0.number));
    }
    if let Some(mut messages) = from_client {
        messages.read().for_each(|it| note(it.message.number));
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Up,
    Down,
}

/// Says numbers from 0 to `count`, on this channel.
fn say<const RANK: u8>(app: &mut App, way: Way, channel: u8, count: u32, bytes: usize) {
    match channel {
        ORDERED => say_on::<ORDERED, RANK>(app, way, count, bytes),
        _ => say_on::<UNORDERED, RANK>(app, way, count, bytes),
    }
}

fn say_on<const CHANNEL: u8, const RANK: u8>(app: &mut App, way: Way, count: u32, bytes: usize) {
    let world = app.world_mut();
    for number in 0..count {
        let ballast = vec![0; bytes];
        let message = Ranked::<CHANNEL, RANK> { number, ballast };
        let to = Target::All;
        match way {
            Way::Up => drop(world.write_message(ToServer(message))),
            Way::Down => drop(world.write_message(ToClients { to, message })),
        }
    }
}

impl Way {
    /// Who speaks and who listens.
    fn speaker(self, net: &mut TestNet, client: TestClientId) -> &mut App {
        match self {
            Self::Up => net.client(client),
            Self::Down => &mut net.server,
        }
    }

    fn arrived(self, net: &mut TestNet, client: TestClientId) -> Vec<Arrival> {
        let listener = match self {
            Self::Up => &mut net.server,
            Self::Down => net.client(client),
        };
        listener.world().resource::<Arrived>().0.clone()
    }
}

/// When the numbers of an importance came, in the order in which they came.
fn of_rank(arrived: &[Arrival], rank: u8) -> Vec<Arrival> {
    let of_rank = arrived.iter().filter(|it| it.rank == rank);
    of_rank.copied().collect()
}

fn numbers(arrivals: &[Arrival]) -> Vec<u32> {
    arrivals.iter().map(|it| it.number).collect()
}

fn last_frame(arrivals: &[Arrival]) -> u32 {
    arrivals.iter().map(|it| it.frame).max().expect("some came")
}

/// How many had come before this frame.
fn before(arrivals: &[Arrival], frame: u32) -> usize {
    arrivals.iter().filter(|it| it.frame < frame).count()
}

fn joined(conditions: LinkConditions, outbox: OutboxLimits) -> (TestNet, TestClientId) {
    let config = ServerConfig {
        outbox,
        // It is the window that this is about.
        limits: LimitSettings {
            session: SessionLimits::UNLIMITED,
            ..default()
        },
        ..default()
    };
    let mut net = TestNet::with_config(game, conditions, config);
    let config = ClientConfig {
        name: "Ada".into(),
        outbox,
        ..default()
    };
    let ada = net.join_with(game, config);
    net.run(Ticks(120));
    assert!(net.session(ada).is_some());
    (net, ada)
}

#[test]
fn important_messages_overtake_those_that_wait_for_a_full_window() {
    const LOWS: u32 = 800;
    const OTHERS: u32 = 40;
    let far = LinkConditions {
        latency: Duration::from_millis(150),
        ..default()
    };
    let limits = OutboxLimits::default();
    for way in [Way::Up, Way::Down] {
        for (low, others) in [
            (ORDERED, ORDERED),
            (ORDERED, UNORDERED),
            (UNORDERED, ORDERED),
            (UNORDERED, UNORDERED),
        ] {
            let case = format!("{way:?}, {low} and {others}");
            let (mut net, ada) = joined(far.clone(), limits);
            say::<LOW>(way.speaker(&mut net, ada), way, low, LOWS, 100);
            // Less than a round trip: nothing has made room in the window.
            net.run(Ticks(10));
            say::<NORMAL>(way.speaker(&mut net, ada), way, others, OTHERS, 100);
            say::<HIGH>(way.speaker(&mut net, ada), way, others, OTHERS, 100);
            net.run(Ticks(60 * 5));

            let arrived = way.arrived(&mut net, ada);
            let [lows, normals, highs] = [LOW, NORMAL, HIGH].map(|rank| of_rank(&arrived, rank));
            assert_eq!(numbers(&lows), (0..LOWS).collect::<Vec<_>>(), "{case}");
            for others in [&normals, &highs] {
                assert_eq!(numbers(others), (0..OTHERS).collect::<Vec<_>>(), "{case}");
            }
            assert!(last_frame(&highs) <= normals[0].frame, "{case}");
            let overtaken = lows.len() - before(&lows, last_frame(&normals));
            let waited = lows.len() - limits.window_messages;
            assert!(overtaken >= waited, "{case}: {overtaken} of {waited}");
        }
    }
}

#[test]
fn an_important_message_waits_for_one_window_at_most_on_a_slow_link() {
    const BYTES: usize = 500;
    let slow = LinkConditions {
        latency: Duration::from_millis(20),
        rate_bytes_per_s: Some(40_000),
        rate_queue: Duration::from_millis(500),
        ..default()
    };
    let limits = OutboxLimits {
        window_bytes: 4 << 10,
        ..default()
    };
    for way in [Way::Up, Way::Down] {
        let (mut net, ada) = joined(slow.clone(), limits);
        say::<LOW>(way.speaker(&mut net, ada), way, ORDERED, 200, BYTES);
        net.run(Ticks(60));
        let come_before = way.arrived(&mut net, ada).len();
        assert!((1..100).contains(&come_before), "{way:?}: {come_before}");
        say::<HIGH>(way.speaker(&mut net, ada), way, ORDERED, 3, BYTES);
        net.run(Ticks(60 * 20));

        let arrived = way.arrived(&mut net, ada);
        let (lows, highs) = (of_rank(&arrived, LOW), of_rank(&arrived, HIGH));
        assert_eq!(numbers(&lows), (0..200).collect::<Vec<_>>(), "{way:?}");
        assert_eq!(numbers(&highs), [0, 1, 2], "{way:?}");
        let went_first = before(&lows, highs[0].frame) - come_before;
        let window = limits.window_bytes / BYTES;
        assert!(went_first <= window, "{way:?}: {went_first} of {window}");
    }
}

#[test]
fn important_messages_overtake_those_that_wait_for_a_stream() {
    const LOWS: u32 = 900;
    let ready = |mut app: App| {
        app.finish();
        app.cleanup();
        app
    };
    let mut app = App::new();
    let config = ServerConfig {
        websocket: Some(WsServerConfig::new("127.0.0.1:0".parse().unwrap())),
        ..default()
    };
    let plugins = TandemServerPlugins::with_config(config);
    app.add_plugins((MinimalPlugins, plugins, game));
    let mut server = ready(app);
    let address = server.world().resource::<ListenAddresses>().0[0];
    let mut app = App::new();
    let config = ClientConfig {
        websocket: Some(WsClientConfig::new(format!("ws://{address}/"))),
        ..default()
    };
    let plugins = TandemClientPlugins::with_config(config);
    app.add_plugins((MinimalPlugins, plugins, game));
    let mut client = ready(app);

    let mut until = |what: &str, server: &mut App, is_so: &dyn Fn(&World) -> bool| {
        wait_for(what, || {
            server.update();
            client.update();
            is_so(client.world()).then_some(())
        });
        client.world().resource::<Arrived>().0.clone()
    };
    until("gets in", &mut server, &|client| {
        client.resource::<Connection>().state() == ConnectionState::Connected
    });
    say::<LOW>(&mut server, Way::Down, ORDERED, LOWS, 5_000);
    let has = |count: usize| move |client: &World| client.resource::<Arrived>().0.len() >= count;
    let come_before = until("the first arrive", &mut server, &has(1)).len();
    say::<HIGH>(&mut server, Way::Down, ORDERED, 3, 5_000);
    let arrived = until("all arrive", &mut server, &has(LOWS as usize + 3));

    let (lows, highs) = (of_rank(&arrived, LOW), of_rank(&arrived, HIGH));
    assert_eq!(numbers(&lows), (0..LOWS).collect::<Vec<_>>());
    assert_eq!(numbers(&highs), [0, 1, 2]);
    let overtaken = lows.len() - before(&lows, last_frame(&highs));
    assert!(
        overtaken > 300,
        "{overtaken}, when {come_before} had come before"
    );
}
