//! What inputs cost: on the client once per tick, on the server once per client and tick.

use bevy_tandem::protocol::input::{
    EncodeLimits, InputBuffer, InputHistory, InputMessage, MAX_INPUTS,
};
use bevy_tandem::tick::{Tick, Ticks};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// How a player plays, as the input of eight bytes for a tick.
#[derive(Clone, Copy, Debug)]
enum Player {
    /// Always the same.
    Holding,
    /// Two bytes change every tick, as a mouse's do.
    Aiming,
    /// Nothing like the tick before.
    Noise,
}

const PLAYERS: [Player; 3] = [Player::Holding, Player::Aiming, Player::Noise];

impl Player {
    fn input(self, tick: u32) -> [u8; 8] {
        let scrambled = u64::from(tick).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match self {
            Self::Holding => *b"FORWARDS",
            Self::Aiming => {
                let [a, b, ..] = scrambled.to_be_bytes();
                [1, 0, 0, 0, a, b, 0, 0]
            }
            Self::Noise => scrambled.to_le_bytes(),
        }
    }

    fn history(self) -> InputHistory {
        let mut history = InputHistory::new();
        for tick in 0..MAX_INPUTS as u32 {
            history
                .push(Tick(tick), &self.input(tick))
                .expect("eight bytes");
        }
        history
    }

    fn message(self) -> Vec<u8> {
        let mut message = Vec::new();
        self.history().encode(&mut message, EncodeLimits::default());
        message
    }
}

#[divan::bench(args = PLAYERS)]
fn push(bencher: Bencher, player: Player) {
    let mut history = player.history();
    let mut tick = MAX_INPUTS as u32;
    bencher.bench_local(|| {
        let pushed = history.push(Tick(tick), &black_box(player.input(tick)));
        tick += 1;
        pushed
    });
}

/// Sixteen inputs into one message.
#[divan::bench(args = PLAYERS)]
fn encode_16(bencher: Bencher, player: Player) {
    let history = player.history();
    let mut message = Vec::with_capacity(256);
    bencher.bench_local(|| {
        message.clear();
        history.encode(&mut message, EncodeLimits::default());
        black_box(&message).len()
    });
}

/// Checks a message of sixteen inputs and reads it out.
#[divan::bench(args = PLAYERS)]
fn decode_16(bencher: Bencher, player: Player) {
    let message = player.message();
    bencher.bench_local(|| {
        let mut bytes = 0;
        if let Ok(message) = InputMessage::parse(black_box(&message), Tick(0)) {
            message.for_each(|_, input| bytes += black_box(input).len());
        }
        bytes
    });
}

/// A tick of the server for one client: a message of one new input and fifteen known ones comes in,
/// an input is taken out.
#[divan::bench(args = PLAYERS)]
fn receive_and_take(bencher: Bencher, player: Player) {
    let mut message = player.message();
    let mut buffer = InputBuffer::default();
    let mut tick = Tick(0);
    bencher.bench_local(|| {
        tick += Ticks(1);
        message[1..3].copy_from_slice(&((tick + Ticks(4)).0 as u16).to_le_bytes());
        let received = buffer.receive(tick, black_box(&message));
        black_box(buffer.take(tick + Ticks(1)));
        received
    });
}

#[divan::bench]
fn insert_and_take(bencher: Bencher) {
    let mut buffer = InputBuffer::default();
    let mut tick = Tick(0);
    bencher.bench_local(|| {
        tick += Ticks(1);
        buffer.insert(tick, tick + Ticks(4), black_box(b"FORWARDS"));
        black_box(buffer.take(tick + Ticks(1)));
    });
}

#[divan::bench]
fn take_missing(bencher: Bencher) {
    let mut buffer = InputBuffer::default();
    buffer.insert(Tick(0), Tick(1), b"FORWARDS");
    let mut tick = Tick(0);
    bencher.bench_local(|| {
        tick += Ticks(1);
        black_box(buffer.take(tick));
    });
}
