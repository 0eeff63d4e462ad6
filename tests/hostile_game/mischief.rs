//! What a game may do, at random, and at every point of the frame.

use std::cell::RefCell;
use std::time::Duration;

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::lifecycle::HookContext;
use bevy::ecs::query::Allow;
use bevy::ecs::world::DeferredWorld;
use bevy::platform::collections::HashSet;
use bevy::prelude::*;
use bevy_tandem::client::{
    ConnectOver, Connected, ConnectionChanged, Disconnected, ReconnectScheduled, ResumeFinished,
};
use bevy_tandem::prelude::*;
use bevy_tandem::server::ServerStats;
use bevy_tandem::session::{Ban, SessionAway, SessionReturned};
use bevy_tandem::transport::{LinkConditions, LocalConnector};
use fastrand::Rng;

use crate::game::*;

thread_local! {
    /// What was done, for the one who looks for the cause.
    pub static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Where this client connects to.
#[derive(Resource, Clone)]
pub struct Door {
    pub connector: LocalConnector,
    pub conditions: LinkConditions,
}

/// An entity of the server's that is not replicated.
#[derive(Component)]
pub struct Crate;

/// What a client's game has put on a copy.
#[derive(Component)]
pub struct Mark;

/// What a client's game has changed of a copy, so that it need not be as the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Touched {
    /// It is gone, or may be.
    Whole,
    Parent,
    Health,
    Place,
    Mode,
    Speed,
    Aim,
}

/// Who does it, in one app.
#[derive(Resource)]
pub struct Mischief {
    rng: Rng,
    pub is_quiet: bool,
    likelihood: f32,
    /// So that what is done in answer to what is done comes to an end.
    left_this_frame: u32,
    pub touched: HashSet<(u32, Touched)>,
    /// Copies hang below one another as this client's game likes: they go when those above them go.
    pub is_untidy: bool,
    /// What something is being hung on in this frame. Bevy panics, without any plugin, where an observer of the insertion
    /// despawns that: `world.spawn((A, ChildOf(parent)))`, and an observer of `A` which despawns `parent`.
    hung_on: Vec<Entity>,
}

impl Mischief {
    pub fn new(rng: Rng, likelihood: f32) -> Self {
        Self {
            rng,
            is_quiet: true,
            likelihood,
            left_this_frame: 0,
            touched: HashSet::default(),
            is_untidy: false,
            hung_on: Vec::new(),
        }
    }

    fn strikes(&mut self) -> bool {
        if self.is_quiet || self.left_this_frame == 0 || self.rng.f32() >= self.likelihood {
            return false;
        }
        self.left_this_frame -= 1;
        true
    }
}

/// Puts mischief everywhere.
pub fn install(app: &mut App) {
    app.insert_resource(Mischief::new(Rng::with_seed(0), 0.0));
    app.add_systems(First, |mut mischief: ResMut<Mischief>| {
        mischief.left_this_frame = 5;
        mischief.hung_on.clear();
    });
    in_schedules(app);
    on_changes::<Tag>(app);
    on_changes::<Health>(app);
    on_changes::<Place>(app);
    on_changes::<Mode>(app);
    on_changes::<Aim>(app);
    on_changes::<Kind>(app);
    on_changes::<ChildOf>(app);
    on_changes::<Replicated>(app);
    on_changes::<Simulated>(app);
    on_changes::<Predicted>(app);
    on_changes::<Interpolated>(app);
    on_changes::<Owned>(app);
    on_changes::<Owner>(app);
    on_changes::<SpawnKey>(app);
    on_changes::<Session>(app);
    on_events(app);
    in_hooks(app);
    app.add_observer(|_: On<Connected>, mut mischief: ResMut<Mischief>| {
        mischief.touched.clear();
        mischief.is_untidy = false;
    });
    app.add_systems(
        Update,
        (
            hear_from_server.run_if(resource_exists::<Messages<FromServer<Hit>>>),
            hear_from_clients.run_if(resource_exists::<Messages<FromClient<Hit>>>),
        ),
    );
}

