//! stub
use bevy::prelude::*;
#[derive(Component, Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub subject: String,
    pub verified: bool,
}
impl Identity {
    pub fn of_client(id: u64, verified: bool) -> Self {
        Self {
            subject: id.to_string(),
            verified,
        }
    }
    pub fn of_host() -> Self {
        Self {
            subject: "host".into(),
            verified: true,
        }
    }
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct IdentityError;
pub trait Verifier: Send + Sync + 'static {
    fn verify(&self, credentials: &[u8], now: u64) -> Result<Identity, IdentityError>;
}
