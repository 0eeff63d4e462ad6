//! Bullets: where one is follows from its age, so nothing but its start is needed.

use bevy::platform::collections::HashMap;
use bevy::prelude::*;
use bevy_tandem::prelude::*;

use super::{Art, effects, layer, palette, sprite};
use crate::game::{self, Bullet, Ship};

const SIZE: Vec2 = Vec2::new(1.9, 0.55);
/// A bullet of another player is in our present, but its shooter is drawn in the past, so it seems to start ahead of
/// the muzzle. It is drawn from the muzzle, and reaches its true path after about this many seconds.
const CATCH_UP: f32 = 0.06;

pub fn plugin(app: &mut App) {
    app.add_systems(Update, (dress, fly, extinguish).chain());
}

/// What is seen of a bullet; an entity of its own, which outlives the bullet by a spark.
#[derive(Component)]
struct Tracer {
    of: Bullet,
    /// Seconds.
    lifetime: f32,
    /// From the true path to where it is drawn, in units.
    offset: Vec2,
}

fn dress(
    bullets: Query<&Bullet, Added<Bullet>>,
    tracers: Query<&Tracer>,
    ships: Query<(&Ship, &GlobalTransform, Has<Owned>)>,
    art: Res<Art>,
    now: Now,
    mut effects: effects::Effects,
    mut commands: Commands,
) {
    if bullets.is_empty() {
        return;
    }
    let ships: HashMap<u32, _> = ships
        .iter()
        .map(|(ship, transform, is_mine)| {
            let place = transform.translation().truncate();
            (ship.number, (place, is_mine))
        })
        .collect();
    for bullet in &bullets {
        // The server's copy of a shot that was predicted: already on the screen.
        if tracers.iter().any(|tracer| tracer.of == *bullet) {
            continue;
        }
        let direction = game::aim_direction(bullet.aim);
        let color = palette::player(bullet.shooter);
        let path = bullet.position(now.age(bullet));
        let offset = match ships.get(&bullet.shooter) {
            Some((place, false)) => *place + direction * game::SHIP_RADIUS - path,
            _ => Vec2::ZERO,
        };
        effects.muzzle_flash(path + offset, color);
        commands.spawn((
            sprite(&art.bullet, SIZE, palette::glow(color, 3.5)),
            Transform::from_translation((path + offset).extend(layer::BULLET))
                .with_rotation(Quat::from_rotation_z(game::aim_angle(bullet.aim))),
            Tracer {
                of: *bullet,
                lifetime: bullet.lifetime().0 as f32 / 60.0,
                offset,
            },
        ));
    }
}

fn fly(mut tracers: Query<(&mut Tracer, &mut Transform)>, now: Now, time: Res<Time>) {
    for (mut tracer, mut transform) in &mut tracers {
        tracer.offset *= (-time.delta_secs() / CATCH_UP).exp();
        let place = tracer.of.position(now.age(&tracer.of)) + tracer.offset;
        transform.translation = place.extend(layer::BULLET);
    }
}

/// A tracer ends with its bullet, or at the wall if the news of that is late.
fn extinguish(
    tracers: Query<(Entity, &Tracer, &Transform)>,
    bullets: Query<&Bullet>,
    now: Now,
    mut effects: effects::Effects,
    mut commands: Commands,
) {
    for (entity, tracer, transform) in &tracers {
        let is_spent = now.age(&tracer.of) > tracer.lifetime;
        if is_spent || !bullets.iter().any(|bullet| *bullet == tracer.of) {
            let color = palette::player(tracer.of.shooter);
            effects.sparks(transform.translation.truncate(), color, 4, 6.0);
            commands.entity(entity).despawn();
        }
    }
}

/// The moment that is drawn, as for ships: between the last two ticks.
#[derive(bevy::ecs::system::SystemParam)]
struct Now<'w> {
    tick: Res<'w, CurrentTick>,
    fixed: Res<'w, Time<Fixed>>,
}

impl Now<'_> {
    /// Seconds since it was fired.
    fn age(&self, bullet: &Bullet) -> f32 {
        let ticks = self.tick.0.distance_from(bullet.born) as f32 - 1.0;
        (ticks + self.fixed.overstep_fraction()).max(0.0) * self.fixed.timestep().as_secs_f32()
    }
}
