//! The client's end of a link in a browser.
//!
//! The browser reads and writes by itself, and calls back between two frames of the app. So messages come also while
//! the app stands still, as it does in a tab that is in the background: they wait here, up to [`MAX_WAITING_BYTES`], and
//! the browser answers the server's pings. An app that comes back in time takes what waited and goes on. One that was
//! away for longer finds its link closed, and makes another.

use core::cell::RefCell;
use core::mem;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use js_sys::{ArrayBuffer, Uint8Array};
use wasm_bindgen::prelude::*;
use web_sys::{BinaryType, CloseEvent, MessageEvent, WebSocket};

use super::config::{MAX_WAITING_BYTES, WsClientConfig};
use super::frame::{self, Batch, Limits, MAGIC, MAX_REASON_BYTES, SUBPROTOCOL, close_code};
use crate::transport::{
    ClientLinkState, ClientTransport, CloseReason, Delivery, LinkPace, MAX_PAYLOAD_BYTES,
    MAX_STREAM_DATAGRAM_BYTES, TransportKind, TransportStats,
};

/// More than this not yet sent by the browser, and the link is congested: half a second of inputs.
const CONGESTED_ABOVE: usize = 16 << 10;

/// More than this not yet sent, and the link is closed: nobody has read for a long time.
const MAX_UNSENT_BYTES: usize = 256 << 10;

/// A message that waits costs its bytes and about this much beside.
const MESSAGE_OVERHEAD: usize = 64;

/// Inflated messages may have many times their bytes, so that at most about this many bytes are handed over at once.
/// What is beyond waits for the next frame.
const MAX_BYTES_PER_RECEIVE: usize = 4 * MAX_STREAM_DATAGRAM_BYTES;

/// A frame that takes longer is not slow: the page stood still, and the browser could not tell it what had come. So it
/// is for many seconds when a page compiles its first shaders.
const LONGEST_FRAME: Duration = Duration::from_millis(250);

/// A client's WebSocket link.
///
/// To be used on the thread that made it: browsers do not share a `WebSocket` between threads. Elsewhere it sends
/// nothing.
#[derive(Debug)]
pub struct WsClient {
    socket: SocketId,
    events: Arc<Mutex<Events>>,
    state: ClientLinkState,
    connect_timeout: Duration,
    pace: LinkPace,
    url: String,
    /// When `receive` was called last.
    last_receive: Option<Duration>,
    /// How long `receive` was called while the link was not open, without [`LONGEST_FRAME`]'s excess.
    tried_for: Duration,
    batch: Batch,
    /// When the last batch left.
    last_flush: Option<Duration>,
    stats: TransportStats,
}

/// Why a client cannot even begin to connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WsConnectError {
    /// The address is none of a WebSocket.
    #[error("`{0}` is not the address of a WebSocket; write it as ws://host:port/ or wss://host/")]
    Url(String),
    /// The browser does not allow it.
    #[error(
        "the browser refuses to connect to `{url}` ({why}); a page from https:// may only connect to wss://"
    )]
    Forbidden {
        /// Where to.
        url: String,
        /// What the browser says.
        why: String,
    },
}

/// What the browser's calls have left for the app.
#[derive(Debug, Default)]
struct Events {
    messages: VecDeque<Vec<u8>>,
    /// Bytes that wait, and [`MESSAGE_OVERHEAD`] for each message.
    waiting: usize,
    /// Bytes of all messages that came, as they were on the way.
    bytes_in: u64,
    /// Bytes of the first message, once it is sent.
    bytes_out: u64,
    closed: Option<Closed>,
}

/// The end of the link.
#[derive(Clone, Debug)]
enum Closed {
    /// The browser says so.
    Told { code: u16, reason: String },
    /// We do.
    Ours(CloseReason),
}

