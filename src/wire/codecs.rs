//! Ready-made quantisers: numbers, vectors, angles, rotations and transforms.

use std::f32::consts::{PI, SQRT_2};

use bevy::math::{Quat, Vec2, Vec3};
use bevy::transform::components::Transform;

use super::fields::{Field, distance};
use super::quantize::Quantize;

/// A [`Transform`] in 30 to 70 bits an update, against 320 as it is in memory.
///
/// The default fits most games, in metres or in pixels:
///
/// | part | range | error at most | bits whole |
/// |---|---|---|---|
/// | position | ±16,384 units on each axis | 1/1024 unit (steps of 1/512) | 72 |
/// | rotation | any | 0.14° | 35, or 1 when not rotated |
/// | scale | any, mirrored too | 1 in 65,536 | 72, or 1 when 1 |
///
/// Two millimetres is finer than anyone sees from a camera that shows a metre, and so are two
/// thousandths of a pixel; a coarser step saves one bit an axis for each doubling. The *range* is
/// wide since it costs nothing in an update, where only the difference is sent: halving it would
/// save three bits once per entity, and things would stop at an edge nobody asked for. At the
/// default range an `f32` itself resolves just this step. An unchanged part costs one bit.
///
/// Positions outside the range are clamped to it, and whole multiples of the precision, zero
/// included, arrive exactly. So do rotations about no axis and scales which are whole numbers up
/// to 65,536. A position or scale that is NaN becomes 0 or 1, a rotation that is NaN, infinite or
/// of no length the identity.
///
/// ```
/// use bevy_tandem::wire::quantize::{Scale, TransformCodec};
///
/// let arena = TransformCodec::default().position_range(100.0).scale(Scale::Uniform);
/// assert_eq!(arena.position_error(), 1.0 / 1024.0);
///
/// // A 2D game in pixels: x, y and the angle about z; z itself orders the drawing.
/// let flat = TransformCodec::flat(4_096.0, 1.0 / 16.0);
/// assert!(flat.rotation_error() < 0.001);
/// ```
#[derive(Clone, Debug)]
pub struct TransformCodec {
    position: [Grid; 3],
    /// The z of every position, when it is not sent.
    constant_depth: Option<f32>,
    rotation: Rotation,
    scale: Scale,
}

/// What of [`Transform::scale`] is sent; see [`TransformCodec::scale`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Nothing: the receiver sets this scale.
    Fixed(Vec3),
    /// One factor for all axes, that of x.
    Uniform,
    /// Each axis on its own (the default: sprites and walls are often stretched).
    PerAxis,
}

#[derive(Clone, Copy, Debug)]
enum Rotation {
    Spatial(SmallestThree),
    AboutZ(Angle),
}

impl Default for TransformCodec {
    fn default() -> Self {
        Self {
            position: [Grid::around_zero(16_384.0, 1.0 / 512.0); 3],
            constant_depth: None,
            // About what a position step looks like one unit off the pivot.
            rotation: Rotation::Spatial(SmallestThree::new(11)),
            scale: Scale::PerAxis,
        }
    }
}

impl TransformCodec {
    /// For 2D games: x and y from `-range` up to `range` in steps of `precision`, and the angle
    /// about z in 12 bits. Rotations about other axes are lost.
    ///
    /// z is sent too, since Bevy draws sprites in its order: ±1,024 (a 2D camera shows ±1,000) in
    /// steps of 1/32, at one bit while it does not change. See [`depth`](Self::depth) and
    /// [`constant_depth`](Self::constant_depth) for other choices.
    ///
    /// # Panics
    ///
    /// As [`position_range`](Self::position_range).
    pub fn flat(range: f32, precision: f32) -> Self {
        let plane = Grid::around_zero(range, precision);
        let depth = Grid::around_zero(1_024.0, 1.0 / 32.0);
        Self {
            position: [plane, plane, depth],
            rotation: Rotation::AboutZ(Angle::new(12)),
            ..Self::default()
        }
    }

    /// Positions from `-range` up to, not including, `range` on each axis; of a
    /// [flat](Self::flat) codec x and y only.
    ///
    /// # Panics
    ///
    /// If a range or precision is not a positive finite number, or one divided by the other does
    /// not fit 31 bits: for a vast range, coarsen the precision first.
    #[must_use]
    pub fn position_range(mut self, range: f32) -> Self {
        for axis in self.moving_axes() {
            *axis = Grid::around_zero(range, axis.precision());
        }
        self
    }

    /// Positions from `min` up to, not including, `max`, for worlds not centred on zero. Sets z of
    /// a [flat](Self::flat) codec, too.
    ///
    /// # Panics
    ///
    /// If a minimum is not below its maximum, or as [`position_range`](Self::position_range).
    #[must_use]
    pub fn position_bounds(mut self, min: Vec3, max: Vec3) -> Self {
        let bounds = min.to_array().into_iter().zip(max.to_array());
        for (axis, (min, max)) in self.position.iter_mut().zip(bounds) {
            *axis = Grid::below(min, max, axis.precision());
        }
        self
    }

    /// The step between positions, in units, on each axis; of a [flat](Self::flat) codec x and y
    /// only. Powers of two are exact.
    ///
    /// # Panics
    ///
    /// As [`position_range`](Self::position_range).
    #[must_use]
    pub fn position_precision(mut self, precision: f32) -> Self {
        for axis in self.moving_axes() {
            *axis = axis.with_precision(precision);
        }
        self
    }

