//! What is said when a client joins and leaves.
//!
//! The client says who it is, what it has registered, and whether it joins or comes back; the server answers with a
//! welcome, or with a refusal that says what to do.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::layout::SessionId;
use super::names::NameError;
use super::reliable::{STREAMS, Taken};
use super::resume::ResumeToken;
use crate::tick::Tick;

/// Changes whenever what travels on the wire changes its form.
pub const WIRE_VERSION: u32 = 3;

/// How many [connect tokens](Control::ConnectToken) a client keeps, and a server remembers of each.
pub const MAX_CONNECT_TOKENS: usize = 4;

/// Longest credentials in bytes: with the rest of a hello they fit one message of a client.
pub const MAX_CREDENTIALS_BYTES: usize = 800;

/// Longest game version and platform, in bytes.
pub const MAX_VERSION_BYTES: usize = 64;

/// Longest text in a reason that the other side is told, in bytes: it must fit one datagram, since what ends a link is
/// not resent. Longer ones are cut.
pub const MAX_REASON_BYTES: usize = 1_000;

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`WIRE_VERSION`] of the client.
    pub wire_version: u32,
    /// [`fingerprint`] of what the client registered.
    pub fingerprint: u64,
    /// The player's name.
    pub name: String,
    /// Version of the game; servers let in only their own.
    pub game_version: String,
    /// Operating system and architecture, or `browser`: for statistics.
    pub platform: String,
    /// Proof of who the player is, if the server asks for one, such as a JSON Web Token.
    pub credentials: Vec<u8>,
    /// Whether the client joins or comes back.
    pub intent: Intent,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// A new session.
    Join,
    /// To go on with the session that it had.
    Resume {
        /// Shows that it was this client's.
        token: ResumeToken,
        /// Which messages of the server the client has taken.
        taken: Taken,
    },
}

/// What a client asks of the server later on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To be told everything again: it could not use a snapshot. Said until snapshots of another epoch come.
    Resync {
        /// The epoch that is of no use any more.
        epoch: u8,
    },
    /// The client has its new resume token, so the one before is void.
    ConfirmToken {
        /// See [`ResumeToken::receipt`]. Little endian, so that its length tells nothing and is always the same.
        receipt: [u8; 4],
    },
}

/// How a session goes on over a new link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumption {
    /// Which messages of the client the server has taken.
    pub taken: Taken,
    /// The numbers with which the server's messages go on.
    pub first_kept: [u32; STREAMS],
    /// How many of the server's messages are lost: the client was away for longer than they could be kept.
    pub lost: u64,
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
        /// With which the client can come back, once.
        token: ResumeToken,
        /// How the session goes on, if the client came back.
        resumption: Option<Resumption>,
    },
    /// A connect token for the client's next link. The one that it came with works only once. Of those that it gets, a
    /// client keeps the newest [`MAX_CONNECT_TOKENS`], and uses another for each attempt.
    ConnectToken(Vec<u8>),
    /// The server will go.
    Closing {
        /// Milliseconds until then.
        in_ms: u32,
    },
    /// The client has broken a limit, and what it sent beyond is dropped. Next, it is disconnected.
    Warning {
        /// Which limit.
        limit: String,
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
        /// The index of the entity's id.
        net: u32,
        /// The generation of its id.
        generation: u32,
        /// The component.
        component: u8,
        /// See [`ApartValue`](super::view::ApartValue).
        version: u32,
        /// The serialised value.
        #[serde(with = "shared_bytes")]
        bytes: Bytes,
    },
}

/// Bytes that are not copied on the way to the encoder.
mod shared_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        Vec::deserialize(from).map(Bytes::from)
    }
}

