//! Components that name entities.

use bevy::ecs::entity::MapEntities;
use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

use crate::game::*;

#[test]
fn a_reference_to_what_is_replicated_later_is_mapped_then() {
    let (mut net, ada) = with_ada(game, clean());
    let target = net.server.world_mut().spawn(Tag(2)).id();
    spawn(&mut net, (Tag(1), Aim(target)));
    net.run(Ticks(30));
    net.server.world_mut().entity_mut(target).insert(Replicated);
    net.run(Ticks(60));
    let target = copy(&mut net, ada, 2).unwrap();
    assert_eq!(value::<Aim>(&mut net, ada, 1), Some(Aim(target)));
}

#[test]
fn a_reference_to_what_is_gone_names_no_stranger() {
    let (mut net, _) = with_ada(game, clean());
    let target = spawn(&mut net, Tag(2));
    spawn(&mut net, (Tag(1), Aim(target)));
    net.run(Ticks(60));
    net.server.world_mut().despawn(target);
    net.run(Ticks(120));
    spawn(&mut net, Tag(3));
    net.run(Ticks(30));
    let bob = net.join("Bob");
    net.run(Ticks(90));
    let stranger = copy(&mut net, bob, 3).unwrap();
    let aim = value::<Aim>(&mut net, bob, 1).unwrap().0;
    assert_ne!(aim, stranger, "aims at what was never aimed at");
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Party {
    #[entities]
    members: Vec<Entity>,
    #[entities]
    leader: Option<Entity>,
}

#[test]
fn lists_and_options_of_entities_are_mapped_whatever_comes_first() {
    fn game_with_party(app: &mut App) {
        game(app);
        app.replicate::<Party>();
    }
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game_with_party, lossy(seed));
        let world = net.server.world_mut();
        let party = world.spawn((Replicated, Tag(0))).id();
        let members: Vec<_> = (1..40)
            .map(|n| world.spawn((Replicated, Tag(n))).id())
            .collect();
        let leader = members.last().copied();
        world.entity_mut(party).insert(Party { members, leader });
        net.run(Ticks(180));
        let seen = value::<Party>(&mut net, ada, 0).unwrap();
        let tags: Vec<_> = seen
            .members
            .iter()
            .map(|member| net.client(ada).world().get::<Tag>(*member).unwrap().0)
            .collect();
        assert_eq!(tags, (1..40).collect::<Vec<_>>());
        assert_eq!(seen.leader, seen.members.last().copied());
    }
}

/// What is replicated later, then leaves the view, returns, and dies: the reference follows.
fn follows(net: &mut TestNet, ada: TestClientId, holder: impl Fn(Entity) -> Aiming) {
    let session = net.session(ada).unwrap();
    let (red, blue) = two_rooms(net, session);
    let target = net.server.world_mut().spawn((Tag(2), InRoom(red))).id();
    match holder(target) {
        Aiming::Plain(aim) => spawn(net, (Tag(1), aim)),
        Aiming::Predicted(aim) => spawn(net, (Tag(1), PredictedBy::Everyone, aim)),
        Aiming::Large(aim) => spawn(net, (Tag(1), aim)),
    };
    let seen = |net: &mut TestNet| {
        let copy = copy(net, ada, 1).unwrap();
        let at = net.client(ada).world().entity(copy);
        let large = || at.get::<LargeAim>().map(|aim| aim.whom);
        at.get::<Aim>().map(|aim| aim.0).or_else(large)
    };
    let exists = |net: &mut TestNet, entity: Option<Entity>| {
        entity.is_some_and(|entity| net.client(ada).world().get_entity(entity).is_ok())
    };
    net.run(Ticks(60));
    let named = seen(net);
    assert!(!exists(net, named), "nobody is there yet");
    on_server(net, target).insert(Replicated);
    net.run(Ticks(60));
    assert_eq!(seen(net), copy(net, ada, 2), "it has come");
    on_server(net, target).insert(InRoom(blue));
    net.run(Ticks(60));
    let named = seen(net);
    assert!(!exists(net, named), "it has left the view");
    on_server(net, target).insert(InRoom(red));
    net.run(Ticks(60));
    assert!(copy(net, ada, 2).is_some());
    assert_eq!(seen(net), copy(net, ada, 2), "it has returned");
    lose_the_link(net, ada, |_| {});
    assert_eq!(seen(net), copy(net, ada, 2), "the client has come back");
    lose_the_link(net, ada, |net| {
        on_server(net, target)
            .remove::<Replicated>()
            .insert(Replicated);
    });
    assert!(copy(net, ada, 2).is_some());
    assert_eq!(
        seen(net),
        copy(net, ada, 2),
        "another copy by the time it is back"
    );
    on_server(net, target).despawn();
    net.run(Ticks(60));
    // Whoever comes now is somebody else.
    for n in 10..20 {
        spawn(net, Tag(n));
    }
    net.run(Ticks(60));
    let named = seen(net);
    assert!(!exists(net, named), "it is gone");
}

