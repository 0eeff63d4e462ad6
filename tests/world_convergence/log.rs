//! What observers on a client are told, and in which order it may be.

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::query::Allow;
use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;
use bevy_tandem::prelude::*;

use crate::game::*;

/// What each entity has, as the observers were told.
#[derive(Resource, Default)]
pub struct Log {
    has: HashMap<(Entity, &'static str), u32>,
    despawned: HashSet<Entity>,
    /// Each violation of the order.
    wrong: Vec<String>,
}

fn name<C>() -> &'static str {
    std::any::type_name::<C>().rsplit("::").next().unwrap_or("")
}

fn watch<C: Component>(app: &mut App) {
    app.add_observer(|on: On<Add, C>, mut log: ResMut<Log>| {
        let (entity, name) = (on.entity, name::<C>());
        if log.despawned.contains(&entity) {
            log.wrong
                .push(format!("{entity} gets {name} after its end"));
        }
        if log.has.insert((entity, name), 0).is_some() {
            log.wrong
                .push(format!("{entity} gets {name}, which it has"));
        }
    });
    app.add_observer(|on: On<Insert, C>, mut log: ResMut<Log>| {
        let (entity, name) = (on.entity, name::<C>());
        match log.has.get_mut(&(entity, name)) {
            Some(inserted) => *inserted += 1,
            None => log
                .wrong
                .push(format!("{name} is inserted on {entity}, and was not added")),
        }
    });
    app.add_observer(|on: On<Remove, C>, mut log: ResMut<Log>| {
        let (entity, name) = (on.entity, name::<C>());
        if log.has.remove(&(entity, name)).is_none() {
            log.wrong
                .push(format!("{entity} loses {name}, which it has not"));
        }
    });
    app.add_observer(|on: On<Despawn, C>, mut log: ResMut<Log>| {
        log.despawned.insert(on.entity);
    });
}

/// When something is put on a copy, the copy is consistent.
fn look<E: EntityEvent, C: Component>(
    on: On<E, C>,
    copies: Query<
        (
            (Option<&Tag>, Option<&Left>, Option<&Right>),
            (Option<&Place>, Option<&Mode>, Has<Banded>),
            (Has<Predicted>, Has<Interpolated>, Has<Owner>, Has<OwnedBy>),
        ),
        Allow<Disabled>,
    >,
    mut log: ResMut<Log>,
) {
    let entity = on.event_target();
    let Ok((numbers, banded, roles)) = copies.get(entity) else {
        return;
    };
    let (tag, left, right) = numbers;
    let what = name::<C>();
    if tag.is_none() {
        log.wrong.push(format!("{entity} has {what}, and no tag"));
    }
    if left.is_some() != right.is_some() {
        log.wrong
            .push(format!("{entity} has {what}, and left without right"));
    }
    let (place, mode, is_banded) = banded;
    if is_banded && place.is_some() != mode.is_some() {
        log.wrong
            .push(format!("{entity} has {what}, and a place without a mode"));
    }
    let (is_predicted, is_interpolated, ..) = roles;
    if is_predicted == is_interpolated {
        log.wrong
            .push(format!("{entity} has {what}, and is not what it is"));
    }
}

pub fn install(app: &mut App) {
    app.init_resource::<Log>();
    watch::<Tag>(app);
    watch::<Left>(app);
    watch::<Right>(app);
    watch::<Place>(app);
    watch::<Mode>(app);
    watch::<Speed>(app);
    watch::<Aim>(app);
    watch::<Group>(app);
    watch::<Big>(app);
    watch::<ChildOf>(app);
    watch::<Replicated>(app);
    watch::<Predicted>(app);
    watch::<Interpolated>(app);
    app.add_observer(look::<Add, Tag>)
        .add_observer(look::<Add, Left>)
        .add_observer(look::<Add, Right>)
        .add_observer(look::<Add, Place>)
        .add_observer(look::<Add, Mode>)
        .add_observer(look::<Insert, Left>)
        .add_observer(look::<Insert, Banded>);
}

/// In the end, observers have been told of everything that there is, and of nothing else.
pub fn check_end(app: &mut App) {
    let world = app.world_mut();
    let copies: HashSet<Entity> = all::<With<Replicated>>(world).into_iter().collect();
    let world = &*world;
    let log = world.resource::<Log>();
    assert!(log.wrong.is_empty(), "{:#?}", log.wrong);
    let mut told: Vec<_> = log
        .has
        .keys()
        .filter(|(entity, _)| copies.contains(entity))
        .collect();
    told.sort_unstable();
    for &&(entity, component) in &told {
        let at = world.entity(entity);
        let has = match component {
            "Tag" => at.contains::<Tag>(),
            "Left" => at.contains::<Left>(),
            "Right" => at.contains::<Right>(),
            "Place" => at.contains::<Place>(),
            "Mode" => at.contains::<Mode>(),
            "Speed" => at.contains::<Speed>(),
            "Aim" => at.contains::<Aim>(),
            "Group" => at.contains::<Group>(),
            "Big" => at.contains::<Big>(),
            "ChildOf" => at.contains::<ChildOf>(),
            _ => true,
        };
        assert!(has, "{entity} was told to have {component}");
    }
    for entity in &log.despawned {
        assert!(world.get_entity(*entity).is_err(), "{entity} has ended");
    }
}
