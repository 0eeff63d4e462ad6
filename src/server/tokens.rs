//! Connect tokens for the links that clients will need next.
//!
//! A connect token opens one link. A client that lost it would have to ask the back end for another before it can come
//! back, so the server, which has the same key, gives each client some in advance, over the link that is encrypted for
//! that client alone. One would not do: over UDP, a token is of no more use once the server has seen it, whether or not
//! the client got an answer.

use std::collections::VecDeque;
use std::time::Duration;

use bevy::ecs::world::DeferredWorld;
use bevy::platform::collections::HashMap;
use bevy::prelude::*;

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use super::ListenAddresses;
use super::links::Link;
use super::sessions::{SessionSettings, random, send_control};
use crate::protocol::handshake::{Control, MAX_CONNECT_TOKENS};
use crate::transport::udp::Auth;
use crate::transport::udp::token::{self, TokenBuilder};
use crate::transport::{PeerInfo, TokenUse};

/// A new token is sent this often, so that the two newest that a client has are always good for longer than its session
/// waits.
const REFRESH: Duration = Duration::from_secs(60);

/// How many a client gets at first.
const FIRST: usize = 2;

/// How many tokens of a session count: those that a client may try.
const REMEMBERED: usize = MAX_CONNECT_TOKENS;

/// What the back end put into a player's connect token, beside who they are.
#[derive(Component, Clone, Debug, PartialEq, Eq)]
pub struct TokenData(pub Box<[u8; 256]>);

/// Who may come with the tokens that this server has made.
#[derive(Resource, Default)]
pub(super) struct NextTokens {
    owners: HashMap<u64, Entity>,
}

/// The ids in a session's last tokens, newest last.
#[derive(Component)]
pub(super) struct Issued {
    ids: VecDeque<u64>,
    at: Duration,
}

impl NextTokens {
    /// The session for which a link's token was made, if this server made it.
    pub fn owner(&self, info: &PeerInfo) -> Option<Entity> {
        self.owners
            .get(&info.client_id)
            .copied()
            .filter(|_| info.secure)
    }

    /// Whether a token with this id was made by a server with this key for a session that has ended, or that has newer
    /// ones. The id is nobody's: it must not be taken for a player's.
    pub fn is_outdated(&self, key: &[u8; 32], client_id: u64) -> bool {
        !self.owners.contains_key(&client_id) && client_id == server_id(key, client_id as u32)
    }
}

/// Connect tokens that were used, over whatever transport: each transport sees only its own.
#[derive(Resource, Default)]
pub(super) struct UsedTokens {
    /// When each expires, in seconds since 1970.
    expires: HashMap<[u8; 16], u64>,
}

/// More than this cannot be remembered, some 3 MB. With tokens that are valid for 30 s, 2,000 players a second.
const MAX_USED_TOKENS: usize = 65_536;

/// Why nobody gets in with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenRefusal {
    #[error("the connect token was used before; ask the back end for a new one")]
    Used,
    #[error("too many players at once; try again in a minute")]
    TooMany,
}

impl UsedTokens {
    /// Uses a token.
    pub fn take(&mut self, token: TokenUse, now_unix: u64) -> Result<(), TokenRefusal> {
        if self.expires.contains_key(&token.tag) {
            return Err(TokenRefusal::Used);
        }
        if self.expires.len() >= MAX_USED_TOKENS {
            self.expires.retain(|_, expires| *expires > now_unix);
            if self.expires.len() >= MAX_USED_TOKENS {
                return Err(TokenRefusal::TooMany);
            }
        }
        self.expires.insert(token.tag, token.expires);
        Ok(())
    }
}

/// A client id for a token that a server makes itself: one of four billion that only those who have the key can tell
/// from the ids of players.
fn server_id(key: &[u8; 32], random: u32) -> u64 {
    let mut nonce = *b"client ids of servers: \0";
    nonce[20..].copy_from_slice(&random.to_le_bytes());
    let mut mark = [0; 4];
    XChaCha20Poly1305::new(key.into())
        .encrypt_in_place_detached(XNonce::from_slice(&nonce), b"", &mut mark)
        .expect("four bytes are not too many");
    u64::from(u32::from_le_bytes(mark)) << 32 | u64::from(random)
}

