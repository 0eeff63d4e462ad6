//! The life of sessions: hello, welcome, away, and back again. How they end is in [`departures`].

use std::net::IpAddr;
use std::time::Duration;

use bevy::platform::collections::HashMap;
use bevy::prelude::*;

use super::collect::Replication;
use super::departures::{self, Departures};
use super::inputs::SessionInputs;
use super::limits::{Doors, Limits};
use super::links::{
    ClientAddress, Greeting, Link, LinkStats, LinkedOver, Links, SessionMail, deliver_receipts,
};
use super::rooms;
use super::send::Outgoing;
use super::tokens::{NextTokens, TokenRefusal, UsedTokens};
use super::{ListenAddresses, ServerConfig, ServerStats};
use crate::identity::{Identity, IdentityError};
use crate::link::mailbox::Mailbox;
use crate::link::peer::{CONTROL_CHANNEL, Peer, Side};
use crate::message::Letter;
use crate::protocol::handshake::{
    Control, DisconnectReason, Hello, Intent, ResumeRejection, Resumption, WIRE_VERSION,
    fingerprint,
};
use crate::protocol::names::{validate_name, validate_version};
use crate::protocol::reliable::{self, Taken};
use crate::protocol::resume::{ResumeKeys, ResumeToken};
use crate::registry::Registry;
use crate::schedule::{CurrentTick, TandemSystems};
use crate::session::{Away, Session, SessionAway, SessionId, SessionJoined, SessionReturned};
use crate::transport::udp::Auth;
use crate::transport::udp::token::unix_time;
use crate::transport::{LinkId, PeerInfo, SharedBytes};
use crate::wire::serial;

/// Lets clients in and makes them sessions.
#[derive(Clone, Default)]
pub struct SessionPlugin {
    /// The server's settings.
    pub config: ServerConfig,
}

impl Plugin for SessionPlugin {
    fn build(&self, app: &mut App) {
        app.world_mut().get_resource_or_init::<Links>();
        app.insert_resource(SessionSettings(self.config.clone()))
            .insert_resource(Doors::new(&self.config))
            .init_resource::<Sessions>()
            .init_resource::<NextTokens>()
            .init_resource::<UsedTokens>()
            .init_resource::<ServerStats>()
            .init_resource::<ListenAddresses>()
            .add_plugins(departures::DeparturePlugin)
            .add_systems(
                PreUpdate,
                super::links::receive.in_set(TandemSystems::Receive),
            )
            .add_systems(
                PostUpdate,
                super::tokens::refresh.before(TandemSystems::Send),
            );
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        let registrations = Registry::describe(app.world());
        let fingerprint = fingerprint(registrations.iter().map(String::as_str));
        let world = app.world_mut();
        let mut links = world.resource_mut::<Links>();
        links.registrations = registrations;
        links.fingerprint = fingerprint;
        let addresses = links
            .transports
            .iter()
            .filter_map(|transport| transport.local_addr())
            .collect();
        world.insert_resource(ListenAddresses(addresses));
    }
}

#[derive(Resource)]
pub(super) struct SessionSettings(pub ServerConfig);

/// All sessions by their numbers, with a link or away.
#[derive(Resource, Default)]
pub(crate) struct Sessions {
    by_id: HashMap<u32, Entity>,
    /// Their numbers, and that of the local player: what the game writes to [`Session`] changes nothing.
    numbers: HashMap<Entity, u32>,
    next: u32,
}

impl Sessions {
    /// A number for a new session.
    pub fn allocate(&mut self) -> SessionId {
        let id = SessionId(self.next);
        self.next += 1;
        id
    }

    /// A client's session has begun, and takes up a slot.
    fn add(&mut self, id: SessionId, session: Entity) {
        self.by_id.insert(id.0, session);
        self.numbers.insert(session, id.0);
    }

    /// The local player's session has begun.
    pub fn add_local(&mut self, id: SessionId, session: Entity) {
        self.numbers.insert(session, id.0);
    }

