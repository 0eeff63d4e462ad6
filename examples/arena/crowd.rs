//! Many real clients in one process, each an app of its own, stepped on one paced loop.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::client::{Connector, ResumeFinished, ResumeOutcome};
use bevy_tandem::headless::Pace;
use bevy_tandem::headless::report::ClientsReport;
use bevy_tandem::histogram::Histogram;
use bevy_tandem::prelude::*;
use bevy_tandem::transport::udp::token::{self, TokenBuilder};
use bevy_tandem::transport::udp::{ClientAuth, UdpClient, UdpClientConfig};
use bevy_tandem::transport::ws::{WsAuth, WsClient, WsClientConfig};
use bevy_tandem::transport::{ClientTransport, Conditioned, TransportKind};
use fastrand::Rng;

use crate::args;
use crate::brain::BrainPlugin;
use crate::game;
use crate::ledger::{self, Ledger, LedgerPlugin, Ships};

/// A frame of each client. As long as a tick, as on a common screen.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);
/// Clients are spread over the frame in so many groups: on real networks they would not act in the same instant.
const SLOTS: usize = 16;
/// Clients that start in each slot, so that 100 of them have joined after half a second.
const STARTS_PER_SLOT: usize = 1;
/// Measurements of the connection are taken this often, and not before a client has settled.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const SETTLING: Duration = Duration::from_secs(2);
/// No link is cut in this last part of a run, so that all have time to come back.
const CALM: Duration = Duration::from_secs(5);
/// For one attempt to join, and more.
const TOKEN_LIFE: Duration = Duration::from_secs(300);
/// How soon who could not get in tries again, as a player would who is told that nobody answers.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

const NAMES: [&str; 24] = [
    "Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Hedy", "Claude", "Radia", "Ken",
    "Margaret", "Dennis", "Frances", "Niklaus", "Adele", "Tony", "Lynn", "John", "Karen", "Leslie",
    "Mary", "Robin", "Sophie", "Vint",
];

/// How a crowd plays.
#[derive(Clone, Debug)]
pub struct CrowdPlan {
    /// How to reach the server. Clients take turns.
    pub ways: Vec<Way>,
    pub count: usize,
    pub seed: u64,
    pub still: bool,
    /// Of each client's link, in both directions.
    pub conditions: LinkConditions,
    /// How often each client cuts its link and comes back, in a minute.
    pub churn_per_minute: f64,
    /// Makes tokens, where the server asks for them.
    pub back_end: Option<BackEnd>,
}

/// Who says who the players are: here, the crowd itself.
#[derive(Clone, Debug)]
pub struct BackEnd {
    /// Shared with the server.
    pub key: [u8; 32],
    /// What tokens name as the server's address.
    pub server: SocketAddr,
}

/// How to reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Udp(SocketAddr),
    WebSocket {
        url: String,
        /// Trusted beside the usual ones: for servers with a certificate of their own.
        ca: Option<PathBuf>,
    },
}

impl Way {
    fn kind(&self) -> TransportKind {
        match self {
            Self::Udp(_) => TransportKind::Udp,
            Self::WebSocket { .. } => TransportKind::WebSocket,
        }
    }
}

/// Clients without persons or windows.
pub struct Crowd {
    clients: Vec<Client>,
    started: usize,
    started_at: Instant,
    rtt_ms: Histogram,
    interpolation_delay_ms: Histogram,
    refusals: Refusals,
    /// Frames of all clients together.
    frames: u64,
}

struct Client {
    app: App,
    kind: TransportKind,
    entrance: Entrance,
    join: Join,
    stepped_at: Instant,
    connected_at: Option<Instant>,
    next_sample_at: Instant,
    churn: Option<Churn>,
}

/// How far a client is with getting in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Join {
    attempts: u64,
    began_at: Option<Instant>,
    /// When the next attempt is due, after one that has failed.
    again_at: Option<Instant>,
}

impl Join {
    /// Whether an attempt begins now.
    fn begins(&mut self, now: Instant) -> bool {
        let is_first = self.began_at.is_none();
        let is_due = is_first || self.again_at.is_some_and(|at| now >= at);
        if is_due {
            self.began_at.get_or_insert(now);
            self.again_at = None;
            self.attempts += 1;
        }
        is_due
    }

