//! A real server for unit tests.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::SharedStore;
use crate::config::{Servers, Shared, StoreUrl};
use crate::core::clock::{Clock, Instant};
use crate::metrics::Metrics;

/// Where tests must not be skipped for want of a server, this variable is set.
const NEEDED: &str = "TESTS_NEED_REDIS";

const PATIENCE: Duration = Duration::from_secs(10);

/// A `redis-server` behind a unix socket in a folder of its own. Ends when it is dropped.
pub(crate) struct TestServer {
    process: Option<Child>,
    folder: TempDir,
}

impl TestServer {
    /// Starts a server. `None`, and a line that says so, where none is installed: the test is skipped.
    pub(crate) fn start() -> Option<Self> {
        let mut server = Self { process: None, folder: tempfile::tempdir().unwrap() };
        if server.try_run() {
            return Some(server);
        }
        assert!(std::env::var_os(NEEDED).is_none(), "redis-server is not installed, and {NEEDED} is set");
        eprintln!("skipped: redis-server is not installed");
        None
    }

    /// Starts the server again after [`kill`](Self::kill). It has lost its data.
    pub(crate) fn run(&mut self) {
        assert!(self.try_run());
    }

    /// Whether the program is there. Panics if it is and the server does not start.
    #[expect(clippy::disallowed_methods, reason = "nothing else runs in this test yet")]
    fn try_run(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(self.socket());
        let Ok(process) = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() else { return false };
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Ends the server at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops the server without closing its connections, until [`thaw`](Self::thaw).
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().unwrap();
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    /// Removes all data.
    pub(crate) fn flush(&self) {
        redis::cmd("FLUSHALL").exec(&mut self.connection()).unwrap();
    }

    /// The bytes that it has sent to all its clients.
    pub(crate) fn sent(&self) -> u64 {
        let stats: String = redis::cmd("INFO").arg("stats").query(&mut self.connection()).unwrap();
        let sent = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        sent.unwrap().trim().parse().unwrap()
    }

    /// A connection that blocks.
    pub(crate) fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(format!("unix://{}", self.socket().display())).unwrap();
        client.get_connection().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// A way of its own to this server, for one replica, that [`close_door`](Self::close_door) closes.
    pub(crate) fn settings_with_door(&self, name: &str) -> Shared {
        self.open_door(name);
        let servers = Servers::Unix(self.folder.path().join(name));
        Shared { url: StoreUrl { servers, tls: false, database: 0 }, ..self.settings() }
    }

    /// Opens such a way again.
    pub(crate) fn open_door(&self, name: &str) {
        std::os::unix::fs::symlink(self.socket(), self.folder.path().join(name)).unwrap();
    }

    /// Cuts a replica off, and returns once it has noticed.
    pub(crate) async fn close_door(&self, name: &str, replica: &SharedStore) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
        let id: u64 = replica.run("test", redis::cmd("CLIENT").arg("ID")).await.unwrap();
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(id).arg("SKIPME").arg("no");
        while replica.is_up() {
            // It closes the connection that it comes by.
            let _ = replica.run::<redis::Value>("test", &kill).await;
        }
    }

    /// A way of its own to this server, for one replica, on which no connection carries more than `limit` bytes until
    /// the bottleneck is opened.
    pub(crate) fn settings_with_bottleneck(&self, limit: usize) -> (Shared, Bottleneck) {
        let path = self.folder.path().join(format!("bottleneck-{}", fastrand::u64(..)));
        let (listener, server) = (UnixListener::bind(&path).unwrap(), self.socket());
        let bottleneck = Bottleneck(Arc::new(watch::Sender::new(Capacity::Not)));
        let state = Arc::clone(&bottleneck.0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    let server = tokio::net::UnixStream::connect(server).await.unwrap();
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    // Either direction ends both.
                    tokio::select! {
                        () = carry(from_client, to_server, limit, &state) => {}
                        () = carry(from_server, to_client, limit, &state) => {}
                    }
                });
            }
        });
        let servers = Servers::Unix(path);
        (Shared { url: StoreUrl { servers, tls: false, database: 0 }, ..self.settings() }, bottleneck)
    }

    /// The configuration of a replica that uses this server.
    pub(crate) fn settings(&self) -> Shared {
        Shared {
            url: StoreUrl { servers: Servers::Unix(self.socket()), tls: false, database: 0 },
            username: None,
            password: None,
            ca_file: None,
            seal: vec![Zeroizing::new([7; 32])],
            prefix: "test".to_owned(),
            // This machine may be busy with other tests.
            timeout: Duration::from_secs(2),
            lease: Duration::from_secs(5),
            replicas: 2,
        }
    }

    /// The store as one replica sees it, once it is reached.
    pub(crate) async fn replica(&self) -> SharedStore {
        self.replica_with(self.settings(), Clock::new()).await
    }

    /// Such a store with its own configuration and clock.
    pub(crate) async fn replica_with(&self, settings: Shared, clock: Clock) -> SharedStore {
        let store = SharedStore::start(settings, Metrics::new(), clock);
        until("the store is reached", || store.is_up()).await;
        store
    }
}

/// Where connections that have carried much stand still.
pub(crate) struct Bottleneck(Arc<watch::Sender<Capacity>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capacity {
    Not,
    /// One stands still.
    Reached,
    /// They go on.
    Open,
    /// They are closed.
    Closed,
}

impl Bottleneck {
    /// Returns once a connection stands still.
    pub(crate) async fn is_reached(&self) {
        until("the bottleneck is reached", || *self.0.borrow() == Capacity::Reached).await;
    }

    /// Lets everything pass from now on.
    pub(crate) fn open(&self) {
        self.0.send_replace(Capacity::Open);
    }

    /// Closes the connections that stand still.
    pub(crate) fn close(&self) {
        self.0.send_replace(Capacity::Closed);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, limit: usize, state: &watch::Sender<Capacity>) {
    let (mut buffer, mut carried) = (vec![0; 65536], 0);
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        carried += length;
        if carried > limit && *state.borrow() != Capacity::Open {
            state.send_replace(Capacity::Reached);
            let mut state = state.subscribe();
            let is_over = |state: &Capacity| matches!(state, Capacity::Open | Capacity::Closed);
            if state.wait_for(is_over).await.is_ok_and(|state| *state == Capacity::Closed) {
                return;
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns once `so` holds. Panics if that takes too long.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
