//! Datagrams in and out.
//!
//! A transport knows peers only as *links*: a [`LinkId`] that opens, carries datagrams in both
//! directions, and closes. Who plays over a link (a session, a spectator, nobody yet) is decided
//! further up. Datagrams may be lost, duplicated or reordered, as on the network.
//!
//! - [`udp`]: the internet, encrypted and authenticated by netcode 1.02 (`renetcode`).
//! - [`ws`]: WebSocket, for browsers and for networks that block UDP.
//! - [`local`]: two apps in one process, with an exactly repeatable network between them.
//! - [`conditioner`]: makes any of them as bad as a real network.
//!
//! Nothing here is a Bevy system. The plugins call a transport once a frame, `receive` first and
//! `flush` last, and give it the time.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use crate::protocol::handshake::DisconnectReason;

pub mod conditioner;
pub mod filter;
pub mod local;
mod shared;
#[cfg(not(target_family = "wasm"))]
pub mod udp;
#[cfg(feature = "websocket")]
pub mod ws;

pub use crate::protocol::pacing::LinkPace;
pub use conditioner::{Conditioned, ConditionedServer, LinkConditions};
pub use local::{LocalClient, LocalConnector, LocalServer};
pub use shared::SharedBytes;
#[cfg(not(target_family = "wasm"))]
pub use udp::{UdpClient, UdpClientConfig, UdpServer, UdpServerConfig};

/// The size to coalesce datagrams to, in bytes.
///
/// With netcode's 25 bytes, UDP's 8 and IPv6's 40 this makes 1,273: under the 1,280 that every
/// IPv6 path carries whole, and so, in practice, under what every IPv4 path does.
pub const MAX_DATAGRAM_BYTES: usize = 1_200;

/// The largest datagram a transport takes, in bytes.
///
/// renet cuts large messages into slices of 1,200 bytes and adds a header of up to 38, so such a
/// datagram cannot be kept to [`MAX_DATAGRAM_BYTES`].
pub const MAX_PAYLOAD_BYTES: usize = 1_250;

/// The largest datagram that a [stream](Delivery::Stream) link takes, in bytes: the largest message of a server, and
/// what goes with it.
pub const MAX_STREAM_DATAGRAM_BYTES: usize = (1 << 20) + 256;

/// What a transport is, for counting, settings and diagnostics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportKind {
    /// [`udp`].
    Udp,
    /// WebSocket, with or without TLS.
    WebSocket,
    /// [`local`].
    #[default]
    Local,
    /// One of a game's own, or of another crate's, by its name.
    Other(&'static str),
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::WebSocket => "websocket",
            Self::Local => "local",
            Self::Other(name) => name,
        })
    }
}

/// What a link does with what is sent over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Datagrams may be lost, duplicated and reordered, and have at most [`MAX_PAYLOAD_BYTES`].
    #[default]
    Datagrams,
    /// All arrive, once and in order, or the link ends. They may have [`MAX_STREAM_DATAGRAM_BYTES`], and wait for each
    /// other: a link can be [congested](ServerTransport::is_congested).
    Stream,
}

/// One connection of one transport. Never reused while the process lives.
///
/// The top byte is the transport's index, the rest counts, so several transports in one server
/// never give the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

impl LinkId {
    /// Which transport of the server gave this id: the index it was made with.
    pub fn transport_index(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}",
            self.transport_index(),
            self.0 & LinkIds::COUNT_MASK
        )
    }
}

/// Gives out the link ids of one transport.
#[derive(Clone, Debug)]
pub struct LinkIds {
    next: u64,
}

impl LinkIds {
    const COUNT_MASK: u64 = (1 << 56) - 1;

    /// Ids of the transport with this index. Transports of one server need different indices.
    pub fn new(transport_index: u8) -> Self {
        Self {
            next: u64::from(transport_index) << 56,
        }
    }

    /// A new id. At a million a second, they last for two thousand years.
    pub fn allocate(&mut self) -> LinkId {
        let id = LinkId(self.next);
        self.next += 1;
        id
    }
}

