//! What travels in a WebSocket's messages: the same for native servers and clients and for browsers.
//!
//! Plain Rust: bytes in, bytes out. All numbers are little-endian. All messages are binary.
//!
//! ```text
//! upgrade     subprotocol `tandem.1`
//! first  →    "TND1"  protocol id u64  kind u8  { 0: client id u64 | 1: a connect token }
//! first  ←    "TND1", or a close code from 4000 on with a reason
//! then        flags u8  body
//! body        { length (LEB128)  datagram }            flags bit 0: the body is deflated
//! shared      head length u16  head  flags u8  rest    flags bit 1; its own bit 0: the rest is deflated
//! ```
//!
//! One message is all that a link sends in a tick, save for what many get and is large. The shared form carries one datagram, `head` and `rest` joined, so
//! that what many links get is compressed once and copied by none of them. Only servers send it.
//!
//! Deflate is raw (RFC 1951) and starts afresh with each message: a window that lives as long as the link would cost
//! 300 KiB for each client and make every message different.

use core::cell::{Cell, RefCell};

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::transport::{CloseReason, MAX_PAYLOAD_BYTES, MAX_STREAM_DATAGRAM_BYTES, SharedBytes};

/// The WebSocket subprotocol that both sides name in the upgrade. Its number changes with the format.
pub const SUBPROTOCOL: &str = "tandem.1";

/// How the first message of each side begins, and all of the server's.
pub const MAGIC: [u8; 4] = *b"TND1";

/// The longest first message: [`MAGIC`], protocol id, kind, and a connect token of netcode 1.02 (2,048 bytes).
pub const MAX_AUTH_BYTES: usize = 4 + 8 + 1 + 2_048;

/// The longest reason in a close frame, in bytes. WebSocket allows 123.
pub const MAX_REASON_BYTES: usize = 120;

/// A batch that has this many bytes takes no further datagram. A longer one has a message of its own.
pub const MAX_BATCH_BYTES: usize = 48 << 10;

/// The body is deflated.
const DEFLATED: u8 = 1;
/// The body is of the shared form.
const SHARED: u8 = 2;

/// Codes of close frames.
pub mod close_code {
    /// The session over this link is done.
    pub const NORMAL: u16 = 1000;
    /// The server shuts down, or the browser leaves the page.
    pub const GOING_AWAY: u16 = 1001;
    /// A frame that WebSocket or this format does not know.
    pub const PROTOCOL: u16 = 1002;
    /// A text message.
    pub const UNSUPPORTED: u16 = 1003;
    /// A body that cannot be read.
    pub const INVALID: u16 = 1007;
    /// A message of more bytes than this side takes.
    pub const TOO_BIG: u16 = 1009;
    /// The server failed. Nothing that the peer did.
    pub const INTERNAL: u16 = 1011;
    /// The server cannot take the link now, and says why.
    pub const TRY_AGAIN: u16 = 1013;
    /// The server refuses the link, and says why.
    pub const REFUSED: u16 = 4000;
    /// The connect token has expired.
    pub const TOKEN_EXPIRED: u16 = 4001;
    /// The server takes no more clients.
    pub const FULL: u16 = 4002;
    /// The peer has not read what was sent to it for too long.
    pub const CONGESTED: u16 = 4010;
    /// Nothing has arrived from the peer for too long.
    pub const TIMED_OUT: u16 = 4011;
    /// More waits than this side holds.
    pub const OVERFLOW: u16 = 4012;
    /// The last of the codes with which a server refuses a link.
    pub const LAST_REFUSAL: u16 = 4099;
}

