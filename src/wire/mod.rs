//! Bytes and bits: the bit reader and writer, quantisers and the serde codec.
//!
//! Two roads lead from a component to the network. One that changes often and within known bounds
//! (a position, an angle) goes through a quantiser in [`quantize`]: few bits, and fewer still
//! against what the receiver already has. Everything else goes through serde in [`serial`]:
//! nothing to set up, whole bytes, always complete.
//!
//! Whatever a peer sends, the readers here return an error or a valid value; they neither panic
//! nor allocate more than the input can justify.

pub mod bits;
mod codecs;
mod fields;
pub mod quantize;
pub mod serial;

/// Why bits from the network could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ended in the middle of a value: it was cut short, or was never ours.
    #[error("the input ends in the middle of a value")]
    OutOfBits,
    /// The bits cannot have come from our writer; the text says which rule they break.
    #[error("malformed input: {0}")]
    InvalidValue(&'static str),
}
