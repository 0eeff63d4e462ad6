//! Which tokens were used, and from where.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::MAX_TOKENS;

/// Which address each token came from, oldest forgotten first.
#[derive(Default)]
pub(super) struct Tokens {
    pub(super) uses: HashMap<[u8; 16], TokenOrigin>,
    pub(super) order: VecDeque<[u8; 16]>,
}

pub(super) struct TokenOrigin {
    pub(super) addr: SocketAddr,
    /// It made a link. Recordings of that session must not make another.
    pub(super) used_up: bool,
}

impl Tokens {
    pub(super) fn admits(&self, tag: &[u8; 16], addr: SocketAddr) -> bool {
        self.uses
            .get(tag)
            .is_none_or(|token| token.addr == addr && !token.used_up)
    }

    pub(super) fn insert(&mut self, tag: [u8; 16], addr: SocketAddr) {
        if self
            .uses
            .insert(
                tag,
                TokenOrigin {
                    addr,
                    used_up: false,
                },
            )
            .is_none()
        {
            self.order.push_back(tag);
        }
        if self.order.len() > MAX_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            self.uses.remove(&oldest);
        }
    }

    pub(super) fn use_up(&mut self, tag: &[u8; 16]) {
        if let Some(token) = self.uses.get_mut(tag) {
            token.used_up = true;
        }
    }
}
