//! Sessions that go on over another kind of link: UDP to WebSocket and back, over the real network of this machine.

use std::net::SocketAddr;
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::client::{ClientConfig, ConnectOver, ResumeFinished, ResumeOutcome};
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::limits::SessionLimits;
use bevy_tandem::server::{LimitSettings, LinkedOver, ListenAddresses};
use bevy_tandem::session::{Away, SessionAway, SessionReturned};
use bevy_tandem::transport::udp::{Auth, ClientAuth, UdpClient, token};
use bevy_tandem::transport::ws::{WsAuth, WsClient, WsClientConfig, WsServerConfig};
use bevy_tandem::transport::{ClientTransport, TransportKind, UdpClientConfig};
use serde::{Deserialize, Serialize};

mod support;
use support::wait_for;

const LOOPBACK: &str = "127.0.0.1:0";

/// Changes in every tick.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Age(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbered(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Loose(u32);

/// What an app was told.
#[derive(Resource, Default)]
struct Log {
    joined: usize,
    away: usize,
    returned: Vec<u64>,
    left: usize,
    connected: usize,
    disconnected: usize,
    outcomes: Vec<ResumeOutcome>,
    numbered: Vec<u32>,
    loose: Vec<u32>,
}

fn game(app: &mut App) {
    app.replicate::<Age>();
    app.protocol()
        .add_message::<Numbered>(Channel::ReliableOrdered)
        .add_message::<Loose>(Channel::ReliableUnordered);
    app.init_resource::<Log>();
}

fn referee(app: &mut App) {
    app.add_observer(
        |joined: On<SessionJoined>, mut log: ResMut<Log>, mut commands: Commands| {
            log.joined += 1;
            commands.spawn((Replicated, OwnedBy(joined.entity), Age(0)));
        },
    )
    .add_observer(|_: On<SessionAway>, mut log: ResMut<Log>| log.away += 1)
    .add_observer(|back: On<SessionReturned>, mut log: ResMut<Log>| log.returned.push(back.lost))
    .add_observer(|_: On<SessionLeft>, mut log: ResMut<Log>| log.left += 1)
    .add_systems(
        Update,
        (
            |mut ages: Query<&mut Age>| ages.iter_mut().for_each(|mut age| age.0 += 1),
            |mut numbered: MessageReader<FromClient<Numbered>>,
             mut loose: MessageReader<FromClient<Loose>>,
             mut log: ResMut<Log>| {
                log.numbered.extend(numbered.read().map(|it| it.message.0));
                log.loose.extend(loose.read().map(|it| it.message.0));
            },
        ),
    );
}

fn player(app: &mut App) {
    app.add_observer(|_: On<Connected>, mut log: ResMut<Log>| log.connected += 1)
        .add_observer(|_: On<Disconnected>, mut log: ResMut<Log>| log.disconnected += 1)
        .add_observer(|done: On<ResumeFinished>, mut log: ResMut<Log>| {
            log.outcomes.push(done.outcome);
        })
        .add_systems(
            Update,
            |mut numbered: MessageReader<FromServer<Numbered>>,
             mut loose: MessageReader<FromServer<Loose>>,
             mut log: ResMut<Log>| {
                log.numbered.extend(numbered.read().map(|it| it.0.0));
                log.loose.extend(loose.read().map(|it| it.0.0));
            },
        );
}

fn ready(mut app: App) -> App {
    app.finish();
    app.cleanup();
    app
}

/// A server with both transports, one client, and what they have said to each other.
struct Match {
    server: App,
    client: App,
    session: Entity,
    udp: SocketAddr,
    url: String,
    said: u32,
}

fn server(config: ServerConfig) -> (App, SocketAddr, SocketAddr) {
    let mut app = App::new();
    let config = ServerConfig {
        udp: Some(LOOPBACK.parse().unwrap()),
        websocket: Some(WsServerConfig::new(LOOPBACK.parse().unwrap())),
        // Both say more than anybody may in the long run.
        limits: LimitSettings {
            session: SessionLimits::UNLIMITED,
            ..default()
        },
        ..config
    };
    let plugins = TandemServerPlugins::with_config(config);
    app.add_plugins((MinimalPlugins, plugins, game, referee));
    let app = ready(app);
    let addresses = &app.world().resource::<ListenAddresses>().0;
    let (udp, ws) = (addresses[0], addresses[1]);
    (app, udp, ws)
}

