//! A bad network on demand: delay, jitter, loss, duplication, reordering and a narrow pipe.
//!
//! Everything random comes from a seed, so a failure seen once can be seen again. The core,
//! [`ConditionedQueue`], is given the time and touches nothing else. [`Conditioned`] and
//! [`ConditionedServer`] put it around any transport, both ways, and work with virtual as well as
//! real time. The [local transport](super::local) has it built in, and there also applies it to
//! handshakes, heartbeats and farewells, so that a [blackhole](LinkConditions::blackhole) ends in
//! a timeout. The wrappers see only datagrams: a wrapped UDP link stays alive in a blackhole, and its handshake meets no
//! loss. [`Wire`] is for what lies below: `cargo proxy` has one each way for each client.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::{
    Arrival, ClientLinkState, ClientTransport, Delivery, LinkEvent, LinkId, LinkPace,
    ServerTransport, TransportKind, TransportStats,
};

/// How bad a link is, in one direction. Both directions get the same, with their own dice.
///
/// The default is perfect: everything arrives at once, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConditions {
    /// Delay of each datagram, one way.
    pub latency: Duration,
    /// The delay varies by up to this much, uniformly, either way. Jitter alone does not reorder:
    /// a datagram waits for the one before it, as in the queues that cause jitter.
    pub jitter: Duration,
    /// Share of datagrams lost, 0 to 1.
    pub loss: f32,
    /// Share of datagrams that arrive twice, 0 to 1.
    pub duplication: f32,
    /// Share of datagrams held back for [`reordering_delay`](Self::reordering_delay), so that
    /// later ones overtake them, 0 to 1.
    pub reordering: f32,
    /// How long a reordered datagram is held back on top of its delay. Default: 30 ms, two
    /// datagrams at 60 Hz.
    pub reordering_delay: Duration,
    /// Capacity of the link in bytes per second; `None` is unlimited.
    pub rate_bytes_per_s: Option<u32>,
    /// How long a datagram may queue for the [rate](Self::rate_bytes_per_s); one that would wait
    /// longer is dropped. Default: 250 ms, a home router with a moderate buffer.
    pub rate_queue: Duration,
    /// Where the dice start.
    pub seed: u64,
}

impl Default for LinkConditions {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            reordering_delay: Duration::from_millis(30),
            rate_bytes_per_s: None,
            rate_queue: Duration::from_millis(250),
            seed: 0,
        }
    }
}

impl LinkConditions {
    /// A wired local network: 1 ms each way.
    pub fn lan() -> Self {
        Self {
            latency: Duration::from_millis(1),
            ..Self::default()
        }
    }

    /// Home Wi-Fi to a server on the same continent: 25 ms ± 8 ms each way, 1 % lost, 0.2 %
    /// duplicated, 1 % reordered.
    pub fn wifi() -> Self {
        Self {
            latency: Duration::from_millis(25),
            jitter: Duration::from_millis(8),
            loss: 0.01,
            duplication: 0.002,
            reordering: 0.01,
            ..Self::default()
        }
    }

    /// A phone on 4G: 60 ms ± 25 ms each way, 3 % lost, 0.5 % duplicated, 2 % reordered, 250 kB/s.
    pub fn mobile() -> Self {
        Self {
            latency: Duration::from_millis(60),
            jitter: Duration::from_millis(25),
            loss: 0.03,
            duplication: 0.005,
            reordering: 0.02,
            rate_bytes_per_s: Some(250_000),
            ..Self::default()
        }
    }

    /// Worse than players will put up with: 150 ms ± 60 ms each way, 15 % lost, 2 % duplicated,
    /// 10 % reordered by 60 ms, 64 kB/s.
    pub fn awful() -> Self {
        Self {
            latency: Duration::from_millis(150),
            jitter: Duration::from_millis(60),
            loss: 0.15,
            duplication: 0.02,
            reordering: 0.1,
            reordering_delay: Duration::from_millis(60),
            rate_bytes_per_s: Some(64_000),
            ..Self::default()
        }
    }

    /// Nothing arrives: a pulled cable. What is under way already still does.
    pub fn blackhole() -> Self {
        Self {
            loss: 1.0,
            ..Self::default()
        }
    }

