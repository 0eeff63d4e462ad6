//! Simulation steps and distances between them.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

/// A simulation step. Wraps around, so there is deliberately no `Ord`.
///
/// At 60 Hz a `u32` wraps after 2.2 years; every comparison is by distance, so a wrap goes unnoticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tick(pub u32);

impl Tick {
    /// Whether this tick lies after `other`.
    ///
    /// Meaningful while the two are less than half the range apart.
    pub fn is_newer_than(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }

    /// Signed number of ticks from `other` to this one: positive when this one is newer.
    pub fn distance_from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// The newer of the two.
    #[must_use]
    pub fn latest(self, other: Self) -> Self {
        if other.is_newer_than(self) {
            other
        } else {
            self
        }
    }

    /// The older of the two.
    #[must_use]
    pub fn earliest(self, other: Self) -> Self {
        if other.is_newer_than(self) {
            self
        } else {
            other
        }
    }

    /// The tick whose low 16 bits are `low`, out of the half range on either side of this one.
    #[must_use]
    pub fn nearest_with_low_bits(self, low: u16) -> Self {
        let ahead = low.wrapping_sub(self.0 as u16).cast_signed();
        Self(self.0.wrapping_add_signed(i32::from(ahead)))
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A distance in ticks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ticks(pub u32);

impl fmt::Display for Ticks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ticks", self.0)
    }
}

impl Add<Ticks> for Tick {
    type Output = Self;
    fn add(self, distance: Ticks) -> Self {
        Self(self.0.wrapping_add(distance.0))
    }
}

impl AddAssign<Ticks> for Tick {
    fn add_assign(&mut self, distance: Ticks) {
        *self = *self + distance;
    }
}

impl Sub<Ticks> for Tick {
    type Output = Self;
    fn sub(self, distance: Ticks) -> Self {
        Self(self.0.wrapping_sub(distance.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_survives_the_wrap() {
        let before = Tick(u32::MAX);
        let after = before + Ticks(3);
        assert_eq!(after, Tick(2));
        assert!(after.is_newer_than(before) && !before.is_newer_than(after));
        assert_eq!(after.distance_from(before), 3);
    }

    #[test]
    fn low_bits_expand_to_the_nearest_tick() {
        for anchor in [Tick(0), Tick(70_000), Tick(u32::MAX - 5)] {
            for ahead in [-20_000, -1, 0, 1, 20_000] {
                let tick = Tick(anchor.0.wrapping_add_signed(ahead));
                assert_eq!(anchor.nearest_with_low_bits(tick.0 as u16), tick);
            }
        }
    }
}
