//! What happens in the server's world.

use bevy::ecs::entity_disabling::Disabled;
use bevy::prelude::*;
use bevy_tandem::prelude::*;
use fastrand::Rng;

use crate::game::*;

/// Number of the next thing.
#[derive(Resource, Default)]
struct NextTag(u32);

/// Despawned when another's numbers change to something: by an observer.
#[derive(Component)]
struct Doomed;

/// The carriers, and observers of the server's game.
pub fn set_up(world: &mut World) {
    world.init_resource::<NextTag>();
    for band in 1..3 {
        let tag = next_tag(world);
        world.spawn((Replicated, Tag(tag), Carrier(band)));
    }
    world.spawn(Room);
    world.spawn(Room);
    world.add_observer(
        |_: On<Insert, Left>, doomed: Query<Entity, With<Doomed>>, mut commands: Commands| {
            if let Some(entity) = doomed.iter().next() {
                commands.entity(entity).try_despawn();
            }
        },
    );
    world.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        let session = joined.entity;
        commands.queue(move |world: &mut World| {
            let tag = next_tag(world);
            world.spawn((Replicated, OwnedBy(session), Tag(tag), Speed(1)));
        });
    });
}

fn next_tag(world: &mut World) -> u32 {
    let mut next = world.resource_mut::<NextTag>();
    next.0 += 1;
    next.0
}

/// What is hidden from queries is no more.
pub fn calm_down(world: &mut World) {
    for entity in all::<With<Disabled>>(world) {
        if world.get::<Tag>(entity).is_some() {
            world.entity_mut(entity).remove::<Disabled>();
        }
    }
}

fn one(rng: &mut Rng, of: &[Entity]) -> Option<Entity> {
    (!of.is_empty()).then(|| of[rng.usize(..of.len())])
}

/// Something happens.
pub fn act(world: &mut World, rng: &mut Rng) {
    let things = all::<(With<Tag>, Without<Carrier>)>(world);
    let Some(thing) = one(rng, &things) else {
        return spawn(world, rng);
    };
    match rng.u32(..100) {
        0..=14 if things.len() < 50 => spawn(world, rng),
        15..=20 => {
            world.despawn(thing);
        }
        21..=40 => change(world, rng, thing),
        41..=46 => remove(world, rng, thing),
        47..=50 => {
            // As if it had never gone.
            remove(world, rng, thing);
            change(world, rng, thing);
        }
        51..=54 => {
            let mut entity = world.entity_mut(thing);
            let tag = entity.get::<Tag>().expect("things have tags").0;
            MARKED_ANEW.with_borrow_mut(|anew| anew.insert(tag));
            let had = entity.contains::<Replicated>();
            entity.remove::<Replicated>();
            if !had || rng.bool() {
                entity.insert(Replicated);
            }
        }
        55..=62 => reparent(world, rng, thing),
        63..=72 => settle_in_band(world, rng),
        73..=78 => change_rooms(world, rng, thing),
        79..=82 => {
            let mut entity = world.entity_mut(thing);
            if entity.contains::<Disabled>() {
                entity.remove::<Disabled>();
            } else {
                entity.insert(Disabled);
            }
        }
        83..=89 => change_settings(world, rng, thing),
        90..=96 => refer(world, rng, thing, &things),
        _ => {
            world.entity_mut(thing).insert(Doomed);
        }
    }
}

fn spawn(world: &mut World, rng: &mut Rng) {
    let tag = next_tag(world);
    let thing = world.spawn((Replicated, Tag(tag))).id();
    if rng.u8(..10) == 0 {
        world.entity_mut(thing).insert(Fragile);
        return;
    }
    if rng.u8(..3) == 0 {
        world.entity_mut(thing).insert(Banded);
        put_in_band(world, rng, thing);
    }
    for _ in 0..rng.usize(..6) {
        change(world, rng, thing);
    }
    let things = all::<(With<Tag>, Without<Fragile>)>(world);
    if rng.u8(..3) == 0 {
        refer(world, rng, thing, &things);
    }
    if rng.u8(..3) == 0 {
        reparent(world, rng, thing);
    }
    if rng.u8(..3) == 0 {
        change_rooms(world, rng, thing);
    }
    if rng.u8(..3) == 0 {
        change_settings(world, rng, thing);
    }
}

/// Into the space of a carrier, or of none: place, mode and parent in one tick.
fn put_in_band(world: &mut World, rng: &mut Rng, thing: Entity) {
    let band = rng.u32(..3);
    let place = (band as f32 + 0.5) * BAND + rng.f32() * 300.0;
    let mode = rng.u32(..1_000) * 3 + band;
    let carriers = all::<With<Carrier>>(world);
    let carrier = carriers
        .into_iter()
        .find(|carrier| world.get::<Carrier>(*carrier).is_some_and(|c| c.0 == band));
    let mut entity = world.entity_mut(thing);
    entity.insert((Place(place), Mode(mode)));
    match carrier {
        Some(carrier) => entity.insert(ChildOf(carrier)),
        None => entity.remove::<ChildOf>(),
    };
}

fn settle_in_band(world: &mut World, rng: &mut Rng) {
    let banded = all::<With<Banded>>(world);
    let Some(thing) = one(rng, &banded) else {
        return;
    };
    if rng.u8(..4) == 0 {
        world.entity_mut(thing).remove::<(Place, Mode)>();
    } else {
        put_in_band(world, rng, thing);
    }
}

