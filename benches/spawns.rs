//! What it costs a client to let copies come to be: 10,000 entities of several components arrive, as fast as snapshots
//! of 1,100 bytes bring them.
//!
//!     cargo bench --bench spawns
//!
//! A server tells a client of them once, over a link whose datagrams are written down. Each sample then is a fresh
//! client app that is played these datagrams, frame by frame: nothing of the server is measured, and what is measured
//! is the same for every version of the client. The frames cost something without any spawn, too, more so when all those
//! copies are there: `afterwards` is as many frames of the same client in which nothing comes any more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bevy::prelude::*;
use bevy::time::TimeUpdateStrategy;
use bevy_tandem::client::ConnectOver;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;
use bevy_tandem::transport::{
    ClientLinkState, ClientTransport, LocalClient, TransportKind, TransportStats,
};
use divan::Bencher;
use divan::counter::ItemsCount;
use serde::{Deserialize, Serialize};

fn main() {
    divan::main();
}

const ENTITIES: u32 = 10_000;

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u16);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Team(u8);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Title(String);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ammunition(u16, u16);

/// As a game marks what it draws: by components that are not replicated.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[require(Transform, Sight, Selected)]
struct Unit(u8);

#[derive(Component, Default)]
struct Sight(#[expect(dead_code, reason = "only its size counts")] f32);

#[derive(Component, Default)]
struct Selected(#[expect(dead_code, reason = "only its size counts")] bool);

/// What a client's observer puts on its copies.
#[derive(Component)]
#[require(Transform)]
struct Picture(#[expect(dead_code, reason = "only its size counts")] u8);

/// What the entities are made of.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Five components of a few bytes.
    Plain,
    /// A unit that requires what is not replicated, a transform that is drawn between snapshots, and two more.
    Unit,
    /// The same, and an observer gives each a picture.
    UnitWithPicture,
}

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Unit, Kind::UnitWithPicture];

impl Kind {
    fn game(self) -> fn(&mut App) {
        match self {
            Self::Plain | Self::Unit => registrations,
            Self::UnitWithPicture => |app| {
                registrations(app);
                app.add_observer(give_a_picture);
            },
        }
    }

    fn spawn(self, world: &mut World, n: u32) {
        let mut entity = world.spawn((Replicated, Health(n as u16), Team(n as u8 % 4)));
        match self {
            Self::Plain => entity.insert((
                Title(format!("soldier {n}")),
                Ammunition(30, n as u16),
                Armour(7),
            )),
            Self::Unit | Self::UnitWithPicture => entity.insert((
                Unit(n as u8),
                Transform::from_xyz((n % 100) as f32, (n / 100) as f32, 0.0),
            )),
        };
    }
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Armour(u8);

fn registrations(app: &mut App) {
    // What is required before what requires it, and the other way round.
    app.replicate::<Unit>();
    app.replicate::<Health>();
    app.replicate::<Transform>()
        .quantize(TransformCodec::flat(512.0, 1.0 / 64.0))
        .interpolate();
    app.replicate::<Team>();
    app.replicate::<Title>();
    app.replicate::<Ammunition>();
    app.replicate::<Armour>();
}

fn give_a_picture(added: On<Add, Unit>, units: Query<&Unit>, mut commands: Commands) {
    if let Ok(unit) = units.get(added.entity) {
        commands.entity(added.entity).insert(Picture(unit.0));
    }
}

/// For each frame, the datagrams that came.
type Recording = Vec<Vec<Vec<u8>>>;

/// Writes down what comes.
struct Recorder {
    link: LocalClient,
    frames: Arc<Mutex<Recording>>,
}

impl ClientTransport for Recorder {
    fn state(&self) -> &ClientLinkState {
        self.link.state()
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let mut came = Vec::new();
        self.link.receive(now, &mut came);
        datagrams.extend(came.iter().cloned());
        self.frames.lock().unwrap().push(came);
    }

    fn send(&mut self, now: Duration, datagram: &[u8]) {
        self.link.send(now, datagram);
    }

    fn flush(&mut self, now: Duration) {
        self.link.flush(now);
    }

    fn kind(&self) -> TransportKind {
        self.link.kind()
    }

    fn vanish(&mut self) {
        self.link.vanish();
    }

    fn close(&mut self) {
        self.link.close();
    }

    fn stats(&self) -> TransportStats {
        self.link.stats()
    }
}

/// Plays what was written down, and says nothing.
struct Player {
    state: ClientLinkState,
    frames: std::vec::IntoIter<Vec<Vec<u8>>>,
}

impl ClientTransport for Player {
    fn state(&self) -> &ClientLinkState {
        &self.state
    }

    fn receive(&mut self, _: Duration, datagrams: &mut Vec<Vec<u8>>) {
        self.state = ClientLinkState::Connected;
        datagrams.extend(self.frames.next().unwrap_or_default());
    }

    fn send(&mut self, _: Duration, _: &[u8]) {}

    fn flush(&mut self, _: Duration) {}

    fn kind(&self) -> TransportKind {
        TransportKind::Local
    }

    fn vanish(&mut self) {}

    fn close(&mut self) {}

    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
}

/// What a client is told, and in how many frames it is told it.
struct Arrival {
    recording: Recording,
    frames_before: usize,
    frames: usize,
}

fn record(kind: Kind) -> Arrival {
    let config = ServerConfig {
        send_rate_hz: 60.0,
        adaptive: None,
        ..default()
    };
    let mut net = TestNet::with_config(kind.game(), LinkConditions::default(), config);
    let client = net.join("Ada");
    let frames = Arc::new(Mutex::new(Recording::new()));
    let link = Recorder {
        link: net.connector().connect(),
        frames: frames.clone(),
    };
    net.connect_over(client, link);
    net.run(Ticks(120));
    let frames_before = frames.lock().unwrap().len();
    for n in 0..ENTITIES {
        kind.spawn(net.server.world_mut(), n);
    }
    while copies(net.client(client)) < ENTITIES as usize {
        net.run(Ticks(1));
        assert!(frames.lock().unwrap().len() < 5_000, "they do not arrive");
    }
    let all = frames.lock().unwrap().len();
    // What is drawn between snapshots has settled, and nothing comes but headers.
    net.run(Ticks(60 + (all - frames_before) as u32));
    let recording = frames.lock().unwrap().clone();
    Arrival {
        recording,
        frames_before,
        frames: all - frames_before,
    }
}

fn copies(app: &mut App) -> usize {
    let world = app.world_mut();
    world.query::<&Replicated>().iter(world).count()
}

/// A client that is played the recording, right before the spawns arrive.
fn client(kind: Kind, arrival: &Arrival) -> App {
    let mut app = App::new();
    app.add_plugins((MinimalPlugins, TransformPlugin))
        .add_plugins((TandemClientPlugins::default().named("Ada"), kind.game()))
        .insert_resource(TimeUpdateStrategy::ManualDuration(Duration::from_nanos(
            16_666_667,
        )));
    app.finish();
    app.cleanup();
    app.connect_over(Player {
        state: ClientLinkState::Connecting,
        frames: arrival.recording.clone().into_iter(),
    });
    run(&mut app, arrival.frames_before);
    assert_eq!(copies(&mut app), 0);
    app
}

fn run(app: &mut App, frames: usize) {
    for _ in 0..frames {
        app.update();
    }
}

#[divan::bench(args = KINDS, sample_count = 15, sample_size = 1)]
fn arriving(bencher: Bencher, kind: Kind) {
    let arrival = record(kind);
    bencher
        .counter(ItemsCount::new(ENTITIES))
        .with_inputs(|| client(kind, &arrival))
        .bench_local_values(|mut app| {
            run(&mut app, arrival.frames);
            app
        });
    let mut app = client(kind, &arrival);
    run(&mut app, arrival.frames);
    assert_eq!(copies(&mut app), ENTITIES as usize, "all have come");
}

#[divan::bench(args = KINDS, sample_count = 15, sample_size = 1)]
fn afterwards(bencher: Bencher, kind: Kind) {
    let arrival = record(kind);
    bencher
        .counter(ItemsCount::new(ENTITIES))
        .with_inputs(|| {
            let mut app = client(kind, &arrival);
            run(&mut app, arrival.frames + 60);
            app
        })
        .bench_local_values(|mut app| {
            run(&mut app, arrival.frames);
            app
        });
}
