//! Over real sockets on the loopback interface, in real time.

mod hostile;
mod identity;
mod links;
mod raw;
mod slow;
mod web;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::transport::{
    ClientLinkState, ClientTransport, CloseReason, LinkEvent, LinkId, PeerInfo, ServerTransport,
};

/// More than any of these needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn config() -> WsServerConfig {
    WsServerConfig::new(loopback())
}

/// A server and its clients.
struct Net {
    server: WsServer,
    clients: Vec<WsClient>,
    started_at: Instant,
    events: Vec<LinkEvent>,
    /// What each client received.
    datagrams: Vec<Vec<Vec<u8>>>,
}

impl Net {
    fn new(config: WsServerConfig) -> Self {
        Self {
            server: WsServer::bind(config).expect("a free port"),
            clients: Vec::new(),
            started_at: Instant::now(),
            events: Vec::new(),
            datagrams: Vec::new(),
        }
    }

    fn addr(&self) -> SocketAddr {
        self.server.local_addr().expect("TCP has an address")
    }

    fn url(&self) -> String {
        format!("ws://{}", self.addr())
    }

    fn client_config(&self) -> WsClientConfig {
        WsClientConfig::new(self.url())
    }

    fn join(&mut self, config: WsClientConfig) -> usize {
        self.clients
            .push(WsClient::connect(config).expect("a client"));
        self.datagrams.push(Vec::new());
        self.clients.len() - 1
    }

    fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    fn step(&mut self) {
        let now = self.now();
        self.server.receive(now, &mut self.events);
        for (client, datagrams) in self.clients.iter_mut().zip(&mut self.datagrams) {
            client.receive(now, datagrams);
            client.flush(now);
        }
        self.server.flush(now);
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Steps until it is so.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < end,
                "{what}; {:?} {:?}",
                self.server.stats(),
                self.clients
                    .iter()
                    .map(ClientTransport::state)
                    .collect::<Vec<_>>()
            );
            self.step();
        }
    }

    /// A client, and the server's end of its link.
    fn joined(&mut self, config: WsClientConfig) -> (usize, LinkId) {
        let opened = self.opened().len();
        let client = self.join(config);
        self.until("the link opens on both sides", |net| {
            net.clients[client].state().is_connected() && net.opened().len() > opened
        });
        (client, self.opened()[opened].0)
    }

    /// What becomes of a client that does not get in.
    fn refusal(&mut self, config: WsClientConfig) -> CloseReason {
        let client = self.join(config);
        self.until("the client hears why", |net| {
            net.reason(client).is_some() || net.clients[client].state().is_connected()
        });
        self.reason(client).expect("it does not get in")
    }

    fn reason(&self, client: usize) -> Option<CloseReason> {
        self.clients[client].state().close_reason().cloned()
    }

    fn send(&mut self, link: LinkId, datagram: &[u8]) {
        let now = self.now();
        self.server.send(now, link, datagram);
    }

    fn opened(&self) -> Vec<(LinkId, PeerInfo)> {
        let opened = self.events.iter().filter_map(|event| match event {
            LinkEvent::Opened { link, peer } => Some((*link, peer.clone())),
            _ => None,
        });
        opened.collect()
    }

    fn closed(&self, link: LinkId) -> Option<CloseReason> {
        self.events.iter().find_map(|event| match event {
            LinkEvent::Closed { link: of, reason } if *of == link => Some(reason.clone()),
            _ => None,
        })
    }

    fn received(&self, link: LinkId) -> Vec<Vec<u8>> {
        let received = self.events.iter().filter_map(|event| match event {
            LinkEvent::Datagram {
                link: of, bytes, ..
            } if *of == link => Some(bytes.clone()),
            _ => None,
        });
        received.collect()
    }
}

/// A folder of this test's own.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tandem-ws-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
