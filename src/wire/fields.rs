//! The bits of quantised components: whole, or as the difference from a baseline.
//!
//! The scheme and what it was chosen over are described in [`quantize`](super::quantize).

use super::WireError;
use super::bits::{BitReader, BitWriter, unzigzag, zigzag};

/// The most words one quantised component may have.
///
/// Enough for a rigid body with its velocities twice over; a bound lets callers keep words in an
/// array on the stack.
pub const MAX_WORDS: usize = 32;

/// The difference's width is announced in at most this many bits. Four reach widths of 15 bits;
/// a change beyond that is a teleport, and goes out whole.
const MAX_WIDTH_BITS: u32 = 4;

/// One word of a quantised component: how wide it is, and how it changes.
///
/// Neighbouring fields may form a group, which costs a single bit while nothing in it changes and
/// names the size of the change once for all: right for values that move together, like the axes
/// of a position. A field starts a group of its own unless it [joins](Self::joined) the one
/// before.
///
/// ```
/// use bevy_tandem::wire::quantize::Field;
///
/// let fields = [
///     Field::linear(20),          // x
///     Field::linear(20).joined(), // y moves when x does
///     Field::wrapping(10),        // heading
///     Field::opaque(3).at_rest(0), // what it holds, usually nothing
/// ];
/// # assert!(fields[1].is_joined() && !fields[2].is_joined());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    bits: u8,
    kind: FieldKind,
    joined: bool,
    rest: Option<u32>,
}

/// How a field changes, and what its distance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// A number which usually changes by little.
    Linear,
    /// As [`Linear`](Self::Linear), but the largest number neighbours zero, as with angles: the
    /// distance is the shorter way around.
    Wrapping,
    /// Changes are not small (enums, flags, hashes), and also alter what the rest of its group
    /// means: the group is sent whole when this field changed.
    Opaque,
}

impl Field {
    /// A number of `bits` bits which changes in small steps.
    ///
    /// # Panics
    ///
    /// Unless `bits` is 1 to 32, as for the other kinds.
    pub const fn linear(bits: u8) -> Self {
        Self::new(bits, FieldKind::Linear)
    }

    /// A number of `bits` bits on a circle.
    pub const fn wrapping(bits: u8) -> Self {
        Self::new(bits, FieldKind::Wrapping)
    }

    /// A word of `bits` bits without small changes.
    pub const fn opaque(bits: u8) -> Self {
        Self::new(bits, FieldKind::Opaque)
    }

    const fn new(bits: u8, kind: FieldKind) -> Self {
        assert!(bits >= 1 && bits <= 32, "a field has 1 to 32 bits");
        Self {
            bits,
            kind,
            joined: false,
            rest: None,
        }
    }

    /// Puts this field into the group of the one before it.
    #[must_use]
    pub const fn joined(mut self) -> Self {
        self.joined = true;
        self
    }

    /// Names the word most instances hold. A group in which all fields do so then takes one bit
    /// in [`write_full`]; if only some have a resting word, it has no effect.
    ///
    /// # Panics
    ///
    /// If the word is wider than the field.
    #[must_use]
    pub const fn at_rest(mut self, word: u32) -> Self {
        assert!(word <= self.mask(), "the resting word fits the field");
        self.rest = Some(word);
        self
    }

    /// Width in bits, 1 to 32.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// How the field changes.
    pub const fn kind(self) -> FieldKind {
        self.kind
    }

    /// Whether it belongs to the group of the field before.
    pub const fn is_joined(self) -> bool {
        self.joined
    }

    /// Largest word the field can hold.
    pub const fn mask(self) -> u32 {
        u32::MAX >> (32 - self.bits)
    }

    /// The change from `base` to `word`, by the shorter way around: every pair has one.
    const fn residual(self, base: u32, word: u32) -> i32 {
        let unused = 32 - self.bits as u32;
        (word.wrapping_sub(base) << unused).cast_signed() >> unused
    }

    /// A change that is not zero, small when the change is.
    const fn change_code(self, base: u32, word: u32) -> u32 {
        zigzag(self.residual(base, word)) - 1
    }

    /// The word which [`change_code`](Self::change_code) gives `code` for. Any code is fine.
    const fn changed(self, base: u32, code: u32) -> u32 {
        base.wrapping_add_signed(unzigzag(code.wrapping_add(1))) & self.mask()
    }

