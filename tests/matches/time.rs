//! Pauses, other rates, clocks that drift, apps that stand still.

use std::time::Duration;

use bevy::prelude::*;
use bevy::time::TimeUpdateStrategy;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;
use crate::ships::*;

#[test]
fn other_tick_rates_are_as_good() {
    for (tick_rate_hz, send_rate_hz) in [
        (20.0, 20.0),
        (30.0, 10.0),
        (30.0, 30.0),
        (64.0, 64.0),
        (120.0, 30.0),
        (128.0, 128.0),
    ] {
        let config = ServerConfig {
            tick_rate_hz,
            send_rate_hz,
            ..default()
        };
        let mut net = TestNet::with_config(ships, clean(), config);
        let ada = net.join("Ada");
        net.run(Ticks(180));
        let before = stats(&mut net, ada);
        for n in 0..600 {
            control(&mut net, ada, if n % 80 < 40 { 1 } else { -1 }, false);
            net.run(Ticks(1));
        }
        control(&mut net, ada, 0, false);
        net.run(Ticks(90));
        let after = stats(&mut net, ada);
        let what = format!("{tick_rate_hz} Hz, {send_rate_hz} snapshots");
        assert_eq!(after.reconciliations, before.reconciliations, "{what}");
        assert_eq!(after.inputs_late, before.inputs_late, "{what}");
        assert_eq!(after.clock_snaps, before.clock_snaps, "{what}");
        assert_eq!(own(&mut net, ada), real(&mut net), "{what}");
        let starved = after.starved_frames - before.starved_frames;
        assert!(starved <= 7, "{what}: {starved} frames starved");
    }
}

#[test]
fn a_client_whose_game_was_paused_goes_on() {
    let (mut net, ada) = with_ada(ships, clean());
    for pause in [10, 60, 300, 900] {
        control(&mut net, ada, 1, false);
        net.run(Ticks(30));
        net.client(ada)
            .world_mut()
            .resource_mut::<Time<Virtual>>()
            .pause();
        net.run(Ticks(pause));
        control(&mut net, ada, 0, false);
        net.client(ada)
            .world_mut()
            .resource_mut::<Time<Virtual>>()
            .unpause();
        net.run(Ticks(240));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected, "{pause}");
        steering_works(&mut net, ada);
    }
}

#[test]
fn a_server_whose_game_was_paused_keeps_its_players() {
    let (mut net, ada) = with_ada(ships, clean());
    for pause in [30, 240, 900] {
        net.server
            .world_mut()
            .resource_mut::<Time<Virtual>>()
            .pause();
        net.run(Ticks(pause));
        let during = state(&mut net, ada);
        net.server
            .world_mut()
            .resource_mut::<Time<Virtual>>()
            .unpause();
        net.run(Ticks(300));
        assert_eq!(
            (during, state(&mut net, ada)),
            (ConnectionState::Connected, ConnectionState::Connected),
            "paused for {pause} frames"
        );
        steering_works(&mut net, ada);
    }
}

#[test]
fn a_server_in_slow_motion_is_followed() {
    let (mut net, ada) = with_ada(ships, clean());
    for speed in [0.5, 2.0] {
        net.server
            .world_mut()
            .resource_mut::<Time<Virtual>>()
            .set_relative_speed(speed);
        net.run(Ticks(300));
        control(&mut net, ada, 1, false);
        net.run(Ticks(120));
        control(&mut net, ada, 0, false);
        net.run(Ticks(240));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected);
        assert_eq!(own(&mut net, ada), real(&mut net), "at {speed}");
    }
}

#[test]
fn clocks_that_drift_are_followed() {
    for drift in [0.98, 0.995, 1.005, 1.02] {
        let (mut net, ada) = with_ada(ships, clean());
        let frame = Duration::from_secs_f64(drift / 60.0);
        net.client(ada)
            .insert_resource(TimeUpdateStrategy::ManualDuration(frame));
        net.run(Ticks(300));
        let before = stats(&mut net, ada);
        for n in 0..1_800 {
            control(&mut net, ada, if n % 80 < 40 { 1 } else { -1 }, false);
            net.run(Ticks(1));
        }
        control(&mut net, ada, 0, false);
        net.run(Ticks(90));
        let after = stats(&mut net, ada);
        assert_eq!(after.clock_snaps, before.clock_snaps, "{drift}");
        let late = after.inputs_late - before.inputs_late;
        assert!(late <= 18, "{drift}: {late} inputs late");
        assert_eq!(own(&mut net, ada), real(&mut net), "{drift}");
    }
}

