//! The secret with which a client takes up its session again, over whatever link.
//!
//! The server gives a client a [`ResumeToken`] with its welcome, and another one at each resume. Each is good for one
//! resume. The difficulty is the answer to a resume, which carries the next token and can be lost: if the old token
//! were void already, the player would be locked out; if it stayed good, a thief could use it too. So
//! [`ResumeKeys`] keeps two: the *current* one, and a *pending* one of which nobody knows whether it arrived. The client
//! confirms the pending one as soon as it has it, and from then on the previous one is spent. Using the pending one
//! confirms it too.
//!
//! The time in which a stolen token works is therefore that between two welcomes, if the thief is first: then the
//! player's own next attempt fails, and tells. Whoever asks to resume must moreover show that they are the player (a
//! connect token or a signed-in identity, where the server wants one): a resume token proves only that somebody had the
//! link.
//!
//! The server keeps the secrets themselves and not digests of them. Digests protect passwords that are written down
//! somewhere; these secrets live in the same memory as the sessions to which they give access, and no longer than those.
//! A digest would need one more dependency, and save nothing.

use std::fmt;
use std::hint::black_box;

use serde::{Deserialize, Serialize};

/// Gives access to one session, once.
///
/// Keep it as secret as a password, and send it over encrypted links only. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeToken {
    /// The number of the session.
    pub session: u32,
    /// What only server and client know: 32 random bytes.
    pub secret: [u8; 32],
}

impl ResumeToken {
    /// Its length as bytes.
    pub const LEN: usize = 36;