/// What a link of this side ends with when the peer sent a close frame. `opened` is whether the link was open.
pub fn close_reason(code: u16, reason: &str, opened: bool) -> CloseReason {
    match code {
        close_code::TOKEN_EXPIRED => CloseReason::TokenExpired,
        close_code::FULL => CloseReason::Denied,
        close_code::CONGESTED => CloseReason::Congested,
        close_code::TIMED_OUT => CloseReason::TimedOut,
        close_code::OVERFLOW => CloseReason::Overflow,
        close_code::REFUSED..=close_code::LAST_REFUSAL => CloseReason::Refused(printable(reason)),
        close_code::TRY_AGAIN => CloseReason::NotReady(printable(reason)),
        close_code::NORMAL | close_code::GOING_AWAY if opened => CloseReason::ByPeer,
        _ if reason.is_empty() => {
            CloseReason::Transport(format!("the peer closed the WebSocket with code {code}"))
        }
        _ => CloseReason::Transport(format!(
            "the peer closed the WebSocket with code {code}: {}",
            printable(reason)
        )),
    }
}

/// What a server's link ends with when the client sent a close frame: with any but the usual codes, the link was lost to
/// the client, who will be back.
pub fn client_close_reason(code: u16) -> CloseReason {
    match code {
        close_code::NORMAL | close_code::GOING_AWAY => CloseReason::ByPeer,
        _ => CloseReason::Transport(format!("the client gave the link up with code {code}")),
    }
}

/// With which code and reason to tell the peer that this side closes a link.
pub fn close_frame(reason: &CloseReason) -> (u16, &str) {
    match reason {
        CloseReason::Congested => (close_code::CONGESTED, "you have not read for too long"),
        CloseReason::Overflow => (close_code::OVERFLOW, "too much waits to be sent or read"),
        CloseReason::TimedOut => (close_code::TIMED_OUT, "nothing arrived for too long"),
        CloseReason::TokenExpired => (close_code::TOKEN_EXPIRED, "the connect token has expired"),
        CloseReason::Denied => (close_code::FULL, "the server is full"),
        CloseReason::Refused(why) => (close_code::REFUSED, cut(why)),
        CloseReason::NotReady(why) => (close_code::TRY_AGAIN, cut(why)),
        CloseReason::Transport(why) => (close_code::PROTOCOL, cut(why)),
        CloseReason::ByUs | CloseReason::ByPeer | CloseReason::ConnectTimedOut => {
            (close_code::NORMAL, "")
        }
    }
}

/// As much of a reason as fits into a close frame.
pub fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]
}

/// A peer's text, for a line of a log or a label: short, and without what controls a terminal.
pub(super) fn printable(text: &str) -> String {
    cut(text)
        .chars()
        .filter(|char| !char.is_control())
        .collect()
}

/// Who a client says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody vouches for this number.
    Claim {
        /// The client's own choice.
        client_id: u64,
    },
    /// A connect token, as `transport::udp::token::to_bytes` writes it.
    Token(Vec<u8>),
}

/// Writes a client's first message.
pub fn encode_auth(protocol_id: u64, credentials: &Credentials) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAX_AUTH_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&protocol_id.to_le_bytes());
    match credentials {
        Credentials::Claim { client_id } => {
            bytes.push(0);
            bytes.extend_from_slice(&client_id.to_le_bytes());
        }
        Credentials::Token(token) => {
            bytes.push(1);
            bytes.extend_from_slice(token);
        }
    }
    bytes
}

/// Reads a client's first message: the protocol id and the credentials. `None` if it is none.
pub fn decode_auth(bytes: &[u8]) -> Option<(u64, Credentials)> {
    if bytes.len() > MAX_AUTH_BYTES {
        return None;
    }
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (protocol_id, rest) = rest.split_first_chunk()?;
    let (kind, payload) = rest.split_first()?;
    let credentials = match kind {
        0 => Credentials::Claim {
            client_id: u64::from_le_bytes(payload.try_into().ok()?),
        },
        1 => Credentials::Token(payload.to_vec()),
        _ => return None,
    };
    Some((u64::from_le_bytes(*protocol_id), credentials))
}

/// Datagrams of one message, in the form in which they leave.
#[derive(Debug, Default)]
pub struct Batch {
    /// The flags, and then each datagram after its length. Empty without datagrams.
    message: Vec<u8>,
    datagrams: usize,
}

