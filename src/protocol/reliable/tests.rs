use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::Importance::{High, Low, Normal};
use super::Stream::{Ordered, Unordered};
use super::outbox::KEEP_CAPACITY;
use super::*;

fn taken(ordered: u32, unordered: u32) -> Taken {
    Taken {
        next: [ordered, unordered],
    }
}

fn small(max_messages: usize, when_full: WhenFull) -> Outbox<Vec<u8>> {
    let limits = OutboxLimits {
        max_messages,
        max_bytes: 1_000,
        window_bytes: 100,
        window_messages: 4,
    };
    Outbox::new(limits, when_full)
}

fn push(outbox: &mut Outbox<Vec<u8>>, stream: Stream, importance: Importance, id: u8) {
    let pushed = outbox.push(stream, importance, vec![id]).expect("room");
    assert!(pushed.dropped.is_empty(), "nothing had to go");
}

fn drain(outbox: &mut Outbox<Vec<u8>>) -> Vec<(Stream, u32, u8)> {
    std::iter::from_fn(|| outbox.next_to_send())
        .map(|(stream, number, body)| (stream, number, body[0]))
        .collect()
}

#[test]
fn an_unused_outbox_and_inbox_have_allocated_nothing() {
    let outbox = Outbox::<Bytes>::default();
    let queues = outbox.waiting.iter().flatten();
    assert!(queues.map(|q| q.entries.capacity()).all(|n| n == 0));
    assert!(outbox.tails.iter().all(|t| t.entries.capacity() == 0));
    let mut inbox = Inbox::default();
    for number in 0..2_000 {
        assert_eq!(inbox.accept(Unordered, number), Accept::New);
        assert_eq!(inbox.accept(Ordered, number), Accept::New);
    }
    assert!(inbox.early.is_none(), "nothing came early");
}

#[test]
fn a_burst_leaves_no_memory_behind() {
    let mut outbox = Outbox::default();
    for _ in 0..1_000 {
        let _ = outbox.push(Ordered, Normal, vec![0]).expect("room");
    }
    let mut inbox = Inbox::default();
    while let Some((stream, number, _)) = outbox.next_to_send() {
        inbox.accept(stream, number);
        outbox.handle_taken(inbox.taken(), |_| ());
    }
    assert!(outbox.is_empty() && outbox.bytes() == 0);
    assert!(outbox.waiting[1][0].entries.capacity() <= KEEP_CAPACITY);
    assert!(outbox.tails[0].entries.capacity() <= KEEP_CAPACITY);
}

#[test]
fn important_messages_overtake_and_equals_keep_their_order() {
    let mut outbox = small(100, WhenFull::Refuse);
    outbox.limits.window_messages = 100;
    push(&mut outbox, Ordered, Low, 1);
    push(&mut outbox, Ordered, Normal, 2);
    push(&mut outbox, Unordered, Normal, 3);
    push(&mut outbox, Ordered, Normal, 4);
    push(&mut outbox, Ordered, High, 5);
    assert_eq!(
        drain(&mut outbox),
        [
            (Ordered, 0, 5),
            (Ordered, 1, 2),
            (Unordered, 0, 3),
            (Ordered, 2, 4),
            (Ordered, 3, 1),
        ]
    );
}

#[test]
fn the_window_bounds_what_is_with_the_link() {
    let mut outbox = small(100, WhenFull::Refuse);
    for id in 0..6 {
        push(&mut outbox, Ordered, Normal, id);
    }
    assert_eq!(drain(&mut outbox).len(), 4);
    assert_eq!((outbox.in_flight_messages(), outbox.len()), (4, 6));
    outbox.handle_taken(taken(1, 0), |_| ());
    assert_eq!(drain(&mut outbox), [(Ordered, 4, 4)]);
}

#[test]
fn a_stream_gets_what_it_has_room_for() {
    let mut outbox = small(2_000, WhenFull::Refuse);
    outbox.limits.max_bytes = 10_000;
    for id in 0..20 {
        let _ = outbox.push(Ordered, Normal, vec![id; 30]).expect("room");
    }
    let mut give = |mut queued| {
        let before = queued;
        while let Some((_, _, body)) = outbox.next_to_stream(queued) {
            queued += body.len();
        }
        (queued - before) / 30
    };
    assert_eq!(give(0), 3, "as many as the window has bytes");
    assert_eq!(give(0), 3, "and again, though nothing was taken");
    assert_eq!(give(50), 1);
    assert_eq!(give(90), 0);
}