    /// A session has ended. Returns whether it had not before.
    pub(super) fn remove(&mut self, session: Entity) -> bool {
        let id = self.numbers.remove(&session);
        if let Some(id) = id {
            self.by_id.remove(&id);
        }
        id.is_some()
    }
}

/// With what a session can be resumed.
#[derive(Component)]
struct Keys(ResumeKeys);

/// Who is banned and asks again and again is slowed down to once in this time. To be told at once would have it ask
/// hundreds of times a second, and cost us more than it costs to ask.
pub(super) const BAN_ANSWER_AFTER: Duration = Duration::from_secs(1);

/// A link has opened: its client has some time to say hello.
pub(super) fn open(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    info: PeerInfo,
) {
    let ip = info.addr.map(|addr| addr.ip());
    let admitted = match ip {
        Some(ip) => world.resource_mut::<Doors>().knock(now, ip),
        None => Ok(()),
    };
    let mut greeting = Greeting {
        peer: Peer::new(Side::Server, info.delivery),
        info,
        since: now,
        is_refused: false,
        is_counted: admitted.is_ok(),
        refusal: None,
    };
    match admitted {
        Ok(()) => {}
        Err(reason @ DisconnectReason::Banned { .. }) => greeting.refusal = Some(reason),
        Err(reason) => return links.close(now, link, &mut greeting.peer, &reason),
    }
    links.greeting.insert(link, greeting);
}

/// Ends a greeting.
pub(super) fn forget_greeting(
    world: &mut World,
    links: &mut Links,
    link: LinkId,
) -> Option<Greeting> {
    let greeting = links.greeting.remove(&link)?;
    if let Some(addr) = greeting.info.addr.filter(|_| greeting.is_counted) {
        world.resource_mut::<Doors>().heard(addr.ip());
    }
    Some(greeting)
}

/// Ends a greeting, and says why.
pub(super) fn refuse(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    reason: &DisconnectReason,
) {
    if let Some(mut greeting) = forget_greeting(world, links, link) {
        links.close(now, link, &mut greeting.peer, reason);
    }
}

/// Answers those who say hello, and gives up on those who do not.
pub(super) fn greet(world: &mut World, links: &mut Links, now: Duration, delta: Duration) {
    if links.greeting.is_empty() {
        return;
    }
    let waiting: Vec<_> = links.greeting.keys().copied().collect();
    for link in waiting {
        let Some(greeting) = links.greeting.get_mut(&link) else {
            continue;
        };
        greeting.peer.advance(delta);
        let waited = now.saturating_sub(greeting.since);
        if let Some(reason) = &greeting.refusal {
            if waited >= BAN_ANSWER_AFTER {
                let reason = reason.clone();
                refuse(world, links, now, link, &reason);
            }
            continue;
        }
        let message = match greeting.is_refused {
            true => None,
            false => greeting.peer.next_message(CONTROL_CHANNEL),
        };
        if waited > world.resource::<SessionSettings>().0.hello_timeout {
            // An app that stands still for so long, as pages do that compile shaders, may well go on.
            let reason = DisconnectReason::NotReady("you have not said hello in time".into());
            refuse(world, links, now, link, &reason);
            continue;
        }
        if let Some(bytes) = message {
            match answer(world, links, now, link, &bytes) {
                Ok(()) => continue,
                Err(refusal) if turn_away(world, links, now, link, &refusal) => continue,
                Err(_) => {}
            }
        }
        let Some(mut greeting) = links.greeting.remove(&link) else {
            continue;
        };
        let peer = &mut greeting.peer;
        peer.begin(now, 0, &mut links.over(now, link));
        peer.finish(&mut links.over(now, link));
        links.greeting.insert(link, greeting);
    }
}