impl Batch {
    /// Whether a datagram of that many bytes goes into this batch. An empty one takes all.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.datagrams == 0 || self.message.len() + bytes < MAX_BATCH_BYTES
    }

    /// Adds a datagram.
    pub fn push(&mut self, datagram: &[u8]) {
        self.start(datagram.len() + 5);
        write_length(&mut self.message, datagram.len());
        self.message.extend_from_slice(datagram);
        self.datagrams += 1;
    }

    /// Adds the datagrams of another batch after those of this one.
    pub fn append(&mut self, other: Self) {
        if self.datagrams == 0 {
            *self = other;
        } else if let Some((_, datagrams)) = other.message.split_first() {
            self.message.extend_from_slice(datagrams);
            self.datagrams += other.datagrams;
        }
    }

    fn start(&mut self, bytes: usize) {
        if self.message.is_empty() {
            self.message.reserve(1 + bytes);
            self.message.push(0);
        }
    }

    /// How many datagrams it has.
    pub fn datagrams(&self) -> usize {
        self.datagrams
    }

    /// Bytes of its message, uncompressed.
    pub fn len(&self) -> usize {
        self.message.len()
    }

    /// Whether it has no datagram.
    pub fn is_empty(&self) -> bool {
        self.datagrams == 0
    }

    /// The message: compressed at this level (1 to 9) if it has more than `compress_above` bytes and that makes it
    /// shorter.
    pub fn into_message(self, compress_above: usize, level: u8) -> Bytes {
        if self.message.len() > compress_above
            && let Some((_, body)) = self.message.split_first()
            && let Some(deflated) = deflate(&[DEFLATED], body, level)
        {
            return deflated.into();
        }
        self.message.into()
    }
}

/// The two parts of a message that carries `head` and `shared` as one datagram: one of this link, one of all.
///
/// # Panics
/// If `head` has more than 65,535 bytes.
pub fn shared_message(
    head: &[u8],
    shared: &SharedBytes,
    compress_above: usize,
    level: u8,
) -> (Vec<u8>, Bytes) {
    let length = u16::try_from(head.len()).expect("a head is a header, far under 64 KiB");
    let mut first = Vec::with_capacity(4 + head.len());
    first.push(SHARED);
    first.extend_from_slice(&length.to_le_bytes());
    first.extend_from_slice(head);
    let deflated = if shared.bytes().len() > compress_above {
        shared.deflated_with(|bytes| deflate(&[], bytes, level).map(Bytes::from))
    } else {
        None
    };
    first.push(if deflated.is_some() { DEFLATED } else { 0 });
    (first, deflated.unwrap_or(shared.bytes()).clone())
}

/// How much a side takes in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message, and of what becomes of it when inflated.
    pub max_message_bytes: usize,
    /// Bytes of one datagram.
    pub max_datagram_bytes: usize,
    /// Datagrams in one message.
    pub max_datagrams: usize,
    /// Whether the shared form is allowed.
    pub shared: bool,
}

impl Limits {
    /// What a client takes from a server.
    pub const FROM_SERVER: Self = Self {
        max_message_bytes: MAX_STREAM_DATAGRAM_BYTES + 1_024,
        max_datagram_bytes: MAX_STREAM_DATAGRAM_BYTES,
        max_datagrams: usize::MAX,
        shared: true,
    };
    /// What a server takes from a client.
    pub const FROM_CLIENT: Self = Self {
        max_message_bytes: 64 << 10,
        max_datagram_bytes: MAX_PAYLOAD_BYTES,
        max_datagrams: 1_000,
        shared: false,
    };
}

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It has flags, or a form, that this side does not know or take.
    #[error("unknown flags; build both sides from the same version")]
    Flags,
    /// It is cut short, has bytes to spare, or is not deflated as it says.
    #[error("malformed message")]
    Malformed,
    /// It, or a datagram in it, is longer than allowed.
    #[error("message or datagram too long")]
    TooBig,
}

impl FrameError {
    /// The code to close the link with.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Flags => close_code::PROTOCOL,
            Self::Malformed => close_code::INVALID,
            Self::TooBig => close_code::TOO_BIG,
        }
    }
}

