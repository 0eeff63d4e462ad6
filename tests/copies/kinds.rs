//! Kinds of components: large ones, generic ones, and transforms gone wrong.

use std::collections::HashMap;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use serde::{Deserialize, Serialize};

use crate::game::*;

#[test]
fn a_large_component_that_changes_all_the_time_arrives_when_it_rests() {
    for seed in 0..2 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let entity = spawn(&mut net, (Tag(1), Big(vec![0; 5_000])));
        for n in 0..300_usize {
            let mut big = net.server.world_mut().get_mut::<Big>(entity).unwrap();
            big.0[n % 5_000] = n as u8;
            net.run(Ticks(1));
        }
        net.run(Ticks(600));
        let sent = net.server.world().get::<Big>(entity).cloned();
        assert_eq!(value::<Big>(&mut net, ada, 1), sent);
        assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    }
}

#[test]
fn half_a_megabyte_arrives() {
    let (mut net, ada) = with_ada(game, LinkConditions::wifi().with_seed(2));
    let big: Vec<u8> = (0..500_000_u32).map(|n| (n % 253) as u8).collect();
    spawn(&mut net, (Tag(1), Big(big.clone())));
    let mut ticks = 0;
    while value::<Big>(&mut net, ada, 1).is_none() && ticks < 3_600 {
        net.run(Ticks(10));
        ticks += 10;
    }
    assert_eq!(value::<Big>(&mut net, ada, 1), Some(Big(big)));
    println!("after {ticks} ticks");
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Mood {
    Calm,
    Angry { at: Vec<String>, level: f64 },
    Counting(HashMap<String, (i64, Option<u8>)>),
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Generic<T: Send + Sync + 'static>(T);

#[test]
fn enums_generics_and_names_travel() {
    fn kinds(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Generic<Mood>>();
        app.replicate::<Generic<u8>>();
        app.replicate::<Name>();
    }
    let (mut net, ada) = with_ada(kinds, clean());
    let moods = [
        Mood::Calm,
        Mood::Angry {
            at: vec!["é".into(), String::new()],
            level: f64::NEG_INFINITY,
        },
        Mood::Counting(HashMap::from([("x".into(), (i64::MIN, None))])),
        Mood::Calm,
    ];
    let entity = spawn(&mut net, (Tag(1), Generic(7_u8), Name::new("Ada's")));
    for mood in moods {
        net.server
            .world_mut()
            .entity_mut(entity)
            .insert(Generic(mood.clone()));
        net.run(Ticks(60));
        assert_eq!(value(&mut net, ada, 1), Some(Generic(mood)));
    }
    assert_eq!(value(&mut net, ada, 1), Some(Generic(7_u8)));
    assert_eq!(value::<Name>(&mut net, ada, 1).unwrap().as_str(), "Ada's");
}

fn transforms(app: &mut App) {
    app.replicate::<Tag>();
    app.replicate::<Transform>()
        .quantize(TransformCodec::default())
        .interpolate();
}

#[test]
fn a_transform_gone_wrong_harms_nothing_and_recovers() {
    let (mut net, ada) = with_ada(transforms, clean());
    let entity = spawn(&mut net, (Tag(1), Transform::from_xyz(1.0, 2.0, 3.0)));
    net.run(Ticks(60));
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30];
    for bad in bad {
        let mut at = net.server.world_mut().get_mut::<Transform>(entity).unwrap();
        *at = Transform {
            translation: Vec3::new(bad, 2.0, 3.0),
            rotation: Quat::from_xyzw(bad, 0.0, 0.0, 0.0),
            scale: Vec3::new(bad, 1.0, 1.0),
        };
        for frame in 0..60 {
            net.run(Ticks(1));
            let seen = value::<Transform>(&mut net, ada, 1).unwrap();
            if frame == 59 {
                println!("{bad}: {seen:?}");
            }
            // On the way between extremes, differences overflow.
            assert!(seen.is_finite() || frame < 30, "{bad}: {seen:?}");
            assert!((seen.rotation.length() - 1.0).abs() < 1e-3, "{seen:?}");
        }
    }
    *net.server.world_mut().get_mut::<Transform>(entity).unwrap() =
        Transform::from_xyz(4.0, 5.0, 6.0);
    net.run(Ticks(60));
    assert_eq!(
        value::<Transform>(&mut net, ada, 1),
        Some(Transform::from_xyz(4.0, 5.0, 6.0))
    );
}

#[test]
fn scales_and_unnormalised_rotations_arrive() {
    let (mut net, ada) = with_ada(transforms, clean());
    let rotation = Quat::from_rotation_y(1.2);
    let sent = Transform {
        translation: Vec3::new(-20_000.0, 16_383.5, 0.001),
        rotation: rotation * 3.0,
        scale: Vec3::new(-2.5, 0.0, 1_000.0),
    };
    spawn(&mut net, (Tag(1), sent));
    net.run(Ticks(60));
    let seen = value::<Transform>(&mut net, ada, 1).unwrap();
    assert!(seen.rotation.angle_between(rotation) < 0.005, "{seen:?}");
    assert!(
        (seen.scale - sent.scale).abs().max_element() < 0.1,
        "{seen:?}"
    );
    assert_eq!(seen.translation.x, -16_384.0, "clamped");
    assert!((seen.translation.y - 16_383.5).abs() < 0.001, "{seen:?}");
}

#[test]
fn a_turn_past_half_a_circle_takes_the_short_way() {
    fn flat(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Transform>()
            .quantize(TransformCodec::flat(512.0, 1.0 / 64.0))
            .interpolate();
    }
    let (mut net, ada) = with_ada(flat, clean());
    let angle = |tick: i32| 2.6 + tick as f32 * 0.02;
    let entity = spawn(
        &mut net,
        (
            Tag(1),
            Transform::from_rotation(Quat::from_rotation_z(angle(0))),
        ),
    );
    net.run(Ticks(60));
    for tick in 1..60 {
        let mut at = net.server.world_mut().get_mut::<Transform>(entity).unwrap();
        at.rotation = Quat::from_rotation_z(angle(tick));
        net.run(Ticks(1));
        let seen = value::<Transform>(&mut net, ada, 1).unwrap().rotation;
        let (axis, by) = seen.to_axis_angle();
        let seen = (axis.z * by).rem_euclid(std::f32::consts::TAU);
        assert!((2.55..=3.85).contains(&seen), "tick {tick}: {seen}");
    }
}
