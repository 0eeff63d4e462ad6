//! Peers that do not read, or send more than they may.

use super::raw::Raw;
use super::*;

/// One slow reader, and one healthy client beside it.
struct Slow {
    net: Net,
    raw: Raw,
    slow: LinkId,
    healthy: (usize, LinkId),
    /// The most that waited for the slow one.
    most_queued: usize,
}

impl Slow {
    fn new(config: WsServerConfig) -> Self {
        let mut net = Net::new(config);
        let healthy = net.joined(net.client_config());
        let raw = Raw::open(net.addr(), "");
        net.until("the link opens", |net| net.opened().len() == 2);
        let slow = net.opened()[1].0;
        Self {
            net,
            raw,
            slow,
            healthy,
            most_queued: 0,
        }
    }

    /// A frame in which everyone gets a state, unless what they were sent before still waits.
    fn step(&mut self) {
        let mut state = vec![0; 4_096];
        fastrand::Rng::with_seed(1).fill(&mut state);
        for link in [self.slow, self.healthy.1] {
            if !self.net.server.is_congested(link) {
                self.net.send(link, &state);
            }
        }
        self.net.step();
        let queued = self.net.server.queued_bytes(self.slow);
        self.most_queued = self.most_queued.max(queued);
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "{what}");
            self.step();
        }
    }
}

#[test]
fn a_slow_reader_is_congested_and_recovers() {
    let mut slow = Slow::new(WsServerConfig {
        drop_congested_after: None,
        ..config()
    });
    // At first the system's buffers fill.
    let mut congested = 0;
    slow.until("it is congested, and stays so", |slow| {
        congested = if slow.net.server.is_congested(slow.slow) {
            congested + 1
        } else {
            0
        };
        congested == 200
    });
    assert!(
        slow.most_queued <= 80 << 10,
        "nothing more is queued: {}",
        slow.most_queued
    );
    let (client, link) = slow.healthy;
    let before = slow.net.datagrams[client].len();
    assert!(!slow.net.server.is_congested(link), "others are not");
    slow.until("others go on", |slow| {
        slow.net.datagrams[client].len() > before + 20
    });

    // Now it reads.
    slow.raw.set_patience(Duration::from_millis(5));
    let mut scrap = vec![0; 1 << 16];
    slow.until("it recovers", |slow| {
        let _ = std::io::Read::read(&mut slow.raw.0, &mut scrap);
        !slow.net.server.is_congested(slow.slow)
    });
    assert!(slow.net.closed(slow.slow).is_none());
}

#[test]
fn a_reader_that_stays_slow_is_dropped_with_that_reason() {
    let mut slow = Slow::new(WsServerConfig {
        drop_congested_after: Some(Duration::from_millis(300)),
        ..config()
    });
    let link = slow.slow;
    slow.until("it is dropped", |slow| slow.net.closed(link).is_some());
    assert_eq!(slow.net.closed(link), Some(CloseReason::Congested));
    assert_eq!(slow.net.server.queued_bytes(link), 0, "nothing is kept");
    assert!(slow.net.closed(slow.healthy.1).is_none(), "the other lives");
}

#[test]
fn a_queue_that_is_full_ends_the_link() {
    let mut slow = Slow::new(WsServerConfig {
        drop_congested_after: None,
        ..config()
    });
    let link = slow.slow;
    let end = Instant::now() + PATIENCE;
    while slow.net.closed(link).is_none() {
        assert!(Instant::now() < end, "it is closed");
        // An app that does not ask.
        slow.net.send(link, &[9; 5_000]);
        slow.step();
    }
    assert_eq!(slow.net.closed(link), Some(CloseReason::Congested));
    assert!(slow.most_queued <= 128 << 10, "{}", slow.most_queued);
    assert!(slow.net.server.stats().rejected.outbox_full >= 1);
}

#[test]
fn a_client_that_sends_too_much_is_read_more_slowly_and_loses_nothing() {
    let mut net = Net::new(WsServerConfig {
        max_datagrams_per_s: 1_000,
        ..config()
    });
    let (client, link) = net.joined(net.client_config());
    for number in 0..1_500_u32 {
        let now = net.now();
        net.clients[client].send(now, &number.to_le_bytes());
        if number % 10 == 0 {
            net.clients[client].flush(now);
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    net.until("all arrive", |net| net.received(link).len() == 1_500);
    let numbers: Vec<_> = (0..1_500_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    assert_eq!(net.received(link), numbers, "in order");
    assert!(
        net.server.stats().rejected.over_budget >= 1,
        "but not at once"
    );
    assert!(net.closed(link).is_none());
}

#[test]
fn an_app_that_does_not_look_makes_clients_wait() {
    let mut net = Net::new(WsServerConfig {
        inbox_datagrams: 16,
        ..config()
    });
    let (client, link) = net.joined(net.client_config());
    for number in 0..300_u32 {
        let now = net.now();
        net.clients[client].send(now, &number.to_le_bytes());
        net.clients[client].flush(now);
        std::thread::sleep(Duration::from_millis(1));
    }
    let end = Instant::now() + PATIENCE;
    while net.server.stats().rejected.inbox_full == 0 {
        assert!(Instant::now() < end, "reading stops");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(net.server.stats().datagrams_in < 300, "it has not read on");
    net.until("all arrive", |net| net.received(link).len() == 300);
}

#[test]
fn a_client_whose_queue_is_full_ends_its_link() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(net.client_config());
    let now = net.now();
    for _ in 0..300 {
        net.clients[client].send(now, &[3; 1_000]);
    }
    assert_eq!(net.reason(client), Some(CloseReason::Overflow));
    net.until("the server hears of it", |net| net.closed(link).is_some());
    assert!(net.received(link).is_empty(), "half of a state is none");
}