#[test]
fn a_message_larger_than_the_window_goes_alone_and_is_not_starved() {
    let mut outbox = small(100, WhenFull::Refuse);
    push(&mut outbox, Ordered, Normal, 1);
    let _ = outbox.push(Ordered, Normal, vec![2; 500]).expect("room");
    push(&mut outbox, Unordered, Normal, 3);
    assert_eq!(drain(&mut outbox), [(Ordered, 0, 1)]);
    outbox.handle_taken(taken(1, 0), |_| ());
    assert_eq!(drain(&mut outbox), [(Ordered, 1, 2)], "alone");
    outbox.handle_taken(taken(2, 0), |_| ());
    assert_eq!(drain(&mut outbox), [(Unordered, 0, 3)]);
}

#[test]
fn a_full_outbox_refuses_by_default_and_hands_the_message_back() {
    let mut outbox = small(2, WhenFull::default());
    push(&mut outbox, Ordered, Normal, 1);
    push(&mut outbox, Ordered, Normal, 2);
    let full = outbox.push(Ordered, High, vec![3]).unwrap_err();
    assert!(full.to_string().contains("full (2 messages, 2 bytes)"));
    assert!(matches!(full, Full::Refused { body, .. } if body == [3]));
    assert_eq!(drain(&mut outbox).len(), 2);
    assert!(
        outbox.push(Ordered, High, vec![3]).is_err(),
        "handed over is not acknowledged"
    );
    outbox.handle_taken(taken(1, 0), |_| ());
    push(&mut outbox, Ordered, High, 3);
}

#[test]
fn too_large_a_message_is_refused_whatever_the_policy() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest, WhenFull::Close] {
        let mut outbox = small(100, when_full);
        let full = outbox.push(Ordered, Normal, vec![0; 1_001]).unwrap_err();
        assert!(matches!(full, Full::TooLarge { size: 1_001, .. }));
    }
}

#[test]
fn a_full_outbox_asks_to_close_if_told_so() {
    let mut outbox = small(1, WhenFull::Close);
    push(&mut outbox, Ordered, Normal, 1);
    let full = outbox.push(Ordered, Normal, vec![2]).unwrap_err();
    assert!(matches!(full, Full::Close { .. }));
}

#[test]
fn drop_oldest_drops_the_least_important_first_and_never_better_ones() {
    let mut outbox = small(3, WhenFull::DropOldest);
    push(&mut outbox, Ordered, High, 1);
    push(&mut outbox, Ordered, Low, 2);
    push(&mut outbox, Unordered, Low, 3);
    let dropped = |outbox: &mut Outbox<_>, importance, id| {
        let pushed = outbox.push(Ordered, importance, vec![id]);
        pushed.map(|pushed| pushed.dropped.concat())
    };
    assert_eq!(dropped(&mut outbox, Normal, 4), Ok(vec![2]));
    assert_eq!(dropped(&mut outbox, Normal, 5), Ok(vec![3]));
    assert_eq!(dropped(&mut outbox, Normal, 6), Ok(vec![4]));
    assert!(dropped(&mut outbox, Low, 7).is_err(), "only better ones");
    assert_eq!(drain(&mut outbox).len(), 3);
    assert!(
        dropped(&mut outbox, High, 8).is_err(),
        "what was handed to the link is not dropped"
    );
    assert_eq!(outbox.lost(), 0, "nothing was lost for want of a link");
}

#[test]
fn drop_oldest_drops_nothing_if_that_is_not_enough() {
    let mut outbox = small(100, WhenFull::DropOldest);
    let _ = outbox.push(Ordered, High, vec![1; 700]).expect("room");
    let _ = outbox.push(Ordered, Low, vec![2; 200]).expect("room");
    assert!(outbox.push(Ordered, Low, vec![3; 400]).is_err());
    assert_eq!((outbox.len(), outbox.bytes()), (2, 900));
}

#[test]
fn a_resume_hands_out_exactly_what_is_missing_under_the_same_numbers() {
    let mut outbox = small(100, WhenFull::Refuse);
    for id in 0..3 {
        push(&mut outbox, Ordered, Normal, id);
    }
    push(&mut outbox, Unordered, Normal, 3);
    assert_eq!(drain(&mut outbox).len(), 4);
    outbox.set_away();
    push(&mut outbox, Ordered, High, 4);
    assert_eq!(outbox.next_to_send(), None, "there is no link");

    let mut receipts = Vec::new();
    let resumed = outbox.resume(taken(2, 0), |body| receipts.extend(body));
    assert_eq!(resumed, Ok(Resumption::Complete));
    assert_eq!(receipts, [0, 1]);
    assert_eq!(
        drain(&mut outbox),
        [(Ordered, 2, 2), (Unordered, 0, 3), (Ordered, 3, 4)],
        "numbered ones first"
    );
}

