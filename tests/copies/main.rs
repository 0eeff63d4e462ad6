//! What a game may expect of copies, told by small games: whatever a game does to an entity of the server, its copies
//! follow, and whatever it does to a copy, that stays right.
//!
//! Many of these are kinds of faults that users of other netcode libraries have met.

mod coming_to_be;
mod disabled;
#[allow(dead_code)]
mod game;
mod hierarchies;
mod kinds;
mod lifecycles;
mod prediction;
mod references;
mod ships;
mod views;
