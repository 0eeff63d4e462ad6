//! Whole games over the renet that they already have, with its netcode transport, on the loopback interface.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bevy::prelude::*;
use bevy_renet::netcode::{
    ClientAuthentication, NetcodeClientPlugin, NetcodeClientTransport, NetcodeServerPlugin,
    NetcodeServerTransport, ServerAuthentication, ServerConfig as NetcodeConfig,
};
use bevy_renet::renet::{ClientId, ConnectionConfig, DefaultChannel, RenetServer as PlainServer};
use bevy_renet::{RenetClient, RenetClientPlugin, RenetServer, RenetServerPlugin};
use bevy_tandem::client::{ReconnectScheduled, ResumeFinished, ResumeOutcome};
use bevy_tandem::identity::Identity;
use bevy_tandem::prelude::*;
use bevy_tandem::renet_bridge::{
    RENET_LINK, RenetBridgeClientPlugin, RenetBridgeServerPlugin, RenetPeer, channel_config,
};
use bevy_tandem::server::{ClientAddress, LinkedOver};
use bevy_tandem::session::Away;
use serde::{Deserialize, Serialize};

/// More than any of these needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of the game's renet, and not one of its own channels.
const TANDEM_CHANNEL: u8 = 9;

const PROTOCOL: u64 = 5;

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u32);

/// Too large for one datagram.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Map(Vec<u8>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Chat(String);

/// What an app was told.
#[derive(Resource, Default)]
struct Log {
    said: Vec<String>,
    heard: Vec<String>,
    maps: usize,
    left: Vec<DisconnectReason>,
    disconnected: Vec<DisconnectReason>,
    outcomes: Vec<ResumeOutcome>,
    attempts: usize,
}

fn game(app: &mut App) {
    app.replicate::<Health>();
    app.protocol()
        .add_message::<Chat>(Channel::ReliableOrdered)
        .add_message::<Map>(Channel::ReliableOrdered);
    app.init_resource::<Log>();
}

fn referee(app: &mut App) {
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Health(100)));
    })
    .add_observer(|left: On<SessionLeft>, mut log: ResMut<Log>| {
        log.left.push(left.reason.clone());
    })
    .add_systems(
        Update,
        |mut said: MessageReader<FromClient<Chat>>, mut log: ResMut<Log>| {
            log.said
                .extend(said.read().map(|chat| chat.message.0.clone()));
        },
    );
}

fn player(app: &mut App) {
    app.add_observer(|end: On<Disconnected>, mut log: ResMut<Log>| {
        log.disconnected.push(end.reason.clone());
    })
    .add_observer(|end: On<ResumeFinished>, mut log: ResMut<Log>| log.outcomes.push(end.outcome))
    .add_observer(|_: On<ReconnectScheduled>, mut log: ResMut<Log>| log.attempts += 1)
    .add_systems(
        Update,
        |mut heard: MessageReader<FromServer<Chat>>,
         mut maps: MessageReader<FromServer<Map>>,
         mut log: ResMut<Log>| {
            log.heard.extend(heard.read().map(|chat| chat.0.0.clone()));
            log.maps += maps.read().filter(|map| map.0.0.len() == 100_000).count();
        },
    );
}

fn connection_config() -> ConnectionConfig {
    let mut channels = DefaultChannel::config();
    channels.push(channel_config(TANDEM_CHANNEL));
    ConnectionConfig {
        server_channels_config: channels.clone(),
        client_channels_config: channels,
        ..default()
    }
}

fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
}

fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("a free port")
}

struct Net {
    server: App,
    client: App,
    addr: SocketAddr,
}

impl Net {
    /// A server, and a client that has not connected.
    fn new() -> Self {
        Self::with(
            RenetBridgeServerPlugin::new(TANDEM_CHANNEL),
            ServerConfig::default(),
        )
    }

