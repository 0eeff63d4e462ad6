//! The rules, written once. [`game`] goes into the server and into every client; [`referee`] into the server only.
//!
//! What a player does to itself (steer, shoot, appear again) is predicted, so it feels immediate. What players do to
//! each other (hits, scores) only the server decides.
// Each program uses its part of this.
#![allow(dead_code)]

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::wire::quantize::{self, Scale, Vec2Codec};
use serde::{Deserialize, Serialize};

use crate::map;

/// Ships are round.
pub const SHIP_RADIUS: f32 = 0.9;
pub const FULL_HEALTH: u8 = 100;
/// Units per second.
pub const SHIP_SPEED: f32 = 13.0;
pub const BULLET_SPEED: f32 = 34.0;
/// Units per second, each second: full speed in a fifth of one.
const ACCELERATION: f32 = 65.0;
const BULLET_DAMAGE: u8 = 20;
const BULLET_LIFE: Ticks = Ticks(66);
/// From the middle of a ship to where its bullets start.
const MUZZLE: f32 = 1.1;
const TICKS_BETWEEN_SHOTS: Ticks = Ticks(9);
const RESPAWN_DELAY: Ticks = Ticks(150);
/// Positions and velocities live on this grid, which is a multiple of what the codecs below keep. So a client that
/// starts from a snapshot starts from exactly what the server has, and predicts exactly what the server will do.
const GRID: f32 = 1.0 / 256.0;

/// What a player does in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pilot {
    /// A bit for each of [`UP`](Self::UP), [`DOWN`](Self::DOWN), [`LEFT`](Self::LEFT), [`RIGHT`](Self::RIGHT) and
    /// [`FIRE`](Self::FIRE).
    pub keys: u8,
    /// Direction of the gun, in 256ths of a turn from the right, counterclockwise.
    pub aim: u8,
}

impl Pilot {
    pub const UP: u8 = 1;
    pub const DOWN: u8 = 2;
    pub const LEFT: u8 = 4;
    pub const RIGHT: u8 = 8;
    pub const FIRE: u8 = 16;

    /// The aim that points along `direction`.
    pub fn aim_along(direction: Vec2) -> u8 {
        let turns = direction.to_angle() / std::f32::consts::TAU;
        (turns * 256.0).round().rem_euclid(256.0) as u8
    }

    fn wants(self, key: u8) -> bool {
        self.keys & key != 0
    }

    fn direction(self) -> Vec2 {
        let axis = |positive, negative| {
            f32::from(u8::from(self.wants(positive))) - f32::from(u8::from(self.wants(negative)))
        };
        Vec2::new(axis(Self::RIGHT, Self::LEFT), axis(Self::UP, Self::DOWN)).normalize_or_zero()
    }
}

/// A player's ship.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ship {
    /// Whose it is, the same number on all machines; also picks its colour.
    pub number: u32,
    pub name: String,
}

/// Units per second.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Velocity(pub Vec2);

/// When the gun may fire again.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gun {
    ready_at: Tick,
}

/// Zero for a wreck.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health(pub u8);

/// When and where a ship last appeared or will appear again.
///
/// The server writes this the moment a ship is destroyed, long before it takes effect, so the owner predicts its own
/// return in exactly the right tick. Until then the wreck is out of sight but still answers the helm: what the owner
/// predicted before it heard of its end stays right, and there is nothing to correct. For the same reason this is not
/// itself predicted: nobody could have foreseen it, and news of the future need no replay of the past.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Respawn {
    pub at: Tick,
    pub place: Vec2,
}

/// How a player is doing.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub kills: u16,
    pub deaths: u16,
}

/// A bullet. It flies straight, so where it starts says all; nothing of it is sent again until it is gone.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bullet {
    /// The [`Ship::number`] that fired it.
    pub shooter: u32,
    pub born: Tick,
    pub origin: Vec2,
    /// As [`Pilot::aim`].
    pub aim: u8,
}

impl Bullet {
    /// Where it is after so many seconds, walls or not.
    pub fn position(&self, age_seconds: f32) -> Vec2 {
        self.origin + aim_direction(self.aim) * (BULLET_SPEED * age_seconds)
    }

    /// How long it flies before it reaches a wall or is spent.
    pub fn lifetime(&self) -> Ticks {
        let end = (0..BULLET_LIFE.0).find(|&age| map::is_wall(self.position(seconds(age))));
        end.map_or(BULLET_LIFE, Ticks)
    }
}

/// Something that lies about and never moves. `serve --statics` spawns them to show that they cost nothing.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Debris;

/// Told to everybody when a ship is destroyed.
#[derive(Message, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Destroyed {
    pub shooter: u32,
    pub victim: u32,
}

/// A number by which a client finds out whether messages are lost. The server answers each with an [`Echo`].
#[derive(Message, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    pub number: u32,
}

/// The answer to a [`Ping`], with its number.
#[derive(Message, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    pub number: u32,
}

