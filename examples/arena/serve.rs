//! A dedicated server for the arena: no window, no renderer.
//!
//!     cargo serve [--udp ADDR] [--ws ADDR] [--tls-cert FILE --tls-key FILE] [--web DIR] [--trusted-proxy NET]
//!                 [--key FILE [--public ADDR]] [--insecure] [--resume-window S] [--adaptive] [--seconds S]
//!                 [--statics N] [--report FILE]
//!
//! Ctrl-C and SIGTERM tell the players and leave.

#[allow(dead_code, reason = "each program needs its part")]
#[path = "../support/args.rs"]
mod args;
mod game;
mod host;
mod map;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bevy::log::LogPlugin;
use bevy::log::tracing::Subscriber;
use bevy::log::tracing_subscriber::registry::LookupSpan;
use bevy::log::tracing_subscriber::{Layer, fmt};
use bevy::prelude::*;
use bevy_tandem::headless::HeadlessPlugin;
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::pacing::PacingSettings;
use bevy_tandem::server::ListenAddresses;
use bevy_tandem::transport::udp::{Auth, token};
use bevy_tandem::transport::ws::{TlsFiles, WsServerConfig};
use lexopt::{Parser, ValueExt};

const USAGE: &str = "\
usage: cargo serve [--udp ADDR] [--ws ADDR] [--tls-cert FILE --tls-key FILE] [--web DIR] [--trusted-proxy NET]
                   [--key FILE [--public ADDR]] [--insecure] [--resume-window S] [--adaptive] [--seconds S]
                   [--statics N] [--report FILE]

  --udp ADDR         listen here; 127.0.0.1:5000 by default, 0.0.0.0:5000 for everybody
  --ws ADDR          listen here too, for WebSocket; 127.0.0.1:5001 if one of the next four is given
  --tls-cert FILE    with this certificate (PEM), so that clients connect to wss://
  --tls-key FILE     and its key (PEM); both are read again when they change
  --web DIR          serve the browser build in this folder there as well
  --trusted-proxy NET
                     believe proxies at this address or network (10.0.0.0/8) where clients are; may be repeated
  --key FILE         let in who has a connect token made with this key
  --public ADDR      what tokens name as the server's address; where it listens by default
  --insecure         without a key, let other machines in too
  --resume-window S  keep a player's session for so long after the link is lost; 300 by default
  --adaptive         send each player what the link carries; by default everybody gets the same
  --seconds S        stop after so long; by default on Ctrl-C or SIGTERM, 2 s after telling the players
  --statics N        spawn so many things that never move
  --report FILE      write what the run cost as JSON";

/// Where to listen for WebSocket if nobody says.
const DEFAULT_WS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);

fn main() -> AppExit {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    if let Some(error) = host::listen_error(&options.config) {
        args::fail(error);
    }
    let headless = HeadlessPlugin {
        run_for: options.seconds,
        report: options.report,
        ..default()
    };
    let config = options.config.clone();
    host::server(options.config, options.statics, headless)
        .add_plugins(LogPlugin {
            fmt_layer: |_| Some(Box::new(log_to_stderr())),
            ..default()
        })
        .add_systems(Startup, move |addresses: Res<ListenAddresses>| {
            announce(&config, &addresses);
        })
        .run()
}

/// Bevy's log, but that a server goes on when nobody reads it any more.
fn log_to_stderr<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
}

/// Says how to join.
fn announce(config: &ServerConfig, ListenAddresses(addresses): &ListenAddresses) {
    let token = match config.auth {
        Auth::Secure { .. } => " --token TOKEN",
        Auth::Insecure => "",
    };
    let (udp, ws) = match &addresses[..] {
        [udp, ws] => (udp, Some(ws)),
        [udp] => (udp, None),
        _ => return,
    };
    args::print(format_args!(
        "Listening on {udp}. Join with: cargo play --connect {udp}{token}"
    ));
    if let (Some(address), Some(config)) = (ws, &config.websocket) {
        let s = if config.tls.is_some() { "s" } else { "" };
        args::print(format_args!(
            "Listening on {address}. Join with: cargo play --connect ws{s}://{address}{token}"
        ));
        if config.web.is_some() {
            args::print(format_args!("Or in a browser: http{s}://{address}"));
        }
    }
}

struct Options {
    config: ServerConfig,
    seconds: Option<Duration>,
    statics: u32,
    report: Option<PathBuf>,
}

