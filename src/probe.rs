//! Finds out whether a type names entities, without a value of it.
//!
//! An [`Entity`] is one app's own number, so whatever carries one to another app must map it. Serde shows an entity as a
//! plain `u64`. But it refuses the numbers that no entity has, and says so: a type is read from a source that gives such
//! a number wherever a `u64` is asked for, in each of its variants.
//!
//! Types that read themselves from text, or from whatever there is (`#[serde(untagged)]`, `#[serde(flatten)]`), are not
//! seen through.

use std::fmt;

use bevy::prelude::Entity;
use serde::Deserialize;
use serde::de::value::{Error as TextError, U64Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// Whether a value of this type may name an entity, as far as that can be seen.
pub(crate) fn names_entities<T: DeserializeOwned>() -> bool {
    let no_entity: U64Deserializer<TextError> = NO_ENTITY.into_deserializer();
    let Err(refusal) = Entity::deserialize(no_entity) else {
        return false;
    };
    let refusal = refusal.to_string();
    let mut choices = Choices::default();
    for _ in 0..MAX_READINGS {
        choices.next = 0;
        let source = Source {
            choices: &mut choices,
            depth: 0,
        };
        if T::deserialize(source).is_err_and(|error| error.0 == refusal) {
            return true;
        }
        if !choices.advance() {
            return false;
        }
    }
    false
}

/// A number that is no entity's, and that nothing else minds.
const NO_ENTITY: u64 = 1 << 32;
/// So many combinations of variants are looked at.
const MAX_READINGS: usize = 1_024;
/// Types that contain themselves end somewhere.
const MAX_DEPTH: usize = 24;

/// Which variant is read of each enum that is met.
#[derive(Default)]
struct Choices {
    /// The variant, and how many there are.
    made: Vec<(u32, u32)>,
    next: usize,
}

impl Choices {
    fn choose(&mut self, variants: usize) -> u32 {
        if self.next == self.made.len() {
            self.made.push((0, variants as u32));
        }
        let (choice, _) = self.made[self.next];
        self.next += 1;
        choice
    }

    /// Goes on to the next combination; `false` if that was the last.
    fn advance(&mut self) -> bool {
        self.made.truncate(self.next);
        while let Some((choice, variants)) = self.made.last_mut() {
            *choice += 1;
            if choice < variants {
                return true;
            }
            self.made.pop();
        }
        false
    }
}

/// Gives whatever is asked for.
struct Source<'a> {
    choices: &'a mut Choices,
    depth: usize,
}

/// Why a type was not read to its end.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// A number of values in a row.
struct Row<'a> {
    choices: &'a mut Choices,
    depth: usize,
    left: usize,
}

impl<'a> Source<'a> {
    fn row(self, length: usize) -> Row<'a> {
        Row {
            choices: self.choices,
            depth: self.depth + 1,
            left: if self.depth < MAX_DEPTH { length } else { 0 },
        }
    }
}

impl<'de> SeqAccess<'de> for Row<'_> {
    type Error = Refusal;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refusal> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let source = Source {
            choices: self.choices,
            depth: self.depth,
        };
        seed.deserialize(source).map(Some)
    }
}

impl<'de> MapAccess<'de> for Row<'_> {
    type Error = Refusal;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refusal> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refusal> {
        let source = Source {
            choices: self.choices,
            depth: self.depth,
        };
        seed.deserialize(source)
    }
}

/// One variant of an enum.
struct Variant<'a> {
    source: Source<'a>,
    index: u32,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Refusal;
    type Variant = Source<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Source<'a>), Refusal> {
        let index: de::value::U32Deserializer<Refusal> = self.index.into_deserializer();
        Ok((seed.deserialize(index)?, self.source))
    }
}

impl<'de> VariantAccess<'de> for Source<'_> {
    type Error = Refusal;

    fn unit_variant(self) -> Result<(), Refusal> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refusal> {
        seed.deserialize(Source {
            depth: self.depth + 1,
            ..self
        })
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_seq(self.row(length))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_seq(self.row(fields.len()))
    }
}

/// Answers with one and the same value.
macro_rules! answer {
    ($($method:ident: $visit:ident($value:expr);)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            visitor.$visit($value)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Source<'_> {
    type Error = Refusal;

    answer! {
        deserialize_bool: visit_bool(false);
        deserialize_i8: visit_i8(1);
        deserialize_i16: visit_i16(1);
        deserialize_i32: visit_i32(1);
        deserialize_i64: visit_i64(1);
        deserialize_i128: visit_i128(1);
        deserialize_u8: visit_u8(1);
        deserialize_u16: visit_u16(1);
        deserialize_u32: visit_u32(1);
        deserialize_u64: visit_u64(NO_ENTITY);
        deserialize_u128: visit_u128(1);
        deserialize_f32: visit_f32(0.0);
        deserialize_f64: visit_f64(0.0);
        deserialize_char: visit_char('a');
        deserialize_str: visit_str("");
        deserialize_string: visit_str("");
        deserialize_bytes: visit_bytes(&[]);
        deserialize_byte_buf: visit_bytes(&[]);
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refusal> {
        Err(Refusal("a type that reads whatever there is".into()))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_unit()
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_u64(0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if self.depth >= MAX_DEPTH {
            return visitor.visit_none();
        }
        visitor.visit_some(Source {
            depth: self.depth + 1,
            ..self
        })
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        if self.depth >= MAX_DEPTH {
            return Err(Refusal("a type without an end".into()));
        }
        visitor.visit_newtype_struct(Source {
            depth: self.depth + 1,
            ..self
        })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_seq(self.row(1))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_seq(self.row(length))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_seq(self.row(length))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_map(self.row(1))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_seq(self.row(fields.len()))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        if self.depth >= MAX_DEPTH {
            return Err(Refusal("a type without an end".into()));
        }
        let index = self.choices.choose(variants.len());
        let source = Source {
            depth: self.depth + 1,
            ..self
        };
        visitor.visit_enum(Variant { source, index })
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::num::NonZeroU64;

    use bevy::prelude::{Quat, Vec3};

    use super::*;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    enum Order {
        Wait,
        Go(Vec3),
        Cast {
            spell: u8,
            slot: Option<bool>,
        },
        Attack {
            with: u64,
            whom: Vec<Option<Entity>>,
        },
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    enum Tree {
        Leaf(u64),
        Fork(Box<(Self, Self)>),
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Plain {
        number: u64,
        other: NonZeroU64,
        turn: Quat,
        name: String,
        letter: char,
        list: Vec<(u64, i128)>,
        table: HashMap<String, [u64; 3]>,
        nothing: (),
    }

    #[test]
    fn an_entity_is_found_wherever_it_is() {
        assert!(names_entities::<Entity>());
        assert!(names_entities::<Option<Entity>>());
        assert!(names_entities::<(u8, [Entity; 2])>());
        assert!(names_entities::<BTreeMap<u8, Entity>>());
        assert!(names_entities::<BTreeMap<Entity, u8>>());
        assert!(names_entities::<Result<u8, Box<Entity>>>());
        assert!(names_entities::<Order>(), "in the last of its variants");
        assert!(
            names_entities::<(Tree, Tree, Entity)>(),
            "behind types that contain themselves"
        );
    }

    #[test]
    fn what_names_none_is_let_through() {
        assert!(!names_entities::<()>());
        assert!(!names_entities::<u64>(), "any number may be a number");
        assert!(!names_entities::<NonZeroU64>());
        assert!(!names_entities::<Plain>());
        assert!(!names_entities::<Tree>());
        assert!(!names_entities::<Option<Box<Tree>>>());
    }
}