    /// What a link that delivers so can show of these: a stream neither loses, doubles nor reorders.
    #[must_use]
    pub fn over(self, delivery: Delivery) -> Self {
        match delivery {
            Delivery::Datagrams => self,
            Delivery::Stream => Self {
                loss: 0.0,
                duplication: 0.0,
                reordering: 0.0,
                rate_bytes_per_s: None,
                ..self
            },
        }
    }

    /// The same with other dice.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

/// Items under way on one direction of a link.
///
/// Items due at the same moment come out in the order they went in. At most
/// [`MAX_HELD`](Self::MAX_HELD) are held; more are dropped, as by a full buffer.
#[derive(Clone, Debug)]
pub struct ConditionedQueue<T> {
    conditions: LinkConditions,
    rng: fastrand::Rng,
    /// Keyed by due time, then by order of entry.
    held: BTreeMap<(Duration, u64), T>,
    entries: u64,
    /// When the last item not held back for reordering is due: jitter does not overtake it.
    last_due: Duration,
    /// When the narrow pipe has sent everything it has taken.
    pipe_free_at: Duration,
    dropped: u64,
}

impl<T: Clone> ConditionedQueue<T> {
    /// More than half a minute of datagrams at 60 Hz, each way.
    pub const MAX_HELD: usize = 4_096;

    /// An empty queue. `stream` tells apart queues of the same seed: the directions of a link, or
    /// the links of a server.
    pub fn new(conditions: LinkConditions, stream: u64) -> Self {
        // Spread neighbouring streams over the seed space (the constant is 2^64 / golden ratio).
        let seed = conditions.seed ^ stream.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            conditions,
            rng: fastrand::Rng::with_seed(seed),
            held: BTreeMap::new(),
            entries: 0,
            last_due: Duration::ZERO,
            pipe_free_at: Duration::ZERO,
            dropped: 0,
        }
    }

    /// Changes the weather from now on. What is under way keeps its time, and the dice are not
    /// reset: the new seed is ignored.
    pub fn set_conditions(&mut self, conditions: LinkConditions) {
        self.conditions = conditions;
    }

    /// How many items did not survive so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many items are under way.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Sends an item of `bytes` on its way.
    pub fn push(&mut self, now: Duration, bytes: usize, item: T) {
        // Roll all dice for every item, so that one setting does not change what another does.
        let lost = self.rng.f32() < self.conditions.loss;
        let duplicated = self.rng.f32() < self.conditions.duplication;
        let rolls = [self.roll(), self.roll()];

        let Some(through_pipe_at) = self.pass_pipe(now, bytes).filter(|_| !lost) else {
            self.dropped += 1;
            return;
        };
        if duplicated {
            self.hold(through_pipe_at, rolls[1], item.clone());
        }
        self.hold(through_pipe_at, rolls[0], item);
    }

    /// The next item that is due.
    pub fn pop_due(&mut self, now: Duration) -> Option<T> {
        let entry = self.held.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// The next item that is due, and since when.
    pub fn pop_with_time(&mut self, now: Duration) -> Option<(Duration, T)> {
        let at = self.next_due()?;
        self.pop_due(now).map(|item| (at, item))
    }

    /// When the next item is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.held.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next item, due or not.
    pub fn pop_any(&mut self) -> Option<T> {
        self.held.pop_first().map(|(_, item)| item)
    }

    /// When an item that enters the pipe now has left it; `None` if the pipe's buffer is full.
    fn pass_pipe(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Some(rate) = self.conditions.rate_bytes_per_s else {
            return Some(now);
        };
        let start = self.pipe_free_at.max(now);
        if start - now > self.conditions.rate_queue {
            return None;
        }
        self.pipe_free_at = start + Duration::from_secs_f64(bytes as f64 / f64::from(rate.max(1)));
        Some(self.pipe_free_at)
    }

    /// Jitter from -1 to 1, and whether to hold the item back.
    fn roll(&mut self) -> (f64, bool) {
        (
            self.rng.f64() * 2.0 - 1.0,
            self.rng.f32() < self.conditions.reordering,
        )
    }

    fn hold(&mut self, sent_at: Duration, (jitter, reordered): (f64, bool), item: T) {
        if self.held.len() >= Self::MAX_HELD {
            self.dropped += 1;
            return;
        }
        let varied = self.conditions.jitter.mul_f64(jitter.abs());
        let delay = match jitter < 0.0 {
            true => self.conditions.latency.saturating_sub(varied),
            false => self.conditions.latency + varied,
        };
        let due = (sent_at + delay).max(self.last_due);
        let due = match reordered {
            true => due + self.conditions.reordering_delay,
            false => {
                self.last_due = due;
                due
            }
        };
        self.held.insert((due, self.entries), item);
        self.entries += 1;
    }
}

/// One direction of a wire: what [`LinkConditions`] do to datagrams, and noise.
///
/// For what lies below a transport. Above it, where [`Conditioned`] works, noise is unheard of: damaged datagrams do not
/// get through encryption.
#[derive(Clone, Debug)]
pub struct Wire {
    queue: ConditionedQueue<Vec<u8>>,
    corruption: f32,
    noise: fastrand::Rng,
}

impl Wire {
    /// A quiet wire. `corruption` is the share of datagrams in which a bit is flipped, 0 to 1; `stream` tells apart wires
    /// of the same seed.
    pub fn new(conditions: LinkConditions, corruption: f32, stream: u64) -> Self {
        let noise = fastrand::Rng::with_seed(!conditions.seed ^ stream.rotate_left(32));
        Self {
            queue: ConditionedQueue::new(conditions, stream),
            corruption,
            noise,
        }
    }

