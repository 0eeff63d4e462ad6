//! stub
use serde::{Deserialize, Serialize};
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeToken {
    pub session: u32,
    pub secret: [u8; 32],
}
pub struct ResumeKeys {
    session: u32,
    current: [u8; 32],
    pending: Option<[u8; 32]>,
}
impl ResumeKeys {
    pub fn new(session: u32, random: [u8; 32]) -> (Self, ResumeToken) {
        (
            Self {
                session,
                current: random,
                pending: None,
            },
            ResumeToken {
                session,
                secret: random,
            },
        )
    }
    pub fn confirm(&mut self) {
        if let Some(p) = self.pending.take() {
            self.current = p;
        }
    }
    pub fn redeem(&mut self, t: &ResumeToken, random: [u8; 32]) -> Result<ResumeToken, ()> {
        if self.pending == Some(t.secret) {
            self.current = t.secret;
        } else if self.current != t.secret {
            return Err(());
        }
        self.pending = Some(random);
        Ok(ResumeToken {
            session: self.session,
            secret: random,
        })
    }
}
