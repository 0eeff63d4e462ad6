//! A game that has bevy_renet and keeps it: its chat goes over a channel of renet's, as it always did, and its boats
//! over bevy_tandem, which travels on another.
//!
//!     cargo run --example renet_bridge -- server
//!     cargo run --example renet_bridge -- client 1
//!     cargo run --example renet_bridge -- client 2
//!
//! Without a window: each client rows, and prints where the boats are and what others say. Ctrl-C leaves.

#[allow(dead_code, reason = "each program needs its part")]
#[path = "support/args.rs"]
mod args;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bevy::log::LogPlugin;
use bevy::prelude::*;
use bevy::time::common_conditions::on_timer;
use bevy_renet::netcode::{
    ClientAuthentication, NetcodeClientPlugin, NetcodeClientTransport, NetcodeServerPlugin,
    NetcodeServerTransport, ServerAuthentication, ServerConfig as NetcodeConfig,
};
use bevy_renet::renet::{ClientId, ConnectionConfig, DefaultChannel};
use bevy_renet::{RenetClient, RenetClientPlugin, RenetServer, RenetServerPlugin};
use bevy_tandem::headless::HeadlessPlugin;
use bevy_tandem::prelude::*;
use bevy_tandem::renet_bridge::{
    RenetBridgeClientPlugin, RenetBridgeServerPlugin, RenetPeer, channel_config,
};
use serde::{Deserialize, Serialize};

const USAGE: &str = "usage: cargo run --example renet_bridge -- server | client ID";

const SERVER: ([u8; 4], u16) = ([127, 0, 0, 1], 5000);

const PROTOCOL: u64 = 1;

/// renet's channel for all of bevy_tandem. The game does not touch it.
const TANDEM_CHANNEL: u8 = 9;

fn main() -> AppExit {
    let line: Vec<String> = std::env::args().skip(1).collect();
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        HeadlessPlugin::default(),
        LogPlugin::default(),
    ));
    match line[..] {
        ["server"] => server(&mut app),
        ["client", id] => client(&mut app, args::or_fail(id.parse())),
        _ => args::fail(USAGE),
    }
    app.run()
}

/// The game's channels, and one more. The same on both sides.
fn connection_config() -> ConnectionConfig {
    let mut channels = DefaultChannel::config();
    channels.push(channel_config(TANDEM_CHANNEL));
    ConnectionConfig {
        server_channels_config: channels.clone(),
        client_channels_config: channels,
        ..default()
    }
}

fn server(app: &mut App) {
    // What the game had.
    let socket = args::or_fail(UdpSocket::bind(SocketAddr::from(SERVER)));
    let config = NetcodeConfig {
        current_time: unix_time(),
        max_clients: 8,
        protocol_id: PROTOCOL,
        public_addresses: vec![SERVER.into()],
        authentication: ServerAuthentication::Unsecure,
    };
    app.add_plugins((RenetServerPlugin, NetcodeServerPlugin))
        .insert_resource(RenetServer::new(connection_config()))
        .insert_resource(args::or_fail(NetcodeServerTransport::new(config, socket)))
        .add_systems(Update, pass_on_what_is_said);

    // What is new.
    let bridge = RenetBridgeServerPlugin {
        describe: |world, client| RenetPeer {
            addr: world
                .resource::<NetcodeServerTransport>()
                .client_addr(client),
            ..default()
        },
        ..RenetBridgeServerPlugin::new(TANDEM_CHANNEL)
    };
    app.add_plugins((TandemServerPlugins::default(), bridge, game))
        .add_observer(launch);
}

fn client(app: &mut App, id: ClientId) {
    // What the game had.
    let authentication = ClientAuthentication::Unsecure {
        protocol_id: PROTOCOL,
        client_id: id,
        server_addr: SERVER.into(),
        user_data: None,
    };
    let socket = args::or_fail(UdpSocket::bind("127.0.0.1:0"));
    let transport = NetcodeClientTransport::new(unix_time(), authentication, socket);
    app.add_plugins((RenetClientPlugin, NetcodeClientPlugin))
        .insert_resource(RenetClient::new(connection_config()))
        .insert_resource(args::or_fail(transport))
        .add_systems(Update, hear)
        .add_systems(Update, talk.run_if(on_timer(Duration::from_secs(5))));

    // What is new.
    app.add_plugins((
        TandemClientPlugins::default().named(format!("Rower {id}")),
        RenetBridgeClientPlugin::new(TANDEM_CHANNEL),
        game,
    ))
    .insert_resource(LocalInput(Row(1)))
    .add_systems(Update, show.run_if(on_timer(Duration::from_secs(1))))
    .add_observer(give_up);
}

fn give_up(end: On<Disconnected>, mut exit: MessageWriter<AppExit>) {
    if end.reason != DisconnectReason::ClientLeft {
        error!("{}", end.reason);
        exit.write(AppExit::error());
    }
}

fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// How hard to row in one tick, and in which direction: from -1 to 1.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Row(i8);

/// Metres from the shore.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Boat(f32);

fn game(app: &mut App) {
    app.add_input::<Row>()
        .accumulate(|tick, frame| tick.0 = frame.0)
        .validate(|row| row.0 = row.0.clamp(-1, 1));
    app.replicate::<Boat>().predict();
    app.add_systems(FixedUpdate, row);
}

fn row(mut boats: Query<(&Input<Row>, &mut Boat), With<Simulated>>, time: Res<Time>) {
    for (Input(Row(effort)), mut boat) in &mut boats {
        boat.0 += f32::from(*effort) * time.delta_secs();
    }
}

fn launch(joined: On<SessionJoined>, mut commands: Commands) {
    commands.spawn((Replicated, OwnedBy(joined.entity), Boat(0.0)));
}

fn show(boats: Query<(&Boat, Has<Owned>)>) {
    for (Boat(distance), is_ours) in &boats {
        let whose = if is_ours { "Our" } else { "Another" };
        info!("{whose} boat is at {distance:.1} m");
    }
}

fn talk(mut client: ResMut<RenetClient>) {
    if client.is_connected() {
        client.send_message(DefaultChannel::ReliableOrdered, "Ahoy!");
    }
}

fn hear(mut client: ResMut<RenetClient>) {
    while let Some(text) = client.receive_message(DefaultChannel::ReliableOrdered) {
        info!("somebody says: {}", String::from_utf8_lossy(&text));
    }
}

fn pass_on_what_is_said(mut server: ResMut<RenetServer>) {
    for id in server.clients_id() {
        while let Some(text) = server.receive_message(id, DefaultChannel::ReliableOrdered) {
            server.broadcast_message_except(id, DefaultChannel::ReliableOrdered, text);
        }
    }
}