    /// Sends a datagram on its way. Of two copies, both or none are damaged.
    pub fn push(&mut self, now: Duration, mut datagram: Vec<u8>) {
        let (is_hit, byte, bit) = (
            self.noise.f32() < self.corruption,
            self.noise.f64(),
            self.noise.u8(..8),
        );
        let byte = (byte * datagram.len() as f64) as usize;
        if let Some(byte) = datagram.get_mut(byte).filter(|_| is_hit) {
            *byte ^= 1 << bit;
        }
        self.queue.push(now, datagram.len(), datagram);
    }

    /// The next datagram that is due.
    pub fn pop_due(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.queue.pop_due(now)
    }

    /// When the next datagram is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.next_due()
    }

    /// How many datagrams were lost so far.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }
}

/// A client's transport on a bad network, both ways.
///
/// Held-back datagrams move on when `receive` or `flush` is called, so times are rounded up to
/// the next frame.
#[derive(Debug)]
pub struct Conditioned<T> {
    inner: T,
    incoming: ConditionedQueue<Vec<u8>>,
    outgoing: ConditionedQueue<Vec<u8>>,
    arrived: Vec<Arrival>,
    /// The time of the last call that gave it.
    now: Duration,
}

impl<T: ClientTransport> Conditioned<T> {
    /// Puts `inner` on a network with these conditions.
    pub fn new(inner: T, conditions: LinkConditions) -> Self {
        let conditions = conditions.over(inner.delivery());
        Self {
            inner,
            incoming: ConditionedQueue::new(conditions.clone(), 0),
            outgoing: ConditionedQueue::new(conditions, 1),
            arrived: Vec::new(),
            now: Duration::ZERO,
        }
    }

    /// Changes the weather, from now on and both ways.
    pub fn set_conditions(&mut self, conditions: LinkConditions) {
        let conditions = conditions.over(self.inner.delivery());
        self.incoming.set_conditions(conditions.clone());
        self.outgoing.set_conditions(conditions);
    }

    /// The transport inside.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    fn release(&mut self, now: Duration) {
        self.now = now;
        let clock = self.inner.clock(now);
        while let Some(datagram) = self.outgoing.pop_due(clock) {
            self.inner.send(now, &datagram);
        }
    }
}

impl<T: ClientTransport> ClientTransport for Conditioned<T> {
    fn state(&self) -> &ClientLinkState {
        self.inner.state()
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let mut arrivals = Vec::new();
        self.receive_timed(now, &mut arrivals);
        datagrams.extend(arrivals.into_iter().map(|arrival| arrival.bytes));
    }

    fn receive_timed(&mut self, now: Duration, datagrams: &mut Vec<Arrival>) {
        self.inner.receive_timed(now, &mut self.arrived);
        for Arrival { at, bytes } in self.arrived.drain(..) {
            self.incoming.push(at, bytes.len(), bytes);
        }
        let clock = self.inner.clock(now);
        while let Some((at, bytes)) = self.incoming.pop_with_time(clock) {
            datagrams.push(Arrival { at, bytes });
        }
        // A closed link has no later: hand over what is under way now rather than never.
        if self.inner.state().close_reason().is_some() {
            while let Some(bytes) = self.incoming.pop_any() {
                datagrams.push(Arrival { at: clock, bytes });
            }
        }
        self.release(now);
    }

