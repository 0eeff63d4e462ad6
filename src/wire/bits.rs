//! A bit stream: values of 1 to 32 bits, packed without gaps.
//!
//! The first bit written is the lowest of the first byte, so a value of eight bits at offset zero
//! is simply that byte, and both directions work on little-endian words with shifts alone.
//!
//! ```
//! use bevy_tandem::wire::bits::{BitReader, BitWriter};
//!
//! let mut writer = BitWriter::new();
//! writer.write_bit(true);
//! writer.write_bits(300, 9);
//! writer.write_signed_exp_golomb(-2, 1);
//!
//! let mut reader = BitReader::new(writer.finish());
//! assert_eq!(reader.read_bit(), Ok(true));
//! assert_eq!(reader.read_bits(9), Ok(300));
//! assert_eq!(reader.read_signed_exp_golomb(1), Ok(-2));
//! ```

use std::ops::Range;

use super::WireError;

/// Packs values of any number of bits into bytes.
#[derive(Clone, Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    /// Bits which follow `bytes`; those above `pending` are zero.
    accumulator: u64,
    /// Bits in use in the accumulator: fewer than 32 between calls, so that 32 more always fit.
    pending: u32,
}

impl BitWriter {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was written and keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.accumulator = 0;
        self.pending = 0;
    }

    /// Number of bits written.
    pub fn bit_len(&self) -> usize {
        self.bytes.len() * 8 + self.pending as usize
    }

    /// Rolls back to an earlier [`bit_len`](Self::bit_len): how a block which turned out not to
    /// fit is taken back. Does nothing when the writer is shorter already.
    pub fn truncate(&mut self, bits: usize) {
        if bits >= self.bit_len() {
            return;
        }
        let whole = self.bytes.len() * 8;
        if bits >= whole {
            self.pending = (bits - whole) as u32;
        } else {
            self.pending = (bits % 8) as u32;
            self.accumulator = self.bytes.get(bits / 8).copied().map_or(0, u64::from);
            self.bytes.truncate(bits / 8);
        }
        self.accumulator &= low_mask(self.pending);
    }

    /// Writes one bit.
    #[inline]
    pub fn write_bit(&mut self, bit: bool) {
        self.write_bits(u32::from(bit), 1);
    }

    /// Writes the lowest `bits` (0 to 32) of `value`; higher ones are ignored.
    #[inline]
    pub fn write_bits(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32, "a value has at most 32 bits");
        self.accumulator |= (u64::from(value) & low_mask(bits)) << self.pending;
        self.pending += bits;
        if self.pending >= 32 {
            let word = self.accumulator as u32;
            self.bytes.extend_from_slice(&word.to_le_bytes());
            self.accumulator >>= 32;
            self.pending -= 32;
        }
    }

    /// Writes any `u32` in few bits when it is small: k + 1 bits below 2ᵏ, two more for each
    /// doubling from there.
    ///
    /// This is the Exp-Golomb code of order `k` (0 to 31), known from H.264: the value plus 2ᵏ as
    /// a binary number, its length in unary before it.
    pub fn write_exp_golomb(&mut self, value: u32, k: u32) {
        debug_assert!(k < 32, "the order of an Exp-Golomb code is below 32");
        let shifted = u64::from(value) + (1 << k);
        let length = shifted.ilog2();
        let zeros = length - k;
        self.write_bits(0, zeros);
        self.write_bit(true);
        self.write_bits(shifted as u32, length); // the topmost one is implied
    }

    /// Writes any `i32` in few bits when it is near zero, on either side.
    pub fn write_signed_exp_golomb(&mut self, value: i32, k: u32) {
        self.write_exp_golomb(zigzag(value), k);
    }

    /// Writes whole bytes, at whatever bit the writer has reached.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        if self.pending.is_multiple_of(8) {
            self.flush_whole_bytes();
            self.bytes.extend_from_slice(bytes);
            return;
        }
        self.bytes.reserve(bytes.len() + 8);
        let (words, rest) = bytes.as_chunks::<4>();
        for &word in words {
            self.write_bits(u32::from_le_bytes(word), 32);
        }
        for &byte in rest {
            self.write_bits(u32::from(byte), 8);
        }
    }

    /// Copies an already encoded block behind what was written.
    pub fn append(&mut self, block: &Bits) {
        self.append_range(&block.bytes, 0..block.len);
    }

    /// Copies a range of bits out of `bytes`: one block out of a buffer which holds many.
    ///
    /// # Panics
    ///
    /// If the range reaches beyond `bytes`.
    pub fn append_range(&mut self, bytes: &[u8], range: Range<usize>) {
        let mut source = BitReader::new(bytes);
        assert!(
            range.start <= range.end && range.end <= source.end,
            "bits {range:?} lie outside a block of {} bits",
            source.end
        );
        if range.start.is_multiple_of(8) {
            let whole = range.start / 8..range.end / 8;
            source.position = whole.end * 8;
            self.write_bytes(&bytes[whole]);
        } else {
            source.position = range.start;
            self.bytes.reserve((range.end - range.start) / 8 + 8);
            while range.end - source.position >= 32 {
                self.write_bits(source.peek() as u32, 32);
                source.position += 32;
            }
        }
        let rest = (range.end - source.position) as u32;
        self.write_bits(source.peek() as u32, rest);
    }

    /// Pads with zeros to a whole byte and returns everything written. Later writes start at the
    /// next byte.
    pub fn finish(&mut self) -> &[u8] {
        self.pending = self.pending.next_multiple_of(8);
        self.flush_whole_bytes();
        &self.bytes
    }

    /// Takes what was written as a block of exactly as many bits, and leaves the writer empty.
    pub fn take(&mut self) -> Bits {
        let len = self.bit_len();
        self.finish();
        Bits {
            bytes: std::mem::take(&mut self.bytes),
            len,
        }
    }

    /// Moves the accumulator into `bytes`. Only with a whole number of bytes in it.
    fn flush_whole_bytes(&mut self) {
        let count = (self.pending / 8) as usize;
        self.bytes
            .extend_from_slice(&self.accumulator.to_le_bytes()[..count]);
        self.accumulator = 0;
        self.pending = 0;
    }
}

