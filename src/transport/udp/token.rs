//! Connect tokens: how a back end says who may play, and where.
//!
//! The back end and the game servers share a private key. A player logs in at the back end, by
//! whatever means, gets a token over an encrypted connection (HTTPS), and connects with it. The
//! server then knows the client id and user data to be the back end's own words.
//!
//! ```
//! use bevy_tandem::transport::udp::token;
//! use core::time::Duration;
//!
//! let private_key = token::generate_private_key(); // once, then kept secret
//! let token = token::TokenBuilder::new(42, vec!["203.0.113.5:5000".parse()?])
//!     .valid_for(Duration::from_secs(30))
//!     .issue(&private_key)?;
//! let bytes = token::to_bytes(&token); // to the player, over HTTPS
//! assert_eq!(token::from_bytes(&bytes)?.client_id, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A back end that is not written in Rust can use any implementation of netcode 1.02, or run this repository's example
//! `issue_token`. Both sides then read the key from a file: [`create_key`] makes one, [`read_key`] reads it.
//!
//! Over UDP, netcode itself checks tokens. [`open`] does the same for links that know nothing of netcode.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
pub use renetcode::ConnectToken;

use super::DEFAULT_PROTOCOL_ID;

/// What goes into a token.
#[derive(Clone, Debug)]
pub struct TokenBuilder {
    client_id: u64,
    server_addresses: Vec<SocketAddr>,
    protocol_id: u64,
    valid_for: Duration,
    user_data: Option<Box<[u8; 256]>>,
}

/// Why there is no token, or why it does not count.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No address, or too many.
    #[error("a connect token names 1 to 32 server addresses, not {0}")]
    Addresses(usize),
    /// Nobody could use it in time.
    #[error("a connect token must be valid for at least a second")]
    TooShort,
    /// Not what [`to_bytes`] made.
    #[error("not a connect token of netcode 1.02: {0}")]
    Malformed(String),
    /// Encryption failed, which has no known cause.
    #[error("the connect token could not be encrypted: {0}")]
    Encryption(String),
    /// Its time is over.
    #[error("the connect token has expired; ask the back end for a new one")]
    Expired,
    /// It was not made with this key, or was altered since.
    #[error(
        "the connect token was not made with this server's key, or was altered; ask the back end for a new one"
    )]
    Forged,
    /// It is for another game, or for another version of this one.
    #[error(
        "the connect token is for protocol {token:#x}, not {server:#x}; build all sides from the same version"
    )]
    WrongProtocol {
        /// The protocol id in the token.
        token: u64,
        /// The server's.
        server: u64,
    },
    /// It names other servers.
    #[error(
        "the connect token is for other servers; connect to one that it names, or ask the back end for another"
    )]
    WrongServer,
}

/// What the back end says about a player: the content of a token that [`open`] has checked.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenedToken {
    /// Who the player is.
    pub client_id: u64,
    /// What [`TokenBuilder::user_data`] was given.
    pub user_data: Box<[u8; 256]>,
    /// Different for every token: names it where used tokens are remembered.
    pub tag: [u8; TAG_BYTES],
    /// From when on nobody may use it, in seconds since 1970. Until then, its tag has to be remembered.
    pub expires: u64,
}