/// What a server's transport has to tell, in the order it happened.
///
/// Each link opens once and closes once, and its datagrams come between the two.
#[derive(Debug)]
pub enum LinkEvent {
    /// A peer connected.
    Opened {
        /// The new link.
        link: LinkId,
        /// Who is at the other end.
        peer: PeerInfo,
    },
    /// A datagram arrived.
    Datagram {
        /// The link it came over.
        link: LinkId,
        /// When it arrived, by the transport's [clock](ServerTransport::clock).
        at: Duration,
        /// As the peer gave it to its transport.
        bytes: Vec<u8>,
    },
    /// The link is gone.
    Closed {
        /// The link that was.
        link: LinkId,
        /// Why it closed.
        reason: CloseReason,
    },
}

/// What a transport knows about a peer when its link opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where the peer is, or `None` within the process.
    pub addr: Option<SocketAddr>,
    /// Who the peer is. Vouched for by the back end if [`secure`](Self::secure), else the peer's
    /// own claim.
    pub client_id: u64,
    /// What the back end (or, if not [`secure`](Self::secure), the peer) put in the connect token.
    pub user_data: Option<Box<[u8; 256]>>,
    /// Whether the link is encrypted with keys that only the back end and this client know.
    pub secure: bool,
    /// The connect token that the link was opened with, if it was a back end's.
    pub token: Option<TokenUse>,
    /// What the transport is.
    pub kind: TransportKind,
    /// What the link does with datagrams.
    pub delivery: Delivery,
}

/// A connect token that opened a link.
///
/// A transport lets nobody use one twice, but knows nothing of the others that a server listens on. The server looks at
/// this to let nobody use it twice anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// Different for every token.
    pub tag: [u8; 16],
    /// Until when it could be used, in seconds since 1970.
    pub expires: u64,
}

/// Why a link closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The server never answered, or stopped answering before the link was open.
    #[error("no answer from the server; check its address and that its UDP port is reachable")]
    ConnectTimedOut,
    /// The link was open and then nothing arrived for too long.
    #[error("nothing arrived from the peer for too long")]
    TimedOut,
    /// The server answered that it takes no more clients, or that this one is already connected.
    #[error("the server refused: it is full, or this client is already connected")]
    Denied,
    /// The connect token expired before the link was open.
    #[error("the connect token expired; ask the back end for a new one")]
    TokenExpired,
    /// The peer closed the link.
    #[error("the peer closed the link")]
    ByPeer,
    /// This side closed the link.
    #[error("closed by us")]
    ByUs,
    /// More was waiting for the peer, or from it, than the transport holds.
    #[error("the peer could not keep up, or sent more than the transport holds")]
    Overflow,
    /// A stream's peer has not read what was sent for as long as it may.
    #[error("the peer has not read what was sent to it for too long")]
    Congested,
    /// The server refused the link, and says why.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server, or a proxy before it, cannot take the link now, and says why. Later it may.
    #[error("the server is not ready: {0}")]
    NotReady(String),
    /// Something particular to the transport.
    #[error("{0}")]
    Transport(String),
}

impl From<CloseReason> for DisconnectReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::ConnectTimedOut => Self::ConnectTimedOut,
            CloseReason::TimedOut => Self::TimedOut,
            CloseReason::Denied => Self::ServerFull,
            CloseReason::Congested => Self::Congested,
            CloseReason::Refused(reason) => Self::Unauthorised(reason),
            CloseReason::NotReady(why) => Self::NotReady(why),
            CloseReason::TokenExpired => Self::Unauthorised(CloseReason::TokenExpired.to_string()),
            other => Self::Link(other.to_string()),
        }
    }
}

/// Counters of one transport since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Bytes received: UDP payloads, whatever became of them.
    pub bytes_in: u64,
    /// Bytes sent: UDP payloads, including keep-alives and handshakes.
    pub bytes_out: u64,
    /// Datagrams received, whatever became of them.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams that went no further, by cause.
    pub rejected: Rejected,
}

