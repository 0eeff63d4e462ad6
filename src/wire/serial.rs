//! Any serde value to bytes and back, for everything that is not quantised.
//!
//! Integers take as many bytes as they need, floats four or eight, structs cost nothing beyond
//! their fields, and enums their variant's number. Both sides must be built from the same types;
//! the handshake sees to that. This is the only file that knows which crate does the work
//! (bincode 2, standard configuration: little endian, variable-length integers).
//!
//! Types that describe themselves while being read (`#[serde(untagged)]`, `#[serde(flatten)]`,
//! `serde_json::Value`) do not fit such a format: decoding them is an error.
//!
//! # Hostile input
//!
//! A length prefix allocates at most a fixed multiple of [`MAX_VALUE_BYTES`] before the bytes
//! behind it are seen. Two kinds of type are for trusted peers only, since they make much from
//! few bytes: collections of zero-sized elements (`Vec<()>` may claim 2⁶⁴ of them) and recursive
//! ones (`Box<Self>` nests one level a byte, until the stack ends).

use bincode::config::{Configuration, Limit, LittleEndian, Varint, standard};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes one encoded value may have: 1 MiB.
///
/// Far above what a component or message should be, and low enough that a hostile peer gains
/// nothing by claiming it.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The decoder counts values at their size in memory, and a `u128` of 16 bytes may arrive in one.
/// With this allowance, everything that [`encode`] accepts decodes again.
const MAX_DECODED_BYTES: usize = 16 * MAX_VALUE_BYTES;

const FORMAT: Configuration<LittleEndian, Varint, Limit<MAX_DECODED_BYTES>> =
    standard().with_limit();

/// Longest text of a nested error that is kept: it may quote what the peer sent.
const MAX_DETAIL_CHARS: usize = 160;

/// Why a value could not be turned into bytes, or bytes into a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SerialError {
    /// The encoded value is larger than [`MAX_VALUE_BYTES`].
    #[error("the value takes more than {MAX_VALUE_BYTES} bytes; split it or send less of it")]
    TooLarge,
    /// The type refused to be serialised.
    #[error("the value cannot be serialised: {0}")]
    Unserializable(String),
    /// The bytes end before the value does.
    #[error("the bytes end in the middle of the value")]
    Truncated,
    /// The bytes are not a value of this type; the text says where they differ.
    #[error("the bytes are not a value of this type: {0}")]
    Malformed(String),
    /// The value is complete and bytes are left over: the sides disagree about the type.
    #[error("{0} bytes are left over behind the value; are both sides built from the same types?")]
    TrailingBytes(usize),
}

/// Appends the encoded value to `out`.
///
/// # Errors
///
/// [`SerialError::TooLarge`] or [`SerialError::Unserializable`]; `out` is then as it was before.
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), SerialError> {
    let start = out.len();
    let mut writer = Bounded {
        out,
        remaining: MAX_VALUE_BYTES,
    };
    let result = bincode::serde::encode_into_writer(value, &mut writer, FORMAT);
    result.map_err(|error| {
        out.truncate(start);
        match error {
            EncodeError::UnexpectedEnd => SerialError::TooLarge,
            EncodeError::OtherString(text) => SerialError::Unserializable(shortened(&text)),
            other => SerialError::Unserializable(shortened(&other.to_string())),
        }
    })
}

/// Decodes one value which fills `bytes` exactly.
///
/// # Errors
///
/// Any [`SerialError`] but `Unserializable`; [`SerialError::TrailingBytes`] when bytes are left.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SerialError> {
    match decode_prefix(bytes)? {
        (value, []) => Ok(value),
        (_, rest) => Err(SerialError::TrailingBytes(rest.len())),
    }
}

/// Decodes one value at the start of `bytes`, and returns it with what follows.
///
/// # Errors
///
/// Any [`SerialError`] but `Unserializable` and `TrailingBytes`.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), SerialError> {
    match bincode::serde::decode_from_slice(bytes, FORMAT) {
        Ok((_, length)) if length > MAX_VALUE_BYTES => Err(SerialError::TooLarge),
        Ok((value, length)) => Ok((value, &bytes[length..])),
        Err(DecodeError::LimitExceeded) => Err(SerialError::TooLarge),
        Err(DecodeError::UnexpectedEnd { .. }) => Err(SerialError::Truncated),
        Err(DecodeError::OtherString(text)) => Err(SerialError::Malformed(shortened(&text))),
        Err(other) => Err(SerialError::Malformed(shortened(&other.to_string()))),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_DETAIL_CHARS).collect()
}

