//! Inputs on their way to the server: sent until acknowledged, used in exactly their tick.
//!
//! An input is an opaque string of at most [`MAX_INPUT_BYTES`] bytes that belongs to one tick. The
//! client keeps the recent ones in an [`InputHistory`] and puts all that are not yet acknowledged
//! into every datagram, so that a lost datagram delays an input by one datagram and never loses it.
//! The server holds early ones back in an [`InputBuffer`] until their tick is simulated.
//!
//! # Encoding
//!
//! Players hold keys, so most inputs equal their predecessor. A message starts with three bytes and
//! goes backwards in time, the newest input first, each as a difference to the one before it in the
//! message. Where the byte budget ends, the oldest are left out.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | bits 6–7: epoch, bits 0–5: number of inputs − 1 |
//! | 1..3 | low 16 bits of the newest tick, little endian |
//! | rest | operations |
//!
//! An operation is a byte of two bits `kind` and six bits `n`, and what the kind asks for:
//!
//! | kind | meaning |
//! |---|---|
//! | 0 repeat | `n + 1` more inputs equal the previous one |
//! | 1 literal | the input in full: `n` bytes; 63: a length byte follows |
//! | 2 patch | as long as the previous one; a mask of changed bytes (`n` itself up to 6 bytes, else `len / 8` rounded up bytes), then the changed bytes |
//! | 3 one byte | as the previous one but for byte `n`, which follows |
//!
//! Ten equal inputs of four bytes take 9 bytes; sixty-four take no more. A message of sixteen
//! inputs costs the server 50 to 140 ns, with taking one out (`benches/input.rs`).
//!
//! # Epochs
//!
//! When the client's clock snaps back it plays ticks again for which it has sent inputs already.
//! The epoch, counted modulo four, tells the server to drop what it holds of the earlier attempt.

mod buffer;
mod history;
mod message;
mod ring;
#[cfg(test)]
mod tests;

pub use buffer::{Arrival, InputBuffer, InputBufferSettings, InputCounts, Taken};
pub use history::{EncodeLimits, InputHistory};
pub use message::InputMessage;

/// The longest input, in bytes.
pub const MAX_INPUT_BYTES: usize = 255;

/// The most inputs in one message, and how many the client remembers.
pub const MAX_INPUTS: usize = 64;

/// Slots of either ring. At least [`MAX_INPUTS`], and a power of two so that slots stay distinct
/// when ticks wrap around.
const SLOTS: usize = 64;
const _: () = assert!(SLOTS >= MAX_INPUTS && SLOTS.is_power_of_two());

/// Why an input or a message of inputs was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Only on the sending side.
    #[error("an input of {len} bytes is too large; make it at most {MAX_INPUT_BYTES}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// The message does not follow the format: no client of ours wrote it.
    #[error("malformed input message; disconnect its sender")]
    Malformed,
}
