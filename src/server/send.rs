//! From the archive to datagrams: one snapshot for each session, at the send rate.
//!
//! Snapshots follow the tick, and liveness follows real time. A server whose game stands still (`Time<Virtual>` is paused,
//! or runs slowly) has no ticks to tell of, but messages, acknowledgements and signs of life go out as often as ever.
//! Clients are told that the tick [stands still](ChunkKind::Standstill), and stand still with it.
//!
//! What the game changes meanwhile (it despawns something, moves a player to another room, lets one in) must be told all
//! the same, and a snapshot can be told from another only by its tick. So such a change takes a tick of its own, in which
//! nothing is simulated: [`CurrentTick`] goes on by one for each snapshot that somebody needs, and stays where it is when
//! everybody has everything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;

use super::ServerConfig;
use super::adapt::Pacing;
use super::collect::Replication;
use super::farewell;
use super::inputs::SessionInputs;
use super::links::{Link, LinkStats, Links, SessionMail};
use crate::link::peer::{CONTROL_CHANNEL, ChunkKind, Peer};
use crate::protocol::archive::{Archive, PartitionId};
use crate::protocol::handshake::Control;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::snapshot::InputReport;
use crate::protocol::view::{ApartValue, BlockCache, Encoded, Lack, SnapshotBudget, View};
use crate::schedule::{CurrentTick, TandemSystems};
use crate::tick::{Tick, Ticks};
use crate::transport::SharedBytes;
use crate::wire::bits::BitWriter;
use crate::wire::serial;

/// Sends snapshots.
#[derive(Clone, Default)]
pub struct SendPlugin {
    /// The server's settings.
    pub config: ServerConfig,
}

impl Plugin for SendPlugin {
    fn build(&self, app: &mut App) {
        let interval = (self.config.tick_rate_hz / self.config.send_rate_hz)
            .round()
            .max(1.0);
        let tick = Duration::from_secs_f64(1.0 / self.config.tick_rate_hz);
        app.insert_resource(SendSchedule::new(
            Ticks(interval as u32),
            tick,
            self.config.max_snapshot_bytes,
        ))
        .add_systems(PostUpdate, begin_round.before(TandemSystems::Collect))
        .add_systems(
            PostUpdate,
            (
                settle_tick,
                measure_links,
                farewell::say,
                send_datagrams,
                forget_what_all_know,
                end_round,
            )
                .chain()
                .in_set(TandemSystems::Send)
                .run_if(is_round),
        );
    }
}

/// When something is sent.
#[derive(Resource)]
pub(super) struct SendSchedule {
    interval: Ticks,
    /// The same in real time.
    period: Duration,
    /// Without a tick for so long, the game stands still. More than any server's frame.
    still_after: Duration,
    max_snapshot_bytes: usize,
    /// The tick of the newest snapshots.
    last: Option<Tick>,
    /// When something was last sent.
    last_at: Duration,
    /// The newest tick that was seen, and when the game came to it.
    tick: Tick,
    tick_at: Duration,
    round: Round,
    /// The newest round that there was.
    last_round: Round,
    owes_snapshot: AtomicBool,
}

/// What a frame ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Nothing is due.
    None,
    /// The tick's snapshots.
    Snapshots,
    /// No snapshot was due for a while: messages, acknowledgements and a sign of life.
    Beat,
    /// The same while the game stands still, with snapshots for those who lack something.
    Standstill,
}

/// Without a tick for this long, the game stands still; on a server with long ticks, for three of them.
const STILL_AFTER: Duration = Duration::from_millis(100);

impl SendSchedule {
    fn new(interval: Ticks, tick: Duration, max_snapshot_bytes: usize) -> Self {
        Self {
            interval,
            period: tick * interval.0,
            still_after: STILL_AFTER.max(tick * 3),
            max_snapshot_bytes,
            last: None,
            last_at: Duration::ZERO,
            tick: Tick(0),
            tick_at: Duration::ZERO,
            round: Round::None,
            last_round: Round::None,
            owes_snapshot: AtomicBool::new(false),
        }
    }

    /// The tick of the next snapshot, at the earliest.
    pub fn next_snapshot(&self, now: Tick) -> Tick {
        match self.last {
            // It has left already.
            Some(last) if !now.is_newer_than(last) => last + Ticks(1),
            _ => now,
        }
    }

    /// Clients wait for the [next snapshot](Self::next_snapshot), so there has to be one while the game stands still, too.
    pub fn owe_snapshot(&self) {
        self.owes_snapshot.store(true, Ordering::Relaxed);
    }

    fn owes_snapshot(&self) -> bool {
        self.owes_snapshot.load(Ordering::Relaxed)
    }

