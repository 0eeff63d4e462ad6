use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::tick::{Tick, Ticks};

fn decoded(message: &[u8], near: Tick) -> Vec<(Tick, Vec<u8>)> {
    let mut inputs = Vec::new();
    InputMessage::parse(message, near)
        .expect("well-formed")
        .for_each(|tick, input| inputs.push((tick, input.to_vec())));
    inputs
}

fn history(first: Tick, inputs: &[impl AsRef<[u8]>]) -> InputHistory {
    let mut history = InputHistory::new();
    for (i, input) in inputs.iter().enumerate() {
        history
            .push(first + Ticks(i as u32), input.as_ref())
            .expect("short enough");
    }
    history
}

#[test]
fn a_held_key_costs_a_few_bytes() {
    let held = history(Tick(100), &[b"WASD"; 10]);
    let mut message = Vec::new();
    assert_eq!(held.encode(&mut message, EncodeLimits::default()), 10);
    assert_eq!(message.len(), 9, "{message:02x?}");

    let long = history(Tick(100), &[b"WASD"; 64]);
    message.clear();
    let limits = EncodeLimits {
        max_inputs: 64,
        ..EncodeLimits::default()
    };
    assert_eq!(long.encode(&mut message, limits), 64);
    assert_eq!(message.len(), 9, "however long it is held");
}

#[test]
fn a_byte_budget_cuts_the_oldest() {
    let inputs: Vec<[u8; 8]> = (0..16u64)
        .map(|i| (i * 0x0101_0101_0101_0101).to_le_bytes())
        .collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(|input| &input[..]).collect();
    let history = history(Tick(0), &inputs);
    for max_bytes in 0..200 {
        let mut message = b"before".to_vec();
        let limits = EncodeLimits {
            max_bytes,
            ..EncodeLimits::default()
        };
        let count = history.encode(&mut message, limits);
        let message = message.strip_prefix(b"before").expect("only appended to");
        assert!(message.len() <= max_bytes);
        assert_eq!(
            count == 0,
            max_bytes < 3 + 9,
            "{max_bytes} bytes hold {count} inputs"
        );
        if count > 0 {
            let got = decoded(message, Tick(0));
            assert_eq!(got.len(), count);
            for (back, (tick, input)) in got.iter().enumerate() {
                assert_eq!(*tick, Tick(15 - back as u32), "newest first");
                assert_eq!(input, inputs[15 - back]);
            }
        }
    }
}

#[test]
fn acknowledged_inputs_are_not_sent_again() {
    let mut history = history(Tick(u32::MAX - 3), &[b"a"; 10]); // newest: 5
    let mut message = Vec::new();
    history.handle_ack(Tick(2));
    history.handle_ack(Tick(0)); // older news
    history.handle_ack(Tick(90)); // never pushed
    assert_eq!(history.encode(&mut message, EncodeLimits::default()), 3);
    history.handle_ack(Tick(5));
    message.clear();
    assert_eq!(history.encode(&mut message, EncodeLimits::default()), 0);
    assert!(message.is_empty());
    assert_eq!(
        history.get(Tick(u32::MAX)),
        Some(&b"a"[..]),
        "remembered for replays"
    );
}

#[test]
fn a_clock_that_snapped_back_replaces_what_was_queued() {
    let mut client = history(Tick(100), &[b"old"; 10]);
    let mut server = InputBuffer::default();
    let mut message = Vec::new();
    client.encode(&mut message, EncodeLimits::default());
    server.receive(Tick(90), &message).expect("well-formed");
    let stale = message.clone();

    for tick in 95..100 {
        client.push(Tick(tick), b"new").expect("short enough");
    }
    message.clear();
    client.encode(&mut message, EncodeLimits::default());
    server.receive(Tick(91), &message).expect("well-formed");
    server.receive(Tick(91), &stale).expect("well-formed");
    assert_eq!(server.newest(), Some(Tick(99)));
    assert_eq!(server.take(Tick(95)), Taken::Fresh(b"new"));
    for tick in 96..100 {
        server.take(Tick(tick));
    }
    assert_eq!(
        server.take(Tick(100)),
        Taken::Repeated(b"new"),
        "the old plan is void"
    );
}

