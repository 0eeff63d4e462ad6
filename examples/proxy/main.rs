//! A network that fails on command, between clients and a server.
//!
//!     cargo proxy [--udp ADDR --udp-to SERVER] [--tcp ADDR --tcp-to SERVER] [--seconds S]
//!                 [--loss P] [--latency-ms L] [--jitter-ms J] [--duplicate P] [--reorder P] [--corrupt P]
//!                 [--stall-every S --stall-for S] [--seed K]
//!                 [--hole-at S --hole-for S] [--cut-at S]... [--rebind-at S]...
//!
//! For trying out how a game lives through it: in a hole, everything vanishes and nobody is told. What `cargo bots` does
//! to a link acts on what the client says; this acts on the wire, so handshakes, keep-alives and farewells meet it too.

#[allow(dead_code, reason = "each program needs its part")]
#[path = "../support/args.rs"]
mod args;
mod relay;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bevy_tandem::headless::Signals;
use lexopt::{Parser, ValueExt};

use relay::{Hole, Relay, RelayConditions, Route, Stalls};

const USAGE: &str = "\
usage: cargo proxy [--udp ADDR --udp-to SERVER] [--tcp ADDR --tcp-to SERVER] [--seconds S]
                   [--loss P] [--latency-ms L] [--jitter-ms J] [--duplicate P] [--reorder P] [--corrupt P]
                   [--stall-every S --stall-for S] [--seed K]
                   [--hole-at S --hole-for S] [--cut-at S]... [--rebind-at S]...

  --udp ADDR       listen here, and pass datagrams on
  --udp-to SERVER  to this address
  --tcp ADDR       listen here, and pass connections on (WebSocket runs over them)
  --tcp-to SERVER  to this address
  --seconds S      stop after so long; by default on Ctrl-C or SIGTERM
  --loss P         lose this share of the datagrams, each way, 0 to 1
  --latency-ms L   delay all that passes, each way; TCP too
  --jitter-ms J    and by up to so much more or less, at random
  --duplicate P    deliver this share of the datagrams twice
  --reorder P      hold this share of the datagrams back by 30 ms
  --corrupt P      flip a bit in this share of the datagrams
  --stall-every S  let each TCP connection stand still so often, each way
  --stall-for S    and for so long
  --seed K         of all that is random; 1 by default
  --hole-at S      let everything vanish, both ways, from so many seconds after the start
  --hole-for S     and for so many
  --cut-at S       reset all TCP connections then; may be given again
  --rebind-at S    move all UDP clients to other ports then; may be given again";