impl WsClient {
    /// Begins to connect.
    ///
    /// # Errors
    ///
    /// If the browser does not take the address. That nobody is there shows later, in the [state](Self::state).
    pub fn connect(config: WsClientConfig) -> Result<Self, WsConnectError> {
        let url = config.url;
        // A browser would read it as relative to the page, and connect to who knows where.
        if !["ws://", "wss://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            return Err(WsConnectError::Url(url));
        }
        let first = frame::encode_auth(config.protocol_id, &config.auth.credentials());
        let events = Arc::new(Mutex::new(Events::default()));
        let socket = match Socket::open(&url, first, &events) {
            Ok(socket) => socket,
            Err(error) if error.name() == "SyntaxError" => return Err(WsConnectError::Url(url)),
            Err(error) => {
                return Err(WsConnectError::Forbidden {
                    why: error.message().into(),
                    url,
                });
            }
        };
        Ok(Self {
            socket: SocketId::keep(socket),
            events,
            state: ClientLinkState::Connecting,
            connect_timeout: config.connect_timeout,
            pace: LinkPace {
                // A server takes no more at once.
                max_batch: config.pace.max_batch.min(Limits::FROM_CLIENT.max_datagrams),
                ..config.pace
            },
            url,
            last_receive: None,
            tried_for: Duration::ZERO,
            batch: Batch::default(),
            last_flush: None,
            stats: TransportStats::default(),
        })
    }

    fn next_message(&self) -> Option<Vec<u8>> {
        lock(&self.events).pop()
    }

    fn end(&mut self, code: u16, reason: CloseReason) {
        self.socket.close(code, &reason);
        self.batch = Batch::default();
        self.state = ClientLinkState::Closed(reason);
    }

    /// Gives the gathered datagrams to the browser.
    fn send_batch(&mut self, now: Duration) {
        let batch = mem::take(&mut self.batch);
        if batch.is_empty() || !self.state.is_connected() {
            return;
        }
        self.last_flush = Some(now);
        let datagrams = batch.datagrams() as u64;
        let message = batch.into_message(self.pace.compress_above, self.pace.level);
        if self.socket.unsent_bytes() + message.len() > MAX_UNSENT_BYTES {
            self.stats.rejected.outbox_full += datagrams;
            self.end(close_code::OVERFLOW, CloseReason::Overflow);
            return;
        }
        self.socket.send(&message);
        self.stats.bytes_out += framed(message.len(), true);
        self.stats.datagrams_out += datagrams;
    }

    /// What the end of the link means.
    fn reason_of(&self, closed: Closed) -> CloseReason {
        match closed {
            Closed::Ours(reason) => reason,
            // What browsers say when there was no close frame. They keep the cause from the page.
            Closed::Told { code: 1006, .. } if self.state.is_connected() => {
                CloseReason::Transport("the connection is broken".into())
            }
            Closed::Told { code: 1006, .. } => CloseReason::Transport(format!(
                "no WebSocket can be opened to {}; check that the server runs there, and that its certificate is \
                 valid (the browser's console knows more)",
                self.url
            )),
            Closed::Told { code, reason } => {
                frame::close_reason(code, &reason, self.state.is_connected())
            }
        }
    }
}

impl ClientTransport for WsClient {
    fn state(&self) -> &ClientLinkState {
        &self.state
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        if let ClientLinkState::Closed(_) = self.state {
            return;
        }
        let since_last = now.saturating_sub(self.last_receive.replace(now).unwrap_or(now));
        self.tried_for += since_last.min(LONGEST_FRAME);
        let mut taken = 0;
        while taken < MAX_BYTES_PER_RECEIVE
            && let Some(message) = self.next_message()
        {
            if self.state == ClientLinkState::Connecting {
                if message != MAGIC {
                    let what = "the server does not answer as one of bevy_tandem";
                    self.end(close_code::PROTOCOL, CloseReason::Transport(what.into()));
                    return;
                }
                self.state = ClientLinkState::Connected;
                continue;
            }
            taken += MESSAGE_OVERHEAD;
            let before = datagrams.len();
            let read = frame::decode(&message, Limits::FROM_SERVER, |head, rest| {
                taken += head.len() + rest.len();
                datagrams.push([head, rest].concat());
            });
            self.stats.datagrams_in += (datagrams.len() - before) as u64;
            if let Err(error) = read {
                self.stats.rejected.malformed += 1;
                let what = format!("the server sent what cannot be read: {error}");
                self.end(error.close_code(), CloseReason::Transport(what));
                return;
            }
        }
        let mut events = lock(&self.events);
        self.stats.bytes_in = events.bytes_in;
        self.stats.bytes_out += mem::take(&mut events.bytes_out);
        let closed = match events.messages.is_empty() {
            true => events.closed.take(),
            // What came before the end comes first.
            false => None,
        };
        drop(events);
        if let Some(closed) = closed {
            let reason = self.reason_of(closed);
            self.stats.rejected.inbox_full += u64::from(reason == CloseReason::Overflow);
            self.end(close_code::NORMAL, reason);
        } else if self.state == ClientLinkState::Connecting && self.tried_for > self.connect_timeout
        {
            self.end(close_code::NORMAL, CloseReason::ConnectTimedOut);
        }
    }

