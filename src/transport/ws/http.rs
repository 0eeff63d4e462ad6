//! What is said before a link is one: the WebSocket upgrade, and the files of a browser build from the same port.
//!
//! A connection has one request. So it ends within bounds: what is not a link is gone when its answer is.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tower_http::services::ServeDir;

use super::frame::SUBPROTOCOL;
use super::gate::{Full as NoRoom, Gate, Permit};
use super::proxy::{IpPrefix, client_addr, is_trusted};

/// How long the answer to a request may take to be read. A browser build has some 10 MB.
const DOWNLOAD_TIME: Duration = Duration::from_secs(300);

/// Downloads at a time, in total and from each address. A browser makes six.
const MAX_DOWNLOADS: usize = 256;
const MAX_DOWNLOADS_PER_ADDRESS: usize = 32;

/// Bytes of a request that are held at most. hyper wants no less.
const MAX_REQUEST_BYTES: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers requests.
pub(super) struct Http {
    files: Option<ServeDir>,
    downloads: Arc<Gate>,
    allowed_origins: Option<Vec<String>>,
    trusted_proxies: Vec<IpPrefix>,
    /// Handshakes that are going on.
    handshakes: Arc<Gate>,
}

/// Whether and why a server lets no link open.
pub(super) type Closed = Arc<std::sync::atomic::AtomicBool>;

/// A connection that became a WebSocket.
pub(super) struct Upgraded<S> {
    pub stream: S,
    /// What was read already.
    pub read: Vec<u8>,
    /// Where the client is.
    pub addr: SocketAddr,
    /// Its place among the handshakes.
    pub permit: Permit,
}

/// How far a connection's request has come.
struct Visit {
    /// Where it comes from.
    peer: SocketAddr,
    /// Its place among the handshakes, unless it is a download by now.
    permit: Option<Permit>,
    upgrade: Option<(OnUpgrade, SocketAddr)>,
    /// Its place among the downloads.
    download: Option<Permit>,
    refused: Option<(SocketAddr, String)>,
}

impl Visit {
    fn new(peer: SocketAddr, permit: Permit) -> Self {
        Self {
            peer,
            permit: Some(permit),
            upgrade: None,
            download: None,
            refused: None,
        }
    }

    /// What there is for a WebSocket, when its request has been answered: `served`, or not in time.
    fn upgraded(&mut self, served: bool) -> Result<(OnUpgrade, SocketAddr, Permit), NoUpgrade> {
        if let Some((addr, why)) = self.refused.take() {
            return Err(NoUpgrade::Refused(addr, why));
        }
        let Some((upgrade, addr)) = self.upgrade.take() else {
            return Err(match served || self.download.is_some() {
                true => NoUpgrade::Answered,
                false => NoUpgrade::Broken(self.peer),
            });
        };
        match self.permit.take() {
            Some(permit) => Ok((upgrade, addr, permit)),
            None => Err(NoUpgrade::Broken(self.peer)),
        }
    }
}

/// Why a connection did not become a WebSocket.
pub(super) enum NoUpgrade {
    /// It asked for something else, and has it.
    Answered,
    /// It was refused, for this reason.
    Refused(SocketAddr, String),
    /// It said nothing that can be understood, or not in time.
    Broken(SocketAddr),
}

impl Http {
    pub fn new(
        web: Option<&Path>,
        allowed_origins: Option<Vec<String>>,
        trusted_proxies: Vec<IpPrefix>,
        handshakes: Arc<Gate>,
    ) -> Self {
        Self {
            files: web.map(|folder| {
                ServeDir::new(folder)
                    .precompressed_br()
                    .precompressed_gzip()
            }),
            downloads: Gate::new(MAX_DOWNLOADS, MAX_DOWNLOADS_PER_ADDRESS),
            allowed_origins,
            trusted_proxies,
            handshakes,
        }
    }

    /// A place among the handshakes for who connects from there. Behind a proxy, who that is shows later.
    pub fn enter(&self, peer: SocketAddr) -> Result<Permit, NoRoom> {
        let known = !is_trusted(&self.trusted_proxies, peer.ip());
        self.handshakes.enter(known.then(|| peer.ip()))
    }

