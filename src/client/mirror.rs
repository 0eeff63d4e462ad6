//! What the client knows of the server's world, and which of its own entities stand for it.
//!
//! Plain bookkeeping. It stays in the world while copies are changed, so that whatever an observer of the game's does in
//! between finds it whole.

use std::sync::Arc;

use bevy::ecs::component::ComponentId as BevyId;
use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;
use smallvec::SmallVec;

use super::predict::PredictionFns;
use super::types::ClientTypes;
use super::{copies, early};
use crate::protocol::layout::{ComponentId, Layout, Layouts, Meta, NetId, PredictedBy};
use crate::protocol::replica::{Change, Replica};
use crate::registry::{ComponentRule, Registry};
use crate::replication::{Simulated, SpawnKey};
use crate::session::SessionId;
use crate::tick::Tick;

/// What the client knows of the server's world, and which of its own entities stand for it.
#[derive(Resource)]
pub(crate) struct Mirror {
    layouts: Layouts,
    /// By component.
    kinds: Arc<[Kind]>,
    /// The components that are predicted.
    predictions: Arc<[(ComponentId, PredictionFns)]>,
    child_of: ComponentId,
    spawn_key: ComponentId,
    pub(super) replica: Replica,
    session: SessionId,
    pub(super) anchor: Tick,
    pub(super) locals: HashMap<NetId, Local>,
    pub(super) nets: HashMap<Entity, NetId>,
    /// Those of [`Self::locals`] that are predicted.
    pub(super) predicted: HashSet<NetId>,
    /// Those that the client's simulation has despawned, and what went with them.
    pub(super) despawned: HashSet<NetId>,
    /// Those to which the client's simulation has given other parents, and when it last did.
    pub(super) moved: HashMap<NetId, Tick>,
    /// Entities that wait for their parents before they are shown, and since when.
    pub(super) held: Vec<(NetId, Tick)>,
    pub(super) references: References,
    /// Components that have been seen to name entities.
    naming: ComponentSet,
    /// Changes that happen when what is drawn reaches their tick, in the order in which they came.
    pub(super) scheduled: Vec<Scheduled>,
    /// Copies that the server has taken away, until what is drawn reaches that.
    pub(super) leaving: HashMap<NetId, Leaving>,
    /// Copies from before the server told everything anew, of which it has not spoken since.
    pub(super) unconfirmed: HashSet<NetId>,
    pub(super) changes: Vec<Change>,
}

/// What matters of a component for how its values are applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub id: BevyId,
    pub predicted: bool,
    pub interpolated: bool,
    /// Its values may name entities: quantised ones have no room for that.
    pub may_name: bool,
}

/// The entity that stands for one of the server's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    pub entity: Entity,
    pub role: Role,
    /// Components that the server has told of, and that are on the copy or scheduled to be.
    pub told: ComponentSet,
    /// The parent that the server's word has given it.
    pub parent: Option<Entity>,
    /// The newest tick of the server's for which the prediction was compared.
    pub checked: Option<Tick>,
    /// This client had spawned it before the server did, and goes on predicting it.
    pub is_early: bool,
    /// Its prediction has still to be brought from the server's past to the client's present.
    pub is_fresh: bool,
    /// Since when this client's own simulation has despawned it, at the latest.
    pub gone_since: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Predicted,
    Interpolated,
}

/// A copy that the server has taken away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    pub local: Local,
    pub tick: Tick,
}

/// Something that happens to a copy when what is drawn reaches its tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheduled {
    pub tick: Tick,
    pub net: NetId,
    pub event: Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Insert(ComponentId),
    Remove(ComponentId),
    Parent(Option<NetId>),
}

/// A set of components.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ComponentSet([u64; 4]);

impl ComponentSet {
    pub fn contains(&self, id: ComponentId) -> bool {
        self.0[usize::from(id.0 / 64)] & (1 << (id.0 % 64)) != 0
    }

