//! The arena in a window.
//!
//!     cargo play                                    a match against bots, on this machine
//!     cargo play --connect ADDR [--token TOKEN]     a match elsewhere; an address, or ws:// or wss:// and a host
//!
//! WASD steers, the mouse aims, its left button fires, F1 shows what the network does.

#[allow(dead_code, reason = "each program needs its part")]
#[path = "../support/args.rs"]
mod args;
mod brain;
mod crowd;
mod game;
mod host;
mod ledger;
mod map;
mod view;

use std::env;
use std::net::{SocketAddr, UdpSocket};
use std::panic;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bevy::prelude::*;
use bevy_tandem::headless::HeadlessPlugin;
use bevy_tandem::prelude::*;
use bevy_tandem::transport::udp::{ClientAuth, token};
use bevy_tandem::transport::ws::{WsAuth, WsClientConfig};
use lexopt::{Parser, ValueExt};

use brain::BrainPlugin;
use crowd::{Crowd, CrowdPlan, Way};
use view::ViewPlugin;

const USAGE: &str = "\
usage: cargo play [--connect ADDR [--token TOKEN]] [--name NAME]

  --connect ADDR  join this server: 192.0.2.1:5000, or wss://game.example.org; by default a match with bots is
                  hosted here
  --token TOKEN   for a server with a key: who you are, as `cargo issue-token` prints it
  --name NAME     what others see; your login name by default";
const BOTS: usize = 6;

fn main() -> AppExit {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    if !has_display() {
        args::fail(
            "there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); `cargo serve` needs none",
        );
    }
    let client = match &options.connect {
        Some(server) => args::or_fail(join(server, options.token.as_deref())),
        None => TandemClientPlugins::connect(&host_match().to_string()),
    };

    explain_missing_driver();
    let mut app = App::new();
    app.add_plugins((
        DefaultPlugins.set(view::window()).set(view::assets()),
        client.named(options.name),
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

/// A client of this server, which may want a token in base64.
fn join(server: &str, token: Option<&str>) -> Result<TandemClientPlugins, String> {
    let Some(token) = token else {
        return Ok(TandemClientPlugins::connect(server));
    };
    let bytes = BASE64.decode(token).map_err(|error| {
        format!("this is no token: {error}; pass all that `cargo issue-token` prints")
    })?;
    let token = token::from_bytes(&bytes).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::default();
    if server.starts_with("ws") {
        let mut link = WsClientConfig::new(server);
        link.auth = WsAuth::Token(bytes);
        config.websocket = Some(link);
    } else {
        config.udp = Some(ClientAuth::Token(Box::new(token)));
    }
    Ok(TandemClientPlugins::with_config(config))
}

/// Starts a server and bots on threads of their own, which end with the process.
fn host_match() -> SocketAddr {
    let address = free_address();
    args::print(format_args!(
        "Hosting on {address}. Others on this machine join with: cargo play --connect {address}"
    ));
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
        Crowd::new(&plan).play(None, |_| false);
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

/// Bevy panics where there is none.
fn explain_missing_driver() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let what = info.payload_as_str().unwrap_or_default();
        if what.starts_with("Unable to find a GPU") {
            args::fail(
                "there is no Vulkan driver (on Debian, `apt install mesa-vulkan-drivers` has one that needs no GPU); \
                 `cargo serve` needs none",
            );
        }
        before(info);
    }));
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
    /// In base64.
    token: Option<String>,
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
        let (mut connect, mut token) = (None, None);
        let (mut autopilot, mut screenshot) = (false, None);
        let mut seconds = Duration::from_secs(10);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("connect") => connect = Some(args::server(&mut parser)?),
                Long("token") => token = Some(parser.value()?.string()?),
                Long("name") => name = parser.value()?.string()?,
                Long("autopilot") => autopilot = true,
                Long("screenshot") => screenshot = Some(PathBuf::from(parser.value()?)),
                Long("seconds") => seconds = args::seconds(&mut parser)?,
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        if token.is_some() && connect.is_none() {
            return Err("'--token' needs '--connect'".into());
        }
        if name.is_empty() || name.chars().count() > 32 || name.chars().any(char::is_control) {
            return Err("a name has 1 to 32 characters".into());
        }
        Ok(Self {
            connect,
            token,
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
            &["--token", "AAAA"],
            &["--name", ""],
            &["--name", "far too long for anybody to want to read"],
            &["--port", "1"],
            &["127.0.0.1:5000"],
        ] {
            let error = Options::parse(Parser::from_args(line)).expect_err("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
        for token in ["no base64!", "AAAA"] {
            let error = join("127.0.0.1:5000", Some(token))
                .err()
                .expect("a mistake");
            assert_eq!(error.lines().count(), 1, "{token}: {error}");
        }
    }
}