    /// An attempt has failed. What the server says is final; that nobody has answered is not.
    fn fail(&mut self, now: Instant, reason: &DisconnectReason) {
        if reason.is_loss() || *reason == DisconnectReason::ConnectTimedOut {
            self.again_at = Some(now + TRY_AGAIN_AFTER);
        }
    }
}

/// Why clients could not get in, each reason with how often it was heard.
#[derive(Debug, Default)]
struct Refusals(BTreeMap<String, u64>);

impl Refusals {
    /// Whether this reason is new.
    fn add(&mut self, reason: &DisconnectReason) -> bool {
        let count = self.0.entry(reason.to_string()).or_default();
        *count += 1;
        *count == 1
    }
}

/// What became of a client's links.
#[derive(Resource, Default)]
struct Links {
    is_in: bool,
    /// Why the last attempt to get in has failed.
    refused: Option<DisconnectReason>,
    /// Sessions that this client lost.
    disconnects: u64,
    cuts: u64,
    resumed: u64,
    resynced: u64,
    rejected: u64,
    resume_ms: Histogram,
}

impl Crowd {
    pub fn new(plan: &CrowdPlan) -> Self {
        let started_at = Instant::now();
        let clients = (0..plan.count).map(|index| {
            let way = &plan.ways[index % plan.ways.len()];
            let seed = plan.seed.wrapping_add(index as u64);
            Client {
                app: client(plan, index, seed),
                kind: way.kind(),
                entrance: Entrance::new(plan, way, index, seed),
                join: Join::default(),
                stepped_at: started_at,
                connected_at: None,
                next_sample_at: started_at,
                churn: (plan.churn_per_minute > 0.0)
                    .then(|| Churn::new(seed, plan.churn_per_minute)),
            }
        });
        Self {
            clients: clients.collect(),
            started: 0,
            started_at,
            rtt_ms: Histogram::default(),
            interpolation_delay_ms: Histogram::default(),
            refusals: Refusals::default(),
            frames: 0,
        }
    }

    /// Frames of a client in a second, on average. Much less than 60, and the machine is too slow for so many.
    pub fn frame_rate(&self) -> f64 {
        let client_seconds = self.started_at.elapsed().as_secs_f64() * self.clients.len() as f64;
        self.frames as f64 / client_seconds.max(1e-9)
    }

    /// Why clients could not get in, with the number of attempts that ended so.
    pub fn refusals(&self) -> impl Iterator<Item = (&str, u64)> {
        self.refusals
            .0
            .iter()
            .map(|(reason, &count)| (&reason[..], count))
    }

    /// Plays for so long, or until `stop` says so, asked once a frame with the crowd as it is.
    ///
    /// Links are cut, and numbers sent, only until shortly before the end, so that the end finds nothing half done. After
    /// `stop` that takes some seconds at most.
    pub fn play(&mut self, limit: Option<Duration>, mut stop: impl FnMut(&Self) -> bool) {
        self.started_at = Instant::now();
        let mut end = limit;
        let mut is_stopping = false;
        let mut pace = Pace::new(self.started_at, FRAME / SLOTS as u32);
        for slot in (0..SLOTS).cycle() {
            if slot == 0 {
                let elapsed = self.started_at.elapsed();
                if !is_stopping && stop(self) {
                    is_stopping = true;
                    end = Some(
                        end.unwrap_or(Duration::MAX)
                            .min(elapsed + ledger::UNDER_WAY),
                    );
                }
                let left = end.map_or(Duration::MAX, |end| end.saturating_sub(elapsed));
                if left.is_zero() || is_stopping && self.is_settled() {
                    return;
                }
                if left <= CALM {
                    self.clients
                        .iter_mut()
                        .for_each(|client| client.churn = None);
                }
                if left <= ledger::UNDER_WAY {
                    self.close_ledgers();
                }
            }
            self.started = (self.started + STARTS_PER_SLOT).min(self.clients.len());
            self.step_slot(slot);
            if let Some(sleep) = pace.close_tick(Instant::now()) {
                thread::sleep(sleep);
            }
        }
    }

