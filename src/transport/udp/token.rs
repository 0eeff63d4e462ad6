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

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Why there is no token.
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
}

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
        ConnectToken::generate(
            unix_time(),
            self.protocol_id,
            self.valid_for.as_secs(),
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
    }
}