impl std::fmt::Debug for OpenedToken {
    /// Keeps the user data out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedToken")
            .field("client_id", &self.client_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why a file gives no private key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// [`create_key`] replaces nothing: a server that has the old key would refuse all new tokens.
    #[error("{} exists already; choose another name, or delete it if no server uses it", .0.display())]
    Exists(PathBuf),
    /// It holds something else.
    #[error("{} is not a key: it must hold 64 hexadecimal characters and nothing else", .0.display())]
    Malformed(PathBuf),
    /// It cannot be read or written.
    #[error("cannot use the key file {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Length of what authenticates a token's private part, at its end.
const TAG_BYTES: usize = 16;

/// Length of a token's private part.
const PRIVATE_BYTES: usize = 1_024;

/// What tokens of netcode 1.02 begin with, and are bound to.
pub(super) const VERSION: &[u8; 13] = b"NETCODE 1.02\0";

impl TokenBuilder {
    /// A token that lets `client_id` connect to these addresses: the first that answers. They
    /// must be among the server's public addresses.
    ///
    /// A token works from one address of the player's, once. It is valid for 30 s unless told.
    pub fn new(client_id: u64, server_addresses: Vec<SocketAddr>) -> Self {
        Self {
            client_id,
            server_addresses,
            protocol_id: DEFAULT_PROTOCOL_ID,
            valid_for: Duration::from_secs(30),
            user_data: None,
        }
    }

    /// Sets which game, and which version of it, the token is for: the server's protocol id.
    pub fn protocol_id(mut self, protocol_id: u64) -> Self {
        self.protocol_id = protocol_id;
        self
    }

    /// Sets how long the player has to connect, in whole seconds.
    pub fn valid_for(mut self, valid_for: Duration) -> Self {
        self.valid_for = valid_for;
        self
    }

    /// Sets data that the server gets to see and the player does not.
    pub fn user_data(mut self, user_data: [u8; 256]) -> Self {
        self.user_data = Some(Box::new(user_data));
        self
    }

    /// Makes a token, valid from now on.
    ///
    /// # Errors
    /// If there are no or too many addresses, or too little time.
    pub fn issue(self, private_key: &[u8; 32]) -> Result<ConnectToken, TokenError> {
        if !(1..=32).contains(&self.server_addresses.len()) {
            return Err(TokenError::Addresses(self.server_addresses.len()));
        }
        if self.valid_for.as_secs() == 0 {
            return Err(TokenError::TooShort);
        }
        let now = unix_time();
        ConnectToken::generate(
            now,
            self.protocol_id,
            // It is added to the time.
            self.valid_for.as_secs().min(u64::MAX - now.as_secs()),
            self.client_id,
            // Both ends have timeouts of their own.
            -1,
            self.server_addresses,
            // Left out, it would be 256 random bytes.
            Some(self.user_data.as_deref().unwrap_or(&[0; 256])),
            private_key,
        )
        .map_err(|error| TokenError::Encryption(error.to_string()))
    }
}

/// A new key, from the system's randomness.
pub fn generate_private_key() -> [u8; 32] {
    renetcode::generate_random_bytes()
}

/// A token as bytes. They let whoever has them play as that client: send them encrypted.
pub fn to_bytes(token: &ConnectToken) -> Vec<u8> {
    let mut bytes = Vec::new();
    token.write(&mut bytes).expect("a Vec takes all bytes");
    bytes
}

/// Reads what [`to_bytes`] made.
///
/// # Errors
/// If it did not make that.
pub fn from_bytes(bytes: &[u8]) -> Result<ConnectToken, TokenError> {
    let mut cursor = Cursor::new(bytes);
    let token = ConnectToken::read(&mut cursor)
        .map_err(|error| TokenError::Malformed(error.to_string()))?;
    if cursor.position() != bytes.len() as u64 {
        return Err(TokenError::Malformed("more bytes than a token has".into()));
    }
    validate(&token)?;
    Ok(token)
}

/// Checks a token as a server does, and reads what the back end says in it.
///
/// For links other than UDP: there, netcode does it. `bytes` are what [`to_bytes`] made, `private_key` and `protocol_id`
/// the server's, `now_unix` the seconds since 1970. The token must name one of `own_addresses`, unless that is empty.
///
/// Whoever shows a token here has all of it, with the keys that it gives to its player. Part of a token travels readable
/// when it is used over UDP; that part alone opens nothing.
///
/// A token can be opened any number of times. Who wants each used once remembers its [`tag`](OpenedToken::tag) until it
/// [expires](OpenedToken::expires).
///
/// # Errors
/// [`Malformed`](TokenError::Malformed), [`WrongProtocol`](TokenError::WrongProtocol), [`Expired`](TokenError::Expired),
/// [`Forged`](TokenError::Forged) or [`WrongServer`](TokenError::WrongServer), looked for in this order.
pub fn open(
    private_key: &[u8; 32],
    protocol_id: u64,
    bytes: &[u8],
    now_unix: u64,
    own_addresses: &[SocketAddr],
) -> Result<OpenedToken, TokenError> {
    let token = from_bytes(bytes).map_err(|error| match error {
        malformed @ TokenError::Malformed(_) => malformed,
        other => TokenError::Malformed(other.to_string()),
    })?;
    if token.protocol_id != protocol_id {
        return Err(TokenError::WrongProtocol {
            token: token.protocol_id,
            server: protocol_id,
        });
    }
    if token.expire_timestamp <= now_unix {
        return Err(TokenError::Expired);
    }

    let mut private = token.private_data;
    let (body, tag) = decrypt_private(
        private_key,
        protocol_id,
        token.expire_timestamp,
        &token.xnonce,
        &mut private,
    )
    .ok_or(TokenError::Forged)?;

    // The rest of the token was written by whoever sent it. Only its keys are secret, but what else it says twice has
    // no reason to differ either.
    let said_openly = private_part(&token);
    let (said_secretly, rest) = body
        .split_at_checked(said_openly.len())
        .ok_or(TokenError::Forged)?;
    if !is_equal_secret(said_secretly, &said_openly) {
        return Err(TokenError::Forged);
    }
    let user_data = rest
        .first_chunk::<256>()
        .ok_or_else(|| TokenError::Malformed("it ends within the user data".into()))?;
    let mut named = token.server_addresses.iter().flatten();
    if !own_addresses.is_empty() && !named.any(|address| own_addresses.contains(address)) {
        return Err(TokenError::WrongServer);
    }
    Ok(OpenedToken {
        client_id: token.client_id,
        user_data: Box::new(*user_data),
        tag,
        expires: token.expire_timestamp,
    })
}

/// Decrypts the private part of a token in place, and gives its content and its tag. `None` if it was not made with this
/// key, or not for this protocol and time.
pub(super) fn decrypt_private<'a>(
    private_key: &[u8; 32],
    protocol_id: u64,
    expire_timestamp: u64,
    xnonce: &[u8; 24],
    private: &'a mut [u8; PRIVATE_BYTES],
) -> Option<(&'a [u8], [u8; TAG_BYTES])> {
    let (body, tag) = private.split_last_chunk_mut::<TAG_BYTES>()?;
    let mut bound_to = [0; VERSION.len() + 8 + 8];
    bound_to[..13].copy_from_slice(VERSION);
    bound_to[13..21].copy_from_slice(&protocol_id.to_le_bytes());
    bound_to[21..].copy_from_slice(&expire_timestamp.to_le_bytes());
    XChaCha20Poly1305::new(private_key.into())
        .decrypt_in_place_detached(
            XNonce::from_slice(xnonce),
            &bound_to,
            body,
            Tag::from_slice(tag),
        )
        .ok()?;
    Some((body, *tag))
}

/// What the private part of a token holds before the user data, made from the part that the player can read.
fn private_part(token: &ConnectToken) -> Vec<u8> {
    let addresses = || token.server_addresses.iter().flatten();
    let mut bytes = Vec::with_capacity(8 + 4 + 4 + 32 * 19 + 2 * 32);
    bytes.extend_from_slice(&token.client_id.to_le_bytes());
    bytes.extend_from_slice(&token.timeout_seconds.to_le_bytes());
    bytes.extend_from_slice(&(addresses().count() as u32).to_le_bytes());
    for address in addresses() {
        match address {
            SocketAddr::V4(address) => {
                bytes.push(1);
                bytes.extend_from_slice(&address.ip().octets());
            }
            SocketAddr::V6(address) => {
                bytes.push(2);
                bytes.extend_from_slice(&address.ip().octets());
            }
        }
        bytes.extend_from_slice(&address.port().to_le_bytes());
    }
    bytes.extend_from_slice(&token.client_to_server_key);
    bytes.extend_from_slice(&token.server_to_client_key);
    bytes
}

/// Takes the same time wherever two slices of one length differ.
fn is_equal_secret(left: &[u8], right: &[u8]) -> bool {
    let differences = left.iter().zip(right).map(|(left, right)| left ^ right);
    left.len() == right.len()
        && std::hint::black_box(differences.fold(0, |all, one| all | one)) == 0
}

/// Makes a new private key and writes it to a new file that only its owner may read (mode 0600 where there are modes).
///
/// # Errors
/// If the file exists already or cannot be written.
pub fn create_key(path: impl AsRef<Path>) -> Result<[u8; 32], KeyError> {
    let path = path.as_ref();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.into()),
        _ => key_io(path, source),
    })?;
    let key = generate_private_key();
    let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .map_err(|source| key_io(path, source))?;
    Ok(key)
}