#[test]
fn a_resume_needs_no_knowledge_of_the_old_links_death() {
    let mut outbox = small(100, WhenFull::Refuse);
    for id in 0..4 {
        push(&mut outbox, Ordered, Normal, id);
    }
    assert_eq!(drain(&mut outbox).len(), 4, "the window is full");
    assert_eq!(outbox.resume(taken(0, 0), |_| ()), Ok(Resumption::Complete));
    assert_eq!(outbox.in_flight_messages(), 0);
    assert_eq!(drain(&mut outbox).len(), 4);
    // What was given to the old link arrives after all, and is acknowledged before it was handed out again.
    assert_eq!(outbox.resume(taken(0, 0), |_| ()), Ok(Resumption::Complete));
    assert_eq!(outbox.next_to_send(), Some((Ordered, 0, vec![0])));
    outbox.handle_taken(taken(3, 0), |_| ());
    assert_eq!(drain(&mut outbox), [(Ordered, 3, 3)]);
    outbox.handle_taken(taken(4, 0), |_| ());
    assert!(outbox.is_empty() && outbox.in_flight_bytes() == 0);
}

#[test]
fn a_resume_that_cannot_be_is_refused_and_changes_nothing() {
    let mut outbox = small(100, WhenFull::Refuse);
    for id in 0..3 {
        push(&mut outbox, Ordered, Normal, id);
    }
    drain(&mut outbox);
    outbox.handle_taken(taken(2, 0), |_| ());
    for claim in [taken(1, 0), taken(4, 0), taken(u32::MAX, 0), taken(3, 1)] {
        let gap = outbox
            .resume(claim, |_| panic!("nothing was taken"))
            .unwrap_err();
        assert!(gap.to_string().contains("join anew"), "{gap}");
    }
    assert_eq!(outbox.in_flight_messages(), 1);
    assert_eq!(outbox.resume(taken(3, 0), |_| ()), Ok(Resumption::Complete));
}

#[test]
fn nonsense_about_what_was_taken_is_ignored() {
    let mut outbox = small(100, WhenFull::Refuse);
    for id in 0..3 {
        push(&mut outbox, Ordered, Normal, id);
    }
    drain(&mut outbox);
    outbox.handle_taken(taken(2, 0), |_| ());
    for claim in [
        taken(0, 0),
        taken(4, 0),
        taken(1 << 31, 7),
        taken(2, u32::MAX),
    ] {
        outbox.handle_taken(claim, |_| panic!("nothing was taken"));
    }
    let mut receipts = Vec::new();
    outbox.handle_taken(taken(3, 9), |body| receipts.extend(body));
    assert_eq!(receipts, [2], "each stream is judged alone");
}

#[test]
fn while_away_the_oldest_go_and_the_loss_is_remembered() {
    let mut outbox = small(4, WhenFull::Refuse);
    let mut inbox = Inbox::default();
    for id in 0..3 {
        push(&mut outbox, Ordered, Normal, id);
    }
    for (stream, number, _) in drain(&mut outbox).into_iter().take(1) {
        assert_eq!(inbox.accept(stream, number), Accept::New);
    }
    outbox.set_away();
    let mut dropped = Vec::new();
    for id in 3..7 {
        let pushed = outbox.push(Ordered, Normal, vec![id]).expect("oldest go");
        dropped.extend(pushed.dropped.concat());
    }
    assert_eq!(dropped, [0, 1, 2], "numbered ones too");
    assert_eq!(outbox.lost(), 3);

    // Number 0 had been taken; and an answer that is lost changes nothing.
    for _ in 0..2 {
        let resumed = outbox.resume(inbox.taken(), |_| panic!("nothing is left to take"));
        assert_eq!(resumed, Ok(Resumption::Lost(2)));
        assert_eq!((outbox.lost(), outbox.first_kept()), (2, [3, 0]));
        outbox.set_away();
    }
    assert_eq!(
        outbox.resume(inbox.taken(), |_| ()),
        Ok(Resumption::Lost(2))
    );
    assert_eq!(inbox.skip_to(outbox.first_kept()), 2);
    let got = drain(&mut outbox);
    assert_eq!(got.iter().map(|m| m.2).collect::<Vec<_>>(), [3, 4, 5, 6]);
    for (stream, number, _) in got {
        assert_eq!(inbox.accept(stream, number), Accept::New);
    }
    // The link dies before an acknowledgement: skipping is not mistaken for taking.
    outbox.set_away();
    assert_eq!(
        outbox.resume(inbox.taken(), |_| ()),
        Ok(Resumption::Lost(2))
    );
    outbox.handle_taken(inbox.taken(), |_| ());
    assert_eq!(outbox.lost(), 2);
    assert!(outbox.is_empty());
    outbox.set_away();
    assert_eq!(
        outbox.resume(inbox.taken(), |_| ()),
        Ok(Resumption::Complete),
        "it knows by now"
    );
}