/// An encoded block of any number of bits, to be copied into many writers.
///
/// Comes from [`BitWriter::take`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
    /// At most `bytes.len() * 8`; the bits beyond are zero.
    len: usize,
}

impl Bits {
    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bits, padded with zeros to a whole byte.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads what a [`BitWriter`] wrote.
///
/// Cloning gives a second reader at the same place, to look ahead with.
#[derive(Clone, Debug)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    /// In bits, never beyond `end`.
    position: usize,
    /// Length of `bytes` in bits.
    end: usize,
}

impl<'a> BitReader<'a> {
    /// A reader at the first bit.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            position: 0,
            end: bytes.len() * 8,
        }
    }

    /// Bits not read yet, the padding of the last byte included.
    pub fn remaining_bits(&self) -> usize {
        self.end - self.position
    }

    /// Reads one bit.
    ///
    /// # Errors
    ///
    /// [`WireError::OutOfBits`] at the end of the input.
    #[inline]
    pub fn read_bit(&mut self) -> Result<bool, WireError> {
        Ok(self.read_bits(1)? != 0)
    }

    /// Reads a value of `bits` (0 to 32) bits.
    ///
    /// # Errors
    ///
    /// [`WireError::OutOfBits`] when fewer remain; the reader stays where it was.
    #[inline]
    pub fn read_bits(&mut self, bits: u32) -> Result<u32, WireError> {
        debug_assert!(bits <= 32, "a value has at most 32 bits");
        if self.remaining_bits() < bits as usize {
            return Err(WireError::OutOfBits);
        }
        let value = self.peek() & low_mask(bits);
        self.position += bits as usize;
        Ok(value as u32)
    }

    /// Reads a value of [`BitWriter::write_exp_golomb`] with the same `k`.
    ///
    /// # Errors
    ///
    /// [`WireError::OutOfBits`] at the end of the input, [`WireError::InvalidValue`] when the
    /// number is longer than a `u32`.
    #[inline]
    pub fn read_exp_golomb(&mut self, k: u32) -> Result<u32, WireError> {
        const TOO_LONG: WireError = WireError::InvalidValue("Exp-Golomb number beyond 32 bits");
        debug_assert!(k < 32, "the order of an Exp-Golomb code is below 32");
        // Beyond the end, `peek` gives zeros: the check for the end has to come first.
        let zeros = self.peek().trailing_zeros();
        if zeros as usize >= self.remaining_bits() {
            return Err(WireError::OutOfBits);
        }
        let length = zeros + k;
        if length > 32 {
            return Err(TOO_LONG);
        }
        self.position += zeros as usize + 1;
        let shifted = (1_u64 << length) + u64::from(self.read_bits(length)?);
        u32::try_from(shifted - (1 << k)).map_err(|_| TOO_LONG)
    }

    /// Reads a value of [`BitWriter::write_signed_exp_golomb`] with the same `k`.
    ///
    /// # Errors
    ///
    /// As [`read_exp_golomb`](Self::read_exp_golomb).
    #[inline]
    pub fn read_signed_exp_golomb(&mut self, k: u32) -> Result<i32, WireError> {
        self.read_exp_golomb(k).map(unzigzag)
    }

    /// Reads `len` whole bytes from whatever bit the reader is at.
    ///
    /// # Errors
    ///
    /// [`WireError::OutOfBits`] when fewer remain, before anything is allocated: `len` may come
    /// from the network.
    pub fn read_bytes(&mut self, len: usize) -> Result<Vec<u8>, WireError> {
        if len > self.remaining_bits() / 8 {
            return Err(WireError::OutOfBits);
        }
        if self.position.is_multiple_of(8) {
            let start = self.position / 8;
            self.position += len * 8;
            return Ok(self.bytes[start..start + len].to_vec());
        }
        let mut bytes = Vec::with_capacity(len);
        while len - bytes.len() >= 4 {
            bytes.extend_from_slice(&self.read_bits(32)?.to_le_bytes());
        }
        while bytes.len() < len {
            bytes.push(self.read_bits(8)? as u8);
        }
        Ok(bytes)
    }

    /// At least the next 57 bits, zeros where the input ends.
    #[inline]
    fn peek(&self) -> u64 {
        let rest = &self.bytes[self.position / 8..];
        let word = match rest.first_chunk::<8>() {
            Some(&chunk) => u64::from_le_bytes(chunk),
            None => {
                let mut chunk = [0; 8];
                chunk[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(chunk)
            }
        };
        word >> (self.position % 8)
    }
}

