//! Stores of several servers, of which one dies.

use super::bound::{Extra, REPLICAS, now};
use super::rig::{PHASE, Setup};
use super::servers::{Cluster, Sentinels};
use super::support::store::Dark;
use super::wrong_clock;

/// The primary dies, and its replica takes over. The clock of the replica is ahead by so many seconds.
async fn failover(name: &str, ahead: i64) -> Option<()> {
    let variables = wrong_clock::variables(ahead);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut servers = Sentinels::start(&variables).await?;
    let mut rig = Setup::new(name, servers.url()).start().await;
    let begun = now();
    servers.primary.kill();
    servers.replaced().await;
    let back = now();
    // Whoever finds it first shares while the others are alone.
    rig.returns(begun, back).await;
    tokio::time::sleep(PHASE).await;
    // The old primary comes back, believes for a while that it still is one, and is not used.
    servers.primary.run().await;
    tokio::time::sleep(PHASE).await;
    rig.share().await;
    rig.finish().await;
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn sentinel_failover() {
    failover("Sentinel failover", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn sentinel_failover_to_a_clock_that_is_ahead() {
    failover("Sentinel failover, its clock an hour ahead", 3600).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn sentinel_failover_to_a_clock_that_is_behind() {
    failover("Sentinel failover, its clock an hour behind", -3600).await;
}

/// Each node of a cluster dies and comes back empty.
async fn lose_each_node(name: &str, whole: bool) -> Option<()> {
    let mut cluster = Cluster::start(whole).await?;
    let mut rig = Setup::new(name, cluster.url()).start().await;
    for node in 0..cluster.nodes.len() {
        let begun = now();
        cluster.nodes[node].kill();
        tokio::time::sleep(PHASE).await;
        cluster.nodes[node].run().await;
        cluster.is_whole().await;
        let back = now();
        rig.returns(begun, back).await;
        // Which keys were lost decides who is alone meanwhile, and each replica notices at another time.
        rig.allow(Extra::CutOff { replicas: REPLICAS - 1, from: begun, until: back });
        tokio::time::sleep(PHASE).await;
    }
    rig.finish().await;
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn cluster_that_stops_as_a_whole() {
    lose_each_node("cluster of 3, each node killed", true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn cluster_that_goes_on_in_part() {
    lose_each_node("the same without full coverage", false).await;
}

/// The first of the hosts in the URL never answers. The replicas share all the same.
async fn without_the_first(name: &str, url: &str) {
    let dark = Dark::start().await;
    let rig = Setup::new(name, dark.before(url)).start().await;
    rig.shares_pages().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn sentinel_of_which_one_host_is_dark() {
    let Some(servers) = Sentinels::start(&[]).await else { return };
    without_the_first("Sentinel, its first host dark", &servers.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn cluster_of_which_one_host_is_dark() {
    let Some(cluster) = Cluster::start(true).await else { return };
    without_the_first("cluster, its first host dark", &cluster.url()).await;
}