    /// Steps between two words; see [`distance`].
    const fn distance(self, a: u32, b: u32) -> u32 {
        match self.kind {
            FieldKind::Linear => a.abs_diff(b),
            FieldKind::Wrapping => self.residual(a, b).unsigned_abs(),
            FieldKind::Opaque if a == b => 0,
            FieldKind::Opaque => u32::MAX,
        }
    }
}

/// The fields of a quantised component, and how they fall into groups, worked out once.
#[derive(Clone, Debug)]
pub struct Fields {
    fields: Box<[Field]>,
    groups: Box<[Group]>,
}

impl Fields {
    pub(crate) fn write_full(&self, words: &[u32], out: &mut BitWriter) {
        write_groups(&self.fields, self.groups.iter().copied(), words, out);
    }

    pub(crate) fn read_full(
        &self,
        words: &mut [u32],
        input: &mut BitReader,
    ) -> Result<(), WireError> {
        read_groups(&self.fields, self.groups.iter().copied(), words, input)
    }

    pub(crate) fn write_delta(&self, base: &[u32], words: &[u32], out: &mut BitWriter) {
        write_changes(&self.fields, self.groups.iter().copied(), base, words, out);
    }

    /// `base` must be words of these fields.
    pub(crate) fn read_delta(
        &self,
        base: &[u32],
        words: &mut [u32],
        input: &mut BitReader,
    ) -> Result<(), WireError> {
        words.copy_from_slice(base);
        read_changes(&self.fields, self.groups.iter().copied(), words, input)
    }
}

impl std::ops::Deref for Fields {
    type Target = [Field];