impl Options {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let mut config = ServerConfig::default();
        let mut udp = host::default_address();
        let (mut ws, mut tls_cert, mut tls_key, mut web) = (None, None, None, None);
        let mut trusted_proxies = Vec::new();
        let (mut key, mut public) = (None::<PathBuf>, None::<SocketAddr>);
        let (mut seconds, mut statics, mut report) = (None, 0, None);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("udp") => udp = parser.value()?.parse()?,
                Long("ws") => ws = Some(parser.value()?.parse()?),
                Long("tls-cert") => tls_cert = Some(parser.value()?.into()),
                Long("tls-key") => tls_key = Some(parser.value()?.into()),
                Long("web") => web = Some(parser.value()?.into()),
                Long("trusted-proxy") => trusted_proxies.push(parser.value()?.parse()?),
                Long("key") => key = Some(parser.value()?.into()),
                Long("public") => public = Some(parser.value()?.parse()?),
                Long("insecure") => config.insecure_anywhere = true,
                Long("resume-window") => config.resume_window = args::seconds(&mut parser)?,
                Long("adaptive") => config.adaptive = Some(PacingSettings::default()),
                Long("seconds") => seconds = Some(args::seconds(&mut parser)?),
                Long("statics") => statics = parser.value()?.parse()?,
                Long("report") => report = Some(parser.value()?.into()),
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        let tls = match (tls_cert, tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => return Err("'--tls-cert' and '--tls-key' need each other".into()),
        };
        if tls.is_some() || web.is_some() || !trusted_proxies.is_empty() {
            ws.get_or_insert(DEFAULT_WS);
        }
        config.websocket = ws.map(|addr| WsServerConfig {
            tls,
            web,
            trusted_proxies,
            ..WsServerConfig::new(addr)
        });
        config.auth = auth(key, public, config.insecure_anywhere, [Some(udp), ws])?;
        config.udp = Some(udp);
        config.public_addresses.extend(public);
        Ok(Self {
            config,
            seconds,
            statics,
            report,
        })
    }
}

/// Who may join a server with these addresses.
fn auth(
    key: Option<PathBuf>,
    public: Option<SocketAddr>,
    is_insecure: bool,
    addresses: [Option<SocketAddr>; 2],
) -> Result<Auth, lexopt::Error> {
    let first = |is_meant: fn(&IpAddr) -> bool| {
        let mut addresses = addresses.into_iter().flatten();
        addresses.find(|addr| is_meant(&addr.ip()))
    };
    let Some(file) = key else {
        if public.is_some() {
            return Err("'--public' needs '--key'".into());
        }
        return match first(|ip| !ip.is_loopback()) {
            Some(addr) if !is_insecure => Err(format!(
                "whoever reaches {addr} could play as anybody: give '--key', or '--insecure' if they may"
            )
            .into()),
            _ => Ok(Auth::Insecure),
        };
    };
    if is_insecure {
        return Err("'--key' and '--insecure' exclude each other".into());
    }
    if let Some(addr) = first(IpAddr::is_unspecified).filter(|_| public.is_none()) {
        return Err(
            format!("tokens cannot name {addr}: give '--public', where players reach it").into(),
        );
    }
    let private_key = token::read_key(file).map_err(|error| error.to_string())?;
    Ok(Auth::Secure { private_key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_answered_in_one_line() {
        for line in [
            &["--udp", "nowhere"][..],
            &["--seconds", "-1"],
            &["--statics", "many"],
            &["--report"],
            &["--port=1"],
            &["extra"],
            &["--udp", "0.0.0.0:5000"],
            &["--ws", "0.0.0.0:5001"],
            &["--ws", "here"],
            &["--ws", "127.0.0.1:5001", "--tls-cert", "some.pem"],
            &["--trusted-proxy", "nginx"],
            &["--resume-window", "long"],
            &["--public", "192.0.2.1:5000"],
            &["--key", "/nowhere/at all"],
            &["--key", "some.key", "--insecure"],
            &["--key", "some.key", "--udp", "0.0.0.0:5000"],
        ] {
            let error = Options::parse(Parser::from_args(line))
                .err()
                .expect("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
    }

    #[test]
    fn what_needs_websocket_brings_it() {
        for line in [
            &["--web", "target/web"][..],
            &["--tls-cert", "some.pem", "--tls-key", "some.pem"],
            &["--trusted-proxy", "10.0.0.0/8"],
        ] {
            let options = Options::parse(Parser::from_args(line)).expect("it is enough");
            assert_eq!(options.config.websocket.unwrap().addr, DEFAULT_WS);
        }
        let none: [&str; 0] = [];
        let options = Options::parse(Parser::from_args(none)).expect("no need");
        assert!(options.config.websocket.is_none());
    }
}