/// Answers who may not come in; says whether there is nothing more to send.
fn turn_away(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    refusal: &Refusal,
) -> bool {
    match refusal {
        Refusal::Other(reason @ DisconnectReason::Banned { .. }) => {
            if let Some(greeting) = links.greeting.get_mut(&link) {
                greeting.refusal = Some(reason.clone());
            }
            true
        }
        Refusal::Other(reason) => {
            refuse(world, links, now, link, reason);
            true
        }
        Refusal::Mismatch => {
            let control = Control::Mismatch {
                wire_version: WIRE_VERSION,
                registrations: links.registrations.clone(),
            };
            if let Some(greeting) = links.greeting.get_mut(&link) {
                send_control(&mut greeting.peer, &control);
                // The client leaves when it has read this; if not, the timeout comes.
                greeting.is_refused = true;
            }
            false
        }
    }
}

enum Refusal {
    Mismatch,
    Other(DisconnectReason),
}

impl<T: Into<DisconnectReason>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self::Other(reason.into())
    }
}

/// Lets a client in, or says why not.
fn answer(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    bytes: &[u8],
) -> Result<(), Refusal> {
    let hello = serial::decode::<Hello>(bytes).map_err(|_| Refusal::Mismatch)?;
    if hello.wire_version != WIRE_VERSION || hello.fingerprint != links.fingerprint {
        return Err(Refusal::Mismatch);
    }
    if links.is_closing || world.resource::<Departures>().is_closing() {
        return Err(DisconnectReason::ServerShutdown.into());
    }
    let settings = &world.resource::<SessionSettings>().0;
    if hello.game_version != settings.game_version {
        return Err(Refusal::Other(DisconnectReason::GameVersion {
            server: settings.game_version.clone(),
            client: hello.game_version,
        }));
    }
    validate_name(&hello.name)?;
    validate_version(&hello.platform)?;
    let Some(greeting) = links.greeting.get(&link) else {
        return Ok(());
    };
    // Who comes back once more, since answers were lost, may have no other token left. The resume token guards the session.
    let comes_again = match &hello.intent {
        Intent::Join => false,
        Intent::Resume { token, .. } => {
            let owner = world.resource::<NextTokens>().owner(&greeting.info);
            let sessions = &world.resource::<Sessions>().by_id;
            owner.is_some() && owner == sessions.get(&token.session).copied()
        }
    };
    if let Some(token) = greeting.info.token {
        let mut used = world.resource_mut::<UsedTokens>();
        match used.take(token, unix_time().as_secs()) {
            Err(TokenRefusal::Used) if comes_again => {}
            taken => {
                taken.map_err(|error| DisconnectReason::Unauthorised(error.to_string()))?;
            }
        }
    }
    let identity = identify(world, &greeting.info, &hello)?;
    world.resource_mut::<Doors>().check_player(now, &identity)?;
    match hello.intent.clone() {
        Intent::Join => join(world, links, now, link, hello, identity),
        Intent::Resume { token, taken } => {
            let resumed = resume(world, links, now, link, &token, taken, &identity);
            world.resource_mut::<ServerStats>().resumes_rejected += u64::from(resumed.is_err());
            resumed
        }
    }
}

/// Who is at the other end: by their credentials if the server asks for some, else by their connect token.
fn identify(world: &World, info: &PeerInfo, hello: &Hello) -> Result<Identity, DisconnectReason> {
    let settings = &world.resource::<SessionSettings>().0;
    if let Some(verifier) = &settings.verifier {
        let verify = |now| verifier.verify(&hello.credentials, now);
        let now = unix_time().as_secs();
        let identity = match (verify(now), began_with(world, &hello.intent)) {
            // They were good when the session began, and it goes on beyond that.
            (
                Err(IdentityError::Expired),
                Some(Identity {
                    expires: Some(until),
                    ..
                }),
            ) => verify(now.min(until.saturating_sub(1))),
            (identity, _) => identity,
        };
        return identity.map_err(|error| DisconnectReason::Unauthorised(error.to_string()));
    }
    // The token for a later link was made by this server, for the player whose session it names.
    let tokens = world.resource::<NextTokens>();
    let original = tokens.owner(info);
    if let Some(identity) = original.and_then(|session| world.get::<Identity>(session)) {
        return Ok(identity.clone());
    }
    if let Auth::Secure { private_key } = &settings.auth
        && info.secure
        && tokens.is_outdated(private_key, info.client_id)
    {
        return Err(match hello.intent {
            Intent::Resume { .. } => DisconnectReason::ResumeRejected(ResumeRejection::Expired),
            Intent::Join => DisconnectReason::Unauthorised(
                "the connect token was for a session that has ended; ask the back end for a new one"
                    .into(),
            ),
        });
    }
    Ok(Identity::of_client(info.client_id, info.secure))
}