    fn send(&mut self, now: Duration, datagram: &[u8]) {
        if !self.state.is_connected() || datagram.is_empty() || datagram.len() > MAX_PAYLOAD_BYTES {
            self.stats.rejected.unsendable += 1;
            return;
        }
        if self.batch.datagrams() >= self.pace.max_batch || !self.batch.has_room_for(datagram.len())
        {
            self.send_batch(now);
        }
        if self.state.is_connected() {
            self.batch.push(datagram);
        }
    }

    fn flush(&mut self, now: Duration) {
        let is_due = self
            .last_flush
            .is_none_or(|last| now.saturating_sub(last) >= self.pace.interval);
        if is_due {
            self.send_batch(now);
        }
    }

    fn kind(&self) -> TransportKind {
        TransportKind::WebSocket
    }

    fn delivery(&self) -> Delivery {
        Delivery::Stream
    }

    fn is_congested(&self) -> bool {
        self.state.is_connected() && self.socket.unsent_bytes() + self.batch.len() > CONGESTED_ABOVE
    }

    /// Closes the link. A browser lets no page do so without a word, but this one is no farewell: what the server
    /// sees is not a code with which players leave.
    fn vanish(&mut self) {
        if !matches!(self.state, ClientLinkState::Closed(_)) {
            self.end(close_code::GOING_AWAY, CloseReason::ByUs);
        }
    }

