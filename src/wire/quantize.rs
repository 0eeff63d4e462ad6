//! Quantised components: from a value to a few small integers, and those to few bits.
//!
//! A [`Quantize`] turns a component into a fixed number of words, each of a known width, and
//! back. It never sees a bit: [`write_full`] and [`write_delta`] do the packing for all of them
//! alike. Most games need only [`TransformCodec`] and one of its siblings:
//!
//! - [`FloatCodec`], [`IntCodec`], [`AngleCodec`], [`Vec2Codec`], [`Vec3Codec`], [`QuatCodec`];
//! - [`map`] for a newtype around one of those, and tuples for structs of several.
//!
//! ```
//! use bevy::math::Vec2;
//! use bevy_tandem::wire::quantize::{self, FloatCodec, Quantize, Vec2Codec};
//!
//! struct Velocity(Vec2);
//! let velocity = quantize::map(Vec2Codec::new(64.0, 1.0 / 32.0), |v: &Velocity| v.0, Velocity);
//!
//! struct Ship { velocity: Vec2, fuel: f32 }
//! let ship = quantize::map(
//!     (Vec2Codec::new(64.0, 1.0 / 32.0), FloatCodec::new(0.0, 1.0, 0.01)),
//!     |ship: &Ship| (ship.velocity, ship.fuel),
//!     |(velocity, fuel)| Ship { velocity, fuel },
//! );
//!
//! let mut words = [0; 3];
//! ship.quantize(&Ship { velocity: Vec2::new(1.0, 0.5), fuel: 0.75 }, &mut words);
//! assert_eq!(ship.dequantize(&words).velocity, Vec2::new(1.0, 0.5));
//! # assert_eq!(velocity.word_count(), 2);
//! ```
//!
//! # The coding of differences
//!
//! An update is sent against words the receiver is known to have. The coding has no state and no
//! statistics besides, since a lost packet must not spoil the next. Fields which move together
//! form a group (the axes of a position, a rotation), for which is sent:
//!
//! - one bit: did anything in the group change?
//! - four bits (fewer for narrow fields): the width of its largest change, or "whole";
//! - one bit: did all of its numbers change? If not, about one for each;
//! - the changes, in that width.
//!
//! All changes wrap around, so any word can be reached from any other. A change wider than 15
//! bits, or one of an [`Opaque`](FieldKind::Opaque) field, sends its group whole: at most five
//! bits above the plain words.
//!
//! Bits per update on simulated motion, at 20 updates a second against baselines 100 ms old,
//! beside two schemes that were tried. A width for each field instead of each group costs more
//! everywhere. Exp-Golomb codes for each field do as well near the size of change they are tuned
//! to (a third of the field's width here), and worse beside it.
//!
//! | motion | whole | width per field | Exp-Golomb | in use |
//! |---|---|---|---|---|
//! | top-down player at 6 units/s, flat codec (1/64 unit) | 53 | 30.9 | 28.0 | 27.2 |
//! | the same, default codec (1/512 unit) | 109 | 39.8 | 35.1 | 35.9 |
//! | the same at 300 pixels/s | 109 | 50.0 | 51.9 | 45.7 |
//! | first-person player, default codec | 109 | 40.1 | 35.3 | 37.2 |
//! | tumbling body, default codec | 109 | 80.5 | 76.2 | 66.7 |
//!
//! (A tumbling body often changes which component of its rotation is the largest, and then sends
//! all of the rotation.)

use std::marker::PhantomData;

pub use super::codecs::{
    AngleCodec, FloatCodec, IntCodec, Integer, QuatCodec, Scale, TransformCodec, Vec2Codec,
    Vec3Codec,
};
pub use super::fields::{
    Field, FieldKind, Fields, MAX_WORDS, distance, read_delta, read_full, write_delta, write_full,
};

