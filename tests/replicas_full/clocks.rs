//! Clocks that are wrong.

use super::rig::{PHASE, Setup};
use super::servers::Cluster;
use super::support::store::Server;
use super::wrong_clock::variables;

const HOUR: i64 = 3600;

async fn steady(name: &str, store_ahead: i64, gateways_ahead: [i64; 3]) -> Option<()> {
    let variables = variables(store_ahead);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start_with(&[], &variables).await?;
    let rig = Setup::new(name, server.url()).clocks(gateways_ahead).start().await;
    tokio::time::sleep(2 * PHASE).await;
    rig.shares_pages().await;
    rig.finish().await;
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn gateways() {
    steady("clocks of two replicas an hour off", 0, [0, HOUR, -HOUR]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn store_ahead() {
    steady("clock of the store an hour ahead", HOUR, [0; 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn store_behind() {
    steady("clock of the store an hour behind", -HOUR, [0; 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn nodes_of_a_cluster() {
    let Some(cluster) = Cluster::with_clocks(true, [0, HOUR, -HOUR]).await else { return };
    let rig = Setup::new("clocks of two nodes of a cluster an hour off", cluster.url()).start().await;
    tokio::time::sleep(2 * PHASE).await;
    rig.shares_pages().await;
    rig.finish().await;
}