    fn close(&mut self) {
        if !matches!(self.state, ClientLinkState::Closed(_)) {
            self.send_batch(self.last_flush.unwrap_or_default());
            self.end(close_code::NORMAL, CloseReason::ByUs);
        }
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

impl Drop for WsClient {
    fn drop(&mut self) {
        self.close();
    }
}

impl Events {
    fn pop(&mut self) -> Option<Vec<u8>> {
        let message = self.messages.pop_front()?;
        self.waiting -= message.len() + MESSAGE_OVERHEAD;
        Some(message)
    }
}

fn lock(events: &Mutex<Events>) -> MutexGuard<'_, Events> {
    // Nothing that holds it can panic half way.
    events.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a message with WebSocket's header.
fn framed(bytes: usize, masked: bool) -> u64 {
    let length = match bytes {
        0..126 => 0,
        126..0x1_0000 => 2,
        _ => 8,
    };
    bytes as u64 + 2 + length + if masked { 4 } else { 0 }
}

thread_local! {
    /// The browser's objects, which belong to this thread. Clients have their numbers, and so can be part of an app
    /// that wants everything to be `Send`.
    static SOCKETS: RefCell<HashMap<u64, Socket>> = RefCell::new(HashMap::new());
    static NEXT_SOCKET: RefCell<u64> = const { RefCell::new(0) };
}

/// The number of one of this thread's sockets.
#[derive(Debug)]
struct SocketId(u64);

impl SocketId {
    fn keep(socket: Socket) -> Self {
        let id = NEXT_SOCKET.with_borrow_mut(|next| {
            *next += 1;
            *next
        });
        SOCKETS.with_borrow_mut(|sockets| sockets.insert(id, socket));
        Self(id)
    }

    fn send(&self, message: &[u8]) {
        SOCKETS.with_borrow(|sockets| {
            if let Some(socket) = sockets.get(&self.0) {
                // Fails only before the socket is open. While it closes, the browser ignores it.
                let _ = socket.socket.send_with_u8_array(message);
            }
        });
    }

    /// Bytes that the browser has not yet given to the network.
    fn unsent_bytes(&self) -> usize {
        SOCKETS.with_borrow(|sockets| {
            sockets
                .get(&self.0)
                .map_or(0, |socket| socket.socket.buffered_amount() as usize)
        })
    }

    /// Closes the socket and lets go of it.
    fn close(&self, code: u16, reason: &CloseReason) {
        let socket = SOCKETS.with_borrow_mut(|sockets| sockets.remove(&self.0));
        if let Some(socket) = socket {
            socket.close(code, frame::close_frame(reason).1);
        }
    }
}

/// A WebSocket of the browser, with what it calls.
struct Socket {
    socket: WebSocket,
    _on_open: Closure<dyn FnMut()>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
    _on_close: Closure<dyn FnMut(CloseEvent)>,
}

impl Socket {
    /// Begins to connect; `first` is the first message.
    fn open(url: &str, first: Vec<u8>, events: &Arc<Mutex<Events>>) -> Result<Self, js_sys::Error> {
        let socket = WebSocket::new_with_str(url, SUBPROTOCOL)
            .map_err(JsValue::unchecked_into::<js_sys::Error>)?;
        socket.set_binary_type(BinaryType::Arraybuffer);

        let on_open = Closure::new({
            let (socket, events) = (socket.clone(), events.clone());
            // At once and not with the next frame: the server does not wait long.
            move || {
                if socket.send_with_u8_array(&first).is_ok() {
                    lock(&events).bytes_out += framed(first.len(), true);
                }
            }
        });
        let on_message = Closure::new({
            let (socket, events) = (socket.clone(), events.clone());
            move |event: MessageEvent| take_message(&socket, &events, &event)
        });
        let on_close = Closure::new({
            let events = events.clone();
            move |event: CloseEvent| {
                let told = Closed::Told {
                    code: event.code(),
                    reason: event.reason(),
                };
                lock(&events).closed.get_or_insert(told);
            }
        });
        socket.set_onopen(Some(on_open.as_ref().unchecked_ref()));
        socket.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        socket.set_onclose(Some(on_close.as_ref().unchecked_ref()));
        Ok(Self {
            socket,
            _on_open: on_open,
            _on_message: on_message,
            _on_close: on_close,
        })
    }

    fn close(self, code: u16, reason: &str) {
        self.socket.set_onopen(None);
        self.socket.set_onmessage(None);
        self.socket.set_onclose(None);
        close(&self.socket, code, reason);
    }
}

/// Puts a message where the app will find it, or ends the link.
fn take_message(socket: &WebSocket, events: &Mutex<Events>, event: &MessageEvent) {
    let mut events = lock(events);
    if events.closed.is_some() {
        return;
    }
    let outcome = match event.data().dyn_into::<ArrayBuffer>() {
        Err(_) => Err((
            close_code::UNSUPPORTED,
            CloseReason::Transport("the server sent text".into()),
        )),
        Ok(buffer) => {
            let bytes = buffer.byte_length() as usize;
            events.bytes_in += framed(bytes, false);
            if bytes > Limits::FROM_SERVER.max_message_bytes {
                let what = "the server sent a message that is too long";
                Err((close_code::TOO_BIG, CloseReason::Transport(what.into())))
            } else if events.waiting + bytes + MESSAGE_OVERHEAD > MAX_WAITING_BYTES {
                Err((close_code::OVERFLOW, CloseReason::Overflow))
            } else {
                Ok(Uint8Array::new(&buffer).to_vec())
            }
        }
    };
    match outcome {
        Ok(message) => {
            events.waiting += message.len() + MESSAGE_OVERHEAD;
            events.messages.push_back(message);
        }
        Err((code, reason)) => {
            if reason == CloseReason::Overflow {
                // The app will get the newest state over its next link.
                events.messages.clear();
                events.waiting = 0;
            }
            close(socket, code, frame::close_frame(&reason).1);
            events.closed = Some(Closed::Ours(reason));
        }
    }
}

/// Closes a socket, if it is not closed yet.
fn close(socket: &WebSocket, code: u16, reason: &str) {
    // Of the codes that have a meaning of their own, pages may only use this one. The others have theirs plus 2,000.
    let code = match code {
        close_code::NORMAL | 3000.. => code,
        _ => code + 2_000,
    };
    debug_assert!(reason.len() <= MAX_REASON_BYTES);
    // Fails only for codes and reasons that are not allowed.
    let _ = socket.close_with_code_and_reason(code, reason);
}
