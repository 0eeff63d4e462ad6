//! Bytes that many links carry.

use std::sync::Arc;

use bytes::Bytes;

/// Bytes that are sent over many links, with what transports make of them once for all.
#[derive(Clone, Debug)]
pub struct SharedBytes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Bytes,
    #[cfg(feature = "websocket")]
    deflated: std::sync::OnceLock<Option<Bytes>>,
}

impl SharedBytes {
    /// Shares these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(Arc::new(Inner {
            bytes: bytes.into(),
            #[cfg(feature = "websocket")]
            deflated: std::sync::OnceLock::new(),
        }))
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// A compressed form, made by whoever asks first; `None` if that one found it not worth while.
    #[cfg(feature = "websocket")]
    pub fn deflated_with(&self, deflate: impl FnOnce(&[u8]) -> Option<Bytes>) -> Option<&Bytes> {
        self.0
            .deflated
            .get_or_init(|| deflate(&self.0.bytes))
            .as_ref()
    }
}
