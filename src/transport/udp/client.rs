//! The client's end: a socket that is emptied once a frame.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use renetcode::{ClientAuthentication, ConnectToken, DisconnectReason, NetcodeClient};

use super::token::{self, TokenError};
use super::{DEFAULT_PROTOCOL_ID, FAREWELLS, MAX_TIME_STEP, socket};
use crate::transport::filter::netcode;
use crate::transport::{
    ClientLinkState, ClientTransport, CloseReason, MAX_PAYLOAD_BYTES, TransportKind,
    TransportStats, quietly,
};

/// Datagrams taken in one `receive`: four seconds' worth at 60 Hz. The rest waits in the kernel.
const MAX_DATAGRAMS: usize = 256;

/// A little more than netcode's largest packet.
const RECEIVE_BYTES: usize = 1_500;

/// `renetcode`'s timeouts are of whole seconds, so this end keeps its own.
const NO_TIMEOUT: i32 = -1;

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
    netcode: Box<NetcodeClient>,
    socket: UdpSocket,
    config: UdpClientConfig,
    token: Box<ConnectToken>,
    /// Which of the token's addresses is being tried.
    address_index: usize,
    state: ClientLinkState,
    last_now: Option<Duration>,
    /// How long the address has been tried.
    tried_for: Duration,
    buffer: Box<[u8; RECEIVE_BYTES]>,
    stats: TransportStats,
}

impl UdpClient {
    /// Starts to connect. What comes of it shows in [`state`](ClientTransport::state).
    ///
    /// # Errors
    /// If the token is unusable or there is no socket to be had.
    pub fn connect(config: UdpClientConfig) -> Result<Self, ConnectError> {
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
                    token::unix_time(),
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
        let (netcode, socket) = Self::try_address(&token, 0, config.buffer_bytes)?;
        Ok(Self {
            netcode,
            socket,
            config,
            token,
            address_index: 0,
            state: ClientLinkState::Connecting,
            last_now: None,
            tried_for: Duration::ZERO,
            buffer: Box::new([0; RECEIVE_BYTES]),
            stats: TransportStats::default(),
        })
    }

    /// The id that the server knows this client by.
    pub fn client_id(&self) -> u64 {
        self.token.client_id
    }

    /// The address that the client is connected or connecting to.
    pub fn server_addr(&self) -> SocketAddr {
        self.netcode.server_addr()
    }