    /// The session's number (little endian), and the secret.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.session.to_le_bytes());
        bytes[4..].copy_from_slice(&self.secret);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` if the length is wrong. Any other bytes are a token, if hardly ever
    /// a good one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (session, secret) = bytes.split_first_chunk()?;
        Some(Self {
            session: u32::from_le_bytes(*session),
            secret: secret.try_into().ok()?,
        })
    }

    /// A number that tells the server that this token has arrived, for [`ResumeKeys::confirm`].
    ///
    /// It is a part of the secret. The 224 bits that remain are more than anybody guesses.
    #[must_use]
    pub fn receipt(&self) -> u32 {
        receipt(&self.secret)
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumeToken")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Why a token gives no access.
///
/// For the log. A client need not know which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// It belongs to another session.
    #[error("the resume token belongs to another session; join anew")]
    WrongSession,
    /// It was the one before: used, and replaced by one that has arrived. A player who tries this twice has a bug;
    /// otherwise somebody has a copy.
    #[error("the resume token was used before; join anew")]
    Spent,
    /// This server never gave it out, or long ago.
    #[error("the resume token is not valid; join anew")]
    Invalid,
}

/// The server's side: which tokens give access to one session.
///
/// `Debug` does not show the secrets.
#[derive(Clone)]
pub struct ResumeKeys {
    session: u32,
    /// Known to have arrived.
    current: Option<[u8; 32]>,
    /// Given out since; nobody knows whether it has arrived.
    pending: Option<[u8; 32]>,
    /// The one before `current`: only to tell replays from guesses.
    spent: Option<[u8; 32]>,
}

impl ResumeKeys {
    /// No token gives access to this session yet.
    #[must_use]
    pub fn new(session: u32) -> Self {
        Self {
            session,
            current: None,
            pending: None,
            spent: None,
        }
    }

    /// Makes a token: with each welcome, so when a session begins and after each resume.
    ///
    /// `random` must come from a cryptographic generator and never be used twice. The token is good at once. The current
    /// one stays good too until this one is [confirmed](Self::confirm); an earlier one that was not confirmed is void,
    /// since the client asked again without it.
    pub fn issue(&mut self, random: [u8; 32]) -> ResumeToken {
        self.pending = Some(random);
        ResumeToken {
            session: self.session,
            secret: random,
        }
    }

    /// The client says by its [receipt](ResumeToken::receipt) that it has the newest token: the one before is spent.
    /// Returns whether it is the newest. Old receipts change nothing.
    pub fn confirm(&mut self, receipt_of_token: u32) -> bool {
        match self.pending {
            Some(pending) if receipt(&pending) == receipt_of_token => {
                self.promote();
                true
            }
            _ => self
                .current
                .is_some_and(|current| receipt(&current) == receipt_of_token),
        }
    }

    /// Uses a token. If it is good, send a new one with the welcome: [`Self::issue`].
    ///
    /// # Errors
    ///
    /// [`ResumeError`], and then nothing has changed.
    pub fn redeem(&mut self, token: &ResumeToken) -> Result<(), ResumeError> {
        if token.session != self.session {
            return Err(ResumeError::WrongSession);
        }
        // All three, whatever the first says: how long it takes tells nothing.
        let is = |secret: &Option<[u8; 32]>| {
            let known = secret.unwrap_or_default();
            constant_time_eq(&token.secret, &known) & secret.is_some()
        };
        let (current, pending, spent) = (is(&self.current), is(&self.pending), is(&self.spent));
        if pending {
            self.promote();
            Ok(())
        } else if current {
            Ok(())
        } else if spent {
            Err(ResumeError::Spent)
        } else {
            Err(ResumeError::Invalid)
        }
    }

    /// Makes every token void: when the session ends, or its player is banned.
    pub fn revoke(&mut self) {
        *self = Self::new(self.session);
    }

    fn promote(&mut self) {
        if let Some(pending) = self.pending.take()
            && let Some(old) = self.current.replace(pending)
        {
            self.spent = Some(old);
        }
    }
}

impl fmt::Debug for ResumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumeKeys")
            .field("session", &self.session)
            .field("has_current", &self.current.is_some())
            .field("has_pending", &self.pending.is_some())
            .finish_non_exhaustive()
    }
}

fn receipt(secret: &[u8; 32]) -> u32 {
    let [a, b, c, d, ..] = *secret;
    u32::from_le_bytes([a, b, c, d])
}

/// Compares without an early end, so that the time it takes does not tell how many bytes were right.
///
/// `black_box` keeps the compiler from seeing that the loop could stop at the first difference. It promises nothing; over
/// a network, with a secret that is gone after one use, this is more care than is needed.
fn constant_time_eq(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let mut difference = 0;
    for (a, b) in a.iter().zip(b) {
        difference = black_box(difference | (a ^ b));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_good_before_it_was_confirmed() {
        let mut keys = ResumeKeys::new(7);
        let token = keys.issue([1; 32]);
        assert_eq!(
            keys.redeem(&token),
            Ok(()),
            "the confirmation may be what was lost"
        );
    }

    #[test]
    fn a_lost_welcome_does_not_lock_the_player_out() {
        let mut keys = ResumeKeys::new(7);
        let first = keys.issue([1; 32]);
        assert!(keys.confirm(first.receipt()));
        for lost in 2..5 {
            assert_eq!(keys.redeem(&first), Ok(()));
            let _never_arrives = keys.issue([lost; 32]);
        }
        assert_eq!(keys.redeem(&first), Ok(()));
        let arrives = keys.issue([9; 32]);
        assert_eq!(keys.redeem(&arrives), Ok(()));
    }

    #[test]
    fn a_token_is_spent_once_its_successor_was_confirmed() {
        let mut keys = ResumeKeys::new(7);
        let first = keys.issue([1; 32]);
        assert_eq!(keys.redeem(&first), Ok(()));
        let second = keys.issue([2; 32]);
        assert!(keys.confirm(second.receipt()));
        assert_eq!(keys.redeem(&first), Err(ResumeError::Spent));
        assert!(keys.confirm(second.receipt()), "told twice");
        assert_eq!(keys.redeem(&second), Ok(()));
    }

    #[test]
    fn using_the_successor_spends_the_predecessor_too() {
        let mut keys = ResumeKeys::new(7);
        let first = keys.issue([1; 32]);
        assert_eq!(keys.redeem(&first), Ok(()));
        let second = keys.issue([2; 32]);
        assert_eq!(keys.redeem(&second), Ok(()));
        assert_eq!(keys.redeem(&first), Err(ResumeError::Spent));
    }

    #[test]
    fn an_unconfirmed_token_is_void_once_another_was_issued() {
        let mut keys = ResumeKeys::new(7);
        let lost = keys.issue([1; 32]);
        let newest = keys.issue([2; 32]);
        assert_eq!(keys.redeem(&lost), Err(ResumeError::Invalid));
        assert!(
            !keys.confirm(lost.receipt()),
            "an old receipt changes nothing"
        );
        assert_eq!(keys.redeem(&newest), Ok(()));
    }

    #[test]
    fn forged_tokens_give_no_access() {
        let mut keys = ResumeKeys::new(7);
        let secret = [0; 32];
        let zero = ResumeToken { session: 7, secret };
        assert_eq!(
            keys.redeem(&zero),
            Err(ResumeError::Invalid),
            "none was issued"
        );
        assert!(!keys.confirm(zero.receipt()));
        let token = keys.issue([1; 32]);
        for byte in 0..32 {
            for bit in 0..8 {
                let mut forged = token.clone();
                forged.secret[byte] ^= 1 << bit;
                assert_eq!(keys.redeem(&forged), Err(ResumeError::Invalid));
            }
        }
        let other = ResumeToken {
            session: 8,
            ..token
        };
        assert_eq!(keys.redeem(&other), Err(ResumeError::WrongSession));
    }

    #[test]
    fn a_revoked_session_knows_no_token() {
        let mut keys = ResumeKeys::new(7);
        let first = keys.issue([1; 32]);
        assert!(keys.confirm(first.receipt()));
        let second = keys.issue([2; 32]);
        keys.revoke();
        for token in [first, second] {
            assert_eq!(keys.redeem(&token), Err(ResumeError::Invalid));
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let mut keys = ResumeKeys::new(7);
        let token = keys.issue([0xab; 32]);
        for text in [format!("{token:?}"), format!("{keys:?}")] {
            assert!(
                text.contains('7') && !text.contains("171") && !text.contains("ab, "),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn tokens_are_read_as_written(session: u32, secret: [u8; 32], bytes: Vec<u8>) {
            let token = ResumeToken { session, secret };
            prop_assert_eq!(ResumeToken::from_bytes(&token.to_bytes()), Some(token));
            let read = ResumeToken::from_bytes(&bytes);
            prop_assert_eq!(read.is_some(), bytes.len() == ResumeToken::LEN);
        }

        /// Whatever is lost, a client that keeps the newest token it was told always gets in; and once a token was
        /// confirmed, those before it never do.
        #[test]
        fn an_honest_client_always_gets_in_and_old_tokens_never(fates: Vec<(bool, bool)>) {
            let mut keys = ResumeKeys::new(1);
            let mut held = keys.issue([0xff; 32]);
            let mut old = Vec::new();
            for (step, (welcome_arrives, receipt_arrives)) in fates.into_iter().enumerate() {
                prop_assert_eq!(keys.redeem(&held), Ok(()));
                for token in &old {
                    prop_assert!(keys.redeem(token).is_err());
                }
                let mut secret = [0; 32];
                secret[..8].copy_from_slice(&(step as u64).to_le_bytes());
                let next = keys.issue(secret);
                if welcome_arrives {
                    if receipt_arrives {
                        prop_assert!(keys.confirm(next.receipt()));
                        prop_assert!(keys.redeem(&held).is_err());
                    }
                    old.push(std::mem::replace(&mut held, next));
                }
            }
        }
    }
}
