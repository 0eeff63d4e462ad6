//! What a correction costs a client: a whole frame of its app, with and without ticks to replay.
//!
//!     cargo bench --bench reconcile
//!
//! A server and a client app over links of three latencies, a snapshot in every frame. In `corrected` the server
//! pushes every entity in every tick, which the client cannot foresee: each snapshot corrects what it mentions (of
//! 1,000 entities, as many as fit) and replays all ticks since. The clock keeps a lead of about three ticks, so that
//! fewer than four are never replayed.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;
use divan::Bencher;
use serde::{Deserialize, Serialize};

fn main() {
    divan::main();
}

#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Height(f32);

/// What the server does and clients do not know of.
#[derive(Resource)]
struct Push(f32);

fn game(app: &mut App) {
    app.replicate::<Height>()
        .quantize(bevy_tandem::wire::quantize::map(
            FloatCodec::new(-500.0, 500.0, 1.0),
            |height: &Height| height.0,
            Height,
        ))
        .predict();
    app.add_systems(FixedUpdate, fall);
}

fn fall(mut things: Query<&mut Height, With<Simulated>>, push: Option<Res<Push>>) {
    let push = push.map_or(0.0, |push| push.0);
    for mut height in &mut things {
        height.0 = (height.0 + push) % 400.0;
    }
}

/// How many entities are predicted, and how far.
#[derive(Clone, Copy)]
struct Case {
    entities: u32,
    /// About how many ticks the client is ahead of the snapshots that it gets.
    ticks: u32,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:>4} entities, {:>2} ticks", self.entities, self.ticks)
    }
}

fn cases() -> Vec<Case> {
    let ticks = |entities| [4, 10, 30].map(|ticks| Case { entities, ticks });
    [1, 100, 1_000].map(ticks).concat()
}

fn frame(bencher: Bencher, case: Case, push: f32) {
    // The lead that the clock keeps is about three ticks; the rest is the way there and back.
    let latency = Duration::from_secs_f64(f64::from(case.ticks - 3) / 60.0 / 2.0);
    let conditions = LinkConditions {
        latency,
        ..default()
    };
    let config = ServerConfig {
        send_rate_hz: 60.0,
        ..default()
    };
    let mut net = TestNet::with_config(game, conditions, config);
    net.server.insert_resource(Push(push));
    for _ in 0..case.entities {
        net.server
            .world_mut()
            .spawn((Replicated, PredictedBy::Everyone, Height(0.0)));
    }
    let client = net.join("ada");
    net.run(Ticks(400));
    let stats = |net: &mut TestNet| net.client(client).world().resource::<ClientStats>().clone();
    let before = stats(&mut net);
    let net = RefCell::new(net);
    bencher
        .with_inputs(|| net.borrow_mut().server.update())
        .bench_local_values(|()| net.borrow_mut().client(client).update());
    let after = stats(&mut net.borrow_mut());
    let corrections = after.reconciliations - before.reconciliations;
    if push == 0.0 {
        assert_eq!(corrections, 0, "nothing is corrected without reason");
    } else {
        let replayed = (after.replayed_ticks - before.replayed_ticks) as f64 / corrections as f64;
        let off = (replayed - f64::from(case.ticks)).abs();
        assert!(off < 2.0, "{case:?}, but {replayed:.1} are replayed");
    }
}

#[divan::bench(args = cases(), sample_count = 300, sample_size = 1)]
fn corrected(bencher: Bencher, case: Case) {
    frame(bencher, case, 5.0);
}

#[divan::bench(args = cases(), sample_count = 300, sample_size = 1)]
fn foreseen(bencher: Bencher, case: Case) {
    frame(bencher, case, 0.0);
}
