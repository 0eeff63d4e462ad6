//! What waits between the app, which sends once a frame, and a link's task, which writes.
//!
//! The app gathers a frame's datagrams without a lock ([`Gathered`]), and hands them over with one ([`Outbox::push`]).
//! The task takes them in *rounds*, of which each is one write to the network: at the link's pace, and never before the
//! last round has left. So what a slow peer does not read waits here, where it is counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::frame::Batch;
use crate::transport::{CloseReason, LinkPace, SharedBytes};

/// What becomes one message.
#[derive(Debug)]
pub(super) enum Item {
    /// Datagrams of this link alone.
    Batch(Batch),
    /// One datagram, of which the second part is sent to other links as well.
    Shared { head: Vec<u8>, shared: SharedBytes },
}

impl Item {
    pub fn datagrams(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.datagrams(),
            Self::Shared { .. } => 1,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.len(),
            Self::Shared { head, shared } => head.len() + shared.bytes().len(),
        }
    }
}

/// A frame's datagrams for one link.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    items: Vec<Item>,
    bytes: usize,
}

impl Gathered {
    /// Adds a datagram.
    pub fn push(&mut self, datagram: &[u8], max_batch: usize) {
        self.bytes += datagram.len();
        match self.items.last_mut() {
            Some(Item::Batch(batch))
                if batch.datagrams() < max_batch && batch.has_room_for(datagram.len()) =>
            {
                batch.push(datagram);
            }
            _ => {
                let mut batch = Batch::default();
                batch.push(datagram);
                self.items.push(Item::Batch(batch));
            }
        }
    }

    /// Adds a datagram that has a part in common with those of other links.
    pub fn push_shared(&mut self, head: &[u8], shared: &SharedBytes) {
        self.bytes += head.len() + shared.bytes().len();
        self.items.push(Item::Shared {
            head: head.to_vec(),
            shared: shared.clone(),
        });
    }

    /// Bytes of all datagrams in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// How a link ends when its own side says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// After all that waits, with a word to the peer.
    Close(CloseReason),
    /// The same, since this side shuts down.
    GoAway,
    /// At once, with a word to the peer.
    Drop(CloseReason),
    /// At once and without a word.
    Vanish,
}

impl Goodbye {
    /// Whether what waits leaves first.
    fn is_patient(&self) -> bool {
        matches!(self, Self::Close(_) | Self::GoAway)
    }
}

/// What a link's task has to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing, until it is woken.
    Wait,
    /// Nothing, until then.
    WaitUntil(Instant),
    /// Send this.
    Round(Vec<Item>, LinkPace),
    /// End the link.
    End(Goodbye),
}

/// The queue of one link.
#[derive(Debug)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    /// Bytes pushed and not yet taken.
    waiting: AtomicUsize,
    /// Bytes taken and not yet accepted by the system.
    leaving: AtomicUsize,
    /// Whether the system takes no more, since the peer does not read.
    blocked: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    items: VecDeque<Item>,
    datagrams: usize,
    pace: LinkPace,
    /// When the last round began.
    last_round: Option<Instant>,
    goodbye: Option<Goodbye>,
    /// Of the link's task, while it waits.
    waker: Option<Waker>,
}

