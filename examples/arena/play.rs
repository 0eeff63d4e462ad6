//! The arena in a window.
//!
//!     cargo play                                    a match against bots, on this machine
//!     cargo play --connect ADDR [--name NAME]       a match elsewhere; an address, or ws:// or wss:// and a host
//!
//! WASD steers, the mouse aims, its left button fires, F1 shows what the network does.

mod brain;
mod crowd;
mod game;
mod host;
mod ledger;
mod map;
mod view;

use std::env;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::headless::{HeadlessPlugin, args};
use bevy_tandem::prelude::*;
use lexopt::{Parser, ValueExt};

use brain::BrainPlugin;
use crowd::{Crowd, CrowdPlan, Way};
use view::ViewPlugin;

const USAGE: &str = "\
usage: cargo play [--connect ADDR] [--name NAME]

  --connect ADDR  join this server: 192.0.2.1:5000, or wss://game.example.org; by default a match with bots is
                  hosted here
  --name NAME     what others see; your login name by default";
const BOTS: usize = 6;

fn main() -> AppExit {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    if !has_display() {
        args::fail(
            "there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); `cargo serve` needs none",
        );
    }
    let server = options.connect.unwrap_or_else(|| host_match().to_string());

    let mut app = App::new();
    app.add_plugins((
        DefaultPlugins.set(view::window()).set(view::assets()),
        TandemClientPlugins::connect(&server).named(options.name),
        game::game,
        ViewPlugin {
            screenshot: options.screenshot,
        },
    ));
    if options.autopilot {
        app.add_plugins(BrainPlugin {
            seed: 99,
            still: false,
        });
    }
    app.run()
}

/// Starts a server and bots on threads of their own, which end with the process.
fn host_match() -> SocketAddr {
    let address = free_address();
    println!(
        "Hosting on {address}. Others on this machine join with: cargo play --connect {address}"
    );
    let config = ServerConfig {
        udp: Some(address),
        ..default()
    };
    thread::spawn(move || host::server(config, 0, HeadlessPlugin::default()).run());
    thread::spawn(move || {
        let plan = CrowdPlan {
            ways: vec![Way::Udp(address)],
            count: BOTS,
            seed: 1,
            still: false,
            conditions: LinkConditions::default(),
            churn_per_minute: 0.0,
            back_end: None,
        };
        Crowd::new(&plan).play(None, || false);
    });
    address
}

/// The usual address, or another on this machine if that one is taken.
fn free_address() -> SocketAddr {
    let usual = host::default_address();
    if UdpSocket::bind(usual).is_ok() {
        return usual;
    }
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    args::or_fail(UdpSocket::bind(any).and_then(|socket| socket.local_addr()))
}

fn has_display() -> bool {
    // Only these systems may lack one.
    !cfg!(target_os = "linux")
        || ["DISPLAY", "WAYLAND_DISPLAY"]
            .iter()
            .any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

#[derive(Debug)]
struct Options {
    /// Where [`TandemClientPlugins::connect`] connects to.
    connect: Option<String>,
    name: String,
    /// For looking at the game without hands: a bot plays for the person.
    autopilot: bool,
    /// And the picture it sees after so long.
    screenshot: Option<(PathBuf, Duration)>,
}

impl Options {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let mut name = env::var("USER").unwrap_or_else(|_| "player".to_string());
        let (mut connect, mut autopilot, mut screenshot) = (None, false, None);
        let mut seconds = Duration::from_secs(10);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("connect") => connect = Some(args::server(&mut parser)?),
                Long("name") => name = parser.value()?.string()?,
                Long("autopilot") => autopilot = true,
                Long("screenshot") => screenshot = Some(PathBuf::from(parser.value()?)),
                Long("seconds") => seconds = args::seconds(&mut parser)?,
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        if name.is_empty() || name.chars().count() > 32 || name.chars().any(char::is_control) {
            return Err("a name has 1 to 32 characters".into());
        }
        Ok(Self {
            connect,
            name,
            autopilot,
            screenshot: screenshot.map(|file| (file, seconds)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_answered_in_one_line() {
        for line in [
            &["--connect", "home"][..],
            &["--connect", "http://home"],
            &["--connect", "ws://"],
            &["--name", ""],
            &["--name", "far too long for anybody to want to read"],
            &["--port", "1"],
            &["127.0.0.1:5000"],
        ] {
            let error = Options::parse(Parser::from_args(line)).expect_err("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
    }
}
