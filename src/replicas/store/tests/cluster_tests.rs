//! A simulated cluster of which one node fails, under paused time.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use futures_util::future::{BoxFuture, pending, ready};
use futures_util::{FutureExt, future};

use super::*;
use crate::config::{Servers, StoreUrl};
use crate::replicas::connection::{self, Connection, Script};

const S: Duration = Duration::from_secs(1);

/// What the node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Works,
    /// Nothing listens there.
    Gone,
    /// It never answers.
    Frozen,
}

struct Cluster {
    node: Mutex<Node>,
    /// What was sent to the node.
    sent: AtomicUsize,
}

/// A key of the node that fails, and one of another node. The heartbeats are on a third.
const FAR: &str = "far";
const NEAR: &str = "near";

impl Cluster {
    async fn start() -> (Arc<Self>, SharedStore) {
        let cluster = Arc::new(Self { node: Mutex::new(Node::Works), sent: AtomicUsize::new(0) });
        let settings = Shared {
            url: StoreUrl { servers: Servers::Unix("/nowhere".into()), tls: false, database: 0 },
            username: None,
            password: None,
            ca_file: None,
            seal: Vec::new(),
            prefix: "test".to_owned(),
            timeout: Duration::from_millis(100),
            lease: 30 * S,
            replicas: 2,
        };
        let store = SharedStore::new(settings, Metrics::new(), Clock::simulated());
        store.start_trials();
        let connection = Connection::ScriptedCluster(cluster.script());
        let nodes = [FAR, NEAR, &store.0.home].map(|key| connection.node(key.as_bytes()));
        assert!(nodes[0] != nodes[1] && nodes[0] != nodes[2] && nodes[1] != nodes[2], "{nodes:?}");
        store.try_out(connection).await.unwrap();
        (cluster, store)
    }

    fn script(self: &Arc<Self>) -> Arc<Script> {
        let cluster = Arc::clone(self);
        Arc::new(move |command| cluster.answer(command))
    }

    fn answer(&self, command: &Cmd) -> BoxFuture<'static, RedisResult<Value>> {
        let is_heartbeat = command.args_iter().count() > 6;
        if is_heartbeat {
            return ready(Ok(Value::Array([1, 1, 2].map(Value::Int).into()))).boxed();
        }
        if !connection::key(command).unwrap().starts_with(FAR.as_bytes()) {
            return ready(Ok(Value::Int(1))).boxed();
        }
        self.sent.fetch_add(1, Ordering::SeqCst);
        match *self.node.lock().unwrap() {
            Node::Works => ready(Ok(Value::Int(1))).boxed(),
            Node::Gone => future::err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()).boxed(),
            Node::Frozen => pending().boxed(),
        }
    }

    fn set(&self, node: Node) {
        *self.node.lock().unwrap() = node;
    }

    fn sent(&self) -> usize {
        self.sent.swap(0, Ordering::SeqCst)
    }
}

async fn get(store: &SharedStore, key: &str) -> Result<i64, StoreError> {
    store.run("page_get", redis::cmd("GET").arg(key)).await
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_is_one_episode_and_the_others_are_used() {
    for (does, cause) in [(Node::Gone, "connection refused"), (Node::Frozen, "the store did not answer in time")] {
        let (cluster, store) = Cluster::start().await;
        let (mut is_up, episode) = (store.watch_up(), store.episode());
        is_up.mark_unchanged();
        cluster.set(does);
        for _ in 0..FAILURES {
            assert!(matches!(get(&store, FAR).await, Err(error) if error != StoreError::Down));
            assert_eq!(get(&store, NEAR).await, Ok(1));
        }
        tokio::time::sleep(S / 10).await;
        cluster.sent();
        let since = store.view().since;
        let begun = store.clock().now();
        while store.clock().now() < begun + 10 * S {
            let before = store.clock().now();
            assert_eq!((get(&store, FAR).await, get(&store, NEAR).await), (Err(StoreError::Down), Ok(1)));
            assert_eq!(store.clock().now(), before, "nothing waits");
            let view = store.view();
            assert_eq!((view.usage, view.cause.as_deref(), view.since), (StoreUse::Part, Some(cause), since));
            tokio::time::sleep(S / 100).await;
        }
        let tried = cluster.sent();
        assert!((8..=41).contains(&tried), "{does:?}: {tried}");
        cluster.set(Node::Works);
        tokio::time::sleep(2 * S).await;
        assert_eq!((get(&store, FAR).await, store.view().usage), (Ok(1), StoreUse::All));
        assert!(!is_up.has_changed().unwrap() && store.episode() == episode, "it was reached all the time");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_budget_fails_is_alone_although_the_store_is_reached() {
    let (_, store) = Cluster::start().await;
    let is_shown_up = || store.0.metrics.shared_up.get_or_create(&NoLabels {}).get();
    assert_eq!((store.view().usage, is_shown_up()), (StoreUse::All, 1));
    let part = || Part::Budget("key".into());
    store.set_fault(part(), Some(&StoreError::Failed("full".to_owned())));
    let view = store.view();
    assert_eq!((view.usage, view.cause.as_deref(), is_shown_up()), (StoreUse::None, Some("full"), 0));
    assert!(store.is_up());
    store.set_fault(part(), None);
    assert_eq!((store.view().usage, store.view().cause, is_shown_up()), (StoreUse::All, None, 1));
}
