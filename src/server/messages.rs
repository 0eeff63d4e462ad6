//! Typed messages at the server's end.

use bevy::ecs::system::SystemParam;
use bevy::prelude::*;

use super::collect::{self, CollectSystems, NetIds};
use super::departures::Departures;
use super::links::{Link, SessionMail};
use super::send::SendSchedule;
use super::types::ServerTypes;
use crate::message::Letter;
use crate::message::{
    Channel, Delivered, FromClient, MAX_SERVER_MESSAGE_BYTES, MAX_UNRELIABLE_MESSAGE_BYTES,
    MessageRule, NetMessage, Stamp, Target, ToClients, Undeliverable,
};
use crate::registry::Registry;
use crate::registry::give_back;
use crate::rooms::RoomMembers;
use crate::schedule::{CurrentTick, TandemSystems};
use crate::session::Session;
use crate::wire::serial;

/// Sends and receives registered messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessagePlugin;

impl Plugin for MessagePlugin {
    fn build(&self, _: &mut App) {}

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        for fns in ServerTypes::of(app).messages.clone().iter() {
            (fns.install)(app);
        }
    }
}

pub(crate) fn install<M: NetMessage>(app: &mut App) {
    app.add_message::<FromClient<M>>()
        .add_message::<ToClients<M>>()
        .add_message::<Delivered<M>>()
        .add_message::<Undeliverable<M>>()
        .add_systems(
            PostUpdate,
            // What a message names is then in the snapshot of whose tick it carries the stamp.
            send::<M>
                .in_set(TandemSystems::Collect)
                .before(CollectSystems::Entities),
        );
}

pub(crate) fn receive<M: NetMessage>(
    world: &mut World,
    session: Entity,
    bytes: &[u8],
) -> Result<(), serial::SerialError> {
    let locals = |net| collect::living(world, net);
    let rule = world.resource::<MessageRule<M>>();
    let message = rule.decode(bytes, &locals, &mut |_| {})?;
    world.write_message(FromClient { session, message });
    Ok(())
}

/// Who can be written to.
#[derive(SystemParam)]
struct Readers<'w, 's> {
    mailboxes: Query<'w, 's, (&'static mut SessionMail, Option<&'static mut Link>)>,
    sessions: Query<'w, 's, Entity, (With<SessionMail>, With<Session>)>,
    rooms: Query<'w, 's, &'static RoomMembers>,
    /// The player of a listen server is told elsewhere.
    locals: Query<'w, 's, (), (With<Session>, Without<SessionMail>)>,
    departures: ResMut<'w, Departures>,
    registry: Res<'w, Registry>,
    commands: Commands<'w, 's>,
}

impl Readers<'_, '_> {
    /// Lists who gets a message: nobody else is looked at.
    fn find(&self, to: Target, found: &mut Vec<Entity>) {
        match to {
            Target::All => found.extend(self.sessions.iter().chain(self.departures.sessions())),
            Target::AllExcept(other) => {
                let all = self.sessions.iter().chain(self.departures.sessions());
                found.extend(all.filter(|session| *session != other));
            }
            Target::Session(session) => found.push(session),
            Target::Room(room) => {
                let members = self.rooms.get(room).into_iter().flat_map(RoomMembers::iter);
                found.extend(members.filter(|member| self.sessions.contains(*member)));
            }
        }
    }

    /// Queues a message. Returns `false` if it will not be sent.
    fn post(&mut self, session: Entity, channel: Channel, letter: Letter) -> bool {
        let (mail, link) = match self.departures.gone(session) {
            Some(gone) => (&mut gone.mail, gone.link.as_mut()),
            None => match self.mailboxes.get_mut(session) {
                Ok((mail, link)) => (&mut mail.into_inner().0, link.map(Mut::into_inner)),
                Err(_) => return self.locals.contains(session),
            },
        };
        let peer = link.map(|link| &mut link.peer);
        let posted = mail.post(peer, &self.registry.messages, channel, letter);
        let Some(dropped) = posted else {
            debug!("a message to session {session} is not sent: too much waits for it");
            return false;
        };
        give_back(
            &mut self.commands,
            &self.registry,
            collect::living,
            session,
            dropped,
        );
        true
    }
}