    fn clock(&self, now: Duration) -> Duration {
        self.inner.clock(now)
    }

    fn send(&mut self, now: Duration, datagram: &[u8]) {
        let now = self.inner.clock(now);
        self.outgoing.push(now, datagram.len(), datagram.to_vec());
    }

    fn flush(&mut self, now: Duration) {
        self.release(now);
        self.inner.flush(now);
    }

    fn kind(&self) -> TransportKind {
        self.inner.kind()
    }

    fn delivery(&self) -> Delivery {
        self.inner.delivery()
    }

    fn is_congested(&self) -> bool {
        self.inner.is_congested()
    }

    fn vanish(&mut self) {
        self.inner.vanish();
    }

    fn close(&mut self) {
        while let Some(datagram) = self.outgoing.pop_any() {
            self.inner.send(self.now, &datagram);
        }
        self.inner.close();
    }

    fn stats(&self) -> TransportStats {
        self.inner.stats()
    }
}

/// A server's transport on a bad network, both ways, each link with dice of its own.
///
/// Held-back datagrams move on when `receive` or `flush` is called, so times are rounded up to
/// the next frame.
#[derive(Debug)]
pub struct ConditionedServer<T> {
    inner: T,
    conditions: LinkConditions,
    links: HashMap<LinkId, LinkQueues>,
    /// The order of opening. Walking this rather than the map keeps runs repeatable.
    order: VecDeque<LinkId>,
    arrived: Vec<LinkEvent>,
    /// The time of the last call that gave it.
    now: Duration,
}

#[derive(Debug)]
struct LinkQueues {
    incoming: ConditionedQueue<Vec<u8>>,
    outgoing: ConditionedQueue<Vec<u8>>,
}

impl<T: ServerTransport> ConditionedServer<T> {
    /// Puts `inner` on a network with these conditions.
    pub fn new(inner: T, conditions: LinkConditions) -> Self {
        Self {
            inner,
            conditions,
            links: HashMap::new(),
            order: VecDeque::new(),
            arrived: Vec::new(),
            now: Duration::ZERO,
        }
    }

    /// Changes the weather for all links, from now on and both ways.
    pub fn set_conditions(&mut self, conditions: LinkConditions) {
        for queues in self.links.values_mut() {
            queues.incoming.set_conditions(conditions.clone());
            queues.outgoing.set_conditions(conditions.clone());
        }
        self.conditions = conditions;
    }

    /// Changes the weather for one link. Nothing happens if it is gone.
    pub fn set_link_conditions(&mut self, link: LinkId, conditions: LinkConditions) {
        if let Some(queues) = self.links.get_mut(&link) {
            queues.incoming.set_conditions(conditions.clone());
            queues.outgoing.set_conditions(conditions);
        }
    }

    /// The transport inside.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    fn release(&mut self, now: Duration) {
        self.now = now;
        let clock = self.inner.clock(now);
        for link in &self.order {
            let Some(queues) = self.links.get_mut(link) else {
                continue;
            };
            while let Some(datagram) = queues.outgoing.pop_due(clock) {
                self.inner.send(now, *link, &datagram);
            }
        }
    }
}