/// A lossy coding of `T` as a few integers.
///
/// Usually a ready-made one does, or [`map`] around it. By hand:
///
/// ```
/// use bevy_tandem::wire::quantize::{Field, Quantize};
///
/// #[derive(Debug, PartialEq)]
/// enum Stance { Standing, Crouching { covered_percent: u8 } }
/// struct StanceCodec;
///
/// impl Quantize<Stance> for StanceCodec {
///     fn fields(&self) -> Vec<Field> {
///         vec![Field::opaque(1), Field::linear(7).joined()]
///     }
///     fn quantize(&self, stance: &Stance, words: &mut [u32]) {
///         let (variant, percent) = match stance {
///             Stance::Standing => (0, 0),
///             Stance::Crouching { covered_percent } => (1, *covered_percent),
///         };
///         words.copy_from_slice(&[variant, u32::from(percent.min(100))]);
///     }
///     fn dequantize(&self, words: &[u32]) -> Stance {
///         match words[0] {
///             0 => Stance::Standing,
///             _ => Stance::Crouching { covered_percent: words[1].min(100) as u8 },
///         }
///     }
/// }
///
/// let mut words = [0; 2];
/// StanceCodec.quantize(&Stance::Crouching { covered_percent: 40 }, &mut words);
/// assert_eq!(StanceCodec.dequantize(&words), Stance::Crouching { covered_percent: 40 });
/// ```
pub trait Quantize<T>: Send + Sync + 'static {
    /// The words a value becomes. The same at every call, on both sides of a connection, and no
    /// more than [`MAX_WORDS`].
    fn fields(&self) -> Vec<Field>;

    /// Number of words, that is of [`fields`](Self::fields).
    fn word_count(&self) -> usize {
        self.fields().len()
    }

    /// What, besides the fields, must be the same on both sides: ranges and precisions, say, as text.
    ///
    /// The handshake compares it. Empty unless overridden.
    fn settings(&self) -> String {
        String::new()
    }

    /// Writes the value as words, each within the width of its field.
    ///
    /// There are [`word_count`](Self::word_count) of them. Values out of range become the nearest
    /// within, and NaN something harmless: a component gone wrong must not bring the server down.
    fn quantize(&self, value: &T, words: &mut [u32]);

    /// The value of some words. Any words within their fields' widths must give a valid one: they
    /// come from the network.
    fn dequantize(&self, words: &[u32]) -> T;

    /// How far two values are apart in steps of the quantiser: zero when they are the same, and
    /// one at most for two codings of nearly the same value. Tells whether a prediction was right.
    ///
    /// The default is the largest distance of any [field](distance). Override it where close
    /// words do not mean close values, or the reverse.
    fn distance(&self, a: &[u32], b: &[u32]) -> u32 {
        distance(&self.fields(), a, b)
    }
}

/// Quantises a `C` as the `T` inside it: `get` takes it out, `make` puts it back.
///
/// ```
/// use bevy_tandem::wire::quantize::{self, IntCodec};
///
/// struct Health(u8);
/// let health = quantize::map(IntCodec::new(0, 100), |h: &Health| h.0, Health);
/// # let _: &dyn quantize::Quantize<Health> = &health;
/// ```
pub fn map<C, T, Q, Get, Make>(codec: Q, get: Get, make: Make) -> Map<Q, T, Get, Make>
where
    Q: Quantize<T>,
    T: 'static,
    Get: Fn(&C) -> T + Send + Sync + 'static,
    Make: Fn(T) -> C + Send + Sync + 'static,
{
    Map {
        codec,
        get,
        make,
        inner: PhantomData,
    }
}

/// A quantiser of one type by way of another; see [`map`].
pub struct Map<Q, T, Get, Make> {
    codec: Q,
    get: Get,
    make: Make,
    inner: PhantomData<fn(T) -> T>,
}

impl<C, T, Q, Get, Make> Quantize<C> for Map<Q, T, Get, Make>
where
    Q: Quantize<T>,
    T: 'static,
    Get: Fn(&C) -> T + Send + Sync + 'static,
    Make: Fn(T) -> C + Send + Sync + 'static,
{
    fn fields(&self) -> Vec<Field> {
        self.codec.fields()
    }

    fn word_count(&self) -> usize {
        self.codec.word_count()
    }

    fn settings(&self) -> String {
        self.codec.settings()
    }

    fn quantize(&self, value: &C, words: &mut [u32]) {
        self.codec.quantize(&(self.get)(value), words);
    }

    fn dequantize(&self, words: &[u32]) -> C {
        (self.make)(self.codec.dequantize(words))
    }

    fn distance(&self, a: &[u32], b: &[u32]) -> u32 {
        self.codec.distance(a, b)
    }
}

