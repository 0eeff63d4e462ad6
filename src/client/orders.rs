//! What the game asks of the connection.
//!
//! It may do so from any system, observer or command: while snapshots are applied, in a tick that is replayed, while
//! another connection ends and its copies are despawned. So it waits, and is done at three moments of a frame at which
//! nothing else is under way: before datagrams are received, after snapshots are applied, and at the end. What is asked for
//! between two frames is done at once.
//!
//! But what ends a session waits for the end of the frame, so that what the game says in that frame is still sent.

use std::collections::VecDeque;

use bevy::prelude::*;

use super::connection::{self, Connection, ConnectionState};
use super::farewell::LastWords;
use super::link::{self, Link};
use super::reconnect::{self, Connector};
use crate::protocol::handshake::DisconnectReason;
use crate::transport::ClientTransport;

/// One of the game's wishes.
pub(super) enum Order {
    /// To leave.
    Disconnect,
    /// To leave what there is, and to begin a session over this link, and later others of this connector.
    Connect(Box<dyn ClientTransport>, Option<Box<dyn Connector>>),
    /// To go on with the session over this link.
    Resume(Box<dyn ClientTransport>),
    /// To let the link go.
    Cut,
}

/// What is still to be done, in the order in which it was asked for.
#[derive(Resource, Default)]
pub(super) struct Orders {
    waiting: VecDeque<Order>,
    /// A connection is being changed, and observers hear of it.
    is_busy: bool,
    /// A frame is under way: snapshots may be being applied.
    is_in_frame: bool,
}

impl Orders {
    pub fn add(&mut self, order: Order) {
        self.waiting.push_back(order);
    }
}

/// Does what the game asks for, at once if that can be done and ends no session.
pub(super) fn give(world: &mut World, order: Order) {
    let is_free = !world.contains_resource::<Link>()
        && world.get_resource::<Connection>().is_none_or(|connection| {
            matches!(
                connection.state(),
                ConnectionState::Disconnected | ConnectionState::Failed
            )
        });
    let mut orders = world.get_resource_or_init::<Orders>();
    let is_at_rest = !orders.is_busy && orders.waiting.is_empty();
    if is_at_rest && (is_free || !orders.is_in_frame && order.keeps_session()) {
        busy(world, |world| carry_out(world, order));
    } else {
        orders.add(order);
    }
}

/// Changes the connection. What observers ask for meanwhile waits.
pub(super) fn busy(world: &mut World, change: impl FnOnce(&mut World)) {
    let was_busy = std::mem::replace(&mut world.resource_mut::<Orders>().is_busy, true);
    change(world);
    world.resource_mut::<Orders>().is_busy = was_busy;
}

/// What was asked for between two frames.
pub(super) fn start_frame(world: &mut World) {
    carry_out_waiting(world, Order::keeps_session);
    world.resource_mut::<Orders>().is_in_frame = true;
}

/// Snapshots are applied, and messages told: now the game hears that the link has ended.
pub(super) fn after_apply(world: &mut World) {
    let lost = world
        .get_resource_mut::<Link>()
        .and_then(|mut link| link.lost.take());
    if let Some(reason) = lost {
        busy(world, |world| reconnect::lose(world, reason));
    }
    carry_out_waiting(world, Order::keeps_session);
}

/// All that was said in this frame is on its way.
pub(super) fn end_frame(world: &mut World) {
    carry_out_waiting(world, |_| true);
    world.resource_mut::<Orders>().is_in_frame = false;
}

/// Does what waits, up to the first that may not be done now. What is asked for meanwhile has its turn at the next moment,
/// so that two observers who answer each other do not hold up the frame.
fn carry_out_waiting(world: &mut World, may: fn(&Order) -> bool) {
    let count = world.resource::<Orders>().waiting.len();
    for _ in 0..count {
        let mut orders = world.resource_mut::<Orders>();
        if !orders.waiting.front().is_some_and(may) {
            return;
        }
        if let Some(order) = orders.waiting.pop_front() {
            busy(world, |world| carry_out(world, order));
        }
    }
}

impl Order {
    /// Whether the session goes on, and with it what is yet to be sent.
    fn keeps_session(&self) -> bool {
        matches!(self, Self::Resume(_) | Self::Cut)
    }
}

fn carry_out(world: &mut World, order: Order) {
    match order {
        Order::Disconnect => {
            connection::end(world, DisconnectReason::ClientLeft, LastWords::Wait);
        }
        Order::Connect(transport, connector) => {
            link::connect(world, transport);
            reconnect::set_connector(world, connector);
        }
        Order::Resume(transport) => reconnect::resume_over(world, transport),
        Order::Cut => link::cut(world),
    }
}
