use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use std::net::IpAddr;
use std::time::Duration;

use super::gate::Standing;
use super::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn v4(last: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xcb00_7100 + last)) // 203.0.113.0
}

#[test]
fn what_a_silence_held_back_is_allowed_and_silences_do_not_add_up() {
    let rate = Rate::new(10, 20);
    let mut bucket = TokenBucket::new(rate);
    bucket.credit_time(s(10));
    assert!(bucket.take(120, s(0)) && !bucket.take(1, s(0)));
    for _ in 0..100 {
        bucket.credit_time(s(10));
    }
    assert!(!bucket.take(121, s(0)) && bucket.take(120, s(0)));
    bucket.credit_time(Duration::MAX);
    assert!(bucket.take(u32::MAX, s(0)));
}

#[test]
fn a_bucket_allows_its_burst_and_then_its_rate() {
    let mut bucket = TokenBucket::new(Rate::new(3, 5));
    let mut taken = 0;
    for now in 0..10_000 {
        while bucket.take(1, ms(now)) {
            taken += 1;
        }
    }
    assert_eq!(taken, 5 + 29, "thirds of a second are not rounded away");
}

#[test]
fn a_bucket_says_how_long_to_wait() {
    let mut bucket = TokenBucket::new(Rate::new(3, 5));
    assert_eq!(bucket.wait(5, s(0)), Some(s(0)));
    assert!(bucket.take(5, s(0)));
    let wait = bucket.wait(1, s(0)).expect("one is possible");
    assert_eq!(wait, Duration::from_nanos(333_333_334));
    assert!(!bucket.take(1, wait - Duration::from_nanos(1)));
    assert!(bucket.take(1, wait));
    assert_eq!(bucket.wait(6, wait), None, "more than it can hold");
    let mut once = TokenBucket::new(Rate::new(0, 1));
    assert!(once.take(1, s(0)));
    assert_eq!(once.wait(1, s(0)), None, "never refilled");
}

#[test]
fn an_honest_client_stays_within_the_default_limits() {
    let mut meter = SessionMeter::new(&SessionLimits::default());
    for tick in 0..6_000u64 {
        // Once in 20 s the network stalls for 1 s, and everything comes at the end of it.
        let at = tick * 1_000 / 60;
        let now = ms(if at % 20_000 < 1_000 {
            at - at % 20_000 + 1_000
        } else {
            at
        });
        assert_eq!(meter.take(Traffic::Inputs, 260, now), Ok(()));
        assert_eq!(meter.take(Traffic::Messages, 1_000, now), Ok(()));
        if tick % 30 == 0 {
            assert_eq!(meter.take(Traffic::Chat, 200, now), Ok(()));
        }
    }
}

#[test]
fn a_flood_is_let_through_at_the_limit_and_no_faster() {
    let mut meter = SessionMeter::new(&SessionLimits::default());
    let passed = (0..60_000u64)
        .filter(|i| meter.take(Traffic::Messages, 50, ms(i / 6)).is_ok())
        .count();
    assert!(
        (719..=720).contains(&passed),
        "120 and 60 a second for 10 s: {passed}"
    );
    let chat = (0..1_000).filter(|_| meter.take(Traffic::Chat, 10, s(10)).is_ok());
    assert_eq!(chat.count(), 8, "kinds of traffic are measured apart");
}

#[test]
fn bytes_are_limited_as_well_as_messages() {
    let mut meter = SessionMeter::new(&SessionLimits::default());
    let all = Traffic::Messages;
    assert_eq!(meter.take(all, 128 << 10, s(0)), Ok(()));
    assert_eq!(meter.take(all, 1, s(0)), Err(Exceeded::Bytes(all)));
    assert_eq!(meter.wait(all, 64 << 10, s(0)), Some(s(1)));
    assert_eq!(meter.take(all, usize::MAX, s(9)), Err(Exceeded::Bytes(all)));
    assert_eq!(meter.wait(all, usize::MAX, s(9)), None);
    for _ in 0..120 {
        assert_eq!(
            meter.take(all, 0, s(9)),
            Ok(()),
            "what was refused counts for nothing"
        );
    }
    assert_eq!(meter.take(all, 0, s(9)), Err(Exceeded::Messages(all)));
}

