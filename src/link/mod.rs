//! One end of a connection, on either side: datagrams to packets, chunks and messages, and the messages that outlive it.

pub(crate) mod mailbox;
pub(crate) mod peer;