/// Reads a private key: 64 hexadecimal characters, with or without spaces and line ends around them.
///
/// Warns if other users of the system may read the file, too.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub fn read_key(path: impl AsRef<Path>) -> Result<[u8; 32], KeyError> {
    let path = path.as_ref();
    let io_error = |source| key_io(path, source);
    let file = File::open(path).map_err(io_error)?;
    #[cfg(unix)]
    {
        let metadata = file.metadata().map_err(io_error)?;
        let mode = std::os::unix::fs::MetadataExt::mode(&metadata);
        if metadata.is_file() && mode & 0o004 != 0 {
            tracing::warn!(
                "every user of this machine can read the private key in {path}; run `chmod o= {path}`",
                path = path.display()
            );
        }
    }
    // Enough to see that there is more than a key.
    let mut text = Vec::new();
    file.take(1_024).read_to_end(&mut text).map_err(io_error)?;
    parse_key(text.trim_ascii()).ok_or_else(|| KeyError::Malformed(path.into()))
}

fn parse_key(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |character: u8| char::from(character).to_digit(16);
    let mut key = [0; 32];
    if text.len() != 2 * key.len() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(key)
}

fn key_io(path: &Path, source: io::Error) -> KeyError {
    KeyError::Io {
        path: path.into(),
        source,
    }
}