/// Encoded once, whoever many it is for.
fn send<M: NetMessage>(
    mut messages: MessageReader<ToClients<M>>,
    mut undeliverable: MessageWriter<Undeliverable<M>>,
    rule: Res<MessageRule<M>>,
    schedule: Res<SendSchedule>,
    tick: Res<CurrentTick>,
    mut readers: Readers,
    nets: NetIds,
    mut found: Local<Vec<Entity>>,
) {
    let stamp = Stamp::of(schedule.next_snapshot(tick.0));
    for &ToClients { to, ref message } in messages.read() {
        found.clear();
        readers.find(to, &mut found);
        if found.is_empty() {
            continue;
        }
        let letter = rule.encode(message, Some(stamp), &|entity| {
            schedule.owe_snapshot();
            nets.get(entity)
        });
        let letter = match letter
            .map_err(|error| error.to_string())
            .and_then(fits(rule.channel))
        {
            Ok(letter) => Some(letter),
            Err(error) => {
                error!("a message is not sent: {error}");
                None
            }
        };
        let letter = match to {
            Target::Session(_) => letter.map(Letter::for_one),
            _ => letter,
        };
        for &session in &found {
            let is_sent = letter
                .as_ref()
                .is_some_and(|letter| readers.post(session, rule.channel, letter.clone()));
            if !is_sent {
                undeliverable.write(Undeliverable {
                    session,
                    message: message.clone(),
                });
            }
        }
    }
}

/// Whether a message may go over a channel.
fn fits(channel: Channel) -> impl Fn(Letter) -> Result<Letter, String> {
    let max_bytes = match channel {
        Channel::Unreliable => MAX_UNRELIABLE_MESSAGE_BYTES,
        _ => MAX_SERVER_MESSAGE_BYTES,
    };
    move |letter| match letter.body.bytes().len() {
        bytes if bytes > max_bytes => Err(format!(
            "it has {bytes} bytes, and at most {max_bytes} are possible on {channel:?}; split it"
        )),
        _ => Ok(letter),
    }
}

#[cfg(test)]
mod tests {
    use bevy::ecs::system::RunSystemOnce;

    use super::*;
    use crate::link::mailbox::Mailbox;
    use crate::protocol::reliable::{OutboxLimits, WhenFull};
    use crate::rooms::{InRoom, Room};
    use crate::server::TandemServerPlugins;
    use crate::session::SessionId;

    #[test]
    fn a_message_looks_only_at_those_whom_it_is_for() {
        let mut app = App::new();
        app.add_plugins((MinimalPlugins, TandemServerPlugins::default()));
        app.finish();
        app.cleanup();
        let world = app.world_mut();
        let room = world.spawn(Room).id();
        let sessions: Vec<_> = (0..1_000)
            .map(|n| {
                let session = Session {
                    id: SessionId(n),
                    name: "Ada".into(),
                    platform: String::new(),
                };
                let mail = Mailbox::new(OutboxLimits::SERVER, WhenFull::Refuse);
                world.spawn((session, SessionMail(mail))).id()
            })
            .collect();
        world.entity_mut(sessions[7]).insert(InRoom(room));
        world.spawn(InRoom(room));
        let mut find = |to| {
            let find = move |readers: Readers| {
                let mut found = Vec::new();
                readers.find(to, &mut found);
                found
            };
            world
                .run_system_once(find)
                .expect("all its resources are there")
        };
        assert_eq!(find(Target::Session(sessions[3])), [sessions[3]]);
        assert_eq!(find(Target::Room(room)), [sessions[7]]);
        assert_eq!(find(Target::Room(sessions[1])), []);
        assert_eq!(find(Target::All).len(), 1_000);
        let others = find(Target::AllExcept(sessions[0]));
        assert!(others.len() == 999 && !others.contains(&sessions[0]));
    }
}
