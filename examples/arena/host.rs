//! The server as an app: what `serve` runs, and `play` on a thread of its own.

use std::net::{SocketAddr, UdpSocket};

use bevy::prelude::*;
use bevy_tandem::headless::HeadlessPlugin;
use bevy_tandem::prelude::*;
use bevy_tandem::transport::ws::{WsServer, WsServerConfig};
use fastrand::Rng;

use crate::game::{self, Debris};
use crate::map;

/// Where servers listen unless told otherwise: reached from this machine only.
pub fn default_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5000))
}

/// A server of the arena with `statics` things that never move.
pub fn server(config: ServerConfig, statics: u32, headless: HeadlessPlugin) -> App {
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemServerPlugins::with_config(config),
        headless,
        game::game,
        game::referee,
    ))
    .add_systems(Startup, move |mut commands: Commands| {
        scatter(statics, &mut commands);
    });
    app
}

/// Why nobody can listen as this configuration says, if so.
pub fn listen_error(config: &ServerConfig) -> Option<String> {
    if let Some(address) = config.udp
        && let Err(error) = UdpSocket::bind(address)
    {
        return Some(format!("cannot listen on {address}: {error}"));
    }
    // Tried with all it needs: certificates may be missing, too.
    let websocket = WsServerConfig {
        insecure_anywhere: true,
        ..config.websocket.clone()?
    };
    WsServer::bind(websocket)
        .err()
        .map(|error| error.to_string())
}

fn scatter(statics: u32, commands: &mut Commands) {
    let mut rng = Rng::with_seed(1);
    for _ in 0..statics {
        let place = Vec2::new(rng.f32() - 0.5, rng.f32() - 0.5) * 2.0 * map::HALF_SIZE;
        let transform = Transform::from_translation(place.extend(0.0));
        commands.spawn((Replicated, Debris, transform));
    }
}