/// Ones in the lowest `bits` (0 to 63).
#[inline]
const fn low_mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Interleaves negative and positive numbers, so that those near zero become small:
/// 0, -1, 1, -2 … become 0, 1, 2, 3 …
#[inline]
pub(super) const fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)).cast_unsigned()
}

/// Undoes [`zigzag`].
#[inline]
pub(super) const fn unzigzag(value: u32) -> i32 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// One call to a writer, and what the reader must give back.
    #[derive(Clone, Debug)]
    enum Item {
        Bits(u32, u32),
        Golomb(u32, u32),
        Signed(i32, u32),
        Bytes(Vec<u8>),
    }

    impl Item {
        fn write(&self, out: &mut BitWriter) {
            match *self {
                Self::Bits(value, bits) => out.write_bits(value, bits),
                Self::Golomb(value, k) => out.write_exp_golomb(value, k),
                Self::Signed(value, k) => out.write_signed_exp_golomb(value, k),
                Self::Bytes(ref bytes) => out.write_bytes(bytes),
            }
        }
    }

    fn items() -> impl Strategy<Value = Vec<Item>> {
        // Shifted down by a random amount, so that small numbers are as common as large ones.
        let number = || (any::<u32>(), 0..32_u32).prop_map(|(value, shift)| value >> shift);
        vec(
            prop_oneof![
                (any::<u32>(), 0..=32_u32).prop_map(|(value, bits)| Item::Bits(value, bits)),
                (number(), 0..32_u32).prop_map(|(value, k)| Item::Golomb(value, k)),
                (number(), 0..32_u32).prop_map(|(value, k)| Item::Signed(unzigzag(value), k)),
                vec(any::<u8>(), 0..20).prop_map(Item::Bytes),
            ],
            0..40,
        )
    }

    fn written(items: &[Item]) -> BitWriter {
        let mut out = BitWriter::new();
        for item in items {
            item.write(&mut out);
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(items in items()) {
            let mut out = written(&items);
            let len = out.bit_len();
            let mut input = BitReader::new(out.finish());
            for item in &items {
                match *item {
                    Item::Bits(value, bits) => {
                        let kept = (u64::from(value) & low_mask(bits)) as u32;
                        prop_assert_eq!(input.read_bits(bits), Ok(kept));
                    }
                    Item::Golomb(value, k) => prop_assert_eq!(input.read_exp_golomb(k), Ok(value)),
                    Item::Signed(value, k) => {
                        prop_assert_eq!(input.read_signed_exp_golomb(k), Ok(value));
                    }
                    Item::Bytes(ref bytes) => {
                        prop_assert_eq!(&input.read_bytes(bytes.len()).unwrap(), bytes);
                    }
                }
            }
            prop_assert_eq!(input.remaining_bits(), len.next_multiple_of(8) - len, "only padding is left");
        }

        #[test]
        fn a_rolled_back_writer_continues_as_if_nothing_had_happened(
            kept in items(),
            dropped in items(),
            after in items(),
        ) {
            let mut out = written(&kept);
            let mark = out.bit_len();
            for item in &dropped {
                item.write(&mut out);
            }
            out.truncate(mark);
            prop_assert_eq!(out.bit_len(), mark);
            for item in &after {
                item.write(&mut out);
            }
            prop_assert_eq!(out.take(), written(&[kept, after].concat()).take());
        }

        #[test]
        fn an_appended_block_equals_straight_writing(before in items(), block in items(), after in items()) {
            let mut out = written(&before);
            out.append(&written(&block).take());
            for item in &after {
                item.write(&mut out);
            }
            prop_assert_eq!(out.take(), written(&[before, block, after].concat()).take());
        }

        #[test]
        fn a_range_out_of_a_buffer_equals_straight_writing(
            skipped in items(),
            block in items(),
            before in items(),
        ) {
            let mut buffer = written(&skipped);
            let start = buffer.bit_len();
            for item in &block {
                item.write(&mut buffer);
            }
            let end = buffer.bit_len();
            let mut out = written(&before);
            out.append_range(buffer.finish(), start..end);
            prop_assert_eq!(out.take(), written(&[before, block].concat()).take());
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            bytes in vec(any::<u8>(), 0..40),
            calls in vec((0..4, 0..32_u32, any::<usize>()), 0..60),
        ) {
            let mut input = BitReader::new(&bytes);
            for (call, bits, len) in calls {
                let before = input.remaining_bits();
                let _ = match call {
                    0 => input.read_bits(bits + 1).map(drop),
                    1 => input.read_exp_golomb(bits).map(drop),
                    2 => input.read_signed_exp_golomb(bits).map(drop),
                    _ => input.read_bytes(len >> (bits * 2)).map(drop),
                };
                prop_assert!(input.remaining_bits() <= before, "readers only move forward");
            }
        }
    }

    #[test]
    fn exp_golomb_covers_both_ends_of_the_range() {
        for k in 0..32 {
            for value in [0, 1, (1 << k) - 1, 1 << k, u32::MAX - 1, u32::MAX] {
                let mut out = BitWriter::new();
                out.write_exp_golomb(value, k);
                let mut input = BitReader::new(out.finish());
                assert_eq!(input.read_exp_golomb(k), Ok(value), "order {k}");
            }
        }
    }

    #[test]
    fn exp_golomb_numbers_beyond_32_bits_are_refused() {
        let mut out = BitWriter::new();
        out.write_bits(0, 33 - 1);
        out.write_bits(0b10, 2);
        out.write_bits(0, 32);
        out.write_bits(0, 32);
        let too_many_zeros = BitReader::new(out.finish()).read_exp_golomb(0);
        assert!(matches!(too_many_zeros, Err(WireError::InvalidValue(_))));

        out.clear();
        out.write_bits(0, 32);
        out.write_bit(true);
        out.write_bits(u32::MAX, 32);
        let too_large = BitReader::new(out.finish()).read_exp_golomb(0);
        assert!(matches!(too_large, Err(WireError::InvalidValue(_))));

        let cut_short = BitReader::new(&[0, 0]).read_exp_golomb(0);
        assert_eq!(cut_short, Err(WireError::OutOfBits));
    }

    #[test]
    fn a_failed_read_leaves_the_reader_in_place() {
        let mut input = BitReader::new(&[0b1010_1010]);
        assert_eq!(input.read_bits(9), Err(WireError::OutOfBits));
        assert_eq!(input.read_bytes(usize::MAX), Err(WireError::OutOfBits));
        assert_eq!(input.read_bits(8), Ok(0b1010_1010));
    }
}