/// Datagrams that a transport dropped, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    /// Not of a shape that the protocol sends at that point of a connection.
    pub malformed: u64,
    /// From an address without a link that does not ask for one.
    pub unknown: u64,
    /// Requests to connect that were refused: bad token, token of another address, too many.
    pub handshake: u64,
    /// Failed decryption, or seen before.
    pub unauthentic: u64,
    /// Over the peer's budget.
    pub over_budget: u64,
    /// The queue to the app was full: it does not call `receive` often enough.
    pub inbox_full: u64,
    /// The queue to the network was full, or the system refused to send.
    pub outbox_full: u64,
    /// Given to `send` for a link that is closed, or longer than [`MAX_PAYLOAD_BYTES`].
    pub unsendable: u64,
}

impl core::ops::Add for TransportStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
            datagrams_in: self.datagrams_in + other.datagrams_in,
            datagrams_out: self.datagrams_out + other.datagrams_out,
            rejected: self.rejected + other.rejected,
        }
    }
}

impl core::iter::Sum for TransportStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), core::ops::Add::add)
    }
}

impl core::ops::Add for Rejected {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            malformed: self.malformed + other.malformed,
            unknown: self.unknown + other.unknown,
            handshake: self.handshake + other.handshake,
            unauthentic: self.unauthentic + other.unauthentic,
            over_budget: self.over_budget + other.over_budget,
            inbox_full: self.inbox_full + other.inbox_full,
            outbox_full: self.outbox_full + other.outbox_full,
            unsendable: self.unsendable + other.unsendable,
        }
    }
}

impl Rejected {
    /// All causes together.
    pub fn total(&self) -> u64 {
        self.malformed
            + self.unknown
            + self.handshake
            + self.unauthentic
            + self.over_budget
            + self.inbox_full
            + self.outbox_full
            + self.unsendable
    }
}

/// The server's end of many links.
///
/// `now` is the time since any fixed moment and does not run backwards. Transports that reach the
/// real network keep their own clock and ignore it.
pub trait ServerTransport: Send + Sync + 'static {
    /// Appends everything that happened since the last call, in order.
    fn receive(&mut self, now: Duration, events: &mut Vec<LinkEvent>);

    /// The time at this moment, by which round trips are measured. For a transport that reaches the real network it
    /// goes on while the app is busy with a frame; for others it is `now`, the frame's.
    fn clock(&self, now: Duration) -> Duration {
        now
    }

    /// Sends a datagram of at most [`MAX_PAYLOAD_BYTES`]; a longer one, or one for a link that is
    /// gone, is counted and dropped. It may wait for [`flush`](Self::flush).
    fn send(&mut self, now: Duration, link: LinkId, datagram: &[u8]);

    /// Lets everything given to `send` and `close` so far leave. Once a frame, after the last of it.
    fn flush(&mut self, now: Duration);

    /// Closes a link and tells the peer, after what was sent before. `receive` then reports
    /// [`LinkEvent::Closed`] with [`CloseReason::ByUs`]. Nothing happens if the link is gone.
    fn close(&mut self, link: LinkId);

    /// Sends `head` and `shared` as one datagram. Links that get the same `shared` share its memory, and its
    /// compressed form, where the transport can.
    fn send_shared(&mut self, now: Duration, link: LinkId, head: &[u8], shared: &SharedBytes) {
        self.send(now, link, &[head, shared.bytes()].concat());
    }

    /// Whether what was sent before still waits for the peer to read. The caller then sends nothing that will be
    /// outdated by the time it can be read.
    fn is_congested(&self, _link: LinkId) -> bool {
        false
    }

    /// Bytes that wait on this side for the peer to read.
    fn queued_bytes(&self, _link: LinkId) -> usize {
        0
    }

    /// Sets how a link's datagrams are gathered and compressed, where the transport does either.
    fn set_pace(&mut self, _link: LinkId, _pace: LinkPace) {}

    /// What the transport is.
    fn kind(&self) -> TransportKind;

    /// Lets no link open any more; those that are open go on.
    fn stop_accepting(&mut self) {}

    /// Where the transport listens, if that is an address.
    fn local_addr(&self) -> Option<SocketAddr>;

    /// Counters since the transport was made.
    fn stats(&self) -> TransportStats;

    /// Closes all links and stops, within a bounded time (UDP: 200 ms). No link opens after this.
    /// Dropping the transport does the same, and frees its port.
    fn shutdown(&mut self);
}

