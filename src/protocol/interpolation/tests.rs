use bevy::math::{Vec2, Vec3};

use std::ops::{Add, Mul};
use std::time::Duration;

use super::timeline::WINDOW;
use super::*;
use crate::tick::{Tick, Ticks};

#[derive(Clone, Copy)]
struct Scenario {
    seed: u64,
    latency_ms: f64,
    /// Uniform, to either side, and independent: snapshots overtake each other.
    jitter_ms: f64,
    loss: f64,
    fps: f64,
    drift_ppm: f64,
    send_interval: u32,
    /// When the client's process is suspended, and for how long.
    client_stall: Option<(f64, f64)>,
    /// When the server's process is suspended, and for how long. Its ticks are then missing.
    server_stall: Option<(f64, f64)>,
    /// When the server has nothing to send, and for how long.
    idle: Option<(f64, f64)>,
}

const CLEAN: Scenario = Scenario {
    seed: 0,
    latency_ms: 20.0,
    jitter_ms: 0.0,
    loss: 0.0,
    fps: 60.0,
    drift_ppm: 0.0,
    send_interval: 2,
    client_stall: None,
    server_stall: None,
    idle: None,
};
const ROUGH: Scenario = Scenario {
    latency_ms: 75.0,
    jitter_ms: 20.0,
    loss: 0.05,
    ..CLEAN
};

struct Frame {
    at: f64,
    /// Ticks since the server's first.
    moment: f64,
    /// Truth: which tick the server was at.
    server: f64,
    /// No snapshot at or after the moment had arrived, though the server had something to say.
    starved: bool,
    delay: Duration,
}

struct Outcome {
    frames: Vec<Frame>,
    timeline: Timeline,
}

impl Outcome {
    fn frames(&self, from: f64, to: f64) -> impl Iterator<Item = &Frame> {
        self.frames
            .iter()
            .filter(move |frame| frame.at >= from && frame.at < to)
    }

    fn starved_ratio(&self, from: f64, to: f64) -> f64 {
        self.frames(from, to).filter(|frame| frame.starved).count() as f64
            / self.frames(from, to).count() as f64
    }

    fn mean_delay_ms(&self, from: f64, to: f64) -> f64 {
        self.frames(from, to)
            .map(|frame| frame.delay.as_secs_f64() * 1e3)
            .sum::<f64>()
            / self.frames(from, to).count() as f64
    }

    /// Ticks played per tick of time, over each half second.
    fn rates(&self, from: f64, to: f64) -> Vec<f64> {
        let frames: Vec<_> = self.frames(from, to).collect();
        let mut rates = Vec::new();
        let mut start = 0;
        for (i, frame) in frames.iter().enumerate() {
            if frame.at - frames[start].at >= 0.5 {
                let played = (frame.moment - frames[start].moment) / 60.0;
                rates.push(played / (frame.at - frames[start].at));
                start = i;
            }
        }
        rates
    }
}

const LENGTH: f64 = 60.0;

