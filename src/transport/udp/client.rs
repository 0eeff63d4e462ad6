//! The client's end: a socket that is emptied once a frame.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use renetcode::{ClientAuthentication, ConnectToken, DisconnectReason, NetcodeClient};

use super::standard::LinkKeys;
use super::token::{self, TokenError};
use super::{DEFAULT_PROTOCOL_ID, FAREWELLS, MAX_TIME_STEP, socket};
use crate::transport::filter::netcode;
use crate::transport::{
    Arrival, ClientLinkState, ClientTransport, CloseReason, MAX_PAYLOAD_BYTES, Rejected,
    TransportKind, TransportStats, quietly,
};

/// Datagrams taken in one `receive`: four seconds' worth at 60 Hz. The rest waits in the kernel.
const MAX_DATAGRAMS: usize = 256;

/// A little more than netcode's largest packet.
const RECEIVE_BYTES: usize = 1_500;

/// `renetcode`'s timeouts are of whole seconds, so this end keeps its own.
const NO_TIMEOUT: i32 = -1;

/// How often a client says that it is there until the server has said something: netcode 1.02's 10 times a second.
const SIGN_OF_LIFE: Duration = Duration::from_millis(100);

/// How long a client's own token lasts. It only has to outlast connecting.
const INSECURE_TOKEN_S: u64 = 300;

/// How a client shows who it is.
#[derive(Clone)]
pub enum ClientAuth {
    /// By claiming it. Only servers with `Auth::Insecure` believe that.
    Insecure {
        /// Where the server is.
        server: SocketAddr,
        /// Which game, and which version of it. Default: [`DEFAULT_PROTOCOL_ID`].
        protocol_id: u64,
        /// `None` takes a random one.
        client_id: Option<u64>,
        /// What the server gets to see. `None` is zeros.
        user_data: Option<Box<[u8; 256]>>,
    },
    /// By a [token](token) from the back end, which also tells where to connect: to the first of
    /// its addresses that answers.
    Token(Box<ConnectToken>),
}

/// How a [`UdpClient`] connects.
#[derive(Clone)]
pub struct UdpClientConfig {
    /// Who to be, and where to connect.
    pub auth: ClientAuth,
    /// How long to try each address. Default: 10 s, so that a server that still counts an earlier
    /// connection of this client has time to notice that it is gone.
    pub connect_timeout: Duration,
    /// Silence after which the link is closed. Default: 5 s, as on the server.
    pub timeout: Duration,
    /// Size to ask of the kernel for the socket's buffers. Default: 256 KiB, a second's worth.
    pub buffer_bytes: usize,
}

impl UdpClientConfig {
    /// Connects to a server that lets everyone in.
    pub fn insecure(server: SocketAddr) -> Self {
        let auth = ClientAuth::Insecure {
            server,
            protocol_id: DEFAULT_PROTOCOL_ID,
            client_id: None,
            user_data: None,
        };
        Self::new(auth)
    }

    /// Connects to where the token says.
    pub fn with_token(token: ConnectToken) -> Self {
        Self::new(ClientAuth::Token(Box::new(token)))
    }

    /// Connects as `auth` says, with the defaults.
    pub fn new(auth: ClientAuth) -> Self {
        Self {
            auth,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            buffer_bytes: 256 << 10,
        }
    }
}

