//! A real Redis server for tests, and a proxy in front of it that breaks on demand.
//!
//! Where no `redis-server` is installed, [`Server::start`] gives `None`, and the test that needs it says so and passes.
//! `tests/run` installs one, and sets the variable with which a missing server is a failure.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::gateway::TestConfig;
use super::wait::poll;

/// With this variable a missing server is a failure.
const REQUIRED: &str = "TESTS_NEED_REDIS";
/// This variable names another program to start as the server, such as `valkey-server`.
const PROGRAM: &str = "TESTS_STORE";

fn program() -> String {
    std::env::var(PROGRAM).unwrap_or_else(|_| "redis-server".to_owned())
}

/// A running `redis-server`.
pub struct Server {
    child: Option<Child>,
    folder: TempDir,
    port: u16,
    flags: Vec<String>,
    /// Environment variables.
    variables: Vec<(String, String)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// A server on a free port; `None` where none is installed.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[], &[]).await
    }

    /// The same with further flags, and with these environment variables.
    pub async fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Option<Self> {
        let program = program();
        if Command::new(&program).arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os(REQUIRED).is_none(), "{program} is not installed");
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (folder, port) = (TempDir::new().unwrap(), free_port().await);
        let mut server = Self { child: None, folder, port, flags, variables };
        server.run().await;
        Some(server)
    }

    /// Starts it again after [`kill`](Self::kill), on the same port and empty.
    pub async fn run(&mut self) {
        let mut command = Command::new(program());
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &self.port.to_string()]);
        command.arg("--dir").arg(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(&self.flags).envs(self.variables.iter().cloned());
        self.child = Some(command.spawn().unwrap());
        poll("the server answers", || async { self.try_connect().map(drop) }).await;
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it without closing its connections (`STOP`), or lets it go on (`CONT`).
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    fn try_connect(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(self.url()).ok()?;
        client.get_connection_with_timeout(Duration::from_secs(10)).ok()
    }

    /// Runs one command. It is given as words.
    pub fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.try_connect().unwrap()).unwrap()
    }

    /// Every key with its value as the server dumps it, and whether it has an expiry.
    pub fn content(&self) -> Vec<(String, Vec<u8>, bool)> {
        let keys: Vec<String> = self.ask(&["KEYS", "*"]);
        let read = |key: String| {
            let dump: Option<Vec<u8>> = self.ask(&["DUMP", &key]);
            let left: i64 = self.ask(&["PTTL", &key]);
            // It may have ended since it was listed.
            (left != -2).then(|| (key, dump.unwrap_or_default(), left >= 0))
        };
        keys.into_iter().filter_map(read).collect()
    }
}

/// A port that was free a moment ago. The servers do not tell which port they took, so they cannot choose one.
pub async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// A host that is dark: what is sent to it is dropped.
pub struct Dark {
    address: SocketAddr,
    _listener: TcpListener,
    _waits: TcpStream,
}

impl Dark {
    /// A socket that listens, and on which one connection waits: no more than that fit into its queue.
    pub async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, _waits: TcpStream::connect(address).await.unwrap(), _listener: listener }
    }

    /// The URL of a store of several servers, with this host before the others.
    pub fn before(&self, url: &str) -> String {
        url.replacen("://", &format!("://{},", self.address), 1)
    }
}

/// What a [`Proxy`] does with what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It passes.
    Whole,
    /// Connections are closed, and new ones too.
    Cut,
    /// Connections stay open, and nothing passes.
    Frozen,
    /// The server's replies are replaced by bytes that are no reply.
    Garbage,
    /// Each reply takes 190 ms longer.
    Slow,
}

/// A proxy in front of a server.
pub struct Proxy {
    address: SocketAddr,
    link: Arc<watch::Sender<Link>>,
}

impl Proxy {
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, link) = (listener.local_addr().unwrap(), Arc::new(watch::Sender::new(Link::Whole)));
        let sender = Arc::clone(&link);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                tokio::spawn(forward(client, server, sender.subscribe()));
            }
        });
        Self { address, link }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

/// Ends when a reply arrives; never where none is on its way.
async fn arrival(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Forwards one connection. Each change of the link is applied to what comes next.
async fn forward(mut client: TcpStream, server: SocketAddr, mut link: watch::Receiver<Link>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    // A small reply must not wait until the one before it is acknowledged.
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut buffer = vec![0; 65536];
    let requests = copy(&mut from_client, &mut to_server);
    tokio::pin!(requests);
    // Replies on their way, each with the time at which it arrives.
    let mut replies = VecDeque::<(Instant, Vec<u8>)>::new();
    loop {
        let now = *link.borrow_and_update();
        match now {
            Link::Cut => return,
            Link::Frozen => {
                if link.changed().await.is_err() {
                    return;
                }
                continue;
            }
            Link::Whole | Link::Garbage | Link::Slow => {}
        }
        tokio::select! {
            changed = link.changed() => if changed.is_err() { return },
            _ = &mut requests => return,
            () = arrival(replies.front().map(|(due, _)| *due)) => {
                let Some((_, reply)) = replies.pop_front() else { continue };
                if to_client.write_all(&reply).await.is_err() {
                    return;
                }
            }
            read = from_server.read(&mut buffer) => {
                let Ok(length @ 1..) = read else { return };
                let later = if now == Link::Slow { Duration::from_millis(190) } else { Duration::ZERO };
                let garbled = now == Link::Garbage;
                let reply = if garbled { &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..] } else { &buffer[..length] };
                replies.push_back((Instant::now() + later, reply.to_vec()));
            }
        }
    }
}

/// A configuration that shares this store with `replicas` others. A busy machine is no slow store: an operation may take
/// long, except where a test says otherwise.
pub fn sharing(config: TestConfig, url: &str, replicas: u32) -> TestConfig {
    config.set("shared.url", url).set("shared.replicas", replicas.to_string()).set("shared.timeout", "4s")
}
