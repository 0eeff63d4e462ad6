//! A dedicated server for the arena: no window, no renderer.
//!
//!     cargo serve [--udp ADDR] [--seconds S] [--statics N] [--report FILE]
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
use lexopt::{Parser, ValueExt};

const USAGE: &str = "\
usage: cargo serve [--udp ADDR] [--seconds S] [--statics N] [--report FILE]

  --udp ADDR     listen here; 127.0.0.1:5000 by default, 0.0.0.0:5000 for everybody
  --seconds S    stop after so long; by default on Ctrl-C or SIGTERM
  --statics N    spawn so many things that never move
  --report FILE  write what the run cost as JSON";

fn main() -> AppExit {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    let address = options.udp;
    if let Some(error) = host::listen_error(address) {
        args::fail(format_args!("cannot listen on {address}: {error}"));
    }
    let headless = HeadlessPlugin {
        run_for: options.seconds,
        report: options.report,
        ..default()
    };
    println!("Listening on {address}. Join with: cargo play --connect {address}");
    host::server(address, options.statics, headless)
        .add_plugins(LogPlugin::default())
        .run()
}

#[derive(Debug)]
struct Options {
    udp: SocketAddr,
    seconds: Option<Duration>,
    statics: u32,
    report: Option<PathBuf>,
}

impl Options {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let mut options = Self {
            udp: host::default_address(),
            seconds: None,
            statics: 0,
            report: None,
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Long("udp") => options.udp = parser.value()?.parse()?,
                Long("seconds") => options.seconds = Some(args::seconds(&mut parser)?),
                Long("statics") => options.statics = parser.value()?.parse()?,
                Long("report") => options.report = Some(parser.value()?.into()),
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
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
        ] {
            let error = Options::parse(Parser::from_args(line)).expect_err("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
    }
}