    /// z from `-range` up to `range` in steps of `precision`, apart from the other axes.
    ///
    /// # Panics
    ///
    /// As [`position_range`](Self::position_range).
    #[must_use]
    pub fn depth(mut self, range: f32, precision: f32) -> Self {
        self.position[2] = Grid::around_zero(range, precision);
        self.constant_depth = None;
        self
    }

    /// Sends no z: the receiver sets this one.
    ///
    /// # Panics
    ///
    /// If `z` is not finite.
    #[must_use]
    pub fn constant_depth(mut self, z: f32) -> Self {
        assert!(
            z.is_finite(),
            "a constant depth is a finite number, not {z}"
        );
        self.constant_depth = Some(z);
        self
    }

    /// Bits of each of the three numbers of a rotation, or of the one angle of a
    /// [flat](Self::flat) codec. Each bit more halves the [error](Self::rotation_error).
    ///
    /// # Panics
    ///
    /// Unless `bits` is 4 to 16.
    #[must_use]
    pub fn rotation_bits(mut self, bits: u8) -> Self {
        assert!(
            (4..=16).contains(&bits),
            "rotations take 4 to 16 bits a number, not {bits}"
        );
        self.rotation = match self.rotation {
            Rotation::Spatial(_) => Rotation::Spatial(SmallestThree::new(bits)),
            Rotation::AboutZ(_) => Rotation::AboutZ(Angle::new(bits)),
        };
        self
    }

    /// What of the scale is sent.
    ///
    /// # Panics
    ///
    /// If a fixed scale is not finite.
    #[must_use]
    pub fn scale(mut self, scale: Scale) -> Self {
        if let Scale::Fixed(fixed) = scale {
            assert!(fixed.is_finite(), "a fixed scale is finite, not {fixed}");
        }
        self.scale = scale;
        self
    }

    /// How far a received position is off on each of x and y (and z of a 3D codec) at most, in
    /// units, if it was within the range.
    ///
    /// A precision which is no power of two adds the rounding of an `f32` at that place.
    pub fn position_error(&self) -> f32 {
        self.position[0].error().max(self.position[1].error())
    }

    /// How far a received rotation is turned from the one sent at most, in radians.
    pub fn rotation_error(&self) -> f32 {
        match self.rotation {
            Rotation::Spatial(spatial) => spatial.error(),
            Rotation::AboutZ(angle) => angle.error(),
        }
    }

    /// The axes of motion: z of a flat codec is no such.
    fn moving_axes(&mut self) -> &mut [Grid] {
        let count = if self.is_flat() { 2 } else { 3 };
        &mut self.position[..count]
    }

    fn is_flat(&self) -> bool {
        matches!(self.rotation, Rotation::AboutZ(_))
    }

    /// Where the words of rotation and scale begin.
    fn layout(&self) -> (usize, usize) {
        let rotation = if self.constant_depth.is_some() { 2 } else { 3 };
        match self.rotation {
            Rotation::Spatial(_) => (rotation, rotation + SmallestThree::WORDS),
            Rotation::AboutZ(_) => (rotation, rotation + 1),
        }
    }
}

impl Quantize<Transform> for TransformCodec {
    fn settings(&self) -> String {
        format!("{self:?}")
    }

    fn fields(&self) -> Vec<Field> {
        let [x, y, z] = self.position;
        let mut fields = vec![x.field(), y.field().joined()];
        if self.constant_depth.is_none() {
            fields.push(match self.rotation {
                Rotation::Spatial(_) => z.field().joined(),
                Rotation::AboutZ(_) => z.field().at_rest(z.quantize(0.0)),
            });
        }
        match self.rotation {
            Rotation::Spatial(spatial) => fields.extend(spatial.fields()),
            Rotation::AboutZ(angle) => fields.push(angle.field().at_rest(0)),
        }
        let factor = Factor::field().at_rest(Factor::quantize(1.0));
        match self.scale {
            Scale::Fixed(_) => {}
            Scale::Uniform => fields.push(factor),
            Scale::PerAxis => fields.extend([factor, factor.joined(), factor.joined()]),
        }
        fields
    }

    fn word_count(&self) -> usize {
        let factors = match self.scale {
            Scale::Fixed(_) => 0,
            Scale::Uniform => 1,
            Scale::PerAxis => 3,
        };
        self.layout().1 + factors
    }

    fn quantize(&self, value: &Transform, words: &mut [u32]) {
        let (rotation, scale) = self.layout();
        let axes = self.position.iter().zip(value.translation.to_array());
        for (word, (axis, position)) in words[..rotation].iter_mut().zip(axes) {
            *word = axis.quantize(position);
        }
        match self.rotation {
            Rotation::Spatial(spatial) => {
                spatial.quantize(value.rotation, &mut words[rotation..scale]);
            }
            Rotation::AboutZ(angle) => {
                words[rotation] = angle.quantize(turn_about_z(value.rotation));
            }
        }
        // As many factors as there are words: none, the one of x, or all.
        for (word, factor) in words[scale..].iter_mut().zip(value.scale.to_array()) {
            *word = Factor::quantize(factor);
        }
    }