/// A holder of a reference.
enum Aiming {
    Plain(Aim),
    Predicted(Aim),
    Large(LargeAim),
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LargeAim {
    #[entities]
    whom: Entity,
    padding: Vec<u8>,
}

#[test]
fn a_reference_follows_its_target_out_of_view_and_back() {
    for conditions in [clean(), lossy(1)] {
        let (mut net, ada) = with_ada(game, conditions);
        follows(&mut net, ada, |target| Aiming::Plain(Aim(target)));
    }
}

#[test]
fn a_stepped_reference_follows_its_target() {
    fn stepped(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Aim>().interpolate_step();
    }
    let (mut net, ada) = with_ada(stepped, clean());
    follows(&mut net, ada, |target| Aiming::Plain(Aim(target)));
}

#[test]
fn a_predicted_reference_follows_its_target() {
    fn predicted(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<Aim>().predict();
    }
    let (mut net, ada) = with_ada(predicted, clean());
    follows(&mut net, ada, |target| Aiming::Predicted(Aim(target)));
}

#[test]
fn a_reference_in_a_large_component_follows_its_target() {
    fn large(app: &mut App) {
        app.replicate::<Tag>();
        app.replicate::<LargeAim>();
    }
    let (mut net, ada) = with_ada(large, clean());
    follows(&mut net, ada, |whom| {
        Aiming::Large(LargeAim {
            whom,
            padding: vec![3; 2_000],
        })
    });
}

#[test]
fn a_reference_is_in_view_and_right_when_its_holder_comes_into_view_after_the_target_died() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let (red, blue) = two_rooms(&mut net, session);
    let target = spawn(&mut net, (Tag(2), InRoom(red)));
    let holder = spawn(&mut net, (Tag(1), Aim(target), InRoom(blue)));
    net.run(Ticks(60));
    on_server(&mut net, target).despawn();
    net.run(Ticks(120));
    let strangers: Vec<_> = (10..14)
        .map(|n| spawn(&mut net, (Tag(n), InRoom(red))))
        .collect();
    net.run(Ticks(60));
    on_server(&mut net, holder).insert(InRoom(red));
    net.run(Ticks(60));
    let aim = value::<Aim>(&mut net, ada, 1).unwrap();
    assert!(
        net.client(ada).world().get_entity(aim.0).is_err(),
        "{aim:?} is nobody"
    );
    on_server(&mut net, holder).insert(Aim(strangers[2]));
    net.run(Ticks(60));
    let stranger = copy(&mut net, ada, 12).unwrap();
    assert_eq!(
        value::<Aim>(&mut net, ada, 1),
        Some(Aim(stranger)),
        "now it is meant"
    );
}

#[test]
fn entities_may_name_themselves_and_each_other() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let a = spawn(&mut net, Tag(1));
        let b = spawn(&mut net, (Tag(2), Aim(a)));
        on_server(&mut net, a).insert(Aim(b));
        let c = spawn(&mut net, Tag(3));
        on_server(&mut net, c).insert(Aim(c));
        net.run(Ticks(120));
        let copies: Vec<_> = (1..4).map(|n| copy(&mut net, ada, n).unwrap()).collect();
        assert_eq!(value::<Aim>(&mut net, ada, 1), Some(Aim(copies[1])));
        assert_eq!(value::<Aim>(&mut net, ada, 2), Some(Aim(copies[0])));
        assert_eq!(value::<Aim>(&mut net, ada, 3), Some(Aim(copies[2])));
    }
}