fn run(scenario: Scenario) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(scenario.seed);
    let settings = TimelineSettings {
        send_interval: Ticks(scenario.send_interval),
        ..Default::default()
    };
    let within = |span: Option<(f64, f64)>, now: f64| {
        span.is_some_and(|(at, length)| now >= at && now < at + length)
    };

    // What the server sends: (sent, arrives, tick, previous).
    let first = Tick(u32::MAX - 900); // wraps after 15 seconds
    let mut sent: Vec<(f64, f64, Tick, Tick)> = Vec::new();
    let mut server_ticks: Vec<f64> = Vec::new();
    let mut tick = first;
    let mut previous = first;
    let mut now = 0.0;
    while now < LENGTH {
        if let Some((at, length)) = scenario
            .server_stall
            .filter(|_| within(scenario.server_stall, now))
        {
            now = at + length;
        }
        server_ticks.push(now);
        let elapsed = tick.distance_from(first) as u32;
        if elapsed.is_multiple_of(scenario.send_interval) && !within(scenario.idle, now) {
            if rng.f64() >= scenario.loss {
                let delay = scenario.latency_ms + scenario.jitter_ms * (rng.f64() * 2.0 - 1.0);
                sent.push((now, now + delay / 1e3, tick, previous));
            }
            previous = tick;
        }
        tick += Ticks(1);
        now += 1.0 / 60.0;
    }
    sent.sort_by(|a, b| a.1.total_cmp(&b.1));

    let mut outcome = Outcome {
        frames: Vec::new(),
        timeline: Timeline::new(settings),
    };
    let mut newest = None;
    let mut arrivals = sent.iter().peekable();
    let mut now = rng.f64() / scenario.fps;
    while now < LENGTH {
        if let Some((at, length)) = scenario
            .client_stall
            .filter(|_| within(scenario.client_stall, now))
        {
            now = at + length;
        }
        let local = Duration::from_secs_f64(50.0 + now * (1.0 + scenario.drift_ppm / 1e6));
        while let Some((_, _, tick, previous)) = arrivals.next_if(|arrival| arrival.1 <= now) {
            outcome.timeline.handle_snapshot(local, *tick, *previous);
            newest = Some(tick.distance_from(first).max(newest.unwrap_or(0)));
        }
        if let (Some(playback), Some(newest)) = (outcome.timeline.advance(local), newest) {
            let moment =
                f64::from(playback.tick.distance_from(first)) + f64::from(playback.fraction);
            outcome.frames.push(Frame {
                at: now,
                moment,
                server: server_ticks.partition_point(|at| *at <= now) as f64,
                starved: moment > f64::from(newest),
                delay: playback.delay,
            });
        }
        now += (0.9 + 0.2 * rng.f64()) / scenario.fps;
    }
    outcome
}

/// Runs a scenario with several seeds and drifts, and returns mean starved ratio and delay.
fn means(name: &str, scenario: Scenario) -> (f64, f64) {
    let runs = 6;
    let (mut starved, mut delay, mut early) = (0.0, 0.0, 0.0);
    for seed in 0..runs {
        let drift_ppm = [-200.0, 0.0, 200.0][seed as usize % 3];
        let outcome = run(Scenario {
            seed,
            drift_ppm,
            ..scenario
        });
        starved += outcome.starved_ratio(2.0, LENGTH) / runs as f64;
        early += outcome.starved_ratio(0.0, 2.0) / runs as f64;
        delay += outcome.mean_delay_ms(2.0, LENGTH) / runs as f64;
        assert_eq!(outcome.timeline.jumps(), 0, "{name}: jumped");
        assert!(
            outcome.frames.is_sorted_by(|a, b| a.moment <= b.moment),
            "{name}: ran backwards"
        );
        for rate in outcome.rates(2.0, LENGTH) {
            assert!((0.94..1.06).contains(&rate), "{name}: ran at {rate}");
        }
        let counted = f64::from(outcome.timeline.starvation().ratio());
        let true_ratio = outcome.starved_ratio(0.0, LENGTH);
        assert!(
            (counted - true_ratio).abs() < 0.003,
            "{name}: counted {counted} starved, but it were {true_ratio}"
        );
    }
    println!(
        "{name}: starved {:.2} %, in the first 2 s {:.2} %, delay {delay:.0} ms",
        starved * 100.0,
        early * 100.0
    );
    (starved, delay)
}

#[test]
fn a_rough_link_rarely_starves() {
    for fps in [20.0, 60.0, 144.0, 240.0] {
        let (starved, delay) = means(&format!("rough at {fps} fps"), Scenario { fps, ..ROUGH });
        assert!(starved <= 0.01, "{fps} fps: {starved} starved");
        let most = if fps < 30.0 { 150.0 } else { 120.0 };
        assert!(delay <= most, "{fps} fps: {delay} ms behind");
    }
}

#[test]
fn a_clean_link_needs_one_send_interval_and_a_frame() {
    for fps in [20.0, 60.0, 144.0, 240.0] {
        let (starved, delay) = means(&format!("clean at {fps} fps"), Scenario { fps, ..CLEAN });
        assert!(starved <= 0.001, "{fps} fps: {starved} starved");
        assert!(
            delay <= 33.4 + 1.1e3 / fps + 5.0,
            "{fps} fps: {delay} ms behind"
        );
    }
}

#[test]
fn other_send_rates_and_links_are_found_out() {
    for (send_interval, most) in [(1, 0.01), (3, 0.01), (6, 0.01)] {
        let (starved, _) = means(
            &format!("rough every {send_interval}"),
            Scenario {
                send_interval,
                ..ROUGH
            },
        );
        assert!(
            starved <= most,
            "every {send_interval} ticks: {starved} starved"
        );
    }
    let awful = Scenario {
        jitter_ms: 60.0,
        loss: 0.15,
        ..ROUGH
    };
    let (starved, delay) = means("75 ± 60 ms, 15 % loss", awful);
    assert!(starved <= 0.015, "{starved} starved");
    assert!(delay <= 250.0, "{delay} ms behind");
}