    /// What is due in the frame at `now`.
    fn plan(&mut self, now: Duration, tick: Tick) -> Round {
        if tick != self.tick {
            self.tick = tick;
            self.tick_at = now;
        }
        let is_next = |last| tick.distance_from(last) >= self.interval.0.cast_signed();
        if self.last.is_none_or(is_next) {
            return Round::Snapshots;
        }
        // Ticks are uneven when frames are: the first time, they get twice as long.
        let patience = match self.last_round {
            Round::Snapshots | Round::None => self.period * 2,
            Round::Beat | Round::Standstill => self.period,
        };
        if now.saturating_sub(self.last_at) < patience {
            Round::None
        } else if now.saturating_sub(self.tick_at) < self.still_after {
            Round::Beat
        } else {
            Round::Standstill
        }
    }
}

/// Plans what this frame ends with. While the game stands still, what has changed is collected for the tick after this
/// one, which [`settle_tick`] takes back if nobody needs it.
fn begin_round(
    mut schedule: ResMut<SendSchedule>,
    mut tick: ResMut<CurrentTick>,
    time: Res<Time<Real>>,
) {
    schedule.round = schedule.plan(time.elapsed(), tick.0);
    if schedule.round == Round::Standstill {
        tick.bypass_change_detection().0 += Ticks(1);
    }
}

/// Run condition: what has changed is collected in this frame, for snapshots.
pub(super) fn is_send_tick(schedule: Res<SendSchedule>) -> bool {
    matches!(schedule.round, Round::Snapshots | Round::Standstill)
}

/// Run condition: something is sent in this frame.
fn is_round(schedule: Res<SendSchedule>) -> bool {
    schedule.round != Round::None
}

/// While the game stands still: goes on to the next tick if a client lacks something, and else stays.
fn settle_tick(
    mut tick: ResMut<CurrentTick>,
    views: Query<(&Link, &Outgoing, &LinkStats)>,
    schedule: Res<SendSchedule>,
    replication: Res<Replication>,
    time: Res<Time<Real>>,
) {
    if schedule.round != Round::Standstill {
        return;
    }
    let now = time.elapsed();
    let needs_snapshot = views.iter().any(|(link, outgoing, stats)| {
        !stats.is_congested
            && link.is_listening(now)
            && outgoing.is_due_in_standstill(&replication.archive, stats, now, schedule.period)
    });
    match needs_snapshot || schedule.owes_snapshot() {
        true => tick.set_changed(),
        false => tick.bypass_change_detection().0 = tick.0 - Ticks(1),
    }
}

fn end_round(mut schedule: ResMut<SendSchedule>, tick: Res<CurrentTick>, time: Res<Time<Real>>) {
    schedule.last_round = schedule.round;
    schedule.last_at = time.elapsed();
    if schedule.round != Round::Beat {
        schedule.last = Some(tick.0);
        *schedule.owes_snapshot.get_mut() = false;
        // That it was counted on in a standstill does not mean that the game goes on.
        schedule.tick = tick.0;
    }
}

/// What a session is told.
#[derive(Component)]
pub(super) struct Outgoing {
    pub view: View,
    /// When the client was last told everything.
    pub told_all: Duration,
    /// When it was last sent a snapshot.
    told_at: Duration,
    /// Snapshots in a row, while the game stands still, that have not brought the client further.
    fruitless: u32,
    /// What it knew when the last of these was sent.
    known: Tick,
    /// With a slower pace than others: what of the next snapshot is due.
    due: f32,
}

/// A client that lacks something while the game stands still, and does not take it, is told less and less often: up to
/// 32 times the usual interval apart.
const MAX_DOUBLINGS: u32 = 5;

impl Outgoing {
    pub fn new(tick: Tick, now: Duration) -> Self {
        Self {
            view: View::new(tick),
            told_all: now,
            told_at: Duration::ZERO,
            fruitless: 0,
            known: tick,
            due: 0.0,
        }
    }

    /// Whether it is worth a tick of its own to tell this client something.
    fn is_due_in_standstill(
        &self,
        archive: &Archive,
        stats: &LinkStats,
        now: Duration,
        period: Duration,
    ) -> bool {
        let wait = match self.view.lack(archive) {
            Lack::Nothing => return false,
            Lack::News => period,
            Lack::Acknowledgement => stats.rtt + 4 * stats.jitter + period,
        };
        let doublings = self.fruitless.min(MAX_DOUBLINGS);
        now.saturating_sub(self.told_at) >= wait * (1 << doublings)
    }

    fn note_told(&mut self, now: Duration, encoded: Encoded) {
        let has_moved = self.view.baseline() != self.known && encoded.oversized.is_none();
        self.fruitless = match has_moved {
            true => 0,
            false => self.fruitless.saturating_add(1),
        };
        self.known = self.view.baseline();
        self.told_at = now;
    }

