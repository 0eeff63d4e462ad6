//! WebSocket over a stream of bytes.
//!
//! `tungstenite` reads, answers pings and knows the protocol's states. What a server sends is framed here instead: its
//! frames are a few bytes of header before a payload that need not be copied, and that many links share. All that waits
//! to be written is in one queue and leaves with as few system calls as may be.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig, WebSocketContext};

use super::stats::Stats;

pub(super) use tungstenite::Error;

/// While more than this waits to be written, pings are not answered: a peer that asks and does not read gets no queue.
const MAX_BYTES_BEFORE_PONG: usize = 16 << 10;

/// Parts of frames that one system call takes.
const MAX_SLICES: usize = 64;

/// One end of a WebSocket.
pub(super) struct Socket<S> {
    stream: S,
    context: WebSocketContext,
    role: Role,
    wire: Wire,
    /// Something was written since the stream was flushed, which matters to TLS.
    unflushed: bool,
    /// Since somebody asked.
    read_bytes: usize,
    stats: Arc<Stats>,
}

/// Bytes to write, in order.
#[derive(Default)]
struct Wire {
    frames: VecDeque<Frame>,
    /// Of the first frame, this many bytes are written.
    written: usize,
    bytes: usize,
    /// An answer to a ping waits until there is room.
    pong_waits: bool,
}

struct Frame {
    header: [u8; 10],
    header_bytes: usize,
    parts: [Bytes; 2],
}

impl Frame {
    /// A binary message of a server.
    fn binary(parts: [Bytes; 2]) -> Self {
        let payload = parts[0].len() + parts[1].len();
        let mut header = [0; 10];
        header[0] = 0x82; // final, binary
        let header_bytes = if payload < 126 {
            header[1] = payload as u8;
            2
        } else if let Ok(payload) = u16::try_from(payload) {
            header[1] = 126;
            header[2..4].copy_from_slice(&payload.to_be_bytes());
            4
        } else {
            header[1] = 127;
            header[2..].copy_from_slice(&(payload as u64).to_be_bytes());
            10
        };
        Self {
            header,
            header_bytes,
            parts,
        }
    }

    fn slices(&self) -> [&[u8]; 3] {
        [
            &self.header[..self.header_bytes],
            &self.parts[0],
            &self.parts[1],
        ]
    }

    fn len(&self) -> usize {
        self.slices().map(<[u8]>::len).iter().sum()
    }
}

impl Wire {
    fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn push_raw(&mut self, bytes: Bytes) {
        self.push(Frame {
            header: [0; 10],
            header_bytes: 0,
            parts: [bytes, Bytes::new()],
        });
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        for mut slice in self.frames.iter().flat_map(Frame::slices) {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            slice = &slice[skipped..];
            if slice.is_empty() {
                continue;
            }
            if count == MAX_SLICES {
                break;
            }
            slices[count] = IoSlice::new(slice);
            count += 1;
        }
        count
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.written += bytes;
        while let Some(frame) = self.frames.front()
            && frame.len() <= self.written
        {
            self.written -= frame.len();
            self.frames.pop_front();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Speaks WebSocket over a stream on which the HTTP upgrade is done, and of which `read` has been read since. Takes
    /// messages of at most `max_message_bytes`.
    pub fn new(
        stream: S,
        read: Vec<u8>,
        role: Role,
        max_message_bytes: usize,
        stats: Arc<Stats>,
    ) -> Self {
        // What a client reads in a call is a snapshot, what a server does is some inputs. What either writes is queued
        // here: the rest of the buffers' 256 KiB is for nobody.
        let config = match role {
            Role::Server => WebSocketConfig::default()
                .read_buffer_size(2 << 10)
                .max_write_buffer_size(1 << 10),
            Role::Client => WebSocketConfig::default()
                .read_buffer_size(16 << 10)
                .max_write_buffer_size(1 << 20),
        }
        .write_buffer_size(0)
        .max_message_size(Some(max_message_bytes))
        .max_frame_size(Some(max_message_bytes));
        Self {
            stream,
            context: WebSocketContext::from_partially_read(read, role, Some(config)),
            role,
            wire: Wire::default(),
            unflushed: false,
            read_bytes: 0,
            stats,
        }
    }

    /// Takes messages of at most that many bytes from now on.
    pub fn set_max_message_bytes(&mut self, bytes: usize) {
        self.context.set_config(|config| {
            config.max_message_size = Some(bytes);
            config.max_frame_size = Some(bytes);
        });
    }

    /// The next message, with pings and pongs. Pings are answered already.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error>> {
        let mut io = Io {
            stream: &mut self.stream,
            cx,
            wire: &mut self.wire,
            room_for_all: false,
            read_bytes: &mut self.read_bytes,
            stats: &self.stats,
        };
        match self.context.read(&mut io) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            result => Poll::Ready(result),
        }
    }

    /// The next message, as [`poll_read`](Self::poll_read), while what waits is written.
    pub async fn read(&mut self) -> Result<Message, Error> {
        std::future::poll_fn(|cx| {
            let read = self.poll_read(cx);
            // Reading may have queued an answer.
            match self.poll_write(cx) {
                Poll::Ready(Err(error)) if read.is_pending() => Poll::Ready(Err(error.into())),
                _ => read,
            }
        })
        .await
    }

    /// Queues a binary message, in two parts that are not copied if this is a server.
    pub fn queue_binary(&mut self, first: Bytes, second: Bytes) -> Result<(), Error> {
        match self.role {
            Role::Server => {
                self.wire.push(Frame::binary([first, second]));
                Ok(())
            }
            Role::Client => {
                // It is masked, so it is copied anyway.
                let message = if second.is_empty() {
                    first
                } else {
                    [first, second].concat().into()
                };
                self.queue(Message::Binary(message))
            }
        }
    }

