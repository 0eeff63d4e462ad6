//! Who may be inside, in total and from each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::protocol::limits::Prefix;

/// Counts what is going on, and lets no more begin than are allowed.
#[derive(Debug)]
pub(super) struct Gate {
    max: usize,
    max_per_address: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    total: usize,
    by_address: HashMap<Prefix, usize>,
}

/// Why somebody does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Too many are in.
    InTotal,
    /// Too many from the same address are in.
    FromAddress,
}

/// A place inside, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    address: Option<Prefix>,
}

impl Gate {
    pub fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_per_address,
            inside: Mutex::default(),
        })
    }

    /// Enters, counted for this address if there is one. Loopback is none: who is on this machine already (a load test,
    /// or a proxy) is nobody's neighbour.
    pub fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Permit, Full> {
        let address = address
            .filter(|address| !address.to_canonical().is_loopback())
            .map(Prefix::from);
        let mut inside = self.lock();
        if inside.total >= self.max {
            return Err(Full::InTotal);
        }
        if let Some(address) = address {
            let from_address = inside.by_address.entry(address).or_default();
            if *from_address >= self.max_per_address {
                return Err(Full::FromAddress);
            }
            *from_address += 1;
        }
        inside.total += 1;
        Ok(Permit {
            gate: self.clone(),
            address,
        })
    }

    /// How many are inside.
    pub fn len(&self) -> usize {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        inside.total -= 1;
        if let Some(address) = self.address
            && let Some(from_address) = inside.by_address.get_mut(&address)
        {
            *from_address -= 1;
            if *from_address == 0 {
                inside.by_address.remove(&address);
            }
        }
    }
}

/// Tells of refusals in at most one line of the log a second.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    state: Mutex<RefusalState>,
}

#[derive(Debug, Default)]
struct RefusalState {
    told_at: Option<Instant>,
    untold: u64,
}

impl RefusalLog {
    pub fn note(&self, peer: IpAddr, why: &str) {
        if let Some(count) = self.count(Instant::now()) {
            warn!("refused {count} WebSocket connection(s), the last from {peer}: {why}");
        }
    }

    /// Counts one more, and returns how many to tell of, if it is time for that.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.untold += 1;
        let due = state
            .told_at
            .is_none_or(|told_at| now - told_at >= Duration::from_secs(1));
        due.then(|| {
            state.told_at = Some(now);
            std::mem::take(&mut state.untold)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn no_address_takes_all_places() {
        let gate = Gate::new(3, 2);
        let first = gate.enter(address("192.0.2.1")).expect("a place");
        let _second = gate.enter(address("::ffff:192.0.2.1")).expect("a place");
        assert_eq!(
            gate.enter(address("192.0.2.1")).err(),
            Some(Full::FromAddress),
            "however it is written"
        );
        let _other = gate.enter(address("192.0.2.2")).expect("others may");
        assert_eq!(gate.enter(None).err(), Some(Full::InTotal));
        drop(first);
        assert_eq!(gate.len(), 2, "who leaves makes room");
        let _again = gate.enter(address("192.0.2.1")).expect("a place");
    }

    #[test]
    fn a_household_is_one_address() {
        let gate = Gate::new(9, 1);
        let _one = gate.enter(address("2001:db8::1")).expect("a place");
        assert_eq!(
            gate.enter(address("2001:db8::ffff:2")).err(),
            Some(Full::FromAddress)
        );
        let _other = gate.enter(address("2001:db8:0:1::1")).expect("another");
    }

    #[test]
    fn this_machine_is_limited_in_total_only() {
        let gate = Gate::new(3, 1);
        let _places = ["127.0.0.1", "::ffff:127.0.0.1", "::1"]
            .map(|loopback| gate.enter(address(loopback)).expect("a place"));
        assert_eq!(gate.enter(address("127.0.0.1")).err(), Some(Full::InTotal));
    }

    #[test]
    fn nothing_is_kept_of_who_left() {
        let gate = Gate::new(10, 1);
        for last in 0..=255 {
            drop(gate.enter(Some(IpAddr::from([192, 0, 2, last]))));
        }
        assert_eq!(gate.lock().by_address.len(), 0);
    }

    #[test]
    fn a_flood_of_refusals_is_one_line_a_second() {
        let log = RefusalLog::default();
        let start = Instant::now();
        let told: Vec<u64> = (0..3_000)
            .filter_map(|ms| log.count(start + Duration::from_millis(ms)))
            .collect();
        assert_eq!(told, [1, 1_000, 1_000], "with a count");
    }
}
