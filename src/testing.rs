//! Two sides in one process: a server app and any number of client apps over seeded links, stepped by hand.
//!
//! Nothing sleeps and no clock is read, so the same test gives the same result every time. Games test their own
//! netcode with it:
//!
//! ```
//! use bevy::prelude::*;
//! use bevy_tandem::prelude::*;
//! use bevy_tandem::testing::TestNet;
//!
//! fn game(app: &mut App) {
//!     app.replicate::<Transform>();
//! }
//!
//! let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(7));
//! net.server.world_mut().spawn((Replicated, Transform::from_xyz(1.0, 2.0, 3.0)));
//! let ada = net.join("ada");
//! net.run(Ticks(120));
//!
//! let mut copies = net.client(ada).world_mut().query_filtered::<&Transform, With<Replicated>>();
//! assert_eq!(copies.single(net.client(ada).world()).unwrap().translation.x, 1.0);
//! ```

use std::time::Duration;

use bevy::prelude::*;
use bevy::time::TimeUpdateStrategy;

use crate::client::{ClientConfig, ConnectOver, Connection, TandemClientPlugins};
use crate::server::{ServerApp, ServerConfig, TandemServerPlugins};
use crate::session::{Session, SessionId};
use crate::tick::Ticks;
use crate::transport::{ClientTransport, Conditioned, LinkConditions, LocalConnector, LocalServer};

/// A server and its clients, with conditioned links between them.
pub struct TestNet {
    /// The server's app.
    pub server: App,
    clients: Vec<TestClient>,
    game: fn(&mut App),
    connector: LocalConnector,
    conditions: LinkConditions,
    frame: Duration,
}

struct TestClient {
    app: App,
    frame: Duration,
    /// Time that has passed since its last frame.
    waited: Duration,
    is_paused: bool,
}

/// One of the clients of a [`TestNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TestClientId(usize);

/// Duration of a tick.
const TICK: Duration = Duration::from_nanos(16_666_667);

impl TestNet {
    /// A server with `game`, and links like `conditions` for those who join. Client *n*'s link has seed + *n*.
    pub fn new(game: fn(&mut App), conditions: LinkConditions) -> Self {
        Self::with_config(game, conditions, ServerConfig::default())
    }

    /// The same with a server that has settings of its own.
    pub fn with_config(
        game: fn(&mut App),
        conditions: LinkConditions,
        config: ServerConfig,
    ) -> Self {
        let mut server = App::new();
        server
            .add_plugins((MinimalPlugins, TransformPlugin))
            .add_plugins((TandemServerPlugins::with_config(config), game));
        let mut connector = None;
        server.add_transport(|index| {
            let local = LocalServer::with_transport_index(index);
            connector = Some(local.connector());
            local
        });
        start(&mut server, TICK);
        let connector = connector.expect("the transport was made a few lines above");
        Self {
            server,
            clients: Vec::new(),
            game,
            connector,
            conditions,
            frame: TICK,
        }
    }

    /// Adds a client that connects. Run a few ticks before it is in.
    pub fn join(&mut self, name: &str) -> TestClientId {
        self.join_with(
            self.game,
            ClientConfig {
                name: name.into(),
                ..default()
            },
        )
    }

    /// Adds a client with a game or settings of its own.
    pub fn join_with(&mut self, game: fn(&mut App), config: ClientConfig) -> TestClientId {
        let mut app = App::new();
        app.add_plugins((MinimalPlugins, TransformPlugin))
            .add_plugins((TandemClientPlugins::with_config(config), game));
        start(&mut app, TICK);
        let id = TestClientId(self.clients.len());
        self.clients.push(TestClient {
            app,
            frame: TICK,
            waited: Duration::ZERO,
            is_paused: false,
        });
        self.connect(id);
        id
    }

    /// Lets a client connect, with a new session. When it loses the link, it comes back over another.
    pub fn connect(&mut self, client: TestClientId) {
        let connector = self.connector.clone();
        let seed = self.conditions.seed.wrapping_add(client.0 as u64);
        let mut conditions = self.conditions.clone().with_seed(seed);
        self.client(client).connect_with(move |_: Option<&[u8]>| {
            let link = Conditioned::new(connector.connect(), conditions.clone());
            // Each link has dice of its own.
            conditions.seed = conditions.seed.wrapping_add(1_000);
            Ok(Box::new(link) as Box<dyn ClientTransport>)
        });
    }

    /// Lets a client's link go without a word, as when the network fails. The server finds out by silence, or when the
    /// client comes back.
    pub fn cut(&mut self, client: TestClientId) {
        self.client(client).cut_link();
    }

    /// Lets a client connect over a transport of the test's own.
    pub fn connect_over(&mut self, client: TestClientId, transport: impl ClientTransport) {
        self.client(client).connect_over(transport);
    }

    /// Where clients connect to.
    pub fn connector(&self) -> &LocalConnector {
        &self.connector
    }

    /// A client's app.
    pub fn client(&mut self, client: TestClientId) -> &mut App {
        &mut self.clients[client.0].app
    }

    /// The server's entity for a client's session, once it is in.
    pub fn session(&mut self, client: TestClientId) -> Option<Entity> {
        let id: SessionId = self
            .client(client)
            .world()
            .resource::<Connection>()
            .session()?;
        let mut sessions = self.server.world_mut().query::<(Entity, &Session)>();
        let found = sessions
            .iter(self.server.world())
            .find(|(_, session)| session.id == id);
        found.map(|(entity, _)| entity)
    }

    /// Sets how many frames a client draws per second. 60 by default, one per tick.
    pub fn set_frame_rate(&mut self, client: TestClientId, frames_per_second: f64) {
        let client = &mut self.clients[client.0];
        client.frame = Duration::from_secs_f64(1.0 / frames_per_second);
        client
            .app
            .insert_resource(TimeUpdateStrategy::ManualDuration(client.frame));
    }

    /// Stops a client, or lets it go on: its next frame then takes as long as the pause was.
    pub fn pause(&mut self, client: TestClientId, is_paused: bool) {
        self.clients[client.0].is_paused = is_paused;
    }

    /// Runs everything for the time of some ticks.
    pub fn run(&mut self, ticks: Ticks) {
        for _ in 0..ticks.0 {
            self.server.update();
            self.run_clients();
        }
    }

    /// Runs the clients alone: the server stands still, and goes on with a frame as long as the pause was.
    pub fn run_without_server(&mut self, ticks: Ticks) {
        for _ in 0..ticks.0 {
            self.run_clients();
        }
        self.frame += TICK * ticks.0;
        self.server
            .insert_resource(TimeUpdateStrategy::ManualDuration(self.frame));
        self.server.update();
        self.frame = TICK;
        self.server
            .insert_resource(TimeUpdateStrategy::ManualDuration(self.frame));
        self.run_clients();
    }

    fn run_clients(&mut self) {
        for client in &mut self.clients {
            client.waited += TICK;
            if client.is_paused {
                continue;
            }
            if client.waited > client.frame + TICK {
                // After a pause, one long frame.
                let long = client.waited;
                client.waited = Duration::ZERO;
                client
                    .app
                    .insert_resource(TimeUpdateStrategy::ManualDuration(long));
                client.app.update();
                client
                    .app
                    .insert_resource(TimeUpdateStrategy::ManualDuration(client.frame));
            }
            while client.waited >= client.frame {
                client.waited -= client.frame;
                client.app.update();
            }
        }
    }
}

/// Makes an app ready to be updated by hand.
fn start(app: &mut App, frame: Duration) {
    app.insert_resource(TimeUpdateStrategy::ManualDuration(frame));
    app.finish();
    app.cleanup();
}
