//! Connect tokens for the links that clients will need next.
//!
//! A connect token opens one link. A client that lost it would have to ask the back end for another before it can come
//! back, so the server, which has the same key, gives each client one in advance, over the link that is encrypted for
//! that client alone.

use std::time::Duration;

use bevy::platform::collections::HashMap;
use bevy::prelude::*;

use super::ListenAddresses;
use super::links::Link;
use super::sessions::{SessionSettings, random, send_control};
use crate::protocol::handshake::Control;
use crate::transport::udp::Auth;
use crate::transport::udp::token::{self, TokenBuilder};
use crate::transport::{PeerInfo, TokenUse};

/// A new token is sent this often, so that the one a client has is always good for longer than its session waits.
const REFRESH: Duration = Duration::from_secs(60);

/// What the back end put into a player's connect token, beside who they are.
#[derive(Component, Clone, Debug, PartialEq, Eq)]
pub struct TokenData(pub Box<[u8; 256]>);

/// Who may come with the tokens that this server has made.
#[derive(Resource, Default)]
pub(super) struct NextTokens {
    owners: HashMap<u64, Entity>,
}

/// The ids in a session's last two tokens: the newest may still be on its way when the one before is used.
#[derive(Component)]
pub(super) struct Issued {
    ids: [Option<u64>; 2],
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

    pub fn forget(&mut self, session: Entity) {
        self.owners.retain(|_, owner| *owner != session);
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

/// Gives a client who came with a connect token its next one.
pub(super) fn issue(world: &mut World, session: Entity, info: &PeerInfo) {
    if !info.secure {
        return;
    }
    if let Some(data) = &info.user_data {
        world.entity_mut(session).insert(TokenData(data.clone()));
    }
    renew(world, session);
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
    let id = u64::from_le_bytes(random());
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
    let before = world.get::<Issued>(session).map(|issued| issued.ids);
    let ids = [Some(id), before.and_then(|ids| ids[0])];
    if let Some(mut link) = world.get_mut::<Link>(session) {
        send_control(&mut link.peer, &Control::ConnectToken(token));
    }
    world.entity_mut(session).insert(Issued { ids, at: now });
    let mut tokens = world.resource_mut::<NextTokens>();
    if let Some(oldest) = before.and_then(|ids| ids[1]) {
        tokens.owners.remove(&oldest);
    }
    tokens.owners.insert(id, session);
}

#[cfg(test)]
mod tests {
    use super::*;

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