    fn dequantize(&self, words: &[u32]) -> Transform {
        let (rotation, scale) = self.layout();
        let [x, y, z] = self.position;
        Transform {
            translation: Vec3::new(
                x.dequantize(words[0]),
                y.dequantize(words[1]),
                self.constant_depth
                    .unwrap_or_else(|| z.dequantize(words[2])),
            ),
            rotation: match self.rotation {
                Rotation::Spatial(spatial) => spatial.dequantize(&words[rotation..scale]),
                Rotation::AboutZ(angle) => Quat::from_rotation_z(angle.dequantize(words[rotation])),
            },
            scale: match self.scale {
                Scale::Fixed(fixed) => fixed,
                Scale::Uniform => Vec3::splat(Factor::dequantize(words[scale])),
                Scale::PerAxis => {
                    Vec3::from_slice(&[0, 1, 2].map(|axis| Factor::dequantize(words[scale + axis])))
                }
            },
        }
    }

    fn distance(&self, a: &[u32], b: &[u32]) -> u32 {
        let (rotation, scale) = self.layout();
        let turned = match self.rotation {
            Rotation::Spatial(spatial) => {
                spatial.distance(&a[rotation..scale], &b[rotation..scale])
            }
            Rotation::AboutZ(angle) => distance(&[angle.field()], &a[rotation..], &b[rotation..]),
        };
        let linear = |(a, b): (&u32, &u32)| a.abs_diff(*b);
        let moved = a[..rotation].iter().zip(&b[..rotation]).map(linear);
        let scaled = a[scale..].iter().zip(&b[scale..]).map(linear);
        moved.chain(scaled).fold(turned, u32::max)
    }
}

/// A rotation by the three smallest of its quaternion's components.
///
/// The largest is left out, being what remains to length one; the others are at most 1/√2. (The
/// method is known from Glenn Fiedler's "Snapshot Compression".) Takes 2 + 3 × `bits` bits whole.
/// A quaternion need not be normalised; one that is NaN, infinite or of no length becomes the
/// identity, which itself arrives exactly.
#[derive(Clone, Copy, Debug)]
pub struct QuatCodec(SmallestThree);

impl QuatCodec {
    /// Each of the three numbers in `bits` bits: 11, say, for an [error](Self::error) of 0.14°.
    ///
    /// # Panics
    ///
    /// Unless `bits` is 4 to 16.
    pub fn new(bits: u8) -> Self {
        assert!(
            (4..=16).contains(&bits),
            "rotations take 4 to 16 bits a number, not {bits}"
        );
        Self(SmallestThree::new(bits))
    }

    /// How far a received rotation is turned from the one sent at most, in radians.
    pub fn error(&self) -> f32 {
        self.0.error()
    }
}

impl Quantize<Quat> for QuatCodec {
    fn settings(&self) -> String {
        format!("{self:?}")
    }

    fn fields(&self) -> Vec<Field> {
        self.0.fields().to_vec()
    }

    fn word_count(&self) -> usize {
        SmallestThree::WORDS
    }

    fn quantize(&self, value: &Quat, words: &mut [u32]) {
        self.0.quantize(*value, words);
    }

    fn dequantize(&self, words: &[u32]) -> Quat {
        self.0.dequantize(words)
    }

    fn distance(&self, a: &[u32], b: &[u32]) -> u32 {
        self.0.distance(a, b)
    }
}

/// An angle in radians on the full circle: 359° neighbours 0°.
///
/// Angles beyond one turn are reduced to −π up to π. NaN and infinities become 0.
#[derive(Clone, Copy, Debug)]
pub struct AngleCodec(Angle);

impl AngleCodec {
    /// The circle in 2^`bits` steps: 10 bits are 0.35° each.
    ///
    /// # Panics
    ///
    /// Unless `bits` is 1 to 24, beyond which an `f32` does not tell angles apart.
    pub fn new(bits: u8) -> Self {
        assert!(
            (1..=24).contains(&bits),
            "an angle takes 1 to 24 bits, not {bits}"
        );
        Self(Angle::new(bits))
    }

    /// How far a received angle is off at most, in radians.
    pub fn error(&self) -> f32 {
        self.0.error()
    }
}

impl Quantize<f32> for AngleCodec {
    fn settings(&self) -> String {
        format!("{self:?}")
    }

    fn fields(&self) -> Vec<Field> {
        vec![self.0.field()]
    }

    fn word_count(&self) -> usize {
        1
    }

    fn quantize(&self, value: &f32, words: &mut [u32]) {
        words[0] = self.0.quantize(*value);
    }

    fn dequantize(&self, words: &[u32]) -> f32 {
        self.0.dequantize(words[0])
    }

    fn distance(&self, a: &[u32], b: &[u32]) -> u32 {
        distance(&[self.0.field()], a, b)
    }
}

/// A vector of two numbers of the same range and precision.
///
/// Values outside are clamped, and NaN becomes 0.
#[derive(Clone, Copy, Debug)]
pub struct Vec2Codec(Grid);

impl Vec2Codec {
    /// Numbers from `-range` up to, not including, `range` in steps of `precision`.
    ///
    /// # Panics
    ///
    /// If either is not a positive finite number, or their ratio does not fit 31 bits.
    pub fn new(range: f32, precision: f32) -> Self {
        Self(Grid::around_zero(range, precision))
    }

