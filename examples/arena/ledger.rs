//! Accounts for reliable messages: numbers go to the server ten times a second, and each must come back, once and in
//! order.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::prelude::*;

use crate::game::{Echo, Ping, Ship};

/// Ticks between two numbers, at 60 Hz: ten a second.
const TICKS_BETWEEN: u32 = 6;
/// What is younger than this at the end is under way, not lost.
pub const UNDER_WAY: Duration = Duration::from_secs(3);

/// Sends numbers and watches what comes back, and whether the player keeps its ship.
pub struct LedgerPlugin;

impl Plugin for LedgerPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Ledger>()
            .init_resource::<Ships>()
            .add_systems(FixedPreUpdate, send.run_if(not(replaying)))
            .add_systems(Update, (receive, watch_ship));
    }
}

/// The numbers that were sent, and what became of them.
#[derive(Resource, Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// No more are sent.
    pub is_closed: bool,
    next: u32,
    /// Sent and not back, with the time.
    open: BTreeMap<u32, Duration>,
    highest: Option<u32>,
    pub echoed: u64,
    /// Came back again, or was never sent.
    pub duplicated: u64,
    /// Came back after a later one.
    pub reordered: u64,
    ticks: u32,
}

impl Ledger {
    /// The next number to send.
    pub fn send(&mut self, now: Duration) -> u32 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, now);
        number
    }

    /// A number has come back.
    pub fn receive(&mut self, number: u32) {
        if self.open.remove(&number).is_none() {
            self.duplicated += 1;
            return;
        }
        self.echoed += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        } else {
            self.highest = Some(number);
        }
    }

    /// How many were sent.
    pub fn sent(&self) -> u64 {
        u64::from(self.next)
    }

    /// How many were sent long enough ago, and have not come back.
    pub fn lost(&self, now: Duration) -> u64 {
        let overdue = |&&sent: &&Duration| now.saturating_sub(sent) >= UNDER_WAY;
        self.open.values().filter(overdue).count() as u64
    }

    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }
}

/// The ships this player has had. One, unless something went wrong: a wreck comes back as the same entity.
#[derive(Resource, Default)]
pub struct Ships {
    current: Option<Entity>,
    /// How often the player had to take another.
    pub respawned: u64,
}

fn send(
    mut ledger: ResMut<Ledger>,
    connection: Res<Connection>,
    real: Res<Time<Real>>,
    mut pings: MessageWriter<ToServer<Ping>>,
) {
    // While the client tries to come back there is a session, too: these wait, and must arrive.
    if connection.session().is_none() || ledger.is_closed {
        return;
    }
    ledger.ticks += 1;
    if ledger.ticks.is_multiple_of(TICKS_BETWEEN) {
        let number = ledger.send(real.elapsed());
        pings.write(ToServer(Ping { number }));
    }
}

fn receive(mut ledger: ResMut<Ledger>, mut echoes: MessageReader<FromServer<Echo>>) {
    for echo in echoes.read() {
        ledger.receive(echo.number);
    }
}

fn watch_ship(
    new: Query<Entity, (With<Ship>, With<Owned>, Or<(Added<Ship>, Added<Owned>)>)>,
    mut ships: ResMut<Ships>,
) {
    for ship in &new {
        if ships.current != Some(ship) {
            ships.respawned += u64::from(ships.current.is_some());
            ships.current = Some(ship);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(60);

    fn ledger_of(count: u32) -> Ledger {
        let mut ledger = Ledger::default();
        for number in 0..count {
            assert_eq!(ledger.send(SENT), number);
        }
        ledger
    }

    #[test]
    fn what_comes_back_once_and_in_order_is_fine() {
        let mut ledger = ledger_of(3);
        (0..3).for_each(|number| ledger.receive(number));
        let trouble = [ledger.lost(LATER), ledger.duplicated, ledger.reordered];
        assert_eq!((ledger.sent(), ledger.echoed, trouble), (3, 3, [0; 3]));
        assert!(ledger.is_settled());
    }

    #[test]
    fn what_never_comes_back_is_lost_but_not_while_it_is_under_way() {
        let mut ledger = ledger_of(3);
        ledger.receive(0);
        ledger.receive(2);
        assert_eq!(ledger.lost(SENT + Duration::from_secs(2)), 0, "under way");
        assert_eq!(ledger.lost(LATER), 1);
        assert_eq!(ledger.reordered, 0, "missing is not reordered");
    }

    #[test]
    fn what_comes_back_twice_or_from_nowhere_is_duplicated() {
        let mut ledger = ledger_of(2);
        for number in [0, 0, 1, 7] {
            ledger.receive(number);
        }
        assert_eq!((ledger.echoed, ledger.duplicated), (2, 2));
    }

    #[test]
    fn what_comes_back_after_a_later_one_is_reordered() {
        let mut ledger = ledger_of(4);
        for number in [0, 2, 1, 3] {
            ledger.receive(number);
        }
        assert_eq!((ledger.echoed, ledger.reordered), (4, 1));
    }
}
