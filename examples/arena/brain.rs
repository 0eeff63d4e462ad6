//! A player without a person: wanders, aims and shoots, all from a seed.
#![allow(dead_code)]

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use fastrand::Rng;

use crate::game::{self, Health, Pilot, Ship, Velocity};
use crate::map;

/// Farther ships are left alone, in units.
const SIGHT: f32 = 26.0;
/// How close counts as there, in units.
const ARRIVED: f32 = 1.5;

/// Lets this client play by itself.
#[derive(Clone, Debug)]
pub struct BrainPlugin {
    /// The same seed and the same surroundings make the same choices.
    pub seed: u64,
    /// Connect and stand still.
    pub still: bool,
}

impl Plugin for BrainPlugin {
    fn build(&self, app: &mut App) {
        if self.still {
            return;
        }
        app.insert_resource(Brain {
            rng: Rng::with_seed(self.seed),
            goal: Vec2::ZERO,
            patience: 0,
            keys: 0,
            trigger: 0,
            rest: 0,
            error: 0.0,
        })
        .add_systems(FixedPreUpdate, think.before(TandemSystems::Sample));
    }
}

#[derive(Resource)]
struct Brain {
    rng: Rng,
    /// Where to go.
    goal: Vec2,
    /// Ticks until another goal, reached or not.
    patience: u32,
    keys: u8,
    /// Ticks of fire left; below zero, ticks of rest so far.
    trigger: i32,
    /// Ticks to rest after a burst.
    rest: i32,
    /// How far off it aims, in radians: to lose sometimes.
    error: f32,
}

fn think(
    mut brain: ResMut<Brain>,
    me: Query<(&Transform, &Ship), With<Owned>>,
    others: Query<(&Transform, &Health, Option<&Velocity>), (With<Ship>, Without<Owned>)>,
    mut input: ResMut<LocalInput<Pilot>>,
) {
    let Some((me, _)) = me.iter().next() else {
        return;
    };
    let here = me.translation.truncate();
    let target = others
        .iter()
        .filter(|(_, health, _)| health.0 > 0)
        .map(|(transform, _, velocity)| {
            let there = transform.translation.truncate();
            (there, velocity.map_or(Vec2::ZERO, |velocity| velocity.0))
        })
        .filter(|&(there, _)| here.distance(there) < SIGHT && map::is_clear(here, there))
        .min_by(|&(a, _), &(b, _)| here.distance(a).total_cmp(&here.distance(b)));

    brain.walk(here, target.map(|(there, _)| there));
    input.0.keys = brain.keys;
    match target {
        Some((there, velocity)) => {
            let flight = there.distance(here) / game::BULLET_SPEED;
            let ahead = there + velocity * flight - here;
            input.0.aim = Pilot::aim_along(Vec2::from_angle(brain.error).rotate(ahead));
            if brain.pull_trigger() {
                input.0.keys |= Pilot::FIRE;
            }
        }
        None if brain.keys != 0 => input.0.aim = Pilot::aim_along(brain.goal - here),
        None => {}
    }
}

impl Brain {
    /// Picks the keys that lead to the goal, and now and then another goal.
    fn walk(&mut self, here: Vec2, target: Option<Vec2>) {
        let is_there = here.distance(self.goal) < ARRIVED;
        if self.patience == 0 || is_there || !map::is_clear(here, self.goal) {
            self.goal = self.pick_goal(here, target);
            self.patience = self.rng.u32(40..150);
        }
        self.patience -= 1;

        let way = self.goal - here;
        let key = |along: f32, positive, negative| match along {
            _ if along > 0.7 => positive,
            _ if along < -0.7 => negative,
            _ => 0,
        };
        self.keys = key(way.x, Pilot::RIGHT, Pilot::LEFT) | key(way.y, Pilot::UP, Pilot::DOWN);
    }

    /// A place in plain sight: around the target if there is one, else anywhere.
    fn pick_goal(&mut self, here: Vec2, target: Option<Vec2>) -> Vec2 {
        for _ in 0..12 {
            let goal = match target {
                Some(there) => there + self.direction() * (6.0 + 8.0 * self.rng.f32()),
                None => here + self.direction() * (4.0 + 20.0 * self.rng.f32()),
            };
            // Not along a wall, where it would get stuck.
            if map::is_clear(here, goal) && !map::is_wall(goal + (goal - here).normalize_or_zero())
            {
                return goal;
            }
        }
        here + self.direction() * 3.0
    }

    /// Fires in bursts, each with an error of its own.
    fn pull_trigger(&mut self) -> bool {
        self.trigger -= 1;
        if self.trigger < -self.rest {
            self.trigger = self.rng.i32(20..60);
            self.rest = self.rng.i32(20..70);
            self.error = (self.rng.f32() - 0.5) * 0.5;
        }
        self.trigger > 0
    }

    fn direction(&mut self) -> Vec2 {
        Vec2::from_angle(self.rng.f32() * std::f32::consts::TAU)
    }
}