fn in_schedules(app: &mut App) {
    fn at(point: &'static str) -> impl Fn(&mut World) {
        move |world| perhaps_act(world, point)
    }
    use TandemSystems as Set;
    app.add_systems(First, at("First"))
        .add_systems(
            PreUpdate,
            (
                at("before Receive").before(Set::Receive),
                at("after Receive").after(Set::Receive).before(Set::Apply),
                at("after Apply").after(Set::Apply),
            ),
        )
        .add_systems(FixedFirst, at("FixedFirst"))
        .add_systems(
            FixedPreUpdate,
            (
                at("before Sample").before(Set::Sample),
                at("after Sample").after(Set::Sample),
            ),
        )
        .add_systems(FixedUpdate, at("Simulate").in_set(Set::Simulate))
        .add_systems(FixedPostUpdate, at("FixedPostUpdate"))
        .add_systems(FixedLast, at("FixedLast"))
        .add_systems(Update, at("Update"))
        .add_systems(
            PostUpdate,
            (
                at("before Collect").before(Set::Collect),
                at("after Collect").after(Set::Collect).before(Set::Send),
                at("after Send").after(Set::Send),
            ),
        )
        .add_systems(Last, at("Last"));
}

fn on_changes<C: Component>(app: &mut App) {
    app.add_observer(answer::<Add, C>)
        .add_observer(answer::<Insert, C>)
        .add_observer(answer::<Remove, C>)
        .add_observer(answer::<Despawn, C>);
}

fn answer<E: EntityEvent, C: Component>(
    on: On<E, C>,
    hanging: Query<(Option<&ChildOf>, Option<&OwnedBy>, Option<&InRoom>), Allow<Disabled>>,
    mut mischief: ResMut<Mischief>,
    mut commands: Commands,
) {
    if mischief.strikes() {
        if let Ok((parent, owner, room)) = hanging.get(on.event_target()) {
            mischief.hung_on.extend(parent.map(ChildOf::parent));
            mischief.hung_on.extend(owner.map(|owner| owner.0));
            mischief.hung_on.extend(room.map(|room| room.0));
        }
        commands.queue(|world: &mut World| {
            act(world, std::any::type_name::<(E, C)>());
        });
    }
}

fn on_events(app: &mut App) {
    fn answer<E: Event>(_: On<E>, mut mischief: ResMut<Mischief>, mut commands: Commands) {
        // These are rare.
        if (0..20).any(|_| mischief.strikes()) {
            commands.queue(|world: &mut World| act(world, std::any::type_name::<E>()));
        }
    }
    app.add_observer(answer::<SessionJoined>)
        .add_observer(answer::<SessionLeft>)
        .add_observer(answer::<SessionAway>)
        .add_observer(answer::<SessionReturned>)
        .add_observer(answer::<Connected>)
        .add_observer(answer::<Disconnected>)
        .add_observer(answer::<ConnectionChanged>)
        .add_observer(answer::<ReconnectScheduled>)
        .add_observer(answer::<ResumeFinished>);
}

fn in_hooks(app: &mut App) {
    fn hook(mut world: DeferredWorld, context: HookContext) {
        if world.resource_mut::<Mischief>().strikes() {
            let parent = world.get::<ChildOf>(context.entity).map(ChildOf::parent);
            let owner = world.get::<OwnedBy>(context.entity).map(|owner| owner.0);
            let room = world.get::<InRoom>(context.entity).map(|room| room.0);
            let mut mischief = world.resource_mut::<Mischief>();
            mischief
                .hung_on
                .extend([parent, owner, room].into_iter().flatten());
            world
                .commands()
                .queue(|world: &mut World| act(world, "a hook"));
        }
    }
    app.world_mut()
        .register_component_hooks::<Speed>()
        .on_add(hook)
        .on_remove(hook);
    app.world_mut()
        .register_component_hooks::<Body>()
        .on_add(hook)
        .on_remove(hook);
}

fn perhaps_act(world: &mut World, point: &'static str) {
    if world.resource_mut::<Mischief>().strikes() {
        act(world, point);
    }
}

fn act(world: &mut World, point: &'static str) {
    let mut rng = world.resource_mut::<Mischief>().rng.fork();
    let is_server = world.contains_resource::<ServerStats>();
    let what = if is_server {
        act_on_server(world, &mut rng)
    } else {
        act_on_client(world, &mut rng)
    };
    let side = if is_server { "server" } else { "client" };
    let tick = world.resource::<CurrentTick>().0;
    LOG.with_borrow_mut(|log| log.push(format!("{side} at {tick}, {point}: {what}")));
}