fn client() -> App {
    let mut app = App::new();
    let config = ClientConfig {
        name: "Ada".into(),
        ..default()
    };
    let plugins = TandemClientPlugins::with_config(config);
    app.add_plugins((MinimalPlugins, plugins, game, player));
    ready(app)
}

impl Match {
    /// A client that has joined over UDP.
    fn new(config: ServerConfig) -> Self {
        let (server, udp, ws) = server(config);
        let mut client = client();
        client.connect_over(over_udp(udp));
        let mut it = Self {
            server,
            client,
            session: Entity::PLACEHOLDER,
            udp,
            url: format!("ws://{ws}/"),
            said: 0,
        };
        it.begin();
        it
    }

    /// Waits until the client is in and sees what it owns.
    fn begin(&mut self) {
        self.until("the client joins", |it| it.copy().is_some());
        let world = self.server.world_mut();
        let mut sessions = world.query_filtered::<Entity, With<Session>>();
        self.session = sessions.single(world).expect("one session");
    }

    fn over_websocket(&self) -> WsClient {
        WsClient::connect(WsClientConfig::new(&self.url)).expect("a good URL")
    }

    /// Steps both until something is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&mut Self) -> bool) {
        wait_for(what, || {
            self.server.update();
            self.client.update();
            is_so(self).then_some(())
        });
    }

    /// The client's copy of what it owns, and how old it is there.
    fn copy(&mut self) -> Option<(Entity, u32)> {
        let world = self.client.world_mut();
        let mut copies = world.query_filtered::<(Entity, &Age), With<Owned>>();
        let (entity, age) = copies.single(world).ok()?;
        Some((entity, age.0))
    }

    /// Both sides say the next numbers.
    fn talk(&mut self, times: u32) {
        for number in self.said..self.said + times {
            let (to, server) = (Target::All, self.server.world_mut());
            let message = Numbered(number);
            server.write_message(ToClients { to, message });
            let message = Loose(number);
            server.write_message(ToClients { to, message });
            let client = self.client.world_mut();
            client.write_message(ToServer(Numbered(number)));
            client.write_message(ToServer(Loose(number)));
        }
        self.said += times;
    }

    /// All that was said has arrived, once and in order.
    fn assert_all_arrive(&mut self) {
        let said = self.said as usize;
        self.until("all messages arrive", |it| {
            [&it.server, &it.client].into_iter().all(|app| {
                let log = app.world().resource::<Log>();
                log.numbered.len() >= said && log.loose.len() >= said
            })
        });
        let all: Vec<_> = (0..self.said).collect();
        for (app, whose) in [(&self.server, "server"), (&self.client, "client")] {
            let log = app.world().resource::<Log>();
            assert_eq!(log.numbered, all, "ordered, at the {whose}");
            let mut loose = log.loose.clone();
            loose.sort_unstable();
            assert_eq!(loose, all, "in whichever order, at the {whose}");
        }
    }

    fn linked_over(&self) -> Option<TransportKind> {
        let linked = self.server.world().get::<LinkedOver>(self.session);
        linked.map(|over| over.0)
    }

    fn log(&self) -> &Log {
        self.server.world().resource()
    }

    fn client_log(&self) -> &Log {
        self.client.world().resource()
    }

    /// Goes on over this transport while both talk, and checks that it is the same session with the same copies.
    fn switch(&mut self, transport: impl ClientTransport) {
        let kind = transport.kind();
        let returned = self.log().returned.len();
        let (copy, _) = self.copy().expect("the client has it");
        let id = self.client.world().resource::<Connection>().session();
        // These are not on their way yet when the link is let go.
        self.talk(20);
        self.client.resume_over(transport);
        self.talk(20);
        let enough = self.said + 50;
        self.until("the session goes on", |it| {
            it.talk(u32::from(it.said < enough));
            it.client_log().outcomes.len() > returned && it.log().returned.len() > returned
        });
        self.talk(20);
        self.assert_all_arrive();

        assert_eq!(self.linked_over(), Some(kind));
        let connection = self.client.world().resource::<Connection>();
        assert_eq!(connection.state(), ConnectionState::Connected);
        assert_eq!(connection.session(), id, "the same session");
        let (same, age) = self.copy().expect("the client has it still");
        assert_eq!(same, copy, "not spawned anew");
        self.until("the copy goes on ageing", |it| {
            it.copy().is_some_and(|(_, now)| now > age + 10)
        });
    }

    /// So many switches, and nothing was lost or noticed.
    fn assert_went_smoothly(&self, switches: usize) {
        let log = self.log();
        assert_eq!((log.joined, log.left), (1, 0));
        assert_eq!(log.returned, vec![0; switches]);
        let log = self.client_log();
        assert_eq!((log.connected, log.disconnected), (1, 0));
        assert_eq!(log.outcomes, vec![ResumeOutcome::Resumed; switches]);
    }
}