/// Why a connection ended or was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DisconnectReason {
    /// No answer within the connect timeout.
    #[error(
        "no answer from the server within the connect timeout; check the address, that the server runs, and whether it asks for a connect token"
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
    /// The name is not allowed.
    #[error("the name is not allowed: {0}")]
    InvalidName(String),
    /// The player or their address is banned.
    #[error("banned for {seconds} more seconds: {reason}")]
    Banned {
        /// Why.
        reason: String,
        /// For how long yet.
        seconds: u64,
    },
    /// The client sent far more than it may.
    #[error("too much was sent: {0}")]
    LimitExceeded(String),
    /// The server could not tell who the player is.
    #[error("who this player is could not be verified: {0}")]
    Unauthorised(String),
    /// The two sides are of different versions of the game.
    #[error(
        "the server runs version `{server}` of the game and this is `{client}`; update the older of the two"
    )]
    GameVersion {
        /// The server's.
        server: String,
        /// The client's.
        client: String,
    },
    /// The session cannot be resumed.
    #[error("the session cannot be resumed: {0}")]
    ResumeRejected(ResumeRejection),
    /// The session goes on over another link.
    #[error("the session was resumed over another link")]
    Replaced,
    /// The client did not read what was sent to it.
    #[error("what was sent was not read for too long")]
    Congested,
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
    /// The server, or a proxy before it, cannot take the client now. Later it may.
    #[error("the server is not ready: {0}")]
    NotReady(String),
}

/// Why a session cannot be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ResumeRejection {
    /// The server has no such session: its time ran out, or the server was started anew.
    #[error("it has ended; join again")]
    Expired,
    /// The token is not the session's, or was used before.
    #[error("its token is not valid (any more); join again")]
    InvalidToken,
    /// Somebody else asks for it.
    #[error("it belongs to another player")]
    OtherIdentity,
}

impl DisconnectReason {
    /// Whether a session outlives a link that ends so. All else is somebody's will, or would only happen again.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::TimedOut | Self::Congested | Self::Link(_) | Self::NotReady(_)
        )
    }

    /// The same with no more text than fits a goodbye: [`MAX_REASON_BYTES`], or half of that in each of two texts.
    #[must_use]
    pub fn shortened(&self) -> Self {
        let mut reason = self.clone();
        match &mut reason {
            Self::Kicked(text)
            | Self::InvalidName(text)
            | Self::LimitExceeded(text)
            | Self::Unauthorised(text)
            | Self::ProtocolViolation(text)
            | Self::Link(text)
            | Self::NotReady(text)
            | Self::Banned { reason: text, .. } => cut(text, MAX_REASON_BYTES),
            Self::GameVersion { server, client }
            | Self::ProtocolMismatch { server, client, .. } => {
                cut(server, MAX_REASON_BYTES / 2);
                cut(client, MAX_REASON_BYTES / 2);
            }
            Self::ConnectTimedOut
            | Self::TimedOut
            | Self::ClientLeft
            | Self::ServerShutdown
            | Self::ServerFull
            | Self::ResumeRejected(_)
            | Self::Replaced
            | Self::Congested
            | Self::VersionMismatch { .. } => {}
        }
        reason
    }

    /// How a ban with so much time left is put.
    pub fn banned(reason: &str, left: Duration) -> Self {
        Self::Banned {
            reason: reason.into(),
            seconds: left.as_secs().max(1),
        }
    }
}

/// Shortens a text, and says so by an ellipsis.
fn cut(text: &mut String, max_bytes: usize) {
    const ELLIPSIS: &str = "…";
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
}

impl From<NameError> for DisconnectReason {
    fn from(error: NameError) -> Self {
        Self::InvalidName(error.to_string())
    }
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
    fn a_long_reason_is_cut_between_two_characters() {
        for letter in ["x", "é", "😀"] {
            for length in [1, 900 / letter.len(), 5_000, 5_001] {
                let text = letter.repeat(length);
                let DisconnectReason::Kicked(cut) =
                    DisconnectReason::Kicked(text.clone()).shortened()
                else {
                    panic!("another reason");
                };
                assert!(cut.len() <= MAX_REASON_BYTES);
                match cut.strip_suffix('…') {
                    None => assert_eq!(cut, text),
                    Some(beginning) => {
                        assert!(text.starts_with(beginning));
                        assert!(cut.len() > MAX_REASON_BYTES - 4, "{}", cut.len());
                    }
                }
            }
        }
    }

    #[test]
    fn the_fingerprint_depends_on_order_and_boundaries() {
        assert_ne!(fingerprint(["ab", "c"]), fingerprint(["a", "bc"]));
        assert_ne!(fingerprint(["a", "b"]), fingerprint(["b", "a"]));
    }
}