    /// How far a number within the range is off at most after the journey, on each axis.
    pub fn error(&self) -> f32 {
        self.0.error()
    }
}

impl Quantize<Vec2> for Vec2Codec {
    fn settings(&self) -> String {
        format!("{self:?}")
    }

    fn fields(&self) -> Vec<Field> {
        vec![self.0.field(), self.0.field().joined()]
    }

    fn word_count(&self) -> usize {
        2
    }

    fn quantize(&self, value: &Vec2, words: &mut [u32]) {
        words.copy_from_slice(&value.to_array().map(|number| self.0.quantize(number)));
    }

    fn dequantize(&self, words: &[u32]) -> Vec2 {
        Vec2::from_array([0, 1].map(|axis| self.0.dequantize(words[axis])))
    }
}

/// A vector of three numbers of the same range and precision.
///
/// Values outside are clamped, and NaN becomes 0.
#[derive(Clone, Copy, Debug)]
pub struct Vec3Codec(Grid);

impl Vec3Codec {
    /// Numbers from `-range` up to, not including, `range` in steps of `precision`.
    ///
    /// # Panics
    ///
    /// If either is not a positive finite number, or their ratio does not fit 31 bits.
    pub fn new(range: f32, precision: f32) -> Self {
        Self(Grid::around_zero(range, precision))
    }

    /// How far a number within the range is off at most after the journey, on each axis.
    pub fn error(&self) -> f32 {
        self.0.error()
    }
}

impl Quantize<Vec3> for Vec3Codec {
    fn settings(&self) -> String {
        format!("{self:?}")
    }

    fn fields(&self) -> Vec<Field> {
        let field = self.0.field();
        vec![field, field.joined(), field.joined()]
    }

    fn word_count(&self) -> usize {
        3
    }

    fn quantize(&self, value: &Vec3, words: &mut [u32]) {
        words.copy_from_slice(&value.to_array().map(|number| self.0.quantize(number)));
    }

    fn dequantize(&self, words: &[u32]) -> Vec3 {
        Vec3::from_array([0, 1, 2].map(|axis| self.0.dequantize(words[axis])))
    }
}

/// A number from a minimum to a maximum, both of which arrive exactly, as do zero and all other
/// multiples of the precision.
///
/// Values outside are clamped; NaN becomes 0, or the bound nearest to it.
#[derive(Clone, Copy, Debug)]
pub struct FloatCodec(Grid);

impl FloatCodec {
    /// Numbers from `min` to `max` in steps of `precision`.
    ///
    /// # Panics
    ///
    /// Unless `min` is below `max`, all are finite, the precision is positive and the number of
    /// steps fits 32 bits.
    pub fn new(min: f32, max: f32, precision: f32) -> Self {
        Self(Grid::new(min, max, precision))
    }

    /// How far a number within the bounds is off at most after the journey.
    pub fn error(&self) -> f32 {
        self.0.error()
    }
}

impl Quantize<f32> for FloatCodec {
    fn settings(&self) -> String {
        format!("{self:?}")
    }

    fn fields(&self) -> Vec<Field> {
        vec![self.0.field()]
    }

    fn word_count(&self) -> usize {
        1
    }

    fn quantize(&self, value: &f32, words: &mut [u32]) {
        words[0] = self.0.quantize(*value);
    }

    fn dequantize(&self, words: &[u32]) -> f32 {
        self.0.dequantize(words[0])
    }
}

/// A whole number from a minimum to a maximum: exact, and clamped outside.
#[derive(Clone, Copy, Debug)]
pub struct IntCodec<T> {
    min: T,
    max: T,
}

impl<T: Integer> IntCodec<T> {
    /// Numbers from `min` to `max`, both included, in as few bits as tell them apart.
    ///
    /// # Panics
    ///
    /// Unless `min` is below `max`.
    pub fn new(min: T, max: T) -> Self {
        assert!(min < max, "the minimum of an integer is below its maximum");
        Self { min, max }
    }

    fn span(self) -> u32 {
        self.max.to_ordered().wrapping_sub(self.min.to_ordered())
    }
}

impl<T: Integer> Quantize<T> for IntCodec<T> {
    fn settings(&self) -> String {
        format!(
            "IntCodec({:x}..={:x})",
            self.min.to_ordered(),
            self.max.to_ordered()
        )
    }

    fn fields(&self) -> Vec<Field> {
        vec![Field::linear(bits_for(self.span()))]
    }

    fn word_count(&self) -> usize {
        1
    }

    fn quantize(&self, value: &T, words: &mut [u32]) {
        let clamped = (*value).clamp(self.min, self.max);
        words[0] = clamped.to_ordered().wrapping_sub(self.min.to_ordered());
    }

    fn dequantize(&self, words: &[u32]) -> T {
        let above = words[0].min(self.span());
        T::from_ordered(self.min.to_ordered().wrapping_add(above))
    }
}

/// The integers [`IntCodec`] takes: all of up to 32 bits.
pub trait Integer: Copy + Ord + Send + Sync + sealed::Sealed + 'static {
    /// As 32 bits, on which adding and subtracting wraps as on the number.
    #[doc(hidden)]
    fn to_ordered(self) -> u32;
    /// Undoes [`to_ordered`](Self::to_ordered).
    #[doc(hidden)]
    fn from_ordered(word: u32) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! impl_integer {
    ($($type:ty),*) => {$(
        impl sealed::Sealed for $type {}
        impl Integer for $type {
            fn to_ordered(self) -> u32 {
                self as u32
            }
            fn from_ordered(word: u32) -> Self {
                word as Self
            }
        }
    )*};
}
impl_integer!(i8, i16, i32, u8, u16, u32);

