//! Many real clients in one process, each an app of its own, stepped on one paced loop.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::headless::Pace;
use bevy_tandem::headless::report::ClientsReport;
use bevy_tandem::histogram::Histogram;
use bevy_tandem::prelude::*;

use crate::brain::BrainPlugin;
use crate::game;

/// A frame of each client. As long as a tick, as on a common screen.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);
/// Clients are spread over the frame in so many groups: on real networks they would not act in the same instant.
const SLOTS: usize = 16;
/// Clients that start in each slot, so that 100 of them have joined after half a second.
const STARTS_PER_SLOT: usize = 1;
/// Measurements of the connection are taken this often, and not before a client has settled.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const SETTLING: Duration = Duration::from_secs(2);

const NAMES: [&str; 24] = [
    "Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Hedy", "Claude", "Radia", "Ken",
    "Margaret", "Dennis", "Frances", "Niklaus", "Adele", "Tony", "Lynn", "John", "Karen", "Leslie",
    "Mary", "Robin", "Sophie", "Vint",
];

/// How a crowd plays.
#[derive(Clone, Debug)]
pub struct CrowdPlan {
    pub server: SocketAddr,
    pub count: usize,
    pub seed: u64,
    pub still: bool,
    /// Of each client's link, in both directions.
    pub conditions: LinkConditions,
}

/// Clients without persons or windows.
pub struct Crowd {
    clients: Vec<Client>,
    started: usize,
    started_at: Instant,
    rtt_ms: Histogram,
    interpolation_delay_ms: Histogram,
}

struct Client {
    app: App,
    connected_at: Option<Instant>,
    next_sample_at: Instant,
}

/// Connections this client lost, or failed to make.
#[derive(Resource, Default)]
struct Losses(u64);

impl Crowd {
    pub fn new(plan: &CrowdPlan) -> Self {
        let started_at = Instant::now();
        let clients = (0..plan.count).map(|index| Client {
            app: client(plan, index),
            connected_at: None,
            next_sample_at: started_at,
        });
        Self {
            clients: clients.collect(),
            started: 0,
            started_at,
            rtt_ms: Histogram::default(),
            interpolation_delay_ms: Histogram::default(),
        }
    }

    /// Plays until `done` says so, asked once a frame.
    pub fn play_until(&mut self, mut done: impl FnMut(Duration) -> bool) {
        self.started_at = Instant::now();
        let mut pace = Pace::new(self.started_at, FRAME / SLOTS as u32);
        for slot in (0..SLOTS).cycle() {
            if slot == 0 && done(self.started_at.elapsed()) {
                return;
            }
            self.started = (self.started + STARTS_PER_SLOT).min(self.clients.len());
            self.step_slot(slot);
            if let Some(sleep) = pace.close_tick(Instant::now()) {
                thread::sleep(sleep);
            }
        }
    }

    /// Disconnects, and sees to it that the server hears of it.
    pub fn leave(&mut self) {
        for client in &mut self.clients {
            client.app.world_mut().trigger(Disconnect);
        }
        for _ in 0..5 {
            self.clients
                .iter_mut()
                .for_each(|client| client.app.update());
            thread::sleep(FRAME);
        }
    }

    /// Sums up what the clients saw so far.
    pub fn report(&self) -> ClientsReport {
        let now = Instant::now();
        let mut report = ClientsReport {
            requested: self.clients.len() as u64,
            seconds: self.started_at.elapsed().as_secs_f64(),
            rtt_ms: (&self.rtt_ms).into(),
            interpolation_delay_ms: (&self.interpolation_delay_ms).into(),
            ..default()
        };
        let mut sum = ClientStats::default();
        let mut client_seconds = 0.0;
        for client in &self.clients {
            let Some(connected_at) = client.connected_at else {
                continue;
            };
            let stats = client.app.world().resource::<ClientStats>();
            report.connected += 1;
            report.disconnects += client.app.world().resource::<Losses>().0;
            client_seconds += (now - connected_at).as_secs_f64();
            sum.transport.bytes_in += stats.transport.bytes_in;
            sum.transport.bytes_out += stats.transport.bytes_out;
            sum.transport.datagrams_in += stats.transport.datagrams_in;
            sum.transport.datagrams_out += stats.transport.datagrams_out;
            sum.snapshots += stats.snapshots;
            sum.frames += stats.frames;
            sum.starved_frames += stats.starved_frames;
            sum.reconciliations += stats.reconciliations;
            sum.snaps += stats.snaps;
            sum.inputs_sent += stats.inputs_sent;
            sum.inputs_late += stats.inputs_late;
            sum.prediction_error.merge(&stats.prediction_error);
        }
        let per_client_s = |total: u64| total as f64 / client_seconds.max(1e-9);
        let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        report.bytes_down_per_client_s = per_client_s(sum.transport.bytes_in);
        report.bytes_up_per_client_s = per_client_s(sum.transport.bytes_out);
        report.datagrams_down_per_client_s = per_client_s(sum.transport.datagrams_in);
        report.datagrams_up_per_client_s = per_client_s(sum.transport.datagrams_out);
        report.snapshots_per_client_s = per_client_s(sum.snapshots);
        report.reconciliations_per_client_s = per_client_s(sum.reconciliations);
        report.prediction_error = (&sum.prediction_error).into();
        report.snaps = sum.snaps;
        report.interpolation_starved_ratio = ratio(sum.starved_frames, sum.frames);
        report.inputs_late_ratio = ratio(sum.inputs_late, sum.inputs_sent);
        report
    }

    fn step_slot(&mut self, slot: usize) {
        let started = &mut self.clients[..self.started];
        for client in started.iter_mut().skip(slot).step_by(SLOTS) {
            client.app.update();
            client.note_connection();
            let now = Instant::now();
            let is_settled = client.connected_at.is_some_and(|at| now - at > SETTLING);
            if is_settled && now >= client.next_sample_at {
                client.next_sample_at = now + SAMPLE_EVERY;
                let stats = client.app.world().resource::<ClientStats>();
                self.rtt_ms.record(stats.rtt.as_secs_f64() * 1e3);
                self.interpolation_delay_ms
                    .record(stats.interpolation_delay.as_secs_f64() * 1e3);
            }
        }
    }
}

impl Client {
    fn note_connection(&mut self) {
        let connection = self.app.world().resource::<Connection>();
        if connection.state() == ConnectionState::Connected {
            self.connected_at.get_or_insert_with(Instant::now);
        }
    }
}

fn client(plan: &CrowdPlan, index: usize) -> App {
    let name = match NAMES.get(index) {
        Some(name) => (*name).to_string(),
        None => format!("{} {}", NAMES[index % NAMES.len()], index / NAMES.len() + 1),
    };
    let seed = plan.seed.wrapping_add(index as u64);
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemClientPlugins::connect(&plan.server.to_string())
            .named(name)
            .conditioned(LinkConditions {
                seed,
                ..plan.conditions.clone()
            }),
        game::game,
        BrainPlugin {
            seed,
            still: plan.still,
        },
    ))
    .init_resource::<Losses>()
    .add_observer(mourn);
    app.finish();
    app.cleanup();
    app
}

/// Says why a connection ended, unless this side ended it.
fn mourn(disconnected: On<Disconnected>, mut losses: ResMut<Losses>) {
    if disconnected.reason != DisconnectReason::ClientLeft {
        losses.0 += 1;
        eprintln!("a bot was disconnected: {}", disconnected.reason);
    }
}
