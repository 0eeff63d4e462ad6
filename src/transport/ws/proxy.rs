//! Whom a reverse proxy speaks for.
//!
//! Anyone can write `X-Forwarded-For`, so it counts only from proxies that are known, and only as far as known proxies
//! wrote it: from the right, the first address that is none of them is the client's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use tokio_tungstenite::tungstenite::http::HeaderMap;

/// Hops that are looked at. No real path has more proxies that one trusts.
const MAX_HOPS: usize = 16;

/// An address, or all that begin with the same bits: `10.0.0.7`, `10.0.0.0/8`, `::1`, `fd00::/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPrefix {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no [`IpPrefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor a prefix like 10.0.0.0/8 or fd00::/8")]
pub struct IpPrefixError(String);

impl IpPrefix {
    /// Whether an address begins with these bits.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                (u32::from(own) ^ u32::from(other)) & mask == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                (u128::from(own) ^ u128::from(other)) & mask == 0
            }
            _ => false,
        }
    }
}

impl From<IpAddr> for IpPrefix {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self {
            address,
            bits: if address.is_ipv4() { 32 } else { 128 },
        }
    }
}

impl FromStr for IpPrefix {
    type Err = IpPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || IpPrefixError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let whole = Self {
            address,
            bits: if address.is_ipv4() { 32 } else { 128 },
        };
        match bits {
            None => Ok(address.into()),
            Some(bits) => match bits.parse() {
                Ok(bits) if bits <= whole.bits => Ok(Self { bits, ..whole }),
                _ => Err(error()),
            },
        }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Whether a request from this address comes from a proxy that is trusted.
pub(super) fn is_trusted(trusted: &[IpPrefix], address: IpAddr) -> bool {
    trusted.iter().any(|prefix| prefix.contains(address))
}

/// Where a request comes from: `peer`, or who a trusted proxy says it speaks for. The port is 0 where it is not known.
pub(super) fn client_addr(
    peer: SocketAddr,
    headers: &HeaderMap,
    trusted: &[IpPrefix],
) -> SocketAddr {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if !is_trusted(trusted, peer.ip()) {
        return peer;
    }
    let lines = |name: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .collect::<Vec<_>>()
    };
    let mut hops = lines("x-forwarded-for");
    if hops.is_empty() {
        hops = lines("forwarded");
        for hop in &mut hops {
            *hop = forwarded_for(hop).unwrap_or("");
        }
    }
    if hops.is_empty() {
        hops = lines("x-real-ip");
    }
    let mut known = peer;
    for hop in hops.into_iter().rev().take(MAX_HOPS) {
        // What is hidden, or no address, ends what is known.
        let Some(hop) = parse_hop(hop) else {
            break;
        };
        known = hop;
        if !is_trusted(trusted, hop.ip()) {
            break;
        }
    }
    known
}

/// Of an element of `Forwarded` (RFC 7239), whom it is for.
fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| value.trim().trim_matches('"'))
    })
}

/// An address with or without a port, and of IPv6 with or without brackets.
fn parse_hop(hop: &str) -> Option<SocketAddr> {
    let (ip, port) = if let Ok(addr) = hop.parse::<SocketAddr>() {
        (addr.ip(), addr.port())
    } else {
        let bare = hop
            .strip_prefix('[')
            .and_then(|hop| hop.strip_suffix(']'))
            .unwrap_or(hop);
        (bare.parse().ok()?, 0)
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};

    use super::*;

    fn client(peer: &str, headers: &[(&str, &str)], trusted: &[&str]) -> String {
        let trusted: Vec<IpPrefix> = trusted
            .iter()
            .map(|prefix| prefix.parse().expect("a prefix"))
            .collect();
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                    HeaderValue::from_str(value).expect("a value"),
                )
            })
            .collect();
        client_addr(peer.parse().expect("an address"), &headers, &trusted).to_string()
    }

    #[test]
    fn strangers_speak_for_themselves() {
        let forged = [
            ("x-forwarded-for", "198.51.100.1"),
            ("x-real-ip", "198.51.100.1"),
        ];
        assert_eq!(client("203.0.113.9:77", &forged, &[]), "203.0.113.9:77");
        assert_eq!(
            client("203.0.113.9:77", &forged, &["127.0.0.1", "10.0.0.0/8"]),
            "203.0.113.9:77"
        );
    }

    #[test]
    fn the_rightmost_hop_that_is_not_a_proxy_is_the_client() {
        let trusted = ["127.0.0.1", "10.0.0.0/8"];
        for (hops, expected) in [
            ("198.51.100.1", "198.51.100.1:0"),
            ("6.6.6.6, 198.51.100.1", "198.51.100.1:0"), // the first is what the client claims
            ("198.51.100.1, 10.1.2.3", "198.51.100.1:0"),
            ("10.9.9.9, 10.1.2.3", "10.9.9.9:0"), // a client within the network
            ("198.51.100.1:4711", "198.51.100.1:4711"),
            ("2001:db8::7", "[2001:db8::7]:0"),
            ("[2001:db8::7]:99", "[2001:db8::7]:99"),
            ("198.51.100.1, unknown, 10.1.2.3", "10.1.2.3:0"),
            ("nonsense", "127.0.0.1:5"),
            ("", "127.0.0.1:5"),
        ] {
            assert_eq!(
                client("127.0.0.1:5", &[("x-forwarded-for", hops)], &trusted),
                expected,
                "{hops}"
            );
        }
        assert_eq!(
            client(
                "[::ffff:10.0.0.1]:5",
                &[
                    ("x-forwarded-for", "6.6.6.6"),
                    ("x-forwarded-for", "198.51.100.1")
                ],
                &trusted
            ),
            "198.51.100.1:0",
            "several lines are one list"
        );
    }

    #[test]
    fn other_headers_of_proxies_are_known() {
        let trusted = ["127.0.0.1"];
        assert_eq!(
            client(
                "127.0.0.1:5",
                &[(
                    "forwarded",
                    "for=6.6.6.6, proto=https;For=\"[2001:db8::7]:99\";by=10.0.0.1"
                )],
                &trusted
            ),
            "[2001:db8::7]:99"
        );
        assert_eq!(
            client("127.0.0.1:5", &[("forwarded", "for=_hidden")], &trusted),
            "127.0.0.1:5"
        );
        assert_eq!(
            client("127.0.0.1:5", &[("x-real-ip", "198.51.100.1")], &trusted),
            "198.51.100.1:0"
        );
    }

    #[test]
    fn prefixes_are_what_they_say() {
        let contains = |prefix: &str, address: &str| {
            prefix
                .parse::<IpPrefix>()
                .expect("a prefix")
                .contains(address.parse().expect("an address"))
        };
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("192.0.2.1", "::ffff:192.0.2.1") && !contains("192.0.2.1", "192.0.2.2"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "2001:db8::1") && contains("fd00::/8", "fdff::1"));
        for wrong in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/",
            "x",
            "10.0.0.0/-1",
        ] {
            let error = wrong.parse::<IpPrefix>().expect_err("no prefix");
            assert!(
                error.to_string().contains("10.0.0.0/8"),
                "says what would be: {error}"
            );
        }
    }
}