    fn with(bridge: RenetBridgeServerPlugin, config: ServerConfig) -> Self {
        let tandem = TandemServerPlugins::with_config(config);
        let socket = socket();
        let addr = socket.local_addr().expect("it is bound");
        let config = NetcodeConfig {
            current_time: unix_time(),
            max_clients: 8,
            protocol_id: PROTOCOL,
            public_addresses: vec![addr],
            authentication: ServerAuthentication::Unsecure,
        };
        let mut server = App::new();
        server
            .add_plugins((MinimalPlugins, RenetServerPlugin, NetcodeServerPlugin))
            .add_plugins((tandem, bridge, game, referee))
            .insert_resource(RenetServer::new(connection_config()))
            .insert_resource(NetcodeServerTransport::new(config, socket).expect("a transport"));
        let mut client = App::new();
        client
            .add_plugins((MinimalPlugins, RenetClientPlugin, NetcodeClientPlugin))
            .add_plugins((
                TandemClientPlugins::default(),
                RenetBridgeClientPlugin::new(TANDEM_CHANNEL),
                game,
                player,
            ));
        for app in [&mut server, &mut client] {
            app.finish();
            app.cleanup();
        }
        Self {
            server,
            client,
            addr,
        }
    }

    fn joined() -> Self {
        let mut net = Self::new();
        net.connect(1);
        net.until("the client joins and sees its ship", |net| {
            net.is_connected() && net.ship().is_some()
        });
        net
    }

    /// The game connects, or connects anew.
    fn connect(&mut self, client_id: ClientId) {
        let authentication = ClientAuthentication::Unsecure {
            protocol_id: PROTOCOL,
            client_id,
            server_addr: self.addr,
            user_data: None,
        };
        let transport = NetcodeClientTransport::new(unix_time(), authentication, socket());
        self.client
            .insert_resource(RenetClient::new(connection_config()))
            .insert_resource(transport.expect("a transport"));
    }

    /// The network fails: nothing is said.
    fn unplug(&mut self) {
        self.client
            .world_mut()
            .remove_resource::<NetcodeClientTransport>();
        self.client.world_mut().remove_resource::<RenetClient>();
    }

    fn step(&mut self) {
        self.server.update();
        self.client.update();
        std::thread::sleep(Duration::from_millis(2));
    }

    /// Steps until it is so.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < end,
                "{what}; {:?}, server: {:?}",
                self.client.world().resource::<Connection>(),
                self.server.world().resource::<ServerStats>().transport,
            );
            self.step();
        }
    }

    fn state(&self) -> ConnectionState {
        self.client.world().resource::<Connection>().state()
    }

    fn is_connected(&self) -> bool {
        self.state() == ConnectionState::Connected
    }

    /// The client's copy of its ship.
    fn ship(&mut self) -> Option<Entity> {
        let world = self.client.world_mut();
        let mut ships = world.query_filtered::<Entity, (With<Health>, With<Owned>)>();
        ships.single(world).ok()
    }

    fn session(&mut self) -> Option<Entity> {
        let world = self.server.world_mut();
        let mut sessions = world.query_filtered::<Entity, With<Session>>();
        sessions.single(world).ok()
    }

    fn renet_clients(&self) -> Vec<ClientId> {
        let server: &PlainServer = self.server.world().resource::<RenetServer>();
        server.clients_id()
    }

    fn say(&mut self, text: &str) {
        self.client
            .world_mut()
            .write_message(ToServer(Chat(text.into())));
    }

    fn tell(&mut self, text: &str) {
        self.server.world_mut().write_message(ToClients {
            to: Target::All,
            message: Chat(text.into()),
        });
    }
}

fn log(app: &App) -> &Log {
    app.world().resource::<Log>()
}

