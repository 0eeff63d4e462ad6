//! A game of ships that are steered, and of shots that both sides spawn.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

use crate::game::*;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub steer: i8,
    pub fires: bool,
}

/// Where a ship is; predicted and not smoothed.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct At(pub f32);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ship;

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shot(pub u16);

/// What a shot trails behind it: a child of its own.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trail(pub u8);

/// Predicted, names an entity.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock(#[entities] pub Entity);

/// On a client that believes that its ship is gone.
#[derive(Resource)]
pub struct Believes;

pub fn ships(app: &mut App) {
    app.add_input::<Control>();
    app.replicate::<Tag>();
    app.replicate::<At>().predict();
    app.replicate::<Ship>();
    app.replicate::<Shot>().predict();
    app.replicate::<Trail>();
    app.replicate::<Lock>().predict();
    app.replicate::<Place>().predict().interpolate();
    app.add_systems(FixedUpdate, (steer, fly, fire, believe).chain());
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Ship, At(0.0)));
    });
}

pub fn steer(mut ships: Query<(&Input<Control>, &mut At), (With<Ship>, With<Simulated>)>) {
    for (input, mut at) in &mut ships {
        at.0 += f32::from(input.steer) * 0.125;
    }
}

pub fn fly(
    mut shots: Query<(Entity, &mut Shot, &mut At), With<Simulated>>,
    mut commands: Commands,
) {
    for (entity, mut shot, mut at) in &mut shots {
        at.0 += 0.25;
        shot.0 -= 1;
        if shot.0 == 0 {
            commands.entity(entity).despawn();
        }
    }
}

pub fn fire(
    ships: Query<(&Input<Control>, &At, &Owner), (With<Ship>, With<Simulated>)>,
    tick: Res<CurrentTick>,
    mut commands: Commands,
) {
    for (input, at, owner) in &ships {
        if input.fires {
            let shot = commands
                .spawn((
                    Replicated,
                    SpawnKey::new(owner.0.0, tick.0, 0),
                    Shot(120),
                    At(at.0),
                ))
                .id();
            commands.spawn((
                Replicated,
                SpawnKey::new(owner.0.0, tick.0, 1),
                Trail(1),
                ChildOf(shot),
            ));
        }
    }
}

pub fn believe(
    ships: Query<Entity, (With<Ship>, With<Predicted>)>,
    believes: Option<Res<Believes>>,
    mut commands: Commands,
) {
    if believes.is_some() {
        for ship in &ships {
            commands.entity(ship).despawn();
        }
    }
}

pub fn control(net: &mut TestNet, client: TestClientId, steer: i8, fires: bool) {
    net.client(client)
        .insert_resource(LocalInput(Control { steer, fires }));
}

pub fn own(net: &mut TestNet, client: TestClientId) -> f32 {
    let world = net.client(client).world_mut();
    let mut own = world.query_filtered::<&At, (With<Owned>, With<Ship>)>();
    own.single(world).unwrap().0
}

pub fn real(net: &mut TestNet) -> f32 {
    let world = net.server.world_mut();
    let mut ships = world.query_filtered::<&At, With<Ship>>();
    ships.single(world).unwrap().0
}

pub fn ship(net: &mut TestNet) -> Entity {
    let world = net.server.world_mut();
    let mut ships = world.query_filtered::<Entity, With<Ship>>();
    ships.single(world).unwrap()
}

/// Steers for a while: the server moves the ship by what was steered, and the client ends where it is.
pub fn steering_works(net: &mut TestNet, client: TestClientId) {
    let before = real(net);
    control(net, client, 1, false);
    net.run(Ticks(60));
    control(net, client, 0, false);
    net.run(Ticks(90));
    let moved = real(net) - before;
    // On a bad link, the first and the last inputs may come late.
    assert!((moved - 7.5).abs() < 1.5, "moved by {moved}");
    assert_eq!(own(net, client), real(net));
}

#[test]
fn a_ship_that_an_observer_hands_on_while_it_is_spawned_is_the_other_players_everywhere() {
    /// To whom everything is given.
    #[derive(Resource)]
    struct Heir(Entity);

    let (mut net, ada) = with_ada(game, clean());
    let bob = net.join("Bob");
    net.run(Ticks(90));
    let sessions = [ada, bob].map(|client| net.session(client).unwrap());
    let world = net.server.world_mut();
    world.insert_resource(Heir(sessions[1]));
    world.add_observer(
        |added: On<Add, Replicated>, heir: Res<Heir>, mut commands: Commands| {
            commands.entity(added.entity).insert(OwnedBy(heir.0));
        },
    );
    let ship = spawn(&mut net, (Tag(1), OwnedBy(sessions[0])));
    let heir = net.server.world().get::<Session>(sessions[1]).unwrap().id;
    assert_eq!(on_server(&mut net, ship).get(), Some(&Owner(heir)));
    net.run(Ticks(60));
    assert_eq!(value(&mut net, ada, 1), Some(Owner(heir)));
    assert!(value::<Owned>(&mut net, ada, 1).is_none());
    assert!(value::<Owned>(&mut net, bob, 1).is_some());

    // Taken away by an observer of its own.
    net.server
        .world_mut()
        .add_observer(|owned: On<Insert, OwnedBy>, mut commands: Commands| {
            commands.entity(owned.entity).remove::<OwnedBy>();
        });
    let wreck = spawn(&mut net, (Tag(2), OwnedBy(sessions[0])));
    assert!(!on_server(&mut net, wreck).contains::<Owner>());
    net.run(Ticks(60));
    assert_eq!(value::<Owner>(&mut net, ada, 2), None);
}

#[test]
fn a_ship_whose_owner_does_not_hold_has_no_input() {
    let (mut net, ada) = with_ada(ships, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    world.add_observer(
        |owned: On<Insert, OwnedBy>, ships: Query<&Tag>, mut commands: Commands| {
            if ships.contains(owned.entity) {
                commands.entity(owned.entity).remove::<OwnedBy>();
            }
        },
    );
    let refused = world.spawn((Replicated, Tag(1), OwnedBy(session))).id();
    world.despawn(session);
    let orphan = world.spawn((Replicated, Tag(2), OwnedBy(session))).id();
    world.flush();
    net.run(Ticks(2));
    for ship in [refused, orphan] {
        let ship = net.server.world().entity(ship);
        assert!(!ship.contains::<OwnedBy>() && !ship.contains::<Owner>());
        assert!(!ship.contains::<Input<Control>>());
    }
}