    fn close_ledgers(&mut self) {
        for client in &mut self.clients {
            client.app.world_mut().resource_mut::<Ledger>().is_closed = true;
        }
    }

    /// Whether nothing is under way, and nobody is trying to come back.
    fn is_settled(&self) -> bool {
        self.clients.iter().all(|client| {
            let world = client.app.world();
            let is_away = world.resource::<Connection>().state() == ConnectionState::Reconnecting;
            !is_away && world.resource::<Ledger>().is_settled()
        })
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
        let (mut join_ms, mut resume_ms) = (Histogram::default(), Histogram::default());
        let mut client_seconds = 0.0;
        for client in &self.clients {
            let world = client.app.world();
            let transport = report
                .transports
                .entry(client.kind.to_string())
                .or_default();
            let links = world.resource::<Links>();
            transport.requested += 1;
            report.join_attempts += client.join.attempts;
            let Some(connected_at) = client.connected_at else {
                continue;
            };
            let stats = world.resource::<ClientStats>();
            let ledger = world.resource::<Ledger>();
            client_seconds += (now - connected_at).as_secs_f64();
            if let Some(began_at) = client.join.began_at {
                join_ms.record((connected_at - began_at).as_secs_f64() * 1e3);
            }
            transport.connected += 1;
            transport.disconnects += links.disconnects;
            transport.cuts += links.cuts;
            transport.resumed += links.resumed;
            transport.resynced += links.resynced;
            transport.rejected += links.rejected;
            transport.reliable_lost += ledger.lost(world.resource::<Time<Real>>().elapsed());
            transport.bytes_down += stats.transport.bytes_in;
            transport.bytes_up += stats.transport.bytes_out;
            transport.snapshots += stats.snapshots;
            report.reliable_sent += ledger.sent();
            report.reliable_echoed += ledger.echoed;
            report.reliable_duplicated += ledger.duplicated;
            report.reliable_reordered += ledger.reordered;
            report.respawned += world.resource::<Ships>().respawned;
            resume_ms.merge(&links.resume_ms);
            sum.transport = sum.transport + stats.transport;
            sum.snapshots += stats.snapshots;
            sum.frames += stats.frames;
            sum.starved_frames += stats.starved_frames;
            sum.reconciliations += stats.reconciliations;
            sum.snaps += stats.snaps;
            sum.inputs_sent += stats.inputs_sent;
            sum.inputs_late += stats.inputs_late;
            sum.prediction_error.merge(&stats.prediction_error);
        }
        for transport in report.transports.values() {
            report.connected += transport.connected;
            report.disconnects += transport.disconnects;
            report.cuts += transport.cuts;
            report.resumed += transport.resumed;
            report.resynced += transport.resynced;
            report.rejected += transport.rejected;
            report.reliable_lost += transport.reliable_lost;
        }
        report.join_ms = (&join_ms).into();
        report.resume_ms = (&resume_ms).into();
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
        let started = self.clients[..self.started].iter_mut().enumerate();
        for (index, client) in started {
            // Where there are more clients than this machine can play with, their frames get long. Who is on the way in
            // has little to do and keeps the pace: what is measured is the network, and not the crowd.
            let is_its_slot = index % SLOTS == slot;
            if !is_its_slot && !client.is_late(Instant::now()) {
                continue;
            }
            client.join(Instant::now());
            client.stepped_at = Instant::now();
            client.app.update();
            let now = Instant::now();
            if let Some(reason) = client.note_connection(now)
                && self.refusals.add(&reason)
            {
                args::print_error(format_args!("a bot could not get in: {reason}"));
            }
            self.frames += 1;
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
    /// Whether it is on the way in, for the first time or again, and its last step was a frame ago.
    fn is_late(&self, now: Instant) -> bool {
        let is_joining = match self.app.world().resource::<Connection>().state() {
            ConnectionState::Connecting | ConnectionState::Reconnecting => true,
            ConnectionState::Connected => false,
            _ => self.join.again_at.is_some_and(|at| now >= at),
        };
        is_joining && now.saturating_duration_since(self.stepped_at) >= FRAME
    }

    /// Tries to get in, if it is time to.
    fn join(&mut self, now: Instant) {
        if self.connected_at.is_none() && self.join.begins(now) {
            self.app.connect_with(self.entrance.clone());
        }
    }

    /// Notes whether it is in. Tells why it could not get in, once for each attempt.
    fn note_connection(&mut self, now: Instant) -> Option<DisconnectReason> {
        let world = self.app.world_mut();
        if let Some(reason) = world.resource_mut::<Links>().refused.take() {
            self.join.fail(now, &reason);
            return Some(reason);
        }
        if world.resource::<Connection>().state() != ConnectionState::Connected {
            return None;
        }
        let since = now - *self.connected_at.get_or_insert(now);
        if self.churn.as_mut().is_some_and(|churn| churn.is_due(since)) {
            world.cut_link();
            world.resource_mut::<Links>().cuts += 1;
        }
        None
    }
}

/// When a client cuts its link.
#[derive(Debug)]
struct Churn {
    rng: Rng,
    mean: Duration,
    next: Duration,
}

impl Churn {
    fn new(seed: u64, per_minute: f64) -> Self {
        // Not the sequence by which the same bot moves.
        let mut rng = Rng::with_seed(!seed);
        let mean = Duration::from_secs_f64(60.0 / per_minute);
        // So that they do not all wait for the first cut, as a crowd that has come together would.
        let next = mean.mul_f64(rng.f64());
        Self { rng, mean, next }
    }

    /// Whether a client that has first connected so long ago is to lose its link now. Each cut is due once.
    fn is_due(&mut self, since: Duration) -> bool {
        if since < self.next {
            return false;
        }
        while self.next <= since {
            self.next += self.mean.mul_f64(0.5 + self.rng.f64());
        }
        true
    }
}

fn client(plan: &CrowdPlan, index: usize, seed: u64) -> App {
    let name = match NAMES.get(index) {
        Some(name) => (*name).to_string(),
        None => format!("{} {}", NAMES[index % NAMES.len()], index / NAMES.len() + 1),
    };
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemClientPlugins::default().named(name),
        game::game,
        LedgerPlugin,
        BrainPlugin {
            seed,
            still: plan.still,
        },
    ))
    .init_resource::<Links>()
    .add_observer(note_arrival)
    .add_observer(mourn)
    .add_observer(note_return);
    app.finish();
    app.cleanup();
    app
}