/// A tuple of quantisers is one of tuples, with the words behind each other.
macro_rules! impl_quantize_for_tuple {
    ($($codec:ident: $type:ident = $index:tt),*) => {
        impl<$($codec: Quantize<$type>, $type),*> Quantize<($($type,)*)> for ($($codec,)*) {
            fn fields(&self) -> Vec<Field> {
                [$(self.$index.fields()),*].concat()
            }

            fn word_count(&self) -> usize {
                0 $(+ self.$index.word_count())*
            }

            fn settings(&self) -> String {
                [$(self.$index.settings()),*].join("; ")
            }

            fn quantize(&self, value: &($($type,)*), words: &mut [u32]) {
                let mut rest = words;
                $(
                    let (own, others) = rest.split_at_mut(self.$index.word_count());
                    self.$index.quantize(&value.$index, own);
                    rest = others;
                )*
                debug_assert!(rest.is_empty(), "as many words as the codecs have together");
            }

            fn dequantize(&self, words: &[u32]) -> ($($type,)*) {
                let mut rest = words;
                let value = ($({
                    let (own, others) = rest.split_at(self.$index.word_count());
                    rest = others;
                    self.$index.dequantize(own)
                },)*);
                debug_assert!(rest.is_empty(), "as many words as the codecs have together");
                value
            }

            fn distance(&self, a: &[u32], b: &[u32]) -> u32 {
                let mut at = 0;
                let mut largest = 0;
                $(
                    let own = at..at + self.$index.word_count();
                    largest = largest.max(self.$index.distance(&a[own.clone()], &b[own.clone()]));
                    at = own.end;
                )*
                debug_assert!(at == a.len(), "as many words as the codecs have together");
                largest
            }
        }
    };
}
impl_quantize_for_tuple!(QA: A = 0, QB: B = 1);
impl_quantize_for_tuple!(QA: A = 0, QB: B = 1, QC: C = 2);
impl_quantize_for_tuple!(QA: A = 0, QB: B = 1, QC: C = 2, QD: D = 3);

#[cfg(test)]
mod tests {
    use bevy::math::{Quat, Vec2, Vec3};
    use bevy::transform::components::Transform;

    use super::*;
    use crate::wire::bits::{BitReader, BitWriter, zigzag};

    #[test]
    fn a_mapped_tuple_keeps_its_parts_apart() {
        #[derive(Debug, PartialEq)]
        struct Ship {
            velocity: Vec2,
            fuel: f32,
            lives: i8,
        }
        let codec = map(
            (
                Vec2Codec::new(64.0, 0.125),
                FloatCodec::new(0.0, 1.0, 0.25),
                IntCodec::new(-1_i8, 5),
            ),
            |ship: &Ship| (ship.velocity, ship.fuel, ship.lives),
            |(velocity, fuel, lives)| Ship {
                velocity,
                fuel,
                lives,
            },
        );
        let ship = Ship {
            velocity: Vec2::new(-3.5, 63.0),
            fuel: 0.75,
            lives: -1,
        };
        let mut words = vec![0; codec.word_count()];
        codec.quantize(&ship, &mut words);
        assert_eq!(codec.fields().len(), words.len());
        assert_eq!(codec.dequantize(&words), ship);

        let faster = Ship {
            velocity: Vec2::new(-3.0, 63.0),
            ..ship
        };
        let mut other = vec![0; words.len()];
        codec.quantize(&faster, &mut other);
        assert_eq!(codec.distance(&words, &other), 4, "four steps of an eighth");
    }

    /// Transforms of one entity at 60 Hz.
    type Motion = fn(&mut fastrand::Rng) -> Vec<Transform>;

    const TICKS: usize = 3_600;

    /// Walks at 6 units a second, turns and stops now and then, and aims where it likes.
    fn top_down(random: &mut fastrand::Rng) -> Vec<Transform> {
        let mut at = Transform::default();
        let mut velocity = Vec2::ZERO;
        let mut spin = 0.0;
        let steps = (0..TICKS).map(|_| {
            if random.f32() < 0.03 {
                let walks = if random.f32() < 0.8 { 6.0 } else { 0.0 };
                velocity = walks * Vec2::from_angle(random.f32() * 7.0);
            }
            if random.f32() < 0.05 {
                spin = if random.bool() {
                    0.0
                } else {
                    random.f32() * 6.0 - 3.0
                };
            }
            at.translation += velocity.extend(0.0) / 60.0;
            at.rotate_z(spin / 60.0);
            at
        });
        steps.collect()
    }

    fn in_pixels(random: &mut fastrand::Rng) -> Vec<Transform> {
        let mut paces = top_down(random);
        for at in &mut paces {
            at.translation *= 50.0;
        }
        paces
    }

    /// Falls and bounces at up to 10 units a second, tumbling.
    fn tumbling(random: &mut fastrand::Rng) -> Vec<Transform> {
        let mut vector =
            |size: f32| Vec3::from_array([(); 3].map(|()| (random.f32() - 0.5) * size));
        let mut at = Transform::from_xyz(3.0, 5.0, -8.0);
        let mut velocity = vector(8.0);
        let mut spin = vector(6.0);
        let steps = (0..TICKS).map(|_| {
            velocity.y -= 9.81 / 60.0;
            at.translation += velocity / 60.0;
            if at.translation.y < 0.0 && velocity.y < 0.0 {
                velocity = vector(8.0).with_y(-velocity.y.max(-10.0));
                spin = vector(6.0);
            }
            at.rotation = (Quat::from_scaled_axis(spin / 60.0) * at.rotation).normalize();
            at
        });
        steps.collect()
    }