/// Stops the encoder at the limit, not only after a huge value has been written out.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    remaining: usize,
}

impl Writer for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.remaining = self
            .remaining
            .checked_sub(bytes.len())
            .ok_or(EncodeError::UnexpectedEnd)?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Item {
        Nothing,
        Name(String),
        Place { x: f32, y: f32, tags: Vec<i64> },
        Table(BTreeMap<u16, Option<bool>>),
        Wide(u128, char),
    }

    fn item() -> impl Strategy<Value = Item> {
        let finite = proptest::num::f32::NORMAL;
        prop_oneof![
            Just(Item::Nothing),
            ".{0,20}".prop_map(Item::Name),
            (finite, finite, vec(any::<i64>(), 0..9)).prop_map(|(x, y, tags)| Item::Place {
                x,
                y,
                tags
            }),
            btree_map(any::<u16>(), any::<Option<bool>>(), 0..9).prop_map(Item::Table),
            any::<(u128, char)>().prop_map(|(number, letter)| Item::Wide(number, letter)),
        ]
    }

    fn encoded<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
        let mut out = Vec::new();
        encode(value, &mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(items in vec(item(), 0..9)) {
            prop_assert_eq!(decode::<Vec<Item>>(&encoded(&items)), Ok(items));
        }

        #[test]
        fn values_stand_behind_each_other(first in item(), second in item()) {
            let mut bytes = encoded(&first);
            encode(&second, &mut bytes).unwrap();
            let (decoded, rest) = decode_prefix::<Item>(&bytes).unwrap();
            prop_assert_eq!(decoded, first);
            prop_assert_eq!(decode::<Item>(rest), Ok(second));
        }

        #[test]
        fn a_cut_value_is_an_error(item in item(), cut in any::<prop::sample::Index>()) {
            let bytes = encoded(&item);
            let cut = &bytes[..cut.index(bytes.len())];
            prop_assert!(decode::<Item>(cut).is_err());
        }

        #[test]
        fn no_bytes_make_decode_panic(bytes in vec(any::<u8>(), 0..60)) {
            let _ = decode::<Vec<Item>>(&bytes);
            let _ = decode::<(String, Vec<u8>, Vec<Vec<u64>>)>(&bytes);
        }
    }

    #[test]
    fn left_over_bytes_are_counted() {
        let mut bytes = encoded(&7_u32);
        bytes.extend([1, 2]);
        assert_eq!(decode::<u32>(&bytes), Err(SerialError::TrailingBytes(2)));
    }

    #[test]
    fn a_hostile_length_is_refused_before_it_is_allocated() {
        let bytes = encoded(&(u64::MAX >> 1));
        assert_eq!(decode::<String>(&bytes), Err(SerialError::TooLarge));
        assert_eq!(decode::<Vec<u64>>(&bytes), Err(SerialError::Truncated));
    }

    #[test]
    fn a_value_beyond_the_limit_leaves_the_output_alone() {
        let mut out = vec![1, 2, 3];
        let large = "x".repeat(MAX_VALUE_BYTES);
        assert_eq!(encode(&large, &mut out), Err(SerialError::TooLarge));
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn the_largest_values_decode_again() {
        let text = "x".repeat(MAX_VALUE_BYTES - 5);
        assert_eq!(decode::<String>(&encoded(&text)), Ok(text));
        let numbers = vec![1_u128; MAX_VALUE_BYTES - 5];
        assert_eq!(decode::<Vec<u128>>(&encoded(&numbers)), Ok(numbers));
    }

    #[test]
    fn errors_do_not_quote_a_peer_at_length() {
        #[derive(Debug, Deserialize)]
        #[serde(try_from = "String")]
        struct Never;
        impl TryFrom<String> for Never {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                Err(text)
            }
        }
        let error = decode::<Never>(&encoded(&"a".repeat(5_000))).unwrap_err();
        assert!(
            error.to_string().len() < 300,
            "logs stay short whatever a peer sends"
        );
    }
}