#[test]
fn a_resumed_client_may_send_what_it_had_to_keep_but_saves_nothing_up() {
    for silence in [MAX_SILENCE, MAX_SILENCE * 100] {
        let mut meter = SessionMeter::new(&SessionLimits::default());
        for _ in 0..3 {
            meter.credit_silence(silence);
        }
        for _ in 0..1_020 {
            assert_eq!(meter.take(Traffic::Messages, 1_000, s(1)), Ok(()));
        }
        assert!(meter.take(Traffic::Messages, 1, s(1)).is_err());
        let chat = (0..100).filter(|_| meter.take(Traffic::Chat, 10, s(1)).is_ok());
        assert_eq!(chat.count(), 38);
    }
}

#[test]
fn breaches_are_dropped_then_warned_about_once_then_end_the_link() {
    let ladder = Ladder::default();
    let mut conduct = Conduct::default();
    let answers: Vec<Answer> = (0..100).map(|_| conduct.breach(&ladder, s(1))).collect();
    assert!(answers[..9].iter().all(|&answer| answer == Answer::Drop));
    assert_eq!(answers[9], Answer::Warn);
    assert!(answers[10..99].iter().all(|&answer| answer == Answer::Drop));
    assert_eq!(answers[99], Answer::Disconnect);
    let counts = AnswerCounts {
        dropped: 98,
        warned: 1,
        disconnected: 1,
        banned: 0,
    };
    assert_eq!((conduct.counts(), counts.total()), (counts, 100));
    assert_eq!(
        conduct.breach(&ladder, s(1)),
        Answer::Drop,
        "strikes start again"
    );
}

#[test]
fn strikes_are_forgiven_with_time_and_a_new_warning_is_possible() {
    let ladder = Ladder::default();
    let mut conduct = Conduct::default();
    for _ in 0..20 {
        conduct.breach(&ladder, s(0));
    }
    assert_eq!(conduct.strikes(&ladder, ms(4_999)), 11);
    assert_eq!(conduct.strikes(&ladder, s(5)), 10);
    assert_eq!(
        conduct.breach(&ladder, s(5)),
        Answer::Drop,
        "warned already"
    );
    assert_eq!(conduct.strikes(&ladder, s(600)), 0);
    let answers = (0..10).map(|_| conduct.breach(&ladder, s(600)));
    assert_eq!(answers.last(), Some(Answer::Warn));
    let mut slow = Conduct::default();
    for second in 0..10_000 {
        assert_eq!(
            slow.breach(&ladder, s(second)),
            Answer::Drop,
            "now and then is no harm"
        );
    }
}

#[test]
fn repeated_offences_lead_to_bans_that_grow() {
    let ladder = Ladder::default();
    let mut conduct = Conduct::default();
    let mut offence = |now| conduct.offence(&ladder, now);
    assert_eq!(offence(s(0)), Answer::Disconnect);
    assert_eq!(offence(s(1)), Answer::Disconnect);
    let minutes = |n: u64| Answer::Ban(s(60 * n));
    for expected in [5, 20, 80, 320, 1_280, 1_440, 1_440] {
        assert_eq!(offence(s(2)), minutes(expected));
    }
    assert_eq!(
        offence(s(86_400)),
        Answer::Disconnect,
        "forgiven after long enough"
    );
    assert_eq!(conduct.counts().banned, 7);
}

#[test]
fn every_rung_of_the_ladder_can_be_taken_out() {
    let never = Ladder {
        warn_at: 0,
        disconnect_at: u32::MAX,
        ban_at_offence: 0,
        ..Ladder::default()
    };
    let mut conduct = Conduct::default();
    for _ in 0..1_000 {
        assert_eq!(conduct.breach(&never, s(0)), Answer::Drop);
    }
    assert_eq!(conduct.offence(&never, s(0)), Answer::Disconnect);
    let at_once = Ladder {
        disconnect_at: 1,
        ban_at_offence: 1,
        ..Ladder::default()
    };
    assert_eq!(
        Conduct::default().breach(&at_once, s(0)),
        Answer::Ban(s(300))
    );
}