#[test]
fn a_missing_input_repeats_the_last_and_then_lets_go() {
    let mut buffer = InputBuffer::new(InputBufferSettings {
        max_repeats: Ticks(2),
        ..InputBufferSettings::default()
    });
    assert_eq!(buffer.take(Tick(8)), Taken::None, "not started");
    assert_eq!(buffer.insert(Tick(8), Tick(10), b"go"), Arrival::Queued);
    assert_eq!(buffer.take(Tick(9)), Taken::None, "still before the start");
    assert_eq!(buffer.take(Tick(10)), Taken::Fresh(b"go"));
    assert_eq!(buffer.take(Tick(11)), Taken::Repeated(b"go"));
    assert_eq!(buffer.take(Tick(12)), Taken::Repeated(b"go"));
    assert_eq!(buffer.take(Tick(13)), Taken::None);
    let counts = buffer.counts();
    assert_eq!(
        (counts.received, counts.missing, counts.repeated),
        (1, 3, 2)
    );
}

#[test]
fn a_late_input_counts_once_and_is_repeated_from_then_on() {
    let mut buffer = InputBuffer::default();
    buffer.insert(Tick(0), Tick(1), b"left");
    buffer.take(Tick(1));
    buffer.take(Tick(2));
    for _ in 0..5 {
        buffer.insert(Tick(2), Tick(2), b"right");
    }
    assert_eq!(buffer.counts().late, 1, "copies do not count");
    assert_eq!(buffer.take(Tick(3)), Taken::Repeated(b"right"));
}

#[test]
fn what_is_too_far_ahead_is_dropped_and_may_come_again() {
    let mut buffer = InputBuffer::default();
    assert_eq!(buffer.insert(Tick(0), Tick(65), b"x"), Arrival::TooFarAhead);
    assert_eq!(buffer.newest(), None, "not acknowledged");
    assert_eq!(buffer.insert(Tick(1), Tick(65), b"x"), Arrival::Queued);
    assert_eq!(buffer.insert(Tick(1), Tick(65), b"x"), Arrival::Duplicate);
    assert_eq!(
        buffer.insert(Tick(1), Tick(2), &[0; 256]),
        Arrival::TooLarge
    );
    assert_eq!(buffer.counts().too_far_ahead, 1);
}

/// Inputs as players make them: mostly the same, sometimes a byte or everything different.
fn player(rng: &mut fastrand::Rng, previous: &[u8]) -> Vec<u8> {
    let mut input = previous.to_vec();
    match rng.u8(..100) {
        0..60 => {}
        60..90 if !input.is_empty() => {
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..input.len());
                input[at] = rng.u8(..);
            }
        }
        _ => {
            let len = match rng.u8(..10) {
                0 => rng.usize(..=MAX_INPUT_BYTES),
                _ => rng.usize(..=12),
            };
            input = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
        }
    }
    input
}