    /// Queues a ping.
    pub fn queue_ping(&mut self) -> Result<(), Error> {
        self.queue(Message::Ping(Bytes::new()))
    }

    /// Queues a close frame, the last.
    pub fn queue_close(&mut self, code: u16, reason: &str) -> Result<(), Error> {
        self.queue(Message::Close(Some(CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        })))
    }

    /// Queues the answer to the peer's close frame.
    pub fn queue_reply(&mut self) {
        let mut io = Io {
            stream: &mut self.stream,
            cx: &mut Context::from_waker(std::task::Waker::noop()),
            wire: &mut self.wire,
            room_for_all: true,
            read_bytes: &mut self.read_bytes,
            stats: &self.stats,
        };
        // "Closed" is what it says when it is done.
        let _ = self.context.flush(&mut io);
    }

    fn queue(&mut self, message: Message) -> Result<(), Error> {
        let mut io = Io {
            stream: &mut self.stream,
            cx: &mut Context::from_waker(std::task::Waker::noop()),
            wire: &mut self.wire,
            room_for_all: true,
            read_bytes: &mut self.read_bytes,
            stats: &self.stats,
        };
        self.context.write(&mut io, message)
    }

    /// Writes what is queued, and is ready when all of it has been handed to the system.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.wire.bytes > 0 {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = self.wire.slices(&mut slices);
                let stream = Pin::new(&mut self.stream);
                let written = ready!(stream.poll_write_vectored(cx, &slices[..count]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.stats.add_bytes_out(written);
                self.wire.advance(written);
                self.unflushed = true;
            }
            if self.unflushed {
                ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
                self.unflushed = false;
            }
            if !std::mem::take(&mut self.wire.pong_waits) {
                return Poll::Ready(Ok(()));
            }
            let mut io = Io {
                stream: &mut self.stream,
                cx,
                wire: &mut self.wire,
                room_for_all: true,
                read_bytes: &mut self.read_bytes,
                stats: &self.stats,
            };
            // An error here shows again when reading.
            let _ = self.context.flush(&mut io);
        }
    }

    /// Bytes that were read since this was last asked, whatever was in them.
    pub fn take_read_bytes(&mut self) -> usize {
        std::mem::take(&mut self.read_bytes)
    }

    /// Bytes that wait to be handed to the system.
    pub fn unwritten_bytes(&self) -> usize {
        self.wire.bytes
    }

    /// Forgets frames that have not begun to leave, so that a close frame leaves next.
    pub fn drop_unwritten(&mut self) {
        self.wire
            .frames
            .truncate(usize::from(self.wire.written > 0));
        let first = self.wire.frames.front().map_or(0, Frame::len);
        self.wire.bytes = first - self.wire.written.min(first);
    }

    /// Writes what is queued, then says that no more comes, and reads until the peer says so too. Closing with unread
    /// bytes would reset the connection, and the peer might lose what was sent last.
    pub async fn finish(&mut self) {
        std::future::poll_fn(|cx| {
            let mut done = match self.poll_write(cx) {
                Poll::Pending => false,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => match Pin::new(&mut self.stream).poll_shutdown(cx) {
                    Poll::Pending => false,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(())) => true,
                },
            };
            let mut scrap = [0; 1_024];
            loop {
                let mut scrap = ReadBuf::new(&mut scrap);
                match Pin::new(&mut self.stream).poll_read(cx, &mut scrap) {
                    Poll::Ready(Ok(())) if scrap.filled().is_empty() => break,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {
                        done = false;
                        break;
                    }
                }
            }
            if done { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// How `tungstenite` sees the stream: it reads from it, and writes into the queue.
struct Io<'a, 'b, 'c, S> {
    stream: &'a mut S,
    cx: &'a mut Context<'c>,
    wire: &'b mut Wire,
    /// Whether to queue whatever waits already.
    room_for_all: bool,
    read_bytes: &'b mut usize,
    stats: &'b Stats,
}

impl<S: AsyncRead + Unpin> Read for Io<'_, '_, '_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut bytes = ReadBuf::new(bytes);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut bytes) {
            Poll::Ready(Ok(())) => {
                let read = bytes.filled().len();
                self.stats.add_bytes_in(read);
                *self.read_bytes += read;
                Ok(read)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S> Write for Io<'_, '_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.room_for_all && self.wire.bytes > MAX_BYTES_BEFORE_PONG {
            self.wire.pong_waits = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.wire.push_raw(Bytes::copy_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(wire: &Wire) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = wire.slices(&mut slices);
        slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn frames_leave_whole_however_they_are_cut() {
        let frames = || {
            [0, 1, 125, 126, 65_535, 65_536].map(|size| {
                Frame::binary([vec![1; size / 2].into(), vec![2; size - size / 2].into()])
            })
        };
        let whole: Vec<u8> = frames()
            .iter()
            .flat_map(|frame| frame.slices().concat())
            .collect();
        assert_eq!(whole[..2], [0x82, 0], "an empty message is its header");
        for step in [1, 2, 3, 7, 1_000, 65_539] {
            let mut wire = Wire::default();
            for frame in frames() {
                wire.push(frame);
            }
            assert_eq!(wire.bytes, whole.len());
            let mut sent = Vec::new();
            while wire.bytes > 0 {
                let next = written(&wire);
                let taken = step.min(next.len());
                sent.extend_from_slice(&next[..taken]);
                wire.advance(taken);
                if step < 10 && sent.len() > 600 {
                    break; // the rest is more of the same
                }
            }
            assert!(whole.starts_with(&sent), "in steps of {step}");
            assert!(step < 10 || sent.len() == whole.len(), "all of it");
        }
    }
}