/// Whose session a client asks for.
fn began_with<'w>(world: &'w World, intent: &Intent) -> Option<&'w Identity> {
    let Intent::Resume { token, .. } = intent else {
        return None;
    };
    let session = world.resource::<Sessions>().by_id.get(&token.session)?;
    world.get(*session)
}

fn join(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    hello: Hello,
    identity: Identity,
) -> Result<(), Refusal> {
    let max_sessions = world.resource::<SessionSettings>().0.max_sessions;
    if world.resource::<Sessions>().by_id.len() >= max_sessions {
        return Err(DisconnectReason::ServerFull.into());
    }
    let addr = links.greeting.get(&link).and_then(|it| it.info.addr);
    // Others at a banned address who are in already stay, and may come back.
    if let Some(addr) = addr {
        let mut doors = world.resource_mut::<Doors>();
        doors.check_address(now, addr.ip())?;
        doors.enter(now, addr.ip())?;
    }
    let Some(Greeting { mut peer, info, .. }) = forget_greeting(world, links, link) else {
        return Ok(());
    };
    match addr {
        Some(addr) => debug!("{} joins from {addr}", hello.name),
        None => debug!("{} joins", hello.name),
    }
    let id = world.resource_mut::<Sessions>().allocate();
    let mut keys = ResumeKeys::new(id.0);
    let token = keys.issue(random());
    welcome(world, &mut peer, id, token, None);
    let settings = &world.resource::<SessionSettings>().0;
    let mail = SessionMail(Mailbox::new(settings.outbox, settings.when_full));
    let limits = Limits::new(&settings.limits, now);
    let session = world.spawn_empty().id();
    // Before the game sees it, and may despawn it.
    world.resource_mut::<Sessions>().add(id, session);
    let bundle = (
        Session {
            id,
            name: hello.name,
            platform: hello.platform,
        },
        identity,
        Keys(keys),
        mail,
        limits,
        SessionInputs::default(),
    );
    match addr {
        Some(addr) => world
            .entity_mut(session)
            .insert((bundle, ClientAddress(addr))),
        None => world.entity_mut(session).insert(bundle),
    };
    if attach(world, links, now, session, link, peer, &info) {
        tell(world, SessionJoined { entity: session });
    }
    Ok(())
}

/// Goes on with a session over a new link.
fn resume(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    token: &ResumeToken,
    taken: Taken,
    identity: &Identity,
) -> Result<(), Refusal> {
    let (session, next) = redeem(world, token, identity).map_err(rejected)?;
    let Some(mut mail) = world.get_mut::<SessionMail>(session) else {
        return Ok(());
    };
    let (lost, receipts) = resume_mail(&mut mail.0, taken).map_err(|gap| {
        // Who has the token but not the messages is not who they were.
        debug!("session {session} cannot be resumed: {gap}");
        rejected(ResumeRejection::InvalidToken)
    })?;
    let Some(Greeting { mut peer, info, .. }) = forget_greeting(world, links, link) else {
        return Ok(());
    };
    // The server may not have noticed yet that the old link is dead.
    detach(world, links, session);
    deliver_receipts(world, session, &receipts);
    let Some(mail) = world.get::<SessionMail>(session) else {
        return Ok(());
    };
    let resumption = Resumption {
        taken: mail.0.inbox.taken(),
        first_kept: mail.0.outbox.first_kept(),
        lost,
    };
    welcome(
        world,
        &mut peer,
        SessionId(token.session),
        next,
        Some(resumption),
    );
    begin_anew(world, session);
    move_address(world, now, session, &info);
    if !attach(world, links, now, session, link, peer, &info) {
        return Ok(());
    }
    debug!("session {session} is back over {link}");
    let mut stats = world.resource_mut::<ServerStats>();
    stats.resumed += 1;
    stats.resynced += u64::from(lost > 0);
    let returned = SessionReturned {
        entity: session,
        lost,
    };
    tell(world, returned);
    Ok(())
}