    /// The client's own address, as far as it knows.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    fn try_address(
        token: &ConnectToken,
        index: usize,
        buffer_bytes: usize,
    ) -> Result<(Box<NetcodeClient>, UdpSocket), ConnectError> {
        let server = token
            .server_addresses
            .get(index)
            .copied()
            .flatten()
            .ok_or(TokenError::Addresses(index))?;
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let open = || {
            let (socket, _) = socket::bind(any, buffer_bytes)?;
            socket.set_nonblocking(true)?;
            // The kernel then drops what comes from elsewhere.
            socket.connect(server)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| ConnectError::Socket { server, source })?;

        // `renetcode` goes through the addresses by its own timeouts; show it one at a time.
        let mut server_addresses = [None; 32];
        server_addresses[0] = Some(server);
        let connect_token = ConnectToken {
            server_addresses,
            ..token.clone()
        };
        let netcode = NetcodeClient::new(
            Duration::ZERO,
            ClientAuthentication::Secure { connect_token },
        )
        .map_err(|error| TokenError::Encryption(error.to_string()))?;
        Ok((Box::new(netcode), socket))
    }

    fn read_socket(&mut self, datagrams: &mut Vec<Vec<u8>>) {
        for _ in 0..MAX_DATAGRAMS {
            let len = match self.socket.recv(&mut self.buffer[..]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Someone complains that nobody listens there. The server may be restarting, or a
                // stranger pretends: silence decides.
                Err(_) => continue,
            };
            self.stats.datagrams_in += 1;
            self.stats.bytes_in += len as u64;
            let datagram = &mut self.buffer[..len];
            if !netcode::from_server(datagram) {
                self.stats.rejected.malformed += 1;
                continue;
            }
            let is_payload = datagram[0] & 0xf == netcode::PAYLOAD;
            match quietly(|| self.netcode.process_packet(datagram)) {
                Some(payload) => datagrams.push(payload.to_vec()),
                None if is_payload => self.stats.rejected.unauthentic += 1,
                None => {}
            }
            if self.netcode.is_disconnected() {
                return;
            }
        }
    }

    fn update_state(&mut self) {
        if let Some(reason) = self.netcode.disconnect_reason() {
            self.state = ClientLinkState::Closed(match reason {
                DisconnectReason::ConnectTokenExpired => CloseReason::TokenExpired,
                DisconnectReason::ConnectionDenied => CloseReason::Denied,
                DisconnectReason::DisconnectedByServer => CloseReason::ByPeer,
                DisconnectReason::DisconnectedByClient => CloseReason::ByUs,
                DisconnectReason::ConnectionTimedOut => CloseReason::TimedOut,
                DisconnectReason::ConnectionRequestTimedOut
                | DisconnectReason::ConnectionResponseTimedOut => CloseReason::ConnectTimedOut,
            });
        } else if self.netcode.is_connected() {
            self.state = ClientLinkState::Connected;
            if self.netcode.time_since_last_received_packet() > self.config.timeout {
                self.say_farewell();
                self.state = ClientLinkState::Closed(CloseReason::TimedOut);
            }
        } else if self.tried_for > self.config.connect_timeout {
            self.try_next_address();
        }
    }

    fn try_next_address(&mut self) {
        self.address_index += 1;
        match Self::try_address(&self.token, self.address_index, self.config.buffer_bytes) {
            Ok((netcode, socket)) => {
                self.netcode = netcode;
                self.socket = socket;
                self.tried_for = Duration::ZERO;
            }
            Err(_) => self.state = ClientLinkState::Closed(CloseReason::ConnectTimedOut),
        }
    }

    fn say_farewell(&mut self) {
        if !self.netcode.is_connected() {
            return;
        }
        if let Ok((_, packet)) = self.netcode.disconnect() {
            for _ in 0..FAREWELLS {
                send_packet(&self.socket, packet, &mut self.stats);
            }
        }
    }
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
        &self.state
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        if self.state.close_reason().is_some() {
            return;
        }
        let elapsed = now
            .saturating_sub(self.last_now.replace(now).unwrap_or(now))
            .min(MAX_TIME_STEP);
        self.tried_for += elapsed;
        // Time first, so that what is read next counts as heard just now.
        if let Some((packet, _)) = quietly(|| self.netcode.update(elapsed)) {
            send_packet(&self.socket, packet, &mut self.stats);
        }
        self.read_socket(datagrams);
        self.update_state();
    }

    fn send(&mut self, _now: Duration, datagram: &[u8]) {
        if !self.state.is_connected() || !(1..=MAX_PAYLOAD_BYTES).contains(&datagram.len()) {
            self.stats.rejected.unsendable += 1;
            return;
        }
        match self.netcode.generate_payload_packet(datagram) {
            Ok((_, packet)) => send_packet(&self.socket, packet, &mut self.stats),
            Err(_) => self.stats.rejected.unsendable += 1,
        }
    }

    fn flush(&mut self, _now: Duration) {
        // A client sends so little that it is sent at once.
    }

    fn kind(&self) -> TransportKind {
        TransportKind::Udp
    }

    fn vanish(&mut self) {
        if self.state.close_reason().is_none() {
            self.state = ClientLinkState::Closed(CloseReason::ByUs);
        }
    }

    fn close(&mut self) {
        if self.state.close_reason().is_none() {
            self.say_farewell();
            self.state = ClientLinkState::Closed(CloseReason::ByUs);
        }
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