/// The multiples of a precision between two bounds.
#[derive(Clone, Copy, Debug)]
struct Grid {
    min: f32,
    max: f32,
    /// In `f64`, so that the far end of a wide range is as exact as its middle.
    precision: f64,
    steps_per_unit: f64,
    /// The whole number of steps which word zero stands for.
    first: f64,
    /// The largest word.
    last: u32,
}

impl Grid {
    /// Both bounds included, exact even if they are no multiples of the precision.
    fn new(min: f32, max: f32, precision: f32) -> Self {
        assert!(
            min.is_finite() && max.is_finite() && min < max,
            "a range needs two finite ends in order, not {min} to {max}"
        );
        assert!(
            precision.is_finite() && precision > 0.0,
            "a precision is a positive number, not {precision}"
        );
        let precision = f64::from(precision);
        let first = (f64::from(min) / precision).floor();
        let last = (f64::from(max) / precision).ceil() - first;
        assert!(
            last <= f64::from(u32::MAX),
            "{min} to {max} in steps of {precision} takes more than 32 bits"
        );
        Self {
            min,
            max,
            precision,
            steps_per_unit: precision.recip(),
            first,
            last: last as u32,
        }
    }

    /// From `min` to the last step below `max`: one step less, which saves a bit when their
    /// number is a power of two.
    fn below(min: f32, max: f32, precision: f32) -> Self {
        Self::new(min, max - precision, precision)
    }

    fn around_zero(range: f32, precision: f32) -> Self {
        Self::below(-range, range, precision)
    }

    /// The same range as that of [`below`](Self::below) in other steps.
    fn with_precision(self, precision: f32) -> Self {
        let end = f64::from(self.max) + self.precision;
        Self::below(self.min, end as f32, precision)
    }

    fn quantize(self, value: f32) -> u32 {
        let value = if value.is_nan() { 0.0 } else { value };
        if value >= self.max {
            return self.last;
        }
        if value <= self.min {
            return 0;
        }
        // Half up by truncation: positive here, and much faster than `round`.
        let step = f64::from(value) * self.steps_per_unit - self.first + 0.5;
        (step as u32).min(self.last)
    }

    fn dequantize(self, word: u32) -> f32 {
        let value = (f64::from(word) + self.first) * self.precision;
        (value as f32).clamp(self.min, self.max)
    }

    fn field(self) -> Field {
        Field::linear(bits_for(self.last))
    }

    fn precision(self) -> f32 {
        self.precision as f32
    }

    fn error(self) -> f32 {
        self.precision() / 2.0
    }
}

/// The circle in a power of two of steps, zero being the first.
#[derive(Clone, Copy, Debug)]
struct Angle {
    bits: u8,
}

impl Angle {
    fn new(bits: u8) -> Self {
        Self { bits }
    }

    fn quantize(self, radians: f32) -> u32 {
        if !radians.is_finite() {
            return 0;
        }
        let turns = f64::from(radians) / std::f64::consts::TAU;
        let steps = (turns - turns.floor()) * f64::from(1_u32 << self.bits) + 0.5;
        steps as u32 & self.field().mask()
    }

    fn dequantize(self, word: u32) -> f32 {
        let half = 1_u32 << (self.bits - 1);
        let signed = f64::from(word)
            - if word >= half {
                f64::from(half) * 2.0
            } else {
                0.0
            };
        (signed * (std::f64::consts::PI / f64::from(half))) as f32
    }

    fn field(self) -> Field {
        Field::wrapping(self.bits)
    }

    fn error(self) -> f32 {
        PI / (1_u32 << self.bits) as f32
    }
}

/// See [`QuatCodec`].
#[derive(Clone, Copy, Debug)]
struct SmallestThree {
    bits: u8,
    /// The word for zero; twice as much stands for 1/√2, so that zero is exact.
    centre: u32,
}

impl SmallestThree {
    /// The index of the largest component, and the other three in order.
    const WORDS: usize = 4;

    fn new(bits: u8) -> Self {
        Self {
            bits,
            centre: (1 << (bits - 1)) - 1,
        }
    }

    fn fields(self) -> [Field; Self::WORDS] {
        let component = Field::linear(self.bits).joined().at_rest(self.centre);
        // With another largest component the words mean something else: opaque sends all of them.
        [Field::opaque(2).at_rest(3), component, component, component]
    }

    /// Steps of a component from zero to one.
    fn steps(self) -> f32 {
        self.centre as f32 * SQRT_2
    }

    fn quantize(self, rotation: Quat, words: &mut [u32]) {
        let length = rotation.length();
        let components = if length > f32::MIN_POSITIVE && length.is_finite() {
            rotation.to_array()
        } else {
            return self.quantize(Quat::IDENTITY, words);
        };
        let mut largest = 0;
        for i in 1..4 {
            if components[i].abs() > components[largest].abs() {
                largest = i;
            }
        }
        // A rotation has two quaternions, of opposite sign: take the one whose largest component
        // is positive.
        let scale = self.steps() / (length * components[largest].signum());
        words[0] = largest as u32;
        let others = (0..4).filter(|&i| i != largest);
        for (word, i) in words[1..].iter_mut().zip(others) {
            let step = components[i] * scale + self.centre as f32 + 0.5;
            *word = (step as u32).min(2 * self.centre);
        }
    }

