//! What a back end does for a player who has logged in: makes a connect token.
//!
//!     cargo issue-token --new-key private.key
//!     cargo issue-token --key private.key --client 42 --server 203.0.113.5:5000
//!
//! The first line makes the key that back end and servers share, the second prints a token in base64. The player gets
//! it over an encrypted connection (HTTPS), since whoever has it plays as that client.

#[allow(dead_code, reason = "each program needs its part")]
#[path = "support/args.rs"]
mod args;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bevy_tandem::transport::udp::DEFAULT_PROTOCOL_ID;
use bevy_tandem::transport::udp::token::{self, TokenBuilder, TokenError};
use lexopt::{Parser, ValueExt};

const USAGE: &str = "\
usage: cargo issue-token --key FILE --client ID --server ADDR[,ADDR...] [--seconds S] [--protocol ID]
                         [--user-data TEXT]
       cargo issue-token --new-key FILE

  --key FILE        the private key that the servers have, too: 64 hexadecimal characters
  --client ID       who the player is: a number
  --server ADDR     where the player may connect: up to 32 addresses, as the servers' public ones are
  --seconds S       how long there is time to connect; 30 by default
  --protocol ID     the servers' protocol id, in decimal or as 0x...; that of bevy_tandem by default
  --user-data TEXT  what the server gets to see and the player does not; at most 256 bytes
  --new-key FILE    makes a new key and writes it to a new file that only you can read";

fn main() {
    let order = args::or_fail(Order::parse(Parser::from_env()));
    match order {
        Order::Key(path) => {
            args::or_fail(token::create_key(&path));
            args::print_error(format_args!(
                "The new key is in {}. Keep it secret.",
                path.display()
            ));
        }
        Order::Token { key, request } => {
            let key = args::or_fail(token::read_key(key));
            args::print(args::or_fail(request.issue(&key)));
        }
    }
}

#[derive(Debug)]
enum Order {
    Key(PathBuf),
    Token { key: PathBuf, request: Request },
}

/// What goes into the token.
#[derive(Debug)]
struct Request {
    client: u64,
    servers: Vec<SocketAddr>,
    valid_for: Duration,
    protocol: u64,
    user_data: Box<[u8; 256]>,
}

impl Request {
    /// A token in base64.
    fn issue(self, key: &[u8; 32]) -> Result<String, TokenError> {
        let token = TokenBuilder::new(self.client, self.servers)
            .valid_for(self.valid_for)
            .protocol_id(self.protocol)
            .user_data(*self.user_data)
            .issue(key)?;
        Ok(BASE64.encode(token::to_bytes(&token)))
    }
}

impl Order {
    fn parse(mut parser: Parser) -> Result<Self, lexopt::Error> {
        use lexopt::Arg::{Long, Short};
        let (mut new_key, mut key, mut client, mut servers) = (None, None, None, None);
        let (mut valid_for, mut protocol, mut user_data) = (None, None, None);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("new-key") => new_key = Some(PathBuf::from(parser.value()?)),
                Long("key") => key = Some(PathBuf::from(parser.value()?)),
                Long("client") => client = Some(parser.value()?.parse()?),
                Long("server") => servers = Some(parser.value()?.parse_with(addresses)?),
                Long("seconds") => valid_for = Some(args::seconds(&mut parser)?),
                Long("protocol") => protocol = Some(parser.value()?.parse_with(number)?),
                Long("user-data") => user_data = Some(parser.value()?.parse_with(padded)?),
                Long("help") | Short('h') => args::help(USAGE),
                other => return Err(other.unexpected()),
            }
        }
        match (new_key, key, client, servers) {
            (Some(path), None, None, None)
                if valid_for.is_none() && protocol.is_none() && user_data.is_none() =>
            {
                Ok(Self::Key(path))
            }
            (Some(_), ..) => {
                Err("--new-key makes a key and nothing else; leave the other options out".into())
            }
            (None, Some(key), Some(client), Some(servers)) => Ok(Self::Token {
                key,
                request: Request {
                    client,
                    servers,
                    valid_for: valid_for.unwrap_or(Duration::from_secs(30)),
                    protocol: protocol.unwrap_or(DEFAULT_PROTOCOL_ID),
                    user_data: user_data.unwrap_or_else(|| Box::new([0; 256])),
                },
            }),
            _ => Err("--key, --client and --server are needed (or --new-key); see --help".into()),
        }
    }
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>, &'static str> {
    text.split(',')
        .map(|address| address.trim().parse().ok())
        .collect::<Option<_>>()
        .ok_or("expected addresses such as 203.0.113.5:5000, with commas between them")
}

fn number(text: &str) -> Result<u64, &'static str> {
    text.strip_prefix("0x")
        .map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
        .map_err(|_| "expected a number of 64 bits, such as 7 or 0x7")
}

fn padded(text: &str) -> Result<Box<[u8; 256]>, &'static str> {
    let mut bytes = Box::new([0; 256]);
    bytes
        .get_mut(..text.len())
        .ok_or("expected at most 256 bytes")?
        .copy_from_slice(text.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 6] = [
        "--key",
        "k",
        "--client",
        "7",
        "--server",
        "203.0.113.5:5000,[::1]:5000",
    ];

    fn parse(line: &[&str]) -> Result<Order, lexopt::Error> {
        Order::parse(Parser::from_args(line))
    }

    #[test]
    fn mistakes_are_answered_in_one_line() {
        let with = |more: &[&'static str]| [&GOOD[..], more].concat();
        for line in [
            vec![],
            GOOD[..4].to_vec(),
            GOOD[2..].to_vec(),
            with(&["--new-key", "file"]),
            vec!["--new-key", "file", "--seconds", "5"],
            vec!["--new-key"],
            with(&["--server", "localhost"]),
            with(&["--server", "127.0.0.1"]),
            with(&["--client", "ada"]),
            with(&["--seconds", "-1"]),
            with(&["--protocol", "0xg"]),
            with(&["--user-data", Box::leak("x".repeat(257).into_boxed_str())]),
            with(&["--quick"]),
            with(&["extra"]),
        ] {
            let error = parse(&line).expect_err("a mistake");
            assert_eq!(error.to_string().lines().count(), 1, "{line:?}: {error}");
        }
    }

    #[test]
    fn what_is_printed_opens_at_the_server() {
        let options = [
            "--seconds",
            "60",
            "--protocol",
            "0x7",
            "--user-data",
            "team red",
        ];
        let order = parse(&[&GOOD[..], &options].concat()).expect("good arguments");
        let Order::Token { request, .. } = order else {
            panic!("a token was ordered")
        };
        let text = request.issue(&[5; 32]).expect("a token");
        let bytes = BASE64.decode(text).expect("base64");
        let addresses = ["[::1]:5000".parse().expect("an address")];
        let opened = token::open(&[5; 32], 7, &bytes, 0, &addresses).expect("it is genuine");
        assert_eq!(opened.client_id, 7);
        assert!(opened.user_data.starts_with(b"team red\0"));
    }

    #[test]
    fn a_token_for_no_time_is_refused() {
        let line = [&GOOD[..], &["--seconds", "0.5"]].concat();
        let Ok(Order::Token { request, .. }) = parse(&line) else {
            panic!("a token was ordered")
        };
        assert!(matches!(request.issue(&[5; 32]), Err(TokenError::TooShort)));
    }
}