/// Why a [`UdpClient`] does not even try.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket that leads there.
    #[error("cannot open a UDP socket to {server}: {source}")]
    Socket {
        /// Where to.
        server: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A token nobody can connect with.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A [`ClientTransport`] over UDP.
///
/// `receive` drives it, so call that every frame from the start. After a frame that took long it
/// reads what arrived before it judges that the server is silent.
pub struct UdpClient {
    end: ClientEnd,
    socket: UdpSocket,
    buffer_bytes: usize,
    last_now: Option<Duration>,
    buffer: Box<[u8; RECEIVE_BYTES]>,
    /// `now` and the moment at the first call that told it: from there on, the clock is the system's.
    clock_began: Option<(Duration, Instant)>,
    /// When the socket was last found empty. What is read later has come later.
    emptied_at: Instant,
    stats: TransportStats,
}

impl UdpClient {
    /// Starts to connect. What comes of it shows in [`state`](ClientTransport::state).
    ///
    /// # Errors
    /// If the token is unusable or there is no socket to be had.
    pub fn connect(config: UdpClientConfig) -> Result<Self, ConnectError> {
        let buffer_bytes = config.buffer_bytes;
        let end = ClientEnd::new(config, token::unix_time())?;
        let socket = open_socket(end.server_addr(), buffer_bytes)?;
        Ok(Self {
            end,
            socket,
            buffer_bytes,
            last_now: None,
            buffer: Box::new([0; RECEIVE_BYTES]),
            clock_began: None,
            emptied_at: Instant::now(),
            stats: TransportStats::default(),
        })
    }

    /// The id that the server knows this client by.
    pub fn client_id(&self) -> u64 {
        self.end.token.client_id
    }

    /// The address that the client is connected or connecting to.
    pub fn server_addr(&self) -> SocketAddr {
        self.end.server_addr()
    }

    /// The client's own address, as far as it knows.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    fn read_socket(&mut self, now: Duration, datagrams: &mut Vec<Arrival>) {
        let was_empty_at = self.emptied_at;
        for _ in 0..MAX_DATAGRAMS {
            let (len, age) = match socket::receive_stamped(&self.socket, &mut self.buffer[..]) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.emptied_at = Instant::now();
                    return;
                }
                // Someone complains that nobody listens there. The server may be restarting, or a
                // stranger pretends: silence decides.
                Err(_) => continue,
            };
            self.stats.datagrams_in += 1;
            self.stats.bytes_in += len as u64;
            // The system's clock may have been set meanwhile.
            let age = age.min(was_empty_at.elapsed());
            let at = self.clock(now).saturating_sub(age);
            let datagram = &mut self.buffer[..len];
            if let Some(payload) = self.end.take_in(datagram, &mut self.stats.rejected) {
                let bytes = payload.to_vec();
                datagrams.push(Arrival { at, bytes });
            }
            if self.end.state.close_reason().is_some() {
                return;
            }
        }
    }
}

fn open_socket(server: SocketAddr, buffer_bytes: usize) -> Result<UdpSocket, ConnectError> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let open = || {
        let (socket, _) = socket::bind(any, buffer_bytes)?;
        socket.set_nonblocking(true)?;
        socket::stamp_arrivals(&socket);
        // The kernel then drops what comes from elsewhere.
        socket.connect(server)?;
        Ok(socket)
    };
    open().map_err(|source| ConnectError::Socket { server, source })
}

#[cfg(test)]
impl UdpClient {
    /// Sends bytes as they are, from the client's address.
    pub(super) fn send_raw(&self, datagram: &[u8]) {
        let _ = self.socket.send(datagram);
    }

    /// Moves to a socket that hears nothing from the server.
    pub(super) fn cut_off(&mut self) {
        self.socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        self.socket
            .set_nonblocking(true)
            .expect("a socket can be told");
    }
}

impl ClientTransport for UdpClient {
    fn state(&self) -> &ClientLinkState {
        &self.end.state
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let mut arrivals = Vec::new();
        self.receive_timed(now, &mut arrivals);
        datagrams.extend(arrivals.into_iter().map(|arrival| arrival.bytes));
    }

    fn receive_timed(&mut self, now: Duration, datagrams: &mut Vec<Arrival>) {
        if self.end.state.close_reason().is_some() {
            return;
        }
        self.clock_began.get_or_insert((now, Instant::now()));
        let elapsed = now.saturating_sub(self.last_now.replace(now).unwrap_or(now));
        let server = self.end.server_addr();
        let Self { socket, stats, .. } = self;
        // Time first, so that what is read next counts as heard just now.
        self.end
            .advance(elapsed, |packet| send_packet(socket, packet, stats));
        self.read_socket(now, datagrams);
        let Self { socket, stats, .. } = self;
        self.end.judge(|packet| send_packet(socket, packet, stats));
        if self.end.server_addr() != server {
            match open_socket(self.end.server_addr(), self.buffer_bytes) {
                Ok(socket) => self.socket = socket,
                Err(_) => self.end.state = ClientLinkState::Closed(CloseReason::ConnectTimedOut),
            }
        }
    }

    fn clock(&self, now: Duration) -> Duration {
        match self.clock_began {
            Some((began, at)) => began + at.elapsed(),
            None => now,
        }
    }

    fn send(&mut self, _now: Duration, datagram: &[u8]) {
        match self.end.seal(datagram) {
            Some(packet) => send_packet(&self.socket, packet, &mut self.stats),
            None => self.stats.rejected.unsendable += 1,
        }
    }

