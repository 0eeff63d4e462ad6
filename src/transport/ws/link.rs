//! A link's task: reads, writes at the link's pace, and knows when it is over. The same on both sides.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::Message;

use super::budget::Budget;
use super::frame::{self, Limits, close_code};
use super::outbox::{Goodbye, Item, Next, Outbox};
use super::socket::{Error, Socket};
use super::stats::Stats;
use crate::transport::{CloseReason, LinkPace};

/// How long a link that ends may take to send what waits, and to hear that the peer has it.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// Where a link's datagrams go.
pub(super) trait Inbox {
    /// Whether there is room. If not, the task is woken when there is.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Takes the datagrams of a message.
    fn deliver(&mut self, datagrams: &mut Vec<Vec<u8>>);
}

/// How a link behaves.
#[derive(Clone, Debug)]
pub(super) struct LinkRules {
    /// What is taken from the peer.
    pub limits: Limits,
    /// Whether the peer is a client, whose word on why it leaves does not count.
    pub peer_is_client: bool,
    /// What the peer may send.
    pub budget: Option<Budget>,
    /// Silence after which the peer is asked for a sign of life.
    pub ping_interval: Duration,
    /// Silence after which the link is over.
    pub timeout: Duration,
    /// With more bytes than this waiting, the peer is congested.
    pub congested_above: usize,
    /// After how long of that the link is over. `None`: never.
    pub drop_congested_after: Option<Duration>,
}

/// How a link ended, and what is left to do.
struct Ending {
    reason: CloseReason,
    last_words: LastWords,
}

enum LastWords {
    /// The stream is of no use any more.
    None,
    /// The answer to the peer's close frame.
    Reply,
    /// A close frame.
    Close(u16, Cow<'static, str>),
}

impl Ending {
    fn ours(reason: CloseReason) -> Self {
        let (code, text) = frame::close_frame(&reason);
        let text = Cow::Owned(text.to_owned());
        Self {
            reason,
            last_words: LastWords::Close(code, text),
        }
    }

    /// The peer sent what it may not.
    fn refused(code: u16, what: impl Into<Cow<'static, str>>) -> Self {
        let what = what.into();
        Self {
            reason: CloseReason::Transport(format!("the peer sent what it may not: {what}")),
            last_words: LastWords::Close(code, what),
        }
    }
}

/// An open link.
pub(super) struct Link<S, I> {
    socket: Socket<S>,
    inbox: I,
    outbox: Arc<Outbox>,
    stats: Arc<Stats>,
    rules: LinkRules,
    /// The time of this poll.
    now: Instant,
    last_heard: Instant,
    last_ping: Instant,
    congested_since: Option<Instant>,
    /// Not reading, by choice.
    paused: bool,
    next_check: Instant,
    check_alarm: Alarm,
    pace_alarm: Alarm,
    budget_alarm: Alarm,
    /// Datagrams of one message, for reuse.
    arrived: Vec<Vec<u8>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin, I: Inbox + Unpin> Link<S, I> {
    pub fn new(
        socket: Socket<S>,
        inbox: I,
        outbox: Arc<Outbox>,
        stats: Arc<Stats>,
        rules: LinkRules,
    ) -> Self {
        let now = Instant::now();
        Self {
            socket,
            inbox,
            outbox,
            stats,
            rules,
            now,
            last_heard: now,
            last_ping: now,
            congested_since: None,
            paused: false,
            next_check: now,
            check_alarm: Alarm::default(),
            pace_alarm: Alarm::default(),
            budget_alarm: Alarm::default(),
            arrived: Vec::new(),
        }
    }

    /// Runs until the link is over, says why, and then takes leave of the peer, within a second.
    pub async fn run(mut self, on_end: impl FnOnce(CloseReason)) {
        let ending = std::future::poll_fn(|cx| self.poll(cx)).await;
        on_end(ending.reason);
        match ending.last_words {
            LastWords::None => return,
            LastWords::Reply => self.socket.queue_reply(),
            LastWords::Close(code, text) => {
                if self.socket.queue_close(code, &text).is_err() {
                    return;
                }
            }
        }
        // Whoever does not read in time is not told.
        let _ = timeout(FAREWELL_TIME, self.socket.finish()).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.now = Instant::now();
        // What arrived is read before anything is found to be too late.
        let ending = self
            .poll_read(cx)
            .or_else(|| self.poll_checks(cx))
            .or_else(|| self.poll_write(cx));
        match ending {
            Some(ending) => Poll::Ready(ending),
            None => Poll::Pending,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        loop {
            if self.inbox.poll_room(cx).is_pending() {
                if !self.paused {
                    self.paused = true;
                    self.stats.add_inbox_full();
                }
                return None;
            }
            if let Some(budget) = &mut self.rules.budget
                && let Some(wait) = budget.wait(self.now)
                && self
                    .budget_alarm
                    .poll_until(self.now + wait, cx)
                    .is_pending()
            {
                // TCP tells the peer to wait. A stream loses nothing, so there is nothing to drop.
                if !self.paused {
                    self.paused = true;
                    self.stats.add_over_budget();
                }
                return None;
            }
            if self.paused {
                // The silence was of our making.
                self.paused = false;
                self.last_heard = self.now;
            }
            let read = self.socket.poll_read(cx);
            // Also what makes no message: a client could send parts of one for ever.
            let bytes = self.socket.take_read_bytes();
            self.spend(0, bytes);
            match read {
                Poll::Pending => return None,
                Poll::Ready(Err(error)) => return Some(self.broken(error)),
                Poll::Ready(Ok(message)) => {
                    self.last_heard = self.now;
                    if let Some(ending) = self.handle_message(message) {
                        return Some(ending);
                    }
                }
            }
        }
    }

    fn handle_message(&mut self, message: Message) -> Option<Ending> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Ping(_) | Message::Pong(_) => {
                self.spend(1, 0);
                return None;
            }
            Message::Text(_) => {
                self.stats.add_malformed();
                return Some(Ending::refused(close_code::UNSUPPORTED, "a text message"));
            }
            Message::Close(close) => {
                return Some(Ending {
                    reason: match close {
                        None => CloseReason::ByPeer,
                        Some(close) if self.rules.peer_is_client => {
                            frame::client_close_reason(close.code.into())
                        }
                        Some(close) => frame::close_reason(close.code.into(), &close.reason, true),
                    },
                    last_words: LastWords::Reply,
                });
            }
            Message::Frame(_) => return None, // never read
        };
        let arrived = &mut self.arrived;
        let decoded = frame::decode(&bytes, self.rules.limits, |head, rest| {
            arrived.push([head, rest].concat());
        });
        if let Err(error) = decoded {
            self.stats.add_malformed();
            return Some(Ending::refused(error.close_code(), error.to_string()));
        }
        let datagrams = self.arrived.len();
        self.stats.add_datagrams_in(datagrams);
        self.inbox.deliver(&mut self.arrived);
        self.spend(datagrams, 0);
        None
    }