    fn deref(&self) -> &[Field] {
        &self.fields
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = &'a Field;
    type IntoIter = std::slice::Iter<'a, Field>;

    fn into_iter(self) -> Self::IntoIter {
        self.fields.iter()
    }
}

impl From<Box<[Field]>> for Fields {
    fn from(fields: Box<[Field]>) -> Self {
        let groups = groups_of(&fields).collect();
        Self { fields, groups }
    }
}

impl From<Vec<Field>> for Fields {
    fn from(fields: Vec<Field>) -> Self {
        fields.into_boxed_slice().into()
    }
}

impl<const N: usize> From<[Field; N]> for Fields {
    fn from(fields: [Field; N]) -> Self {
        Box::<[Field]>::from(fields).into()
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        Vec::from_iter(fields).into()
    }
}

/// Writes all words, so that a receiver without a baseline can read them.
///
/// The three slices' lengths must agree, here and below; surplus elements are ignored.
pub fn write_full(fields: &[Field], words: &[u32], out: &mut BitWriter) {
    write_groups(fields, groups_of(fields), words, out);
}

/// Reads what [`write_full`] wrote. Afterwards every word is within its field's width, also
/// when an error is returned and the words mean nothing.
///
/// # Errors
///
/// [`WireError::OutOfBits`] when the input is too short.
pub fn read_full(
    fields: &[Field],
    words: &mut [u32],
    input: &mut BitReader,
) -> Result<(), WireError> {
    read_groups(fields, groups_of(fields), words, input)
}

/// Writes what changed from `base` to `words`. The reader needs the same base: only words which
/// the receiver has acknowledged will do.
pub fn write_delta(fields: &[Field], base: &[u32], words: &[u32], out: &mut BitWriter) {
    write_changes(fields, groups_of(fields), base, words, out);
}

/// Reads what [`write_delta`] wrote against the same base. Afterwards every word is within its
/// field's width, also when an error is returned and the words mean nothing.
///
/// # Errors
///
/// [`WireError::OutOfBits`] when the input is too short, [`WireError::InvalidValue`] when it
/// announces a change wider than any field.
pub fn read_delta(
    fields: &[Field],
    base: &[u32],
    words: &mut [u32],
    input: &mut BitReader,
) -> Result<(), WireError> {
    for ((word, base), field) in words.iter_mut().zip(base).zip(fields) {
        *word = base & field.mask();
    }
    read_changes(fields, groups_of(fields), words, input)
}

fn write_groups(
    fields: &[Field],
    groups: impl Iterator<Item = Group>,
    words: &[u32],
    out: &mut BitWriter,
) {
    for group in groups {
        let (fields, words) = (&fields[group.range()], &words[group.range()]);
        if group.can_rest {
            let rests = fields.iter().zip(words).all(|(f, &w)| f.rest == Some(w));
            out.write_bit(!rests);
            if rests {
                continue;
            }
        }
        write_whole(fields, words, out);
    }
}

fn read_groups(
    fields: &[Field],
    groups: impl Iterator<Item = Group>,
    words: &mut [u32],
    input: &mut BitReader,
) -> Result<(), WireError> {
    words.fill(0);
    for group in groups {
        let (fields, words) = (&fields[group.range()], &mut words[group.range()]);
        if group.can_rest && !input.read_bit()? {
            for (field, word) in fields.iter().zip(words) {
                *word = field.rest.unwrap_or_default();
            }
            continue;
        }
        read_whole(fields, words, input)?;
    }
    Ok(())
}

fn write_changes(
    fields: &[Field],
    groups: impl Iterator<Item = Group>,
    base: &[u32],
    words: &[u32],
    out: &mut BitWriter,
) {
    for group in groups {
        let (base, words) = (&base[group.range()], &words[group.range()]);
        let changed = base.iter().zip(words).any(|(base, word)| base != word);
        out.write_bit(changed);
        if changed {
            write_group_delta(&fields[group.range()], group.shape, base, words, out);
        }
    }
}

/// `words` hold the base before and the result after.
fn read_changes(
    fields: &[Field],
    groups: impl Iterator<Item = Group>,
    words: &mut [u32],
    input: &mut BitReader,
) -> Result<(), WireError> {
    for group in groups {
        if input.read_bit()? {
            let (fields, words) = (&fields[group.range()], &mut words[group.range()]);
            read_group_delta(fields, group.shape, words, input)?;
        }
    }
    Ok(())
}

/// The largest distance of any field, in steps of that field: zero when `a` equals `b`, and
/// [`u32::MAX`] when an [opaque](FieldKind::Opaque) field differs.
pub fn distance(fields: &[Field], a: &[u32], b: &[u32]) -> u32 {
    let pairs = a.iter().zip(b);
    let distances = fields
        .iter()
        .zip(pairs)
        .map(|(f, (&a, &b))| f.distance(a, b));
    distances.max().unwrap_or(0)
}

/// A group changed. Its shape:
///
/// - the width of the largest change, 1 to B - 1 for a group whose widest field has B bits; the
///   highest code says "whole" instead, and the words follow as they are;
/// - did all numbers change? If not, a bit for each; the last goes without when those before
///   agree, since neither all nor none changed;
/// - each change in that width, zigzagged and less one, as it is not zero.
fn write_group_delta(
    group: &[Field],
    shape: Option<GroupShape>,
    base: &[u32],
    words: &[u32],
    out: &mut BitWriter,
) {
    let Some(shape) = shape else {
        return write_whole(group, words, out);
    };
    let mut changes = 0;
    let mut codes = 0;
    for ((field, &base), &word) in group.iter().zip(base).zip(words) {
        if base != word {
            changes += 1;
            codes |= match field.kind {
                FieldKind::Opaque => u32::MAX,
                _ => field.change_code(base, word),
            };
        }
    }
    // At least one bit, for the change whose code is zero.
    let width = (32 - codes.leading_zeros()).max(1);
    if width > shape.largest_width {
        out.write_bits(shape.whole, shape.announcement_bits);
        return write_whole(group, words, out);
    }
    out.write_bits(width - 1, shape.announcement_bits);
    let mut flags = ChangeFlags::new(shape.numbers);
    if shape.numbers > 1 {
        flags.all = changes == shape.numbers;
        out.write_bit(flags.all);
    }
    for ((field, &base), &word) in group.iter().zip(base).zip(words) {
        if field.kind == FieldKind::Opaque {
            continue;
        }
        let changed = base != word;
        if flags.implied().is_none() {
            out.write_bit(changed);
        }
        flags.push(changed);
        if changed {
            let code = field.change_code(base, word);
            out.write_bits(code, width.min(field.bits.into()));
        }
    }
}

/// Reads a group that changed; `words` hold the base before and the result after.
fn read_group_delta(
    group: &[Field],
    shape: Option<GroupShape>,
    words: &mut [u32],
    input: &mut BitReader,
) -> Result<(), WireError> {
    let Some(shape) = shape else {
        return read_whole(group, words, input);
    };
    let width = match input.read_bits(shape.announcement_bits)? {
        code if code == shape.whole => return read_whole(group, words, input),
        code => code + 1,
    };
    if width > shape.largest_width {
        return Err(WireError::InvalidValue("a change wider than its field"));
    }
    let mut flags = ChangeFlags::new(shape.numbers);
    if shape.numbers > 1 {
        flags.all = input.read_bit()?;
    }
    for (field, word) in group.iter().zip(words) {
        if field.kind == FieldKind::Opaque {
            continue;
        }
        let changed = match flags.implied() {
            Some(changed) => changed,
            None => input.read_bit()?,
        };
        flags.push(changed);
        if changed {
            let code = input.read_bits(width.min(field.bits.into()))?;
            *word = field.changed(*word, code);
        }
    }
    Ok(())
}

/// Fields that share a bit while none of them changes.
#[derive(Clone, Copy, Debug)]
struct Group {
    start: usize,
    end: usize,
    can_rest: bool,
    shape: Option<GroupShape>,
}

impl Group {
    fn range(&self) -> std::ops::Range<usize> {
        self.start..self.end
    }
}

fn groups_of(fields: &[Field]) -> impl Iterator<Item = Group> {
    let mut end = 0;
    fields.chunk_by(|_, next| next.joined).map(move |group| {
        let start = end;
        end += group.len();
        Group {
            start,
            end,
            can_rest: group.iter().all(|field| field.rest.is_some()),
            shape: GroupShape::of(group),
        }
    })
}

/// What both sides know about a group that changed before its first bit.
#[derive(Clone, Copy, Debug)]
struct GroupShape {
    /// Fields that are sent as differences: all but opaque ones.
    numbers: u32,
    /// How many bits announce the width of the largest change.
    announcement_bits: u32,
    /// The announcement that the group follows whole.
    whole: u32,
    /// The largest width that can be announced.
    largest_width: u32,
}

impl GroupShape {
    /// `None` where no field gains from a difference: all opaque, or of a single bit.
    fn of(group: &[Field]) -> Option<Self> {
        let numbers = group.iter().filter(|field| field.kind != FieldKind::Opaque);
        let widths = numbers.map(|field| u32::from(field.bits));
        let (numbers, widest) = widths.fold((0, 0), |(n, widest), bits| (n + 1, widest.max(bits)));
        if widest <= 1 {
            return None;
        }
        let announcement_bits = widest.next_power_of_two().ilog2().min(MAX_WIDTH_BITS);
        let whole = (1 << announcement_bits) - 1;
        Some(Self {
            numbers,
            announcement_bits,
            whole,
            largest_width: whole.min(widest - 1),
        })
    }
}

/// Which numbers of a group changed, as far as it has been told.
struct ChangeFlags {
    /// All of them did, and no flags are needed.
    all: bool,
    /// Numbers yet to come.
    left: u32,
    any_changed: bool,
    any_unchanged: bool,
}

impl ChangeFlags {
    fn new(numbers: u32) -> Self {
        Self {
            all: numbers == 1,
            left: numbers,
            any_changed: false,
            any_unchanged: false,
        }
    }