    fn flush(&mut self, _now: Duration) {
        // A client sends so little that it is sent at once.
    }

    fn kind(&self) -> TransportKind {
        TransportKind::Udp
    }

    fn vanish(&mut self) {
        self.end.vanish();
    }

    fn close(&mut self) {
        let Self { socket, stats, .. } = self;
        self.end.close(|packet| send_packet(socket, packet, stats));
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

impl Drop for UdpClient {
    fn drop(&mut self) {
        self.close();
    }
}

fn send_packet(socket: &UdpSocket, packet: &[u8], stats: &mut TransportStats) {
    match socket.send(packet) {
        Ok(_) => {
            stats.datagrams_out += 1;
            stats.bytes_out += packet.len() as u64;
        }
        Err(_) => stats.rejected.outbox_full += 1,
    }
}

/// A client's end of a link, without socket or clock: packets and time come in, packets go out.
pub(super) struct ClientEnd {
    netcode: Box<NetcodeClient>,
    keys: LinkKeys,
    config: UdpClientConfig,
    token: Box<ConnectToken>,
    /// Which of the token's addresses is being tried.
    address_index: usize,
    pub(super) state: ClientLinkState,
    /// How long the address has been tried.
    tried_for: Duration,
    /// Time since the last packet that says that this end is there, until the server has said something.
    unanswered_for: Option<Duration>,
}

impl ClientEnd {
    pub(super) fn new(config: UdpClientConfig, unix_time: Duration) -> Result<Self, TokenError> {
        let mut token = match &config.auth {
            ClientAuth::Token(token) => token.clone(),
            ClientAuth::Insecure {
                server,
                protocol_id,
                client_id,
                user_data,
            } => {
                let client_id = client_id
                    .unwrap_or_else(|| u64::from_le_bytes(renetcode::generate_random_bytes()));
                let token = ConnectToken::generate(
                    unix_time,
                    *protocol_id,
                    INSECURE_TOKEN_S,
                    client_id,
                    NO_TIMEOUT,
                    vec![*server],
                    Some(user_data.as_deref().unwrap_or(&[0; 256])),
                    &[0; 32],
                );
                Box::new(token.map_err(|error| TokenError::Encryption(error.to_string()))?)
            }
        };
        token::validate(&token)?;
        token.timeout_seconds = NO_TIMEOUT;
        Ok(Self {
            netcode: Self::try_address(&token, 0)?,
            keys: LinkKeys::new(
                token.protocol_id,
                token.client_to_server_key,
                token.server_to_client_key,
            ),
            config,
            token,
            address_index: 0,
            state: ClientLinkState::Connecting,
            tried_for: Duration::ZERO,
            unanswered_for: None,
        })
    }

    fn try_address(token: &ConnectToken, index: usize) -> Result<Box<NetcodeClient>, TokenError> {
        let server = token
            .server_addresses
            .get(index)
            .copied()
            .flatten()
            .ok_or(TokenError::Addresses(index))?;
        // `renetcode` goes through the addresses by its own timeouts; show it one at a time.
        let mut server_addresses = [None; 32];
        server_addresses[0] = Some(server);
        let connect_token = ConnectToken {
            server_addresses,
            ..token.clone()
        };
        NetcodeClient::new(
            Duration::ZERO,
            ClientAuthentication::Secure { connect_token },
        )
        .map(Box::new)
        .map_err(|error| TokenError::Encryption(error.to_string()))
    }

    /// Whom to send to.
    pub(super) fn server_addr(&self) -> SocketAddr {
        self.netcode.server_addr()
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, elapsed: Duration, mut send: impl FnMut(&[u8])) {
        let elapsed = elapsed.min(MAX_TIME_STEP);
        self.tried_for += elapsed;
        if let Some((packet, _)) = quietly(|| self.netcode.update(elapsed)) {
            send(packet);
        }
        // The server tells a client nothing until it has heard from it, and the app above may be slow to speak.
        if let Some(unanswered_for) = &mut self.unanswered_for {
            *unanswered_for += elapsed;
            if *unanswered_for >= SIGN_OF_LIFE {
                *unanswered_for = Duration::ZERO;
                self.say_that_it_is_there(send);
            }
        }
    }

    /// Takes a datagram from the server, or from who pretends to be it. A payload is returned.
    pub(super) fn take_in<'a>(
        &mut self,
        datagram: &'a mut [u8],
        rejected: &mut Rejected,
    ) -> Option<&'a [u8]> {
        if !netcode::from_server(datagram) {
            rejected.malformed += 1;
            return None;
        }
        let is_payload = datagram[0] & 0xf == netcode::PAYLOAD;
        let payload = quietly(|| self.netcode.process_packet(datagram));
        if payload.is_some() {
            self.unanswered_for = None;
        } else if is_payload {
            rejected.unauthentic += 1;
        }
        if let Some(reason) = self.netcode.disconnect_reason() {
            self.state = ClientLinkState::Closed(close_reason(reason));
        }
        payload
    }

