//! The colours, all of them here.

use bevy::prelude::*;

/// Behind everything.
pub const VOID: Color = Color::srgb(0.016, 0.022, 0.042);
/// Light on the sides of walls.
pub const WALL_LIGHT: Color = Color::linear_rgb(0.09, 0.55, 0.95);
pub const PAD: Color = Color::linear_rgba(0.10, 0.45, 0.80, 0.30);
pub const PANEL: Color = Color::srgba(0.025, 0.038, 0.075, 0.90);
pub const PANEL_EDGE: Color = Color::srgba(0.30, 0.45, 0.72, 0.35);
pub const TEXT: Color = Color::srgb(0.82, 0.88, 0.97);
pub const DIM_TEXT: Color = Color::srgb(0.56, 0.65, 0.80);
pub const WARNING: Color = Color::srgb(1.0, 0.42, 0.36);
pub const GOOD: Color = Color::srgb(0.36, 0.90, 0.60);
pub const ACCENT: Color = Color::srgb(0.33, 0.72, 1.0);
pub const SECOND: Color = Color::srgb(0.72, 0.56, 1.0);

/// One for each player in turn; told apart by hue and by brightness.
const PLAYERS: [Color; 8] = [
    Color::srgb(0.25, 0.80, 1.00),
    Color::srgb(1.00, 0.45, 0.38),
    Color::srgb(0.55, 0.92, 0.42),
    Color::srgb(1.00, 0.76, 0.28),
    Color::srgb(0.74, 0.54, 1.00),
    Color::srgb(1.00, 0.48, 0.82),
    Color::srgb(0.28, 0.92, 0.74),
    Color::srgb(0.95, 0.92, 0.62),
];

/// The colour of a player.
pub fn player(number: u32) -> Color {
    PLAYERS[number as usize % PLAYERS.len()]
}

/// The colour, brighter than the screen: bloom makes it glow.
pub fn glow(color: Color, brightness: f32) -> Color {
    let alpha = color.alpha();
    (color.to_linear() * brightness).with_alpha(alpha).into()
}
