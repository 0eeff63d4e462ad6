//! The arena: a fixed map that both sides know, so nothing of it is replicated.

// Each program uses its part of this.
#![allow(dead_code)]

use bevy::math::{IVec2, Vec2};

/// `#` is wall, `o` a place to appear. The same when turned by half, so that nobody is luckier.
const MAP: [&[u8; COLUMNS]; ROWS] = [
    b"########################################",
    b"#......................................#",
    b"#.o.......o..................o.......o.#",
    b"#......................................#",
    b"#....##.......##........##.......##....#",
    b"#....#............................#....#",
    b"#...............#......#...............#",
    b"#.........##....#......#....##.........#",
    b"#.........##....#......#....##.........#",
    b"#..o................................o..#",
    b"#.....#..........................#.....#",
    b"#.....#.......#..o.......#.......#.....#",
    b"#.....#.......#.......o..#.......#.....#",
    b"#.....#..........................#.....#",
    b"#..o................................o..#",
    b"#.........##....#......#....##.........#",
    b"#.........##....#......#....##.........#",
    b"#...............#......#...............#",
    b"#....#............................#....#",
    b"#....##.......##........##.......##....#",
    b"#......................................#",
    b"#.o.......o..................o.......o.#",
    b"#......................................#",
    b"########################################",
];
const COLUMNS: usize = 40;
const ROWS: usize = 24;

/// Side of a tile, in units.
pub const TILE: f32 = 2.0;
/// From the middle of the arena to its right and upper edge, in units.
pub const HALF_SIZE: Vec2 = Vec2::new(COLUMNS as f32 * TILE / 2.0, ROWS as f32 * TILE / 2.0);

/// Whether a point lies in a wall. Everything outside the map is wall.
pub fn is_wall(point: Vec2) -> bool {
    is_wall_tile(tile_at(point))
}

/// Whether a straight line crosses no wall, looked at every half tile.
pub fn is_clear(from: Vec2, to: Vec2) -> bool {
    let steps = ((to - from).length() / (TILE / 2.0)).ceil().max(1.0);
    (0..=steps as u32).all(|step| !is_wall(from.lerp(to, step as f32 / steps)))
}

/// Moves a circle out of all walls, and takes the part of its velocity that points into them.
///
/// Nothing but sums, products and square roots, which every processor rounds alike: a client that runs this reaches
/// exactly what the server does.
pub fn push_out(position: &mut Vec2, velocity: &mut Vec2, radius: f32) {
    let here = tile_at(*position);
    for y in -1..=1 {
        for x in -1..=1 {
            let tile = here + IVec2::new(x, y);
            if !is_wall_tile(tile) {
                continue;
            }
            let center = tile_center(tile);
            let nearest = position.clamp(center - TILE / 2.0, center + TILE / 2.0);
            let away = *position - nearest;
            let distance = away.length();
            if distance >= radius || distance == 0.0 {
                continue;
            }
            let normal = away / distance;
            *position = nearest + normal * radius;
            *velocity -= normal * velocity.dot(normal).min(0.0);
        }
    }
}

/// The middles of all wall tiles.
pub fn walls() -> impl Iterator<Item = Vec2> {
    tiles(b'#')
}

/// The places to appear.
pub fn spawn_places() -> impl Iterator<Item = Vec2> {
    tiles(b'o')
}

fn tiles(kind: u8) -> impl Iterator<Item = Vec2> {
    (0..ROWS).flat_map(move |row| {
        (0..COLUMNS)
            .filter(move |&column| MAP[row][column] == kind)
            .map(move |column| tile_center(IVec2::new(column as i32, row as i32)))
    })
}

fn is_wall_tile(tile: IVec2) -> bool {
    let kind = |row: &[u8; COLUMNS]| row.get(usize::try_from(tile.x).ok()?).copied();
    let row = usize::try_from(tile.y).ok().and_then(|y| MAP.get(y));
    row.and_then(|row| kind(row))
        .is_none_or(|kind| kind == b'#')
}

/// Columns count from the left, rows from the top, as the map is written.
fn tile_at(point: Vec2) -> IVec2 {
    let from_corner = Vec2::new(point.x + HALF_SIZE.x, HALF_SIZE.y - point.y);
    (from_corner / TILE).floor().as_ivec2()
}

fn tile_center(tile: IVec2) -> Vec2 {
    let from_corner = (tile.as_vec2() + 0.5) * TILE;
    Vec2::new(from_corner.x - HALF_SIZE.x, HALF_SIZE.y - from_corner.y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_the_same_when_turned_by_half() {
        for wall in walls() {
            assert!(is_wall(-wall), "{wall}");
        }
        for place in spawn_places() {
            assert!(spawn_places().any(|other| other == -place), "{place}");
        }
    }

    #[test]
    fn no_speed_gets_a_ship_into_a_wall() {
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut position, mut velocity) = (Vec2::new(4.0, 2.0), Vec2::ZERO);
        for tick in 0..100_000 {
            if tick % 20 == 0 {
                velocity = Vec2::from_angle(rng.f32() * std::f32::consts::TAU) * 16.0;
            }
            position += velocity / 60.0;
            push_out(&mut position, &mut velocity, 0.9);
            assert!(!is_wall(position), "tick {tick}: {position} is in a wall");
        }
    }

    #[test]
    fn outside_is_wall() {
        assert!(is_wall(HALF_SIZE + 1.0) && is_wall(-HALF_SIZE - 100.0));
    }
}