    pub fn set(&mut self, id: ComponentId, is_in: bool) {
        let bit = 1 << (id.0 % 64);
        let word = &mut self.0[usize::from(id.0 / 64)];
        *word = if is_in { *word | bit } else { *word & !bit };
    }

    pub fn iter(self) -> impl Iterator<Item = ComponentId> {
        (0..=u8::MAX)
            .map(ComponentId)
            .filter(move |id| self.contains(*id))
    }
}

/// Which components name which of the server's entities: those are told again when that entity comes, or comes back.
#[derive(Default)]
pub(super) struct References {
    holders: HashMap<NetId, HashSet<(NetId, ComponentId)>>,
    targets: HashMap<(NetId, ComponentId), SmallVec<[NetId; 2]>>,
}

impl References {
    /// A component of `holder` names these now, and no others.
    pub fn note(&mut self, holder: NetId, component: ComponentId, targets: SmallVec<[NetId; 2]>) {
        let key = (holder, component);
        let before = match targets.is_empty() {
            true => self.targets.remove(&key),
            false => self.targets.insert(key, targets.clone()),
        };
        for target in before.into_iter().flatten() {
            if let Some(holders) = self.holders.get_mut(&target) {
                holders.remove(&key);
                if holders.is_empty() {
                    self.holders.remove(&target);
                }
            }
        }
        for target in targets {
            self.holders.entry(target).or_default().insert(key);
        }
    }

    /// The components that name this entity, in a fixed order.
    pub fn of(&self, target: NetId) -> Vec<(NetId, ComponentId)> {
        let mut holders: Vec<_> = self
            .holders
            .get(&target)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        holders.sort_unstable();
        holders
    }

    pub fn forget(&mut self, holder: NetId, told: ComponentSet) {
        for component in told.iter() {
            self.note(holder, component, SmallVec::new());
        }
    }
}

