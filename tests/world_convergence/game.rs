//! The game, the same on both sides, and what a client adds.

use std::cell::RefCell;
use std::collections::HashSet;

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::query::Allow;
use bevy::prelude::*;
use bevy_tandem::prelude::*;
use serde::{Deserialize, Serialize};

use crate::log;

macro_rules! component {
    ($($(#[$meta:meta])* $name:ident($type:ty);)*) => {$(
        $(#[$meta])*
        #[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name(pub $type);
    )*};
}

component! {
    /// Tells entities apart. Each has one as long as it lives.
    Tag(u32);
    /// The server changes, inserts and removes the two together, to the same value.
    Left(u32);
    Right(u32);
    /// Interpolated. Which band it is in tells in whose space, and so do [`Mode`] and the parent: see [`BAND`].
    Place(f32);
    /// Shown when its moment has come; always where [`Place`] is.
    Mode(u32);
    /// Predicted.
    Speed(u32);
    /// Often too large for a snapshot.
    Big(Vec<u8>);
    /// One of those below which banded entities hang. They never go, and everybody sees them.
    Carrier(u32);
}

/// An entity whose place, mode and parent change together.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Banded;

/// Clients despawn their copies of such as soon as they come.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fragile;

/// Names an entity, and says which tag that has.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    #[entities]
    pub whom: Entity,
    pub tag: u32,
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    #[entities]
    pub members: Vec<Entity>,
}

impl Blend for Place {
    fn blend(&self, to: &Self, t: f32) -> Self {
        Self(self.0 + (to.0 - self.0) * t)
    }
    fn separation(&self, to: &Self) -> f32 {
        (to.0 - self.0).abs()
    }
    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        Self(self.0 + (from.0 - to.0) * weight)
    }
}

thread_local! {
    /// Tags of entities whose marker was taken away and given back: to clients, another entity, which they see while the
    /// one before is still about to leave.
    pub static MARKED_ANEW: RefCell<HashSet<u32>> = RefCell::default();
}

/// Values of a band lie this far from the next band's: further than motion goes on when nothing comes.
pub const BAND: f32 = 100_000.0;

pub fn game(app: &mut App) {
    app.add_input::<u8>();
    app.replicate::<Tag>();
    app.replicate::<Left>();
    app.replicate::<Place>().interpolate();
    app.replicate::<Mode>().interpolate_step();
    app.replicate::<Speed>().predict();
    app.replicate::<Aim>();
    app.replicate::<Group>();
    app.replicate::<Big>();
    app.replicate::<Carrier>();
    app.replicate::<Banded>();
    app.replicate::<Fragile>();
    app.replicate::<Right>();
}

/// What a client's game adds: observers that look, insert, spawn and despawn.
pub fn client_game(app: &mut App) {
    game(app);
    log::install(app);
    app.add_observer(|added: On<Add, Fragile>, mut commands: Commands| {
        commands.entity(added.entity).try_despawn();
    });
    app.add_observer(|added: On<Add, Right>, mut commands: Commands| {
        commands.entity(added.entity).try_insert(Decorated);
    });
    app.add_observer(|added: On<Add, Banded>, mut commands: Commands| {
        commands.spawn((Ornament, ChildOf(added.entity)));
    });
}

/// On a client: what its observers put on copies.
#[derive(Component)]
pub struct Decorated;

/// On a client: what it hangs below copies.
#[derive(Component)]
pub struct Ornament;

/// The band that a parent stands for: 0 for none.
fn band_of_parent(world: &World, entity: Entity) -> u32 {
    let parent = world.get::<ChildOf>(entity).map(ChildOf::parent);
    let carrier = parent.and_then(|parent| world.get::<Carrier>(parent));
    carrier.map_or(0, |carrier| carrier.0)
}

/// Whether what is changed together on the server is together on this entity. There are carriers of these bands.
pub fn is_consistent(world: &World, entity: Entity, bands: &[u32]) -> Result<(), String> {
    let at = world.entity(entity);
    let left = at.get::<Left>().map(|left| left.0);
    let right = at.get::<Right>().map(|right| right.0);
    if left != right {
        return Err(format!("left is {left:?}, and right {right:?}"));
    }
    if at.contains::<Banded>() {
        let place = at.get::<Place>().map(|place| place.0);
        let mode = at.get::<Mode>().map(|mode| mode.0 % 3);
        let band = place.map(|place| (place / BAND) as u32);
        if band != mode {
            return Err(format!("at {place:?} in mode {mode:?}"));
        }
        let parent = band_of_parent(world, entity);
        // Who joins may be told of a carrier later than of what hangs below it.
        let is_right = |band| band == parent || (parent == 0 && !bands.contains(&band));
        if !band.is_none_or(is_right) {
            return Err(format!("at {place:?} in the space of {parent}"));
        }
    }
    if let Some(aim) = at.get::<Aim>()
        && let Some(named) = world.get::<Tag>(aim.whom)
        && named.0 != aim.tag
    {
        return Err(format!("aims at {}, not at {}", named.0, aim.tag));
    }
    Ok(())
}

/// All entities that have it, whatever hides them.
pub fn all<F: bevy::ecs::query::QueryFilter>(world: &mut World) -> Vec<Entity> {
    let mut query = world.query_filtered::<Entity, (F, Allow<Disabled>)>();
    query.iter(world).collect()
}