/// What both sides must agree on: what is sent, how, and how the world moves.
pub fn game(app: &mut App) {
    app.add_input::<Pilot>().accumulate(|tick, frame| {
        // A key counts that was down in any frame since the last tick.
        tick.keys |= frame.keys;
        tick.aim = frame.aim;
    });
    app.replicate::<Transform>()
        .quantize(
            TransformCodec::flat(64.0, GRID / 2.0)
                .rotation_bits(8)
                .constant_depth(0.0)
                .scale(Scale::Fixed(Vec3::ONE)),
        )
        .predict()
        .interpolate()
        .teleport_distance(4.0);
    app.replicate::<Velocity>()
        .quantize(quantize::map(
            Vec2Codec::new(32.0, GRID / 2.0),
            |velocity: &Velocity| velocity.0,
            Velocity,
        ))
        .predict();
    app.replicate::<Gun>().predict();
    app.replicate::<Respawn>();
    app.replicate::<Bullet>().predict();
    app.replicate::<Ship>();
    app.replicate::<Health>().interpolate_step();
    app.replicate::<Score>();
    app.replicate::<Debris>();
    app.protocol()
        .add_message::<Destroyed>(Channel::ReliableUnordered)
        .add_message::<Ping>(Channel::ReliableOrdered)
        .add_message::<Echo>(Channel::ReliableOrdered);

    app.add_systems(FixedUpdate, (respawn, steer, fire).chain().in_set(Moves));
}

/// The rules that both sides run.
#[derive(SystemSet, Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Moves;

fn respawn(
    mut ships: Query<(&Respawn, &mut Transform, &mut Velocity), With<Simulated>>,
    tick: Res<CurrentTick>,
) {
    for (respawn, mut transform, mut velocity) in &mut ships {
        if respawn.at == tick.0 {
            transform.translation = respawn.place.extend(0.0);
            velocity.0 = Vec2::ZERO;
        }
    }
}

fn steer(
    mut ships: Query<(&Input<Pilot>, &mut Transform, &mut Velocity), With<Simulated>>,
    time: Res<Time>,
) {
    for (pilot, mut transform, mut velocity) in &mut ships {
        let wanted = pilot.direction() * SHIP_SPEED;
        let mut speed = velocity
            .0
            .move_towards(wanted, ACCELERATION * time.delta_secs());
        let mut position = transform.translation.truncate() + speed * time.delta_secs();
        map::push_out(&mut position, &mut speed, SHIP_RADIUS);

        // A ship at rest must not look changed: that would cost bytes.
        velocity.set_if_neq(Velocity(on_grid(speed)));
        transform.set_if_neq(Transform {
            translation: on_grid(position).extend(0.0),
            rotation: Quat::from_rotation_z(aim_angle(pilot.aim)),
            scale: Vec3::ONE,
        });
    }
}

fn fire(
    mut ships: Query<(&Input<Pilot>, &Ship, &Transform, &Respawn, &mut Gun), With<Simulated>>,
    tick: Res<CurrentTick>,
    mut commands: Commands,
) {
    for (pilot, ship, transform, respawn, mut gun) in &mut ships {
        if !pilot.wants(Pilot::FIRE) || gun.ready_at.is_newer_than(tick.0) {
            continue;
        }
        gun.ready_at = tick.0 + TICKS_BETWEEN_SHOTS;
        let muzzle = transform.translation.truncate() + aim_direction(pilot.aim) * MUZZLE;
        let is_wreck = respawn.at.is_newer_than(tick.0);
        if is_wreck || map::is_wall(muzzle) {
            continue;
        }
        commands.spawn((
            Replicated,
            SpawnKey::new(ship.number, tick.0, 0),
            PredictedBy::Everyone,
            Bullet {
                shooter: ship.number,
                born: tick.0,
                origin: on_grid(muzzle),
                aim: pilot.aim,
            },
        ));
    }
}

/// What only the server decides: who plays, who is hit, who scores.
pub fn referee(app: &mut App) {
    app.add_systems(FixedUpdate, (fly, repair).chain().after(Moves))
        .add_systems(Update, echo)
        .add_observer(enter);
}

fn enter(
    joined: On<SessionJoined>,
    sessions: Query<&Session>,
    ships: Query<&Transform, With<Ship>>,
    tick: Res<CurrentTick>,
    mut commands: Commands,
) {
    let Ok(session) = sessions.get(joined.entity) else {
        return;
    };
    let place = safest_place(&ships);
    commands.spawn((
        Replicated,
        OwnedBy(joined.entity),
        Ship {
            number: session.id.0,
            name: session.name.clone(),
        },
        Transform::from_translation(place.extend(0.0)),
        Velocity::default(),
        Gun { ready_at: tick.0 },
        Respawn { at: tick.0, place },
        Health(FULL_HEALTH),
        Score::default(),
    ));
}