fn rejected(why: ResumeRejection) -> Refusal {
    Refusal::Other(DisconnectReason::ResumeRejected(why))
}

/// The session that a token is for, and the token for the next time.
fn redeem(
    world: &mut World,
    token: &ResumeToken,
    identity: &Identity,
) -> Result<(Entity, ResumeToken), ResumeRejection> {
    let sessions = &world.resource::<Sessions>().by_id;
    let session = *sessions
        .get(&token.session)
        .ok_or(ResumeRejection::Expired)?;
    let known = world.get::<Identity>(session);
    if known.is_some_and(|known| known.verified && !known.is_same_player(identity)) {
        return Err(ResumeRejection::OtherIdentity);
    }
    let mut keys = world
        .get_mut::<Keys>(session)
        .ok_or(ResumeRejection::Expired)?;
    if let Err(error) = keys.0.redeem(token) {
        debug!("somebody asks for session {session}: {error}");
        return Err(ResumeRejection::InvalidToken);
    }
    Ok((session, keys.0.issue(random())))
}

/// Goes on with a session's messages: says how many are lost, and which were taken.
fn resume_mail(mail: &mut Mailbox, taken: Taken) -> Result<(u64, Vec<Letter>), reliable::Gap> {
    let mut receipts = Vec::new();
    let resumed = mail.outbox.resume(taken, |letter| receipts.push(letter))?;
    mail.start_link();
    let lost = match resumed {
        reliable::Resumption::Complete => 0,
        reliable::Resumption::Lost(lost) => lost,
    };
    Ok((lost, receipts))
}

/// What belonged to the link before is over.
fn begin_anew(world: &mut World, session: Entity) {
    if let Ok(mut entity) = world.get_entity_mut(session) {
        entity.insert(SessionInputs::default()).remove::<Away>();
    }
    if let Some(mut limits) = world.get_mut::<Limits>(session) {
        limits.start_link();
    }
}

fn welcome(
    world: &World,
    peer: &mut Peer,
    session: SessionId,
    token: ResumeToken,
    resumption: Option<Resumption>,
) {
    let control = Control::Welcome {
        session,
        tick: world.resource::<CurrentTick>().0,
        tick_rate_hz: 1.0 / world.resource::<Time<Fixed>>().timestep().as_secs_f64(),
        token,
        resumption,
    };
    send_control(peer, &control);
}

/// Tells the game, and lets it do at once what it does about that.
pub(super) fn tell<'a>(world: &mut World, event: impl Event<Trigger<'a>: Default>) {
    world.trigger(event);
    world.flush();
}

/// Gives a session a link. Closes that, and returns `false`, if the game has ended the session meanwhile: observers of
/// what a session gets may do so.
fn attach(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    session: Entity,
    link: LinkId,
    mut peer: Peer,
    info: &PeerInfo,
) -> bool {
    let tick = world.resource::<CurrentTick>().0;
    let lives = |world: &World| world.get::<Session>(session).is_some();
    if !lives(world) {
        links.close(now, link, &mut peer, &departures::ended_by_game());
        return false;
    }
    links.sessions.insert(link, session);
    world.entity_mut(session).insert((
        Link {
            id: link,
            peer,
            kind: info.kind,
            last_heard: now,
            last_sent: now,
            bytes_out: 0,
        },
        LinkedOver(info.kind),
        LinkStats::default(),
        Outgoing::new(tick, now),
    ));
    if lives(world) {
        world.resource_scope(|world, mut replication: Mut<Replication>| {
            rooms::show_room(world, &mut replication.archive, tick, session);
        });
        super::tokens::issue(world, session, info);
    }
    lives(world)
}