    fn dequantize(self, words: &[u32]) -> Quat {
        let scale = self.steps().recip();
        let largest = (words[0] & 3) as usize;
        let mut components = [0.0; 4];
        let mut rest = 1.0;
        let others = (0..4).filter(|&i| i != largest);
        for (word, i) in words[1..].iter().zip(others) {
            let component = (*word as f32 - self.centre as f32) * scale;
            components[i] = component;
            rest -= component * component;
        }
        // Below zero only for words which no rotation gives; then the others are far from zero,
        // and normalising is safe.
        components[largest] = rest.max(0.0).sqrt();
        Quat::from_array(components).normalize()
    }

    /// With each component off by half a step h, the three are off by √3 h, and what they imply
    /// for the largest makes it at most twice that (when all four are ½). A rotation turns by
    /// twice the angle of its quaternion.
    fn error(self) -> f32 {
        let half_step = 0.5 / self.steps();
        4.0 * (3_f32.sqrt() * half_step).asin()
    }

    /// The true angle between two rotations, in units of twice the [error](Self::error): as with
    /// numbers, two codings of nearly the same value are one apart at most. The words alone do
    /// not tell, since rotations next to each other may have different largest components.
    fn distance(self, a: &[u32], b: &[u32]) -> u32 {
        if a == b {
            return 0;
        }
        let (a, b) = (self.dequantize(a), self.dequantize(b));
        let nearer = if a.dot(b) < 0.0 { -b } else { b };
        // By the chord, which unlike the cosine is accurate for small angles.
        let angle = 4.0 * ((a - nearer).length() / 2.0).min(1.0).asin();
        (angle / (2.0 * self.error()) - 0.001).ceil() as u32
    }
}

/// A factor with a relative error of 2⁻¹⁶: an `f32` without its lowest bits, as a word which
/// grows with it, so that a small change is a small difference.
struct Factor;

impl Factor {
    /// Fraction bits of an `f32` that are dropped.
    const DROPPED: u32 = 23 - 15;
    /// The word for zero; below it are the negative factors of mirrored sprites.
    const ZERO: u32 = 1 << (31 - Self::DROPPED);
    const LARGEST: u32 = f32::MAX.to_bits() >> Self::DROPPED;

    fn field() -> Field {
        Field::linear((32 - Self::DROPPED) as u8)
    }

    fn quantize(factor: f32) -> u32 {
        if factor.is_nan() {
            return Self::quantize(1.0);
        }
        let half = 1 << (Self::DROPPED - 1);
        let magnitude = (factor.abs().to_bits() + half) >> Self::DROPPED;
        let magnitude = magnitude.min(Self::LARGEST);
        if factor < 0.0 {
            Self::ZERO - magnitude
        } else {
            Self::ZERO + magnitude
        }
    }

    fn dequantize(word: u32) -> f32 {
        let magnitude = word.abs_diff(Self::ZERO).min(Self::LARGEST);
        let factor = f32::from_bits(magnitude << Self::DROPPED);
        if word < Self::ZERO { -factor } else { factor }
    }
}

/// The part of a rotation that turns about z, in radians.
fn turn_about_z(rotation: Quat) -> f32 {
    2.0 * rotation.z.atan2(rotation.w)
}

/// Bits which hold every number up to `largest`, at least one.
fn bits_for(largest: u32) -> u8 {
    (32 - largest.leading_zeros()).max(1) as u8
}

#[cfg(test)]
mod tests {
    use proptest::array::uniform4;
    use proptest::collection::vec;
    use proptest::num::f32;
    use proptest::prelude::*;

    use super::*;

    /// There and back.
    fn sent<T>(codec: &impl Quantize<T>, value: T) -> T {
        codec.dequantize(&words_of(codec, value))
    }

    fn words_of<T>(codec: &impl Quantize<T>, value: T) -> Vec<u32> {
        let fields = codec.fields();
        assert_eq!(codec.word_count(), fields.len());
        let mut words = vec![u32::MAX; fields.len()];
        codec.quantize(&value, &mut words);
        for (field, &word) in fields.iter().zip(&words) {
            assert!(word <= field.mask(), "{word} is wider than {field:?}");
        }
        words
    }

    /// Spacing of `f32`s around a number: what rounding may add.
    fn rounding(number: f32) -> f32 {
        number.abs() * f32::EPSILON
    }

    fn angle_between(a: Quat, b: Quat) -> f32 {
        let b = if a.dot(b) < 0.0 { -b } else { b };
        4.0 * ((a - b).length() / 2.0).min(1.0).asin()
    }

    fn rotation() -> impl Strategy<Value = Quat> {
        uniform4(-1.0..1.0_f32)
            .prop_map(Quat::from_array)
            .prop_filter("has a length", |q| q.length() > 0.01)
            .prop_map(Quat::normalize)
    }

