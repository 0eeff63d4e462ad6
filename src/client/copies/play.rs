//! What happens when the moment that is drawn reaches it.

use bevy::prelude::*;
use smallvec::SmallVec;

use super::parents::reparent;
use super::update::remove;
use crate::client::component::insert;
use crate::client::interpolate::Playhead;
use crate::client::mirror::{Event, Mirror, Scheduled};
use crate::client::types::ClientTypes;
use crate::protocol::interpolation::Playback;
use crate::protocol::layout::{ComponentId, NetId};

/// How long a change of parent waits for a parent that may still come, in ticks.
const LONGEST_WAIT: i32 = 60;

/// Does what was scheduled up to the moment that is drawn.
pub(in crate::client) fn play(world: &mut World) {
    let Some(playback) = world.resource::<Playhead>().0 else {
        return;
    };
    let mut due = Vec::new();
    let mirror = &mut *world.resource_mut::<Mirror>();
    if mirror.scheduled.is_empty() {
        return;
    }
    let all = std::mem::take(&mut mirror.scheduled);
    for (index, &scheduled) in all.iter().enumerate() {
        let may_come = |parent: NetId| {
            !mirror.locals.contains_key(&parent)
                && !mirror.is_complete_at(scheduled.tick)
                && playback.tick.distance_from(scheduled.tick) < LONGEST_WAIT
        };
        let is_later = scheduled.tick.is_newer_than(playback.tick);
        let waits = matches!(scheduled.event, Event::Parent(Some(parent)) if may_come(parent));
        if waits && !is_later {
            // It has another parent by now: this one must not come after that.
            let is_overtaken = |later: &Scheduled| {
                later.net == scheduled.net
                    && matches!(later.event, Event::Parent(_))
                    && !later.tick.is_newer_than(playback.tick)
            };
            if all[index + 1..].iter().any(is_overtaken) {
                continue;
            }
        }
        match waits || is_later {
            true => mirror.scheduled.push(scheduled),
            false => due.push(scheduled),
        }
    }
    due.sort_by_key(|scheduled| scheduled.net);
    for events in due.chunk_by(|a, b| a.net == b.net) {
        play_events(world, events, &playback);
    }
}

/// Does what is due of one copy.
fn play_events(world: &mut World, events: &[Scheduled], playback: &Playback) {
    let net = events[0].net;
    let Some(entity) = world.resource::<Mirror>().entity(net) else {
        return;
    };
    let mut removed: SmallVec<[ComponentId; 4]> = SmallVec::new();
    let mut inserted: SmallVec<[ComponentId; 4]> = SmallVec::new();
    let mut parent = None;
    for scheduled in events {
        match scheduled.event {
            // Several may be due at once, after a slow frame. Each component is named once: Bevy panics otherwise.
            Event::Insert(id) if inserted.contains(&id) => {}
            Event::Insert(id) => inserted.push(id),
            Event::Remove(id) => {
                inserted.retain(|inserted| *inserted != id);
                if !removed.contains(&id) {
                    removed.push(id);
                }
            }
            Event::Parent(to) => parent = Some(to),
        }
    }
    let types = world.resource::<ClientTypes>().components.clone();
    let fns = |id: ComponentId| &types[usize::from(id.0)];
    remove(world, entity, &removed);
    for &id in removed.iter().filter(|id| !inserted.contains(id)) {
        let is_back = world
            .resource::<Mirror>()
            .is_scheduled(net, Event::Insert(id));
        if !is_back && let Ok(mut entity) = world.get_entity_mut(entity) {
            (fns(id).forget_samples)(&mut entity);
        }
    }
    if !inserted.is_empty() {
        insert(world, entity, |world, out| {
            for &id in &inserted {
                (fns(id).assemble_drawn)(world, entity, playback, out);
            }
        });
    }
    if let Some(parent) = parent {
        reparent(world, net, parent);
    }
}