    /// After all that has come was taken in: what follows from that, and from the time.
    pub(super) fn judge(&mut self, mut send: impl FnMut(&[u8])) {
        // A challenge is answered now, and not a frame later.
        if let Some((packet, _)) = quietly(|| self.netcode.update(Duration::ZERO)) {
            send(packet);
        }
        if let Some(reason) = self.netcode.disconnect_reason() {
            self.state = ClientLinkState::Closed(close_reason(reason));
        } else if self.netcode.is_connected() {
            if !self.state.is_connected() {
                self.state = ClientLinkState::Connected;
                self.unanswered_for = Some(Duration::ZERO);
                self.say_that_it_is_there(&mut send);
            }
            if self.netcode.time_since_last_received_packet() > self.config.timeout {
                self.say_farewell(send);
                self.state = ClientLinkState::Closed(CloseReason::TimedOut);
            }
        } else if self.tried_for > self.config.connect_timeout {
            self.try_next_address();
        }
    }

    /// A datagram as a packet; `None` if it cannot be sent.
    pub(super) fn seal(&mut self, datagram: &[u8]) -> Option<&[u8]> {
        if !self.state.is_connected() || !(1..=MAX_PAYLOAD_BYTES).contains(&datagram.len()) {
            return None;
        }
        let packet = self.netcode.generate_payload_packet(datagram);
        packet.ok().map(|(_, packet)| &*packet)
    }

    pub(super) fn vanish(&mut self) {
        if self.state.close_reason().is_none() {
            self.state = ClientLinkState::Closed(CloseReason::ByUs);
        }
    }

    pub(super) fn close(&mut self, send: impl FnMut(&[u8])) {
        if self.state.close_reason().is_none() {
            self.say_farewell(send);
            self.state = ClientLinkState::Closed(CloseReason::ByUs);
        }
    }

    /// `renetcode` would do so 250 ms after it last sent something.
    fn say_that_it_is_there(&mut self, mut send: impl FnMut(&[u8])) {
        // For its number. Nobody sees the packet.
        if let Ok((_, packet)) = self.netcode.generate_payload_packet(&[0])
            && let Some((sequence, _)) = netcode::sequence(packet)
        {
            let key = self.keys.client_to_server;
            send(&self.keys.keep_alive(&key, sequence, [0; 8]));
        }
    }

    fn try_next_address(&mut self) {
        self.address_index += 1;
        match Self::try_address(&self.token, self.address_index) {
            Ok(netcode) => {
                self.netcode = netcode;
                self.tried_for = Duration::ZERO;
            }
            Err(_) => self.state = ClientLinkState::Closed(CloseReason::ConnectTimedOut),
        }
    }

    fn say_farewell(&mut self, mut send: impl FnMut(&[u8])) {
        if !self.netcode.is_connected() {
            return;
        }
        if let Ok((_, packet)) = self.netcode.disconnect() {
            (0..FAREWELLS).for_each(|_| send(packet));
        }
    }
}

fn close_reason(reason: DisconnectReason) -> CloseReason {
    match reason {
        DisconnectReason::ConnectTokenExpired => CloseReason::TokenExpired,
        DisconnectReason::ConnectionDenied => CloseReason::Denied,
        DisconnectReason::DisconnectedByServer => CloseReason::ByPeer,
        DisconnectReason::DisconnectedByClient => CloseReason::ByUs,
        DisconnectReason::ConnectionTimedOut => CloseReason::TimedOut,
        DisconnectReason::ConnectionRequestTimedOut
        | DisconnectReason::ConnectionResponseTimedOut => CloseReason::ConnectTimedOut,
    }
}
