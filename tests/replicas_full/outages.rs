//! What one store can do wrong: it dies, stops, answers garbage, refuses, forgets, or holds what others wrote.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::bound::{Extra, now};
use super::rig::{PHASE, Rig, Setup};
use super::support::store::{Link, Proxy, Server, free_port};

async fn hold() {
    tokio::time::sleep(PHASE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn kill_and_restart() {
    let Some(mut server) = Server::start().await else { return };
    let mut rig = Setup::new("kill -9, restart", server.url()).start().await;
    for _ in 0..2 {
        rig.survives_a_restart(&mut server).await;
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn freeze_and_thaw() {
    let Some(server) = Server::start().await else { return };
    let mut rig = Setup::new("freeze, thaw", server.url()).start().await;
    let begun = now();
    server.signal("STOP");
    rig.alone().await;
    hold().await;
    let back = now();
    server.signal("CONT");
    rig.returns(begun, back).await;
    hold().await;
    rig.finish().await;
}

/// Answers every connection with bytes that are no reply.
async fn talk_garbage(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        tokio::spawn(async move {
            let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(512).collect();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = stream.write_all(&noise).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn garbage() {
    let Some(mut server) = Server::start().await else { return };
    let mut rig = Setup::new("garbage in its place", server.url()).start().await;
    let begun = now();
    server.kill();
    let listener = TcpListener::bind(server.address()).await.unwrap();
    let talking = tokio::spawn(talk_garbage(listener));
    rig.alone().await;
    hold().await;
    talking.abort();
    let _ = talking.await;
    let back = now();
    server.run().await;
    rig.returns(begun, back).await;
    hold().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn full() {
    let Some(server) = Server::start_with(&["--maxmemory-policy", "noeviction"], &[]).await else { return };
    let mut rig = Setup::new("full (noeviction)", server.url()).start().await;
    let begun = now();
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]);
    rig.alone().await;
    hold().await;
    let back = now();
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]);
    rig.returns(begun, back).await;
    hold().await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn flush() {
    let Some(server) = Server::start().await else { return };
    let mut rig = Setup::new("3 × FLUSHALL", server.url()).start().await;
    for _ in 0..3 {
        let from = now();
        server.ask::<String>(&["FLUSHALL"]);
        rig.allow(Extra::Burst { from, until: now() });
        hold().await;
        rig.shares_pages().await;
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn read_only() {
    let Some(server) = Server::start().await else { return };
    let mut rig = Setup::new("read-only replica", server.url()).start().await;
    let begun = now();
    let nobody = free_port().await.to_string();
    server.ask::<String>(&["REPLICAOF", "127.0.0.1", &nobody]);
    rig.alone().await;
    hold().await;
    let back = now();
    server.ask::<String>(&["REPLICAOF", "NO", "ONE"]);
    rig.returns(begun, back).await;
    hold().await;
    rig.finish().await;
}

/// Writes text over all values whose names match the pattern, whatever they were.
fn overwrite(server: &Server, pattern: &str) -> usize {
    const OTHER: &str = r"
        local keys = redis.call('KEYS', ARGV[1])
        for _, key in ipairs(keys) do redis.call('SET', key, 'another format', 'KEEPTTL') end
        return #keys
    ";
    server.ask(&["EVAL", OTHER, "0", pattern])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn pages_of_another_format() {
    let Some(server) = Server::start().await else { return };
    let mut rig = Setup::new("pages of another format", server.url()).start().await;
    for _ in 0..10 {
        let damaged = overwrite(&server, "*:page:*");
        rig.check(damaged > 0, "there are no pages to damage");
        tokio::time::sleep(PHASE / 8).await;
    }
    rig.shares_pages().await;
    let mut unsealed = 0;
    for gateway in &rig.gateways {
        let count = gateway.metric("insights_gateway_shared_unsealed_total ").await;
        unsealed += count.expect("the metric").parse::<u64>().unwrap();
    }
    rig.check(unsealed > 0, "no value counts as unsealed");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn everything_of_another_format() {
    let Some(server) = Server::start().await else { return };
    let mut rig = Setup::new("everything of another format", server.url()).start().await;
    let begun = now();
    for _ in 0..8 {
        let from = now();
        overwrite(&server, "*");
        // The budget begins anew.
        rig.allow(Extra::Burst { from, until: now() });
        tokio::time::sleep(PHASE / 4).await;
    }
    // Nothing has to be flushed: each key begins anew.
    rig.returns(begun, now()).await;
    hold().await;
    rig.finish().await;
}

/// One replica loses the store, the others go on sharing.
async fn partition(link: Link) -> Option<()> {
    let server = Server::start().await?;
    let proxy = Proxy::start(server.address()).await;
    let name = format!("one replica cut off: {link:?}").to_lowercase();
    let mut rig = Setup::new(name, server.url()).last_by(proxy.url()).start().await;
    let from = now();
    proxy.set(link);
    hold().await;
    rig.check(is_alone(&rig, 2).await, "the replica that is cut off says so");
    rig.check(!is_alone(&rig, 0).await && !is_alone(&rig, 1).await, "the others go on sharing");
    hold().await;
    let back = now();
    proxy.set(Link::Whole);
    rig.share().await;
    let took = now() - back;
    rig.check(took <= super::rig::RETURN + 2.0, format!("shares again only after {took:.1} s"));
    rig.shares_pages().await;
    rig.allow(Extra::CutOff { replicas: 1, from, until: now().max(back + 1.0) });
    hold().await;
    rig.finish().await;
    Some(())
}

async fn is_alone(rig: &Rig, gateway: usize) -> bool {
    rig.gateways[gateway].metric("insights_gateway_shared_up{} ").await.as_deref() == Some("0")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn partition_by_closed_connections() {
    partition(Link::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn partition_by_silence() {
    partition(Link::Frozen).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn partition_by_garbage() {
    partition(Link::Garbage).await;
}