/// How one client opens its links.
#[derive(Clone)]
struct Entrance {
    way: Way,
    index: u64,
    back_end: Option<BackEnd>,
    conditions: LinkConditions,
    settings: ClientConfig,
}

impl Entrance {
    fn new(plan: &CrowdPlan, way: &Way, index: usize, seed: u64) -> Self {
        Self {
            way: way.clone(),
            index: index as u64,
            back_end: plan.back_end.clone(),
            conditions: plan.conditions.clone().with_seed(seed),
            settings: ClientConfig::default(),
        }
    }

    /// The token that the server has given, or, for a new session, one from the back end.
    fn token(&self, given: Option<&[u8]>) -> Result<Option<Vec<u8>>, String> {
        if let Some(given) = given {
            return Ok(Some(given.to_vec()));
        }
        let Some(back_end) = &self.back_end else {
            return Ok(None);
        };
        TokenBuilder::new(self.index, vec![back_end.server])
            .valid_for(TOKEN_LIFE)
            .issue(&back_end.key)
            .map(|token| Some(token::to_bytes(&token)))
            .map_err(|error| error.to_string())
    }

    fn conditioned(&self, link: impl ClientTransport) -> Box<dyn ClientTransport> {
        Box::new(Conditioned::new(link, self.conditions.clone()))
    }
}

