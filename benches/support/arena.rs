//! The arena in processes of their own: a server, and a crowd of bots.
//!
//! Both answer the line `report` with one of JSON (the server `peek`, too), and leave on `quit`.
// Each benchmark uses its part of this.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bevy::log::LogPlugin;
use bevy::prelude::*;
use bevy_tandem::headless::report::{ServerReport, cpu_time, resident_bytes};
use bevy_tandem::headless::{HeadlessPlugin, TickTimings};
use bevy_tandem::identity::Identity;
use bevy_tandem::prelude::*;
use bevy_tandem::server::{LinkStats, ListenAddresses};
use bevy_tandem::session::Away;
use bevy_tandem::transport::ws::WsServerConfig;
use serde_json::{Value, json};

use crate::crowd::{Crowd, CrowdPlan, Way};
use crate::host;
use crate::support::{Child, commands, reply};

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A server's process, and where it listens.
pub struct Arena {
    pub process: Child,
    pub udp: SocketAddr,
    pub ws: SocketAddr,
}

impl Arena {
    /// Starts a server that drops a congested WebSocket client after so many seconds, or never.
    pub fn start(drop_congested_after_s: Option<u64>) -> Self {
        let seconds = drop_congested_after_s.map_or("never".into(), |seconds| seconds.to_string());
        let mut process = Child::start("server", &[seconds]);
        let addresses: Vec<SocketAddr> =
            serde_json::from_str(&process.hear()).expect("the server's addresses");
        Self {
            process,
            udp: addresses[0],
            ws: addresses[1],
        }
    }

    /// Figures since the last report.
    pub fn report(&mut self) -> ArenaReport {
        self.ask("report")
    }

    /// The same, without making it the last.
    pub fn peek(&mut self) -> ArenaReport {
        self.ask("peek")
    }

    fn ask(&mut self, command: &str) -> ArenaReport {
        let report = self.process.ask(command);
        let number = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
        let links = report["links"].as_array().into_iter().flatten();
        ArenaReport {
            tick_p50_ms: number("tick_p50_ms"),
            tick_p99_ms: number("tick_p99_ms"),
            tick_max_ms: number("tick_max_ms"),
            cpu_s: number("cpu_s"),
            rss_bytes: number("rss_bytes"),
            links: links
                .map(|link| LinkReport {
                    name: link["name"].as_str().unwrap_or_default().to_owned(),
                    is_away: link["away"].as_bool().unwrap_or_default(),
                    is_congested: link["congested"].as_bool().unwrap_or_default(),
                    queued_bytes: link["queued"].as_u64().unwrap_or_default(),
                })
                .collect(),
            whole: report["whole"].clone(),
            log_lines: self.process.log_lines(),
        }
    }
}

/// What a server says of itself.
pub struct ArenaReport {
    /// Since the last report, as those up to [`Self::cpu_s`].
    pub tick_p50_ms: f64,
    pub tick_p99_ms: f64,
    pub tick_max_ms: f64,
    pub cpu_s: f64,
    pub rss_bytes: f64,
    pub links: Vec<LinkReport>,
    /// [`ServerReport`], since the start.
    pub whole: Value,
    /// Since the start.
    pub log_lines: u64,
}

impl ArenaReport {
    pub fn link(&self, name: &str) -> Option<&LinkReport> {
        self.links.iter().find(|link| link.name == name)
    }
}

pub struct LinkReport {
    pub name: String,
    pub is_away: bool,
    pub is_congested: bool,
    pub queued_bytes: u64,
}

/// Starts a crowd of bots.
pub fn start_bots(server: &Arena, count: usize, transport: &str) -> Child {
    let args = [
        server.udp.to_string(),
        format!("ws://{}", server.ws),
        count.to_string(),
        transport.to_owned(),
    ];
    Child::start("bots", &args)
}

/// Figures of a crowd since its start: `snapshots`, `disconnects`, `connected`.
pub fn bots_report(bots: &mut Child) -> BotsReport {
    let report = bots.ask("report");
    let transports = report["transports"].as_object().into_iter().flatten();
    let snapshots = transports.filter_map(|(_, of)| of["snapshots"].as_u64());
    let number = |name: &str| report[name].as_u64().unwrap_or_default();
    BotsReport {
        snapshots: snapshots.sum(),
        connected: number("connected"),
        disconnects: number("disconnects"),
        resumed: number("resumed") + number("resynced"),
        lost: number("reliable_lost"),
        duplicated: number("reliable_duplicated"),
        reordered: number("reliable_reordered"),
    }
}

