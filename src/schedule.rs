//! When things happen: one network frame, and one simulation step.

use std::time::Duration;

use bevy::prelude::*;

use crate::tick::Tick;

/// One network frame, in the order data flows.
#[derive(SystemSet, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TandemSystems {
    /// Transport bytes become snapshots and queued inputs; on a server, also messages ([`PreUpdate`]).
    Receive,
    /// On a client, snapshots become the world, and then what came with them becomes messages ([`PreUpdate`]).
    Apply,
    /// The tick's inputs are put on the entities that they steer ([`FixedPreUpdate`]). A client's game writes
    /// [`LocalInput`](crate::input::LocalInput) before this.
    Sample,
    /// Game logic advances one tick, also when replaying ([`FixedUpdate`]).
    Simulate,
    /// Unacknowledged changes become one snapshot per client ([`PostUpdate`]).
    Collect,
    /// Snapshots and inputs become transport bytes ([`PostUpdate`]).
    Send,
}

/// The tick that is being simulated, or was last.
///
/// On a client it runs ahead of the server's by as much as inputs need to travel. In replays it is the replayed tick.
#[derive(Resource, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CurrentTick(pub Tick);

/// Whether the simulation is being replayed after a correction.
///
/// For a run condition: `not(replaying)` keeps sounds and particles from being made twice.
#[derive(Resource, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaying(pub bool);

/// Run condition: the simulation is being replayed after a correction.
pub fn replaying(replaying: Res<Replaying>) -> bool {
    replaying.0
}

/// The tick, its length, and the order of systems. Both sides have it.
#[derive(Clone, Copy, Debug)]
pub struct TickPlugin {
    /// Simulation steps per second; 60 by default. A client takes over its server's.
    pub tick_rate_hz: f64,
}

impl Default for TickPlugin {
    fn default() -> Self {
        Self { tick_rate_hz: 60.0 }
    }
}

impl Plugin for TickPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CurrentTick>()
            .init_resource::<Replaying>()
            .insert_resource(Time::<Fixed>::from_hz(self.tick_rate_hz))
            .configure_sets(
                PreUpdate,
                (TandemSystems::Receive, TandemSystems::Apply).chain(),
            )
            .configure_sets(
                PostUpdate,
                (TandemSystems::Collect, TandemSystems::Send).chain(),
            )
            .configure_sets(FixedPreUpdate, TandemSystems::Sample)
            .configure_sets(FixedUpdate, TandemSystems::Simulate)
            .add_systems(FixedFirst, advance_tick);
    }
}

/// Counts the tick, and makes `Time` a function of it: elapsed time is then the same on both sides and in replays.
fn advance_tick(mut tick: ResMut<CurrentTick>, fixed: Res<Time<Fixed>>, mut time: ResMut<Time>) {
    tick.0.0 = tick.0.0.wrapping_add(1);
    *time = time_at(tick.0, fixed.timestep());
}

/// The time context of a tick.
pub(crate) fn time_at(tick: Tick, timestep: Duration) -> Time {
    let mut time = Time::default();
    time.advance_to(timestep * tick.0.wrapping_sub(1));
    time.advance_by(timestep);
    time
}