#[test]
fn starting_over_forgets_what_has_a_number_and_keeps_what_waits() {
    let mut outbox = small(100, WhenFull::Refuse);
    for id in 0..6 {
        push(&mut outbox, Ordered, Normal, id);
    }
    assert_eq!(drain(&mut outbox).len(), 4);
    let mut forgotten = Vec::new();
    outbox.start_over(Taken::default(), |body| forgotten.extend(body));
    assert_eq!(forgotten, [0, 1, 2, 3]);
    assert_eq!(drain(&mut outbox), [(Ordered, 0, 4), (Ordered, 1, 5)]);
    assert_eq!((outbox.len(), outbox.bytes()), (2, 2));
}

#[test]
fn an_inbox_knows_duplicates_gaps_and_nonsense() {
    let mut inbox = Inbox::starting_at(taken(u32::MAX, u32::MAX));
    assert_eq!(inbox.accept(Ordered, 0), Accept::OutOfOrder);
    assert_eq!(inbox.accept(Ordered, u32::MAX), Accept::New);
    assert_eq!(inbox.accept(Ordered, u32::MAX), Accept::Duplicate);
    assert_eq!(inbox.accept(Ordered, 0), Accept::New);

    assert_eq!(inbox.accept(Unordered, 1), Accept::New);
    assert_eq!(inbox.accept(Unordered, 1), Accept::Duplicate);
    assert_eq!(inbox.accept(Unordered, 1_022), Accept::New);
    assert_eq!(inbox.accept(Unordered, 1_023), Accept::TooFar);
    assert_eq!(inbox.accept(Unordered, 1 << 31), Accept::Duplicate);
    assert_eq!(inbox.taken(), taken(1, u32::MAX));
    assert_eq!(inbox.accept(Unordered, u32::MAX), Accept::New);
    assert_eq!(inbox.accept(Unordered, 0), Accept::New);
    assert_eq!(inbox.taken(), taken(1, 2), "what came early counts now");
}

#[test]
fn skipping_counts_what_is_missed_and_never_goes_back() {
    let mut inbox = Inbox::default();
    for number in [1, 2, 5, 7] {
        assert_eq!(inbox.accept(Unordered, number), Accept::New);
    }
    assert_eq!(inbox.skip_to([3, 5]), 3 + 3, "0, 3 and 4 of the unordered");
    assert_eq!(inbox.taken(), taken(3, 6));
    assert_eq!(inbox.skip_to([1, 0]), 0);
    assert_eq!(inbox.skip_to([3 + (1 << 31), 6]), 0, "the other way around");
    assert_eq!(inbox.taken(), taken(3, 6));
    assert_eq!(inbox.skip_to([3, 1 << 30]), (1 << 30) - 6 - 1);
    for number in (1 << 30)..(1 << 30) + 2_000 {
        assert_eq!(
            inbox.accept(Unordered, number),
            Accept::New,
            "no bit is left over"
        );
    }
}

#[test]
fn what_was_taken_is_read_as_written() {
    for (value, bytes) in [
        (taken(0, 127), vec![0, 127]),
        (taken(128, 300), vec![0x80, 1, 0xac, 2]),
        (taken(u32::MAX, 1), vec![0xff, 0xff, 0xff, 0xff, 0x0f, 1]),
    ] {
        let mut out = Vec::new();
        value.encode(&mut out);
        assert_eq!(out, bytes);
        out.push(42);
        assert_eq!(Taken::decode(&out), Ok((value, &[42][..])));
        for len in 0..bytes.len() {
            assert_eq!(Taken::decode(&bytes[..len]), Err(WireError::OutOfBits));
        }
    }
    for bad in [
        &[0x80, 0, 0][..],
        &[0xff, 0xff, 0xff, 0xff, 0x10, 0],
        &[0xff; 9],
    ] {
        assert!(matches!(
            Taken::decode(bad),
            Err(WireError::InvalidValue(_))
        ));
    }
}