/// A session that came back from elsewhere counts there.
fn move_address(world: &mut World, now: Duration, session: Entity, info: &PeerInfo) {
    if world.get::<Session>(session).is_none() {
        return;
    }
    let before: Option<IpAddr> = world.get::<ClientAddress>(session).map(|at| at.0.ip());
    let after = info.addr.map(|addr| addr.ip());
    let mut doors = world.resource_mut::<Doors>();
    match (before, after) {
        (Some(before), Some(after)) => doors.change_address(now, before, after),
        (Some(before), None) => doors.leave(before),
        // One who was let in before is not turned away for where they come from now.
        (None, Some(after)) => drop(doors.enter(now, after)),
        (None, None) => {}
    }
    let mut entity = world.entity_mut(session);
    match info.addr {
        Some(addr) => entity.insert(ClientAddress(addr)),
        None => entity.remove::<ClientAddress>(),
    };
}

/// Takes a session's link away, and all that belongs to it.
fn detach(world: &mut World, links: &mut Links, session: Entity) {
    let Ok(mut entity) = world.get_entity_mut(session) else {
        return;
    };
    if let Some(link) = entity.take::<Link>() {
        links.drop_link(link.id);
    }
    entity.remove::<(Outgoing, LinkedOver)>();
}

/// A link is gone: its session is away, or ends with it.
pub(super) fn lose_link(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    session: Entity,
    reason: DisconnectReason,
) {
    let window = world.resource::<SessionSettings>().0.resume_window;
    if !reason.is_loss() || window.is_zero() {
        departures::end_session(world, links, now, session, reason);
        return;
    }
    debug!("session {session} has lost its link: {reason}");
    if let Some(mut link) = world.get_mut::<Link>(session) {
        // Its client may still hear that it should come back.
        let id = link.id;
        link.peer.goodbye(now, &reason, &mut links.over(now, id));
    }
    detach(world, links, session);
    if let Some(mut mail) = world.get_mut::<SessionMail>(session) {
        mail.0.outbox.set_away();
    }
    if let Ok(mut entity) = world.get_entity_mut(session) {
        entity.insert(Away {
            since: now,
            reason: reason.clone(),
        });
        let away = SessionAway {
            entity: session,
            reason,
        };
        tell(world, away);
    }
}

/// Ends the sessions that have been away for too long.
pub(super) fn expire(
    world: &mut World,
    away: &mut QueryState<(Entity, &'static Away)>,
    links: &mut Links,
    now: Duration,
) {
    let window = world.resource::<SessionSettings>().0.resume_window;
    let over: Vec<_> = away
        .iter(world)
        .filter(|(_, away)| now.saturating_sub(away.since) > window)
        .map(|(session, away)| (session, away.reason.clone()))
        .collect();
    for (session, reason) in over {
        departures::end_session(world, links, now, session, reason);
    }
}

/// Takes from an entity what makes it a session, but for [`Session`].
pub(super) fn clear(entity: &mut EntityWorldMut) {
    entity.remove::<(
        (Keys, Limits, SessionInputs, SessionMail),
        (Link, LinkedOver, LinkStats, ClientAddress, Outgoing),
        (Away, Identity),
    )>();
}

/// The client has its new resume token.
pub(super) fn confirm_token(world: &mut World, session: Entity, receipt: u32) {
    if let Some(mut keys) = world.get_mut::<Keys>(session) {
        keys.0.confirm(receipt);
    }
}

pub(super) fn send_control(peer: &mut Peer, control: &Control) {
    let mut bytes = Vec::new();
    if serial::encode(control, &mut bytes).is_ok() {
        peer.send_message(CONTROL_CHANNEL, &SharedBytes::for_one(bytes));
    }
}

/// Bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> [u8; N] {
    renetcode::generate_random_bytes()
}