#[test]
fn a_game_runs_over_its_own_renet() {
    let mut net = Net::joined();
    let session = net.session().expect("it has joined");
    let linked = net.server.world().get::<LinkedOver>(session);
    assert_eq!(
        linked.map(|it| it.0),
        Some(RENET_LINK),
        "and says over what"
    );

    let world = net.server.world_mut();
    world
        .query::<&mut Health>()
        .single_mut(world)
        .expect("one ship")
        .0 = 55;
    net.until("a change is replicated", |net| {
        let ship = net.ship().expect("it stays");
        net.client.world().get::<Health>(ship) == Some(&Health(55))
    });

    net.say("hello");
    net.tell("welcome");
    net.server.world_mut().write_message(ToClients {
        to: Target::All,
        message: Map(vec![7; 100_000]),
    });
    net.until("messages arrive both ways, large ones too", |net| {
        log(&net.server).said == ["hello"]
            && log(&net.client).heard == ["welcome"]
            && log(&net.client).maps == 1
    });
}

#[test]
fn the_games_own_channels_still_work() {
    let mut net = Net::joined();
    for channel in [DefaultChannel::ReliableOrdered, DefaultChannel::Unreliable] {
        let channel: u8 = channel.into();
        net.client
            .world_mut()
            .resource_mut::<RenetClient>()
            .send_message(channel, "up");
        net.server
            .world_mut()
            .resource_mut::<RenetServer>()
            .send_message(1, channel, "down");
        let (mut up, mut down) = (None, None);
        net.until("both arrive", |net| {
            let mut server = net.server.world_mut().resource_mut::<RenetServer>();
            up = up.take().or_else(|| server.receive_message(1, channel));
            let mut client = net.client.world_mut().resource_mut::<RenetClient>();
            down = down.take().or_else(|| client.receive_message(channel));
            up.is_some() && down.is_some()
        });
        assert_eq!(
            (up.as_deref(), down.as_deref()),
            (Some(&b"up"[..]), Some(&b"down"[..]))
        );
    }
}

#[test]
fn who_leaves_the_game_leaves_renet() {
    let mut net = Net::joined();
    net.client.world_mut().trigger(Disconnect);
    net.until("the session ends and renet too", |net| {
        net.session().is_none() && net.renet_clients().is_empty()
    });
    assert_eq!(
        log(&net.server).left,
        [DisconnectReason::ClientLeft],
        "said and heard"
    );
    assert!(
        net.client
            .world()
            .resource::<RenetClient>()
            .is_disconnected(),
        "on both sides"
    );
    assert_eq!(net.state(), ConnectionState::Disconnected);

    net.connect(1);
    net.until("they come back as somebody new", |net| {
        net.is_connected() && net.ship().is_some()
    });
}

