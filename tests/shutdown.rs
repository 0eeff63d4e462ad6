//! Signals to a server's process, seen from outside: what its players are told, and with which code it exits.
//!
//! The process is this test's own binary, started again as what `serve` runs: cargo builds no plain `serve` for tests.
#![allow(unsafe_code, reason = "sends signals")]
#![cfg(unix)]

use std::env;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::client::{ClientConfig, ServerClosing};
use bevy_tandem::headless::HeadlessPlugin;
use bevy_tandem::prelude::*;
use bevy_tandem::server::ListenAddresses;
use bevy_tandem::transport::UdpClientConfig;
use bevy_tandem::transport::ws::{WsClientConfig, WsServerConfig};
use libc::{SIGINT, SIGTERM};

#[path = "../examples/arena/game.rs"]
mod game;
#[path = "../examples/arena/host.rs"]
mod host;
#[path = "../examples/arena/map.rs"]
mod map;
mod support;
use support::wait_for;

/// Makes a test the server instead, and says for how many seconds that runs on after a signal.
const GRACE: &str = "TANDEM_TEST_SERVER_GRACE";

/// What precedes the addresses that the server prints, UDP first.
const LISTENING: &str = "listening on ";

/// No test waits for so long.
const AN_HOUR: Duration = Duration::from_secs(3_600);

/// To be called first in each test: does not return in the server's process.
fn serve_if_asked() {
    let Ok(grace) = env::var(GRACE) else { return };
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ServerConfig {
        udp: Some(loopback),
        websocket: Some(WsServerConfig::new(loopback)),
        ..default()
    };
    let headless = HeadlessPlugin {
        // Should nobody be left to end it.
        run_for: Some(Duration::from_secs(300)),
        grace: Duration::from_secs(grace.parse().expect("seconds")),
        ..default()
    };
    let exit = host::server(config, 0, headless)
        .add_systems(Startup, |addresses: Res<ListenAddresses>| {
            println!("{LISTENING}{} {}", addresses.0[0], addresses.0[1]);
        })
        .run();
    std::process::exit(match exit {
        AppExit::Success => 0,
        AppExit::Error(code) => code.get().into(),
    });
}

/// A server in a process of its own, which ends with this.
struct Server {
    process: Child,
    udp: SocketAddr,
    ws: SocketAddr,
    /// Kept open, so that the server can print.
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    /// `test` is the name of the calling test.
    fn start(test: &str, grace: Duration) -> Self {
        let mut process = Command::new(env::current_exe().expect("a test has a binary"))
            .args([test, "--exact", "--nocapture"])
            .env(GRACE, grace.as_secs().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be started again");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        let addresses = loop {
            line.clear();
            let length = stdout.read_line(&mut line).expect("it prints text");
            assert!(length > 0, "the server has ended; is `{test}` a test?");
            // The harness may have begun the line.
            if let Some((_, addresses)) = line.trim().split_once(LISTENING) {
                break addresses;
            }
        };
        let (udp, ws) = addresses.split_once(' ').expect("two addresses");
        let [udp, ws] = [udp, ws].map(|address| address.parse().expect("an address"));
        Self {
            process,
            udp,
            ws,
            _stdout: stdout,
        }
    }

