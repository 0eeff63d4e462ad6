//! A whole multiplayer game: squares that you steer with the arrow keys.
//!
//!     cargo run --example minimal --features render -- server
//!     cargo run --example minimal --features render -- client
//!
//! Your own square is predicted, so it answers at once; the others are interpolated, so they move smoothly.

use bevy::prelude::*;
use bevy_tandem::headless::HeadlessPlugin;
use bevy_tandem::prelude::*;
use serde::{Deserialize, Serialize};

const ADDRESS: &str = "127.0.0.1:5000";

fn main() -> AppExit {
    let mut app = App::new();
    if std::env::args().nth(1).as_deref() == Some("server") {
        app.add_plugins((MinimalPlugins, HeadlessPlugin::default()))
            .add_plugins((TandemServerPlugins::listen(ADDRESS), game))
            .add_observer(spawn_square);
    } else {
        app.add_plugins((DefaultPlugins, TandemClientPlugins::connect(ADDRESS), game))
            .add_systems(Startup, |mut commands: Commands| {
                commands.spawn(Camera2d);
            })
            .add_systems(PreUpdate, read_keys)
            .add_systems(Update, paint);
    }
    app.run()
}

/// What the player does in one tick: a direction, at most 1 long. A key counts in whichever frame it was down.
#[derive(Default, Clone, Serialize, Deserialize)]
struct Steer(Vec2);

/// A player's square, and its hue.
#[derive(Component, Clone, Serialize, Deserialize)]
struct Square(f32);

/// The game, the same on both sides.
fn game(app: &mut App) {
    app.add_input::<Steer>()
        .accumulate(|tick, frame| tick.0 += frame.0)
        .validate(|steer| steer.0 = steer.0.clamp_length_max(1.0));
    app.replicate::<Transform>()
        .quantize(TransformCodec::flat(512.0, 1.0 / 64.0))
        .predict()
        .interpolate();
    app.replicate::<Square>();
    app.add_systems(FixedUpdate, steer);
}

fn steer(mut squares: Query<(&Input<Steer>, &mut Transform), With<Simulated>>, time: Res<Time>) {
    for (Input(Steer(direction)), mut transform) in &mut squares {
        transform.translation += direction.extend(0.0) * 300.0 * time.delta_secs();
    }
}

fn spawn_square(joined: On<SessionJoined>, sessions: Query<&Session>, mut commands: Commands) {
    let number = sessions.get(joined.entity).map_or(0, |it| it.id.0);
    let square = Square(number as f32 * 47.0 % 360.0);
    let owner = OwnedBy(joined.entity);
    commands.spawn((Replicated, owner, Transform::default(), square));
}

fn read_keys(keys: Res<ButtonInput<KeyCode>>, mut steer: ResMut<LocalInput<Steer>>) {
    let axis = |plus, minus| f32::from(keys.pressed(plus)) - f32::from(keys.pressed(minus));
    let x = axis(KeyCode::ArrowRight, KeyCode::ArrowLeft);
    let y = axis(KeyCode::ArrowUp, KeyCode::ArrowDown);
    steer.0 = Steer(Vec2::new(x, y).normalize_or_zero());
}

fn paint(squares: Query<(Entity, &Square), Without<Sprite>>, mut commands: Commands) {
    for (entity, Square(hue)) in &squares {
        let sprite = Sprite::from_color(Color::hsl(*hue, 0.8, 0.6), Vec2::splat(48.0));
        commands.entity(entity).insert(sprite);
    }
}