fn main() {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    let signals = args::or_fail(Signals::listen());
    let relay = args::or_fail(
        Relay::start_with(options.udp, options.tcp, options.conditions)
            .map_err(|error| format!("cannot listen: {error}")),
    );
    for (name, addr, route) in [
        ("udp", relay.udp_addr(), options.udp),
        ("tcp", relay.tcp_addr(), options.tcp),
    ] {
        if let (Some(addr), Some(route)) = (addr, route) {
            args::print(format_args!("{name} {addr} -> {}", route.server));
        }
    }

    let started = Instant::now();
    let mut plan = options.plan.into_iter().peekable();
    while !signals.any()
        && options
            .seconds
            .is_none_or(|limit| started.elapsed() < limit)
    {
        while let Some((at, deed)) = plan.next_if(|&(at, _)| started.elapsed() >= at) {
            args::print(format_args!("{:.1} s: {deed:?}", at.as_secs_f64()));
            match deed {
                Deed::OpenHole => relay.set_hole(Hole::Both),
                Deed::CloseHole => relay.set_hole(Hole::None),
                Deed::Cut => relay.cut(),
                Deed::Rebind => relay.rebind(),
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    let stats = relay.stats();
    args::print(format_args!(
        "{} UDP clients, {} TCP connections ({} cut); {} datagrams and chunks forwarded, {} dropped",
        stats.udp_clients, stats.tcp_connections, stats.cut, stats.forwarded, stats.dropped
    ));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    OpenHole,
    CloseHole,
    Cut,
    Rebind,
}

#[derive(Debug)]
struct Options {
    udp: Option<Route>,
    tcp: Option<Route>,
    seconds: Option<Duration>,
    conditions: RelayConditions,
    /// What to do, and when after the start.
    plan: Vec<(Duration, Deed)>,
}

impl Options {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let (mut udp, mut udp_to, mut tcp, mut tcp_to) = (None, None, None, None);
        let (mut seconds, mut hole_at, mut hole_for) = (None, None, None);
        let mut plan = Vec::new();
        let mut conditions = RelayConditions::default();
        conditions.link.seed = 1;
        let (mut stall_every, mut stall_for) = (None, None);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("udp") => udp = Some(parser.value()?.parse()?),
                Long("udp-to") => udp_to = Some(parser.value()?.parse()?),
                Long("tcp") => tcp = Some(parser.value()?.parse()?),
                Long("tcp-to") => tcp_to = Some(parser.value()?.parse()?),
                Long("seconds") => seconds = Some(args::seconds(&mut parser)?),
                Long("loss") => conditions.link.loss = args::share(&mut parser)?,
                Long("latency-ms") => conditions.link.latency = args::milliseconds(&mut parser)?,
                Long("jitter-ms") => conditions.link.jitter = args::milliseconds(&mut parser)?,
                Long("duplicate") => conditions.link.duplication = args::share(&mut parser)?,
                Long("reorder") => conditions.link.reordering = args::share(&mut parser)?,
                Long("corrupt") => conditions.corruption = args::share(&mut parser)?,
                Long("stall-every") => stall_every = Some(args::seconds(&mut parser)?),
                Long("stall-for") => stall_for = Some(args::seconds(&mut parser)?),
                Long("seed") => conditions.link.seed = parser.value()?.parse()?,
                Long("hole-at") => hole_at = Some(args::seconds(&mut parser)?),
                Long("hole-for") => hole_for = Some(args::seconds(&mut parser)?),
                Long("cut-at") => plan.push((args::seconds(&mut parser)?, Deed::Cut)),
                Long("rebind-at") => plan.push((args::seconds(&mut parser)?, Deed::Rebind)),
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        match (hole_at, hole_for) {
            (Some(at), Some(length)) => {
                plan.push((at, Deed::OpenHole));
                plan.push((at.saturating_add(length), Deed::CloseHole));
            }
            (None, None) => {}
            _ => return Err("'--hole-at' and '--hole-for' need each other".into()),
        }
        plan.sort_by_key(|&(at, _)| at);
        conditions.stalls = match (stall_every, stall_for) {
            (Some(every), Some(length)) if length < every => Some(Stalls { every, length }),
            (Some(_), Some(_)) => {
                return Err("'--stall-for' must be less than '--stall-every'".into());
            }
            (None, None) => None,
            _ => return Err("'--stall-every' and '--stall-for' need each other".into()),
        };
        let udp = route("--udp", udp, udp_to)?;
        let tcp = route("--tcp", tcp, tcp_to)?;
        if udp.is_none() && tcp.is_none() {
            return Err(
                "nothing to pass on: give '--udp' and '--udp-to', or '--tcp' and '--tcp-to'".into(),
            );
        }
        Ok(Self {
            udp,
            tcp,
            seconds,
            conditions,
            plan,
        })
    }
}

fn route(
    name: &str,
    listen: Option<SocketAddr>,
    server: Option<SocketAddr>,
) -> Result<Option<Route>, lexopt::Error> {
    match (listen, server) {
        (Some(listen), Some(server)) => Ok(Some(Route { listen, server })),
        (None, None) => Ok(None),
        _ => Err(format!("'{name}' and '{name}-to' need each other").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_answered_in_one_line() {
        let udp = ["--udp", "127.0.0.1:1", "--udp-to", "127.0.0.1:2"];
        for line in [
            &[][..],
            &["--udp", "127.0.0.1:1"],
            &["--tcp-to", "127.0.0.1:1"],
            &["--udp", "here", "--udp-to", "there"],
            &[&udp[..], &["--hole-at", "3"]].concat(),
            &[&udp[..], &["--hole-for", "3"]].concat(),
            &[&udp[..], &["--cut-at", "soon"]].concat(),
            &[&udp[..], &["--loss", "1.5"]].concat(),
            &[&udp[..], &["--corrupt", "some"]].concat(),
            &[&udp[..], &["--stall-every", "3"]].concat(),
            &[&udp[..], &["--stall-every", "3", "--stall-for", "3"]].concat(),
            &[&udp[..], &["extra"]].concat(),
        ] {
            let error = Options::parse(Parser::from_args(line)).expect_err("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
    }

    #[test]
    fn a_plan_is_in_the_order_of_time() {
        let line = "--udp 127.0.0.1:1 --udp-to 127.0.0.1:2 --rebind-at 9 --hole-at 3 --hole-for 2 --cut-at 4";
        let options = Options::parse(Parser::from_args(line.split(' '))).expect("a good line");
        let deeds: Vec<_> = options
            .plan
            .iter()
            .map(|&(at, deed)| (at.as_secs(), deed))
            .collect();
        assert_eq!(
            deeds,
            [
                (3, Deed::OpenHole),
                (4, Deed::Cut),
                (5, Deed::CloseHole),
                (9, Deed::Rebind)
            ]
        );
    }
}
