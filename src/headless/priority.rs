//! Which thread the system lets go first.
#![allow(unsafe_code, reason = "priorities of threads have no safe interface")]

use tracing::debug;

/// Has the system let this thread go before others when it has something to do. Threads that it starts are ordinary.
///
/// A tick takes little time and should take the same each time, and those who read from the network have a queue before
/// them: without this, a flood that keeps all cores busy delays ticks by the milliseconds that other threads may run.
///
/// On Linux this asks for `SCHED_RR` at its lowest priority, which takes `CAP_SYS_NICE` or `RLIMIT_RTPRIO` (systemd:
/// `LimitRTPRIO=1`), and a second core, so that ticks which take all their time leave the network's threads theirs.
/// Otherwise it asks for short time slices, which everybody may have and which are some help since Linux 6.12. Elsewhere
/// it does nothing. Returns whether ticks go first.
pub fn raise_priority() -> bool {
    let goes_first = system::go_first();
    if !goes_first {
        debug!(
            "ticks may have to wait for other threads: to let them go first takes CAP_SYS_NICE or RLIMIT_RTPRIO, and two cores"
        );
    }
    goes_first
}

#[cfg(target_os = "linux")]
mod system {
    use std::thread::available_parallelism;

    /// The least that Linux allows. It is how long a thread runs before others have their turn, and so also how long it
    /// waits for its own.
    const SLICE_NS: u64 = 100_000;

    pub fn go_first() -> bool {
        if available_parallelism().is_ok_and(|cores| cores.get() > 1)
            && set(libc::sched_attr {
                sched_policy: libc::SCHED_RR as u32,
                sched_priority: 1,
                ..ordinary()
            })
        {
            return true;
        }
        // SAFETY: takes and returns plain numbers; "process" 0 is this thread.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        set(libc::sched_attr {
            sched_nice: nice,
            sched_runtime: SLICE_NS,
            ..ordinary()
        });
        false
    }

    /// The attributes of an ordinary thread, whose children are ordinary whatever else is set.
    fn ordinary() -> libc::sched_attr {
        libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: libc::SCHED_OTHER as u32,
            sched_flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
            sched_nice: 0,
            sched_priority: 0,
            sched_runtime: 0,
            sched_deadline: 0,
            sched_period: 0,
        }
    }

    fn set(attributes: libc::sched_attr) -> bool {
        // SAFETY: thread 0 is this one; the system reads the attributes, which are as large as they say.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn go_first() -> bool {
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_first_where_it_may_and_what_it_starts_does_not() {
        // SAFETY: takes and returns plain numbers; "process" 0 is this thread.
        let policy = || unsafe { libc::sched_getscheduler(0) } & !libc::SCHED_RESET_ON_FORK;
        let thread = std::thread::spawn(move || {
            let goes_first = raise_priority();
            let started = std::thread::spawn(policy).join().expect("no panic");
            (goes_first, policy(), started)
        });
        let (goes_first, own, started) = thread.join().expect("no panic");
        let expected = if goes_first {
            libc::SCHED_RR
        } else {
            libc::SCHED_OTHER
        };
        assert_eq!(own, expected);
        assert_eq!(started, libc::SCHED_OTHER);
    }
}
