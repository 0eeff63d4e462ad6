//! A client's end, outside browsers.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response, Uri, header};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::config::{MAX_WAITING_BYTES, WsClientConfig};
use super::frame::{self, Credentials, Limits, MAGIC, SUBPROTOCOL};
use super::link::{Inbox, Link, LinkRules};
use super::outbox::{Gathered, Goodbye, Outbox};
use super::socket::{Error, Socket};
use super::stats::Stats;
use super::tls::{TlsError, client_config};
use crate::transport::{
    ClientLinkState, ClientTransport, CloseReason, Delivery, MAX_PAYLOAD_BYTES, Rejected,
    TransportKind, TransportStats,
};

/// With more than this waiting to be sent, the link is congested.
const CONGESTED_ABOVE: usize = 16 << 10;

/// More than this does not wait to be sent: the link ends. At some kB/s, that is a minute.
const MAX_QUEUE_BYTES: usize = 256 << 10;

/// How long one of a server's addresses may take, so that there is time for the others.
const ADDRESS_TIME: Duration = Duration::from_secs(3);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum WsConnectError {
    /// The URL is none, or of something else.
    #[error(
        "{url:?} is no WebSocket URL: {why}; it looks like wss://game.example.org or ws://127.0.0.1:5001"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The certificates to trust cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system has no thread for it.
    #[error("cannot start the thread for WebSocket clients: {0}")]
    Thread(String),
}

/// A [`ClientTransport`] over WebSocket.
///
/// It keeps the real time and ignores that of its callers. All clients of a process share one thread.
pub struct WsClient {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    gathered: Gathered,
    max_batch: usize,
    state: ClientLinkState,
    unsendable: u64,
    outbox_full: u64,
}

struct Shared {
    arrived: Mutex<Arrived>,
    stats: Arc<Stats>,
}

struct Arrived {
    datagrams: Vec<Vec<u8>>,
    bytes: usize,
    state: ClientLinkState,
    /// Of the link's task, while it waits for room.
    paused: Option<Waker>,
}

/// Where a URL leads.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    secure: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    url: String,
}

impl WsClient {
    /// Starts to connect.
    ///
    /// # Errors
    /// If the URL or the certificates to trust are of no use. Whether the server can be reached shows later, in the
    /// link's state.
    pub fn connect(config: WsClientConfig) -> Result<Self, WsConnectError> {
        let target = parse_url(&config.url)?;
        let tls = if target.secure {
            let config = client_config(config.ca.as_deref())?;
            Some(TlsConnector::from(config))
        } else {
            None
        };
        let runtime = runtime()?;
        let outbox = Arc::new(Outbox::new(config.pace));
        let shared = Arc::new(Shared {
            arrived: Mutex::new(Arrived {
                datagrams: Vec::new(),
                bytes: 0,
                state: ClientLinkState::Connecting,
                paused: None,
            }),
            stats: Arc::default(),
        });
        let task = Task {
            target,
            tls,
            credentials: config.auth.credentials(),
            protocol_id: config.protocol_id,
            timeout: config.timeout,
            ping_interval: config.ping_interval,
            shared: shared.clone(),
            outbox: outbox.clone(),
        };
        runtime.spawn(task.run(config.connect_timeout));
        Ok(Self {
            shared,
            outbox,
            gathered: Gathered::default(),
            // A server takes no more at once.
            max_batch: config.pace.max_batch.min(Limits::FROM_CLIENT.max_datagrams),
            state: ClientLinkState::Connecting,
            unsendable: 0,
            outbox_full: 0,
        })
    }

    fn end(&mut self, goodbye: Goodbye, reason: CloseReason) {
        if self.state.close_reason().is_none() {
            self.state = ClientLinkState::Closed(reason);
            self.outbox.say(goodbye);
        }
    }
}

impl ClientTransport for WsClient {
    fn state(&self) -> &ClientLinkState {
        &self.state
    }

