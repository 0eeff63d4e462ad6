//! Keyboard and mouse become the player's input.

use bevy::input::InputSystems;
use bevy::prelude::*;
use bevy::window::{CursorOptions, PrimaryWindow};
use bevy_tandem::prelude::*;

use super::{Art, layer, palette, sprite};
use crate::game::{Pilot, Ship, aim_direction};

const KEYS: [(KeyCode, u8); 9] = [
    (KeyCode::KeyW, Pilot::UP),
    (KeyCode::KeyS, Pilot::DOWN),
    (KeyCode::KeyA, Pilot::LEFT),
    (KeyCode::KeyD, Pilot::RIGHT),
    (KeyCode::ArrowUp, Pilot::UP),
    (KeyCode::ArrowDown, Pilot::DOWN),
    (KeyCode::ArrowLeft, Pilot::LEFT),
    (KeyCode::ArrowRight, Pilot::RIGHT),
    (KeyCode::Space, Pilot::FIRE),
];

pub fn plugin(app: &mut App) {
    app.init_resource::<Aim>()
        .add_systems(Startup, spawn_crosshair)
        .add_systems(PreUpdate, read_devices.after(InputSystems))
        .add_systems(Update, follow_mouse);
    // A browser's tab is closed by its user.
    if !cfg!(target_family = "wasm") {
        app.add_systems(Update, quit);
    }
}

/// From the player's ship to the mouse, in units.
#[derive(Resource, Default)]
pub struct Aim(pub Vec2);

#[derive(Component)]
struct Crosshair;

fn spawn_crosshair(
    art: Res<Art>,
    mut cursor: Single<&mut CursorOptions, With<PrimaryWindow>>,
    mut commands: Commands,
) {
    cursor.visible = false;
    commands.spawn((
        Crosshair,
        sprite(
            &art.crosshair,
            Vec2::splat(1.5),
            palette::glow(palette::ACCENT, 1.6),
        ),
        Transform::from_xyz(0.0, 0.0, layer::CROSSHAIR),
    ));
}

fn read_devices(
    keyboard: Res<ButtonInput<KeyCode>>,
    mouse: Res<ButtonInput<MouseButton>>,
    window: Single<&Window, With<PrimaryWindow>>,
    camera: Single<(&Camera, &GlobalTransform), With<Camera2d>>,
    mine: Query<&GlobalTransform, (With<Ship>, With<Owned>)>,
    mut aim: ResMut<Aim>,
    mut input: ResMut<LocalInput<Pilot>>,
) {
    let held = KEYS.iter().filter(|(key, _)| keyboard.pressed(*key));
    input.0.keys = held.fold(0, |keys, (_, bit)| keys | bit);
    if mouse.pressed(MouseButton::Left) {
        input.0.keys |= Pilot::FIRE;
    }

    let (camera, eye) = *camera;
    let pointed = window
        .cursor_position()
        .and_then(|cursor| camera.viewport_to_world_2d(eye, cursor).ok());
    match (mine.iter().next(), pointed) {
        (Some(ship), Some(pointed)) => {
            aim.0 = pointed - ship.translation().truncate();
            input.0.aim = Pilot::aim_along(aim.0);
        }
        // The mouse is elsewhere: the gun stays as it was.
        _ => aim.0 = aim_direction(input.0.aim) * 8.0,
    }
}

fn follow_mouse(
    mut crosshair: Single<&mut Transform, With<Crosshair>>,
    mine: Query<&GlobalTransform, (With<Ship>, With<Owned>)>,
    aim: Res<Aim>,
) {
    if let Some(ship) = mine.iter().next() {
        let place = ship.translation().truncate() + aim.0;
        crosshair.translation = place.extend(layer::CROSSHAIR);
    }
}

fn quit(keyboard: Res<ButtonInput<KeyCode>>, mut exit: MessageWriter<AppExit>) {
    if keyboard.just_pressed(KeyCode::Escape) {
        exit.write(AppExit::Success);
    }
}