    /// Every codec of transforms there is, more or less.
    fn transform_codec() -> impl Strategy<Value = TransformCodec> {
        let scale = prop_oneof![
            Just(Scale::Fixed(Vec3::new(1.0, 2.0, -3.0))),
            Just(Scale::Uniform),
            Just(Scale::PerAxis),
        ];
        (
            any::<bool>(),
            any::<bool>(),
            1..16_384_u32,
            0..12_i32,
            4..=16_u8,
            scale,
        )
            .prop_map(|(flat, constant, range, precision, bits, scale)| {
                let (range, precision) = (range as f32, 0.5_f32.powi(precision));
                let codec = if flat {
                    TransformCodec::flat(range, precision)
                } else {
                    TransformCodec::default()
                        .position_range(range)
                        .position_precision(precision)
                };
                let codec = codec.rotation_bits(bits).scale(scale);
                if constant {
                    codec.constant_depth(2.5)
                } else {
                    codec
                }
            })
    }

    fn any_transform() -> impl Strategy<Value = Transform> {
        vec(f32::ANY, 10).prop_map(|n| Transform {
            translation: Vec3::from_slice(&n[..3]),
            rotation: Quat::from_slice(&n[3..7]),
            scale: Vec3::from_slice(&n[7..]),
        })
    }

    fn is_valid(transform: &Transform) -> bool {
        transform.is_finite() && transform.rotation.is_normalized()
    }

    proptest! {
        #[test]
        fn positions_arrive_within_the_error(
            codec in transform_codec(),
            place in uniform4(-1.0..1.0_f32),
        ) {
            let range = -codec.position[0].min;
            let last = codec.position[0].max;
            let [x, y, z, _] = place.map(|number| (number * range).min(last));
            let arrived = sent(&codec, Transform::from_xyz(x, y, z)).translation;
            let off = (arrived - Vec3::new(x, y, z)).abs();
            prop_assert!(off.x <= codec.position_error() && off.y <= codec.position_error());
            if codec.constant_depth.is_some() {
                prop_assert_eq!(arrived.z, 2.5);
            } else if !codec.is_flat() {
                prop_assert!(off.z <= codec.position_error());
            }
        }

        #[test]
        fn rotations_arrive_within_the_error(codec in transform_codec(), rotation in rotation()) {
            let rotation = if codec.is_flat() {
                Quat::from_rotation_z(turn_about_z(rotation))
            } else {
                rotation
            };
            let arrived = sent(&codec, Transform::from_rotation(rotation)).rotation;
            let off = angle_between(rotation, arrived);
            prop_assert!(off <= codec.rotation_error() + 2e-6, "{off} > {}", codec.rotation_error());
        }

        #[test]
        fn scales_arrive_within_the_error(scale in uniform4(f32::NORMAL)) {
            let [x, y, z, _] = scale;
            let scale = Vec3::new(x, y, z);
            let arrived = sent(&TransformCodec::default(), Transform::from_scale(scale)).scale;
            let largest = Factor::dequantize(u32::MAX >> Factor::DROPPED);
            let nearest = scale.clamp(Vec3::splat(-largest), Vec3::splat(largest));
            let off = ((arrived - nearest) / nearest).abs();
            prop_assert!(off.max_element() <= 1.0 / 65_536.0, "{arrived} for {scale}");
        }

        #[test]
        fn any_transform_becomes_a_valid_one(codec in transform_codec(), value in any_transform()) {
            prop_assert!(is_valid(&sent(&codec, value)));
        }

        #[test]
        fn any_words_give_a_valid_transform(codec in transform_codec(), words in vec(any::<u32>(), 10)) {
            let fields = codec.fields();
            let pairs = fields.iter().zip(&words);
            let words: Vec<_> = pairs.map(|(field, word)| word & field.mask()).collect();
            let value = codec.dequantize(&words);
            prop_assert!(is_valid(&value), "{value:?}");
            // Spare words give the nearest valid value, so only what comes out is compared.
            let (once, twice) = (words_of(&codec, value), words_of(&codec, sent(&codec, value)));
            prop_assert_eq!(codec.distance(&once, &once), 0);
            prop_assert!(codec.distance(&once, &twice) <= 1, "it stays where it is");
        }

        #[test]
        fn nearly_equal_rotations_are_one_step_apart(rotation in rotation(), bits in 4..=14_u8, nudge in uniform4(-1.0..1.0_f32)) {
            let codec = QuatCodec::new(bits);
            let [x, y, z, _] = nudge;
            let nearby = Quat::from_scaled_axis(Vec3::new(x, y, z) * codec.error() * 1e-3) * rotation;
            let apart = codec.distance(&words_of(&codec, rotation), &words_of(&codec, nearby));
            prop_assert!(apart <= 1, "{apart} steps");
        }

        #[test]
        fn distance_of_rotations_follows_the_angle(rotation in rotation(), axis in rotation(), angle in 0.0..3.0_f32) {
            let codec = QuatCodec::new(11);
            let turned = Quat::from_axis_angle(axis.xyz().normalize_or(Vec3::Y), angle) * rotation;
            let steps = codec.distance(&words_of(&codec, rotation), &words_of(&codec, turned));
            let expected = angle / (2.0 * codec.error());
            prop_assert!((steps as f32 - expected).abs() <= 2.0, "{steps} steps for {expected}");
        }

        #[test]
        fn numbers_arrive_within_the_error(
            min in -1e5..1e5_f32,
            width in 1.0..1e5_f32,
            steps in 1.0..1e6_f32,
            place in 0.0..1.0_f32,
        ) {
            let max = min + width;
            let codec = FloatCodec::new(min, max, width / steps);
            let value = (min + width * place).min(max);
            let arrived = sent(&codec, value);
            let allowed = codec.error() * 1.000_1 + rounding(max.abs().max(min.abs()));
            prop_assert!((arrived - value).abs() <= allowed);
            prop_assert_eq!(sent(&codec, min), min);
            prop_assert_eq!(sent(&codec, max), max);
            prop_assert_eq!(sent(&codec, f32::INFINITY), max);
        }

        #[test]
        fn what_arrived_arrives_again_unchanged(value in -2e4..2e4_f32, precision in 1e-2..10.0_f32) {
            let codec = FloatCodec::new(-1.5e4, 1.7e4, precision);
            let once = words_of(&codec, value);
            prop_assert_eq!(words_of(&codec, codec.dequantize(&once)), once);
        }

        #[test]
        fn angles_arrive_within_the_error(bits in 1..=24_u8, angle in -100.0..100.0_f32) {
            let codec = AngleCodec::new(bits);
            let arrived = sent(&codec, angle);
            prop_assert!(arrived.abs() <= PI);
            let turns = f64::from(arrived - angle) / std::f64::consts::TAU;
            let off = (turns - turns.round()).abs() * std::f64::consts::TAU;
            prop_assert!(off as f32 <= codec.error() + 2.0 * rounding(angle) + 1e-6);
        }

        #[test]
        fn vectors_arrive_within_the_error(numbers in uniform4(-99.0..99.0_f32)) {
            let [x, y, z, _] = numbers;
            let (flat, spatial) = (Vec2Codec::new(100.0, 0.1), Vec3Codec::new(100.0, 0.1));
            let off = (sent(&flat, Vec2::new(x, y)) - Vec2::new(x, y)).abs();
            prop_assert!(off.max_element() <= flat.error() + rounding(100.0));
            let off = (sent(&spatial, Vec3::new(x, y, z)) - Vec3::new(x, y, z)).abs();
            prop_assert!(off.max_element() <= spatial.error() + rounding(100.0));
        }

        #[test]
        fn integers_arrive_exactly(a in any::<i32>(), b in any::<i32>(), value in any::<i32>()) {
            prop_assume!(a != b);
            let codec = IntCodec::new(a.min(b), a.max(b));
            prop_assert_eq!(sent(&codec, value), value.clamp(a.min(b), a.max(b)));
            prop_assert_eq!(sent(&IntCodec::new(0, u32::MAX), value as u32), value as u32);
            prop_assert_eq!(sent(&IntCodec::new(i8::MIN, i8::MAX), value as i8), value as i8);
            prop_assert_eq!(sent(&IntCodec::new(3, u16::MAX), value as u16), (value as u16).max(3));
        }
    }

