//! Load for an arena server: many real clients, without windows.
//!
//!     cargo bots --count N [--udp ADDR] [--transport udp|ws|mixed] [--ws URL [--ca FILE]] [--seconds S]
//!                [--latency-ms L] [--jitter-ms J] [--loss P] [--churn R] [--key FILE] [--seed K] [--still]
//!                [--report FILE]
//!
//! The link conditions act in both directions; the latency is one way. They act on what the clients say, not on the
//! wire: for handshakes that meet loss, let the bots play through `cargo proxy`.
//!
//! A bot whom nobody answers tries again, as a player would. Why bots could not get in is said once for each reason.
//!
//! Besides playing, each bot sends a numbered reliable message ten times a second, and the server answers each: the
//! report says whether any was lost, came twice or out of order. With `--churn`, links are cut without a goodbye, and
//! the sessions must go on over new ones.

#[allow(dead_code, reason = "each program needs its part")]
#[path = "../support/args.rs"]
mod args;
mod brain;
mod crowd;
mod game;
mod ledger;
mod map;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use bevy_tandem::headless::Signals;
use bevy_tandem::headless::report::{self, ClientsReport};
use bevy_tandem::prelude::LinkConditions;
use bevy_tandem::transport::udp::token;
use lexopt::{Parser, ValueExt};

use crowd::{BackEnd, Crowd, CrowdPlan, Way};

/// Cuts a minute: beyond one a second, a client would hardly ever be there.
const MAX_CHURN: f64 = 60.0;

/// Frames a second of a bot. Below this, what it reports is about the machine rather than about the network.
const TOO_SLOW: f64 = 45.0;

const USAGE: &str = "\
usage: cargo bots --count N [--udp ADDR] [--transport udp|ws|mixed] [--ws URL [--ca FILE]] [--seconds S]
                  [--latency-ms L] [--jitter-ms J] [--loss P] [--churn R] [--key FILE] [--seed K] [--still]
                  [--report FILE]

  --count N       so many players
  --udp ADDR      of the server; 127.0.0.1:5000 by default
  --transport T   udp (the default), ws, or mixed: every other one over each
  --ws URL        of the server, for ws and mixed: ws://127.0.0.1:5001, wss://game.example.org
  --ca FILE       trust these certificates (PEM) too, for wss://
  --seconds S     leave after so long; by default on Ctrl-C or SIGTERM
  --latency-ms L  delay every datagram, in each direction
  --jitter-ms J   and by up to so much more, at random
  --loss P        lose this share of the datagrams, 0 to 1
  --churn R       each bot cuts its link R times a minute without a goodbye, and comes back
  --key FILE      of a server that was started with it: the bots make themselves tokens, which name --udp
  --seed K        of what the bots and the link do; 1 by default
  --still         connect and stand still
  --report FILE   write what the players saw as JSON";

fn main() -> ExitCode {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    let signals = args::or_fail(Signals::listen());
    let mut crowd = Crowd::new(&options.plan);
    crowd.play(options.seconds, |_| signals.any());
    let result = crowd.report();
    let frame_rate = crowd.frame_rate();
    crowd.leave();

    if result.requested > 0 && frame_rate < TOO_SLOW {
        args::print_error(format_args!(
            "the bots have drawn {frame_rate:.0} frames a second, not 60: this machine is too slow for so many, and the \
             figures are of that, too"
        ));
    }
    for (reason, count) in crowd.refusals() {
        args::print_error(format_args!(
            "{count} attempts to get in ended so: {reason}"
        ));
    }
    print_summary(&result);
    if let Some(path) = &options.report {
        args::or_fail(
            report::write(path, &result)
                .map_err(|error| format!("cannot write {}: {error}", path.display())),
        );
    }
    // Why, was said when it happened.
    match result.connected {
        0 if result.requested > 0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn print_summary(report: &ClientsReport) {
    args::print(format_args!(
        "{} of {} connected, {} disconnects in {:.0} s; rtt {:.0} ms; a client gets {:.0} and sends {:.0} bytes/s, \
         reconciles {:.2}/s; {:.2} % of frames starved, {:.2} % of inputs late, {} snaps",
        report.connected,
        report.requested,
        report.disconnects,
        report.seconds,
        report.rtt_ms.p50,
        report.bytes_down_per_client_s,
        report.bytes_up_per_client_s,
        report.reconciliations_per_client_s,
        report.interpolation_starved_ratio * 100.0,
        report.inputs_late_ratio * 100.0,
        report.snaps,
    ));
    args::print(format_args!(
        "in after {:.0} ms (p99 {:.0} ms), by {} attempts",
        report.join_ms.p50, report.join_ms.p99, report.join_attempts,
    ));
    args::print(format_args!(
        "{} links cut, {} sessions resumed ({} with losses), {} rejected, {} respawned, in {:.0} ms (p99 {:.0} ms); \
         of {} reliable messages {} lost, {} duplicated, {} reordered",
        report.cuts,
        report.resumed + report.resynced,
        report.resynced,
        report.rejected,
        report.respawned,
        report.resume_ms.p50,
        report.resume_ms.p99,
        report.reliable_sent,
        report.reliable_lost,
        report.reliable_duplicated,
        report.reliable_reordered,
    ));
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Udp,
    Ws,
    Mixed,
}

impl FromStr for Transport {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "udp" => Ok(Self::Udp),
            "ws" => Ok(Self::Ws),
            "mixed" => Ok(Self::Mixed),
            _ => Err("expected udp, ws or mixed"),
        }
    }
}