    /// Whether a snapshot goes out in this round.
    fn gets_snapshot(
        &mut self,
        schedule: &SendSchedule,
        archive: &Archive,
        stats: &LinkStats,
        pacing: Option<&Pacing>,
        now: Duration,
    ) -> bool {
        match schedule.round {
            Round::Snapshots => self.is_due(pacing),
            Round::Standstill => {
                schedule.owes_snapshot()
                    || self.is_due_in_standstill(archive, stats, now, schedule.period)
            }
            Round::Beat | Round::None => false,
        }
    }

    /// With a slower pace than others: whether this snapshot is one that it gets.
    fn is_due(&mut self, pacing: Option<&Pacing>) -> bool {
        let Some(pacing) = pacing else { return true };
        self.due += pacing.rate;
        let is_due = self.due >= 0.999;
        if is_due {
            self.due -= 1.0;
        }
        is_due
    }
}

impl Link {
    /// A client of which nothing was heard for a second (a browser tab in the background, say, or a dead link) is not
    /// sent everything that happens, only something now and then.
    fn is_listening(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_heard) < QUIET_AFTER
            || now.saturating_sub(self.last_sent) >= QUIET_INTERVAL
    }
}

const QUIET_AFTER: Duration = Duration::from_secs(1);
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// What encoding snapshots needs, for all sessions together.
#[derive(Default)]
struct Scratch {
    cache: BlockCache,
    snapshot: BitWriter,
    apart: Vec<ApartValue>,
    large: LargeValues,
    /// Entities of which the log has said that they do not fit.
    reported: HashSet<NetId>,
}

fn send_datagrams(
    mut sessions: Query<(
        &mut Link,
        &mut Outgoing,
        &mut SessionMail,
        &SessionInputs,
        &LinkStats,
        Option<&Pacing>,
    )>,
    mut links: ResMut<Links>,
    replication: Res<Replication>,
    schedule: Res<SendSchedule>,
    tick: Res<CurrentTick>,
    time: Res<Time<Real>>,
    fixed: Res<Time<Fixed>>,
    mut scratch: Local<Scratch>,
) {
    let now = time.elapsed();
    scratch.cache.clear();
    scratch.large.0.clear();
    for (mut link, mut outgoing, mut mail, inputs, stats, pacing) in &mut sessions {
        // What waits at a congested link would be outdated when it is read: the next snapshot will be newer.
        if stats.is_congested || !link.is_listening(now) {
            continue;
        }
        let archive = &replication.archive;
        let gets_snapshot = outgoing.gets_snapshot(&schedule, archive, stats, pacing, now);
        if schedule.round == Round::Snapshots && !gets_snapshot {
            continue;
        }
        let Link {
            id,
            peer,
            last_sent,
            bytes_out,
            ..
        } = &mut *link;
        *last_sent = now;
        let mut to = links.over(now, *id);
        mail.0.pump_link(peer, stats.queued_bytes);
        let seq = peer.begin(now, stats.queued_bytes, &mut to);
        mail.0.tell_taken(peer, seq);
        if schedule.round == Round::Standstill {
            peer.chunk(ChunkKind::Standstill, &tick.0.0.to_le_bytes());
        }
        if gets_snapshot {
            let budget = budget_for(&schedule, stats, pacing, fixed.timestep(), peer.room());
            let encoded = scratch.encode(&mut outgoing, &replication, tick.0, seq, inputs, budget);
            outgoing.note_told(now, encoded);
            peer.chunk(ChunkKind::Snapshot, scratch.snapshot.finish());
        }
        peer.finish(&mut to);
        *bytes_out += to.sent;
        let Scratch { apart, large, .. } = &mut *scratch;
        for value in apart.drain(..) {
            send_apart(peer, &mut outgoing.view, &value, large, tick.0);
        }
    }
    links.flush(now);
}

/// How large a session's snapshot may be, and how long to wait before something is told again.
fn budget_for(
    schedule: &SendSchedule,
    stats: &LinkStats,
    pacing: Option<&Pacing>,
    tick: Duration,
    room: usize,
) -> SnapshotBudget {
    let (mut interval, mut max_bytes) = (schedule.interval, schedule.max_snapshot_bytes);
    if let Some(pacing) = pacing {
        interval = Ticks((interval.0 as f32 / pacing.rate).ceil() as u32);
        max_bytes = (max_bytes as f32 * pacing.budget) as usize;
    }
    SnapshotBudget {
        max_bytes: max_bytes.min(room),
        resend_after: match schedule.round {
            // Ticks say nothing of time then.
            Round::Standstill => Ticks(1),
            _ => resend_after(stats, tick, interval),
        },
    }
}