impl<T: ServerTransport> ServerTransport for ConditionedServer<T> {
    fn receive(&mut self, now: Duration, events: &mut Vec<LinkEvent>) {
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inner.receive(now, &mut arrived);
        let clock = self.inner.clock(now);
        for event in arrived.drain(..) {
            match event {
                LinkEvent::Opened { link, ref peer } => {
                    let conditions = self.conditions.clone().over(peer.delivery);
                    // Two streams a link, after the wrapper's own counting.
                    let stream = link.0.wrapping_mul(2);
                    let queues = LinkQueues {
                        incoming: ConditionedQueue::new(conditions.clone(), stream),
                        outgoing: ConditionedQueue::new(conditions, stream + 1),
                    };
                    self.links.insert(link, queues);
                    self.order.push_back(link);
                    events.push(event);
                }
                LinkEvent::Datagram { link, at, bytes } => {
                    if let Some(queues) = self.links.get_mut(&link) {
                        queues.incoming.push(at, bytes.len(), bytes);
                    }
                }
                LinkEvent::Closed { link, .. } => {
                    // A closed link has no later: hand over what is under way now.
                    if let Some(mut queues) = self.links.remove(&link) {
                        while let Some(bytes) = queues.incoming.pop_any() {
                            events.push(LinkEvent::Datagram {
                                link,
                                at: clock,
                                bytes,
                            });
                        }
                    }
                    self.order.retain(|other| *other != link);
                    events.push(event);
                }
            }
        }
        self.arrived = arrived;

        for link in &self.order {
            let Some(queues) = self.links.get_mut(link) else {
                continue;
            };
            while let Some((at, bytes)) = queues.incoming.pop_with_time(clock) {
                events.push(LinkEvent::Datagram {
                    link: *link,
                    at,
                    bytes,
                });
            }
        }
        self.release(now);
    }

    fn clock(&self, now: Duration) -> Duration {
        self.inner.clock(now)
    }

    fn send(&mut self, now: Duration, link: LinkId, datagram: &[u8]) {
        let clock = self.inner.clock(now);
        match self.links.get_mut(&link) {
            Some(queues) => queues
                .outgoing
                .push(clock, datagram.len(), datagram.to_vec()),
            // Let the transport count it.
            None => self.inner.send(now, link, datagram),
        }
    }

    fn flush(&mut self, now: Duration) {
        self.release(now);
        self.inner.flush(now);
    }

    fn close(&mut self, link: LinkId) {
        if let Some(queues) = self.links.get_mut(&link) {
            while let Some(datagram) = queues.outgoing.pop_any() {
                self.inner.send(self.now, link, &datagram);
            }
        }
        self.inner.close(link);
    }

    fn is_congested(&self, link: LinkId) -> bool {
        self.inner.is_congested(link)
    }

    fn queued_bytes(&self, link: LinkId) -> usize {
        self.inner.queued_bytes(link)
    }

    fn set_pace(&mut self, link: LinkId, pace: LinkPace) {
        self.inner.set_pace(link, pace);
    }

    fn kind(&self) -> TransportKind {
        self.inner.kind()
    }

    fn stop_accepting(&mut self) {
        self.inner.stop_accepting();
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.local_addr()
    }

    fn stats(&self) -> TransportStats {
        self.inner.stats()
    }