#[test]
fn a_suspended_client_goes_on_where_it_should_be() {
    let outcome = run(Scenario {
        client_stall: Some((20.0, 5.0)),
        ..ROUGH
    });
    assert_eq!(outcome.timeline.jumps(), 0, "it merely goes on");
    assert!(outcome.starved_ratio(25.0, 35.0) <= 0.02);
    let before = outcome.mean_delay_ms(15.0, 20.0);
    let after = outcome.mean_delay_ms(25.0, 30.0);
    assert!(
        (before - after).abs() < 20.0,
        "{before} ms before it, {after} ms after"
    );
}

#[test]
fn a_suspended_server_is_gone_back_to() {
    for seed in 0..6 {
        let outcome = run(Scenario {
            seed,
            server_stall: Some((20.0, 5.0)),
            ..ROUGH
        });
        assert!(
            outcome.timeline.jumps() <= 2,
            "{} jumps",
            outcome.timeline.jumps()
        );
        assert!(
            outcome.starved_ratio(25.5, 35.0) <= 0.015,
            "starves after it has returned"
        );
        for frame in outcome.frames(25.5, 60.0) {
            let age = (frame.server - frame.moment) / 60.0 * 1e3;
            assert!(
                (75.0..260.0).contains(&age),
                "drawn {age} ms after it happened"
            );
        }
    }
}

#[test]
fn silence_is_not_starvation() {
    for seed in 0..6 {
        let outcome = run(Scenario {
            seed,
            idle: Some((20.0, 3.0)),
            ..ROUGH
        });
        assert_eq!(outcome.timeline.jumps(), 0);
        let ratio = outcome.timeline.starvation().ratio();
        assert!(ratio <= 0.01, "{ratio} counted as starved");
        let before = outcome.mean_delay_ms(15.0, 20.0);
        let after = outcome.mean_delay_ms(23.0, 25.0);
        assert!(
            (before - after).abs() < 15.0,
            "{before} ms before it, {after} ms after"
        );
    }
}

#[test]
fn nonsense_from_a_server_does_not_panic() {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut timeline = Timeline::new(TimelineSettings::default());
    for i in 0..20_000u64 {
        let now = Duration::from_millis(i * rng.u64(1..5));
        timeline.handle_snapshot(now, Tick(rng.u32(..)), Tick(rng.u32(..)));
        let playback = timeline.advance(now).expect("has begun");
        assert!((0.0..1.0).contains(&playback.fraction));
    }
    assert!(timeline.slots.len() <= WINDOW);
}

fn at(tick: u32, fraction: f32, newest: u32) -> Playback {
    Playback {
        tick: Tick(tick),
        fraction,
        starved: false,
        delay: Duration::ZERO,
        newest: Tick(newest),
        max_extrapolation_ticks: 15.0,
    }
}

fn lerp(a: &f32, b: &f32, t: f32) -> f32 {
    a + (b - a) * t
}

#[test]
fn samples_are_blended_in_whatever_order_they_came() {
    let mut buffer = SampleBuffer::new();
    assert_eq!(buffer.sample(&at(0, 0.0, 0)), Sample::Empty);
    buffer.insert(Tick(2), 20.0, None);
    buffer.insert(Tick(u32::MAX - 1), 0.0, None); // four ticks before
    assert_eq!(buffer.sample(&at(0, 0.0, 2)).blend(lerp), Some(10.0));
    assert_eq!(buffer.sample(&at(1, 0.5, 2)).blend(lerp), Some(17.5));
    assert_eq!(buffer.sample(&at(u32::MAX - 5, 0.0, 2)), Sample::Hold(&0.0));
    buffer.insert(Tick(2), 40.0, None);
    assert_eq!(buffer.len(), 2, "the same tick is replaced");
    assert_eq!(buffer.sample(&at(0, 0.0, 2)).blend(lerp), Some(20.0));
}