    fn receive(&mut self, _now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        if self.state.close_reason().is_some() {
            return;
        }
        let paused = {
            let mut arrived = self.shared.lock();
            arrived.bytes = 0;
            datagrams.append(&mut arrived.datagrams);
            if self.state != arrived.state {
                self.state = arrived.state.clone();
            }
            arrived.paused.take()
        };
        if let Some(paused) = paused {
            paused.wake();
        }
    }

    fn send(&mut self, _now: Duration, datagram: &[u8]) {
        if !self.state.is_connected() || !(1..=MAX_PAYLOAD_BYTES).contains(&datagram.len()) {
            self.unsendable += 1;
            return;
        }
        let queued = self.outbox.queued_bytes() + self.gathered.bytes();
        if queued + datagram.len() > MAX_QUEUE_BYTES {
            self.outbox_full += 1;
            self.gathered = Gathered::default();
            self.end(Goodbye::Drop(CloseReason::Overflow), CloseReason::Overflow);
            return;
        }
        self.gathered.push(datagram, self.max_batch);
    }

    fn flush(&mut self, _now: Duration) {
        let waker = self.outbox.push(&mut self.gathered);
        waker.into_iter().for_each(Waker::wake);
    }

    fn kind(&self) -> TransportKind {
        TransportKind::WebSocket
    }

    fn delivery(&self) -> Delivery {
        Delivery::Stream
    }

    fn is_congested(&self) -> bool {
        self.outbox.is_congested(CONGESTED_ABOVE)
    }

    fn vanish(&mut self) {
        self.end(Goodbye::Vanish, CloseReason::ByUs);
    }

    fn close(&mut self) {
        let waker = self.outbox.push(&mut self.gathered);
        waker.into_iter().for_each(Waker::wake);
        self.end(Goodbye::Close(CloseReason::ByUs), CloseReason::ByUs);
    }

    fn stats(&self) -> TransportStats {
        let mut stats = self.shared.stats.read();
        stats.rejected = stats.rejected
            + Rejected {
                unsendable: self.unsendable,
                outbox_full: self.outbox_full,
                ..Rejected::default()
            };
        stats
    }
}

impl Drop for WsClient {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: ClientLinkState) {
        self.lock().state = state;
    }
}

/// Keeps what arrives until the app looks.
struct ClientInbox(Arc<Shared>);

impl Inbox for ClientInbox {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut arrived = self.0.lock();
        if arrived.bytes < MAX_WAITING_BYTES {
            return Poll::Ready(());
        }
        arrived.paused = Some(cx.waker().clone());
        Poll::Pending
    }

    fn deliver(&mut self, datagrams: &mut Vec<Vec<u8>>) {
        let mut arrived = self.0.lock();
        arrived.bytes += datagrams.iter().map(Vec::len).sum::<usize>();
        arrived.datagrams.append(datagrams);
    }
}

/// What connects, and then is the link.
struct Task {
    target: Target,
    tls: Option<TlsConnector>,
    credentials: Credentials,
    protocol_id: u64,
    timeout: Duration,
    ping_interval: Duration,
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
}

/// However the task ends, the app is told that the link is over.
struct Presence(Arc<Shared>);

