//! A client that speaks WebSocket by hand, and so can say what none should.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::transport::ws::frame::{self, Credentials};

pub(super) const UPGRADE: &str = "GET /play HTTP/1.1\r\nHost: here\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chat, tandem.1\r\n";

pub(super) struct Raw(pub TcpStream);

/// A frame that arrived: opcode and payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame(pub u8, pub Vec<u8>);

impl Frame {
    /// The code of a close frame.
    pub fn close_code(&self) -> Option<u16> {
        match self {
            Self(8, payload) => payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
            _ => None,
        }
    }
}

impl Raw {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("a connection");
        stream
            .set_read_timeout(Some(super::PATIENCE))
            .expect("a timeout");
        Self(stream)
    }

    /// Connects and upgrades, with further lines of the header.
    pub fn upgraded(addr: SocketAddr, lines: &str) -> Self {
        let mut raw = Self::connect(addr);
        let answer = raw.request(&format!("{UPGRADE}{lines}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        assert!(
            answer
                .to_lowercase()
                .contains("sec-websocket-protocol: tandem.1"),
            "{answer}"
        );
        raw
    }

    /// A client that has said who it is.
    pub fn open(addr: SocketAddr, lines: &str) -> Self {
        let mut raw = Self::upgraded(addr, lines);
        raw.say_hello();
        let answer = raw.read_frame().expect("an answer");
        assert_eq!(answer, Frame(2, frame::MAGIC.to_vec()));
        raw
    }

    pub fn say_hello(&mut self) {
        let claim = Credentials::Claim { client_id: 1 };
        self.send(2, &frame::encode_auth(super::DEFAULT_PROTOCOL_ID, &claim));
    }

    /// Sends a request, and reads the header of the answer.
    pub fn request(&mut self, request: &str) -> String {
        self.write(request.as_bytes());
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
        String::from_utf8(answer).expect("text")
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the server reads");
    }

    /// Sends a frame with a mask of zeros, which masks nothing.
    pub fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            length @ ..126 => bytes.push(0x80 | length as u8),
            length => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(payload);
        self.write(&bytes);
    }

    pub fn read_frame(&mut self) -> io::Result<Frame> {
        let mut header = [0; 2];
        self.0.read_exact(&mut header)?;
        let length = match header[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length)?;
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length)?;
                u64::from_be_bytes(length) as usize
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        Ok(Frame(header[0] & 0xf, payload))
    }

    /// Reads until the server closes, and returns the code with which it does, if it gives one.
    pub fn read_close_code(&mut self) -> Option<u16> {
        loop {
            match self.read_frame() {
                Ok(frame @ Frame(8, _)) => return frame.close_code(),
                Ok(_) => {}
                Err(error) => {
                    assert!(
                        !matches!(
                            error.kind(),
                            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                        ),
                        "the server closes in time"
                    );
                    return None;
                }
            }
        }
    }

    pub fn set_patience(&self, patience: Duration) {
        self.0.set_read_timeout(Some(patience)).expect("a timeout");
    }
}