/// `renetcode`'s client trusts a token, and panics on one that is not from `ConnectToken::generate`.
pub(super) fn validate(token: &ConnectToken) -> Result<(), TokenError> {
    if token.server_addresses[0].is_none() {
        return Err(TokenError::Addresses(0));
    }
    if token.expire_timestamp <= token.create_timestamp {
        return Err(TokenError::TooShort);
    }
    Ok(())
}

/// The addresses that tokens may name: those that were set, or the one that is listened on. Port 0 is that one's. `None`
/// where tokens are used, and nobody could say by which address the server is reached.
pub(in crate::transport) fn public_addresses(
    set: &[SocketAddr],
    local: SocketAddr,
    is_secure: bool,
) -> Option<Vec<SocketAddr>> {
    if set.is_empty() {
        let is_known = !is_secure || !local.ip().is_unspecified();
        return is_known.then(|| vec![local]);
    }
    let with_port = |mut address: SocketAddr| {
        if address.port() == 0 {
            address.set_port(local.port());
        }
        address
    };
    Some(set.iter().copied().map(with_port).collect())
}

/// Time since 1970, in which tokens expire. Zero if the system's clock is before that.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 5000))
    }

    #[test]
    fn a_token_survives_the_trip_to_the_player() {
        let token = TokenBuilder::new(7, vec![addr()])
            .issue(&generate_private_key())
            .expect("a token");
        assert_eq!(
            from_bytes(&to_bytes(&token)).expect("the same token"),
            token,
            "nothing is lost"
        );
    }

    #[test]
    fn mutilated_tokens_are_refused() {
        let token = TokenBuilder::new(7, vec![addr()])
            .issue(&generate_private_key())
            .expect("a token");
        let bytes = to_bytes(&token);
        assert!(
            (0..bytes.len()).all(|end| from_bytes(&bytes[..end]).is_err()),
            "cut short"
        );
        assert!(
            from_bytes(&[bytes.clone(), vec![0]].concat()).is_err(),
            "too long"
        );
        let nowhere = ConnectToken {
            server_addresses: [None; 32],
            ..token.clone()
        };
        assert!(
            matches!(
                from_bytes(&to_bytes(&nowhere)),
                Err(TokenError::Addresses(0))
            ),
            "leads nowhere"
        );
        let backwards = ConnectToken {
            expire_timestamp: 0,
            ..token
        };
        assert!(
            matches!(from_bytes(&to_bytes(&backwards)), Err(TokenError::TooShort)),
            "expires before it is made"
        );
    }

    const KEY: [u8; 32] = [7; 32];
    const GAME: u64 = 0x1234;

    /// A token, and the second in which it was made.
    fn issued() -> (ConnectToken, u64) {
        let token = TokenBuilder::new(42, vec!["[2001:db8::1]:4000".parse().expect("one"), addr()])
            .protocol_id(GAME)
            .user_data(std::array::from_fn(|at| at as u8))
            .issue(&KEY)
            .expect("a token");
        let now = token.create_timestamp;
        (token, now)
    }

    fn open_with(token: &ConnectToken, now_unix: u64) -> Result<OpenedToken, TokenError> {
        open(&KEY, GAME, &to_bytes(token), now_unix, &[addr()])
    }

    #[test]
    fn an_issued_token_opens() {
        let (token, now) = issued();
        let opened = open_with(&token, now).expect("it is genuine");
        assert_eq!(opened.client_id, 42, "who the back end said");
        assert_eq!(
            *opened.user_data,
            std::array::from_fn(|at| at as u8),
            "with what it said"
        );
        assert_eq!(opened.expires, now + 30, "for as long as it said");
        assert_eq!(opened.tag, token.private_data[1_008..], "under its name");

        assert!(
            open(&KEY, GAME, &to_bytes(&token), now, &[]).is_ok(),
            "anywhere, where addresses do not matter"
        );
        let many = TokenBuilder::new(1, vec![addr(); 32])
            .protocol_id(GAME)
            .issue(&KEY)
            .expect("a token");
        assert!(
            open_with(&many, now).is_ok(),
            "with all the servers it can name"
        );
        let (again, _) = issued();
        assert_ne!(
            open_with(&again, now).expect("it is genuine").tag,
            opened.tag,
            "another token has another name"
        );
    }

    #[test]
    fn an_expired_token_is_refused() {
        let (token, now) = issued();
        assert!(open_with(&token, now + 29).is_ok(), "the last second");
        assert!(
            matches!(open_with(&token, now + 30), Err(TokenError::Expired)),
            "as netcode counts"
        );
        let renewed = ConnectToken {
            expire_timestamp: token.expire_timestamp + 3_600,
            ..token
        };
        assert!(
            matches!(open_with(&renewed, now + 30), Err(TokenError::Forged)),
            "nobody but the back end can prolong it"
        );
    }

    #[test]
    fn a_token_altered_anywhere_is_refused() {
        let (token, now) = issued();
        let bytes = to_bytes(&token);
        // Client id, version, protocol id, then the one field that is in no way used or vouched for.
        let created = 8 + 13 + 8..8 + 13 + 8 + 8;
        for at in (0..bytes.len()).filter(|at| !created.contains(at)) {
            let mut altered = bytes.clone();
            altered[at] ^= 0x10;
            let error = open(&KEY, GAME, &altered, now, &[addr()]).expect_err("altered");
            let is_explained = match at {
                0..8 => matches!(error, TokenError::Forged),
                8..21 => matches!(error, TokenError::Malformed(_)),
                21..29 => matches!(error, TokenError::WrongProtocol { .. }),
                // Later, or long ago: before it was made.
                37..45 => matches!(error, TokenError::Forged | TokenError::Malformed(_)),
                // Nonce and private part, with its tag.
                45..1_093 => matches!(error, TokenError::Forged),
                _ => matches!(error, TokenError::Forged | TokenError::Malformed(_)),
            };
            assert!(is_explained, "byte {at}: {error}");
        }
    }

    #[test]
    fn what_an_eavesdropper_sees_of_a_token_does_not_open() {
        // Over UDP, a request to connect shows everything but the keys.
        let (token, now) = issued();
        let stolen = ConnectToken {
            client_to_server_key: [0; 32],
            server_to_client_key: [0; 32],
            ..token
        };
        assert!(
            matches!(open_with(&stolen, now), Err(TokenError::Forged)),
            "the keys are what makes it the player's"
        );
    }

    #[test]
    fn a_token_of_another_key_is_refused() {
        let (token, now) = issued();
        let opened = open(&[8; 32], GAME, &to_bytes(&token), now, &[addr()]);
        assert!(matches!(opened, Err(TokenError::Forged)), "{opened:?}");
    }

    #[test]
    fn a_token_for_another_server_is_refused() {
        let (token, now) = issued();
        let elsewhere = [SocketAddr::from(([203, 0, 113, 9], 5000))];
        let opened = open(&KEY, GAME, &to_bytes(&token), now, &elsewhere);
        assert!(matches!(opened, Err(TokenError::WrongServer)), "{opened:?}");

        let mut redirected = token;
        redirected.server_addresses[0] = Some(elsewhere[0]);
        let opened = open(&KEY, GAME, &to_bytes(&redirected), now, &elsewhere);
        assert!(
            matches!(opened, Err(TokenError::Forged)),
            "nor can the player send it elsewhere: {opened:?}"
        );
    }

    #[test]
    fn a_token_for_another_game_is_refused() {
        let (token, now) = issued();
        let opened = open(&KEY, GAME + 1, &to_bytes(&token), now, &[addr()]);
        assert!(
            matches!(
                opened,
                Err(TokenError::WrongProtocol { token: GAME, server }) if server == GAME + 1
            ),
            "{opened:?}"
        );
        let relabelled = ConnectToken {
            protocol_id: GAME + 1,
            ..token
        };
        let opened = open(&KEY, GAME + 1, &to_bytes(&relabelled), now, &[addr()]);
        assert!(
            matches!(opened, Err(TokenError::Forged)),
            "whatever it says it is for: {opened:?}"
        );
    }

    #[test]
    fn refusals_are_short_enough_to_be_sent() {
        // A WebSocket can be closed with 123 bytes of text.
        for error in [
            TokenError::Expired,
            TokenError::Forged,
            TokenError::WrongServer,
            TokenError::WrongProtocol {
                token: u64::MAX,
                server: u64::MAX,
            },
        ] {
            assert!(error.to_string().len() <= 120, "{error}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let (token, now) = issued();
        let bytes = to_bytes(&token);
        for end in 0..bytes.len() {
            let opened = open(&KEY, GAME, &bytes[..end], now, &[addr()]);
            assert!(
                matches!(opened, Err(TokenError::Malformed(_))),
                "{end} bytes: {opened:?}"
            );
        }
    }

    #[test]
    fn netcode_takes_the_tokens_that_open_takes() {
        use renetcode::{
            ClientAuthentication, NetcodeClient, NetcodeServer, ServerAuthentication, ServerConfig,
        };
        let (token, now) = issued();
        let client = || {
            let auth = ClientAuthentication::Secure {
                connect_token: token.clone(),
            };
            NetcodeClient::new(Duration::from_secs(now), auth).expect("a client")
        };
        let is_answered = |now, private_key, protocol_id| {
            let mut server = NetcodeServer::new(ServerConfig {
                current_time: Duration::from_secs(now),
                max_clients: 1,
                protocol_id,
                public_addresses: vec![addr()],
                authentication: ServerAuthentication::Secure { private_key },
            });
            let mut client = client();
            let (request, _) = client.update(Duration::ZERO).expect("a request");
            server.process_packet(addr(), request) != renetcode::ServerResult::None
        };
        for (now, key, game) in [
            (now, KEY, GAME),
            (now + 29, KEY, GAME),
            (now + 30, KEY, GAME),
            (now, [8; 32], GAME),
            (now, KEY, GAME + 1),
        ] {
            assert_eq!(
                open(&key, game, &to_bytes(&token), now, &[addr()]).is_ok(),
                is_answered(now, key, game),
                "at {now}, protocol {game}"
            );
        }
    }

    /// A name in the system's folder for such files, free again in the end.
    struct TempFile(PathBuf);

    impl TempFile {
        fn new() -> Self {
            let name = u64::from_le_bytes(renetcode::generate_random_bytes());
            Self(std::env::temp_dir().join(format!("tandem-{name:x}.key")))
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_new_key_is_for_its_owner_and_replaces_nothing() {
        let file = TempFile::new();
        let key = create_key(&file.0).expect("a new file");
        assert_eq!(read_key(&file.0).expect("a key"), key, "the same key");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let metadata = std::fs::metadata(&file.0).expect("the file");
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "private");
        }
        assert!(
            matches!(create_key(&file.0), Err(KeyError::Exists(_))),
            "once"
        );
        assert_eq!(read_key(&file.0).expect("a key"), key, "still the same");
    }

    #[test]
    fn files_without_a_key_are_refused() {
        let file = TempFile::new();
        assert!(
            matches!(read_key(&file.0), Err(KeyError::Io { .. })),
            "no file"
        );
        let key = "0123456789abcdefABCDEF".repeat(3);
        for (text, is_key) in [
            (format!("  {}\r\n", &key[..64]), true),
            (key[..63].into(), false),
            (key[..65].into(), false),
            (format!("+{}", &key[..63]), false),
            (format!("0x{}", &key[..62]), false),
            (String::new(), false),
            ("\u{e9}".repeat(32), false),
            (key.repeat(100), false),
        ] {
            std::fs::write(&file.0, &text).expect("a file");
            let read = read_key(&file.0);
            assert_eq!(read.is_ok(), is_key, "{text}");
            if let Err(error) = read {
                assert!(matches!(error, KeyError::Malformed(_)), "{error:?}");
                assert!(
                    text.is_empty() || !error.to_string().contains(text.as_str()),
                    "what may be most of a key does not get into logs"
                );
            }
        }
    }

    #[test]
    fn unusable_tokens_are_not_issued() {
        let issue = |addresses, valid_for| {
            TokenBuilder::new(1, addresses)
                .valid_for(valid_for)
                .issue(&[1; 32])
        };
        let minute = Duration::from_secs(60);
        assert!(
            matches!(issue(vec![], minute), Err(TokenError::Addresses(0))),
            "without an address"
        );
        assert!(
            matches!(
                issue(vec![addr(); 33], minute),
                Err(TokenError::Addresses(33))
            ),
            "with too many"
        );
        assert!(
            matches!(
                issue(vec![addr()], Duration::from_millis(900)),
                Err(TokenError::TooShort)
            ),
            "without time"
        );
        assert!(
            issue(vec![addr()], Duration::MAX).is_ok(),
            "until the end of time"
        );
    }
}