impl Presence {
    fn close(&self, reason: CloseReason) {
        let mut arrived = self.0.lock();
        if arrived.state.close_reason().is_none() {
            arrived.state = ClientLinkState::Closed(reason);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.close(CloseReason::Transport("the WebSocket client failed".into()));
    }
}

impl Task {
    async fn run(self, connect_timeout: Duration) {
        let presence = Presence(self.shared.clone());
        let deadline = Instant::now() + connect_timeout;
        // Boxed, since it needs much more memory than the link that comes of it.
        let mut connecting = Box::pin(timeout_at(deadline, self.connect()));
        let connected = std::future::poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(connected) => Poll::Ready(Some(connected)),
            Poll::Pending => self.outbox.poll_goodbye(cx).map(|()| None),
        })
        .await;
        drop(connecting);
        match connected {
            Some(Ok(Ok(Stream::Plain(socket)))) => self.serve(*socket, &presence).await,
            Some(Ok(Ok(Stream::Tls(socket)))) => self.serve(*socket, &presence).await,
            Some(Ok(Err(reason))) => presence.close(reason),
            Some(Err(_)) => presence.close(CloseReason::ConnectTimedOut),
            None => presence.close(CloseReason::ByUs),
        }
    }

    async fn connect(&self) -> Result<Stream, CloseReason> {
        let stream = self.connect_tcp().await?;
        let Some(tls) = &self.tls else {
            let socket = self.shake_hands(stream).await?;
            return Ok(Stream::Plain(Box::new(socket)));
        };
        let host = self.target.host.clone();
        let name = ServerName::try_from(host)
            .map_err(|error| CloseReason::Transport(format!("no name for TLS: {error}")))?;
        let stream = tls.connect(name, stream).await.map_err(|error| {
            CloseReason::Transport(format!(
                "TLS with {} failed: {error}; check the server's certificate and the time, and trust a certificate of \
                 your own by `ca`",
                self.target.host
            ))
        })?;
        let socket = self.shake_hands(stream).await?;
        Ok(Stream::Tls(Box::new(socket)))
    }

    async fn connect_tcp(&self) -> Result<TcpStream, CloseReason> {
        let Target { host, port, .. } = &self.target;
        let unreachable = |error: io::Error| {
            CloseReason::Transport(format!(
                "cannot reach {host} on port {port}: {error}; check the address, and that the server runs"
            ))
        };
        let addresses = tokio::net::lookup_host((host.as_str(), *port))
            .await
            .map_err(unreachable)?;
        let mut failure = io::ErrorKind::NotFound.into();
        for address in addresses {
            match timeout(ADDRESS_TIME, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(unreachable)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(unreachable(failure))
    }

    /// The HTTP upgrade, and the first message of each side.
    async fn shake_hands<S>(&self, stream: S) -> Result<Socket<S>, CloseReason>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut request = self
            .target
            .url
            .as_str()
            .into_client_request()
            .map_err(|error| CloseReason::Transport(error.to_string()))?;
        request.headers_mut().insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(0)
            .max_write_buffer_size(64 << 10);
        let (upgraded, _) = client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|error| match error {
                Error::Http(response) => refused_by_http(&response),
                error => CloseReason::Transport(format!("no WebSocket here: {error}")),
            })?;
        // The server says nothing before it has read the first message, so nothing has been read beyond the upgrade.
        let mut socket = Socket::new(
            upgraded.into_inner(),
            Vec::new(),
            Role::Client,
            Limits::FROM_SERVER.max_message_bytes,
            self.shared.stats.clone(),
        );
        let first = frame::encode_auth(self.protocol_id, &self.credentials);
        let broken = |error: Error| CloseReason::Transport(format!("the link broke off: {error}"));
        socket
            .queue_binary(first.into(), Bytes::new())
            .map_err(broken)?;
        loop {
            match socket.read().await.map_err(broken)? {
                Message::Binary(answer) if *answer == MAGIC => return Ok(socket),
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(Some(close)) => {
                    return Err(frame::close_reason(close.code.into(), &close.reason, false));
                }
                Message::Close(None) => return Err(CloseReason::ByPeer),
                _ => {
                    return Err(CloseReason::Transport(
                        "this WebSocket server speaks something else".into(),
                    ));
                }
            }
        }
    }

    async fn serve<S>(&self, socket: Socket<S>, presence: &Presence)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.shared.set_state(ClientLinkState::Connected);
        let rules = LinkRules {
            limits: Limits::FROM_SERVER,
            peer_is_client: false,
            budget: None,
            ping_interval: self.ping_interval.min(self.timeout / 3),
            timeout: self.timeout,
            congested_above: CONGESTED_ABOVE,
            drop_congested_after: None,
        };
        let inbox = ClientInbox(self.shared.clone());
        Link::new(
            socket,
            inbox,
            self.outbox.clone(),
            self.shared.stats.clone(),
            rules,
        )
        .run(|reason| presence.close(reason))
        .await;
    }
}