fn all<F: bevy::ecs::query::QueryFilter>(world: &mut World) -> Vec<Entity> {
    let mut query = world.query_filtered::<Entity, (F, Allow<Disabled>)>();
    query.iter(world).collect()
}

/// Despawns, unless something is just being hung on what would go.
fn despawn(world: &mut World, entity: Entity) {
    let hung_on = &world.resource::<Mischief>().hung_on;
    let mut owners = hung_on.clone();
    for &at in hung_on {
        // What hangs on an owner goes with it.
        let mut at = at;
        loop {
            owners.extend(world.get::<OwnedBy>(at).map(|owner| owner.0));
            let Some(parent) = world.get::<ChildOf>(at) else {
                break;
            };
            at = parent.parent();
            owners.push(at);
        }
    }
    if !owners.contains(&entity) {
        world.try_despawn(entity).ok();
    }
}

fn one(rng: &mut Rng, of: &[Entity]) -> Option<Entity> {
    (!of.is_empty()).then(|| of[rng.usize(..of.len())])
}

// ---- the server's game ----

fn act_on_server(world: &mut World, rng: &mut Rng) -> String {
    let things = all::<With<Tag>>(world);
    let Some(thing) = one(rng, &things) else {
        return spawn(world, rng);
    };
    match rng.u32(..100) {
        0..=15 if things.len() < 40 => return spawn(world, rng),
        16..=24 => {
            despawn(world, thing);
            return format!("despawn {thing}");
        }
        25..=36 => change(world, rng, thing),
        37..=41 => remove_something(world, rng, thing),
        42..=45 => {
            remove_something(world, rng, thing);
            change(world, rng, thing);
        }
        46..=50 => {
            let mut entity = world.entity_mut(thing);
            let tag = entity.get::<Tag>().expect("things have tags").0;
            MARKED_ANEW.with_borrow_mut(|anew| anew.insert(tag));
            let had = entity.contains::<Replicated>();
            entity.remove::<Replicated>();
            // An observer may have despawned it by now.
            if (!had || rng.bool())
                && let Ok(mut entity) = world.get_entity_mut(thing)
            {
                entity.insert(Replicated);
            }
        }
        51..=60 => return reparent_on_server(world, rng, thing),
        61..=72 => return change_rooms(world, rng, thing),
        73..=76 => return send_someone_away(world, rng),
        77..=79 => {
            let mut entity = world.entity_mut(thing);
            if entity.contains::<Disabled>() {
                entity.remove::<Disabled>();
            } else {
                entity.insert(Disabled);
            }
        }
        80..=87 => change_owner(world, rng, thing),
        88..=93 => {
            let tag = world.get::<Tag>(thing).unwrap().0;
            let message = Hit { whom: thing, tag };
            let to = Target::All;
            world.write_message(ToClients { to, message });
            return format!("tell of {tag}");
        }
        94 => {
            let mut time = world.resource_mut::<Time<Virtual>>();
            if time.is_paused() {
                time.unpause();
            } else {
                time.pause();
            }
            return "pause or go on".into();
        }
        _ => {
            let other = one(rng, &things).unwrap_or(thing);
            aim(world, thing, other);
        }
    }
    describe(world, thing)
}

fn spawn(world: &mut World, rng: &mut Rng) -> String {
    let mut next = world.resource_mut::<NextTag>();
    next.0 += 1;
    let tag = next.0;
    let things = all::<With<Tag>>(world);
    let thing = world.spawn((Replicated, Tag(tag), Kind(rng.u8(..)))).id();
    // An observer may have despawned it by now.
    if rng.bool() {
        let place = Place(rng.f32() * 800.0 + 100_000.0);
        if let Ok(mut thing) = world.get_entity_mut(thing) {
            thing.insert((Body(1), place));
        }
    }
    for _ in 0..rng.usize(..6) {
        change(world, rng, thing);
    }
    if rng.u8(..3) == 0
        && let Some(parent) = one(rng, &things)
        && world.get_entity(parent).is_ok()
        && world.get_entity(thing).is_ok()
        && !is_above(world, thing, parent)
    {
        world.entity_mut(thing).insert(ChildOf(parent));
    }
    if rng.u8(..4) == 0 && world.get_entity(thing).is_ok() {
        change_owner(world, rng, thing);
    }
    if rng.u8(..4) == 0 && world.get_entity(thing).is_ok() {
        change_rooms(world, rng, thing);
    }
    format!("spawn {}", describe(world, thing))
}