#[test]
fn a_reference_changed_before_its_target_came_is_not_mapped_to_the_old_one() {
    let (mut net, ada) = with_ada(game, clean());
    let late = net.server.world_mut().spawn(Tag(2)).id();
    let other = spawn(&mut net, Tag(3));
    let holder = spawn(&mut net, (Tag(1), Aim(late)));
    net.run(Ticks(30));
    on_server(&mut net, holder).insert(Aim(other));
    net.run(Ticks(30));
    on_server(&mut net, late).insert(Replicated);
    net.run(Ticks(60));
    let other = copy(&mut net, ada, 3).unwrap();
    assert_eq!(value::<Aim>(&mut net, ada, 1), Some(Aim(other)));
    // And removed before it came.
    let late = net.server.world_mut().spawn(Tag(4)).id();
    on_server(&mut net, holder).insert(Aim(late));
    net.run(Ticks(30));
    on_server(&mut net, holder).remove::<Aim>();
    net.run(Ticks(30));
    on_server(&mut net, late).insert(Replicated);
    net.run(Ticks(60));
    assert_eq!(value::<Aim>(&mut net, ada, 1), None);
}

/// On a client: what is aimed at.
#[derive(Component)]
struct Targeted;

#[test]
fn observers_of_a_new_copy_may_go_to_those_that_it_names() {
    fn marking(app: &mut App) {
        game(app);
        app.add_observer(
            |added: On<Add, Aim>, aims: Query<&Aim>, mut commands: Commands| {
                let whom = aims.get(added.entity).unwrap().0;
                if whom != Entity::PLACEHOLDER {
                    commands.entity(whom).insert(Targeted);
                }
            },
        );
    }
    let (mut net, ada) = with_ada_playing(game, marking, clean());
    let ends = [spawn(&mut net, Tag(1)), spawn(&mut net, Tag(2))];
    on_server(&mut net, ends[0]).insert(Aim(ends[1]));
    on_server(&mut net, ends[1]).insert(Aim(ends[0]));
    net.run(Ticks(60));
    for (tag, other) in [(1, 2), (2, 1)] {
        let other = copy(&mut net, ada, other).map(Aim);
        assert_eq!(value(&mut net, ada, tag), other);
        let named = copy(&mut net, ada, tag).unwrap();
        assert!(net.client(ada).world().get::<Targeted>(named).is_some());
    }
}

#[test]
fn an_observer_of_one_copy_may_despawn_another_that_is_about_to_come() {
    fn jealous(app: &mut App) {
        game(app);
        app.add_observer(
            |added: On<Add, Aim>, aims: Query<&Aim>, mut commands: Commands| {
                let whom = aims.get(added.entity).unwrap().0;
                commands.entity(whom).try_despawn();
            },
        );
    }
    let (mut net, ada) = with_ada_playing(game, jealous, clean());
    let ends = [spawn(&mut net, Tag(1)), spawn(&mut net, Tag(2))];
    on_server(&mut net, ends[0]).insert(Aim(ends[1]));
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 1).is_some());
    assert_eq!(copy(&mut net, ada, 2), None);
    for entity in ends {
        net.server.world_mut().despawn(entity);
    }
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 1), None);
}

/// Whom a player attacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, MapEntities)]
struct Attack {
    #[entities]
    target: Entity,
}

impl Default for Attack {
    fn default() -> Self {
        Self {
            target: Entity::PLACEHOLDER,
        }
    }
}

#[test]
fn an_input_never_names_the_dead_on_the_server() {
    fn attacks(app: &mut App) {
        app.add_mapped_input::<Attack>();
        app.replicate::<Tag>();
        app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
            commands.spawn((Replicated, OwnedBy(joined.entity)));
        });
    }
    fn attacked(app: &mut App) {
        attacks(app);
        app.add_systems(
            FixedUpdate,
            |attacks: Query<&Input<Attack>, With<Simulated>>, entities: Query<()>| {
                for attack in &attacks {
                    let target = attack.target;
                    assert!(target == Entity::PLACEHOLDER || entities.contains(target));
                }
            },
        );
    }
    let (mut net, ada) = with_ada_playing(attacked, attacks, clean());
    for tag in 0..8 {
        let target = spawn(&mut net, Tag(tag));
        net.run(Ticks(60 + tag % 3));
        let seen = copy(&mut net, ada, tag).unwrap();
        net.client(ada)
            .insert_resource(LocalInput(Attack { target: seen }));
        net.run(Ticks(30));
        net.server.world_mut().despawn(target);
        net.run(Ticks(10));
    }
}
