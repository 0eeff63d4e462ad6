//! Multiplayer for Bevy: a plugin that keeps a server's world and its clients' worlds in tandem.
//!
//! One server simulates the game and has the last word. Each client shows a copy: it predicts what its own player
//! steers, so that it answers at once, and draws everybody else slightly in the past, so that they move smoothly. A
//! game says which components travel and which inputs there are; its rules are ordinary Bevy systems that run on both
//! sides.
//!
//! - [Two windows](#two-windows): a first game, from `cargo new` on.
//! - [Concepts](#concepts): what to know before the second one.
//! - [`TandemApp`] registers components and inputs, [`Protocol`](app::Protocol) messages.
//!   [`TandemServerPlugins`] and [`TandemClientPlugins`] do the rest.
//! - `ARCHITECTURE.md` in the repository tells how it works and why it is built so.
//!
//! # Two windows
//!
//! You need Rust 1.95, a C compiler, and what [Bevy needs on your system]. Make a project:
//!
//! ```text
//! cargo new squares
//! cd squares
//! ```
//!
//! Put this into its `Cargo.toml`, with the path to where you have cloned this crate:
//!
//! ```toml
//! [dependencies]
//! bevy = "0.19"
//! bevy_tandem = { path = "../bevy_tandem" }
//! serde = { version = "1", features = ["derive"] }
//!
//! # Bevy is slow unless it is optimised. Your own code stays quick to build.
//! [profile.dev.package."*"]
//! opt-level = 2
//! ```
//!
//! And this into `src/main.rs`. It is the whole game, both sides of it:
//!
//! ```no_run
//! use bevy::prelude::*;
//! use bevy_tandem::headless::HeadlessPlugin;
//! use bevy_tandem::prelude::*;
//! use serde::{Deserialize, Serialize};
//! # // This crate is tested without a renderer and a keyboard. These stand in for what `bevy::prelude` has of them.
//! # use MinimalPlugins as DefaultPlugins;
//! # #[derive(Component)] struct Camera2d;
//! # #[derive(Component)] struct Sprite;
//! # impl Sprite { fn from_color(_: Color, _: Vec2) -> Self { Self } }
//! # struct Color;
//! # impl Color { fn hsl(_: f32, _: f32, _: f32) -> Self { Self } }
//! # #[derive(Clone, Copy, PartialEq, Eq, Hash)] enum KeyCode { ArrowUp, ArrowDown, ArrowLeft, ArrowRight }
//!
//! const ADDRESS: &str = "127.0.0.1:5000";
//!
//! fn main() -> AppExit {
//!     let mut app = App::new();
//!     match std::env::args().nth(1).as_deref() {
//!         Some("server") => app
//!             .add_plugins((MinimalPlugins, HeadlessPlugin::default()))
//!             .add_plugins((TandemServerPlugins::listen(ADDRESS), game))
//!             .add_observer(spawn_square),
//!         _ => app
//!             .add_plugins(DefaultPlugins)
//!             .add_plugins((TandemClientPlugins::connect(ADDRESS), game))
//!             .add_systems(Startup, spawn_camera)
//!             .add_systems(PreUpdate, read_keys)
//!             .add_systems(Update, paint_squares),
//!     };
//!     app.run()
//! }
//!
//! /// What a player does in one tick.
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Steer(Vec2);
//!
//! #[derive(Component, Clone, Serialize, Deserialize)]
//! struct Square {
//!     hue: f32,
//! }
//!
//! /// The game, the same on both sides.
//! fn game(app: &mut App) {
//!     app.add_input::<Steer>()
//!         .accumulate(|tick, frame| tick.0 += frame.0) // a key counts in whichever frame it was down
//!         .validate(|steer| steer.0 = steer.0.clamp_length_max(1.0));
//!     app.replicate::<Transform>()
//!         .quantize(TransformCodec::flat(512.0, 1.0 / 64.0))
//!         .predict()
//!         .interpolate();
//!     app.replicate::<Square>();
//!     app.add_systems(FixedUpdate, steer);
//! }
//!
//! /// Runs on the server for every square, and on a client for its own.
//! fn steer(mut squares: Query<(&Input<Steer>, &mut Transform), With<Simulated>>, time: Res<Time>) {
//!     for (steer, mut transform) in &mut squares {
//!         transform.translation += steer.0.0.extend(0.0) * 300.0 * time.delta_secs();
//!     }
//! }
//!
//! /// On the server: a player has joined.
//! fn spawn_square(joined: On<SessionJoined>, sessions: Query<&Session>, mut commands: Commands) {
//!     let number = sessions.get(joined.entity).map_or(0, |session| session.id.0);
//!     let hue = number as f32 * 47.0 % 360.0;
//!     commands.spawn((Replicated, OwnedBy(joined.entity), Transform::default(), Square { hue }));
//! }
//!
//! fn spawn_camera(mut commands: Commands) {
//!     commands.spawn(Camera2d);
//! }
//!
//! fn read_keys(keys: Res<ButtonInput<KeyCode>>, mut steer: ResMut<LocalInput<Steer>>) {
//!     let axis = |plus, minus| f32::from(keys.pressed(plus)) - f32::from(keys.pressed(minus));
//!     let x = axis(KeyCode::ArrowRight, KeyCode::ArrowLeft);
//!     let y = axis(KeyCode::ArrowUp, KeyCode::ArrowDown);
//!     steer.0 = Steer(Vec2::new(x, y).normalize_or_zero());
//! }
//!
//! /// On a client: copies arrive with the components that are replicated. How they look is up to it.
//! fn paint_squares(squares: Query<(Entity, &Square), Without<Sprite>>, mut commands: Commands) {
//!     for (entity, square) in &squares {
//!         let color = Color::hsl(square.hue, 0.8, 0.6);
//!         commands.entity(entity).insert(Sprite::from_color(color, Vec2::splat(48.0)));
//!     }
//! }
//! ```
//!
//! Run the server in one terminal, and a client in each of two others:
//!
//! ```text
//! cargo run -- server
//! cargo run
//! cargo run
//! ```
//!
//! The server prints nothing. Each window has a square that follows the arrow keys, and shows the other's. Close one:
//! its square goes.
//!
//! **Did it not work?** When the two sides have registered different things, the client is refused with an error that
//! names the first difference: observe [`Disconnected`](client::Disconnected) to show it. When the address is in use,
//! the server ends with a message that says so. Nothing to see and no error: is the component registered, and is the
//! entity [`Replicated`](replication::Replicated)?
//!
//! **Try a bad network** before your players do:
//! `TandemClientPlugins::connect(ADDRESS).conditioned(LinkConditions::mobile())` delays and loses datagrams in both
//! directions. Your own square answers as before, and the other lags a little more.
//!
//! # Concepts
//!
//! ## Ticks
//!
//! The simulation advances in [`Tick`](tick::Tick)s, 60 a second, in Bevy's [`FixedUpdate`](bevy::app::FixedUpdate).
//! [`CurrentTick`](schedule::CurrentTick) has the same meaning on both sides: what a client does in tick 700 the server
//! applies in its tick 700. So that inputs arrive in time, a client runs ahead by about the time that its datagrams
//! take. It stretches its time by a few percent to stay there, guided by what the server [reports](protocol::clock).
//! The server's [`tick_rate_hz`](server::ServerConfig::tick_rate_hz) holds for its clients too.
//!
//! In `FixedUpdate`, `Res<Time>` is a function of the tick: `delta` is its length, and `elapsed` is the same on both
//! sides.
//!
//! When the server's game stands still (`Time<Virtual>` is paused), its clients stay: messages, joins and kicks go on in
//! real time, and clients are told to stand still with it. What the game changes meanwhile (it despawns something, or
//! moves a player to another room) reaches them, and each snapshot that takes is counted as a tick in which nothing is
//! simulated. While the server's game stands still, so does a client's `Time<Virtual>`: a menu that is to move then uses
//! `Time<Real>`.
//!
//! ## Replicated entities
//!
//! The server marks an entity as [`Replicated`](replication::Replicated). Clients that see it get a copy with the
//! registered components, and with [`ChildOf`](bevy::prelude::ChildOf) if the parent is replicated. A change to a
//! component is found by Bevy's change detection and sent to each client as the difference to what that client has
//! confirmed. Loss delays an update and never loses the last state.
//!
//! Any component that serde can handle works. What changes often should be [quantised](wire::quantize): each quantiser
//! states its error, and an update then takes bits rather than bytes. References to entities are mapped if the
//! component marks them with `#[entities]`.
//!
//! [What a copy is](guide::copies), in what order things happen to it, and what a game may do where, has a page of its own.
//!
//! Not everything fits a datagram. What is left out waits, and its claim grows with its
//! [`Priority`](replication::Priority) until it is sent.
//!
//! Assigning an equal value still marks a component as changed, which costs the server a comparison but no bytes.
//!
//! ## Inputs
//!
//! A client's game writes [`LocalInput<I>`](input::LocalInput) in every frame. What the frames since the last tick have
//! said becomes the tick's input, as [`accumulate`](app::InputRegistration::accumulate) and
//! [`tap`](app::InputRegistration::tap) have it: what is held counts in each tick, and what is tapped in exactly
//! one, at 20 frames a second as at 240. See [`input`].
//!
//! The tick's input is sent until the server has it, and put on the entities that the player owns as
//! [`Input<I>`](input::Input), on both sides in the same tick. Where an input is missing, the server repeats the last
//! one. It takes inputs only for what the session [owns](replication::OwnedBy), and
//! [`validate`](app::InputRegistration::validate) lets it clamp what no honest client sends. An input that names an
//! entity (a target, say) is registered with [`add_mapped_input`](app::TandemApp::add_mapped_input).
//!
//! ## Prediction, and the rules for it
//!
//! An entity that the local player owns is [`Predicted`](replication::Predicted) by its client
//! ([`PredictedBy`](replication::PredictedBy) can change who predicts). When the server's state of a tick arrives and
//! differs from what was predicted for that tick, the client goes back to it and simulates the ticks since again, with
//! the inputs that it had used. What is drawn is smoothed; the simulation is not.
//!
//! This works as long as a system gives the same result for the same tick. So a system on
//! [`Simulated`](replication::Simulated) entities in `FixedUpdate`
//!
//! - reads inputs, the tick, `Time`, constants, and components that are registered with
//!   [`predict`](app::Registration::predict): what is not registered is not rolled back;
//! - reads no keyboard, wall clock, `Local`, or random numbers that are not made from the tick;
//! - gives the same result in whatever order a query visits the entities;
//! - makes no sounds or particles, or does so in a system with `run_if(not(replaying))`.
//!
//! A component that is quantised arrives rounded. Differences of up to two steps are not corrected, and rounding your
//! simulation to the same grid avoids even those: `examples/arena/game.rs` does.
//!
//! What both sides spawn (a shot, say) carries a [`SpawnKey`](replication::SpawnKey), by which the client's early copy
//! and the server's entity become one.
//!
//! [`PredictionPlugin`](client::PredictionPlugin) holds the limits. [`ClientStats`](client::ClientStats) counts
//! corrections and tells how large they were.
//!
//! ## Interpolation
//!
//! Entities that a client does not predict are [`Interpolated`](replication::Interpolated): drawn a little in the past,
//! between two snapshots. How little is measured, so that few frames have nothing to draw from: see
//! [`protocol::interpolation`]. [`interpolate`](app::Registration::interpolate) blends values,
//! [`interpolate_hermite`](app::Registration::interpolate_hermite) follows a velocity, and
//! [`interpolate_step`](app::Registration::interpolate_step) shows each value when its time has come. Beyond the
//! newest snapshot, motion goes on for at most a quarter of a second. Values further apart than
//! [`teleport_distance`](app::Registration::teleport_distance) are jumped between.
//!
//! [`Blend`](blend::Blend) teaches it components of your own.
//!
//! ## Rooms
//!
//! A session and an entity can be [`InRoom`](rooms::InRoom). A session sees what is in its room and what is in none.
//! The room is any entity. Insert another `InRoom` to move; children follow their parents.
//!
//! ```
//! # use bevy::prelude::*;
//! # use bevy_tandem::prelude::*;
//! fn give_each_player_a_room(joined: On<SessionJoined>, mut commands: Commands) {
//!     let room = commands.spawn(Room).id();
//!     commands.entity(joined.entity).insert(InRoom(room));
//!     commands.spawn((Replicated, OwnedBy(joined.entity), InRoom(room), Transform::default()));
//! }
//! ```
//!
//! ## Messages
//!
//! What is an event and not a state goes as a [message], registered with its
//! [`Channel`](message::Channel). Both sides use Bevy's own readers and writers.
//!
//! ```
//! # use bevy::prelude::*;
//! # use bevy_tandem::prelude::*;
//! # use serde::{Deserialize, Serialize};
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Chat(String);
//!
//! fn game(app: &mut App) {
//!     app.protocol().add_message::<Chat>(Channel::ReliableOrdered);
//! }
//!
//! /// On the server: whatever one says, all hear.
//! fn relay(mut said: MessageReader<FromClient<Chat>>, mut tell: MessageWriter<ToClients<Chat>>) {
//!     for FromClient { message, .. } in said.read() {
//!         tell.write(ToClients { to: Target::All, message: message.clone() });
//!     }
//! }
//!
//! /// On a client.
//! fn hear(mut heard: MessageReader<FromServer<Chat>>) {
//!     for chat in heard.read() {
//!         info!("{}", chat.0.0);
//!     }
//! }
//! # let mut app = App::new();
//! # app.add_plugins((MinimalPlugins, TandemServerPlugins::default(), game)).add_systems(Update, relay);
//! # app.finish();
//! # app.cleanup();
//! # app.update();
//! ```
//!
//! What is said is heard, or comes back as [`Undeliverable`](message::Undeliverable): before a client is in and after it has
//! left, to a session that is gone, or when it is too large. What a client says in the frame in which it leaves arrives. A
//! client hears messages after the snapshots that came with them, and one that names an entity of which it is still to be
//! told waits for that.
//!
//! ## Links and sessions
//!
//! A player's [`Session`](session::Session) is not the link that it came over. When the link is lost, the session is
//! [`Away`](session::Away): it keeps its entities, its room, its [`Identity`](identity::Identity) and whatever the game
//! has put on it for [`resume_window`](server::ServerConfig::resume_window), 300 s by default. The client comes back by
//! itself, with pauses that [grow](protocol::backoff) from a second to half a minute, from whatever address and over
//! whatever transport it can. Then every reliable message that either side has missed arrives, once and in order, and
//! the world as it is now.
//!
//! [`ConnectionState`](client::ConnectionState) is a state in Bevy's sense, and there are run conditions and events:
//!
//! ```
//! # use bevy::prelude::*;
//! # use bevy_tandem::prelude::*;
//! use bevy_tandem::client::{ReconnectScheduled, ResumeFinished, reconnecting};
//! use bevy_tandem::session::SessionAway;
//!
//! fn client(app: &mut App) {
//!     app.add_systems(OnEnter(ConnectionState::Failed), || error!("no way back"))
//!         .add_systems(Update, (|| { /* draw a spinner */ }).run_if(reconnecting))
//!         .add_observer(|next: On<ReconnectScheduled>| {
//!             info!("{}: attempt {} in {:.0?}", next.reason, next.attempt, next.delay);
//!         })
//!         .add_observer(|back: On<ResumeFinished>| info!("{:?} after {:.1?}", back.outcome, back.took));
//! }
//!
//! /// On the server: whose player is away, stands still.
//! fn server(app: &mut App) {
//!     app.add_observer(|away: On<SessionAway>| info!("{}: {}", away.entity, away.reason));
//! }
//! # let mut app = App::new();
//! # app.add_plugins((MinimalPlugins, TandemClientPlugins::default(), client));
//! ```
//!
//! A player who leaves, is [kicked](session::Kick) or [banned](session::Ban) does not come back.
//!
//! Connections and sessions may be begun, ended and cut at any moment, by observers too: what ends one takes effect at the
//! end of the frame. [`Disconnected`](client::Disconnected) and [`SessionLeft`](session::SessionLeft) come before what hangs
//! on it is despawned, and so do the commands of those who observe them: give a ship to somebody else, or take a camera off.
//!
//! ## Browsers
//!
//! `TandemServerPlugins::listen("127.0.0.1:5000").websocket("127.0.0.1:5001")` listens for WebSocket as well, and
//! `TandemClientPlugins::connect("ws://127.0.0.1:5001/")` is the same call in a native game, where UDP is blocked, and
//! in one that is built for `wasm32-unknown-unknown`. All of them play in the same rooms. With
//! [certificates](transport::ws::WsServerConfig::tls) it is `wss://`, and the server can hand out the
//! [page](transport::ws::WsServerConfig::web) too. `docs/nginx.md` has it behind nginx. What a link sends at once, how
//! often and how small, is its [`LinkPace`](transport::LinkPace).
//!
//! ## Tests
//!
//! With the feature `testing`, [`TestNet`](testing::TestNet) runs a server and clients in one process over links as bad
//! as you like. Nothing sleeps, and all randomness is seeded, so a test gives the same result each time.
//!
//! ```
//! use bevy::prelude::*;
//! use bevy_tandem::prelude::*;
//! use bevy_tandem::testing::TestNet;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Clone, Default, Serialize, Deserialize)]
//! # struct Steer(Vec2);
//! # fn game(app: &mut App) {
//! #     app.add_input::<Steer>();
//! #     app.replicate::<Transform>().quantize(TransformCodec::flat(512.0, 1.0 / 64.0)).predict().interpolate();
//! #     app.add_systems(FixedUpdate, steer);
//! # }
//! # fn steer(mut squares: Query<(&Input<Steer>, &mut Transform), With<Simulated>>, time: Res<Time>) {
//! #     for (steer, mut transform) in &mut squares {
//! #         transform.translation += steer.0.0.extend(0.0) * 300.0 * time.delta_secs();
//! #     }
//! # }
//! # fn spawn_square(joined: On<SessionJoined>, mut commands: Commands) {
//! #     commands.spawn((Replicated, OwnedBy(joined.entity), Transform::default()));
//! # }
//!
//! let mut net = TestNet::new(game, LinkConditions::wifi().with_seed(7));
//! net.server.add_observer(spawn_square);
//! let ada = net.join("Ada");
//! net.run(Ticks(60));
//!
//! net.client(ada).insert_resource(LocalInput(Steer(Vec2::X)));
//! net.run(Ticks(60));
//! net.client(ada).insert_resource(LocalInput(Steer(Vec2::ZERO)));
//! net.run(Ticks(60)); // until the last datagrams have arrived
//!
//! let mut squares = net.server.world_mut().query_filtered::<&Transform, With<Replicated>>();
//! let there = squares.single(net.server.world()).unwrap().translation;
//! assert!(there.x > 290.0, "a second at 300 units per second");
//!
//! let mut own = net.client(ada).world_mut().query_filtered::<&Transform, With<Owned>>();
//! let here = own.single(net.client(ada).world()).unwrap().translation;
//! assert!(here.distance(there) <= 2.0 / 64.0, "the client is where the server is");
//! ```
//!
//! ## Bad networks
//!
//! [`LinkConditions`](transport::LinkConditions) describe latency, jitter, loss, duplication, reordering and a narrow
//! pipe, and have presets from `lan` to `awful`. They act on a client with
//! [`conditioned`](client::TandemClientPlugins::conditioned), on a server with
//! [`ServerConfig::conditions`](server::ServerConfig::conditions), on any transport with
//! [`Conditioned`](transport::Conditioned) and [`ConditionedServer`](transport::ConditionedServer), and in `TestNet`.
//!
//! ## Deployment and security
//!
//! [`HeadlessPlugin`](headless::HeadlessPlugin) runs a server without a window: one tick per update, on time, asleep in
//! between, and it leaves on Ctrl-C and SIGTERM. (Bevy's own runner for `MinimalPlugins` takes a whole core unless told
//! otherwise.) Where it may, it has the system let ticks go before other threads
//! ([`raise_priority`](headless::raise_priority)); as a systemd service, it may with `LimitRTPRIO=1`.
//!
//! `listen` and `connect` use the **insecure mode**: everybody is let in, and the keys of the encryption can be read by
//! anyone on the way. That is for development, so such a server listens on loopback addresses only, unless
//! [`insecure_anywhere`](server::ServerConfig::insecure_anywhere) is set. On the internet, your back end gives each
//! player who has logged in a [connect token](transport::udp::token), and the server lets in only who has one:
//!
//! ```no_run
//! use bevy::prelude::*;
//! use bevy_tandem::headless::HeadlessPlugin;
//! use bevy_tandem::prelude::*;
//! use bevy_tandem::transport::udp::token::{self, TokenError};
//! use bevy_tandem::transport::udp::{Auth, ClientAuth};
//! # fn game(_: &mut App) {}
//!
//! /// The key is shared with the back end and nobody else.
//! fn server(private_key: [u8; 32]) -> App {
//!     let config = ServerConfig {
//!         udp: Some(([0, 0, 0, 0], 5000).into()),
//!         auth: Auth::Secure { private_key },
//!         // What tokens name.
//!         public_addresses: vec![([203, 0, 113, 5], 5000).into()],
//!         ..default()
//!     };
//!     let mut app = App::new();
//!     app.add_plugins((MinimalPlugins, HeadlessPlugin::default()))
//!         .add_plugins((TandemServerPlugins::with_config(config), game));
//!     app
//! }
//!
//! /// The token comes from the back end over HTTPS.
//! fn client(token: &[u8]) -> Result<App, TokenError> {
//!     let config = ClientConfig {
//!         udp: Some(ClientAuth::Token(Box::new(token::from_bytes(token)?))),
//!         name: "Ada".into(),
//!         ..default()
//!     };
//!     let mut app = App::new();
//!     app.add_plugins((MinimalPlugins, TandemClientPlugins::with_config(config), game));
//!     Ok(app)
//! }
//! ```
//!
//! The server bounds what a peer can make it do: datagrams per second, inputs ahead of time, message sizes, memory of
//! unfinished messages. What a correct client cannot have sent ends the connection. Who sends more than
//! [`LimitSettings`](server::LimitSettings) allow is dropped, then warned, then disconnected, then banned. What it cannot
//! judge is your game's: validate inputs and messages.
//!
//! With [`DiagnosticsPlugin`](diagnostics), round trips, jitter, loss and traffic are diagnostics of Bevy's, for every
//! session; so are the decisions of a server that [adapts](server::ServerConfig::adaptive) to what links can carry.
//!
//! # Cargo features
//!
//! - `websocket` (on by default): WebSocket links, beside UDP on a server and the only way in from a browser.
//! - `jwt`: [`JwtVerifier`](identity), which checks JSON Web Tokens.
//! - `bevy_renet`: runs over the `RenetServer` and `RenetClient` that a game already has.
//! - `testing`: `TestNet`. Turn it on in `[dev-dependencies]`.
//! - `render`: what the rendered examples of this repository need of Bevy. Games choose their own.
//!
//! [Bevy needs on your system]: https://github.com/bevyengine/bevy/blob/main/docs/linux_dependencies.md
//! [`TandemApp`]: app::TandemApp
//! [`TandemServerPlugins`]: server::TandemServerPlugins
//! [`TandemClientPlugins`]: client::TandemClientPlugins

