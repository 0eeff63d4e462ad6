//! Bytes that many links carry.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

/// Bytes that are sent over many links, with what transports make of them once for all.
#[derive(Clone, Debug)]
pub struct SharedBytes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Bytes,
    is_for_one: bool,
    parts: OnceLock<Box<[SharedBytes]>>,
    #[cfg(feature = "websocket")]
    deflated: OnceLock<Option<Bytes>>,
}

impl SharedBytes {
    /// Shares these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self::made(bytes.into(), false)
    }

    /// Bytes that, as it happens, only one link will carry: they are better sent along with what else it has.
    pub(crate) fn for_one(bytes: impl Into<Bytes>) -> Self {
        Self::made(bytes.into(), true)
    }

    fn made(bytes: Bytes, is_for_one: bool) -> Self {
        Self(Arc::new(Inner {
            bytes,
            is_for_one,
            parts: OnceLock::new(),
            #[cfg(feature = "websocket")]
            deflated: OnceLock::new(),
        }))
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    pub(crate) fn is_for_one(&self) -> bool {
        self.0.is_for_one
    }

    /// The bytes in parts of so many, cut by whoever asks first.
    pub(crate) fn parts(&self, size: usize) -> &[Self] {
        self.0.parts.get_or_init(|| {
            let bytes = &self.0.bytes;
            (0..bytes.len())
                .step_by(size)
                .map(|from| {
                    let part = bytes.slice(from..bytes.len().min(from + size));
                    Self::made(part, self.0.is_for_one)
                })
                .collect()
        })
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