#[test]
fn an_address_may_try_so_often_and_is_told_when_again() {
    let mut gate = AddressGate::new(GateLimits {
        attempts: Rate::new(2, 3),
        ..GateLimits::default()
    });
    for _ in 0..3 {
        assert_eq!(gate.try_connect(v4(1), s(0)), Ok(()));
        gate.handshake_done(v4(1));
    }
    let retry_in = ms(500);
    assert_eq!(
        gate.try_connect(v4(1), s(0)),
        Err(Refusal::TooFast { retry_in })
    );
    assert_eq!(gate.try_connect(v4(2), s(0)), Ok(()), "another address");
    assert_eq!(gate.try_connect(v4(1), retry_in), Ok(()));
    assert_eq!((gate.counts().admitted, gate.counts().too_fast), (5, 1));
}

#[test]
fn handshakes_in_flight_are_limited_by_address_and_in_total() {
    let limits = GateLimits {
        handshakes: 2,
        handshakes_total: 3,
        ..GateLimits::default()
    };
    let mut gate = AddressGate::new(limits);
    let too_many = Err(Refusal::TooManyHandshakes);
    assert_eq!(
        [1, 1, 1, 2, 2].map(|who| gate.try_connect(v4(who), s(0))),
        [Ok(()), Ok(()), too_many, Ok(()), too_many]
    );
    gate.handshake_done(v4(1));
    assert_eq!(gate.try_connect(v4(2), s(0)), Ok(()));
    gate.handshake_done(v4(9));
    gate.handshake_done(v4(9));
    assert_eq!(gate.handshakes(), 3, "what was never begun is not ended");
}

#[test]
fn sessions_are_limited_and_can_resume_and_move_all_the_same() {
    let mut gate = AddressGate::new(GateLimits {
        sessions: 1,
        ..GateLimits::default()
    });
    assert_eq!(gate.session_opened(v4(1), s(0)), Ok(()));
    assert_eq!(
        gate.session_opened(v4(1), s(0)),
        Err(Refusal::TooManySessions)
    );
    assert_eq!(
        gate.try_connect(v4(1), s(0)),
        Ok(()),
        "it may be for a resume"
    );
    assert_eq!(gate.session_opened(v4(2), s(0)), Ok(()));
    assert_eq!(gate.session_moved(v4(2), v4(1), s(0)), Ok(()));
    assert_eq!((gate.sessions(v4(1)), gate.sessions(v4(2))), (2, 0));
    gate.session_closed(v4(1));
    gate.session_closed(v4(1));
    assert_eq!(gate.session_opened(v4(1), s(0)), Ok(()));
}

#[test]
fn ipv6_addresses_of_one_household_count_as_one() {
    let v6 = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | bits));
    let mut gate = AddressGate::new(GateLimits::default());
    gate.ban(v6(1), s(10), s(0)).expect("room");
    assert_eq!(gate.is_banned(v6(0xffff_ffff_ffff_ffff), s(0)), Some(s(10)));
    assert_eq!(gate.is_banned(v6(1 << 64), s(0)), None);
    gate.ban(v4(1), s(10), s(0)).expect("room");
    let IpAddr::V4(one) = v4(1) else {
        unreachable!("made as v4")
    };
    let mapped = IpAddr::V6(one.to_ipv6_mapped());
    assert_eq!(
        gate.is_banned(mapped, s(0)),
        Some(s(10)),
        "the same, written differently"
    );
}