impl Connector for Entrance {
    fn connect(&mut self, given: Option<&[u8]>) -> Result<Box<dyn ClientTransport>, String> {
        let token = self.token(given)?;
        match &self.way {
            Way::Udp(server) => {
                let mut config = UdpClientConfig {
                    connect_timeout: self.settings.connect_timeout,
                    timeout: self.settings.timeout,
                    ..UdpClientConfig::insecure(*server)
                };
                if let Some(token) = token {
                    let token = token::from_bytes(&token).map_err(|error| error.to_string())?;
                    config.auth = ClientAuth::Token(Box::new(token));
                }
                let link = UdpClient::connect(config).map_err(|error| error.to_string())?;
                Ok(self.conditioned(link))
            }
            Way::WebSocket { url, ca } => {
                let mut config = WsClientConfig {
                    ca: ca.clone(),
                    connect_timeout: self.settings.connect_timeout,
                    timeout: self.settings.websocket_timeout,
                    ..WsClientConfig::new(url)
                };
                if let Some(token) = token {
                    config.auth = WsAuth::Token(token);
                }
                let link = WsClient::connect(config).map_err(|error| error.to_string())?;
                Ok(self.conditioned(link))
            }
        }
    }
}

fn note_arrival(_: On<Connected>, mut links: ResMut<Links>) {
    links.is_in = true;
}

/// Says why a session ended, unless this side ended it, and notes why one could not begin.
fn mourn(disconnected: On<Disconnected>, mut links: ResMut<Links>) {
    let reason = &disconnected.reason;
    if *reason == DisconnectReason::ClientLeft {
        return;
    }
    if links.is_in {
        links.disconnects += 1;
        args::print_error(format_args!("a bot was disconnected: {reason}"));
    } else {
        links.refused = Some(reason.clone());
    }
}

fn note_return(finished: On<ResumeFinished>, mut links: ResMut<Links>) {
    match finished.outcome {
        ResumeOutcome::Resumed => links.resumed += 1,
        ResumeOutcome::Resynced { .. } => links.resynced += 1,
        ResumeOutcome::Rejected(_) => links.rejected += 1,
    }
    links.resume_ms.record(finished.took.as_secs_f64() * 1e3);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn churn_comes_as_often_as_planned_and_at_other_times_for_each() {
        let cuts = |seed| {
            let mut churn = Churn::new(seed, 6.0);
            (0..60 * 600)
                .filter(|&frame| churn.is_due(FRAME * frame))
                .collect::<Vec<_>>()
        };
        let (ada, grace) = (cuts(1), cuts(2));
        assert!(
            (50..=70).contains(&ada.len()),
            "{} in ten minutes",
            ada.len()
        );
        assert_ne!(ada, grace);
        assert_eq!(ada, cuts(1), "the same again from the same seed");
    }

    #[test]
    fn who_gets_no_answer_tries_again_and_who_is_refused_does_not() {
        let mut join = Join::default();
        let now = Instant::now();
        assert!(join.begins(now), "the first attempt is due at once");
        assert!(!join.begins(now), "and is one");
        join.fail(now, &DisconnectReason::ConnectTimedOut);
        assert!(!join.begins(now), "a player needs a moment");
        assert!(join.begins(now + TRY_AGAIN_AFTER));
        assert_eq!((join.attempts, join.began_at), (2, Some(now)));
        join.fail(
            now,
            &DisconnectReason::GameVersion {
                server: "2".into(),
                client: "1".into(),
            },
        );
        assert!(!join.begins(now + 10 * TRY_AGAIN_AFTER));
    }

    #[test]
    fn each_reason_is_said_once_and_counted_always() {
        let mut refusals = Refusals::default();
        let (full, silent) = (
            DisconnectReason::ServerFull,
            DisconnectReason::ConnectTimedOut,
        );
        let said = [&full, &silent, &full].map(|reason| refusals.add(reason));
        assert_eq!(said, [true, true, false]);
        assert_eq!(refusals.0[&full.to_string()], 2);
    }

    #[test]
    fn a_client_that_was_away_when_a_cut_was_due_makes_up_for_one_only() {
        let mut churn = Churn::new(1, 60.0);
        assert!(churn.is_due(Duration::from_secs(30)));
        assert!(!churn.is_due(Duration::from_secs(30)));
    }
}
