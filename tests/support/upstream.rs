//! An upstream that sends any bytes at any time, or nothing at all, as a test demands.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::find;
use super::requests::{MEMBERS, METADATA, PAGE};
use super::wait::within;

/// A received request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its number, counted from 1.
    pub number: usize,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(|l| line(l)).and_then(|l| l.split_once(':')).map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Delays responses until it is opened.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Gate {
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    Drip(Vec<u8>, Duration),
    Wait(Gate),
    Reset,
    Close,
    Abandon,
    Forever,
}

/// What the upstream does with one request.
#[derive(Debug, Clone)]
pub struct Plan(Vec<Step>);

impl Plan {
    /// A well-formed response.
    pub fn json(status: u16, body: &str) -> Self {
        Self::with(status, "Content-Type: application/json\r\n", body)
    }

    pub fn page(body: &str) -> Self {
        Self::json(200, body)
    }

    /// A response with header lines, each ended by CR LF.
    pub fn with(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::raw(format!("HTTP/1.1 {status} Some Words\r\n{headers}Content-Length: {length}\r\n\r\n{body}"))
    }

    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![Step::Send(bytes.into())])
    }

    /// No response at all.
    pub fn silence() -> Self {
        Self(vec![Step::Forever])
    }

    pub fn reset() -> Self {
        Self(vec![Step::Reset])
    }

    pub fn close() -> Self {
        Self(vec![Step::Close])
    }

    /// Sends the bytes one by one.
    pub fn drip(bytes: impl Into<Vec<u8>>, pace: Duration) -> Self {
        Self(vec![Step::Drip(bytes.into(), pace)])
    }

    /// The same, once the gate is open.
    pub fn after(mut self, gate: &Gate) -> Self {
        self.0.insert(0, Step::Wait(gate.clone()));
        self
    }

    pub fn then_reset(mut self) -> Self {
        self.0.push(Step::Reset);
        self
    }

    pub fn then_close(mut self) -> Self {
        self.0.push(Step::Close);
        self
    }

    /// Ends the connection without telling TLS.
    pub fn then_abandon(mut self) -> Self {
        self.0.push(Step::Abandon);
        self
    }

    pub fn then_silence(mut self) -> Self {
        self.0.push(Step::Forever);
        self
    }
}

type Script = Box<dyn FnMut(&Seen) -> Plan + Send>;

struct Shared {
    seen: Mutex<Vec<Seen>>,
    count: watch::Sender<usize>,
    script: Mutex<Script>,
    connections: watch::Sender<usize>,
}

/// A server on a free port.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    scheme: &'static str,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A port that is bound, so that no other process gets it, but not listened on.
pub struct DeadPort(TcpSocket);

impl DeadPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// Listens from now on.
    pub fn heal(self, script: impl FnMut(&Seen) -> Plan + Send + 'static) -> Upstream {
        Upstream::on(self.0.listen(64).unwrap(), None, script)
    }
}

impl Upstream {
    /// Answers every request with [`PAGE`].
    pub async fn start() -> Self {
        Self::script(|_| Plan::page(PAGE)).await
    }

    /// Answers requests for metadata with [`MEMBERS`], all others with [`PAGE`].
    pub async fn with_metadata() -> Self {
        Self::script(|seen| Plan::page(if seen.target() == METADATA { MEMBERS } else { PAGE })).await
    }

    /// Answers as the script says.
    pub async fn script(script: impl FnMut(&Seen) -> Plan + Send + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), None, script)
    }

    /// The same over TLS.
    pub async fn tls(config: rustls::ServerConfig, script: impl FnMut(&Seen) -> Plan + Send + 'static) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), Some(acceptor), script)
    }

    fn on(
        listener: TcpListener,
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: impl FnMut(&Seen) -> Plan + Send + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            count: watch::Sender::new(0),
            script: Mutex::new(Box::new(script)),
            connections: watch::Sender::new(0),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                // The task owns the connections, so that they end with it.
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    shared.connections.send_modify(|n| *n += 1);
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    connections.spawn(serve(stream, tls, shared));
                }
            }
        });
        Self { address, shared, task, scheme }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Answers with this script from now on.
    pub fn set(&self, script: impl FnMut(&Seen) -> Plan + Send + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    /// Answers every request with this page from now on.
    pub fn heal(&self, page: &'static str) {
        self.set(move |_| Plan::page(page));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        *self.shared.count.borrow()
    }

    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Waits until this many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let _ = within(self.shared.count.subscribe().wait_for(|n| *n >= count)).await;
    }
}

async fn serve(mut tcp: TcpStream, tls: Option<tokio_rustls::TlsAcceptor>, shared: Arc<Shared>) {
    let _ = tcp.set_nodelay(true);
    let reset = match tls {
        None => converse(&mut tcp, &shared).await,
        // A client that does not trust the certificate disconnects here.
        Some(acceptor) => match acceptor.accept(&mut tcp).await {
            Ok(mut stream) => converse(&mut stream, &shared).await,
            Err(_) => false,
        },
    };
    if reset {
        let _ = tcp.set_zero_linger();
    }
}

/// Serves a connection until it ends; `true` when it is to end with a reset.
async fn converse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), shared: &Shared) -> bool {
    let mut buffer = Vec::new();
    loop {
        let Some((head, body)) = request(stream, &mut buffer).await else { return false };
        let mut seen = Seen { number: 0, head, body };
        let plan = {
            let mut all = shared.seen.lock().unwrap();
            seen.number = all.len() + 1;
            all.push(seen.clone());
            (shared.script.lock().unwrap())(&seen)
        };
        shared.count.send_modify(|n| *n += 1);
        for step in plan.0 {
            let sent = match step {
                Step::Send(bytes) => stream.write_all(&bytes).await,
                Step::Drip(bytes, pace) => drip(stream, &bytes, pace).await,
                Step::Wait(gate) => {
                    gate.passed().await;
                    Ok(())
                }
                Step::Reset => return true,
                Step::Abandon => return false,
                Step::Close => {
                    let _ = stream.shutdown().await;
                    return false;
                }
                Step::Forever => std::future::pending().await,
            };
            // TLS writes are buffered.
            if sent.is_err() || stream.flush().await.is_err() {
                return false;
            }
        }
    }
}

async fn drip(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], pace: Duration) -> std::io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        stream.flush().await?;
        tokio::time::sleep(pace).await;
    }
    Ok(())
}

/// Reads a request with a known length, as the gateway sends them.
async fn request(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at;
        }
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer.drain(..end + 4).collect::<Vec<_>>()).into_owned();
    let seen = Seen { number: 0, head, body: Vec::new() };
    assert_eq!(seen.header("transfer-encoding"), None, "the gateway knows the length of what it sends");
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().expect("a length"));
    while buffer.len() < length {
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return None;
        }
    }
    let body = buffer.drain(..length).collect();
    Some((seen.head, body))
}
