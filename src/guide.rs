//! Pages that go deeper than the front page.

#[doc = include_str!("../docs/copies.md")]
pub mod copies {}
