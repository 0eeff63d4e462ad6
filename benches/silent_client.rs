//! One client reads for an hour and never acknowledges, beside ten healthy ones, while 100 entities a second go and 100
//! come: what the server remembers for it, and what it costs the others.
//!
//!     cargo bench --bench silent_client
//!
//! `-- --minutes 5` shortens the hour. The server is the plain protocol core, driven as its plugin does it: snapshots at
//! 30 Hz, one a second for who is silent. Memory is counted, not measured; it must be the same in every tenth of the hour.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bevy_tandem::protocol::archive::{Archive, PartitionId};
use bevy_tandem::protocol::layout::{ComponentId, Layout, Layouts, Meta, NetId};
use bevy_tandem::protocol::view::{BlockCache, SnapshotBudget, View};
use bevy_tandem::tick::{Tick, Ticks};
use bevy_tandem::wire::bits::BitWriter;
use bevy_tandem::wire::quantize::Field;

const HEALTHY: usize = 10;
const ENTITIES: usize = 1_000;
const MOVING: usize = 50;
const TICKS_PER_SECOND: u32 = 60;
const SEND_INTERVAL: u32 = 2;
/// Snapshots that are on their way before they are acknowledged.
const IN_FLIGHT: usize = 4;
const PLACE: ComponentId = ComponentId(0);
const NAME: ComponentId = ComponentId(1);

struct Client {
    view: View,
    in_flight: VecDeque<u16>,
    is_silent: bool,
}

struct Server {
    archive: Archive,
    entities: VecDeque<NetId>,
    clients: Vec<Client>,
    tick: Tick,
    seq: u16,
    starts_over: bool,
    times_over: u32,
    spent_on_healthy: Duration,
}

impl Server {
    fn new(has_silent: bool, starts_over: bool) -> Self {
        let fields = vec![Field::linear(16); 3];
        let layouts = Layouts::new([Layout::Words(fields.into()), Layout::Bytes]);
        let archive = Archive::new(layouts);
        let clients = (0..HEALTHY + usize::from(has_silent))
            .map(|index| {
                let mut view = View::new(Tick(0));
                view.set_partitions(&archive, Tick(0), &[PartitionId::GLOBAL]);
                Client {
                    view,
                    in_flight: VecDeque::new(),
                    is_silent: index == HEALTHY,
                }
            })
            .collect();
        let mut server = Self {
            archive,
            entities: VecDeque::new(),
            clients,
            tick: Tick(0),
            seq: 0,
            starts_over,
            times_over: 0,
            spent_on_healthy: Duration::ZERO,
        };
        for _ in 0..ENTITIES {
            server.spawn();
        }
        server
    }

    fn spawn(&mut self) {
        let net = self
            .archive
            .spawn(self.tick, PartitionId::GLOBAL, Meta::default(), 1.0);
        self.archive.set_words(self.tick, net, PLACE, &[1, 2, 3]);
        self.archive.set_bytes(self.tick, net, NAME, b"a crate");
        self.entities.push_back(net);
    }

    fn step(&mut self) {
        self.tick += Ticks(1);
        // 5 in 3 ticks are 100 a second.
        let leaving = [2, 2, 1][self.tick.0 as usize % 3];
        for _ in 0..leaving {
            if let Some(net) = self.entities.pop_front() {
                self.archive.despawn(self.tick, net);
            }
            self.spawn();
        }
        let words = [self.tick.0 & 0xffff, 7, (self.tick.0 / 3) & 0xffff];
        for index in 0..MOVING {
            let net = self.entities[ENTITIES / 2 + index];
            self.archive.set_words(self.tick, net, PLACE, &words);
        }
        if self.tick.0.is_multiple_of(SEND_INTERVAL) {
            self.send();
            self.forget();
        }
    }

