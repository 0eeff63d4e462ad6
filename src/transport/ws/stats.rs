//! Counters that all tasks of a transport write and its app reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::transport::{Rejected, TransportStats};

/// [`TransportStats`], from many threads. Bytes are those of WebSocket's frames with their headers, inside TLS.
#[derive(Debug, Default)]
pub(super) struct Stats {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    datagrams_in: AtomicU64,
    datagrams_out: AtomicU64,
    malformed: AtomicU64,
    handshake: AtomicU64,
    over_budget: AtomicU64,
    inbox_full: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Stats {
    pub fn add_bytes_in(&self, bytes: usize) {
        add(&self.bytes_in, bytes);
    }

    pub fn add_bytes_out(&self, bytes: usize) {
        add(&self.bytes_out, bytes);
    }

    pub fn add_datagrams_in(&self, datagrams: usize) {
        add(&self.datagrams_in, datagrams);
    }

    pub fn add_datagrams_out(&self, datagrams: usize) {
        add(&self.datagrams_out, datagrams);
    }

    /// A link that ended since its peer sent what nobody may.
    pub fn add_malformed(&self) {
        add(&self.malformed, 1);
    }

    /// A connection that did not become a link.
    pub fn add_refused(&self) {
        add(&self.handshake, 1);
    }

    /// A link that was not read for a while, since its peer sent more than its budget.
    pub fn add_over_budget(&self) {
        add(&self.over_budget, 1);
    }

    /// A link that was not read for a while, since the app does not look.
    pub fn add_inbox_full(&self) {
        add(&self.inbox_full, 1);
    }

    pub fn read(&self) -> TransportStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TransportStats {
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            datagrams_in: get(&self.datagrams_in),
            datagrams_out: get(&self.datagrams_out),
            rejected: Rejected {
                malformed: get(&self.malformed),
                handshake: get(&self.handshake),
                over_budget: get(&self.over_budget),
                inbox_full: get(&self.inbox_full),
                ..Rejected::default()
            },
        }
    }
}
