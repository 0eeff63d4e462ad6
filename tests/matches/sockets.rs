//! Over real sockets of this machine.

use std::net::UdpSocket;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::server::ListenAddresses;
use serde::{Deserialize, Serialize};

use crate::support::wait_for;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Blob(Vec<u8>);

#[derive(Resource, Default)]
struct Blobs(Vec<usize>);

fn blobs(app: &mut App) {
    app.protocol().add_message::<Blob>(Channel::ReliableOrdered);
    app.init_resource::<Blobs>();
}

fn taking(app: &mut App) {
    blobs(app);
    app.add_systems(
        Update,
        |mut came: MessageReader<FromServer<Blob>>, mut blobs: ResMut<Blobs>| {
            blobs.0.extend(came.read().map(|blob| blob.0.0.len()));
        },
    );
}

fn ready(mut app: App) -> App {
    app.finish();
    app.cleanup();
    app
}

/// A server on free ports, and a client that connects to the one that `address` makes of the ports.
fn pair(server: TandemServerPlugins, address: impl Fn(&[u16]) -> String) -> (App, App) {
    let mut app = App::new();
    app.add_plugins((MinimalPlugins, server, blobs));
    let mut server = ready(app);
    server.update();
    let listens = &server.world().resource::<ListenAddresses>().0;
    let ports: Vec<_> = listens.iter().map(std::net::SocketAddr::port).collect();
    let mut app = App::new();
    let client = TandemClientPlugins::connect(&address(&ports));
    app.add_plugins((MinimalPlugins, client, taking));
    (server, ready(app))
}

fn connects((mut server, mut client): (App, App)) -> (App, App) {
    wait_for("the client is in", || {
        server.update();
        client.update();
        let state = client.world().resource::<Connection>().state();
        (state == ConnectionState::Connected).then_some(())
    });
    (server, client)
}

#[test]
fn ipv6_works() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return; // a machine without it
    }
    let _ = connects(pair(TandemServerPlugins::listen("[::1]:0"), |ports| {
        format!("[::1]:{}", ports[0])
    }));
}

#[test]
fn a_host_name_works() {
    let _ = connects(pair(TandemServerPlugins::listen("127.0.0.1:0"), |ports| {
        format!("localhost:{}", ports[0])
    }));
}

#[test]
fn a_message_of_nearly_a_megabyte_passes_over_websocket() {
    let server = TandemServerPlugins::listen("127.0.0.1:0").websocket("127.0.0.1:0");
    let (mut server, mut client) = connects(pair(server, |ports| {
        format!("ws://127.0.0.1:{}/", ports[1])
    }));
    // Does not compress.
    let mut rng = fastrand::Rng::with_seed(1);
    let message = Blob((0..1_000_000).map(|_| rng.u8(..)).collect());
    server.world_mut().write_message(ToClients {
        to: Target::All,
        message,
    });
    wait_for("the message", || {
        server.update();
        client.update();
        (client.world().resource::<Blobs>().0 == [1_000_000]).then_some(())
    });
}
