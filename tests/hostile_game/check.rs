//! What must hold.

use std::collections::BTreeMap;

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::query::Allow;
use bevy::platform::collections::HashMap;
use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};

use crate::game::*;
use crate::mischief::{Mischief, Touched};

/// In every frame, on a client: nothing is there twice, half, at the origin, or taken for another.
pub fn always(app: &mut App) {
    let world = app.world_mut();
    let mut copies = world.query_filtered::<(
        Entity,
        &Tag,
        Has<Kind>,
        Has<Drawn>,
        (Has<Body>, Has<Picture>, Option<&Place>),
        Option<&Aim>,
    ), (With<Replicated>, Allow<Disabled>)>();
    let mut seen: HashMap<u32, Entity> = HashMap::default();
    let touched = &world.resource::<Mischief>().touched;
    for (entity, tag, has_kind, is_drawn, (is_body, has_picture, place), aim) in copies.iter(world)
    {
        if let Some(other) = seen.insert(tag.0, entity)
            && !MARKED_ANEW.with_borrow(|anew| anew.contains(&tag.0))
        {
            panic!("{entity} and {other} both have tag {}", tag.0);
        }
        assert!(has_kind && is_drawn, "{} is whole", tag.0);
        assert_eq!(is_body, has_picture, "{} was drawn at once", tag.0);
        if is_body && !touched.contains(&(tag.0, Touched::Place)) {
            let place = place.map(|place| place.0);
            assert!(
                place.is_some_and(|place| (50_000.0..150_000.0).contains(&place)),
                "{} is at {place:?}",
                tag.0
            );
        }
        if let Some(aim) = aim
            && let Some(named) = world.get::<Tag>(aim.whom)
        {
            assert_eq!(named.0, aim.tag, "{} aims at a stranger", tag.0);
        }
    }
}

/// What is compared of an entity.
#[derive(Debug, Default, PartialEq)]
struct State {
    health: Option<Health>,
    place: Option<Place>,
    mode: Option<Mode>,
    speed: Option<Speed>,
    big: Option<Big>,
    kind: Option<Kind>,
    owner: Option<u32>,
    /// By tag.
    aim: Option<Option<u32>>,
    parent: Option<u32>,
}

fn state(world: &World, entity: Entity) -> State {
    let at = world.entity(entity);
    let tag = |entity: Entity| world.get::<Tag>(entity).map(|tag| tag.0);
    State {
        health: at.get().cloned(),
        place: at.get().cloned(),
        mode: at.get().cloned(),
        speed: at.get().cloned(),
        big: at.get().cloned(),
        kind: at.get().cloned(),
        owner: at.get::<Owner>().map(|owner| owner.0.0),
        aim: at.get::<Aim>().map(|aim| tag(aim.whom)),
        parent: at.get::<ChildOf>().and_then(|parent| tag(parent.parent())),
    }
}

fn room_of(world: &World, entity: Entity) -> Option<Entity> {
    let mut at = entity;
    loop {
        if let Some(room) = world.get::<InRoom>(at) {
            return Some(room.0);
        }
        at = world.get::<ChildOf>(at)?.parent();
    }
}

/// What a session should see, by tag.
fn expected(world: &mut World, session: Entity) -> BTreeMap<u32, State> {
    let mut things = world.query_filtered::<(Entity, &Tag), (With<Replicated>, Allow<Disabled>)>();
    let things: Vec<_> = things.iter(world).map(|(e, tag)| (e, tag.0)).collect();
    let world = &*world;
    let own = room_of(world, session);
    let is_seen = |entity| room_of(world, entity).is_none_or(|room| Some(room) == own);
    let mut seen: BTreeMap<_, _> = things
        .into_iter()
        .filter(|(entity, _)| is_seen(*entity))
        .map(|(entity, tag)| (tag, state(world, entity)))
        .collect();
    // What is not seen cannot be named.
    let tags: Vec<_> = seen.keys().copied().collect();
    let is_known = |tag: &u32| tags.binary_search(tag).is_ok();
    for state in seen.values_mut() {
        state.parent = state.parent.filter(is_known);
        state.aim = state.aim.map(|aim| aim.filter(is_known));
    }
    seen
}

/// Where a client's copies are not as they should be.
pub fn differences(net: &mut TestNet, client: TestClientId) -> Vec<String> {
    let Some(session) = net.session(client) else {
        return vec!["not connected".into()];
    };
    let session_id = net.server.world().get::<Session>(session).unwrap().id.0;
    let expected = expected(net.server.world_mut(), session);
    let world = net.client(client).world_mut();
    let mut copies = world.query_filtered::<(Entity, &Tag), With<Replicated>>();
    let copies: BTreeMap<_, _> = copies.iter(world).map(|(e, tag)| (tag.0, e)).collect();
    let world = &*world;
    let mischief = world.resource::<Mischief>();
    let is_touched = |tag: u32, what| mischief.touched.contains(&(tag, what));
    let mut differences = Vec::new();
    for (tag, entity) in &copies {
        if !expected.contains_key(tag) {
            differences.push(format!("{tag} is still there, as {entity}"));
        }
    }
    for (tag, mut wanted) in expected {
        let Some(&entity) = copies.get(&tag) else {
            if !mischief.is_untidy && !is_touched(tag, Touched::Whole) {
                differences.push(format!("{tag} is missing: {wanted:?}"));
            }
            continue;
        };
        let mut seen = state(world, entity);
        // Whom this client's game has despawned cannot be named.
        let is_there = |tag: &u32| copies.contains_key(tag);
        wanted.parent = wanted.parent.filter(is_there);
        wanted.aim = wanted.aim.map(|aim| aim.filter(is_there));
        if is_touched(tag, Touched::Parent) {
            (wanted.parent, seen.parent) = (None, None);
        }
        if is_touched(tag, Touched::Health) {
            for state in [&mut wanted, &mut seen] {
                (state.health, state.place, state.mode) = (None, None, None);
                (state.speed, state.aim, state.big) = (None, None, None);
            }
        }
        if wanted != seen {
            differences.push(format!("{tag} is {seen:?}, not {wanted:?}"));
        }
        let at = world.entity(entity);
        let is_predicted = at.contains::<Predicted>();
        if is_predicted == at.contains::<Interpolated>()
            || is_predicted != at.contains::<Simulated>()
            || at.contains::<Owned>() != (wanted.owner == Some(session_id))
        {
            differences.push(format!("{tag} is not marked as what it is"));
        }
    }
    differences
}