proptest! {
    /// Every input the server uses for a tick is what the client pushed for it, or is counted.
    #[test]
    fn the_server_uses_what_was_pushed_or_counts_it(
        seed: u64,
        first: u32,
        loss in 0.0..0.6f64,
        jitter in 0u32..12,
        lead in 0u32..20,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut client = InputHistory::new();
        let mut server = InputBuffer::default();
        let mut pushed: HashMap<Tick, Vec<u8>> = HashMap::new();
        let mut wire: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut acks: Vec<(u32, Tick)> = Vec::new();
        let (mut fresh, mut not_fresh) = (0, 0);
        let mut input = Vec::new();
        let limits = EncodeLimits { max_bytes: 300, ..EncodeLimits::default() };
        for step in 0..300u32 {
            let client_tick = Tick(first.wrapping_add(step + lead));
            let server_tick = Tick(first.wrapping_add(step));
            input = player(&mut rng, &input);
            client.push(client_tick, &input).expect("short enough");
            pushed.insert(client_tick, input.clone());
            let mut message = Vec::new();
            client.encode(&mut message, limits);
            for _ in 0..rng.usize(1..3) {
                if !message.is_empty() && rng.f64() >= loss {
                    wire.push((step + 2 + rng.u32(0..=jitter), message.clone()));
                }
            }
            wire.retain(|(due, message)| {
                if *due <= step {
                    server.receive(server_tick, message).expect("well-formed");
                }
                *due > step
            });
            acks.retain(|(due, tick)| {
                if *due <= step {
                    client.handle_ack(*tick);
                }
                *due > step
            });
            if let Some(newest) = server.newest() && rng.f64() >= loss {
                acks.push((step + 2 + rng.u32(0..=jitter), newest));
            }
            let next = server_tick + Ticks(1);
            match server.take(next) {
                Taken::Fresh(used) => {
                    fresh += 1;
                    prop_assert_eq!(Some(used), pushed.get(&next).map(Vec::as_slice));
                }
                Taken::Repeated(used) => {
                    not_fresh += 1;
                    prop_assert!(pushed.values().any(|input| input == used));
                }
                Taken::None => {}
            }
        }
        let counts = server.counts();
        prop_assert_eq!(counts.repeated, not_fresh);
        prop_assert!(counts.repeated <= counts.missing);
        prop_assert!(counts.late <= counts.received);
        prop_assert!(fresh + counts.late <= counts.received);
        if loss < 0.1 && lead > 16 + jitter {
            prop_assert!(counts.late == 0, "lead enough, but {:?}", counts);
        }
    }

    #[test]
    fn any_inputs_survive_encoding(
        inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..64),
        first: u32,
    ) {
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let history = history(Tick(first), &inputs);
        let mut message = Vec::new();
        let limits = EncodeLimits { max_inputs: 64, max_bytes: usize::MAX };
        let count = history.encode(&mut message, limits);
        prop_assert_eq!(count, inputs.len());
        let mut got = decoded(&message, Tick(first.wrapping_add(1000)));
        got.reverse();
        for (i, (tick, input)) in got.iter().enumerate() {
            prop_assert_eq!(*tick, Tick(first.wrapping_add(i as u32)));
            prop_assert_eq!(&input[..], inputs[i]);
        }
    }

    #[test]
    fn hostile_bytes_neither_panic_nor_grow_memory(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..64),
        server_tick: u32,
    ) {
        let mut buffer = InputBuffer::default();
        for (i, message) in messages.iter().enumerate() {
            let now = Tick(server_tick.wrapping_add(i as u32));
            let _ = buffer.receive(now, message);
            buffer.take(now + Ticks(1));
        }
        prop_assert!(buffer.queued.bytes.len() <= SLOTS * MAX_INPUT_BYTES);
        prop_assert!(buffer.last.len() <= MAX_INPUT_BYTES);
    }

    /// Mutated honest messages reach deeper than noise.
    #[test]
    fn damaged_messages_are_refused_or_harmless(seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut client = InputHistory::new();
        let mut server = InputBuffer::default();
        let mut input = Vec::new();
        for tick in 0..40 {
            input = player(&mut rng, &input);
            client.push(Tick(tick), &input).expect("short enough");
            let mut message = Vec::new();
            client.encode(&mut message, EncodeLimits::default());
            for _ in 0..rng.usize(..4) {
                if !message.is_empty() {
                    let at = rng.usize(..message.len());
                    message[at] = rng.u8(..);
                    message.truncate(rng.usize(at..=message.len()));
                }
            }
            let _ = server.receive(Tick(tick), &message);
            server.take(Tick(tick + 1));
        }
    }
}
