//! Ships: hull and lights turn with the ship; flame, name and health do not.

use bevy::prelude::*;
use bevy::sprite::Anchor;
use bevy::transform::TransformSystems;
use bevy_tandem::prelude::*;

use super::{Art, effects, layer, palette, sprite};
use crate::game::{self, Health, Respawn, SHIP_RADIUS, Ship, Velocity};

/// The picture is larger than what bullets hit, as its corners are empty.
const SIZE: Vec2 = Vec2::splat(SHIP_RADIUS * 2.8);
const BAR: Vec2 = Vec2::new(2.2, 0.20);
/// How long a hit shows, in seconds.
const FLASH: f32 = 0.18;

pub fn plugin(app: &mut App) {
    app.add_systems(Update, (dress, hide_wrecks, feel_hits, flash, burn).chain())
        .add_systems(PostUpdate, keep_upright.before(TransformSystems::Propagate));
}

/// The parts of a ship that change.
#[derive(Component)]
struct Parts {
    upright: Entity,
    hull: Entity,
    trim: Entity,
    flame: Entity,
    bar: Entity,
    /// What health was shown last.
    health: u8,
    /// Seconds of flash left.
    flash: f32,
}

fn dress(
    ships: Query<(Entity, &Ship, &Health, Has<Owned>), Without<Parts>>,
    art: Res<Art>,
    mut commands: Commands,
) {
    for (entity, ship, health, is_mine) in &ships {
        let color = palette::player(ship.number);
        let child = |z| (ChildOf(entity), Transform::from_xyz(0.0, 0.0, z));
        let hull = commands
            .spawn((child(layer::HULL), sprite(&art.hull, SIZE, Color::WHITE)))
            .id();
        let trim = commands
            .spawn((child(layer::TRIM), sprite(&art.trim, SIZE, color)))
            .id();
        let upright = commands.spawn((child(0.0), Visibility::default())).id();

        let part = |x, y, z| (ChildOf(upright), Transform::from_xyz(x, y, z));
        let flame = commands
            .spawn((
                part(0.0, 0.0, layer::FLAME),
                sprite(&art.flame, Vec2::new(1.8, 0.9), palette::glow(color, 1.8)),
                Anchor::CENTER_RIGHT,
            ))
            .id();
        let left = -BAR.x / 2.0;
        commands.spawn((
            part(left - 0.06, 1.75, layer::TAG),
            Sprite::from_color(Color::srgba(0.01, 0.015, 0.03, 0.85), BAR + 0.12),
            Anchor::CENTER_LEFT,
        ));
        let bar = commands
            .spawn((
                part(left, 1.75, layer::TAG + 1.0),
                Sprite::from_color(color, BAR),
                Anchor::CENTER_LEFT,
            ))
            .id();
        // Text is laid out in pixels: large, then shrunk, so that it stays sharp.
        commands.spawn((
            ChildOf(upright),
            Transform::from_xyz(0.0, 2.0, layer::TAG).with_scale(Vec3::splat(0.036)),
            Text2d::new(ship.name.clone()),
            TextFont::from_font_size(24.0),
            TextColor(if is_mine { palette::TEXT } else { color }),
            Anchor::BOTTOM_CENTER,
        ));
        commands.entity(entity).insert((
            Visibility::default(),
            Parts {
                upright,
                hull,
                trim,
                flame,
                bar,
                health: health.0,
                flash: 0.0,
            },
        ));
    }
}

/// A wreck is out of sight until it appears again. Its owner knows that tick ahead; others see its health return.
fn hide_wrecks(
    mut ships: Query<(&Health, &Respawn, &mut Visibility, Has<Owned>), With<Parts>>,
    tick: Res<CurrentTick>,
) {
    for (health, respawn, mut visibility, is_mine) in &mut ships {
        let is_wreck = match is_mine {
            true => respawn.at.is_newer_than(tick.0),
            false => health.0 == 0,
        };
        visibility.set_if_neq(match is_wreck {
            true => Visibility::Hidden,
            false => Visibility::Inherited,
        });
    }
}

fn feel_hits(
    mut ships: Query<(&Ship, &Health, &GlobalTransform, &mut Parts, Has<Owned>), Changed<Health>>,
    mut effects: effects::Effects,
) {
    for (ship, health, transform, mut parts, is_mine) in &mut ships {
        let place = transform.translation().truncate();
        let color = palette::player(ship.number);
        if health.0 < parts.health {
            parts.flash = FLASH;
            match health.0 {
                0 => effects.explosion(place, color),
                _ => effects.sparks(place, color, 9, 9.0),
            }
            if is_mine {
                effects.shake(if health.0 == 0 { 1.2 } else { 0.45 });
            }
        } else if parts.health == 0 {
            effects.ring(place, color, 3.0);
        }
        parts.health = health.0;
    }
}

fn flash(mut ships: Query<(&Ship, &mut Parts)>, mut sprites: Query<&mut Sprite>, time: Res<Time>) {
    for (ship, mut parts) in &mut ships {
        parts.flash = (parts.flash - time.delta_secs()).max(0.0);
        let hot = parts.flash / FLASH;
        let color = palette::player(ship.number);
        if let Ok(mut hull) = sprites.get_mut(parts.hull) {
            hull.color = palette::glow(Color::WHITE, 1.0 + 9.0 * hot);
        }
        if let Ok(mut trim) = sprites.get_mut(parts.trim) {
            trim.color = palette::glow(color, 1.7 + 5.0 * hot);
        }
        if let Ok(mut bar) = sprites.get_mut(parts.bar) {
            let share = f32::from(parts.health) / f32::from(game::FULL_HEALTH);
            bar.custom_size = Some(BAR * Vec2::new(share, 1.0));
            bar.color = if share <= 0.4 {
                palette::WARNING
            } else {
                palette::GOOD
            };
        }
    }
}

/// The flame points against the motion and is as long as it is fast.
fn burn(
    ships: Query<(&Velocity, &Parts)>,
    mut flames: Query<(&mut Transform, &mut Sprite)>,
    time: Res<Time>,
) {
    for (velocity, parts) in &ships {
        let Ok((mut transform, mut sprite)) = flames.get_mut(parts.flame) else {
            continue;
        };
        let speed = velocity.0.length() / game::SHIP_SPEED;
        let flicker = 1.0 + 0.12 * (time.elapsed_secs() * 47.0).sin();
        let angle = velocity.0.to_angle();
        transform.rotation = Quat::from_rotation_z(angle);
        transform.scale = Vec3::new(speed * flicker, 0.6 + 0.4 * speed, 1.0);
        sprite.color.set_alpha(speed.min(1.0) * 0.9);
    }
}

fn keep_upright(
    ships: Query<(&Transform, &Parts)>,
    mut upright: Query<&mut Transform, Without<Parts>>,
) {
    for (ship, parts) in &ships {
        if let Ok(mut transform) = upright.get_mut(parts.upright) {
            transform.rotation = ship.rotation.inverse();
        }
    }
}
