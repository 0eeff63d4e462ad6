//! For benchmarks of several processes, so that each one's cost is its own: the benchmark starts itself again in other
//! roles, and talks with them in lines.
#![allow(unsafe_code, reason = "asks the system for more files")]
// Each benchmark uses its part of this.
#![allow(dead_code)]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// What precedes a child's role among its arguments.
const ROLE: &str = "--role";

/// Longer than any child takes to answer, also on a machine that does a lot besides.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process of this benchmark's in another role. Ends when dropped.
pub struct Child {
    process: Process,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// Lines it wrote to its log.
    log_lines: Arc<AtomicU64>,
    role: String,
}

impl Child {
    /// Starts this program again, in a role.
    pub fn start(role: &str, args: &[String]) -> Self {
        let program = env::current_exe().expect("this program is running");
        let mut process = Command::new(program)
            .arg(ROLE)
            .arg(role)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let stdin = process.stdin.take().expect("piped");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let stderr = BufReader::new(process.stderr.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let log_lines = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&log_lines);
        let name = role.to_owned();
        let shows_log = env::var_os("SHOW_LOG").is_some();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                counter.fetch_add(1, Ordering::Relaxed);
                if shows_log || line.contains("panicked") {
                    eprintln!("{name}: {line}");
                }
            }
        });
        Self {
            process,
            stdin,
            lines,
            log_lines,
            role: role.to_owned(),
        }
    }

    /// Tells it something.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}")
            .and_then(|()| self.stdin.flush())
            .unwrap_or_else(|error| panic!("the {} process is gone: {error}", self.role));
    }

    /// The next line it says.
    pub fn hear(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("the {} process says nothing", self.role),
            Err(RecvTimeoutError::Disconnected) => panic!("the {} process is gone", self.role),
        }
    }

    /// A line it has said, if there is one.
    pub fn overhear(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Asks, and waits for an answer in JSON.
    pub fn ask(&mut self, question: &str) -> Value {
        self.say(question);
        let answer = self.hear();
        serde_json::from_str(&answer)
            .unwrap_or_else(|error| panic!("the {} process says {answer:?}: {error}", self.role))
    }

    /// How many lines it has written to its log.
    pub fn log_lines(&self) -> u64 {
        self.log_lines.load(Ordering::Relaxed)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The role and the arguments of this process, if it is a child.
pub fn role() -> Option<(String, Vec<String>)> {
    let mut args = env::args().skip(1);
    if args.next()? != ROLE {
        return None;
    }
    Some((args.next()?, args.collect()))
}

/// What the parent says to this child. Ends this process when the parent is gone.
pub fn commands() -> Receiver<String> {
    let (sender, commands) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        std::process::exit(0);
    });
    commands
}

/// Answers the parent.
pub fn reply(line: &str) {
    println!("{line}");
}

/// Command line of a benchmark: `--name value` pairs.
pub struct Options(Vec<String>);

impl Options {
    /// Those of this process. Without `--bench`, which `cargo bench` gives, a run is a short one that shows that
    /// everything works: `cargo test --benches` does that.
    pub fn get() -> Self {
        Self(env::args().skip(1).collect())
    }

    /// Whether to measure rather than to try out.
    pub fn is_full(&self) -> bool {
        self.0.iter().any(|arg| arg == "--bench")
    }

    /// The number after `name`, or one of the defaults: of a full run, of a short one.
    pub fn number<T: std::str::FromStr>(&self, name: &str, full: T, short: T) -> T {
        let given = self.0.iter().position(|arg| arg == name);
        let Some(value) = given.map(|at| self.0.get(at + 1)) else {
            return if self.is_full() { full } else { short };
        };
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| {
                eprintln!("error: a number is expected after '{name}'");
                std::process::exit(2)
            })
    }
}

/// What a benchmark found: promises that were broken, for which a full run ends with an error, and what is only worth a
/// look.
#[derive(Default)]
pub struct Verdict {
    broken: u64,
}

impl Verdict {
    /// A hard promise.
    pub fn demand(&mut self, is_kept: bool, otherwise: &str) {
        if !is_kept {
            self.broken += 1;
            println!("BROKEN: {otherwise}");
        }
    }

    /// One that a busy machine may break.
    pub fn expect(&self, is_kept: bool, otherwise: &str) {
        if !is_kept {
            println!("WARNING: {otherwise}");
        }
    }

    /// That ticks take no longer than in the calm, or not much.
    pub fn expect_p99(&self, when: &str, calm_ms: f64, p99_ms: f64) {
        let ratio = p99_ms / calm_ms;
        let otherwise =
            format!("{when}: a p99 tick of {p99_ms:.2} ms, {ratio:.2} times that of the calm");
        self.expect(ratio <= 1.2, &otherwise);
    }

    /// Ends this process with an error if it is a full run and a promise was broken.
    pub fn conclude(self, options: &Options) {
        if self.broken > 0 {
            println!("{} promises were broken", self.broken);
            if options.is_full() {
                std::process::exit(1);
            }
        }
    }
}

/// Lets this process have as many files and sockets open as the system allows.
pub fn allow_many_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a pointer to a `rlimit` of ours.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
