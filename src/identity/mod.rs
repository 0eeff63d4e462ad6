//! Who a player is, and how the server knows.
//!
//! A server learns it in one of three ways, and puts it on the session's entity as an [`Identity`]:
//!
//! - From a [connect token](crate::transport::udp::token): the back end made it for one client id.
//! - From credentials that the client shows when it says hello, checked by the
//!   [`Verifier`](crate::server::ServerConfig::verifier) that the server was given. `JwtVerifier` (feature `jwt`) checks
//!   JSON Web Tokens, which most back ends can issue already.
//! - Not at all: without either, a client claims a number, and [`verified`](Identity::verified) is false. Such an
//!   identity keeps honest players apart and nobody else.
//!
//! ```
//! # use bevy::prelude::*;
//! use bevy_tandem::identity::Identity;
//! use bevy_tandem::prelude::*;
//!
//! fn load_progress(joined: On<SessionJoined>, identities: Query<&Identity>) {
//!     if let Ok(who) = identities.get(joined.entity)
//!         && who.verified
//!     {
//!         info!("load what is stored for {}", who.subject);
//!     }
//! }
//! ```
//!
//! A verifier of your own is a closure, or anything that implements the trait:
//!
//! ```
//! use bevy_tandem::identity::{Distrust, Identity, IdentityError, Verifier};
//!
//! /// For tests: whoever knows the password is who they say.
//! fn by_password(credentials: &[u8], _now_unix: u64) -> Result<Identity, IdentityError> {
//!     let text = std::str::from_utf8(credentials).map_err(|_| IdentityError::Malformed)?;
//!     match text.split_once(':').ok_or(IdentityError::Malformed)? {
//!         (subject, "open sesame") => Ok(Identity::verified("test", subject)),
//!         _ => Err(IdentityError::Untrusted(Distrust::Signature)),
//!     }
//! }
//!
//! assert_eq!(by_password.verify(b"ada:open sesame", 0)?.subject, "ada");
//! # Ok::<(), IdentityError>(())
//! ```

use bevy::prelude::*;

#[cfg(all(feature = "jwt", not(target_family = "wasm")))]
mod jwt;

#[cfg(all(feature = "jwt", not(target_family = "wasm")))]
pub use jwt::{DEFAULT_LEEWAY, JwtKeyError, JwtVerifier, MAX_SUBJECT_CHARS, MIN_SECRET_BYTES};

pub use crate::protocol::handshake::MAX_CREDENTIALS_BYTES;

/// Who a session's player is. On the session's entity, from before [`SessionJoined`](crate::session::SessionJoined)
/// to the end.
#[derive(Component, Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The player's name in the books of whoever issued the identity: an account number, say. Not for other players'
    /// eyes.
    pub subject: String,
    /// Whether somebody whom the server trusts says so. If not, it is the client's own claim.
    pub verified: bool,
    /// Who says so, if credentials do: subjects of two issuers have nothing to do with each other.
    pub issuer: Option<String>,
    /// What the issuer says that the player is called, if it says so and if players may be called that.
    pub name: Option<String>,
    /// Until when the issuer vouches, in seconds since 1970. A session that has begun goes on beyond that; whether it
    /// should is up to the game.
    pub expires: Option<u64>,
}

impl Identity {
    /// Who came with this client id: `verified` if by a connect token of the back end's, or else by their own words.
    pub fn of_client(client_id: u64, verified: bool) -> Self {
        Self {
            verified,
            ..Self::claimed(client_id.to_string())
        }
    }

    /// The player at the server itself.
    pub fn of_host() -> Self {
        Self {
            verified: true,
            ..Self::claimed("host")
        }
    }

