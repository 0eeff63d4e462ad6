//! Bytes and bits: the bit reader and writer, quantisers and the serde codec.

pub mod bits;
pub mod quantize;
pub mod serial;
