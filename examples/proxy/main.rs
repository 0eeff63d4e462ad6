//! A network that fails on command, between clients and a server.
//!
//!     cargo proxy [--udp ADDR --udp-to SERVER] [--tcp ADDR --tcp-to SERVER] [--seconds S]
//!                 [--hole-at S --hole-for S] [--cut-at S]... [--rebind-at S]...
//!
//! For trying out how a game lives through it: in a hole, everything vanishes and nobody is told.

mod relay;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bevy_tandem::headless::{Signals, args};
use lexopt::{Parser, ValueExt};

use relay::{Hole, Relay, Route};

const USAGE: &str = "\
usage: cargo proxy [--udp ADDR --udp-to SERVER] [--tcp ADDR --tcp-to SERVER] [--seconds S]
                   [--hole-at S --hole-for S] [--cut-at S]... [--rebind-at S]...

  --udp ADDR       listen here, and pass datagrams on
  --udp-to SERVER  to this address
  --tcp ADDR       listen here, and pass connections on (WebSocket runs over them)
  --tcp-to SERVER  to this address
  --seconds S      stop after so long; by default on Ctrl-C or SIGTERM
  --hole-at S      let everything vanish, both ways, from so many seconds after the start
  --hole-for S     and for so many
  --cut-at S       reset all TCP connections then; may be given again
  --rebind-at S    move all UDP clients to other ports then; may be given again";

fn main() {
    let options = args::or_fail(Options::parse(Parser::from_env()));
    let signals = args::or_fail(Signals::listen());
    let relay = args::or_fail(
        Relay::start(options.udp, options.tcp).map_err(|error| format!("cannot listen: {error}")),
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
    /// What to do, and when after the start.
    plan: Vec<(Duration, Deed)>,
}

impl Options {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let (mut udp, mut udp_to, mut tcp, mut tcp_to) = (None, None, None, None);
        let (mut seconds, mut hole_at, mut hole_for) = (None, None, None);
        let mut plan = Vec::new();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("udp") => udp = Some(parser.value()?.parse()?),
                Long("udp-to") => udp_to = Some(parser.value()?.parse()?),
                Long("tcp") => tcp = Some(parser.value()?.parse()?),
                Long("tcp-to") => tcp_to = Some(parser.value()?.parse()?),
                Long("seconds") => seconds = Some(args::seconds(&mut parser)?),
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
