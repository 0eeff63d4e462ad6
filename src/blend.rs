//! Values between values: what interpolation and the smoothing of corrections need.

use bevy::prelude::*;

/// A component that can be drawn between two of its values.
///
/// Implemented for [`Transform`] and the usual number types; for a component of your own, forward to its fields.
///
/// ```
/// # use bevy::prelude::*;
/// use bevy_tandem::prelude::*;
///
/// #[derive(Component, Clone)]
/// struct Velocity(Vec2);
///
/// impl Blend for Velocity {
///     fn blend(&self, to: &Self, t: f32) -> Self {
///         Self(self.0.blend(&to.0, t))
///     }
///     fn separation(&self, to: &Self) -> f32 {
///         self.0.separation(&to.0)
///     }
///     fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
///         Self(self.0.offset(&from.0, &to.0, weight))
///     }
/// }
/// ```
pub trait Blend: Clone {
    /// The value a share `t` of the way to another; `t` above 1 extrapolates.
    #[must_use]
    fn blend(&self, to: &Self, t: f32) -> Self;

    /// How far apart two values are, in the units of the game's world.
    fn separation(&self, to: &Self) -> f32;

    /// This value moved by a share `weight` of the difference between two others.
    ///
    /// Hides a correction: what was drawn `from` goes over to `to` while the weight falls from 1 to 0.
    #[must_use]
    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self;
}

impl Blend for f32 {
    fn blend(&self, to: &Self, t: f32) -> Self {
        self + (to - self) * t
    }

    fn separation(&self, to: &Self) -> f32 {
        (to - self).abs()
    }

    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        self + (from - to) * weight
    }
}

macro_rules! blend_vectors {
    ($($vector:ty),*) => {$(
        impl Blend for $vector {
            fn blend(&self, to: &Self, t: f32) -> Self {
                *self + (*to - *self) * t
            }

            fn separation(&self, to: &Self) -> f32 {
                <$vector>::distance(*self, *to)
            }

            fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
                *self + (*from - *to) * weight
            }
        }
    )*};
}

blend_vectors!(Vec2, Vec3);

impl Blend for Quat {
    fn blend(&self, to: &Self, t: f32) -> Self {
        self.slerp(*to, t)
    }

    fn separation(&self, to: &Self) -> f32 {
        self.angle_between(*to)
    }

    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        Quat::IDENTITY.slerp(*from * to.inverse(), weight) * *self
    }
}

impl Blend for Rot2 {
    fn blend(&self, to: &Self, t: f32) -> Self {
        self.slerp(*to, t)
    }

    fn separation(&self, to: &Self) -> f32 {
        self.angle_to(*to).abs()
    }

    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        *self * Rot2::radians(to.angle_to(*from) * weight)
    }
}

/// Translation and scale linearly, rotation along the shorter arc. The distance is the translation's.
impl Blend for Transform {
    fn blend(&self, to: &Self, t: f32) -> Self {
        Self {
            translation: self.translation.blend(&to.translation, t),
            rotation: self.rotation.blend(&to.rotation, t),
            scale: self.scale.blend(&to.scale, t),
        }
    }

    fn separation(&self, to: &Self) -> f32 {
        self.translation.distance(to.translation)
    }

    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        Self {
            translation: self
                .translation
                .offset(&from.translation, &to.translation, weight),
            rotation: self.rotation.offset(&from.rotation, &to.rotation, weight),
            scale: self.scale.offset(&from.scale, &to.scale, weight),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_of_full_weight_restores_what_was_drawn() {
        let from = Transform::from_xyz(1.0, 2.0, 3.0).with_rotation(Quat::from_rotation_z(0.7));
        let to = Transform::from_xyz(-4.0, 0.5, 3.0).with_rotation(Quat::from_rotation_y(0.3));
        let shown = to.offset(&from, &to, 1.0);
        assert!(shown.translation.distance(from.translation) < 1e-5);
        assert!(shown.rotation.angle_between(from.rotation) < 1e-3);
        assert_eq!(to.offset(&from, &to, 0.0).translation, to.translation);
    }

    #[test]
    fn a_blend_starts_and_ends_at_its_values() {
        let (a, b) = (Rot2::degrees(170.0), Rot2::degrees(-170.0));
        assert!(a.blend(&b, 0.0).separation(&a) < 1e-5);
        assert!(a.blend(&b, 1.0).separation(&b) < 1e-5);
        assert!(
            a.blend(&b, 0.5).separation(&Rot2::degrees(180.0)) < 1e-4,
            "the shorter way"
        );
    }
}
