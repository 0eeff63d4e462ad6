//! From this app's entities to network ids, and back, in whatever names entities.

use bevy::ecs::entity::{EntityMapper, MapEntities};
use bevy::prelude::*;

use crate::protocol::layout::NetId;

/// Maps an entity of one side to the other's.
pub(crate) type MapEntity<'a> = dyn FnMut(Entity) -> Entity + 'a;

/// An [`EntityMapper`] that calls a function.
struct Mapper<'a, 'b>(&'a mut MapEntity<'b>);

impl EntityMapper for Mapper<'_, '_> {
    fn get_mapped(&mut self, source: Entity) -> Entity {
        (self.0)(source)
    }

    fn set_mapped(&mut self, _: Entity, _: Entity) {}
}

/// Maps the entities that a message or an input names.
pub(crate) fn map_entities<T: MapEntities>(value: &mut T, map: &mut MapEntity) {
    value.map_entities(&mut Mapper(map));
}

/// Maps entities of this app to their network ids, on the way out.
pub(crate) struct ToNet<'a> {
    pub nets: &'a dyn Fn(Entity) -> Option<NetId>,
}

impl EntityMapper for ToNet<'_> {
    fn get_mapped(&mut self, source: Entity) -> Entity {
        (self.nets)(source)
            .and_then(reference_to)
            .unwrap_or(Entity::PLACEHOLDER)
    }

    fn set_mapped(&mut self, _: Entity, _: Entity) {}
}

/// Maps network ids to entities of this app, on the way in.
pub(crate) struct FromNet<'a> {
    pub locals: &'a dyn Fn(NetId) -> Option<Entity>,
    pub unknown: &'a mut dyn FnMut(NetId),
}

impl EntityMapper for FromNet<'_> {
    fn get_mapped(&mut self, source: Entity) -> Entity {
        if source == Entity::PLACEHOLDER {
            return source;
        }
        let Some(net) = referred_to(source) else {
            return Entity::PLACEHOLDER;
        };
        (self.locals)(net).unwrap_or_else(|| {
            (self.unknown)(net);
            Entity::PLACEHOLDER
        })
    }

    fn set_mapped(&mut self, _: Entity, _: Entity) {}
}

/// Network ids travel in the place of entities, whose codec writes their 64 bits with as many bytes as they need.
///
/// ```text
/// 2 (index + 1)                     of generation 0: 1 byte up to index 124, 3 up to 32,766, 5 above
/// 2 (generation << 16 | index) + 1  where both are small: 5 bytes
/// generation << 32 | index + 1      otherwise: 9 bytes
/// ```
fn reference_to(net: NetId) -> Option<Entity> {
    let (index, generation) = (u64::from(net.index()), u64::from(net.generation()));
    let bits = match (index, generation) {
        (0..0x7fff_ffff, 0) => 2 * (index + 1),
        (0..=0xffff, 1..=0x7fff) => 2 * (generation << 16 | index) + 1,
        (0..0xffff_ffff, 1..) => generation << 32 | (index + 1),
        // The archive has no room for so many.
        _ => return None,
    };
    Entity::try_from_bits(bits)
}

fn referred_to(reference: Entity) -> Option<NetId> {
    let bits = reference.to_bits();
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    let (index, generation) = match (low % 2, high) {
        (0, 0) => ((low / 2).checked_sub(1)?, 0),
        (_, 0) => ((low / 2) & 0xffff, (low / 2) >> 16),
        _ => (low.checked_sub(1)?, high),
    };
    Some(NetId::new(index, generation))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::serial;

    fn len(net: NetId) -> usize {
        let mut bytes = Vec::new();
        serial::encode(&reference_to(net), &mut bytes).unwrap();
        bytes.len() - 1 // the option's own
    }

    #[test]
    fn references_are_short() {
        assert_eq!(len(NetId::new(0, 0)), 1);
        assert_eq!(len(NetId::new(124, 0)), 1);
        assert_eq!(len(NetId::new(32_000, 0)), 3);
        assert_eq!(len(NetId::new(1_000_000, 0)), 5);
        assert_eq!(len(NetId::new(65_535, 32_767)), 5);
        assert_eq!(len(NetId::new(65_535, 32_768)), 9);
    }

    fn any_u32() -> impl Strategy<Value = u32> {
        prop_oneof![0..300u32, 0x7ff0..0x1_0010u32, any::<u32>()]
    }

    proptest! {
        #[test]
        fn a_reference_names_whom_it_was_made_for(index in any_u32(), generation in any_u32()) {
            let net = NetId::new(index, generation);
            match reference_to(net) {
                Some(reference) => {
                    prop_assert_ne!(reference, Entity::PLACEHOLDER);
                    prop_assert_eq!(referred_to(reference), Some(net));
                }
                None => prop_assert!(index >= 0x7fff_ffff),
            }
        }

        #[test]
        fn any_reference_can_be_read(bits: u64) {
            if let Some(reference) = Entity::try_from_bits(bits) {
                referred_to(reference);
            }
        }
    }
}