#[derive(Clone, Debug)]
struct Message {
    id: u32,
    size: usize,
}

impl Body for Message {
    fn size_bytes(&self) -> usize {
        self.size
    }
}

/// A link: keeps the order of one stream, not that of the other, and delivers everything while it lives.
#[derive(Default)]
struct Pipe {
    ordered: VecDeque<(u32, Message)>,
    unordered: Vec<(u32, Message)>,
    acks: Vec<Taken>,
}

/// A session over a series of links, and what the receiver's game saw.
struct Play {
    rng: fastrand::Rng,
    outbox: Outbox<Message>,
    inbox: Inbox,
    link: Option<Pipe>,
    /// A link that one side thinks dead, and that delivers nevertheless.
    ghost: Option<Pipe>,
    kept: HashMap<u32, (Stream, Importance)>,
    dropped: HashSet<u32>,
    got: Vec<u32>,
    receipts: HashSet<u32>,
    missed: u64,
    next_id: u32,
}

impl Play {
    fn push(&mut self, stream: Stream) {
        let importance = Importance::DESCENDING[self.rng.usize(0..3)];
        let id = self.next_id;
        let size = if self.rng.u8(0..20) == 0 {
            2_000
        } else {
            self.rng.usize(0..200)
        };
        match self.outbox.push(stream, importance, Message { id, size }) {
            Ok(pushed) => {
                self.next_id += 1;
                self.kept.insert(id, (stream, importance));
                for message in pushed.dropped {
                    assert!(self.dropped.insert(message.id), "dropped once");
                }
            }
            Err(_) => assert!(!self.outbox.is_away(), "away, there is always room"),
        }
    }

    fn pump(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some((stream, number, message)) = self.outbox.next_to_send() {
            match stream {
                Ordered => link.ordered.push_back((number, message)),
                Unordered => link.unordered.push((number, message)),
            }
        }
        let limits = self.outbox.limits();
        assert!(self.outbox.in_flight_messages() <= limits.window_messages);
        assert!(
            self.outbox.in_flight_bytes() <= limits.window_bytes
                || self.outbox.in_flight_messages() == 1
        );
    }

    fn deliver(&mut self, ghost: bool) {
        let pipe = if ghost {
            &mut self.ghost
        } else {
            &mut self.link
        };
        let Some(pipe) = pipe else { return };
        let (stream, (number, message)) = if self.rng.bool() {
            let Some(message) = pipe.ordered.pop_front() else {
                return;
            };
            (Ordered, message)
        } else if pipe.unordered.is_empty() {
            return;
        } else {
            let index = self.rng.usize(0..pipe.unordered.len());
            (Unordered, pipe.unordered.swap_remove(index))
        };
        match self.inbox.accept(stream, number) {
            Accept::New => self.got.push(message.id),
            Accept::Duplicate => {}
            refused => panic!("{refused:?} for number {number} of {stream:?}"),
        }
    }

    fn acknowledge(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.acks.push(self.inbox.taken());
        let index = self.rng.usize(0..link.acks.len());
        match self.rng.u8(0..4) {
            0 => drop(link.acks.swap_remove(index)), // lost
            1 => {}                                  // late
            _ => {
                let acked = link.acks.swap_remove(index);
                self.outbox.handle_taken(acked, |message| {
                    assert!(self.receipts.insert(message.id), "one receipt each");
                });
            }
        }
    }

    fn cut(&mut self, ghosts: bool) {
        let dead = self.link.take();
        if ghosts {
            self.ghost = dead;
        }
        if self.rng.bool() {
            self.outbox.set_away(); // else the sender has not noticed
        }
    }

    fn resume(&mut self) {
        let resumed = self.outbox.resume(self.inbox.taken(), |message| {
            assert!(self.receipts.insert(message.id), "one receipt each");
        });
        let lost = resumed.expect("honest sides have no gap");
        if self.rng.u8(0..4) == 0 {
            self.outbox.set_away(); // the answer was lost
            return;
        }
        let missed = self.inbox.skip_to(self.outbox.first_kept());
        match lost {
            Resumption::Complete => assert_eq!(missed, 0),
            Resumption::Lost(lost) => assert!(missed <= lost && lost > 0),
        }
        self.missed += missed;
        self.link = Some(Pipe::default());
    }