/// Things for the next match.
pub fn spawn_some(world: &mut World, count: u32) {
    for n in 0..count {
        let mut next = world.resource_mut::<NextTag>();
        next.0 += 1;
        let tag = next.0;
        world.spawn((
            Replicated,
            (Tag(tag), Kind(1), Body(1), Place(100_200.0)),
            (Health(n), Mode(n), Big(vec![3; 600])),
        ));
    }
}

/// Inserts a component or gives it another value.
fn change(world: &mut World, rng: &mut Rng, thing: Entity) {
    let Ok(mut entity) = world.get_entity_mut(thing) else {
        return;
    };
    match rng.u8(..6) {
        0 => {
            entity.insert(Health(rng.u32(..)));
        }
        1 => {
            entity.insert(Place(rng.f32() * 800.0 + 100_000.0));
        }
        2 => {
            entity.insert(Mode(rng.u32(..)));
        }
        3 => {
            entity.insert(Speed(rng.u32(..)));
        }
        4 if rng.u8(..4) == 0 => {
            entity.insert(Big(vec![rng.u8(..); [30, 200, 300, 3_000][rng.usize(..4)]]));
        }
        _ => {
            // Several at once, and in place.
            if let Some(mut health) = entity.get_mut::<Health>() {
                health.0 = rng.u32(..);
            }
            if let Some(mut place) = entity.get_mut::<Place>() {
                place.0 = rng.f32() * 800.0 + 100_000.0;
            }
        }
    }
}

fn remove_something(world: &mut World, rng: &mut Rng, thing: Entity) {
    let Ok(mut entity) = world.get_entity_mut(thing) else {
        return;
    };
    match rng.u8(..6) {
        0 => entity.remove::<Health>(),
        // A body has a place.
        1 if !entity.contains::<Body>() => entity.remove::<Place>(),
        2 => entity.remove::<Mode>(),
        3 => entity.remove::<Speed>(),
        4 => entity.remove::<Aim>(),
        _ => entity.remove::<(Health, Mode)>(),
    };
}

