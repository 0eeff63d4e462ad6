//! What a peer may do how often, and what happens when it does more.
//!
//! | part | limits | of |
//! |---|---|---|
//! | [`TokenBucket`] | anything, to a [`Rate`] | anything |
//! | [`SessionMeter`] | messages and bytes per second: inputs, messages, chat | a session |
//! | [`Conduct`] | breaches: drop, warn, disconnect, ban | a session |
//! | [`AddressGate`] | attempts to connect, handshakes in flight, sessions; bans | an address |
//! | [`BanList`] | bans | an identity |
//!
//! Limits are far above what an honest client does, since to drop an honest player costs more than to serve a rude one
//! for another second. All memory is bounded. Time is an argument, from any fixed start; a clock that goes backwards only
//! stops things for so long.

mod bans;
mod conduct;
mod gate;
mod meter;
#[cfg(test)]
mod tests;

pub use bans::{BanError, BanList, Banned, MAX_IDENTITY_BYTES, MAX_REASON_BYTES};
pub use conduct::{Answer, AnswerCounts, Conduct, Ladder};
pub(crate) use gate::Prefix;
pub use gate::{AddressGate, GateCounts, GateLimits, Refusal};
pub use meter::{
    Exceeded, MAX_SILENCE, Rate, SessionLimits, SessionMeter, TokenBucket, Traffic, TrafficLimit,
};