    /// Whether the next number changed, where that follows from what is known.
    fn implied(&self) -> Option<bool> {
        match (self.all, self.left, self.any_changed, self.any_unchanged) {
            (true, ..) => Some(true),
            (false, 1, true, false) => Some(false),
            (false, 1, false, true) => Some(true),
            _ => None,
        }
    }

    fn push(&mut self, changed: bool) {
        self.left -= 1;
        self.any_changed |= changed;
        self.any_unchanged |= !changed;
    }
}

fn write_whole(group: &[Field], words: &[u32], out: &mut BitWriter) {
    for (field, &word) in group.iter().zip(words) {
        out.write_bits(word, field.bits.into());
    }
}

fn read_whole(group: &[Field], words: &mut [u32], input: &mut BitReader) -> Result<(), WireError> {
    for (field, word) in group.iter().zip(words) {
        *word = input.read_bits(field.bits.into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn field() -> impl Strategy<Value = Field> {
        (1..=32_u8, 0..5, any::<bool>(), any::<u32>()).prop_map(|(bits, kind, joined, rest)| {
            let mut field = match kind {
                0 => Field::opaque(bits),
                1 => Field::wrapping(bits),
                _ => Field::linear(bits),
            };
            if rest % 3 != 0 {
                field = field.at_rest(rest & field.mask());
            }
            if joined { field.joined() } else { field }
        })
    }

    /// Fields, a base, and words which differ from it by nothing, little or much.
    fn update() -> impl Strategy<Value = (Vec<Field>, Vec<u32>, Vec<u32>)> {
        vec(
            (
                field(),
                any::<u32>(),
                any::<u32>(),
                0..33_u32,
                any::<bool>(),
            ),
            1..=MAX_WORDS,
        )
        .prop_map(|columns| {
            let mut fields = Vec::new();
            let mut base = Vec::new();
            let mut words = Vec::new();
            for (field, from, change, shift, down) in columns {
                let change = change.checked_shr(shift).unwrap_or(0);
                let to = if down {
                    from.wrapping_sub(change)
                } else {
                    from.wrapping_add(change)
                };
                fields.push(field);
                base.push(from & field.mask());
                words.push(match field.rest {
                    Some(rest) if shift == 0 => rest,
                    _ => to & field.mask(),
                });
            }
            (fields, base, words)
        })
    }

    fn within_width(fields: &[Field], words: &[u32]) -> bool {
        fields
            .iter()
            .zip(words)
            .all(|(field, &word)| word <= field.mask())
    }

    proptest! {
        #[test]
        fn whole_words_arrive((fields, rests, words) in update()) {
            for words in [&words, &rests] {
                let mut out = BitWriter::new();
                write_full(&fields, words, &mut out);
                let mut read = vec![u32::MAX; words.len()];
                let mut input = BitReader::new(out.finish());
                prop_assert_eq!(read_full(&fields, &mut read, &mut input), Ok(()));
                prop_assert_eq!(&read, words);
                prop_assert!(input.remaining_bits() < 8, "the reader takes all that was written");
            }
        }

        #[test]
        fn differences_arrive((fields, base, words) in update()) {
            let mut out = BitWriter::new();
            write_delta(&fields, &base, &words, &mut out);
            let len = out.bit_len();
            let mut read = vec![u32::MAX; words.len()];
            let mut input = BitReader::new(out.finish());
            prop_assert_eq!(read_delta(&fields, &base, &mut read, &mut input), Ok(()));
            prop_assert_eq!(&read, &words);
            prop_assert!(input.remaining_bits() < 8, "the reader takes all that was written");

            let groups = fields.chunk_by(|_, next| next.joined).count();
            let whole: usize = fields.iter().map(|field| usize::from(field.bits)).sum();
            let most = whole + 6 * groups + fields.len();
            prop_assert!(len <= most, "{len} bits are much above the plain {whole}");
        }

        #[test]
        fn any_bytes_give_an_error_or_words_within_width(
            (fields, base, _) in update(),
            bytes in vec(any::<u8>(), 0..120),
        ) {
            let mut words = vec![u32::MAX; fields.len()];
            let _ = read_full(&fields, &mut words, &mut BitReader::new(&bytes));
            prop_assert!(within_width(&fields, &words));
            words.fill(u32::MAX);
            let _ = read_delta(&fields, &base, &mut words, &mut BitReader::new(&bytes));
            prop_assert!(within_width(&fields, &words));
        }

        #[test]
        fn distance_is_zero_for_equal_words_only((fields, base, words) in update()) {
            prop_assert_eq!(distance(&fields, &base, &words) == 0, base == words);
            prop_assert_eq!(distance(&fields, &base, &words), distance(&fields, &words, &base));
        }
    }

    #[test]
    fn distance_goes_the_shorter_way_around() {
        let fields = [Field::wrapping(10), Field::linear(10).joined()];
        assert_eq!(distance(&fields, &[1, 5], &[1_022, 5]), 3);
        assert_eq!(distance(&fields, &[1, 1], &[1, 1_022]), 1_021);
        assert_eq!(distance(&[Field::opaque(4)], &[1], &[2]), u32::MAX);
    }

    #[test]
    fn unchanged_and_resting_groups_take_one_bit() {
        let position = Field::linear(20);
        let scale = Field::linear(24).at_rest(7);
        let fields = [position, position.joined(), scale, scale.joined()];
        let mut out = BitWriter::new();
        write_delta(&fields, &[1, 2, 3, 4], &[1, 2, 3, 4], &mut out);
        assert_eq!(out.bit_len(), 2);
        out.clear();
        write_full(&fields, &[1, 2, 7, 7], &mut out);
        assert_eq!(out.bit_len(), 41);
    }

    #[test]
    fn an_opaque_change_sends_its_group_whole() {
        let fields = [Field::opaque(2), Field::linear(10).joined()];
        let mut out = BitWriter::new();
        write_delta(&fields, &[1, 500], &[2, 500], &mut out);
        assert_eq!(out.bit_len(), 1 + 4 + 12);
    }

    #[test]
    fn a_width_beyond_the_field_is_refused() {
        let mut out = BitWriter::new();
        out.write_bit(true);
        out.write_bits(12, 4);
        let result = read_delta(
            &[Field::linear(9)],
            &[0],
            &mut [0],
            &mut BitReader::new(out.finish()),
        );
        assert!(matches!(result, Err(WireError::InvalidValue(_))));
    }
}