#[test]
fn who_quits_the_app_is_away_at_once() {
    let config = ServerConfig {
        client_timeout: Duration::from_secs(60),
        ..default()
    };
    let mut net = Net::with(RenetBridgeServerPlugin::new(TANDEM_CHANNEL), config);
    net.connect(1);
    net.until("the client joins", |net| net.is_connected());
    net.client.world_mut().write_message(AppExit::Success);
    net.client.update();
    let mut updates = 0;
    let is_away = |net: &mut Net| {
        let session = net.session().expect("it is kept");
        net.server.world().get::<Away>(session).is_some()
    };
    while !is_away(&mut net) {
        net.server.update();
        updates += 1;
        assert!(
            updates < 100,
            "the transport tells, and nothing has to time out"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn who_is_kicked_hears_why_and_is_disconnected_from_renet() {
    let mut net = Net::joined();
    let session = net.session().expect("it has joined");
    net.server.world_mut().trigger(Kick {
        session,
        reason: "spawn camping".into(),
    });
    net.until("renet lets go", |net| {
        net.renet_clients().is_empty() && !net.is_connected()
    });
    let reason = DisconnectReason::Kicked("spawn camping".into());
    assert_eq!(
        log(&net.client).disconnected,
        [reason],
        "after the last word"
    );
}

#[test]
fn who_disconnects_from_renet_keeps_the_session_for_a_while() {
    let mut net = Net::joined();
    net.client
        .world_mut()
        .resource_mut::<RenetClient>()
        .disconnect();
    net.until("the server knows", |net| {
        let session = net.session().expect("it is kept");
        net.server.world().get::<Away>(session).is_some()
    });
    net.until("so does the client", |net| {
        net.state() == ConnectionState::Reconnecting
    });
}

#[test]
fn a_session_goes_on_over_another_renet_client() {
    let mut net = Net::joined();
    let (session, ship) = (net.session(), net.ship());
    net.unplug();
    net.until("the client notices", |net| {
        net.state() == ConnectionState::Reconnecting
    });
    assert!(log(&net.client).attempts >= 1, "and says when it will try");
    net.say("while away");
    net.tell("meanwhile");

    // The server has not noticed yet: it goes by another id.
    net.connect(2);
    net.until("the client is back", net_is_back);
    assert_eq!(log(&net.client).outcomes, [ResumeOutcome::Resumed]);
    assert_eq!(
        (net.session(), net.ship()),
        (session, ship),
        "it is the same session"
    );
    net.until("what was missed arrives", |net| {
        log(&net.server).said == ["while away"] && log(&net.client).heard == ["meanwhile"]
    });
    net.until("the server lets go of the old connection", |net| {
        net.renet_clients() == [2]
    });
}

#[test]
fn a_client_may_be_replaced_while_it_is_connected() {
    let mut net = Net::joined();
    let ship = net.ship();
    net.connect(3);
    net.until("the session goes on", net_is_back);
    assert_eq!(net.ship(), ship, "the same");
    assert!(log(&net.server).left.is_empty());
}

fn net_is_back(net: &mut Net) -> bool {
    net.is_connected() && !log(&net.client).outcomes.is_empty()
}

#[test]
fn a_server_that_does_not_answer_fails_the_connection() {
    let mut net = Net::new();
    net.addr = socket().local_addr().expect("it was bound");
    net.connect(1);
    net.step();
    assert_eq!(net.state(), ConnectionState::Connecting, "it is on the way");
    // As after renet's own timeout.
    let mut client = net.client.world_mut().resource_mut::<RenetClient>();
    client.disconnect_due_to_transport();
    net.until("it fails", |net| net.state() == ConnectionState::Failed);
}

#[test]
fn a_client_that_says_nothing_on_the_channel_is_let_go() {
    let config = ServerConfig {
        hello_timeout: Duration::from_millis(300),
        ..default()
    };
    let mut net = Net::with(RenetBridgeServerPlugin::new(TANDEM_CHANNEL), config);
    // A plain renet client, without the bridge.
    let mut plain = App::new();
    plain.add_plugins((MinimalPlugins, RenetClientPlugin, NetcodeClientPlugin));
    std::mem::swap(&mut net.client, &mut plain);
    net.connect(1);
    std::mem::swap(&mut net.client, &mut plain);
    net.until("it comes", |net| {
        plain.update();
        net.renet_clients() == [1]
    });
    net.until("and goes", |net| {
        plain.update();
        net.renet_clients().is_empty()
    });
    assert!(net.session().is_none(), "without a session");
}

#[test]
fn what_the_game_knows_of_a_client_becomes_its_identity() {
    let bridge = RenetBridgeServerPlugin {
        describe: |world, client| RenetPeer {
            addr: world
                .resource::<NetcodeServerTransport>()
                .client_addr(client),
            secure: true,
            ..default()
        },
        ..RenetBridgeServerPlugin::new(TANDEM_CHANNEL)
    };
    let mut net = Net::with(bridge, ServerConfig::default());
    net.connect(77);
    net.until("the client joins", |net| net.is_connected());
    let session = net.session().expect("it has joined");
    assert_eq!(
        net.server.world().get::<Identity>(session),
        Some(&Identity::of_client(77, true)),
        "as the transport vouches for it"
    );
    let address = net
        .server
        .world()
        .get::<ClientAddress>(session)
        .expect("it is known");
    assert!(address.0.ip().is_loopback(), "{address:?}");
}

#[test]
fn ids_of_renet_are_claims_unless_the_game_says_otherwise() {
    let mut net = Net::joined();
    let session = net.session().expect("it has joined");
    assert_eq!(
        net.server.world().get::<Identity>(session),
        Some(&Identity::of_client(1, false))
    );
}