fn aim(world: &mut World, thing: Entity, at: Entity) {
    let Some(tag) = world.get::<Tag>(at).map(|tag| tag.0) else {
        return;
    };
    if let Ok(mut entity) = world.get_entity_mut(thing) {
        entity.insert(Aim { whom: at, tag });
    }
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

fn reparent_on_server(world: &mut World, rng: &mut Rng, thing: Entity) -> String {
    let parent = match rng.u8(..5) {
        0 => None,
        1 => Some(world.spawn(Crate).id()),
        _ => one(rng, &all::<Or<(With<Tag>, With<Crate>)>>(world)),
    };
    match parent {
        Some(parent) if !is_above(world, thing, parent) => {
            world.entity_mut(thing).insert(ChildOf(parent));
        }
        _ => {
            world.entity_mut(thing).remove::<ChildOf>();
            // What is taken off while its parent dies.
            if rng.bool()
                && let Some(other) = one(rng, &all::<With<Tag>>(world))
                && other != thing
            {
                despawn(world, other);
            }
        }
    }
    describe(world, thing)
}

fn change_rooms(world: &mut World, rng: &mut Rng, thing: Entity) -> String {
    let mut rooms = all::<With<Room>>(world);
    if rooms.len() < 2 {
        rooms.push(world.spawn(Room).id());
    }
    let sessions = all::<With<Session>>(world);
    let room = one(rng, &rooms).unwrap();
    let who = match one(rng, &sessions) {
        Some(session) if rng.u8(..3) == 0 => session,
        _ => thing,
    };
    match rng.u8(..8) {
        0 => {
            despawn(world, room);
            return format!("despawn the room {room}");
        }
        1 | 2 => {
            world.entity_mut(who).remove::<InRoom>();
        }
        _ => {
            if let Ok(mut entity) = world.get_entity_mut(who) {
                entity.insert(InRoom(room));
            }
        }
    }
    format!("{who} is in {:?}", world.get::<InRoom>(who))
}

fn send_someone_away(world: &mut World, rng: &mut Rng) -> String {
    let sessions = all::<With<Session>>(world);
    let Some(session) = one(rng, &sessions) else {
        world.trigger(Kick {
            session: Entity::PLACEHOLDER,
            reason: String::new(),
        });
        return "kick nobody".into();
    };
    let reason = "x".repeat([3, 2_000][rng.usize(..2)]);
    match rng.u8(..12) {
        0 => {
            despawn(world, session);
            format!("despawn the session {session}")
        }
        1 | 2 => {
            world.trigger(Kick { session, reason });
            format!("kick {session}")
        }
        3 => {
            world.trigger(Kick {
                session,
                reason: reason.clone(),
            });
            world.trigger(Kick { session, reason });
            if rng.bool() {
                despawn(world, session);
            }
            format!("kick {session} twice")
        }
        4 => {
            let duration = Duration::from_millis(1);
            world.trigger(Ban {
                session,
                reason,
                duration,
            });
            format!("ban {session}")
        }
        _ => "think of it".into(),
    }
}

fn change_owner(world: &mut World, rng: &mut Rng, thing: Entity) {
    let sessions = all::<With<Session>>(world);
    let owner = one(rng, &sessions);
    let Ok(mut entity) = world.get_entity_mut(thing) else {
        return;
    };
    let by = [
        PredictedBy::Owner,
        PredictedBy::Everyone,
        PredictedBy::Nobody,
    ][rng.usize(..3)];
    match rng.u8(..8) {
        0..=2 => {
            if let Some(owner) = owner {
                entity.insert(OwnedBy(owner));
            }
        }
        3 => {
            entity.remove::<OwnedBy>();
        }
        4 => {
            entity.insert(by);
        }
        5 => {
            if let Some(mut predicted_by) = entity.get_mut::<PredictedBy>() {
                *predicted_by = by;
            }
        }
        6 => {
            entity.insert(Priority(rng.f32() * 5.0));
        }
        _ => {
            entity.remove::<(PredictedBy, Priority)>();
        }
    }
}

// ---- a client's game ----

fn act_on_client(world: &mut World, rng: &mut Rng) -> String {
    if rng.u8(..12) == 0 {
        return do_something_to_the_connection(world, rng);
    }
    let copies = all::<(With<Tag>, With<Replicated>)>(world);
    let Some(copy) = one(rng, &copies) else {
        world.spawn(Own);
        return "spawn one of its own".into();
    };
    let what = rng.u32(..100);
    match what {
        0..=9 => {
            touch_below(world, copy);
            let was = describe(world, copy);
            despawn(world, copy);
            return format!("despawn {was}");
        }
        10..=19 => {
            world.entity_mut(copy).insert(Mark);
        }
        20..=23 => {
            world.entity_mut(copy).remove::<Mark>();
        }
        24..=33 => {
            touch_values(world, copy);
            change(world, rng, copy);
        }
        34..=41 => {
            touch_values(world, copy);
            remove_something(world, rng, copy);
        }
        42..=60 => return reparent_on_client(world, rng, copy),
        61..=68 => {
            world.spawn((Own, ChildOf(copy)));
        }
        69..=72 => {
            if let Some(own) = one(rng, &all::<With<Own>>(world)) {
                touch_below(world, own);
                despawn(world, own);
            }
        }
        73..=77 => {
            let mut entity = world.entity_mut(copy);
            if entity.contains::<Disabled>() {
                entity.remove::<Disabled>();
            } else {
                entity.insert(Disabled);
            }
        }
        78..=85 => {
            let tag = world.get::<Tag>(copy).unwrap().0;
            let message = Hit { whom: copy, tag };
            world.write_message(ToServer(message));
        }
        86..=97 => {
            let steer = rng.i8(-1..=1);
            let fires = rng.u8(..3) == 0;
            world.insert_resource(LocalInput(Control { steer, fires }));
            return format!("steer {steer}, fires: {fires}");
        }
        _ => {
            let mut time = world.resource_mut::<Time<Virtual>>();
            if time.is_paused() {
                time.unpause();
            } else {
                time.pause();
            }
            return "pause or go on".into();
        }
    }
    format!("{what} with {}", describe(world, copy))
}

fn do_something_to_the_connection(world: &mut World, rng: &mut Rng) -> String {
    let state = world.resource::<Connection>().state();
    let is_over = matches!(
        state,
        ConnectionState::Disconnected | ConnectionState::Failed
    );
    match rng.u8(..8) {
        0 | 1 => {
            world.trigger(Disconnect);
            "disconnect".into()
        }
        2 => {
            world.write_message(AppExit::Success);
            "exit".into()
        }
        3 | 4 => {
            world.cut_link();
            "lose the link".into()
        }
        5 if !is_over => {
            if let Some(door) = world.get_resource::<Door>().cloned() {
                let link = bevy_tandem::transport::Conditioned::new(
                    door.connector.connect(),
                    door.conditions,
                );
                world.resume_over(link);
            }
            "go on over another link".into()
        }
        6 => {
            crate::connect(world);
            "connect anew".into()
        }
        _ if is_over => {
            crate::connect(world);
            "connect again".into()
        }
        _ => "leave the connection alone".into(),
    }
}

fn touch(world: &mut World, entity: Entity, what: Touched) {
    if let Some(tag) = world.get::<Tag>(entity).map(|tag| tag.0) {
        let mut mischief = world.resource_mut::<Mischief>();
        mischief.touched.insert((tag, what));
    }
}

fn touch_values(world: &mut World, copy: Entity) {
    for what in [
        Touched::Health,
        Touched::Place,
        Touched::Mode,
        Touched::Speed,
        Touched::Aim,
    ] {
        touch(world, copy, what);
    }
}

fn touch_below(world: &mut World, entity: Entity) {
    touch(world, entity, Touched::Whole);
    let children: Vec<_> = world
        .get::<Children>(entity)
        .map(|children| children.iter().collect())
        .unwrap_or_default();
    for child in children {
        touch_below(world, child);
    }
}

fn reparent_on_client(world: &mut World, rng: &mut Rng, copy: Entity) -> String {
    touch(world, copy, Touched::Parent);
    match rng.u8(..4) {
        0 => {
            world.entity_mut(copy).remove::<ChildOf>();
        }
        1 => {
            let parent = one(rng, &all::<With<Tag>>(world)).unwrap_or(copy);
            if !is_above(world, copy, parent) {
                world.resource_mut::<Mischief>().is_untidy = true;
                world.entity_mut(copy).insert(ChildOf(parent));
            }
        }
        _ => {
            let own = one(rng, &all::<With<Own>>(world));
            let own = own.unwrap_or_else(|| world.spawn(Own).id());
            if !is_above(world, copy, own) {
                // It may hang on a copy, or on one that is being despawned.
                world.resource_mut::<Mischief>().is_untidy |= world.get::<ChildOf>(own).is_some();
                world.entity_mut(copy).insert(ChildOf(own));
            }
        }
    }
    describe(world, copy)
}

// ---- messages ----

fn check_hit(hit: &Hit, tags: &Query<&Tag, Allow<Disabled>>, strangers: &mut Strangers) {
    if let Ok(tag) = tags.get(hit.whom)
        && tag.0 != hit.tag
    {
        strangers
            .0
            .push(format!("a message about {} names {}", hit.tag, tag.0));
    }
}

fn hear_from_server(
    mut hits: MessageReader<FromServer<Hit>>,
    tags: Query<&Tag, Allow<Disabled>>,
    mut strangers: ResMut<Strangers>,
) {
    for hit in hits.read() {
        check_hit(&hit.0, &tags, &mut strangers);
    }
}

fn hear_from_clients(
    mut hits: MessageReader<FromClient<Hit>>,
    tags: Query<&Tag, Allow<Disabled>>,
    mut strangers: ResMut<Strangers>,
) {
    for hit in hits.read() {
        check_hit(&hit.message, &tags, &mut strangers);
    }
}

// ---- for the one who looks for the cause ----

fn describe(world: &World, entity: Entity) -> String {
    let Ok(at) = world.get_entity(entity) else {
        return format!("{entity} is gone");
    };
    let names: Vec<_> = at
        .archetype()
        .components()
        .iter()
        .filter_map(|id| world.components().get_name(*id))
        .map(|name| name.shortname().to_string())
        .collect();
    let tag = at.get::<Tag>().map(|tag| tag.0);
    let parent = at.get::<ChildOf>().map(ChildOf::parent);
    format!("{entity} tag {tag:?} below {parent:?}: {}", names.join(" "))
}

/// All entities that are neither resources nor observers.
pub fn describe_all(app: &mut App) -> Vec<String> {
    use bevy::ecs::observer::Observer;
    use bevy::ecs::resource::IsResource;
    let entities = all::<(Without<IsResource>, Without<Observer>)>(app.world_mut());
    let world = app.world();
    entities
        .into_iter()
        .map(|entity| describe(world, entity))
        .collect()
}