#[test]
fn whoever_stood_still_starts_late_and_is_not_smeared() {
    let mut buffer = SampleBuffer::new();
    buffer.insert(Tick(100), 0.0, None);
    buffer.insert(Tick(280), 1.0, Some(Tick(278)));
    assert_eq!(buffer.sample(&at(200, 0.0, 280)), Sample::Hold(&0.0));
    assert_eq!(buffer.sample(&at(279, 0.0, 280)).blend(lerp), Some(0.5));
    buffer.insert(Tick(284), 2.0, Some(Tick(3))); // senseless: ignored
    assert_eq!(buffer.sample(&at(282, 0.0, 284)).blend(lerp), Some(1.5));
}

#[test]
fn extrapolation_is_bounded_and_only_for_what_moves() {
    let mut buffer = SampleBuffer::new();
    buffer.insert(Tick(10), 0.0, None);
    assert_eq!(
        buffer.sample(&at(12, 0.0, 10)),
        Sample::Hold(&0.0),
        "one value has no speed"
    );
    buffer.insert(Tick(12), 2.0, None);
    assert_eq!(buffer.sample(&at(13, 0.5, 12)).blend(lerp), Some(3.5));
    assert_eq!(
        buffer.sample(&at(500, 0.0, 12)).blend(lerp),
        Some(17.0),
        "15 ticks at most"
    );
    assert_eq!(
        buffer.sample(&at(13, 0.5, 14)),
        Sample::Hold(&2.0),
        "known to have stopped"
    );
}

#[test]
fn a_teleport_is_a_step() {
    let mut buffer = SampleBuffer::new();
    buffer.insert(Tick(0), 0.0, None);
    buffer.insert(Tick(2), 900.0, None);
    let far = |a: &f32, b: &f32| (a - b).abs() > 100.0;
    assert_eq!(
        buffer.sample(&at(1, 0.9, 2)).snap_if(far),
        Sample::Hold(&0.0)
    );
    assert_eq!(
        buffer.sample(&at(2, 0.0, 2)).snap_if(far),
        Sample::Hold(&900.0)
    );
    assert_eq!(
        buffer.sample(&at(3, 0.0, 2)).snap_if(far),
        Sample::Hold(&900.0)
    );
}

#[test]
fn a_buffer_stays_small() {
    let mut buffer = SampleBuffer::new();
    for tick in 0..1_000 {
        buffer.insert(Tick(tick), tick, None);
    }
    buffer.insert(Tick(3), 3, None); // too old to matter
    assert_eq!(buffer.len(), MAX_SAMPLES);
    assert_eq!(buffer.oldest_tick(), Some(Tick(968)));
    assert_eq!(buffer.newest(), Some((Tick(999), &999)));
    buffer.discard_before(Tick(990));
    assert_eq!(
        buffer.oldest_tick(),
        Some(Tick(989)),
        "one more, for extrapolation"
    );
    buffer.discard_before(Tick(5_000));
    assert_eq!(buffer.len(), 2);
}

#[test]
fn a_hermite_curve_meets_its_ends_with_their_velocities() {
    fn check<V>(p0: V, v0: V, p1: V, v1: V, length: impl Fn(V) -> f32)
    where
        V: Copy + Add<Output = V> + Mul<f32, Output = V>,
    {
        let dt = 0.05;
        let near = |a: V, b: V, within: f32, what: &str| {
            let off = length(a + b * -1.0);
            assert!(off <= within, "{what} is off by {off}");
        };
        let curve = |t: f32| hermite(p0, v0, p1, v1, t, dt);
        near(curve(0.0), p0, 1e-5, "start");
        near(curve(1.0), p1, 1e-5, "end");
        let step = 1e-3;
        let slope = |from: f32| (curve(from + step) + curve(from) * -1.0) * (1.0 / (step * dt));
        near(slope(0.0), v0, 0.5, "velocity at the start");
        near(slope(1.0 - step), v1, 0.5, "velocity at the end");
    }
    check(1.0, -2.0, 3.0, 4.0, f32::abs);
    check(Vec2::X, Vec2::Y * 3.0, Vec2::ONE, Vec2::NEG_X, Vec2::length);
    check(Vec3::Z, Vec3::ONE, Vec3::Y, Vec3::NEG_Z * 2.0, Vec3::length);
    assert_eq!(
        hermite(0.0, 2.0, 1.0, 2.0, 0.5, 0.5),
        0.5,
        "even motion is a straight line"
    );
}
