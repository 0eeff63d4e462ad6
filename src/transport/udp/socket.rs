//! UDP sockets with large buffers, and reading many datagrams at a time.
#![allow(unsafe_code, reason = "socket options and time stamps of the kernel")]

use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
#[cfg(target_os = "linux")]
use std::time::{SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};

/// A little more than netcode's largest packet: whatever does not fit is not netcode.
const MAX_BYTES: usize = 1_500;

/// Opens a socket and asks for buffers of this size. Tells, too, what it got for receiving.
pub(super) fn bind(addr: SocketAddr, buffer_bytes: usize) -> io::Result<(UdpSocket, usize)> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        // `[::]` takes IPv4, too. Where the system does not have both, IPv6 alone has to do.
        let _ = socket.set_only_v6(false);
    }
    // A smaller buffer is a smaller server, not a failure.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    if socket.recv_buffer_size()? < buffer_bytes {
        force_receive_buffer(&socket, buffer_bytes);
    }
    let received_bytes = socket.recv_buffer_size()?;
    socket.bind(&addr.into())?;
    Ok((socket.into(), received_bytes))
}

/// Linux caps the buffer at `net.core.rmem_max`, unless the process has `CAP_NET_ADMIN` and asks
/// so. Failure is fine.
#[cfg(target_os = "linux")]
fn force_receive_buffer(socket: &Socket, bytes: usize) {
    use std::os::fd::AsRawFd;
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open, and the option's value points to an int of that length.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn force_receive_buffer(_: &Socket, _: usize) {}

/// Has the system note when datagrams arrive, where it can.
#[cfg(target_os = "linux")]
pub(super) fn stamp_arrivals(socket: &UdpSocket) {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option's value points to an int of that length.
    unsafe {
        // Without, datagrams seem to arrive when they are read.
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn stamp_arrivals(_: &UdpSocket) {}

/// Reads a datagram of a connected socket: its length, and how long ago it arrived, as far as the system knows.
#[cfg(target_os = "linux")]
pub(super) fn receive_stamped(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, Duration)> {
    use std::os::fd::AsRawFd;
    /// Room for one time, aligned as the system wants it.
    #[repr(C, align(8))]
    struct Control([u8; 64]);

    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeros are a valid, empty header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: the descriptor is open, and the header names one buffer and one control buffer that live on.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: `recvmsg` has filled in the header and the control buffer.
    let arrived = unsafe { arrival(&message) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let age = match (now, arrived) {
        (Ok(now), Some(arrived)) => now.saturating_sub(arrived),
        _ => Duration::ZERO,
    };
    Ok((length, age))
}

/// When a datagram arrived, since 1970.
///
/// # Safety
/// `recvmsg` must have filled in the header, and its control buffer must still be there.
#[cfg(target_os = "linux")]
unsafe fn arrival(message: &libc::msghdr) -> Option<Duration> {
    // SAFETY: as the caller says. The macros stay within the control buffer, and return null at its end.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while let Some(head) = control.as_ref() {
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_TIMESTAMPNS {
                let time = libc::CMSG_DATA(control)
                    .cast::<libc::timespec>()
                    .read_unaligned();
                let seconds = u64::try_from(time.tv_sec).ok()?;
                return Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?));
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
        None
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn receive_stamped(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, Duration)> {
    Ok((socket.recv(buffer)?, Duration::ZERO))
}

/// Datagrams read in one go.
pub(super) struct ReceiveBatch {
    buffers: Vec<[u8; MAX_BYTES]>,
    received: Vec<(SocketAddr, usize)>,
}

impl ReceiveBatch {
    pub(super) fn new(datagrams: usize) -> Self {
        Self {
            buffers: vec![[0; MAX_BYTES]; datagrams],
            received: Vec::with_capacity(datagrams),
        }
    }

    /// Waits for a datagram for as long as the socket's read timeout, then takes what else is
    /// there without waiting.
    ///
    /// # Errors
    /// What the system says, but for "nothing there" and for complaints of other hosts that they
    /// could not be reached: those are about what was sent, and are nothing to stop reading for.
    pub(super) fn fill(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.received.clear();
        while let Some(buffer) = self.buffers.get_mut(self.received.len()) {
            let result = match self.received.is_empty() {
                true => socket.recv_from(buffer).map(|(len, addr)| (addr, len)),
                false => receive_without_waiting(socket, buffer),
            };
            match result {
                Ok((addr, len)) => self.received.push((addr, len)),
                Err(error) => {
                    return if is_harmless(&error) {
                        Ok(())
                    } else {
                        Err(error)
                    };
                }
            }
        }
        Ok(())
    }

    pub(super) fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (SocketAddr, &mut [u8])> {
        let datagrams = self.received.iter().zip(&mut self.buffers);
        datagrams.map(|((addr, len), buffer)| (*addr, &mut buffer[..*len]))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }
}

#[cfg(unix)]
fn receive_without_waiting(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(SocketAddr, usize)> {
    // SAFETY: initialised bytes are valid as maybe uninitialised ones, and `recv_from` writes
    // nothing but initialised bytes.
    let buffer = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let (len, addr) =
        socket2::SockRef::from(socket).recv_from_with_flags(buffer, libc::MSG_DONTWAIT)?;
    Ok((addr.as_socket().ok_or(io::ErrorKind::InvalidData)?, len))
}

/// Without the flag, one datagram at a time has to do.
#[cfg(not(unix))]
fn receive_without_waiting(_: &UdpSocket, _: &mut [u8]) -> io::Result<(SocketAddr, usize)> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// Whether an error of receiving or sending says nothing about this socket.
pub(super) fn is_harmless(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        WouldBlock
            | TimedOut
            | Interrupted
            | ConnectionReset
            | ConnectionRefused
            | HostUnreachable
            | NetworkUnreachable
    )
}

/// Read and write timeouts of a server's socket.
pub(super) fn set_timeouts(socket: &UdpSocket, read: Duration, write: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(read))?;
    socket.set_write_timeout(Some(write))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_datagram_is_as_old_as_the_time_it_has_waited() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (socket, _) = bind(any, 1 << 16).expect("a free port");
        stamp_arrivals(&socket);
        let from = UdpSocket::bind(any).expect("a free port");
        let to = socket.local_addr().expect("bound");
        let sending = Instant::now();
        from.send_to(b"hello", to).expect("loopback");
        let sent = Instant::now();
        let mut buffer = [0; 16];
        while sent.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let waited = sent.elapsed();
        let (length, age) = receive_stamped(&socket, &mut buffer).expect("it is there");
        assert_eq!(&buffer[..length], b"hello");
        let slack = Duration::from_millis(2);
        assert!(
            age + slack >= waited && age <= sending.elapsed() + slack,
            "{age:?} after {waited:?}"
        );
    }
}