/// Reads a message, and calls `on_datagram` with the two parts of each datagram in it, of which the second is empty
/// unless it was shared.
///
/// # Errors
/// If the message is not of this format, or over the limits. Datagrams before the error have been read by then.
pub fn decode(
    message: &[u8],
    limits: Limits,
    mut on_datagram: impl FnMut(&[u8], &[u8]),
) -> Result<(), FrameError> {
    if message.len() > limits.max_message_bytes {
        return Err(FrameError::TooBig);
    }
    let (&flags, body) = message.split_first().ok_or(FrameError::Malformed)?;
    match flags {
        0 => decode_batch(body, limits, on_datagram),
        DEFLATED => with_inflated(body, limits.max_message_bytes, |body| {
            decode_batch(body, limits, on_datagram)
        }),
        SHARED if limits.shared => {
            let (length, body) = body.split_first_chunk().ok_or(FrameError::Malformed)?;
            let (head, body) = body
                .split_at_checked(usize::from(u16::from_le_bytes(*length)))
                .ok_or(FrameError::Malformed)?;
            let (&flags, rest) = body.split_first().ok_or(FrameError::Malformed)?;
            let mut deliver = |rest: &[u8]| {
                if head.len() + rest.len() > limits.max_datagram_bytes {
                    return Err(FrameError::TooBig);
                }
                if head.is_empty() && rest.is_empty() {
                    return Err(FrameError::Malformed);
                }
                on_datagram(head, rest);
                Ok(())
            };
            match flags {
                0 => deliver(rest),
                DEFLATED => with_inflated(rest, limits.max_datagram_bytes, deliver),
                _ => Err(FrameError::Flags),
            }
        }
        _ => Err(FrameError::Flags),
    }
}

fn decode_batch(
    mut body: &[u8],
    limits: Limits,
    mut on_datagram: impl FnMut(&[u8], &[u8]),
) -> Result<(), FrameError> {
    if body.is_empty() {
        return Err(FrameError::Malformed);
    }
    let mut datagrams = 0;
    while !body.is_empty() {
        datagrams += 1;
        if datagrams > limits.max_datagrams {
            return Err(FrameError::TooBig);
        }
        let length = read_length(&mut body).ok_or(FrameError::Malformed)?;
        if length > limits.max_datagram_bytes {
            return Err(FrameError::TooBig);
        }
        let (datagram, rest) = body.split_at_checked(length).ok_or(FrameError::Malformed)?;
        body = rest;
        on_datagram(datagram, &[]);
    }
    Ok(())
}

fn write_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length > 0x7f {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

/// A length of at least 1, in its shortest form of at most four bytes.
fn read_length(body: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let (&byte, rest) = body.split_first()?;
        *body = rest;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (byte != 0).then_some(length);
        }
    }
    None
}