#[derive(Clone, Copy, Debug)]
pub struct BotsReport {
    pub snapshots: u64,
    pub connected: u64,
    pub disconnects: u64,
    pub resumed: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

impl BotsReport {
    /// Reliable messages that did not come once and in order.
    pub fn astray(&self) -> u64 {
        self.lost + self.duplicated + self.reordered
    }
}

/// The role `server`.
pub fn be_server(args: &[String]) {
    let drop_congested_after = args[0].parse().ok().map(Duration::from_secs);
    let config = ServerConfig {
        udp: Some(LOOPBACK),
        websocket: Some(WsServerConfig {
            drop_congested_after,
            ..WsServerConfig::new(LOOPBACK)
        }),
        // Who shows an account has that one, and others have none.
        verifier: Some(Arc::new(|credentials: &[u8], _: u64| {
            let account = String::from_utf8_lossy(credentials);
            Ok(match credentials {
                [] => Identity::claimed("nobody"),
                _ => Identity::verified("benchmark", account),
            })
        })),
        ..default()
    };
    let mut app = host::server(config, 0, HeadlessPlugin::default());
    app.add_plugins(LogPlugin::default())
        .insert_resource(Commands(Mutex::new(commands())))
        .insert_resource(Since(cpu_time()))
        .add_systems(Startup, |addresses: Res<ListenAddresses>| {
            reply(&json!(addresses.0).to_string());
        })
        .add_systems(Last, answer)
        .run();
}

#[derive(Resource)]
struct Commands(Mutex<Receiver<String>>);

/// Processor time at the last report.
#[derive(Resource)]
struct Since(Duration);

fn answer(world: &mut World) {
    let command = {
        let commands = world.resource::<Commands>();
        let commands = commands.0.lock().expect("one reader");
        commands.try_recv()
    };
    let is_last = match command.as_deref() {
        Ok("report") => true,
        Ok("peek") => false,
        Ok(_) => {
            world.write_message(AppExit::Success);
            return;
        }
        Err(_) => return,
    };
    let mut sessions = world.query::<(&Session, Option<&Away>, Option<&LinkStats>)>();
    let links: Vec<_> = sessions
        .iter(world)
        .map(|(session, away, stats)| {
            json!({
                "name": session.name,
                "away": away.is_some(),
                "congested": stats.is_some_and(|stats| stats.is_congested),
                "queued": stats.map_or(0, |stats| stats.queued_bytes),
            })
        })
        .collect();
    let whole = ServerReport::of(world, Duration::ZERO);
    let now = cpu_time();
    let cpu = now - world.resource::<Since>().0;
    let ticks = world.resource::<TickTimings>().tick_ms.clone();
    if is_last {
        world.resource_mut::<Since>().0 = now;
        world.resource_mut::<TickTimings>().tick_ms = default();
    }
    let report = json!({
        "tick_p50_ms": ticks.quantile(0.5),
        "tick_p99_ms": ticks.quantile(0.99),
        "tick_max_ms": ticks.max(),
        "cpu_s": cpu.as_secs_f64(),
        "rss_bytes": resident_bytes(),
        "links": links,
        "whole": whole,
    });
    reply(&report.to_string());
}

/// The role `bots`.
pub fn be_bots(args: &[String]) {
    let udp = Way::Udp(args[0].parse().expect("an address"));
    let web = Way::WebSocket {
        url: args[1].clone(),
        ca: None,
    };
    let plan = CrowdPlan {
        ways: match args[3].as_str() {
            "udp" => vec![udp],
            "ws" => vec![web],
            _ => vec![udp, web],
        },
        count: args[2].parse().expect("a number"),
        seed: 1,
        still: false,
        conditions: LinkConditions::default(),
        churn_per_minute: 0.0,
        back_end: None,
    };
    let commands = commands();
    let mut crowd = Crowd::new(&plan);
    crowd.play(None, |crowd| match commands.try_recv().as_deref() {
        Ok("report") => {
            reply(&json!(crowd.report()).to_string());
            false
        }
        Ok(_) => true,
        Err(_) => false,
    });
    crowd.leave();
}
