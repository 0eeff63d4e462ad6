//! Multiplayer for Bevy: a plugin that keeps a server's world and its clients' worlds in tandem.

pub mod blend;
pub mod client;
pub mod headless;
pub mod histogram;
pub mod host;
pub mod input;
pub mod message;
mod peer;
pub mod protocol;
pub mod registry;
pub mod replication;
pub mod rooms;
pub mod schedule;
pub mod server;
pub mod session;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tick;
pub mod transport;
pub mod wire;

/// What a first game needs.
pub mod prelude {
    pub use crate::blend::Blend;
    pub use crate::client::{
        ClientConfig, ClientStats, ConnectOver, Connected, Connection, ConnectionState, Disconnect,
        Disconnected, TandemClientPlugins, connected,
    };
    pub use crate::host::HostPlugin;
    pub use crate::input::{Input, LocalInput};
    pub use crate::message::{Channel, FromClient, FromServer, Target, ToClients, ToServer};
    pub use crate::protocol::handshake::DisconnectReason;
    pub use crate::registry::TandemApp;
    pub use crate::replication::{
        Interpolated, Owned, OwnedBy, Owner, Owns, Predicted, PredictedBy, Priority, Replicated,
        Simulated, SpawnKey,
    };
    pub use crate::rooms::{InRoom, Room, RoomMembers};
    pub use crate::schedule::{CurrentTick, Replaying, TandemSystems, replaying};
    pub use crate::server::{ServerApp, ServerConfig, ServerStats, TandemServerPlugins};
    pub use crate::session::{Kick, Session, SessionId, SessionJoined, SessionLeft};
    pub use crate::tick::{Tick, Ticks};
    pub use crate::transport::LinkConditions;
    pub use crate::wire::quantize::{
        AngleCodec, FloatCodec, IntCodec, Quantize, QuatCodec, TransformCodec, Vec2Codec, Vec3Codec,
    };
}