/// A client's end of one link.
///
/// `now` as for [`ServerTransport`]; here UDP uses it too, for its timeouts.
pub trait ClientTransport: Send + Sync + 'static {
    /// Whether the link is opening, open or closed. Changes only in `receive` and `close`.
    fn state(&self) -> &ClientLinkState;

    /// Appends the datagrams that arrived since the last call.
    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>);

    /// The same, each with the time at which it arrived. A transport that does not know that says when it was asked.
    fn receive_timed(&mut self, now: Duration, datagrams: &mut Vec<Arrival>) {
        let mut bytes = Vec::new();
        self.receive(now, &mut bytes);
        let at = self.clock(now);
        datagrams.extend(bytes.into_iter().map(|bytes| Arrival { at, bytes }));
    }

    /// The time at this moment, by which round trips are measured: see [`ServerTransport::clock`].
    fn clock(&self, now: Duration) -> Duration {
        now
    }

    /// Sends a datagram of at most [`MAX_PAYLOAD_BYTES`]. While the link is not open, and if it is
    /// longer, it is counted and dropped.
    fn send(&mut self, now: Duration, datagram: &[u8]);

    /// Lets everything given to `send` so far leave. Once a frame, after the last of it.
    fn flush(&mut self, now: Duration);

    /// What the transport is.
    fn kind(&self) -> TransportKind;

    /// What the link does with datagrams.
    fn delivery(&self) -> Delivery {
        Delivery::Datagrams
    }

    /// Whether what was sent before still waits to be read.
    fn is_congested(&self) -> bool {
        false
    }

    /// Lets the link go without a word to the server, as when the network fails.
    fn vanish(&mut self);

    /// Closes the link and tells the server. Nothing happens if it is closed already.
    fn close(&mut self);

    /// Counters since the transport was made.
    fn stats(&self) -> TransportStats;
}

/// A datagram that has come to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, by the transport's [clock](ClientTransport::clock).
    pub at: Duration,
    /// As the server gave it to its transport.
    pub bytes: Vec<u8>,
}

/// How far a client's link has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientLinkState {
    /// Waiting for the server.
    Connecting,
    /// Open: datagrams flow.
    Connected,
    /// Over. A closed link does not open again: make a new transport.
    Closed(CloseReason),
}

impl ClientLinkState {
    /// Whether the link is open.
    pub fn is_connected(&self) -> bool {
        *self == Self::Connected
    }

    /// Why the link closed, if it did.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match self {
            Self::Closed(reason) => Some(reason),
            _ => None,
        }
    }
}

/// Runs `f` with logging switched off on this thread.
///
/// `renet` and `renetcode` log a line, some of them an error, for datagrams that a stranger can
/// send by the thousand. Bevy forwards such records to the thread's `tracing` dispatcher, which is
/// silenced for the duration. Costs some tens of nanoseconds.
pub fn quietly<R>(f: impl FnOnce() -> R) -> R {
    tracing::dispatcher::with_default(&tracing::Dispatch::none(), f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_ids_of_two_transports_never_meet() {
        let (mut first, mut second) = (LinkIds::new(0), LinkIds::new(255));
        let ids = [
            first.allocate(),
            first.allocate(),
            second.allocate(),
            second.allocate(),
        ];
        assert_eq!(
            ids.map(LinkId::transport_index),
            [0, 0, 255, 255],
            "the top byte is the index"
        );
        assert_ne!(ids[2], ids[3], "ids of one transport differ");
        assert_eq!(ids[3].to_string(), "255.1", "reads as index and count");
    }
}