    /// Runs over flat ground (y is up) and looks around.
    fn first_person(random: &mut fastrand::Rng) -> Vec<Transform> {
        let mut paces = top_down(random);
        for at in &mut paces {
            let (_, _, yaw) = at.rotation.to_euler(bevy::math::EulerRot::XYZ);
            at.rotation = Quat::from_rotation_y(yaw);
            at.translation = Vec3::new(at.translation.x, 0.0, at.translation.y);
        }
        paces
    }

    /// The scheme in use.
    fn grouped(fields: &[Field], base: &[u32], words: &[u32]) -> usize {
        let mut out = BitWriter::new();
        write_delta(fields, base, words, &mut out);
        let bits = out.bit_len();
        let mut read = vec![0; words.len()];
        let result = read_delta(fields, base, &mut read, &mut BitReader::new(out.finish()));
        assert_eq!((result, &read[..]), (Ok(()), words));
        bits
    }

    /// Considered: the same, but every field announces its own width. An opaque field then says
    /// by itself that it changed, at no risk to the rest: better than could be.
    fn width_per_field(fields: &[Field], base: &[u32], words: &[u32]) -> usize {
        let alone: Vec<_> = fields
            .iter()
            .map(|field| match field.kind() {
                FieldKind::Opaque => Field::opaque(field.bits()),
                _ => Field::linear(field.bits()),
            })
            .collect();
        grouped(&alone, base, words)
    }

    /// Considered: a bit for each group and field, and Exp-Golomb codes of an order that suits
    /// these motions best; whole where that is shorter, as it is after a jump.
    fn exp_golomb(fields: &[Field], base: &[u32], words: &[u32]) -> usize {
        let mut bits = 0;
        let mut at = 0;
        for group in fields.chunk_by(|_, next| next.is_joined()) {
            let range = at..at + group.len();
            at = range.end;
            bits += 1;
            if base[range.clone()] == words[range.clone()] {
                continue;
            }
            for (field, i) in group.iter().zip(range) {
                bits += usize::from(group.len() > 1);
                if base[i] == words[i] {
                    continue;
                }
                if field.kind() == FieldKind::Opaque {
                    bits += usize::from(field.bits());
                    continue;
                }
                let unused = 32 - u32::from(field.bits());
                let change = (words[i].wrapping_sub(base[i]) << unused).cast_signed() >> unused;
                let mut out = BitWriter::new();
                out.write_exp_golomb(zigzag(change) - 1, u32::from(field.bits()) / 3);
                bits += 1 + out.bit_len().min(field.bits().into());
            }
        }
        bits
    }

    /// Prints the table of the module documentation with `--nocapture`.
    #[test]
    fn updates_of_moving_things_take_few_bits() {
        let spatial = TransformCodec::default();
        let flat = TransformCodec::flat(4_096.0, 1.0 / 64.0);
        let motions: [(&str, &TransformCodec, Motion, f32); 5] = [
            ("top-down player, flat codec", &flat, top_down, 28.0),
            ("top-down player", &spatial, top_down, 37.0),
            ("the same at 300 pixels a second", &spatial, in_pixels, 47.0),
            ("first-person player", &spatial, first_person, 38.0),
            ("tumbling body", &spatial, tumbling, 68.0),
        ];
        println!(
            "| motion | whole | per-field width | Exp-Golomb | in use |\n|---|---|---|---|---|"
        );
        for (name, codec, motion, most) in motions {
            let fields = codec.fields();
            let mut random = fastrand::Rng::with_seed(9);
            let quantized = motion(&mut random).into_iter().map(|transform| {
                let mut words = vec![0; fields.len()];
                codec.quantize(&transform, &mut words);
                words
            });
            let quantized: Vec<_> = quantized.collect();
            // Every third tick, against the state six ticks before; unchanged ones are not sent.
            let updates = quantized[6..].iter().zip(&quantized).step_by(3);
            let updates: Vec<_> = updates.filter(|(words, base)| words != base).collect();
            let average = |bits_of: fn(&[Field], &[u32], &[u32]) -> usize| {
                let bits = updates
                    .iter()
                    .map(|(words, base)| bits_of(&fields, base, words));
                bits.sum::<usize>() as f32 / updates.len() as f32
            };
            let whole = average(|fields, _, words| {
                let mut out = BitWriter::new();
                write_full(fields, words, &mut out);
                out.bit_len()
            });
            let (alone, golomb, used) = (
                average(width_per_field),
                average(exp_golomb),
                average(grouped),
            );
            println!("| {name} | {whole:.0} | {alone:.1} | {golomb:.1} | {used:.1} |");
            assert!(used < most, "{name}: {used} bits an update");
        }
    }
}