impl Mirror {
    pub fn new(world: &mut World, layouts: Layouts) -> Self {
        let entries = world.resource::<Registry>().components.clone();
        let fns = world.resource::<ClientTypes>().components.clone();
        let kinds: Arc<[_]> = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| Kind {
                may_name: matches!(layouts.get(ComponentId(index as u8)), Some(Layout::Bytes)),
                id: (fns[index].id)(world),
                predicted: (entry.is_predicted)(world),
                interpolated: (entry.is_interpolated)(world),
            })
            .collect();
        let predictions = entries
            .iter()
            .enumerate()
            .filter(|(index, _)| kinds[*index].predicted)
            .map(|(index, _)| (ComponentId(index as u8), fns[index].predict))
            .collect();
        Self {
            replica: Replica::new(layouts.clone(), 0),
            layouts,
            kinds,
            predictions,
            child_of: world.resource::<ComponentRule<ChildOf>>().id,
            spawn_key: world.resource::<ComponentRule<SpawnKey>>().id,
            session: SessionId(0),
            anchor: Tick(0),
            locals: HashMap::default(),
            nets: HashMap::default(),
            predicted: HashSet::default(),
            despawned: HashSet::default(),
            moved: HashMap::default(),
            held: Vec::new(),
            references: References::default(),
            naming: ComponentSet::default(),
            scheduled: Vec::new(),
            leaving: HashMap::default(),
            unconfirmed: HashSet::default(),
            changes: Vec::new(),
        }
    }

    /// Starts with nothing, as `session`.
    pub fn begin(world: &mut World, session: SessionId, anchor: Tick, max_entities: usize) {
        Self::end(world);
        let mut mirror = world.resource_mut::<Self>();
        mirror.replica = Replica::new(mirror.layouts.clone(), max_entities);
        mirror.session = session;
        mirror.anchor = anchor;
    }

    /// Lets predicted copies stand still: there is no link, and so nothing that would correct them.
    pub fn freeze(world: &mut World) {
        let Some(mirror) = world.get_resource::<Self>() else {
            return;
        };
        let predicted: Vec<_> = mirror.predicted().map(|(_, local)| local.entity).collect();
        for entity in predicted {
            if let Ok(mut entity) = world.get_entity_mut(entity) {
                entity.remove::<Simulated>();
            }
        }
        early::forget_all(world);
    }

    /// Goes on over a new link: the server tells everything anew, and what it still has keeps its entity.
    pub fn resume(world: &mut World, anchor: Tick, max_entities: usize) {
        copies::despawn_all_leaving(world);
        let mut mirror = world.resource_mut::<Self>();
        mirror.replica = Replica::new(mirror.layouts.clone(), max_entities);
        mirror.anchor = anchor;
        mirror.doubt_everything();
    }

    /// The server tells everything anew: what it does not mention is gone.
    pub fn doubt_everything(&mut self) {
        self.held.clear();
        self.unconfirmed = self.locals.keys().copied().collect();
    }

    /// Removes all copies.
    pub fn end(world: &mut World) {
        let Some(mut mirror) = world.get_resource_mut::<Self>() else {
            return;
        };
        let mirror = &mut *mirror;
        let mut copies: Vec<_> = std::mem::take(&mut mirror.nets).into_iter().collect();
        copies.sort_unstable_by_key(|&(_, net)| net);
        mirror.replica = Replica::new(mirror.layouts.clone(), 0);
        mirror.locals.clear();
        mirror.predicted.clear();
        mirror.despawned.clear();
        mirror.moved.clear();
        mirror.held.clear();
        mirror.references = References::default();
        mirror.scheduled.clear();
        mirror.leaving.clear();
        mirror.unconfirmed.clear();
        for (entity, _) in copies {
            world.try_despawn(entity).ok();
        }
        early::forget_all(world);
    }

    /// The entity that stands for one of the server's, also when it is about to leave.
    pub fn entity(&self, net: NetId) -> Option<Entity> {
        let leaving = || self.leaving.get(&net).map(|leaving| &leaving.local);
        let local = self.locals.get(&net).or_else(leaving)?;
        Some(local.entity)
    }

    /// The server's name for an entity.
    pub fn net_id(&self, entity: Entity) -> Option<NetId> {
        self.nets.get(&entity).copied()
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    pub fn kind(&self, id: ComponentId) -> Kind {
        self.kinds[usize::from(id.0)]
    }

    pub fn predictions(&self) -> Arc<[(ComponentId, PredictionFns)]> {
        self.predictions.clone()
    }

    pub fn child_of(&self) -> ComponentId {
        self.child_of
    }

    pub fn spawn_key(&self) -> ComponentId {
        self.spawn_key
    }

    /// The predicted ones.
    pub fn predicted(&self) -> impl Iterator<Item = (NetId, &Local)> {
        self.predicted
            .iter()
            .filter_map(|&net| Some((net, self.locals.get(&net)?)))
    }

    /// A prediction was compared with the server's state of this tick.
    pub fn note_checked(&mut self, net: NetId, tick: Tick) {
        if let Some(local) = self.locals.get_mut(&net) {
            local.checked = Some(tick);
            local.is_fresh = false;
        }
    }

    /// A copy has been despawned, and not by the server's word. It comes back if the server says otherwise and if that was
    /// a prediction: by the simulation, or of something that is predicted.
    pub fn note_despawn(&mut self, net: NetId, tick: Tick, is_simulated: bool) {
        if let Some(local) = self.locals.get_mut(&net)
            && (is_simulated || local.role == Role::Predicted)
        {
            local.gone_since.get_or_insert(tick);
            self.despawned.insert(net);
        }
    }

    /// The clock has jumped: what was predicted belongs to other ticks.
    pub fn start_predictions_over(&mut self) {
        for local in self
            .locals
            .values_mut()
            .filter(|local| local.role == Role::Predicted)
        {
            local.is_fresh = true;
            local.checked = None;
        }
    }

    /// The epoch in which snapshots have become unusable, until one of another has come.
    pub fn resync_epoch(&self) -> Option<u8> {
        self.replica.resync_epoch()
    }

    pub fn role_of(&self, meta: Meta) -> Role {
        match meta.predicted_by {
            PredictedBy::Owner if self.is_own(meta) => Role::Predicted,
            PredictedBy::Everyone => Role::Predicted,
            _ => Role::Interpolated,
        }
    }

    /// Whether this client's session owns it.
    pub fn is_own(&self, meta: Meta) -> bool {
        meta.owner == Some(self.session.0)
    }

    /// Makes an entity stand for one of the server's.
    pub fn enter(&mut self, net: NetId, entity: Entity, is_early: bool) {
        let meta = self.replica.entity(net).map(|entity| entity.meta);
        let role = match is_early {
            true => Role::Predicted,
            false => self.role_of(meta.unwrap_or_default()),
        };
        let local = Local {
            entity,
            role,
            told: ComponentSet::default(),
            parent: None,
            checked: None,
            is_early,
            // An early copy is in the client's present already.
            is_fresh: !is_early,
            gone_since: None,
        };
        self.locals.insert(net, local);
        self.nets.insert(entity, net);
        self.set_predicted(net, role);
    }

    pub fn set_predicted(&mut self, net: NetId, role: Role) {
        match role {
            Role::Predicted => self.predicted.insert(net),
            Role::Interpolated => self.predicted.remove(&net),
        };
    }

    /// An entity stands for one of the server's no longer; says what it was.
    pub fn leave(&mut self, net: NetId) -> Option<Local> {
        let local = self.locals.remove(&net)?;
        self.predicted.remove(&net);
        self.despawned.remove(&net);
        self.moved.remove(&net);
        self.unconfirmed.remove(&net);
        self.references.forget(net, local.told);
        Some(local)
    }

    /// A component of `holder` names these entities now.
    pub fn note_names(
        &mut self,
        holder: NetId,
        component: ComponentId,
        names: SmallVec<[NetId; 2]>,
    ) {
        if !names.is_empty() {
            self.naming.set(component, true);
        } else if !self.naming.contains(component) {
            return;
        }
        self.references.note(holder, component, names);
    }

    pub fn is_scheduled(&self, net: NetId, event: Event) -> bool {
        let mut scheduled = self.scheduled.iter();
        scheduled.any(|scheduled| scheduled.net == net && scheduled.event == event)
    }

    /// Whether another parent is scheduled for an entity.
    pub fn is_to_move(&self, net: NetId) -> bool {
        let mut scheduled = self.scheduled.iter();
        scheduled.any(|it| it.net == net && matches!(it.event, Event::Parent(_)))
    }

    /// What is scheduled for an entity happens no more: what would have been taken from it is on it still.
    pub fn unschedule(&mut self, net: NetId) {
        let child_of = self.child_of;
        let mut local = self.locals.get_mut(&net);
        self.scheduled.retain(|scheduled| {
            if scheduled.net != net {
                return true;
            }
            let still_on = match scheduled.event {
                Event::Remove(id) => id,
                Event::Parent(_) => child_of,
                Event::Insert(_) => return false,
            };
            if let Some(local) = &mut local {
                local.told.set(still_on, true);
            }
            false
        });
    }

    /// Whether the server has told everything that there was at this tick: what is not here then is not in view.
    pub fn is_complete_at(&self, tick: Tick) -> bool {
        let complete = self.replica.newest_complete();
        complete.is_some_and(|complete| !tick.is_newer_than(complete))
    }
}

/// The entity of this client that has an id on the network.
pub(super) fn own_entity(world: &World, net: NetId) -> Option<Entity> {
    world.get_resource::<Mirror>()?.entity(net)
}