fn change(world: &mut World, rng: &mut Rng, thing: Entity) {
    let mut entity = world.entity_mut(thing);
    if entity.contains::<Fragile>() {
        return;
    }
    let is_banded = entity.contains::<Banded>();
    match rng.u8(..7) {
        0 | 1 => {
            let number = rng.u32(..);
            if entity.contains::<Left>() && rng.bool() {
                entity.get_mut::<Left>().expect("it has").0 = number;
                entity.get_mut::<Right>().expect("it has").0 = number;
            } else {
                entity.insert((Right(number), Left(number)));
            }
        }
        2 if !is_banded => {
            entity.insert(Place(rng.f32() * 800.0 + 100.0));
        }
        3 if !is_banded => {
            entity.insert(Mode(rng.u32(..)));
        }
        4 => {
            entity.insert(Speed(rng.u32(..)));
        }
        5 if rng.u8(..4) == 0 => {
            let size = [30, 200, 300, 3_000][rng.usize(..4)];
            entity.insert(Big(vec![rng.u8(..); size]));
        }
        _ if !is_banded => {
            if let Some(mut place) = entity.get_mut::<Place>() {
                place.0 += rng.f32() * 10.0;
            }
        }
        _ => {}
    }
}

fn remove(world: &mut World, rng: &mut Rng, thing: Entity) {
    let mut entity = world.entity_mut(thing);
    let is_banded = entity.contains::<Banded>();
    match rng.u8(..6) {
        0 => entity.remove::<(Left, Right)>(),
        1 if !is_banded => entity.remove::<Place>(),
        2 if !is_banded => entity.remove::<Mode>(),
        3 => entity.remove::<Speed>(),
        4 => entity.remove::<(Aim, Group)>(),
        _ => entity.remove::<Big>(),
    };
}

fn is_above(world: &World, above: Entity, below: Entity) -> bool {
    let mut at = below;
    loop {
        if at == above {
            return true;
        }
        let Some(parent) = world.get::<ChildOf>(at) else {
            return false;
        };
        at = parent.parent();
    }
}

fn reparent(world: &mut World, rng: &mut Rng, thing: Entity) {
    if world.get::<Banded>(thing).is_some() {
        return;
    }
    let things = all::<(With<Tag>, Without<Fragile>)>(world);
    match one(rng, &things) {
        Some(parent) if rng.u8(..4) > 0 && !is_above(world, thing, parent) => {
            world.entity_mut(thing).insert(ChildOf(parent));
        }
        _ => {
            let parent = world.get::<ChildOf>(thing).map(ChildOf::parent);
            world.entity_mut(thing).remove::<ChildOf>();
            // What is taken off while its parent dies.
            if let Some(parent) = parent
                && rng.bool()
                && world.get::<Carrier>(parent).is_none()
            {
                world.despawn(parent);
            }
        }
    }
}

/// Carriers, and what hangs below them, stay where everybody is.
fn change_rooms(world: &mut World, rng: &mut Rng, thing: Entity) {
    let rooms = all::<With<Room>>(world);
    let sessions = all::<With<Session>>(world);
    let who = match one(rng, &sessions) {
        Some(session) if rng.u8(..3) == 0 => session,
        _ => thing,
    };
    let mut entity = world.entity_mut(who);
    if rng.u8(..3) == 0 {
        entity.remove::<InRoom>();
    } else if let Some(room) = one(rng, &rooms) {
        entity.insert(InRoom(room));
    }
}

fn change_settings(world: &mut World, rng: &mut Rng, thing: Entity) {
    let sessions = all::<With<Session>>(world);
    let owner = one(rng, &sessions);
    let mut entity = world.entity_mut(thing);
    let by = [
        PredictedBy::Owner,
        PredictedBy::Everyone,
        PredictedBy::Nobody,
    ][rng.usize(..3)];
    let priority = Priority([0.1, 1.0, 5.0][rng.usize(..3)]);
    match rng.u8(..8) {
        0 => {
            entity.insert(priority);
        }
        1 => {
            if let Some(mut at) = entity.get_mut::<Priority>() {
                *at = priority;
            }
        }
        2 => {
            entity.insert(by);
        }
        3 => {
            if let Some(mut at) = entity.get_mut::<PredictedBy>() {
                *at = by;
            }
        }
        4 => {
            entity.remove::<(PredictedBy, Priority)>();
        }
        5 => {
            entity.remove::<OwnedBy>();
        }
        _ => {
            if let Some(owner) = owner {
                entity.insert(OwnedBy(owner));
            }
        }
    }
}

fn refer(world: &mut World, rng: &mut Rng, thing: Entity, things: &[Entity]) {
    let others: Vec<_> = (0..rng.usize(..5))
        .filter_map(|_| one(rng, things))
        .collect();
    let tag = |entity: Entity| world.get::<Tag>(entity).map(|tag| tag.0);
    let Some((&whom, tag)) = others.first().and_then(|whom| Some((whom, tag(*whom)?))) else {
        return;
    };
    world
        .entity_mut(thing)
        .insert((Aim { whom, tag }, Group { members: others }));
}
