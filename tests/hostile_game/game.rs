//! The game that is played, the same on both sides.

use std::cell::RefCell;
use std::collections::HashSet;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub steer: i8,
    pub fires: bool,
}

macro_rules! component {
    ($($(#[$meta:meta])* $name:ident($type:ty);)*) => {$(
        #[derive(Component, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        $(#[$meta])*
        pub struct $name(pub $type);
    )*};
}

component! {
    /// Tells entities apart. Each has one as long as it lives.
    Tag(u32);
    Health(u32);
    /// Interpolated, and predicted. No entity of the server's is ever near the origin: all are around 100,000, and move a few
    /// hundred when they move.
    Place(f32);
    /// Shown when its moment has come.
    Mode(u32);
    /// Predicted.
    Speed(u32);
    /// Often too large for a snapshot.
    Big(Vec<u8>);
    /// Spawned early by the client that fires; ends after so many ticks.
    Shot(u16);
    /// Of each thing, as long as it lives.
    #[require(Drawn)]
    Kind(u8);
    /// Of some, as long as they live; these always have a place.
    #[require(Place)]
    Body(u8);
}

/// Names an entity, and says which tag that has.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    #[entities]
    pub whom: Entity,
    pub tag: u32,
}

/// What the client draws; not replicated.
#[derive(Component, Default)]
pub struct Drawn;

/// What an observer of the client's puts on bodies.
#[derive(Component)]
#[require(Place)]
pub struct Picture;

/// An entity, or a component, of the client's own.
#[derive(Component)]
pub struct Own;

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ship;

/// Names an entity, and says which tag that has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bevy::ecs::entity::MapEntities)]
pub struct Hit {
    #[entities]
    pub whom: Entity,
    pub tag: u32,
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

/// Number of the next thing that the server spawns.
#[derive(Resource, Default)]
pub struct NextTag(pub u32);

/// Messages that named a stranger.
#[derive(Resource, Default)]
pub struct Strangers(pub Vec<String>);

pub fn game(app: &mut App) {
    app.add_input::<Control>();
    app.replicate::<Health>();
    app.replicate::<Body>();
    app.replicate::<Kind>();
    app.replicate::<Tag>();
    app.replicate::<Place>().predict().interpolate();
    app.replicate::<Mode>().interpolate_step();
    app.replicate::<Speed>().predict();
    app.replicate::<Aim>();
    app.replicate::<Big>();
    app.replicate::<Shot>().predict();
    app.replicate::<Ship>();
    app.protocol()
        .add_mapped_message::<Hit>(Channel::ReliableOrdered);
    app.init_resource::<NextTag>()
        .init_resource::<Strangers>()
        .add_systems(
            FixedUpdate,
            (steer, fly, fire).chain().in_set(TandemSystems::Simulate),
        )
        .add_observer(enter)
        .add_observer(draw);
}

/// On the server.
fn enter(joined: On<SessionJoined>, mut next: ResMut<NextTag>, mut commands: Commands) {
    next.0 += 1;
    // An observer that came before may have ended the session.
    let (session, tag) = (joined.entity, next.0);
    commands.queue(move |world: &mut World| {
        if world.get_entity(session).is_ok() {
            world.spawn((
                Replicated,
                OwnedBy(session),
                (Tag(tag), Kind(0), Body(0), Place(100_500.0)),
                (Ship, Speed(1)),
            ));
        }
    });
}

/// On clients: what requires a place, right when a body appears.
fn draw(added: On<Add, Body>, bodies: Query<(), Without<OwnedBy>>, mut commands: Commands) {
    if bodies.contains(added.entity) {
        commands.entity(added.entity).try_insert(Picture);
    }
}

fn steer(mut ships: Query<(&Input<Control>, &mut Place), (With<Ship>, With<Simulated>)>) {
    for (input, mut place) in &mut ships {
        if input.steer != 0 {
            place.0 = (place.0 + f32::from(input.steer)).clamp(100_100.0, 100_900.0);
        }
    }
}

fn fly(mut shots: Query<(Entity, &mut Shot, &mut Speed), With<Simulated>>, mut commands: Commands) {
    for (entity, mut shot, mut speed) in &mut shots {
        speed.0 = speed.0.wrapping_add(3);
        shot.0 = shot.0.saturating_sub(1);
        if shot.0 == 0 {
            commands.entity(entity).try_despawn();
        }
    }
}

fn fire(
    ships: Query<(&Input<Control>, &Owner), (With<Ship>, With<Simulated>)>,
    tick: Res<CurrentTick>,
    mut next: ResMut<NextTag>,
    mut commands: Commands,
) {
    for (input, owner) in &ships {
        if input.fires {
            next.0 += 1;
            let shot = commands
                .spawn((
                    Replicated,
                    SpawnKey::new(owner.0.0, tick.0, 0),
                    (Shot(40), Speed(0)),
                ))
                .id();
            commands.spawn((
                Replicated,
                SpawnKey::new(owner.0.0, tick.0, 1),
                Health(7),
                ChildOf(shot),
            ));
        }
    }
}
