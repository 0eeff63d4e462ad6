//! From the tasks of links to the app.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Shared;
use crate::transport::ws::link::Inbox;
use crate::transport::ws::outbox::{Goodbye, Outbox};
use crate::transport::{CloseReason, LinkId, LinkIds, PeerInfo};

/// [`LinkEvent`]s, of which the first brings the link's queue.
pub(super) enum Event {
    Opened {
        link: LinkId,
        peer: PeerInfo,
        outbox: Arc<Outbox>,
    },
    Datagram {
        link: LinkId,
        bytes: Vec<u8>,
    },
    Closed {
        link: LinkId,
        reason: CloseReason,
    },
}

/// What waits for the app.
pub(super) struct ServerInbox {
    pub(super) state: Mutex<InboxState>,
    /// Of `state.events`, to look at without a lock.
    pub(super) waiting: AtomicUsize,
    pub(super) capacity: usize,
}

pub(super) struct InboxState {
    pub(super) ids: LinkIds,
    pub(super) events: Vec<Event>,
    /// Tasks that wait for room.
    pub(super) paused: HashMap<LinkId, Waker>,
    /// Nothing opens any more.
    pub(super) stopped: bool,
}

impl ServerInbox {
    pub(super) fn new(transport_index: u8, capacity: usize) -> Self {
        Self {
            state: Mutex::new(InboxState {
                ids: LinkIds::new(transport_index),
                events: Vec::new(),
                paused: HashMap::new(),
                stopped: false,
            }),
            waiting: AtomicUsize::new(0),
            capacity: capacity.max(1),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves all events there, and lets tasks go on that waited for room.
    pub(super) fn take(&self, events: &mut Vec<Event>) {
        let paused = {
            let mut state = self.lock();
            std::mem::swap(&mut state.events, events);
            self.waiting.store(0, Ordering::Relaxed);
            std::mem::take(&mut state.paused)
        };
        for waker in paused.into_values() {
            waker.wake();
        }
    }

    /// Lets nothing open any more, and tells those to go of which the app has not heard yet.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for event in &state.events {
            if let Event::Opened { outbox, .. } = event {
                outbox.say(Goodbye::GoAway);
            }
        }
    }

    pub(super) fn push(&self, state: &mut InboxState, events: impl IntoIterator<Item = Event>) {
        state.events.extend(events);
        self.waiting.store(state.events.len(), Ordering::Relaxed);
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < self.capacity
    }

    /// Opens a link, unless the server stops or the app does not look.
    pub(super) fn open(&self, peer: PeerInfo, outbox: &Arc<Outbox>) -> Option<LinkId> {
        let mut state = self.lock();
        if state.stopped || !self.has_room() {
            return None;
        }
        let link = state.ids.allocate();
        let outbox = outbox.clone();
        self.push(&mut state, [Event::Opened { link, peer, outbox }]);
        Some(link)
    }

    /// There is always room for this: there is one for each link that opened.
    pub(super) fn close(&self, link: LinkId, reason: CloseReason) {
        let mut state = self.lock();
        state.paused.remove(&link);
        self.push(&mut state, [Event::Closed { link, reason }]);
    }
}

/// The way from a link to the app. However the link's task ends, the app is told.
pub(super) struct Presence {
    pub(super) shared: Arc<Shared>,
    pub(super) link: LinkId,
    pub(super) closed: bool,
}

impl Presence {
    pub(super) fn close(&mut self, reason: CloseReason) {
        if !std::mem::replace(&mut self.closed, true) {
            self.shared.inbox.close(self.link, reason);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The server stopped before the link had taken leave; or the task panicked, which is in the log.
        let reason = if self.shared.closed.load(Ordering::Relaxed) {
            CloseReason::ByUs
        } else {
            CloseReason::Transport("the server failed".into())
        };
        self.close(reason);
    }
}

/// Delivers to the app what one link receives.
pub(super) struct LinkInbox {
    pub(super) shared: Arc<Shared>,
    pub(super) link: LinkId,
}

impl Inbox for LinkInbox {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let inbox = &self.shared.inbox;
        if inbox.has_room() {
            return Poll::Ready(());
        }
        let mut state = inbox.lock();
        if inbox.has_room() {
            return Poll::Ready(());
        }
        state.paused.insert(self.link, cx.waker().clone());
        Poll::Pending
    }

    fn deliver(&mut self, datagrams: &mut Vec<Vec<u8>>) {
        let inbox = &self.shared.inbox;
        let link = self.link;
        let events = datagrams
            .drain(..)
            .map(|bytes| Event::Datagram { link, bytes });
        inbox.push(&mut inbox.lock(), events);
    }
}

/// Links that have opened and closed again, and said nothing in between: the app need not bother with them.
pub(super) fn fleeting(events: &[Event]) -> HashSet<LinkId> {
    let mut silent = HashSet::new();
    let mut fleeting = HashSet::new();
    for event in events {
        match event {
            Event::Opened { link, .. } => {
                silent.insert(*link);
            }
            // Most frames open no link, and then this costs nothing for each datagram.
            Event::Datagram { link, .. } if !silent.is_empty() => {
                silent.remove(link);
            }
            Event::Datagram { .. } => {}
            Event::Closed { link, .. } => fleeting.extend(silent.take(link)),
        }
    }
    fleeting
}
