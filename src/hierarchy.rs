//! Walks of Bevy's hierarchy that always end: Bevy lets a game hang two entities below one another.

use bevy::prelude::*;

/// The entities above one, the nearest first. Those in a circle are named until that is noticed, by Brent's algorithm.
pub(crate) fn ancestors(world: &World, entity: Entity) -> impl Iterator<Item = Entity> {
    let mut at = entity;
    let mut seen = entity;
    let (mut steps, mut steps_until_seen) = (0_u32, 1_u32);
    std::iter::from_fn(move || {
        at = world.get::<ChildOf>(at)?.parent();
        if at == seen {
            return None;
        }
        steps += 1;
        if steps == steps_until_seen {
            seen = at;
            steps = 0;
            steps_until_seen *= 2;
        }
        Some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_come_nearest_first() {
        let mut world = World::new();
        let chain: Vec<_> = (0..20).map(|_| world.spawn_empty().id()).collect();
        for pair in chain.windows(2) {
            world.entity_mut(pair[0]).insert(ChildOf(pair[1]));
        }
        let above: Vec<_> = ancestors(&world, chain[0]).collect();
        assert_eq!(above, chain[1..]);
    }

    #[test]
    fn a_walk_up_a_circle_ends() {
        for (tail, circle) in [(0, 2), (0, 7), (5, 2), (1, 30)] {
            let mut world = World::new();
            let chain: Vec<_> = (0..tail + circle)
                .map(|_| world.spawn_empty().id())
                .collect();
            for (index, &entity) in chain.iter().enumerate() {
                let parent = *chain.get(index + 1).unwrap_or(&chain[tail]);
                world.entity_mut(entity).insert(ChildOf(parent));
            }
            let above: Vec<_> = ancestors(&world, chain[0]).collect();
            let all_but_first = chain[1..].iter();
            assert!(all_but_first.clone().all(|entity| above.contains(entity)));
        }
    }
}