#[test]
fn bans_end_by_time_or_by_hand_and_are_not_shortened() {
    let mut gate = AddressGate::new(GateLimits::default());
    gate.ban(v4(1), s(10), s(5)).expect("room");
    gate.ban(v4(1), s(1), s(5)).expect("room");
    let refused = Refusal::Banned {
        remaining: ms(2_500),
    };
    assert_eq!(gate.try_connect(v4(1), ms(12_500)), Err(refused));
    assert_eq!(
        refused.to_string(),
        "this address is banned for another 3 s"
    );
    assert_eq!(gate.try_connect(v4(1), s(15)), Ok(()));
    gate.ban(v4(1), Duration::MAX, s(15)).expect("room");
    assert!(gate.is_banned(v4(1), s(1 << 40)).is_some());
    assert!(gate.unban(v4(1)) && !gate.unban(v4(1)) && !gate.unban(v4(2)));
    assert_eq!(gate.try_connect(v4(1), s(15)), Ok(()));
}

#[test]
fn neighbours_of_a_banned_player_may_come_back_to_their_sessions() {
    let mut gate = AddressGate::new(GateLimits::default());
    assert_eq!(gate.session_opened(v4(1), s(0)), Ok(()));
    gate.ban(v4(1), s(10), s(0)).expect("room");
    assert_eq!(gate.try_connect(v4(1), s(1)), Ok(()));
    gate.handshake_done(v4(1));
    gate.session_closed(v4(1));
    assert_eq!(
        gate.try_connect(v4(1), s(1)),
        Err(Refusal::Banned { remaining: s(9) })
    );
}

#[test]
fn offences_of_a_player_add_up_over_sessions_and_are_forgiven() {
    let ladder = Ladder::default();
    let mut list = BanList::new(2);
    let mut offence = |who, at| list.offence(who, &ladder, "flood", s(at));
    assert_eq!(offence("eve", 0), Answer::Disconnect);
    assert_eq!(offence("eve", 0), Answer::Disconnect);
    assert_eq!(offence("bob", 0), Answer::Disconnect);
    assert_eq!(offence("ada", 0), Answer::Disconnect, "there is no room");
    assert_eq!(offence("eve", 0), Answer::Ban(s(300)));
    assert_eq!(
        offence("eve", 1_300),
        Answer::Disconnect,
        "two are forgiven"
    );
    assert_eq!(
        offence("ada", 1_300),
        Answer::Disconnect,
        "bob is forgotten"
    );
    assert_eq!(list.is_banned("eve", s(299)).unwrap().reason, "flood");
    assert!(list.is_banned("eve", s(300)).is_none());
}

#[test]
fn offences_of_those_who_come_back_as_somebody_new_ban_their_address() {
    let mut gate = AddressGate::new(GateLimits::default());
    let ladder = Ladder::default();
    for _ in 0..2 {
        assert_eq!(gate.offence(v4(1), &ladder, s(0)), Answer::Disconnect);
    }
    assert_eq!(gate.offence(v4(1), &ladder, s(0)), Answer::Ban(s(300)));
    assert_eq!(gate.is_banned(v4(1), s(0)), Some(s(300)));
    assert_eq!(gate.offence(v4(2), &ladder, s(0)), Answer::Disconnect);
}

#[test]
fn loopback_is_exempt_from_limits_unless_told_and_never_from_bans() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let limits = GateLimits {
        attempts: Rate::new(1, 1),
        sessions: 1,
        ..GateLimits::default()
    };
    let mut gate = AddressGate::new(limits);
    for _ in 0..5_000 {
        assert_eq!(gate.try_connect(local, s(0)), Ok(()));
        assert_eq!(gate.session_opened(local, s(0)), Ok(()));
    }
    (0..5_000).for_each(|_| gate.session_closed(local));
    gate.ban(local, s(1), s(0)).expect("room");
    assert!(gate.try_connect(local, s(0)).is_err());
    let mut strict = AddressGate::new(GateLimits {
        exempt_loopback: false,
        ..limits
    });
    assert!(strict.try_connect(local, s(0)).is_ok() && strict.try_connect(local, s(0)).is_err());
}