enum Stream {
    Plain(Box<Socket<TcpStream>>),
    Tls(Box<Socket<tokio_rustls::client::TlsStream<TcpStream>>>),
}

/// A server that refuses before it has spoken WebSocket says why in HTTP.
fn refused_by_http(response: &Response<Option<Vec<u8>>>) -> CloseReason {
    let status = response.status();
    let text = response.body().as_deref().unwrap_or_default();
    let is_text = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let text = String::from_utf8_lossy(text);
    let why = if is_text && !text.trim().is_empty() {
        frame::printable(&text)
    } else {
        format!("HTTP {status} instead of a WebSocket; check the URL")
    };
    // As a proxy says whose server is about to be back.
    if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
        CloseReason::NotReady(why)
    } else {
        CloseReason::Refused(why)
    }
}

fn parse_url(url: &str) -> Result<Target, WsConnectError> {
    let wrong = |why: &str| WsConnectError::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let uri: Uri = url.trim().parse().map_err(|_| wrong("it cannot be read"))?;
    let (secure, default_port) = match uri.scheme_str() {
        Some("ws") => (false, 80),
        Some("wss") => (true, 443),
        Some("http") => return Err(wrong("for http:// write ws://")),
        Some("https") => return Err(wrong("for https:// write wss://")),
        Some(_) => return Err(wrong("its scheme is neither ws:// nor wss://")),
        None => return Err(wrong("it begins with neither ws:// nor wss://")),
    };
    let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("names and passwords do not belong in it"));
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong("it has no host"));
    }
    let port = match authority.port() {
        Some(port) if port.as_u16() == 0 => return Err(wrong("no server has port 0")),
        Some(port) => port.as_u16(),
        None if authority.as_str() == authority.host() => default_port,
        None => return Err(wrong("its port is none")),
    };
    Ok(Target {
        secure,
        host: host.to_owned(),
        port,
        url: uri.to_string(),
    })
}

/// The thread of all clients.
fn runtime() -> Result<&'static Runtime, WsConnectError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .max_blocking_threads(4) // for names
                .thread_name("tandem-ws-client")
                .enable_all()
                .build()
                .map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| WsConnectError::Thread(error.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_where_they_say() {
        for (url, secure, host, port) in [
            ("ws://127.0.0.1:5001", false, "127.0.0.1", 5001),
            ("wss://game.example.org", true, "game.example.org", 443),
            (
                "ws://game.example.org/play?room=1",
                false,
                "game.example.org",
                80,
            ),
            ("wss://[::1]:99/", true, "::1", 99),
            ("ws://[2001:db8::7]", false, "2001:db8::7", 80),
            (" ws://localhost:1 ", false, "localhost", 1),
        ] {
            let target = parse_url(url).expect("a URL");
            assert_eq!(
                (target.secure, &*target.host, target.port),
                (secure, host, port),
                "{url}"
            );
        }
    }

    #[test]
    fn urls_that_are_none_are_refused_with_a_reason() {
        for (url, why) in [
            ("", "cannot be read"),
            ("localhost:5001", "neither ws:// nor wss://"),
            ("/play", "neither ws:// nor wss://"),
            ("http://localhost", "write ws://"),
            ("https://localhost", "write wss://"),
            ("udp://localhost", "neither ws:// nor wss://"),
            ("ws://", "cannot be read"),
            ("ws://localhost:0", "port 0"),
            ("ws://localhost:99999", "port"),
            ("ws://me:secret@localhost", "passwords"),
            ("ws://local host", "cannot be read"),
        ] {
            let error = parse_url(url).expect_err("no URL").to_string();
            assert!(error.contains(why), "{url:?}: {error}");
            assert!(
                error.contains("wss://game.example.org"),
                "an example: {error}"
            );
        }
    }
}