    fn send(&mut self) {
        let mut cache = BlockCache::default();
        let (mut out, mut apart) = (BitWriter::new(), Vec::new());
        let budget = SnapshotBudget {
            max_bytes: 1_100,
            resend_after: Ticks(10),
        };
        self.seq = self.seq.wrapping_add(1);
        for client in &mut self.clients {
            if client.is_silent && !self.tick.0.is_multiple_of(TICKS_PER_SECOND) {
                continue;
            }
            let began = Instant::now();
            out.clear();
            client.view.encode(
                &self.archive,
                self.tick,
                self.seq,
                None,
                budget,
                &mut cache,
                &mut out,
                &mut apart,
            );
            if client.is_silent {
                continue;
            }
            client.in_flight.push_back(self.seq);
            if client.in_flight.len() > IN_FLIGHT
                && let Some(seq) = client.in_flight.pop_front()
            {
                client.view.handle_ack(seq);
            }
            self.spent_on_healthy += began.elapsed();
        }
    }

    fn forget(&mut self) {
        let mut oldest = self.tick;
        let mut known_everywhere = self.tick;
        for client in &mut self.clients {
            if self.starts_over && client.view.is_left_behind(&self.archive, self.tick) {
                client.view.start_over(&self.archive, self.tick);
                self.times_over += 1;
            }
            oldest = oldest.earliest(client.view.baseline());
            known_everywhere = known_everywhere.earliest(client.view.forgotten_before());
        }
        self.archive.forget(|_| oldest);
        self.archive.reclaim(known_everywhere);
    }

    /// The largest of each over some time.
    fn run(&mut self, seconds: u32) -> Figures {
        let mut most = Figures::default();
        self.spent_on_healthy = Duration::ZERO;
        for _ in 0..seconds * TICKS_PER_SECOND {
            self.step();
            if self.tick.0.is_multiple_of(10) {
                most.retired = most.retired.max(self.archive.retired());
                most.tombstones = most.tombstones.max(self.archive.tombstones());
                most.values = most.values.max(self.archive.remembered_values());
                let exceptions = self.clients.iter().map(|it| it.view.exceptions());
                most.exceptions = most.exceptions.max(exceptions.sum());
            }
        }
        let sends = seconds * TICKS_PER_SECOND / SEND_INTERVAL * HEALTHY as u32;
        most.per_snapshot = self.spent_on_healthy / sends;
        most
    }
}

#[derive(Default)]
struct Figures {
    retired: usize,
    tombstones: usize,
    values: usize,
    exceptions: usize,
    per_snapshot: Duration,
}

impl Figures {
    fn print(&self, when: &str) {
        println!(
            "{when:>12} {:>10} {:>10} {:>10} {:>10} {:>9.2} µs",
            self.retired,
            self.tombstones,
            self.values,
            self.exceptions,
            self.per_snapshot.as_secs_f64() * 1e6
        );
    }
}

fn head(title: &str) {
    println!("\n{title}");
    println!(
        "{:>12} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "", "ids wait", "tombstones", "values", "exceptions", "per snapshot"
    );
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let minutes = args
        .iter()
        .position(|arg| arg == "--minutes")
        .and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(60u32);
    let tenth = minutes * 6;

    head("ten healthy clients");
    let mut healthy = Server::new(false, true);
    healthy.run(10);
    healthy.run(tenth).print("a tenth");

    head("and a silent one that never starts over, as before");
    let mut unbounded = Server::new(true, false);
    unbounded.run(10);
    for part in 1..=3 {
        unbounded.run(tenth / 3).print(&format!("{part}/30"));
    }

    head("and a silent one that starts over");
    let mut bounded = Server::new(true, true);
    bounded.run(10);
    let all: Vec<_> = (1..=10)
        .map(|part| {
            let figures = bounded.run(tenth);
            figures.print(&format!("{part}/10"));
            figures
        })
        .collect();
    println!("it started over {} times", bounded.times_over);
    let (first, last) = (&all[0], &all[9]);
    let is_flat = |first: usize, last: usize| last <= first + first / 10 + 16;
    assert!(is_flat(first.retired, last.retired), "ids pile up");
    assert!(is_flat(first.tombstones, last.tombstones), "tombstones do");
    assert!(is_flat(first.values, last.values), "values do");
    assert!(is_flat(first.exceptions, last.exceptions), "exceptions do");
}