    fn finish(&mut self) {
        while self.link.is_none() {
            self.resume();
        }
        for _ in 0..100_000 {
            self.pump();
            self.deliver(false);
            self.acknowledge();
            if self.outbox.is_empty() {
                return;
            }
        }
        panic!("{} messages are left", self.outbox.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_message_arrives_exactly_once_over_any_series_of_links(
        seed: u64,
        start: u32,
        max_messages in 3usize..40,
        ghosts: bool,
        mixed: bool,
        drop_oldest: bool,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = OutboxLimits {
            max_messages,
            max_bytes: 5_000,
            window_bytes: rng.usize(1..3_000),
            window_messages: rng.usize(1..20),
        };
        let when_full = if drop_oldest { WhenFull::DropOldest } else { WhenFull::Refuse };
        let mut outbox = Outbox::new(limits, when_full);
        let start = taken(start | 0xffff_ff00, start);
        outbox.start_over(start, |_| ());
        let mut play = Play {
            rng,
            outbox,
            inbox: Inbox::starting_at(start),
            link: Some(Pipe::default()),
            ghost: None,
            kept: HashMap::new(),
            dropped: HashSet::new(),
            got: Vec::new(),
            receipts: HashSet::new(),
            missed: 0,
            next_id: 0,
        };
        for _ in 0..2_000 {
            match play.rng.u8(0..100) {
                0..30 => {
                    let stream = if mixed { Stream::ALL[play.rng.usize(0..2)] } else { Ordered };
                    play.push(stream);
                }
                30..50 => play.pump(),
                50..75 => play.deliver(false),
                75..80 => play.deliver(true),
                80..95 => play.acknowledge(),
                95..97 => play.cut(ghosts),
                _ if play.link.is_none() => play.resume(),
                _ => {}
            }
            prop_assert!(play.outbox.len() <= max_messages);
            prop_assert!(play.outbox.bytes() <= 5_000);
        }
        play.finish();

        let got: HashSet<u32> = play.got.iter().copied().collect();
        prop_assert_eq!(got.len(), play.got.len(), "none twice");
        for id in play.kept.keys() {
            prop_assert!(got.contains(id) || play.dropped.contains(id), "{} is missing", id);
        }
        prop_assert!(play.receipts.is_subset(&got), "a receipt is true");
        let never = play.kept.len() - got.len();
        if when_full == WhenFull::Refuse {
            prop_assert!(never as u64 <= play.outbox.lost());
            if !ghosts && !mixed {
                prop_assert_eq!(never as u64, play.outbox.lost());
            }
        }
        prop_assert!(play.missed <= play.outbox.lost());
        for importance in Importance::DESCENDING {
            let ids: Vec<u32> = play.got.iter().copied()
                .filter(|id| play.kept[id] == (Ordered, importance))
                .collect();
            prop_assert!(ids.is_sorted(), "in order: {ids:?}");
        }
    }

    #[test]
    fn no_peer_can_make_either_end_grow(seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut outbox = small(10, WhenFull::Refuse);
        let mut inbox = Inbox::default();
        for _ in 0..2_000 {
            let wild = taken(rng.u32(..) >> rng.u32(0..32), rng.u32(..) >> rng.u32(0..32));
            match rng.u8(0..7) {
                0 => drop(outbox.push(Stream::ALL[rng.usize(0..2)], Normal, vec![0; rng.usize(0..50)])),
                1 => drop(outbox.next_to_send()),
                2 => outbox.handle_taken(wild, |_| ()),
                3 => drop(outbox.resume(wild, |_| ())),
                4 => outbox.set_away(),
                5 => drop(inbox.skip_to(wild.next)),
                _ => drop(inbox.accept(Stream::ALL[rng.usize(0..2)], wild.next[0])),
            }
            prop_assert!(outbox.len() <= 10 && outbox.bytes() <= 1_000);
        }
    }

    #[test]
    fn decoding_wild_bytes_fails_or_round_trips(bytes: Vec<u8>) {
        if let Ok((taken, rest)) = Taken::decode(&bytes) {
            let mut out = Vec::new();
            taken.encode(&mut out);
            out.extend_from_slice(rest);
            prop_assert_eq!(out, bytes, "each value has one encoding");
        }
    }
}