#[derive(Debug)]
struct Options {
    plan: CrowdPlan,
    seconds: Option<Duration>,
    report: Option<PathBuf>,
}

impl Options {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let mut count = None;
        let mut server: SocketAddr = ([127, 0, 0, 1], 5000).into();
        let mut conditions = LinkConditions::default();
        let (mut seed, mut still, mut seconds, mut report) = (1, false, None, None);
        let (mut churn_per_minute, mut key) = (0.0, None);
        let (mut transport, mut ws, mut ca) = (Transport::Udp, None, None);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("count") => count = Some(parser.value()?.parse()?),
                Long("udp") => server = parser.value()?.parse()?,
                Long("transport") => transport = parser.value()?.parse()?,
                Long("ws") => ws = Some(args::websocket_url(&mut parser)?),
                Long("ca") => ca = Some(parser.value()?.into()),
                Long("seconds") => seconds = Some(args::seconds(&mut parser)?),
                Long("latency-ms") => conditions.latency = args::milliseconds(&mut parser)?,
                Long("jitter-ms") => conditions.jitter = args::milliseconds(&mut parser)?,
                Long("loss") => conditions.loss = args::share(&mut parser)?,
                Long("churn") => churn_per_minute = args::number(&mut parser, MAX_CHURN)?,
                Long("key") => {
                    key = Some(parser.value()?.parse_with(|file| token::read_key(file))?);
                }
                Long("seed") => seed = parser.value()?.parse()?,
                Long("still") => still = true,
                Long("report") => report = Some(parser.value()?.into()),
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        let count = count.ok_or("missing option '--count': how many players?")?;
        if ca.is_some() && !ws.as_ref().is_some_and(|url| url.starts_with("wss://")) {
            return Err("'--ca' needs '--ws' with a URL that begins with wss://".into());
        }
        let web = ws.map(|url| Way::WebSocket { url, ca });
        let ways = match (transport, web) {
            (Transport::Udp, None) => vec![Way::Udp(server)],
            (Transport::Ws, Some(web)) => vec![web],
            (Transport::Mixed, Some(web)) => vec![Way::Udp(server), web],
            (Transport::Udp, Some(_)) => {
                return Err("'--ws' is of no use without '--transport ws' or 'mixed'".into());
            }
            (_, None) => return Err("'--transport ws' and 'mixed' need '--ws'".into()),
        };
        let plan = CrowdPlan {
            ways,
            count,
            seed,
            still,
            conditions,
            churn_per_minute,
            back_end: key.map(|key| BackEnd { key, server }),
        };
        Ok(Self {
            plan,
            seconds,
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
            &[][..],
            &["--count", "-3"],
            &["--count", "3", "--loss", "1.5"],
            &["--count", "3", "--latency-ms", "fast"],
            &["--count", "3", "--udp", "somewhere"],
            &["--count", "3", "--churn", "-1"],
            &["--count", "3", "--churn", "often"],
            &["--count", "3", "--key", "/nowhere/at all"],
            &["--count", "3", "--transport", "pigeon"],
            &["--count", "3", "--transport", "ws"],
            &["--count", "3", "--transport", "mixed"],
            &["--count", "3", "--ws", "ws://127.0.0.1:5001"],
            &[
                "--count",
                "3",
                "--transport",
                "ws",
                "--ws",
                "127.0.0.1:5001",
            ],
            &["--count", "3", "--ca", "some.pem"],
            &["3"],
        ] {
            let error = Options::parse(Parser::from_args(line)).expect_err("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
    }
}