/// Moves each bullet by a tick: it ends in a wall or in the first ship it meets.
fn fly(
    bullets: Query<(Entity, &Bullet)>,
    mut targets: Query<(&Ship, &Transform, &mut Health, &mut Respawn, &mut Score)>,
    places: Query<&Transform, With<Ship>>,
    tick: Res<CurrentTick>,
    mut destroyed: MessageWriter<ToClients<Destroyed>>,
    mut commands: Commands,
) {
    for (entity, bullet) in &bullets {
        let age = tick.0.distance_from(bullet.born).max(0) as u32;
        let from = bullet.position(seconds(age.saturating_sub(1)));
        let to = bullet.position(seconds(age));

        let hit = targets.iter_mut().find(|(ship, transform, health, ..)| {
            let gap = distance_to_segment(transform.translation.truncate(), from, to);
            ship.number != bullet.shooter && health.0 > 0 && gap < SHIP_RADIUS
        });
        let is_spent = hit.is_some() || age >= BULLET_LIFE.0 || map::is_wall(to);
        if is_spent {
            commands.entity(entity).despawn();
        }
        let Some((victim, _, mut health, mut respawn, mut score)) = hit else {
            continue;
        };
        health.0 = health.0.saturating_sub(BULLET_DAMAGE);
        if health.0 > 0 {
            continue;
        }
        score.deaths += 1;
        *respawn = Respawn {
            at: tick.0 + RESPAWN_DELAY,
            place: safest_place(&places),
        };
        let message = Destroyed {
            shooter: bullet.shooter,
            victim: victim.number,
        };
        destroyed.write(ToClients {
            to: Target::All,
            message,
        });
        let shooter = targets
            .iter_mut()
            .find(|(ship, ..)| ship.number == bullet.shooter);
        if let Some((.., mut score)) = shooter {
            score.kills += 1;
        }
    }
}

fn repair(mut ships: Query<(&Respawn, &mut Health)>, tick: Res<CurrentTick>) {
    for (respawn, mut health) in &mut ships {
        if respawn.at == tick.0 {
            health.0 = FULL_HEALTH;
        }
    }
}

fn echo(mut pings: MessageReader<FromClient<Ping>>, mut echoes: MessageWriter<ToClients<Echo>>) {
    for &FromClient { session, message } in pings.read() {
        echoes.write(ToClients {
            to: Target::Session(session),
            message: Echo {
                number: message.number,
            },
        });
    }
}

/// The place to appear that is farthest from every ship.
fn safest_place(ships: &Query<&Transform, With<Ship>>) -> Vec2 {
    let danger = |place: Vec2| {
        ships
            .iter()
            .map(|ship| ship.translation.truncate().distance_squared(place))
            .fold(f32::MAX, f32::min)
    };
    map::spawn_places()
        .max_by(|&a, &b| danger(a).total_cmp(&danger(b)))
        .unwrap_or_default()
}

fn distance_to_segment(point: Vec2, from: Vec2, to: Vec2) -> f32 {
    let along = to - from;
    let share = (point - from).dot(along) / along.length_squared().max(f32::MIN_POSITIVE);
    point.distance(from + along * share.clamp(0.0, 1.0))
}

/// The direction of an aim, in radians.
pub fn aim_angle(aim: u8) -> f32 {
    f32::from(aim) * (std::f32::consts::TAU / 256.0)
}

/// The direction of an aim, as a unit vector.
pub fn aim_direction(aim: u8) -> Vec2 {
    Vec2::from_angle(aim_angle(aim))
}

fn on_grid(v: Vec2) -> Vec2 {
    (v / GRID).round() * GRID
}

fn seconds(ticks: u32) -> f32 {
    ticks as f32 / 60.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_directions_of_unit_length() {
        let pilot = |keys| Pilot { keys, aim: 0 }.direction();
        assert_eq!(pilot(Pilot::UP), Vec2::Y);
        assert_eq!(pilot(Pilot::LEFT | Pilot::FIRE), Vec2::NEG_X);
        assert_eq!(
            pilot(Pilot::UP | Pilot::DOWN),
            Vec2::ZERO,
            "opposites cancel"
        );
        let diagonal = pilot(Pilot::UP | Pilot::RIGHT).length();
        assert!((diagonal - 1.0).abs() < 1e-6, "diagonals are no faster");
    }

    #[test]
    fn aims_round_trip() {
        for aim in 0..=u8::MAX {
            assert_eq!(Pilot::aim_along(aim_direction(aim)), aim);
        }
    }

    #[test]
    fn bullets_end_at_walls() {
        let bullet = Bullet {
            shooter: 0,
            born: Tick(0),
            origin: Vec2::new(map::HALF_SIZE.x - 6.0, 0.0),
            aim: 0,
        };
        let end = bullet.position(seconds(bullet.lifetime().0)).x;
        let wall = map::HALF_SIZE.x - map::TILE;
        assert!((wall..wall + 1.0).contains(&end), "{end} is not at {wall}");
    }
}