/// Gives a client who came with a connect token its next one.
pub(super) fn issue(world: &mut World, session: Entity, info: &PeerInfo) {
    if !info.secure {
        return;
    }
    if let Some(data) = &info.user_data
        && let Ok(mut entity) = world.get_entity_mut(session)
    {
        entity.insert(TokenData(data.clone()));
    }
    for _ in 0..FIRST {
        renew(world, session);
    }
}

/// The session has ended, and with it what its tokens are good for.
pub(super) fn forget(world: &mut DeferredWorld, session: Entity) {
    let issued = world.get_mut::<Issued>(session);
    let ids = issued.map(|mut issued| std::mem::take(&mut issued.ids));
    let mut tokens = world.resource_mut::<NextTokens>();
    for id in ids.into_iter().flatten() {
        tokens.owners.remove(&id);
    }
}

/// Sends new tokens to those whose last one is old.
pub(super) fn refresh(world: &mut World, due: &mut QueryState<(Entity, &Issued), With<Link>>) {
    let now = world.resource::<Time<Real>>().elapsed();
    let due: Vec<_> = due
        .iter(world)
        .filter(|(_, issued)| now.saturating_sub(issued.at) > REFRESH)
        .map(|(session, _)| session)
        .collect();
    for session in due {
        renew(world, session);
    }
}

fn renew(world: &mut World, session: Entity) {
    let settings = &world.resource::<SessionSettings>().0;
    let Auth::Secure { private_key } = &settings.auth else {
        return;
    };
    let addresses = match &settings.public_addresses[..] {
        [] => world.resource::<ListenAddresses>().0.clone(),
        public => public.to_vec(),
    };
    let id = server_id(private_key, u32::from_le_bytes(random()));
    let mut builder =
        TokenBuilder::new(id, addresses).valid_for(settings.resume_window + 2 * REFRESH);
    if let Some(TokenData(data)) = world.get::<TokenData>(session) {
        builder = builder.user_data(**data);
    }
    let token = match builder.issue(private_key) {
        Ok(token) => token::to_bytes(&token),
        Err(error) => {
            warn_once!("a client gets no token for its next link: {error}");
            return;
        }
    };
    let now = world.resource::<Time<Real>>().elapsed();
    if let Some(mut link) = world.get_mut::<Link>(session) {
        send_control(&mut link.peer, &Control::ConnectToken(token));
    }
    let Ok(mut entity) = world.get_entity_mut(session) else {
        return;
    };
    let mut ids = entity
        .take::<Issued>()
        .map(|issued| issued.ids)
        .unwrap_or_default();
    let oldest = match ids.len() < REMEMBERED {
        true => None,
        false => ids.pop_front(),
    };
    ids.push_back(id);
    entity.insert(Issued { ids, at: now });
    let tokens = &mut world.resource_mut::<NextTokens>().owners;
    if let Some(oldest) = oldest {
        tokens.remove(&oldest);
    }
    tokens.insert(id, session);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_servers_are_no_players_ids_and_nobody_makes_them_without_the_key() {
        let (key, other) = ([7; 32], [8; 32]);
        let is_outdated = |key, id| NextTokens::default().is_outdated(key, id);
        for random in 0..100 {
            let id = server_id(&key, random);
            assert!(is_outdated(&key, id));
            assert!(!is_outdated(&other, id));
            assert!(!is_outdated(&key, u64::from(random)), "a player's number");
            assert!(!is_outdated(&key, id ^ 1));
        }
    }

    #[test]
    fn a_token_is_used_once_and_forgotten_when_it_has_expired() {
        let mut used = UsedTokens::default();
        let mut take = |tag: u128, expires, now| {
            let tag = tag.to_le_bytes();
            used.take(TokenUse { tag, expires }, now)
        };
        assert_eq!(take(0, 100, 50), Ok(()));
        assert_eq!(take(0, 100, 50), Err(TokenRefusal::Used));
        for tag in 1..MAX_USED_TOKENS as u128 {
            assert_eq!(take(tag, 60, 50), Ok(()));
        }
        assert_eq!(take(1 << 64, 100, 59), Err(TokenRefusal::TooMany));
        assert_eq!(take(1 << 64, 100, 60), Ok(()), "others have expired");
        assert_eq!(take(0, 100, 60), Err(TokenRefusal::Used));
        assert_eq!(used.expires.len(), 2);
    }
}
