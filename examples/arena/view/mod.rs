//! How the arena looks: one module for each thing on the screen.

mod bullets;
mod camera;
mod controls;
mod effects;
mod hud;
mod net_graph;
mod palette;
mod ships;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use bevy::asset::AssetMetaCheck;
use bevy::prelude::*;
use bevy::render::view::screenshot::{Screenshot, save_to_disk};
use bevy::window::{PresentMode, WindowResolution};

/// Draws the match and reads keyboard and mouse.
#[derive(Default)]
pub struct ViewPlugin {
    /// Save a picture here after so long, with the net graph on, and leave.
    pub screenshot: Option<(PathBuf, Duration)>,
}

impl Plugin for ViewPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(ClearColor(palette::VOID))
            .init_resource::<Art>()
            .add_plugins((
                controls::plugin,
                stage::plugin,
                ships::plugin,
                bullets::plugin,
                effects::plugin,
                camera::plugin,
                hud::plugin,
                net_graph::plugin,
            ));
        if let Some((file, delay)) = self.screenshot.clone() {
            app.insert_resource(net_graph::NetGraph { shown: true })
                .insert_resource(Photo {
                    file,
                    timer: Timer::new(delay, TimerMode::Once),
                    leave: Timer::from_seconds(1.5, TimerMode::Once),
                })
                .add_systems(Update, take_photo);
        }
    }
}

pub fn window() -> WindowPlugin {
    WindowPlugin {
        primary_window: Some(Window {
            title: "Arena".to_string(),
            resolution: WindowResolution::new(1280, 720),
            present_mode: PresentMode::AutoVsync,
            // In a browser: where the page has its place for it, and with the keys that the page lets through.
            canvas: Some("#arena".to_string()),
            fit_canvas_to_parent: true,
            prevent_default_event_handling: false,
            ..default()
        }),
        ..default()
    }
}

/// The images, found wherever the program is started from; in a browser, beside the page.
pub fn assets() -> AssetPlugin {
    let folder = match cfg!(target_family = "wasm") {
        true => "assets",
        false => concat!(env!("CARGO_MANIFEST_DIR"), "/assets"),
    };
    AssetPlugin {
        file_path: folder.to_string(),
        // There are none, and a browser would ask its server for each.
        meta_check: AssetMetaCheck::Never,
        ..default()
    }
}

/// What is drawn in front of what.
mod layer {
    pub const FLOOR: f32 = -50.0;
    pub const PAD: f32 = -40.0;
    pub const DEBRIS: f32 = -30.0;
    pub const FLAME: f32 = 1.0;
    pub const HULL: f32 = 2.0;
    pub const TRIM: f32 = 3.0;
    pub const BULLET: f32 = 5.0;
    pub const WALL: f32 = 10.0;
    pub const EDGE: f32 = 11.0;
    pub const EFFECT: f32 = 20.0;
    pub const TAG: f32 = 30.0;
    pub const CROSSHAIR: f32 = 40.0;
}

/// The images in `assets/`.
#[derive(Resource)]
struct Art {
    hull: Handle<Image>,
    trim: Handle<Image>,
    flame: Handle<Image>,
    bullet: Handle<Image>,
    spark: Handle<Image>,
    ring: Handle<Image>,
    wall: Handle<Image>,
    edge: Handle<Image>,
    floor: Handle<Image>,
    pad: Handle<Image>,
    debris: Handle<Image>,
    crosshair: Handle<Image>,
    vignette: Handle<Image>,
}

impl FromWorld for Art {
    fn from_world(world: &mut World) -> Self {
        let server = world.resource::<AssetServer>();
        Self {
            hull: server.load("hull.png"),
            trim: server.load("trim.png"),
            flame: server.load("flame.png"),
            bullet: server.load("bullet.png"),
            spark: server.load("spark.png"),
            ring: server.load("ring.png"),
            wall: server.load("wall.png"),
            edge: server.load("edge.png"),
            floor: server.load("floor.png"),
            pad: server.load("pad.png"),
            debris: server.load("debris.png"),
            crosshair: server.load("crosshair.png"),
            vignette: server.load("vignette.png"),
        }
    }
}

/// An image of this size in units, tinted.
fn sprite(image: &Handle<Image>, size: Vec2, color: impl Into<Color>) -> Sprite {
    Sprite {
        image: image.clone(),
        color: color.into(),
        custom_size: Some(size),
        ..default()
    }
}

#[derive(Resource)]
struct Photo {
    file: PathBuf,
    timer: Timer,
    /// Saving takes a moment.
    leave: Timer,
}

fn take_photo(
    mut photo: ResMut<Photo>,
    time: Res<Time<Real>>,
    mut commands: Commands,
    mut exit: MessageWriter<AppExit>,
) {
    if photo.timer.tick(time.delta()).just_finished() {
        let file = photo.file.clone();
        commands
            .spawn(Screenshot::primary_window())
            .observe(save_to_disk(file));
    }
    if photo.timer.is_finished() && photo.leave.tick(time.delta()).is_finished() {
        exit.write(AppExit::Success);
    }
}
