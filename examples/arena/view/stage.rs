//! Floor and walls.

use bevy::prelude::*;

use super::{Art, layer, palette, sprite};
use crate::game::Debris;
use crate::map;

/// Side of a plate of floor, in units.
const PLATE: f32 = 4.0;

pub fn plugin(app: &mut App) {
    app.add_systems(Startup, build_stage)
        .add_systems(Update, dress_debris);
}

fn build_stage(art: Res<Art>, mut commands: Commands) {
    let plates = (map::HALF_SIZE * 2.0 / PLATE).as_uvec2();
    for y in 0..plates.y {
        for x in 0..plates.x {
            let place = (UVec2::new(x, y).as_vec2() + 0.5) * PLATE - map::HALF_SIZE;
            commands.spawn((
                sprite(&art.floor, Vec2::splat(PLATE), Color::WHITE),
                Transform::from_translation(place.extend(layer::FLOOR)),
            ));
        }
    }
    for place in map::spawn_places() {
        commands.spawn((
            sprite(&art.pad, Vec2::splat(3.2), palette::PAD),
            Transform::from_translation(place.extend(layer::PAD)),
        ));
    }
    let edge = sprite(
        &art.edge,
        Vec2::splat(map::TILE),
        palette::glow(palette::WALL_LIGHT, 1.6),
    );
    for wall in map::walls() {
        commands.spawn((
            sprite(&art.wall, Vec2::splat(map::TILE), Color::WHITE),
            Transform::from_translation(wall.extend(layer::WALL)),
        ));
        // The image has its light on the bottom; turn it to each side that faces floor.
        for quarter in 0..4u8 {
            let turn = Quat::from_rotation_z(f32::from(quarter) * std::f32::consts::FRAC_PI_2);
            let outwards = (turn * Vec3::NEG_Y).truncate();
            if !map::is_wall(wall + outwards * map::TILE) {
                let place = wall.extend(layer::EDGE);
                commands.spawn((
                    edge.clone(),
                    Transform::from_translation(place).with_rotation(turn),
                ));
            }
        }
    }
}

fn dress_debris(added: Query<Entity, Added<Debris>>, art: Res<Art>, mut commands: Commands) {
    for entity in &added {
        commands
            .entity(entity)
            .insert(Visibility::default())
            .with_child((
                sprite(&art.debris, Vec2::splat(0.5), Color::WHITE),
                Transform::from_xyz(0.0, 0.0, layer::DEBRIS),
            ));
    }
}
