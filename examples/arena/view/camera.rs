//! The camera follows the player, looks a little ahead, and trembles when hit.

use bevy::camera::ScalingMode;
use bevy::core_pipeline::tonemapping::{DebandDither, Tonemapping};
use bevy::post_process::bloom::Bloom;
use bevy::prelude::*;
use bevy_tandem::prelude::*;

use super::controls::Aim;
use crate::game::{Health, Ship};
use crate::map;

/// Height of what is seen, in units.
const VIEW_HEIGHT: f32 = 34.0;
/// How fast the camera closes in on where it should be, per second.
const EAGERNESS: f32 = 6.0;
/// How far it looks towards the mouse, as a share of the way.
const LOOK_AHEAD: f32 = 0.16;
/// What of the void around the arena may be seen, in units.
const MARGIN: f32 = 1.5;

pub fn plugin(app: &mut App) {
    app.init_resource::<Shake>()
        .add_systems(Startup, spawn_camera)
        .add_systems(Update, follow);
}

/// How much the view trembles, in units; decays by itself.
#[derive(Resource, Default)]
pub struct Shake(pub f32);

fn spawn_camera(mut commands: Commands) {
    commands.spawn((
        Camera2d,
        // The sprites' edges are soft already.
        Msaa::Off,
        Projection::Orthographic(OrthographicProjection {
            scaling_mode: ScalingMode::FixedVertical {
                viewport_height: VIEW_HEIGHT,
            },
            ..OrthographicProjection::default_2d()
        }),
        // Reinhard needs no lookup table; luminance keeps the players' hues apart.
        Tonemapping::ReinhardLuminance,
        DebandDither::Enabled,
        Bloom {
            intensity: 0.22,
            ..Bloom::NATURAL
        },
    ));
}

fn follow(
    mut camera: Single<(&mut Transform, &Projection), With<Camera2d>>,
    mine: Query<(&GlobalTransform, &Health), (With<Ship>, With<Owned>)>,
    aim: Res<Aim>,
    mut shake: ResMut<Shake>,
    time: Res<Time>,
    mut center: Local<Vec2>,
) {
    let (transform, projection) = &mut *camera;
    // A wreck drifts on unseen: look where it ended instead.
    if let Some((ship, health)) = mine.iter().next()
        && health.0 > 0
    {
        let goal = ship.translation().truncate() + aim.0 * LOOK_AHEAD;
        let share = 1.0 - (-EAGERNESS * time.delta_secs()).exp();
        *center = center.lerp(goal, share);
    }
    let Projection::Orthographic(view) = projection else {
        return;
    };
    let room = (map::HALF_SIZE + MARGIN - view.area.half_size()).max(Vec2::ZERO);
    *center = center.clamp(-room, room);

    shake.0 *= (-7.0 * time.delta_secs()).exp();
    let seconds = time.elapsed_secs();
    let tremble = Vec2::new((seconds * 71.0).sin(), (seconds * 83.0).cos()) * shake.0 * 0.5;
    transform.translation = (*center + tremble).extend(transform.translation.z);
}