    fn shutdown(&mut self) {
        self.inner.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{LocalClient, LocalServer};

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sends `count` numbered items, one each millisecond, and tells when each arrived.
    fn run(conditions: LinkConditions, count: u64) -> Vec<(Duration, u64)> {
        let mut queue = ConditionedQueue::new(conditions, 0);
        let mut arrived = Vec::new();
        for t in 0..count + 2_000 {
            if t < count {
                queue.push(ms(t), 100, t);
            }
            while let Some(item) = queue.pop_due(ms(t)) {
                arrived.push((ms(t), item));
            }
        }
        assert!(queue.is_empty(), "nothing is under way for ever");
        arrived
    }

    #[test]
    fn perfect_conditions_deliver_everything_at_once_and_in_order() {
        let arrived = run(LinkConditions::default(), 500);
        assert_eq!(
            arrived,
            (0..500).map(|t| (ms(t), t)).collect::<Vec<_>>(),
            "no delay, no loss, in order"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_network() {
        let awful = || LinkConditions::awful().with_seed(7);
        assert_eq!(
            run(awful(), 1_000),
            run(awful(), 1_000),
            "a run can be repeated"
        );
        assert_ne!(
            run(awful(), 1_000),
            run(awful().with_seed(8), 1_000),
            "another seed, another run"
        );
    }

    #[test]
    fn streams_of_one_seed_roll_their_own_dice() {
        let arrivals = |stream| {
            let mut queue = ConditionedQueue::new(
                LinkConditions {
                    loss: 0.5,
                    ..Default::default()
                },
                stream,
            );
            (0..64).for_each(|n| queue.push(Duration::ZERO, 1, n));
            std::iter::from_fn(|| queue.pop_due(Duration::ZERO)).collect::<Vec<u32>>()
        };
        assert_ne!(
            arrivals(0),
            arrivals(1),
            "the directions of a link lose different datagrams"
        );
    }

    #[test]
    fn items_due_together_keep_their_order() {
        let mut queue = ConditionedQueue::new(
            LinkConditions {
                latency: ms(50),
                ..Default::default()
            },
            0,
        );
        (0..100).for_each(|n| queue.push(Duration::ZERO, 1, n));
        assert_eq!(queue.pop_due(ms(49)), None, "not before they are due");
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop_due(ms(50))).collect();
        assert_eq!(popped, (0..100).collect::<Vec<_>>(), "first in, first out");
    }

    #[test]
    fn shares_of_loss_and_duplication_come_out_as_set() {
        let conditions = LinkConditions {
            loss: 0.2,
            duplication: 0.1,
            ..Default::default()
        };
        let arrived = run(conditions, 20_000);
        let twice = arrived
            .windows(2)
            .filter(|pair| pair[0].1 == pair[1].1)
            .count() as f64;
        let once = arrived.len() as f64 - twice;
        assert!(
            (once / 20_000.0 - 0.8).abs() < 0.01,
            "a fifth is lost, not {}",
            1.0 - once / 20_000.0
        );
        assert!(
            (twice / once - 0.1).abs() < 0.01,
            "a tenth of the rest is doubled, not {}",
            twice / once
        );
    }

    #[test]
    fn jitter_spreads_delays_without_reordering() {
        let arrived = run(
            LinkConditions {
                latency: ms(50),
                jitter: ms(20),
                ..Default::default()
            },
            5_000,
        );
        assert!(
            arrived.windows(2).all(|pair| pair[0].1 < pair[1].1),
            "in order"
        );
        let delays = || arrived.iter().map(|(at, sent)| *at - ms(*sent));
        assert!(
            delays().all(|delay| delay >= ms(30) && delay <= ms(71)),
            "within the jitter"
        );
        assert!(
            delays().max() > delays().min().map(|min| min + ms(15)),
            "delays vary"
        );
    }

    #[test]
    fn reordering_lets_later_items_overtake() {
        let conditions = LinkConditions {
            reordering: 0.1,
            ..Default::default()
        };
        let arrived = run(conditions, 10_000);
        let late = arrived.iter().filter(|(at, sent)| *at > ms(*sent)).count();
        assert!(
            (900..1_100).contains(&late),
            "a tenth is held back, not {late}"
        );
        assert!(
            arrived.iter().all(|(at, sent)| *at - ms(*sent) <= ms(30)),
            "by no more than asked"
        );
    }

    #[test]
    fn a_narrow_pipe_delays_and_then_drops() {
        let conditions = LinkConditions {
            rate_bytes_per_s: Some(10_000),
            ..Default::default()
        };
        let mut queue = ConditionedQueue::new(conditions, 0);
        // 100 kB within a moment: 250 ms of it fit the buffer.
        (0..1_000).for_each(|n| queue.push(Duration::ZERO, 100, n));
        let delivered = std::iter::from_fn(|| queue.pop_due(SECOND)).count();
        assert!(
            (25..=27).contains(&delivered),
            "2.5 kB pass, and the one in the pipe; not {delivered}"
        );
        assert_eq!(
            queue.dropped(),
            1_000 - delivered as u64,
            "the rest is counted"
        );

        queue.push(SECOND, 100, 0);
        assert_eq!(queue.pop_due(SECOND + ms(9)), None, "100 bytes take 10 ms");
        assert_eq!(queue.pop_due(SECOND + ms(10)), Some(0), "and then arrive");
    }

    #[test]
    fn the_network_can_break_and_heal() {
        let mut queue = ConditionedQueue::new(LinkConditions::lan(), 0);
        queue.push(Duration::ZERO, 1, "before");
        queue.set_conditions(LinkConditions::blackhole());
        queue.push(Duration::ZERO, 1, "during");
        queue.set_conditions(LinkConditions::lan());
        queue.push(ms(1), 1, "after");
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop_due(SECOND)).collect();
        assert_eq!(
            popped,
            ["before", "after"],
            "only what was sent into the blackhole is lost"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut queue = ConditionedQueue::new(
            LinkConditions {
                latency: SECOND,
                ..Default::default()
            },
            0,
        );
        (0..100_000).for_each(|n| queue.push(Duration::ZERO, 1, n));
        assert_eq!(
            queue.len(),
            ConditionedQueue::<u32>::MAX_HELD,
            "holds so many and no more"
        );
    }

    fn pair() -> (LocalServer, LocalClient) {
        let server = LocalServer::new();
        let client = server.connector().connect();
        (server, client)
    }

    /// Steps both ends by a millisecond at a time. Each sends a datagram at 100 ms. Tells when
    /// datagrams arrived at the client, and what happened when at the server.
    fn exchange(
        server: &mut impl ServerTransport,
        client: &mut impl ClientTransport,
        until: u64,
    ) -> (Vec<u64>, Vec<(u64, LinkEvent)>) {
        let (mut at_client, mut at_server) = (Vec::new(), Vec::new());
        let mut link = None;
        for now in 1..=until {
            let (mut events, mut datagrams) = (Vec::new(), Vec::new());
            server.receive(ms(now), &mut events);
            client.receive(ms(now), &mut datagrams);
            if let Some(LinkEvent::Opened { link: opened, .. }) = events.first() {
                link = Some(*opened);
            }
            if now == 100 {
                client.send(ms(now), b"up");
                server.send(ms(now), link.expect("open by now"), b"down");
            }
            client.flush(ms(now));
            server.flush(ms(now));
            at_client.extend(datagrams.iter().map(|_| now));
            at_server.extend(events.into_iter().map(|event| (now, event)));
        }
        (at_client, at_server)
    }

    fn datagram_times(events: &[(u64, LinkEvent)]) -> Vec<u64> {
        let datagrams = events
            .iter()
            .filter(|(_, event)| matches!(event, LinkEvent::Datagram { .. }));
        datagrams.map(|(at, _)| *at).collect()
    }

    #[test]
    fn a_conditioned_client_is_slow_both_ways() {
        let (mut server, client) = pair();
        let conditions = LinkConditions {
            latency: ms(40),
            ..Default::default()
        };
        let mut client = Conditioned::new(client, conditions);
        let (at_client, at_server) = exchange(&mut server, &mut client, 300);
        // Sent at 100; the local link takes a step more.
        assert_eq!(at_client, [141], "down");
        assert_eq!(datagram_times(&at_server), [141], "up");
    }

    #[test]
    fn a_conditioned_server_is_slow_both_ways() {
        let (server, mut client) = pair();
        let conditions = LinkConditions {
            latency: ms(40),
            ..Default::default()
        };
        let mut server = ConditionedServer::new(server, conditions);
        let (at_client, at_server) = exchange(&mut server, &mut client, 300);
        assert_eq!(at_client, [140], "down");
        assert_eq!(datagram_times(&at_server), [141], "up");
        assert!(
            matches!(at_server[0].1, LinkEvent::Opened { .. }),
            "opening comes first"
        );
    }

    #[test]
    fn a_noisy_wire_flips_one_bit_of_the_share_that_it_is_told() {
        let mut wire = Wire::new(LinkConditions::default(), 0.1, 0);
        let mut damaged = 0;
        for n in 0..10_000 {
            wire.push(ms(n), vec![0; 40]);
            let arrived = wire.pop_due(ms(n)).expect("nothing is lost");
            let flipped: u32 = arrived.iter().map(|byte| byte.count_ones()).sum();
            assert!(flipped <= 1 && arrived.len() == 40);
            damaged += flipped;
        }
        assert!((900..1_100).contains(&damaged), "{damaged} of 10,000");
        wire.push(ms(10_000), Vec::new());
        let arrived = wire.pop_due(ms(10_000));
        assert_eq!(arrived, Some(Vec::new()), "no byte, no bit");
    }

    #[test]
    fn what_is_under_way_arrives_before_the_end() {
        let (server, mut client) = pair();
        let mut server = ConditionedServer::new(
            server,
            LinkConditions {
                latency: SECOND,
                ..Default::default()
            },
        );
        let (_, at_server) = exchange(&mut server, &mut client, 110);
        assert!(datagram_times(&at_server).is_empty(), "still under way");
        client.close();
        let mut events = Vec::new();
        server.receive(ms(120), &mut events);
        assert!(
            matches!(
                &events[..],
                [LinkEvent::Datagram { .. }, LinkEvent::Closed { .. }]
            ),
            "a closed link has no later: {events:?}"
        );
    }
}