fn over_udp(address: SocketAddr) -> UdpClient {
    UdpClient::connect(UdpClientConfig::insecure(address)).expect("a socket")
}

#[test]
fn a_session_moves_from_udp_to_websocket_and_back() {
    // Nobody tells the server that a UDP link is dead, and it does not find out by itself either.
    let mut game = Match::new(ServerConfig {
        client_timeout: Duration::from_secs(60),
        ..default()
    });
    for round in 1..=2 {
        assert_eq!(game.linked_over(), Some(TransportKind::Udp));
        let away = game.log().away;
        let websocket = game.over_websocket();
        game.switch(websocket);
        assert_eq!(game.log().away, away, "it was never without a link");
        let udp = over_udp(game.udp);
        game.switch(udp);
        game.assert_went_smoothly(2 * round);
    }
}

#[test]
fn a_session_that_is_away_comes_back_over_the_other_transport() {
    let mut game = Match::new(ServerConfig {
        client_timeout: Duration::from_millis(500),
        ..default()
    });
    // The client hangs, and the server gives its link up.
    let Match { server, .. } = &mut game;
    wait_for("the session is away", || {
        server.update();
        (server.world().resource::<Log>().away > 0).then_some(())
    });
    assert!(game.server.world().get::<Away>(game.session).is_some());
    assert_eq!(game.linked_over(), None);
    game.talk(30);
    game.server.update();
    let websocket = game.over_websocket();
    game.switch(websocket);
    assert!(game.server.world().get::<Away>(game.session).is_none());
    game.assert_went_smoothly(1);
}

#[test]
fn a_connect_token_of_the_server_opens_a_link_over_the_other_transport() {
    let private_key = [7; 32];
    let (server, udp, ws) = server(ServerConfig {
        auth: Auth::Secure { private_key },
        ..default()
    });
    let mut client = client();
    let url = format!("ws://{ws}/");
    let from_back_end = token::TokenBuilder::new(1, vec![udp, ws])
        .issue(&private_key)
        .unwrap();
    let mut links = 0;
    let websocket = url.clone();
    client.connect_with(move |given: Option<&[u8]>| {
        links += 1;
        let token = given.map_or_else(|| token::to_bytes(&from_back_end), Into::into);
        Ok(if links % 2 == 0 {
            let config = WsClientConfig {
                auth: WsAuth::Token(token),
                ..WsClientConfig::new(&websocket)
            };
            let link = WsClient::connect(config).map_err(|error| error.to_string())?;
            Box::new(link) as Box<dyn ClientTransport>
        } else {
            let token = token::from_bytes(&token).map_err(|error| error.to_string())?;
            let config = UdpClientConfig::new(ClientAuth::Token(Box::new(token)));
            let link = UdpClient::connect(config).map_err(|error| error.to_string())?;
            Box::new(link)
        })
    });
    let mut game = Match {
        server,
        client,
        session: Entity::PLACEHOLDER,
        udp,
        url,
        said: 0,
    };
    game.begin();
    let (copy, _) = game.copy().unwrap();
    for (round, kind) in [TransportKind::WebSocket, TransportKind::Udp]
        .into_iter()
        .enumerate()
    {
        game.talk(20);
        game.client.cut_link();
        game.talk(20);
        game.until("the session goes on", |it| {
            it.log().returned.len() > round && it.client_log().outcomes.len() > round
        });
        game.assert_all_arrive();
        assert_eq!(game.linked_over(), Some(kind));
        assert_eq!(game.copy().map(|(copy, _)| copy), Some(copy));
    }
    game.assert_went_smoothly(2);
}
