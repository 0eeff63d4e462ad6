//! Command lines that answer a mistake with one line instead of a backtrace, and go on when nobody reads what they print.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process;
use std::time::Duration;

use lexopt::ValueExt;

/// Exit code for a command that could not start because of how it was called, as `grep` and `diff` have it.
pub const EXIT_USAGE: i32 = 2;

/// Ends the process with one line on stderr and [`EXIT_USAGE`].
pub fn fail(message: impl Display) -> ! {
    print_error(format_args!("error: {message}"));
    process::exit(EXIT_USAGE)
}

/// The value, or [`fail`] with its error.
pub fn or_fail<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| fail(error))
}

/// Ends the process successfully with the usage on stdout.
pub fn help(usage: &str) -> ! {
    print(usage);
    process::exit(0)
}

/// Prints a line on stdout. `println!` would panic where the reader has gone, as in `serve | head -1`, and a server should
/// not end for that: what cannot be printed is not.
pub fn print(line: impl Display) {
    print_to(io::stdout().lock(), line);
}

/// The same on stderr.
pub fn print_error(line: impl Display) {
    print_to(io::stderr().lock(), line);
}

fn print_to(mut out: impl Write, line: impl Display) {
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The value of the current option as a number of seconds, zero or more.
///
/// # Errors
///
/// No value follows, or it is not such a number.
pub fn seconds(parser: &mut lexopt::Parser) -> Result<Duration, lexopt::Error> {
    parser
        .value()?
        .parse_with(|text| parse_duration(text, 1.0, "a number of seconds"))
}

/// The value of the current option as a number of milliseconds, zero or more.
///
/// # Errors
///
/// No value follows, or it is not such a number.
pub fn milliseconds(parser: &mut lexopt::Parser) -> Result<Duration, lexopt::Error> {
    parser
        .value()?
        .parse_with(|text| parse_duration(text, 1e-3, "a number of milliseconds"))
}

/// The value of the current option as a share from 0 to 1.
///
/// # Errors
///
/// No value follows, or it is not such a number.
pub fn share(parser: &mut lexopt::Parser) -> Result<f32, lexopt::Error> {
    parser.value()?.parse_with(|text| {
        text.parse()
            .ok()
            .filter(|share| (0.0..=1.0).contains(share))
            .ok_or("expected a share from 0 to 1")
    })
}

/// The value of the current option as a number from 0 to `max`.
///
/// # Errors
///
/// No value follows, or it is not such a number.
pub fn number(parser: &mut lexopt::Parser, max: f64) -> Result<f64, lexopt::Error> {
    parser.value()?.parse_with(|text| {
        text.parse()
            .ok()
            .filter(|number| (0.0..=max).contains(number))
            .ok_or_else(|| format!("expected a number from 0 to {max}"))
    })
}

/// The value of the current option as the URL of a WebSocket server: `ws://host[:port][/path]`, or `wss://`.
///
/// # Errors
///
/// No value follows, or it is not such a URL.
pub fn websocket_url(parser: &mut lexopt::Parser) -> Result<String, lexopt::Error> {
    parser.value()?.parse_with(|text| {
        is_websocket_url(text)
            .then(|| text.to_owned())
            .ok_or("expected a URL such as ws://127.0.0.1:5001 or wss://game.example.org")
    })
}

/// The value of the current option as where a server is: an address with its port, for UDP, or the URL of a WebSocket
/// server.
///
/// # Errors
///
/// No value follows, or it is neither.
pub fn server(parser: &mut lexopt::Parser) -> Result<String, lexopt::Error> {
    parser.value()?.parse_with(|text| {
        (is_websocket_url(text) || text.parse::<SocketAddr>().is_ok())
            .then(|| text.to_owned())
            .ok_or("expected an address such as 127.0.0.1:5000, or a URL such as wss://game.example.org")
    })
}

fn is_websocket_url(text: &str) -> bool {
    let Some(rest) = text
        .strip_prefix("ws://")
        .or_else(|| text.strip_prefix("wss://"))
    else {
        return false;
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        // The colons within brackets are those of an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '#' | '\\');
    !host.is_empty()
        && !text.contains(is_odd)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn parse_duration(text: &str, unit_seconds: f64, expected: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * unit_seconds).ok())
        .ok_or_else(|| format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_not_printed_and_harms_nobody() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        print_to(&writer, "x".repeat(1_000_000));
        print_to(writer, "still here");
    }

    fn parser(value: &str) -> lexopt::Parser {
        let mut parser = lexopt::Parser::from_args(["--option", value]);
        parser.next().expect("an option").expect("the option");
        parser
    }

    #[test]
    fn durations_take_fractions_and_refuse_the_rest() {
        assert_eq!(
            seconds(&mut parser("1.5")).ok(),
            Some(Duration::from_millis(1_500))
        );
        assert_eq!(
            milliseconds(&mut parser("75")).ok(),
            Some(Duration::from_millis(75))
        );
        for bad in ["-1", "NaN", "inf", "soon", "1e300"] {
            let error = seconds(&mut parser(bad)).expect_err(bad).to_string();
            assert!(error.contains("seconds"), "{bad}: {error}");
            assert!(!error.contains('\n'), "one line: {error}");
        }
    }

    #[test]
    fn numbers_stay_within_their_range() {
        assert_eq!(number(&mut parser("6"), 60.0).ok(), Some(6.0));
        for bad in ["-1", "61", "NaN", "inf", "six"] {
            let error = number(&mut parser(bad), 60.0).expect_err(bad).to_string();
            assert!(error.contains("60"), "{bad}: {error}");
        }
    }

    #[test]
    fn websocket_urls_are_told_from_others() {
        for good in [
            "ws://127.0.0.1:5001",
            "ws://[::1]:5001/play",
            "ws://[::1]",
            "wss://game.example.org",
            "wss://game.example.org/match?room=7",
        ] {
            assert_eq!(websocket_url(&mut parser(good)).ok().as_deref(), Some(good));
        }
        for bad in [
            "127.0.0.1:5001",
            "http://example.org",
            "ws://",
            "ws://:5001",
            "ws:///play",
            "ws://host:port",
            "ws://host:70000",
            "ws://host:0",
            "ws://user@host",
            "ws://a host",
        ] {
            let error = websocket_url(&mut parser(bad)).expect_err(bad).to_string();
            assert!(error.contains("wss://"), "{bad}: {error}");
        }
    }

    #[test]
    fn servers_are_addresses_or_urls() {
        for good in ["127.0.0.1:5000", "[::1]:5000", "ws://localhost:5001"] {
            assert_eq!(server(&mut parser(good)).ok().as_deref(), Some(good));
        }
        for bad in ["home", "127.0.0.1", "http://home"] {
            assert!(server(&mut parser(bad)).is_err(), "{bad} is no server");
        }
    }

    #[test]
    fn shares_stay_within_zero_and_one() {
        assert_eq!(share(&mut parser("0.05")).ok(), Some(0.05));
        for bad in ["-0.1", "1.01", "NaN", "5%"] {
            assert!(share(&mut parser(bad)).is_err(), "{bad} is no share");
        }
    }
}