#[test]
fn a_full_gate_forgets_idle_addresses_then_bans_and_never_sessions() {
    let mut gate = AddressGate::new(GateLimits {
        addresses: 4,
        ..GateLimits::default()
    });
    gate.session_opened(v4(1), s(0)).expect("room");
    gate.ban(v4(2), s(100), s(0)).expect("room");
    gate.ban(v4(3), s(50), s(0)).expect("room");
    for stranger in 10..1_000 {
        assert_eq!(gate.try_connect(v4(stranger), s(1)), Ok(()));
        gate.handshake_done(v4(stranger));
    }
    assert_eq!((gate.addresses(), gate.counts().forgotten), (4, 989));
    assert!(gate.is_banned(v4(2), s(1)).is_some() && gate.is_banned(v4(3), s(1)).is_some());

    assert_eq!(gate.try_connect(v4(4), s(1)), Ok(()), "in flight now");
    assert_eq!(gate.try_connect(v4(5), s(1)), Ok(()));
    assert!(
        gate.is_banned(v4(3), s(1)).is_none(),
        "the ban that ended first had to go"
    );
    assert_eq!(gate.try_connect(v4(6), s(100)), Ok(()));
    assert_eq!(gate.counts().bans_forgotten, 1, "the other had run out");
    assert_eq!(
        gate.try_connect(v4(7), s(100)),
        Err(Refusal::TooManyAddresses)
    );
    assert_eq!(gate.sessions(v4(1)), 1);
}

#[test]
fn a_ban_list_tells_why_and_for_how_long() {
    let mut list = BanList::default();
    list.ban("ada", Some(s(10)), "rude", s(1)).expect("room");
    list.ban("eve", None, "ruder", s(1)).expect("room");
    let banned = |remaining, reason| Some(Banned { remaining, reason });
    assert_eq!(list.is_banned("ada", s(2)), banned(Some(s(9)), "rude"));
    assert_eq!(list.is_banned("eve", s(1 << 50)), banned(None, "ruder"));
    assert_eq!(list.is_banned("bob", s(2)), None);
    assert_eq!(
        list.iter(s(2)).map(|(who, _)| who).collect::<Vec<_>>(),
        ["ada", "eve"]
    );
    assert_eq!(list.is_banned("ada", s(11)), None);
    assert_eq!(list.iter(s(11)).count(), 1);
    list.ban("eve", Some(s(1)), "forgiven, nearly", s(11))
        .expect("room");
    assert_eq!((list.len(), list.is_banned("eve", s(12))), (1, None));
    assert!(list.unban("eve") && !list.unban("eve") && list.is_empty());
}

#[test]
fn a_full_ban_list_forgets_the_ban_that_ends_first() {
    let mut list = BanList::new(2);
    list.ban("a", None, "", s(0)).expect("room");
    list.ban("b", Some(s(10)), "", s(0)).expect("room");
    let error = list.ban("c", Some(s(5)), "", s(0)).unwrap_err();
    assert!(error.to_string().contains("raise its capacity"), "{error}");
    list.ban("d", Some(s(20)), "", s(0)).expect("longer than b");
    assert!(list.is_banned("b", s(0)).is_none() && list.is_banned("a", s(0)).is_some());
    list.ban("e", Some(s(5)), "", s(20)).expect("d has run out");
    list.ban("f", None, "", s(20)).expect("longer than e");
    assert!(
        list.ban("g", None, "", s(20)).is_err(),
        "bans without end are not forgotten"
    );
    assert_eq!(list.len(), 2);
}

#[test]
fn what_a_ban_list_keeps_is_bounded() {
    let mut list = BanList::new(1);
    assert_eq!(list.ban("", None, "", s(0)), Err(BanError::Identity(0)));
    assert_eq!(
        list.ban(&"x".repeat(257), None, "", s(0)),
        Err(BanError::Identity(257))
    );
    list.ban("ada", None, &"é€".repeat(100), s(0))
        .expect("room");
    let reason = list.is_banned("ada", s(0)).expect("banned").reason;
    assert!(reason.len() <= MAX_REASON_BYTES && reason.len() > MAX_REASON_BYTES - 3);
}