    #[test]
    fn the_default_transform_arrives_exactly() {
        for codec in [
            TransformCodec::default(),
            TransformCodec::flat(1_000.0, 0.25),
        ] {
            assert_eq!(sent(&codec, Transform::IDENTITY), Transform::IDENTITY);
            let wall =
                Transform::from_xyz(-250.0, 13.75, 1.0).with_scale(Vec3::new(-600.0, 20.0, 1.0));
            assert_eq!(sent(&codec, wall), wall);
        }
    }

    #[test]
    fn broken_values_become_harmless_ones() {
        let broken = Transform {
            translation: Vec3::new(f32::NAN, f32::INFINITY, f32::NEG_INFINITY),
            rotation: Quat::from_array([0.0; 4]),
            scale: Vec3::new(f32::NAN, 0.0, -0.0),
        };
        let arrived = sent(&TransformCodec::default().position_range(8.0), broken);
        let edge = 8.0 - 1.0 / 512.0;
        assert_eq!(arrived.translation, Vec3::new(0.0, edge, -8.0));
        assert_eq!(arrived.rotation, Quat::IDENTITY);
        assert_eq!(arrived.scale, Vec3::new(1.0, 0.0, 0.0));
        assert_eq!(sent(&AngleCodec::new(8), f32::INFINITY), 0.0);
        assert_eq!(sent(&FloatCodec::new(2.0, 3.0, 0.1), f32::NAN), 2.0);
    }

    #[test]
    fn widths_are_what_the_documentation_says() {
        let bits = |codec: &TransformCodec| -> Vec<_> {
            codec.fields().iter().map(|field| field.bits()).collect()
        };
        let default = TransformCodec::default();
        assert_eq!(bits(&default), [24, 24, 24, 2, 11, 11, 11, 24, 24, 24]);
        assert!(default.rotation_error().to_degrees() < 0.14);
        let coarse = default.position_precision(0.125).scale(Scale::Uniform);
        assert_eq!(bits(&coarse), [18, 18, 18, 2, 11, 11, 11, 24]);
        let flat = TransformCodec::flat(4_096.0, 1.0 / 64.0).constant_depth(0.0);
        assert_eq!(bits(&flat.scale(Scale::Fixed(Vec3::ONE))), [19, 19, 12]);
        let offset = TransformCodec::default().position_bounds(Vec3::ZERO, Vec3::splat(256.0));
        assert_eq!(bits(&offset)[..3], [17; 3]);
    }
}