    /// Whom `issuer` vouches for.
    pub fn verified(issuer: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            verified: true,
            issuer: Some(issuer.into()),
            ..Self::claimed(subject)
        }
    }

    /// Whom nobody vouches for.
    pub fn claimed(subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            verified: false,
            issuer: None,
            name: None,
            expires: None,
        }
    }

    /// Whether the two are one and the same player, and as well attested. Their name may have changed meanwhile, and
    /// they may have been vouched for anew.
    pub fn is_same_player(&self, other: &Self) -> bool {
        (&self.subject, self.verified, &self.issuer)
            == (&other.subject, other.verified, &other.issuer)
    }
}

/// Finds out who a player is by what the client shows.
pub trait Verifier: Send + Sync + 'static {
    /// Checks credentials of any length and content, at most [`MAX_CREDENTIALS_BYTES`] from a real client. `now_unix` is
    /// the time in seconds since 1970.
    ///
    /// Runs in the server's frame whenever a client says hello, so it must not wait for anything: have a back end
    /// issue something that can be checked without asking it.
    ///
    /// # Errors
    ///
    /// If the server is not to let this player in.
    fn verify(&self, credentials: &[u8], now_unix: u64) -> Result<Identity, IdentityError>;
}

impl<F> Verifier for F
where
    F: Fn(&[u8], u64) -> Result<Identity, IdentityError> + Send + Sync + 'static,
{
    fn verify(&self, credentials: &[u8], now_unix: u64) -> Result<Identity, IdentityError> {
        self(credentials, now_unix)
    }
}

/// Why nobody knows who a player is.
///
/// The message is what the player gets to see: enough to know what to do, and nothing that helps a forger along. What
/// a server's log can do with is in `{:?}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There were no credentials.
    #[error(
        "this server wants to know who you are; log in first, and connect with what you are given"
    )]
    Missing,
    /// Longer than [`MAX_CREDENTIALS_BYTES`].
    #[error("the credentials are too long; at most {MAX_CREDENTIALS_BYTES} bytes are read")]
    TooLong,
    /// Not of the form that the server expects.
    #[error("the server does not understand these credentials; update the game")]
    Malformed,
    /// They were good once.
    #[error("the credentials have expired; log in again")]
    Expired,
    /// They are for later. Someone's clock is wrong, mostly.
    #[error("the credentials are not valid yet; check the clocks, or try again in a moment")]
    NotYetValid,
    /// Well formed, and not to be believed.
    #[error("the server does not accept these credentials; log in again")]
    Untrusted(Distrust),
}

/// What is wrong with credentials that a server does not believe. For logs, and not for players.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Signed by another algorithm than the server was set up with.
    Algorithm,
    /// Not signed by the issuer's key, or altered since.
    Signature,
    /// Issued by someone else.
    Issuer,
    /// Issued for someone else.
    Audience,
    /// They do not say whom they are for, or in a way that cannot be stored or shown.
    Subject,
    /// They do not say until when they are valid.
    Expiry,
    /// They demand to be checked in a way that this server does not know.
    Extension,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_outlives_a_new_name_and_a_new_token() {
        let ada = Identity::verified("https://login.example", "ada");
        let renamed = Identity {
            name: Some("Countess".into()),
            expires: Some(7),
            ..ada.clone()
        };
        assert!(ada.is_same_player(&renamed), "it is still her");
        for other in [
            Identity::verified("https://login.example", "bob"),
            Identity::verified("https://elsewhere.example", "ada"),
            Identity::claimed("ada"),
        ] {
            assert!(!ada.is_same_player(&other), "{other:?} is not");
        }
        assert!(
            !Identity::of_client(7, true).is_same_player(&Identity::of_client(7, false)),
            "a claim is worth less than a token"
        );
    }

    #[test]
    fn players_learn_what_to_do_and_forgers_nothing() {
        let messages: Vec<String> = [
            Distrust::Algorithm,
            Distrust::Signature,
            Distrust::Issuer,
            Distrust::Audience,
        ]
        .map(|why| IdentityError::Untrusted(why).to_string())
        .into();
        assert!(
            messages.iter().all(|message| *message == messages[0]),
            "whatever was wrong: {messages:?}"
        );
        assert!(messages[0].contains("log in again"), "{messages:?}");
    }
}