impl Scratch {
    /// Writes a session's snapshot.
    fn encode(
        &mut self,
        outgoing: &mut Outgoing,
        replication: &Replication,
        tick: Tick,
        seq: u16,
        inputs: &SessionInputs,
        budget: SnapshotBudget,
    ) -> Encoded {
        let report = inputs.buffer.newest().map(|newest| InputReport {
            newest,
            margin: inputs.buffer.margin(),
            late: (inputs.buffer.counts().late % 16) as u8,
        });
        self.snapshot.clear();
        let encoded = outgoing.view.encode(
            &replication.archive,
            tick,
            seq,
            report,
            budget,
            &mut self.cache,
            &mut self.snapshot,
            &mut self.apart,
        );
        if let Some(net) = encoded.oversized
            && let Some(entity) = replication.entity(net)
            && self.reported.len() < MAX_REPORTED
            && self.reported.insert(net)
        {
            warn!(
                "{entity} does not fit a snapshot of {} bytes and is not sent: quantize it to fewer fields",
                budget.max_bytes
            );
        }
        encoded
    }
}

/// Entities of which the log says that they do not fit. Those beyond it are as many again, and no news.
const MAX_REPORTED: usize = 64;

/// The messages with large values of one frame: encoded once, whoever many get them.
#[derive(Default)]
struct LargeValues(HashMap<(NetId, ComponentId, u32), SharedBytes>);

impl LargeValues {
    /// `None` if the value cannot be encoded.
    fn letter(&mut self, value: &ApartValue) -> Option<&SharedBytes> {
        let key = (value.net, value.component, value.version);
        if !self.0.contains_key(&key) {
            let control = Control::Value {
                net: value.net.index(),
                generation: value.net.generation(),
                component: value.component.0,
                version: value.version,
                bytes: value.bytes.clone(),
            };
            let mut bytes = Vec::with_capacity(value.bytes.len() + 32);
            serial::encode(&control, &mut bytes).ok()?;
            self.0.insert(key, SharedBytes::new(bytes));
        }
        self.0.get(&key)
    }
}

/// Sends a value that is too large for a snapshot.
fn send_apart(
    peer: &mut Peer,
    view: &mut View,
    value: &ApartValue,
    large: &mut LargeValues,
    tick: Tick,
) {
    let is_sent = large
        .letter(value)
        .is_some_and(|letter| peer.send_message(CONTROL_CHANNEL, letter));
    if !is_sent {
        // The channel is full, or the value above what one message may have.
        warn_once!(
            "a component of {} bytes could not be sent and is tried again",
            value.bytes.len()
        );
        view.handle_unsent(value, tick);
    }
}

/// A round trip with its deviation, and the time the client needs to answer.
fn resend_after(stats: &LinkStats, tick: Duration, interval: Ticks) -> Ticks {
    let round_trip = stats.rtt + 4 * stats.jitter;
    Ticks((round_trip.as_secs_f64() / tick.as_secs_f64()).ceil() as u32 + interval.0 + 1)
}

/// Lets go of history, tombstones and ids that no client needs any more.
fn forget_what_all_know(
    mut views: Query<&mut Outgoing>,
    mut replication: ResMut<Replication>,
    tick: Res<CurrentTick>,
    time: Res<Time<Real>>,
    mut oldest: Local<HashMap<PartitionId, Tick>>,
) {
    oldest.clear();
    let mut known_everywhere = tick.0;
    for mut outgoing in &mut views {
        // Who reads but never answers must not make the server remember for ever.
        if outgoing.view.is_left_behind(&replication.archive, tick.0) {
            outgoing.told_all = time.elapsed();
            outgoing.view.start_over(&replication.archive, tick.0);
        }
        let baseline = outgoing.view.baseline();
        known_everywhere = known_everywhere.earliest(outgoing.view.forgotten_before());
        for &partition in outgoing.view.partitions() {
            let entry = oldest.entry(partition).or_insert(baseline);
            *entry = entry.earliest(baseline);
        }
    }
    let archive = &mut replication.archive;
    archive.forget(|partition| oldest.get(&partition).copied().unwrap_or(tick.0));
    archive.reclaim(known_everywhere);
}

fn measure_links(mut sessions: Query<(&Link, &mut LinkStats)>, mut links: ResMut<Links>) {
    for (link, mut stats) in &mut sessions {
        let acks = &link.peer.acks;
        stats.rtt = acks.rtt().unwrap_or_default();
        stats.jitter = acks.jitter().unwrap_or_default();
        stats.loss = acks.loss_ratio();
        if let Some(transport) = links.transport(link.id) {
            stats.is_congested = transport.is_congested(link.id);
            stats.queued_bytes = transport.queued_bytes(link.id);
        }
    }
}