// What only servers use is checked where there are servers.
#![cfg_attr(target_family = "wasm", allow(dead_code))]

pub mod app;
pub mod blend;
pub mod client;
pub mod diagnostics;
mod entity_map;
pub mod guide;
#[cfg(not(target_family = "wasm"))]
pub mod headless;
mod hierarchy;
pub mod histogram;
#[cfg(not(target_family = "wasm"))]
pub mod host;
pub mod identity;
pub mod input;
mod link;
pub mod message;
mod probe;
pub mod protocol;
mod registry;
#[cfg(all(feature = "bevy_renet", not(target_family = "wasm")))]
pub mod renet_bridge;
pub mod replication;
pub mod rooms;
pub mod schedule;
#[cfg(not(target_family = "wasm"))]
pub mod server;
pub mod session;
#[cfg(all(not(target_family = "wasm"), any(test, doc, feature = "testing")))]
pub mod testing;
pub mod tick;
pub mod transport;
pub mod wire;

/// What a first game needs.
pub mod prelude {
    pub use crate::app::TandemApp;
    pub use crate::blend::Blend;
    pub use crate::client::{
        ClientConfig, ClientStats, ConnectOver, Connected, Connection, ConnectionState, Disconnect,
        Disconnected, TandemClientPlugins, connected,
    };
    #[cfg(not(target_family = "wasm"))]
    pub use crate::host::HostPlugin;
    pub use crate::input::{Input, LocalInput};
    pub use crate::message::{Channel, FromClient, FromServer, Target, ToClients, ToServer};
    pub use crate::protocol::handshake::DisconnectReason;
    pub use crate::replication::{
        Interpolated, Owned, OwnedBy, Owner, Owns, Predicted, PredictedBy, Priority, Replicated,
        Simulated, SpawnKey,
    };
    pub use crate::rooms::{InRoom, Room, RoomMembers};
    pub use crate::schedule::{CurrentTick, Replaying, TandemSystems, replaying};
    #[cfg(not(target_family = "wasm"))]
    pub use crate::server::{ServerApp, ServerConfig, ServerStats, TandemServerPlugins};
    pub use crate::session::{Kick, Session, SessionId, SessionJoined, SessionLeft};
    pub use crate::tick::{Tick, Ticks};
    pub use crate::transport::LinkConditions;
    pub use crate::wire::quantize::{
        AngleCodec, FloatCodec, IntCodec, Quantize, QuatCodec, TransformCodec, Vec2Codec, Vec3Codec,
    };
}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
