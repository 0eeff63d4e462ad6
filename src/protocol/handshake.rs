//! What is said when a client joins and leaves.
//!
//! The client says who it is and what it has registered; the server answers with a welcome, or with a refusal that
//! says what to do.

use serde::{Deserialize, Serialize};

use crate::session::SessionId;
use crate::tick::Tick;

/// Changes whenever what travels on the wire changes its form.
pub const WIRE_VERSION: u32 = 1;

/// Longest player name, in characters: fits a score table.
pub const MAX_NAME_CHARS: usize = 32;

/// What a client sends on the control channel when it cannot use the snapshots that it gets.
pub(crate) const RESYNC_REQUEST: &[u8] = b"resync";

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`WIRE_VERSION`] of the client.
    pub wire_version: u32,
    /// [`fingerprint`] of what the client registered.
    pub fingerprint: u64,
    /// The player's name.
    pub name: String,
}

/// The server's messages about the connection itself and values too large for snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// The client is in.
    Welcome {
        /// Its session's number.
        session: SessionId,
        /// The server's tick when it wrote this.
        tick: Tick,
        /// Simulation steps per second.
        tick_rate_hz: f64,
    },
    /// The two sides do not speak the same protocol: here is the server's.
    Mismatch {
        /// [`WIRE_VERSION`] of the server.
        wire_version: u32,
        /// What the server registered, in order.
        registrations: Vec<String>,
    },
    /// A component's value that was too large for a snapshot.
    Value {
        /// The entity.
        net: u32,
        /// The component.
        component: u8,
        /// See [`ApartValue`](super::view::ApartValue).
        version: u32,
        /// The serialised value.
        bytes: Vec<u8>,
    },
}

/// Why a connection ended or was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DisconnectReason {
    /// No answer within the connect timeout.
    #[error(
        "no answer from the server within the connect timeout; check the address and that the server runs"
    )]
    ConnectTimedOut,
    /// Nothing was heard from the other side for the timeout.
    #[error("nothing was heard from the other side for too long")]
    TimedOut,
    /// The client left.
    #[error("the client left")]
    ClientLeft,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ServerShutdown,
    /// The server ended the session.
    #[error("kicked: {0}")]
    Kicked(String),
    /// The server has as many sessions as it is configured for.
    #[error("the server is full; try again later")]
    ServerFull,
    /// The name is empty, too long or has control characters.
    #[error("the name is not allowed: use 1 to 32 characters, none of them control characters")]
    InvalidName,
    /// The two sides registered different things.
    #[error(
        "protocol mismatch at registration {position}: the server has {server}, the client has {client}; \
         build both from the same version and register the same types in the same order on both sides"
    )]
    ProtocolMismatch {
        /// Place in the order of registration, from 1.
        position: usize,
        /// What the server has there.
        server: String,
        /// What the client has there.
        client: String,
    },
    /// The two sides use different versions of this crate.
    #[error(
        "wire version mismatch: server {server}, client {client}; build both with the same bevy_tandem"
    )]
    VersionMismatch {
        /// The server's [`WIRE_VERSION`].
        server: u32,
        /// The client's.
        client: u32,
    },
    /// The other side broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    ProtocolViolation(String),
    /// The link failed.
    #[error("the link failed: {0}")]
    Link(String),
}

/// One number for a list of registrations (FNV-1a, 64 bit): cheap to compare, and no secret.
pub fn fingerprint<'a>(registrations: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for registration in registrations {
        for byte in registration.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash
}

/// Names the first registration that differs.
pub fn explain_mismatch(
    server_version: u32,
    server: &[String],
    client: &[String],
) -> DisconnectReason {
    if server_version != WIRE_VERSION {
        return DisconnectReason::VersionMismatch {
            server: server_version,
            client: WIRE_VERSION,
        };
    }
    let position = server
        .iter()
        .zip(client)
        .take_while(|(server, client)| server == client)
        .count();
    let name = |side: &[String]| {
        side.get(position)
            .map_or("nothing".into(), |name| format!("`{name}`"))
    };
    DisconnectReason::ProtocolMismatch {
        position: position + 1,
        server: name(server),
        client: name(client),
    }
}

/// Whether a player may be called that.
pub fn is_valid_name(name: &str) -> bool {
    let length = name.chars().count();
    (1..=MAX_NAME_CHARS).contains(&length)
        && !name.chars().any(char::is_control)
        && !name.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_mismatch_names_the_first_type_that_differs() {
        let server = list(&["component Transform", "component Health", "input Steer"]);
        let client = list(&["component Transform", "component Armour", "input Steer"]);
        let reason = explain_mismatch(WIRE_VERSION, &server, &client);
        assert_eq!(
            reason,
            DisconnectReason::ProtocolMismatch {
                position: 2,
                server: "`component Health`".into(),
                client: "`component Armour`".into(),
            }
        );
        let shorter = explain_mismatch(WIRE_VERSION, &server, &server[..2]);
        assert!(
            shorter.to_string().contains("the client has nothing"),
            "{shorter}"
        );
    }

    #[test]
    fn the_fingerprint_depends_on_order_and_boundaries() {
        assert_ne!(fingerprint(["ab", "c"]), fingerprint(["a", "bc"]));
        assert_ne!(fingerprint(["a", "b"]), fingerprint(["b", "a"]));
    }

    #[test]
    fn names_are_validated() {
        assert!(is_valid_name("Ada") && is_valid_name("Žofie 🚀"));
        assert!(!is_valid_name("") && !is_valid_name("   ") && !is_valid_name("a\nb"));
        assert!(!is_valid_name(&"x".repeat(33)));
    }
}
