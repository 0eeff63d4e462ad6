//! Sparks, rings and shakes: short-lived and only seen, so never simulated.

use bevy::ecs::system::SystemParam;
use bevy::prelude::*;

use super::camera::Shake;
use super::{Art, layer, palette, sprite};

pub fn plugin(app: &mut App) {
    app.insert_resource(Dice(fastrand::Rng::with_seed(5)))
        .add_systems(Update, age_particles);
}

#[derive(Resource)]
struct Dice(fastrand::Rng);

/// Something that moves, changes size, fades and is gone.
#[derive(Component)]
struct Particle {
    velocity: Vec2,
    /// Seconds.
    age: f32,
    life: f32,
    start_size: Vec2,
    end_size: Vec2,
    color: Color,
}

/// Makes things flash.
#[derive(SystemParam)]
pub struct Effects<'w, 's> {
    commands: Commands<'w, 's>,
    art: Res<'w, Art>,
    dice: ResMut<'w, Dice>,
    shake: ResMut<'w, Shake>,
}

impl Effects<'_, '_> {
    /// A ship is no more.
    pub fn explosion(&mut self, place: Vec2, color: Color) {
        self.ring(place, color, 9.0);
        self.ring(place, Color::WHITE, 5.0);
        self.glow(place, color, 7.0, 0.35);
        self.glow(place, Color::WHITE, 3.5, 0.2);
        self.sparks(place, color, 34, 20.0);
        self.sparks(place, Color::srgb(1.0, 0.8, 0.5), 16, 12.0);
    }

    /// Sparks in all directions, up to `speed` units per second.
    pub fn sparks(&mut self, place: Vec2, color: Color, count: u32, speed: f32) {
        for _ in 0..count {
            let dice = &mut self.dice.0;
            let direction = Vec2::from_angle(dice.f32() * std::f32::consts::TAU);
            let velocity = direction * speed * (0.2 + 0.8 * dice.f32());
            let life = 0.2 + 0.35 * dice.f32();
            let length = 0.25 + velocity.length() * 0.045;
            self.spawn(
                self.art.spark.clone(),
                place,
                Particle {
                    velocity,
                    age: 0.0,
                    life,
                    start_size: Vec2::new(length, 0.26),
                    end_size: Vec2::new(0.1, 0.08),
                    color: palette::glow(color, 4.0),
                },
            );
        }
    }

    /// A wave that spreads to `radius` units.
    pub fn ring(&mut self, place: Vec2, color: Color, radius: f32) {
        let particle = Particle {
            velocity: Vec2::ZERO,
            age: 0.0,
            life: 0.45,
            start_size: Vec2::splat(radius * 0.3),
            end_size: Vec2::splat(radius * 1.6),
            color: palette::glow(color, 1.8),
        };
        self.spawn(self.art.ring.clone(), place, particle);
    }

    pub fn muzzle_flash(&mut self, place: Vec2, color: Color) {
        self.glow(place, color, 1.6, 0.08);
    }

    /// What the player feels of it, in units.
    pub fn shake(&mut self, strength: f32) {
        self.shake.0 = self.shake.0.max(strength);
    }

    fn glow(&mut self, place: Vec2, color: Color, size: f32, life: f32) {
        let particle = Particle {
            velocity: Vec2::ZERO,
            age: 0.0,
            life,
            start_size: Vec2::splat(size),
            end_size: Vec2::splat(size * 0.6),
            color: palette::glow(color, 3.0),
        };
        self.spawn(self.art.spark.clone(), place, particle);
    }

    fn spawn(&mut self, image: Handle<Image>, place: Vec2, particle: Particle) {
        self.commands.spawn((
            sprite(&image, particle.start_size, particle.color),
            Transform::from_translation(place.extend(layer::EFFECT))
                .with_rotation(Quat::from_rotation_z(particle.velocity.to_angle())),
            particle,
        ));
    }
}

fn age_particles(
    mut particles: Query<(Entity, &mut Particle, &mut Transform, &mut Sprite)>,
    time: Res<Time>,
    mut commands: Commands,
) {
    let delta = time.delta_secs();
    for (entity, mut particle, mut transform, mut sprite) in &mut particles {
        particle.age += delta;
        let share = particle.age / particle.life;
        if share >= 1.0 {
            commands.entity(entity).despawn();
            continue;
        }
        particle.velocity *= (-3.0 * delta).exp();
        transform.translation += (particle.velocity * delta).extend(0.0);
        sprite.custom_size = Some(particle.start_size.lerp(particle.end_size, share));
        let alpha = particle.color.alpha() * (1.0 - share) * (1.0 - share);
        sprite.color = particle.color.with_alpha(alpha);
    }
}