    fn signal(&self, signal: i32) {
        let pid = self.process.id().try_into().expect("ids are small");
        // SAFETY: a plain system call; the process is our child and not yet waited for.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// The exit code, once the process has ended by itself; the clients go on meanwhile.
    fn exit_code(&mut self, clients: &mut [&mut App]) -> i32 {
        let status = wait_for("the server ends", || {
            step(clients);
            self.process.try_wait().expect("it is our child")
        });
        status.code().expect("no signal has killed it")
    }

    fn over_udp(&self) -> App {
        client(ClientConfig {
            udp: Some(UdpClientConfig::insecure(self.udp).auth),
            ..default()
        })
    }

    fn over_websocket(&self) -> App {
        client(ClientConfig {
            websocket: Some(WsClientConfig::new(format!("ws://{}/", self.ws))),
            ..default()
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a client was told.
#[derive(Resource, Default)]
struct Log {
    connected: usize,
    closing: Vec<Duration>,
    disconnected: Vec<DisconnectReason>,
}

fn client(config: ClientConfig) -> App {
    let mut app = App::new();
    let plugins = TandemClientPlugins::with_config(config);
    app.add_plugins((MinimalPlugins, plugins, game::game))
        .init_resource::<Log>()
        .add_observer(|_: On<Connected>, mut log: ResMut<Log>| log.connected += 1)
        .add_observer(|closing: On<ServerClosing>, mut log: ResMut<Log>| {
            assert!(log.disconnected.is_empty(), "first the news, then the end");
            log.closing.push(closing.within);
        })
        .add_observer(|ended: On<Disconnected>, mut log: ResMut<Log>| {
            log.disconnected.push(ended.reason.clone());
        });
    app.finish();
    app.cleanup();
    app
}

fn log(app: &App) -> &Log {
    app.world().resource()
}

fn step(clients: &mut [&mut App]) {
    clients.iter_mut().for_each(|client| client.update());
}

/// Updates the clients until each is so.
fn until_all(what: &str, clients: &mut [&mut App], is_so: impl Fn(&Log) -> bool) {
    wait_for(what, || {
        step(clients);
        let all = clients.iter().all(|client| is_so(log(client)));
        all.then_some(())
    });
}

#[test]
fn players_hear_that_the_server_goes_and_nobody_is_let_in_any_more() {
    serve_if_asked();
    let name = "players_hear_that_the_server_goes_and_nobody_is_let_in_any_more";
    let grace = Duration::from_secs(2);
    let mut server = Server::start(name, grace);
    let (mut ada, mut bob) = (server.over_udp(), server.over_websocket());
    let players = &mut [&mut ada, &mut bob];
    until_all("both join", players, |log| log.connected == 1);
    server.signal(SIGTERM);
    until_all("both are told", players, |log| log.closing == [grace]);

    let mut late = [server.over_udp(), server.over_websocket()];
    let [late_udp, late_ws] = &mut late;
    let code = server.exit_code(&mut [&mut ada, &mut bob, late_udp, late_ws]);
    assert_eq!(code, 0);
    let players = &mut [&mut ada, &mut bob];
    until_all("both hear the end", players, |log| {
        log.disconnected == [DisconnectReason::ServerShutdown]
    });
    for player in [&ada, &bob] {
        let connection = player.world().resource::<Connection>();
        assert_eq!(connection.state(), ConnectionState::Disconnected);
        assert_eq!(log(player).closing, [grace], "told once");
    }
    for client in &late {
        assert_eq!(log(client).connected, 0, "it came too late");
    }
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    serve_if_asked();
    let name = "a_second_signal_ends_the_server_at_once";
    for (first, second) in [(SIGTERM, SIGTERM), (SIGINT, SIGTERM)] {
        let mut server = Server::start(name, AN_HOUR);
        let mut ada = server.over_udp();
        until_all("Ada joins", &mut [&mut ada], |log| log.connected == 1);
        server.signal(first);
        until_all("Ada is told", &mut [&mut ada], |log| {
            log.closing == [AN_HOUR]
        });
        assert_eq!(server.process.try_wait().unwrap(), None, "it has time");
        server.signal(second);
        assert_eq!(server.exit_code(&mut [&mut ada]), 1);
        assert_eq!(log(&ada).disconnected, [], "there was no time for it");
    }
}

#[test]
fn a_server_goes_as_soon_as_nobody_is_there() {
    serve_if_asked();
    let name = "a_server_goes_as_soon_as_nobody_is_there";
    let mut empty = Server::start(name, AN_HOUR);
    empty.signal(SIGINT);
    assert_eq!(empty.exit_code(&mut []), 0);

    let mut server = Server::start(name, AN_HOUR);
    let mut ada = server.over_udp();
    until_all("Ada joins", &mut [&mut ada], |log| log.connected == 1);
    server.signal(SIGTERM);
    until_all("Ada is told", &mut [&mut ada], |log| {
        log.closing == [AN_HOUR]
    });
    ada.world_mut().trigger(Disconnect);
    assert_eq!(server.exit_code(&mut [&mut ada]), 0);
}