#[test]
fn a_minimised_client_goes_on_where_the_game_is() {
    for ticks in [60, 600, 3_000] {
        let (mut net, ada) = with_ada(ships, clean());
        control(&mut net, ada, 1, false);
        net.run(Ticks(30));
        net.pause(ada, true);
        net.run(Ticks(ticks));
        net.pause(ada, false);
        control(&mut net, ada, 0, false);
        net.run(Ticks(600));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected, "{ticks}");
        assert_eq!(sessions(&mut net), 1);
        steering_works(&mut net, ada);
    }
}

#[test]
fn a_server_that_stood_still_goes_on() {
    for ticks in [5, 30, 120] {
        let (mut net, ada) = with_ada(ships, clean());
        control(&mut net, ada, 1, false);
        net.run(Ticks(30));
        net.run_without_server(Ticks(ticks));
        control(&mut net, ada, 0, false);
        net.run(Ticks(300));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected, "{ticks}");
        steering_works(&mut net, ada);
    }
}

#[test]
fn frames_without_a_tick_and_with_several_use_each_input_once() {
    for fps in [20.0, 47.0, 144.0, 500.0] {
        let (mut net, ada) = with_ada(ships, clean());
        net.set_frame_rate(ada, fps);
        net.run(Ticks(120));
        let before = stats(&mut net, ada);
        for n in 0..600 {
            control(&mut net, ada, if n % 80 < 40 { 1 } else { -1 }, false);
            net.run(Ticks(1));
        }
        control(&mut net, ada, 0, false);
        net.run(Ticks(90));
        let after = stats(&mut net, ada);
        assert_eq!(after.reconciliations, before.reconciliations, "{fps}");
        assert_eq!(own(&mut net, ada), real(&mut net), "{fps}");
    }
}

#[test]
fn a_server_at_ten_frames_a_second_uses_every_input_in_its_tick() {
    let (mut net, ada) = with_ada(ships, clean());
    for _ in 0..60 {
        net.run_without_server(Ticks(5));
    }
    let before = stats(&mut net, ada);
    for n in 0..100 {
        control(&mut net, ada, if n % 16 < 8 { 1 } else { -1 }, false);
        net.run_without_server(Ticks(5));
    }
    control(&mut net, ada, 0, false);
    for _ in 0..20 {
        net.run_without_server(Ticks(5));
    }
    let after = stats(&mut net, ada);
    assert_eq!(after.inputs_late, before.inputs_late);
    assert_eq!(after.reconciliations, before.reconciliations);
    assert_eq!(own(&mut net, ada), real(&mut net));
}

#[test]
fn a_client_at_one_frame_a_second_stays_and_recovers() {
    let (mut net, ada) = with_ada(ships, clean());
    control(&mut net, ada, 1, false);
    net.set_frame_rate(ada, 1.0);
    net.run(Ticks(3_600));
    assert_eq!(reason(&mut net, ada), "Connected None");
    net.set_frame_rate(ada, 60.0);
    control(&mut net, ada, 0, false);
    net.run(Ticks(240));
    assert_eq!(sessions(&mut net), 1);
    steering_works(&mut net, ada);
}

/// Ticks after slow frames until the server has every input in time.
fn ticks_until_in_control(link: LinkConditions, frame_rate: f64, ticks: u32) -> usize {
    let (mut net, ada) = with_ada(ships, link);
    net.set_frame_rate(ada, frame_rate);
    net.run(Ticks(ticks));
    net.set_frame_rate(ada, 60.0);
    control(&mut net, ada, 1, false);
    let mut place = real(&mut net);
    let mut in_control_since = 0;
    for tick in 0..180 {
        net.run(Ticks(1));
        let before = std::mem::replace(&mut place, real(&mut net));
        if place == before {
            in_control_since = tick + 1;
        }
    }
    in_control_since
}

#[test]
fn a_client_that_drew_a_frame_a_second_steers_within_half_a_second_afterwards() {
    for frame_rate in [0.5, 1.0, 2.0, 4.0] {
        for phase in 0..13 {
            let ticks = ticks_until_in_control(clean(), frame_rate, 3_600 + phase * 5);
            assert!(ticks <= 30, "{frame_rate} fps, {phase}: {ticks} ticks");
        }
    }
}

#[test]
fn on_far_links_it_takes_a_round_trip_more() {
    for (latency_ms, jitter_ms, loss) in [(75, 20, 0.05), (150, 30, 0.02)] {
        for phase in 0..13 {
            let link = LinkConditions {
                latency: Duration::from_millis(latency_ms),
                jitter: Duration::from_millis(jitter_ms),
                loss,
                seed: phase.into(),
                ..default()
            };
            let ticks = ticks_until_in_control(link, 1.0, 3_600 + phase * 5);
            let round_trip = latency_ms as usize * 2 * 60 / 1_000;
            assert!(
                ticks <= 30 + round_trip,
                "{latency_ms} ms, {phase}: {ticks} ticks"
            );
        }
    }
}
