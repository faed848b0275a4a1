//! Servers that work together: a primary with its replica behind Sentinel, and a cluster.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::support::process::Running;
use super::support::store::{Server, free_port};
use super::support::*;
use super::wrong_clock;

/// A primary, its replica, and three sentinels that replace the one by the other.
pub struct Sentinels {
    pub primary: Server,
    pub replica: Server,
    ports: Vec<u16>,
    _sentinels: Vec<Running>,
    _folder: TempDir,
}

impl Sentinels {
    const SERVICE: &str = "main";

    /// The replica runs with these environment variables. `None` where no server is installed.
    pub async fn start(variables: &[(&str, &str)]) -> Option<Self> {
        let primary = Server::start().await?;
        let port = primary.address().port();
        let of = port.to_string();
        let replica = Server::start_with(&["--replicaof", "127.0.0.1", &of], variables).await?;
        let (folder, mut sentinels, mut ports) = (TempDir::new().unwrap(), Vec::new(), Vec::new());
        for number in 0..3 {
            let own = free_port().await;
            let file = folder.path().join(format!("{number}.conf"));
            let service = Self::SERVICE;
            let mut text = format!("port {own}\nbind 127.0.0.1\ndir {}\n", folder.path().display());
            writeln!(text, "sentinel monitor {service} 127.0.0.1 {port} 2").unwrap();
            writeln!(text, "sentinel down-after-milliseconds {service} 1000").unwrap();
            writeln!(text, "sentinel failover-timeout {service} 5000").unwrap();
            std::fs::write(&file, text).unwrap();
            let mut command = Command::new("redis-sentinel");
            let child = command.arg(file).stdout(Stdio::null()).spawn().expect("redis-sentinel is installed");
            sentinels.push(Running(child));
            ports.push(own);
        }
        let started = Self { primary, replica, ports, _sentinels: sentinels, _folder: folder };
        poll("the sentinels know each other and the replica", || async { started.are_ready().then_some(()) }).await;
        Some(started)
    }

    fn are_ready(&self) -> bool {
        self.ports.iter().all(|port| {
            let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
            let Ok(mut connection) = client.get_connection() else { return false };
            let known: Result<std::collections::HashMap<String, String>, _> =
                redis::cmd("SENTINEL").arg("MASTER").arg(Self::SERVICE).query(&mut connection);
            known.is_ok_and(|known| known["num-slaves"] == "1" && known["num-other-sentinels"] == "2")
        }) && self.replica.ask::<String>(&["INFO", "replication"]).contains("master_link_status:up")
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::SERVICE)
    }

    /// Waits until the replica has been made the primary.
    pub async fn replaced(&self) {
        poll("the replica is the primary", || async {
            // The sentinels close all its connections when they make it the primary.
            let client = redis::Client::open(self.replica.url()).unwrap();
            let told: Option<String> = client
                .get_connection()
                .ok()
                .and_then(|mut connection| redis::cmd("INFO").arg("replication").query(&mut connection).ok());
            told.is_some_and(|told| told.contains("role:master")).then_some(())
        })
        .await;
    }
}

/// Three primaries that share the hash slots.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    /// `whole` says whether the nodes refuse everything while one of them is gone. `None` where no server is installed.
    pub async fn start(whole: bool) -> Option<Self> {
        Self::with_clocks(whole, [0; 3]).await
    }

    /// The clocks of the nodes are ahead by so many seconds.
    pub async fn with_clocks(whole: bool, ahead: [i64; 3]) -> Option<Self> {
        let (mut nodes, whole) = (Vec::new(), if whole { "yes" } else { "no" });
        for ahead in ahead {
            let variables = wrong_clock::variables(ahead);
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let bus = free_port().await.to_string();
            let mut flags = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
            flags.extend(["--cluster-require-full-coverage", whole, "--cluster-port", &bus]);
            nodes.push(Server::start_with(&flags, &variables).await?);
        }
        let addresses = nodes.iter().map(|node| node.address().to_string());
        let mut command = Command::new("redis-cli");
        command.args(["--cluster", "create"]).args(addresses).arg("--cluster-yes").stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "the cluster cannot be created");
        let cluster = Self { nodes };
        cluster.is_whole().await;
        Some(cluster)
    }

    /// Waits until every node can be used.
    pub async fn is_whole(&self) {
        for node in &self.nodes {
            poll("the cluster is whole", || async {
                node.ask::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(())
            })
            .await;
        }
        for node in &self.nodes {
            poll("the node knows the others", || async {
                let known: String = node.ask(&["CLUSTER", "NODES"]);
                (known.lines().filter(|line| line.contains("connected") && !line.contains("fail")).count() == 3)
                    .then_some(())
            })
            .await;
        }
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}
