//! A dedicated server for the arena: no window, no renderer.
//!
//!     cargo serve [--udp ADDR] [--key FILE [--public ADDR]] [--insecure] [--resume-window S]
//!                 [--seconds S] [--statics N] [--report FILE]
//!
//! Ctrl-C and SIGTERM tell the players and leave.

mod game;
mod host;
mod map;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bevy::log::LogPlugin;
use bevy::prelude::*;
use bevy_tandem::headless::{HeadlessPlugin, args};
use bevy_tandem::prelude::*;
use bevy_tandem::transport::udp::{Auth, token};
use lexopt::{Parser, ValueExt};

const USAGE: &str = "\
usage: cargo serve [--udp ADDR] [--key FILE [--public ADDR]] [--insecure] [--resume-window S]
                   [--seconds S] [--statics N] [--report FILE]

  --udp ADDR         listen here; 127.0.0.1:5000 by default, 0.0.0.0:5000 for everybody
  --key FILE         let in who has a connect token made with this key
  --public ADDR      what tokens name as the server's address; where it listens by default
  --insecure         without a key, let other machines in too
  --resume-window S  keep a player's session for so long after the link is lost; 300 by default
  --seconds S        stop after so long; by default on Ctrl-C or SIGTERM
  --statics N        spawn so many things that never move
  --report FILE      write what the run cost as JSON";

fn main() -> AppExit {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    if let Some(address) = options.config.udp {
        if let Some(error) = host::listen_error(address) {
            args::fail(format_args!("cannot listen on {address}: {error}"));
        }
        println!("Listening on {address}. Join with: cargo play --connect {address}");
    }
    let headless = HeadlessPlugin {
        run_for: options.seconds,
        report: options.report,
        ..default()
    };
    host::server(options.config, options.statics, headless)
        .add_plugins(LogPlugin::default())
        .run()
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
        let (mut key, mut public) = (None::<PathBuf>, None::<SocketAddr>);
        let (mut seconds, mut statics, mut report) = (None, 0, None);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("udp") => udp = parser.value()?.parse()?,
                Long("key") => key = Some(parser.value()?.into()),
                Long("public") => public = Some(parser.value()?.parse()?),
                Long("insecure") => config.insecure_anywhere = true,
                Long("resume-window") => config.resume_window = args::seconds(&mut parser)?,
                Long("seconds") => seconds = Some(args::seconds(&mut parser)?),
                Long("statics") => statics = parser.value()?.parse()?,
                Long("report") => report = Some(parser.value()?.into()),
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        let is_insecure = config.insecure_anywhere;
        match key {
            Some(_) if is_insecure => {
                return Err("'--key' and '--insecure' exclude each other".into());
            }
            Some(_) if public.is_none() && udp.ip().is_unspecified() => {
                return Err(format!(
                    "tokens cannot name {udp}: give '--public', where players reach it"
                )
                .into());
            }
            None if public.is_some() => return Err("'--public' needs '--key'".into()),
            None if !is_insecure && !udp.ip().is_loopback() => {
                return Err(format!(
                    "whoever reaches {udp} could play as anybody: give '--key', or '--insecure' if they may"
                )
                .into());
            }
            Some(file) => {
                let private_key = token::read_key(file).map_err(|error| error.to_string())?;
                config.auth = Auth::Secure { private_key };
            }
            None => {}
        }
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
}