    fn spend(&mut self, datagrams: usize, bytes: usize) {
        if let Some(budget) = &mut self.rules.budget {
            budget.spend(self.now, datagrams, bytes);
        }
    }

    fn poll_checks(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        while self.check_alarm.poll_until(self.next_check, cx).is_ready() {
            let rules = &self.rules;
            let shortest = rules
                .ping_interval
                .min(rules.timeout)
                .min(rules.drop_congested_after.unwrap_or(Duration::MAX));
            let period = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
            self.next_check = self.now + period;

            let silence = self.now - self.last_heard;
            if silence >= rules.timeout && !self.paused {
                return Some(Ending::ours(CloseReason::TimedOut));
            }
            if silence >= rules.ping_interval && self.now - self.last_ping >= rules.ping_interval {
                self.last_ping = self.now;
                if let Err(error) = self.socket.queue_ping() {
                    return Some(self.broken(error));
                }
            }
            if let Some(since) = self.congested_since
                && let Some(allowed) = self.rules.drop_congested_after
                && self.now - since >= allowed
            {
                self.socket.drop_unwritten();
                return Some(Ending::ours(CloseReason::Congested));
            }
        }
        None
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        loop {
            let idle = match self.socket.poll_write(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => return Some(self.broken(error.into())),
                Poll::Pending => false,
            };
            self.outbox
                .set_leaving(self.socket.unwritten_bytes(), !idle);
            if self.outbox.is_congested(self.rules.congested_above) {
                self.congested_since.get_or_insert(self.now);
            } else {
                self.congested_since = None;
            }
            match self.outbox.next(self.now, idle, cx) {
                Next::Wait => return None,
                Next::WaitUntil(at) => {
                    if self.pace_alarm.poll_until(at, cx).is_pending() {
                        return None;
                    }
                    self.now = self.now.max(at);
                }
                Next::Round(items, pace) => {
                    if let Err(error) = self.queue_round(items, pace) {
                        return Some(self.broken(error));
                    }
                }
                Next::End(Goodbye::Close(reason)) => return Some(Ending::ours(reason)),
                Next::End(Goodbye::Drop(reason)) => {
                    self.socket.drop_unwritten();
                    return Some(Ending::ours(reason));
                }
                Next::End(Goodbye::GoAway) => {
                    return Some(Ending {
                        reason: CloseReason::ByUs,
                        last_words: LastWords::Close(
                            close_code::GOING_AWAY,
                            "the server shuts down".into(),
                        ),
                    });
                }
                Next::End(Goodbye::Vanish) => {
                    return Some(Ending {
                        reason: CloseReason::ByUs,
                        last_words: LastWords::None,
                    });
                }
            }
        }
    }

    fn queue_round(&mut self, items: Vec<Item>, pace: LinkPace) -> Result<(), Error> {
        for item in items {
            self.stats.add_datagrams_out(item.datagrams());
            let (first, second) = match item {
                Item::Batch(batch) => (
                    batch.into_message(pace.compress_above, pace.level),
                    Bytes::new(),
                ),
                Item::Shared { head, shared } => {
                    let (first, second) =
                        frame::shared_message(&head, &shared, pace.compress_above, pace.level);
                    (first.into(), second)
                }
            };
            self.socket.queue_binary(first, second)?;
        }
        Ok(())
    }

    fn broken(&self, error: Error) -> Ending {
        let code = match &error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => close_code::TOO_BIG,
            Error::Utf8(_) => close_code::INVALID,
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | Error::Io(_)
            | Error::ConnectionClosed
            | Error::AlreadyClosed => {
                return Ending {
                    reason: CloseReason::Transport(describe_broken(&error)),
                    last_words: LastWords::None,
                };
            }
            _ => close_code::PROTOCOL,
        };
        self.stats.add_malformed();
        Ending::refused(code, error.to_string())
    }
}

/// How a connection ended that nobody closed.
fn describe_broken(error: &Error) -> String {
    match error {
        Error::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            format!("the connection broke off: {error}")
        }
        _ => "the connection broke off".into(),
    }
}

/// A timer that is made when it is first needed.
#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let at = at.into();
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}