    /// Answers a connection's request, before `deadline` unless it is for a file.
    pub async fn serve<S>(
        self: Arc<Self>,
        stream: S,
        peer: SocketAddr,
        permit: Permit,
        closed: Closed,
        deadline: Instant,
    ) -> Result<Upgraded<S>, NoUpgrade>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let visit = Arc::new(Mutex::new(Visit::new(peer, permit)));
        let service = service_fn(|request| {
            let (http, visit, closed) = (self.clone(), visit.clone(), closed.clone());
            async move {
                let mut response = http.answer(request, &visit, &closed).await;
                if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let headers = response.headers_mut();
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(deadline.saturating_duration_since(Instant::now()))
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_REQUEST_BYTES)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
        );
        let served = match timeout_at(deadline, &mut connection).await {
            Ok(served) => served.is_ok(),
            Err(_) if lock(&visit).download.is_some() => {
                let _ = timeout_at(deadline + DOWNLOAD_TIME, connection).await;
                return Err(NoUpgrade::Answered);
            }
            Err(_) => false,
        };
        let broken = || NoUpgrade::Broken(peer);
        let (upgrade, addr, permit) = lock(&visit).upgraded(served)?;
        let upgraded = timeout_at(deadline, upgrade).await;
        let upgraded = upgraded.ok().and_then(Result::ok).ok_or_else(broken)?;
        let parts = upgraded.downcast::<TokioIo<S>>().map_err(|_| broken())?;
        Ok(Upgraded {
            stream: parts.io.into_inner(),
            read: parts.read_buf.into(),
            addr,
            permit,
        })
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        visit: &Mutex<Visit>,
        closed: &Closed,
    ) -> Response<Body> {
        let peer = lock(visit).peer;
        let addr = client_addr(peer, request.headers(), &self.trusted_proxies);
        if is_trusted(&self.trusted_proxies, peer.ip()) {
            // Now it is known who is behind the proxy.
            match self.handshakes.enter(Some(addr.ip())) {
                Ok(permit) => lock(visit).permit = Some(permit),
                Err(_) => {
                    let why = "too many connections from your address; try again later";
                    lock(visit).refused = Some((addr, why.to_owned()));
                    return text(StatusCode::TOO_MANY_REQUESTS, why);
                }
            }
        }
        let closed = closed.load(std::sync::atomic::Ordering::Relaxed);
        if is_upgrade(request.headers()) {
            return match self.upgrade(request, closed) {
                Ok((response, upgrade)) => {
                    lock(visit).upgrade = Some((upgrade, addr));
                    response
                }
                Err((status, why)) => {
                    lock(visit).refused = Some((addr, why.clone()));
                    text(status, why)
                }
            };
        }
        if request.uri().path() == "/healthz" {
            return if closed {
                text(StatusCode::SERVICE_UNAVAILABLE, "closing\n")
            } else {
                text(StatusCode::OK, "ok\n")
            };
        }
        match self.downloads.enter(Some(addr.ip())) {
            Ok(permit) => {
                let mut visit = lock(visit);
                visit.download = Some(permit);
                visit.permit = None;
            }
            Err(_) => {
                return text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many downloads at once; try again\n",
                );
            }
        }
        self.serve_file(request).await
    }

    fn upgrade(
        &self,
        mut request: Request<Incoming>,
        closed: bool,
    ) -> Result<(Response<Body>, OnUpgrade), (StatusCode, String)> {
        if closed {
            let why = "the server shuts down; connect to another";
            return Err((StatusCode::SERVICE_UNAVAILABLE, why.into()));
        }
        let headers = request.headers();
        if let (Some(allowed), Some(origin)) = (&self.allowed_origins, headers.get(header::ORIGIN))
        {
            let origin = origin.to_str().unwrap_or("?");
            if !allowed
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(origin))
            {
                let why = format!("pages of {origin:?} may not connect; see `allowed_origins`");
                return Err((StatusCode::FORBIDDEN, why));
            }
        }
        let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
        let speaks = offered
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .any(|name| name.trim() == SUBPROTOCOL);
        if !speaks {
            let why = format!("this server speaks the WebSocket subprotocol {SUBPROTOCOL:?}");
            return Err((StatusCode::BAD_REQUEST, why));
        }
        let mut response =
            create_response_with_body(&request, || full(Bytes::new())).map_err(|error| {
                let why = format!("not a WebSocket handshake: {error}");
                (StatusCode::BAD_REQUEST, why)
            })?;
        response.headers_mut().insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
        Ok((response, hyper::upgrade::on(&mut request)))
    }

    async fn serve_file(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(files) = &self.files else {
            if request.uri().path() != "/" {
                return text(StatusCode::NOT_FOUND, "there are no files here\n");
            }
            let mut response = text(
                StatusCode::UPGRADE_REQUIRED,
                "This is a game server. Games connect to it by WebSocket; it serves no pages.\n",
            );
            response
                .headers_mut()
                .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            return response;
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        }
        let mut response = match files.clone().try_call(request).await {
            Ok(response) => response.map(BodyExt::boxed_unsync),
            Err(error) if is_no_file(&error) => {
                text(StatusCode::NOT_FOUND, "there is no such file\n")
            }
            Err(_) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the file cannot be read\n",
            ),
        };
        let headers = response.headers_mut();
        // A new build has the same names: ask each time whether they changed, which costs no download if not.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        response
    }
}

fn is_no_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
    )
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn lock(visit: &Mutex<Visit>) -> std::sync::MutexGuard<'_, Visit> {
    visit.lock().unwrap_or_else(PoisonError::into_inner)
}