proptest! {
    #[test]
    fn a_bucket_never_gives_more_than_its_rate(
        per_s: u32,
        burst: u32,
        steps in proptest::collection::vec((0u64..5_000_000_000, any::<u32>()), 0..100),
    ) {
        let mut bucket = TokenBucket::new(Rate::new(per_s, burst));
        let mut now = Duration::ZERO;
        let mut given = 0u128;
        for (pause_ns, tokens) in steps {
            now += Duration::from_nanos(pause_ns);
            let wait = bucket.wait(tokens, now);
            let took = bucket.take(tokens, now);
            prop_assert_eq!(took, wait == Some(Duration::ZERO));
            given += u128::from(tokens) * u128::from(took);
            let allowed = u128::from(burst) * 1_000_000_000 + now.as_nanos() * u128::from(per_s);
            prop_assert!(given * 1_000_000_000 <= allowed);
            if let Some(wait) = wait {
                let mut later = bucket;
                prop_assert!(took || later.take(tokens, now + wait), "waiting is enough");
            }
        }
    }

    /// Counts stay right and memory bounded whatever happens, and the orders of forgetting agree with the visitors.
    #[test]
    fn a_gate_agrees_with_a_plain_count(seed: u64, addresses in 1usize..12) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = GateLimits {
            attempts: Rate::new(2, 5),
            sessions: 3,
            handshakes: 3,
            handshakes_total: 8,
            addresses,
            exempt_loopback: true,
        };
        let mut gate = AddressGate::new(limits);
        let mut now = Duration::ZERO;
        let mut handshakes = [0u32; 16];
        let mut sessions = [0u32; 16];
        for _ in 0..500 {
            now += ms(rng.u64(0..300));
            let who = rng.usize(0..16);
            let other = rng.usize(0..16);
            match rng.u8(0..8) {
                0 | 1 => {
                    if gate.try_connect(v4(who as u32), now).is_ok() {
                        prop_assert!(gate.is_banned(v4(who as u32), now).is_none() || sessions[who] > 0);
                        handshakes[who] += 1;
                    }
                }
                2 if handshakes[who] > 0 => {
                    gate.handshake_done(v4(who as u32));
                    handshakes[who] -= 1;
                }
                3 => sessions[who] += u32::from(gate.session_opened(v4(who as u32), now).is_ok()),
                4 if sessions[who] > 0 => {
                    gate.session_closed(v4(who as u32));
                    sessions[who] -= 1;
                }
                5 if sessions[who] > 0 => {
                    if gate.session_moved(v4(who as u32), v4(other as u32), now).is_ok() {
                        sessions[who] -= 1;
                        sessions[other] += 1;
                    }
                }
                6 => drop(gate.ban(v4(who as u32), ms(rng.u64(0..5_000)), now)),
                _ => drop(gate.unban(v4(who as u32))),
            }
            prop_assert!(gate.addresses() <= addresses);
            prop_assert_eq!(gate.handshakes(), handshakes.iter().sum::<u32>());
            prop_assert!(gate.handshakes() <= 8 && handshakes.iter().all(|&n| n <= 3));
            for (who, &count) in sessions.iter().enumerate() {
                prop_assert_eq!(gate.sessions(v4(who as u32)), count);
            }
            let present = gate.visitors.values().filter(|v| v.standing() == Standing::Present);
            prop_assert_eq!(present.count() + gate.idle.len() + gate.banned.len(), gate.addresses());
        }
    }

    #[test]
    fn conduct_survives_any_ladder_and_clock(
        warn_at: u32, disconnect_at in 0u32..20, ban_at_offence in 0u32..5, ban_factor: u32,
        every_ns: u64, offence_ns: u64, ban in 0u64.., times: Vec<u64>,
    ) {
        let ladder = Ladder {
            warn_at,
            disconnect_at,
            forgive_strike_every: Duration::from_nanos(every_ns),
            ban_at_offence,
            forgive_offence_every: Duration::from_nanos(offence_ns),
            ban: Duration::from_secs(ban),
            ban_factor,
            max_ban: Duration::MAX,
        };
        let mut conduct = Conduct::default();
        for &time in &times {
            let answer = conduct.breach(&ladder, Duration::from_nanos(time));
            if let Answer::Ban(length) = answer {
                prop_assert!(length >= ladder.ban);
            }
        }
        prop_assert_eq!(conduct.counts().total(), times.len() as u64);
    }
}