thread_local! {
    /// By level. One has some 300 KiB, so links share those of the threads that they run on.
    static DEFLATERS: [RefCell<Option<Compress>>; 10] = const { [const { RefCell::new(None) }; 10] };
    static INFLATER: RefCell<Option<Decompress>> = const { RefCell::new(None) };
    /// Memory for what is inflated, taken while in use.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// More than this is not kept between two messages.
const SCRATCH_BYTES: usize = 128 << 10;

/// The prefix and then the bytes deflated, if that is shorter than the bytes are.
fn deflate(prefix: &[u8], bytes: &[u8], level: u8) -> Option<Vec<u8>> {
    let level = level.clamp(1, 9);
    let mut out = Vec::new();
    out.reserve_exact(prefix.len() + bytes.len());
    out.extend_from_slice(prefix);
    let status = DEFLATERS.with(|deflaters| {
        let mut deflater = deflaters[usize::from(level)].borrow_mut();
        let deflater = deflater
            .get_or_insert_with(|| Compress::new(Compression::new(u32::from(level)), false));
        deflater.reset();
        deflater.compress_vec(bytes, &mut out, FlushCompress::Finish)
    });
    // Without the end of the stream, the memory was full: it is no shorter.
    (matches!(status, Ok(Status::StreamEnd)) && out.len() < prefix.len() + bytes.len()).then(|| {
        out.shrink_to_fit();
        out
    })
}

/// Calls `f` with the inflated bytes, of which there are at most `max_bytes`.
fn with_inflated<R>(
    deflated: &[u8],
    max_bytes: usize,
    f: impl FnOnce(&[u8]) -> Result<R, FrameError>,
) -> Result<R, FrameError> {
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let result = inflate(deflated, max_bytes, &mut scratch).and_then(|()| f(&scratch));
    if scratch.capacity() <= SCRATCH_BYTES {
        SCRATCH.set(scratch);
    }
    result
}

fn inflate(deflated: &[u8], max_bytes: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    INFLATER.with(|inflater| {
        let mut inflater = inflater.borrow_mut();
        let inflater = inflater.get_or_insert_with(|| Decompress::new(false));
        inflater.reset(false);
        loop {
            if out.len() == out.capacity() {
                // Doubles, up to one more than is allowed: then it is clear that it is too much.
                let more = out.len().max(deflated.len() * 2).max(1_024);
                out.reserve_exact(more.min(max_bytes + 1 - out.len()));
            }
            let (read, written) = (inflater.total_in() as usize, out.len());
            let status = inflater
                .decompress_vec(&deflated[read..], out, FlushDecompress::None)
                .map_err(|_| FrameError::Malformed)?;
            if out.len() > max_bytes {
                return Err(FrameError::TooBig);
            }
            let now_read = inflater.total_in() as usize;
            match status {
                Status::StreamEnd if now_read == deflated.len() => return Ok(()),
                Status::StreamEnd => return Err(FrameError::Malformed),
                Status::Ok | Status::BufError
                    if now_read == read && out.len() == written && written < out.capacity() =>
                {
                    return Err(FrameError::Malformed); // it ends too early
                }
                Status::Ok | Status::BufError => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(message: &[u8], limits: Limits) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut datagrams = Vec::new();
        decode(message, limits, |head, rest| {
            datagrams.push([head, rest].concat());
        })?;
        Ok(datagrams)
    }

    fn batch(datagrams: &[Vec<u8>]) -> Batch {
        let mut batch = Batch::default();
        for datagram in datagrams {
            batch.push(datagram);
        }
        batch
    }

    fn joined(parts: (Vec<u8>, Bytes)) -> Vec<u8> {
        [&parts.0[..], &parts.1[..]].concat()
    }

    #[test]
    fn batches_are_read_as_they_were_written() {
        let datagrams = vec![vec![1], vec![2; 127], vec![3; 128], vec![4; 1_250]];
        for compress_above in [0, usize::MAX] {
            let message = batch(&datagrams).into_message(compress_above, 6);
            assert_eq!(
                read(&message, Limits::FROM_CLIENT).as_ref(),
                Ok(&datagrams),
                "compressed above {compress_above}"
            );
        }
    }

    #[test]
    fn appended_batches_are_one() {
        let mut first = Batch::default();
        first.append(batch(&[vec![1, 2]]));
        first.append(Batch::default());
        first.append(batch(&[vec![3], vec![4]]));
        assert_eq!(first.datagrams(), 3, "all are counted");
        assert_eq!(
            read(&first.into_message(usize::MAX, 6), Limits::FROM_SERVER),
            Ok(vec![vec![1, 2], vec![3], vec![4]]),
            "and read in order"
        );
    }

    #[test]
    fn what_does_not_shrink_is_sent_as_it_is() {
        let mut random = fastrand::Rng::with_seed(7);
        let noise: Vec<u8> = core::iter::repeat_with(|| random.u8(..))
            .take(1_200)
            .collect();
        let message = batch(core::slice::from_ref(&noise)).into_message(0, 9);
        assert_eq!(
            message.len(),
            1 + 2 + 1_200,
            "a length of two bytes, and flags"
        );
        assert_eq!(read(&message, Limits::FROM_CLIENT), Ok(vec![noise]));
    }

    #[test]
    fn shared_bytes_are_deflated_once_and_read_with_each_head() {
        let shared = SharedBytes::new(vec![9; 4_096]);
        let first = shared_message(b"one", &shared, 1_000, 6);
        let second = shared_message(b"", &shared, 1_000, 6);
        assert!(first.1.len() < 100, "deflated");
        assert_eq!(first.1.as_ptr(), second.1.as_ptr(), "the same memory");
        for (parts, head) in [(first, &b"one"[..]), (second, b"")] {
            assert_eq!(
                read(&joined(parts), Limits::FROM_SERVER),
                Ok(vec![[head, &[9; 4_096]].concat()])
            );
        }
        let small = SharedBytes::new(vec![9; 500]);
        assert_eq!(
            shared_message(b"x", &small, 1_000, 6).1.as_ptr(),
            small.bytes().as_ptr(),
            "short ones are not copied either"
        );
    }

    #[test]
    fn the_largest_datagram_of_a_server_passes() {
        let largest = vec![7; MAX_STREAM_DATAGRAM_BYTES];
        for compress_above in [0, usize::MAX] {
            let message = batch(core::slice::from_ref(&largest)).into_message(compress_above, 1);
            assert_eq!(
                read(&message, Limits::FROM_SERVER).map(|read| read == [&largest[..]]),
                Ok(true)
            );
            let shared = shared_message(
                &[7],
                &SharedBytes::new(largest[1..].to_vec()),
                compress_above,
                1,
            );
            assert_eq!(
                read(&joined(shared), Limits::FROM_SERVER).map(|read| read == [&largest[..]]),
                Ok(true)
            );
        }
    }

    #[test]
    fn bombs_are_refused_before_they_fill_memory() {
        let bomb = deflate(&[DEFLATED], &vec![0; 50 << 20], 9).expect("zeros shrink");
        for limits in [Limits::FROM_CLIENT, Limits::FROM_SERVER] {
            assert!(bomb.len() < limits.max_message_bytes, "it looks small");
            assert_eq!(read(&bomb, limits), Err(FrameError::TooBig));
        }
        let shared = [&[SHARED, 0, 0, DEFLATED][..], &bomb[1..]].concat();
        assert_eq!(read(&shared, Limits::FROM_SERVER), Err(FrameError::TooBig));
        let mut out = Vec::new();
        assert_eq!(
            inflate(&bomb[1..], 1 << 16, &mut out),
            Err(FrameError::TooBig)
        );
        assert!(
            out.capacity() <= (1 << 16) + 1,
            "nor does it get more memory"
        );
    }

    #[test]
    fn malformed_messages_are_refused() {
        use FrameError::{Flags, Malformed, TooBig};
        let deflated = deflate(&[DEFLATED], &[5; 300], 6).expect("shrinks");
        for (message, error) in [
            (&[][..], Malformed),
            (&[0], Malformed),
            (&[0, 0], Malformed),          // an empty datagram
            (&[0, 2, 1], Malformed),       // a length beyond the body
            (&[0, 1, 1, 1], Malformed),    // and after a datagram
            (&[0, 0x81, 0, 1], Malformed), // not the shortest form
            (&[0, 0xff, 0xff, 0xff, 0xff, 1], Malformed),
            (&[0, 0xff, 0xff, 0x7f], TooBig),
            (&[4, 1, 1], Flags),
            (&[3, 0, 0, 0, 1], Flags),
            (&[0x80, 1, 1], Flags),
            (&[DEFLATED, 0xff, 0xff], Malformed),
            (&deflated[..deflated.len() - 1], Malformed),
            (&[&deflated[..], &[0]].concat(), Malformed),
            (&[SHARED, 0, 0], Malformed),
            (&[SHARED, 0, 0, 0], Malformed),
            (&[SHARED, 9, 0, 1, 2], Malformed),
            (&[SHARED, 0, 0, 2, 1], Flags),
        ] {
            assert_eq!(
                read(message, Limits::FROM_SERVER),
                Err(error),
                "{message:?}"
            );
        }
        assert_eq!(
            read(&[SHARED, 0, 0, 0, 1], Limits::FROM_CLIENT),
            Err(Flags),
            "clients have nothing to share"
        );
        assert_eq!(
            read(
                &[vec![0, 0xe3, 0x09], vec![1; 1_251]].concat(),
                Limits::FROM_CLIENT
            ),
            Err(TooBig),
            "more than a client may say at once"
        );
        assert_eq!(
            read(
                &[vec![0], [1, 1].repeat(1_001)].concat(),
                Limits::FROM_CLIENT
            ),
            Err(TooBig),
            "so many small ones are a flood"
        );
        assert_eq!(
            read(&vec![0; (64 << 10) + 1], Limits::FROM_CLIENT),
            Err(TooBig)
        );
    }

    #[test]
    fn first_messages_are_read_as_they_were_written() {
        for credentials in [
            Credentials::Claim {
                client_id: u64::MAX,
            },
            Credentials::Token(vec![3; 2_048]),
        ] {
            let bytes = encode_auth(77, &credentials);
            assert_eq!(decode_auth(&bytes), Some((77, credentials)));
        }
        let claim = encode_auth(77, &Credentials::Claim { client_id: 1 });
        assert!(
            (0..claim.len()).all(|end| decode_auth(&claim[..end]).is_none()),
            "cut short"
        );
        assert_eq!(decode_auth(&[&claim[..], &[0]].concat()), None, "too long");
        assert_eq!(
            decode_auth(&encode_auth(1, &Credentials::Token(vec![0; 2_049]))),
            None
        );
        assert_eq!(
            decode_auth(b"TND2\0\0\0\0\0\0\0\0\0"),
            None,
            "another version"
        );
    }

    #[test]
    fn reasons_survive_the_close_frame() {
        let long = "ä".repeat(100);
        let refused = CloseReason::Refused(long);
        let (code, text) = close_frame(&refused);
        assert_eq!(text.len(), 120, "cut at a character");
        assert!(
            matches!(close_reason(code, text, false), CloseReason::Refused(why) if why == text)
        );
        for reason in [
            CloseReason::Congested,
            CloseReason::Overflow,
            CloseReason::TimedOut,
            CloseReason::TokenExpired,
            CloseReason::Denied,
        ] {
            let (code, text) = close_frame(&reason);
            assert_eq!(close_reason(code, text, true), reason);
        }
        assert_eq!(close_reason(1000, "", true), CloseReason::ByPeer);
        // A tab that is closed says 1001. A browser that loses a link cannot but close it.
        assert_eq!(client_close_reason(1001), CloseReason::ByPeer);
        assert!(matches!(
            client_close_reason(3001),
            CloseReason::Transport(_)
        ));
        assert_eq!(
            close_reason(4000, "a\x1b[2Jb\n", false),
            CloseReason::Refused("a[2Jb".into()),
            "terminals are safe"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_or_exceed_the_limits(
            mut bytes in prop::collection::vec(any::<u8>(), 0..2_000),
            flags in 0..5_u8,
            from_client in any::<bool>(),
        ) {
            let limits = if from_client { Limits::FROM_CLIENT } else { Limits::FROM_SERVER };
            if let Some(first) = bytes.first_mut() {
                *first = flags;
            }
            let mut total = 0;
            let _ = decode(&bytes, limits, |head, rest| {
                assert!((1..=limits.max_datagram_bytes).contains(&(head.len() + rest.len())));
                total += head.len() + rest.len();
            });
            prop_assert!(total <= limits.max_message_bytes);
            let _ = decode_auth(&bytes);
        }

        #[test]
        fn mutilated_messages_never_panic(
            datagrams in prop::collection::vec(prop::collection::vec(0..4_u8, 1..300), 1..8),
            at in any::<prop::sample::Index>(),
            to in any::<u8>(),
        ) {
            let mut message = batch(&datagrams).into_message(0, 6).to_vec();
            prop_assert_eq!(read(&message, Limits::FROM_CLIENT), Ok(datagrams));
            *at.get_mut(&mut message) = to;
            let _ = read(&message, Limits::FROM_CLIENT);
        }
    }
}