impl Outbox {
    pub fn new(pace: LinkPace) -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                datagrams: 0,
                pace,
                last_round: None,
                goodbye: None,
                waker: None,
            }),
            waiting: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds it can panic half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a frame's datagrams to the task. Returns what wakes it, if it waits.
    #[must_use]
    pub fn push(&self, gathered: &mut Gathered) -> Option<Waker> {
        if gathered.is_empty() {
            return None;
        }
        let bytes: usize = gathered.items.iter().map(Item::bytes).sum();
        let datagrams: usize = gathered.items.iter().map(Item::datagrams).sum();
        gathered.bytes = 0;
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let mut inner = self.lock();
        inner.items.extend(gathered.items.drain(..));
        inner.datagrams += datagrams;
        inner.waker.take()
    }

    /// Ends the link. The first goodbye counts, unless a later one is more urgent.
    pub fn say(&self, goodbye: Goodbye) {
        let waker = {
            let mut inner = self.lock();
            if inner.goodbye.is_none() || !goodbye.is_patient() {
                inner.goodbye = Some(goodbye);
            }
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when the link is to end, whatever waits. For a task that has not opened it yet.
    pub fn poll_goodbye(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.goodbye.is_some() {
            return Poll::Ready(());
        }
        inner.wait(cx);
        Poll::Pending
    }

    /// Sets the pace from the next round on.
    pub fn set_pace(&self, pace: LinkPace) {
        self.lock().pace = pace;
    }

    /// Bytes that wait for the peer, without what the system has taken.
    pub fn queued_bytes(&self) -> usize {
        self.waiting.load(Ordering::Relaxed) + self.leaving.load(Ordering::Relaxed)
    }

    /// Whether more than that waits because the peer does not read. What only waits for its round does not count, unless
    /// it is more than four times as much: then this side's threads are what is too slow.
    pub fn is_congested(&self, above: usize) -> bool {
        let queued = self.queued_bytes();
        queued > above && (self.blocked.load(Ordering::Relaxed) || queued > above.saturating_mul(4))
    }

    /// The task says how much of its round is left, and whether the system takes more.
    pub fn set_leaving(&self, bytes: usize, blocked: bool) {
        self.leaving.store(bytes, Ordering::Relaxed);
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// What the task has to do. `idle` is whether the last round has left: only then is there a next one. The task is
    /// woken when that changes.
    pub fn next(&self, now: Instant, idle: bool, cx: &Context<'_>) -> Next {
        let mut inner = self.lock();
        match &inner.goodbye {
            Some(goodbye) if goodbye.is_patient() && !idle => {
                inner.wait(cx);
                return Next::Wait;
            }
            Some(goodbye) if goodbye.is_patient() && !inner.items.is_empty() => {
                // What waits goes first, at no pace.
            }
            Some(goodbye) => return Next::End(goodbye.clone()),
            None => {
                inner.wait(cx);
                if inner.items.is_empty() || !idle {
                    return Next::Wait;
                }
                if let Some(last) = inner.last_round
                    && inner.datagrams < inner.pace.max_batch
                    && now < last + inner.pace.interval
                {
                    return Next::WaitUntil(last + inner.pace.interval);
                }
            }
        }
        inner.last_round = Some(now);
        let items = inner.take_round();
        let bytes = items.iter().map(Item::bytes).sum();
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        self.leaving.fetch_add(bytes, Ordering::Relaxed);
        Next::Round(items, inner.pace)
    }
}

impl Inner {
    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    /// The oldest items, of at most `max_batch` datagrams together, with neighbouring batches made one.
    fn take_round(&mut self) -> Vec<Item> {
        let mut round = Vec::with_capacity(self.items.len());
        let mut datagrams = 0;
        while let Some(item) = self.items.front() {
            datagrams += item.datagrams();
            if datagrams > self.pace.max_batch && !round.is_empty() {
                break;
            }
            let Some(item) = self.items.pop_front() else {
                break;
            };
            self.datagrams -= item.datagrams();
            match (round.last_mut(), item) {
                (Some(Item::Batch(last)), Item::Batch(next)) if last.has_room_for(next.len()) => {
                    last.append(next);
                }
                (_, item) => round.push(item),
            }
        }
        round
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An outbox with a task that looks at it whenever it is told to.
    struct Link {
        outbox: Outbox,
        gathered: Gathered,
        woken: Arc<Woken>,
        started_at: Instant,
    }

    impl Link {
        fn new(pace: LinkPace) -> Self {
            Self {
                outbox: Outbox::new(pace),
                gathered: Gathered::default(),
                woken: Arc::default(),
                started_at: Instant::now(),
            }
        }

        fn send(&mut self, datagrams: usize, max_batch: usize) {
            for _ in 0..datagrams {
                self.gathered.push(&[7; 10], max_batch);
            }
            let waker = self.outbox.push(&mut self.gathered);
            waker.into_iter().for_each(Waker::wake);
        }

        fn next(&self, at_ms: u64) -> Next {
            self.next_if(at_ms, true)
        }

        fn next_if(&self, at_ms: u64, idle: bool) -> Next {
            let waker = self.woken.clone().into();
            self.outbox
                .next(self.at(at_ms), idle, &Context::from_waker(&waker))
        }

        fn at(&self, ms: u64) -> Instant {
            self.started_at + Duration::from_millis(ms)
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    /// Datagrams in each message of a round.
    fn sizes(next: &Next) -> Vec<usize> {
        match next {
            Next::Round(items, _) => items.iter().map(Item::datagrams).collect(),
            _ => Vec::new(),
        }
    }

    const PACE: LinkPace = LinkPace {
        max_batch: 4,
        ..LinkPace::BALANCED
    };

    #[test]
    fn a_frame_is_one_message_and_one_wakeup() {
        let mut link = Link::new(PACE);
        assert!(matches!(link.next(0), Next::Wait), "nothing yet");
        link.send(3, PACE.max_batch);
        assert_eq!(link.woken(), 1, "woken once for three datagrams");
        assert_eq!(sizes(&link.next(0)), [3], "which leave as one message");
        assert!(matches!(link.next(0), Next::Wait), "and that was all");
    }

    #[test]
    fn batches_keep_their_distance() {
        let mut link = Link::new(PACE);
        link.send(1, PACE.max_batch);
        assert_eq!(sizes(&link.next(0)), [1], "the first does not wait");
        link.send(1, PACE.max_batch);
        assert!(
            matches!(link.next(5), Next::WaitUntil(until) if until == link.at(20)),
            "the second waits for its time"
        );
        link.send(1, PACE.max_batch);
        assert!(matches!(link.next(19), Next::WaitUntil(_)));
        assert_eq!(sizes(&link.next(20)), [2], "and takes along what came");
    }

    #[test]
    fn full_batches_do_not_wait_and_are_never_exceeded() {
        let mut link = Link::new(PACE);
        link.send(11, PACE.max_batch);
        assert_eq!(sizes(&link.next(0)), [4]);
        assert_eq!(sizes(&link.next(0)), [4], "there is nothing to wait for");
        assert!(matches!(link.next(0), Next::WaitUntil(_)), "the rest waits");
        assert_eq!(sizes(&link.next(20)), [3]);
    }

    #[test]
    fn shared_datagrams_keep_their_place() {
        let mut link = Link::new(PACE);
        let shared = SharedBytes::new(vec![1; 100]);
        link.gathered.push(b"a", 4);
        link.gathered.push_shared(b"b", &shared);
        link.gathered.push(b"c", 4);
        assert_eq!(link.gathered.bytes(), 103);
        let _ = link.outbox.push(&mut link.gathered);
        let Next::Round(items, _) = link.next(0) else {
            panic!("a round");
        };
        assert!(
            matches!(
                &items[..],
                [Item::Batch(_), Item::Shared { head, .. }, Item::Batch(_)] if head == b"b"
            ),
            "{items:?}"
        );
    }

    #[test]
    fn nothing_is_taken_while_a_round_is_leaving() {
        let mut link = Link::new(PACE);
        link.send(1, 4);
        assert_eq!(sizes(&link.next(0)), [1]);
        link.send(2, 4);
        assert!(matches!(link.next_if(100, false), Next::Wait));
        assert_eq!(sizes(&link.next(100)), [2]);
    }

    #[test]
    fn what_waits_is_counted_until_the_system_has_it() {
        let mut link = Link::new(PACE);
        link.send(2, 4);
        let queued = link.outbox.queued_bytes();
        assert_eq!(
            queued,
            1 + 2 * 11,
            "two datagrams, their lengths, and flags"
        );
        link.next(0);
        assert_eq!(link.outbox.queued_bytes(), queued, "taken, but not sent");
        assert!(
            !link.outbox.is_congested(10),
            "the peer may well be reading"
        );
        link.outbox.set_leaving(queued, true);
        assert!(link.outbox.is_congested(10), "it is not");
        assert!(!link.outbox.is_congested(queued), "but that much may wait");
        link.outbox.set_leaving(0, false);
        assert_eq!(link.outbox.queued_bytes(), 0);
    }

    #[test]
    fn a_close_comes_after_what_waits_and_a_drop_before() {
        let close = Goodbye::Close(CloseReason::ByUs);
        let mut link = Link::new(PACE);
        link.send(1, 4);
        link.next(0);
        link.send(6, 4);
        link.outbox.say(close.clone());
        assert_eq!(sizes(&link.next(1)), [4], "at once, whatever the pace");
        assert!(
            matches!(link.next_if(1, false), Next::Wait),
            "after it left"
        );
        assert_eq!(sizes(&link.next(1)), [2]);
        assert!(matches!(link.next(1), Next::End(goodbye) if goodbye == close));

        let mut link = Link::new(PACE);
        link.send(6, 4);
        link.outbox.say(close);
        link.outbox.say(Goodbye::Drop(CloseReason::Congested));
        assert!(matches!(
            link.next_if(1, false),
            Next::End(Goodbye::Drop(CloseReason::Congested))
        ));
    }
}
