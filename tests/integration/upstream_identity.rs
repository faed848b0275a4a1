//! Pages of one upstream are never served for another.

use std::path::PathBuf;

use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::process::{Process, set};
use crate::support::*;
use insights_gateway::config::Sources;
use tempfile::TempDir;

const ONE: &str = r#"{"cubes":[],"data":["one"],"meta":{"nextToken":"t"}}"#;
const OTHER: &str = r#"{"cubes":[],"data":["other"],"meta":{"nextToken":"t"}}"#;

async fn answering(page: &'static str) -> Upstream {
    Upstream::script(move |_| Plan::page(page)).await
}

fn requests() -> [Vec<u8>; 3] {
    [post(ASK), get(METADATA, ""), get(&format!("{QUERY}?pageToken=t"), "")]
}

fn write(path: &PathBuf, upstream: &Upstream) {
    let text = format!(
        "[server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n[upstream]\nurl = '{}'\n\
         [accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\nrate = '0/s'\n",
        upstream.url()
    );
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn a_reload_to_another_upstream_serves_no_page_of_the_old_one() {
    let (one, other, folder) = (answering(ONE).await, answering(OTHER).await, TempDir::new().unwrap());
    let file = folder.path().join("gateway.toml");
    write(&file, &one);
    let gateway = Gateway::start(Sources::default().with_file(&file)).await;
    for request in requests() {
        gateway.ask(&request).await.assert_page(ONE, "miss");
    }
    // A request that is under way meanwhile.
    let gate = Gate::default();
    let held = Plan::page(ONE).after(&gate);
    one.set(move |_| held.clone());
    let mut before = gateway.connect().await;
    before.send(&post_to(QUERY, "Cache-Control: no-cache\r\n", ASK)).await;
    one.arrived(4).await;
    write(&file, &other);
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    for request in requests() {
        gateway.ask(&request).await.assert_page(OTHER, "miss");
    }
    gate.open();
    before.answer().await.assert_page(ONE, "miss");
    for request in requests() {
        gateway.ask(&request).await.assert_page(OTHER, "hit");
    }
    // After a reload back it is the same upstream as before.
    write(&file, &one);
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 2.0).await;
    let [query, metadata, page] = requests();
    for request in [query, metadata] {
        gateway.ask(&request).await.assert_page(ONE, "hit");
    }
    // The response of the request under way belongs to that upstream; this one has a new first page.
    gateway.ask(&page).await.assert_page(ONE, "miss");
}

#[tokio::test]
async fn a_restart_with_another_upstream_serves_no_page_of_the_old_one() {
    let (one, other, folder) = (answering(ONE).await, answering(OTHER).await, TempDir::new().unwrap());
    let path = folder.path().join("pages").display().to_string();
    let start = async |upstream: &Upstream| {
        Process::start(vec![set("upstream.url", &upstream.url()), set("cache.disk.path", &path)]).await
    };
    for (upstream, page, detail) in [(&one, ONE, "miss"), (&other, OTHER, "miss"), (&one, ONE, "hit")] {
        let process = start(upstream).await;
        for request in requests() {
            process.ask(&request).await.assert_page(page, detail);
        }
        process.signal("TERM");
        assert_eq!(process.ended().await.0, Some(0));
    }
}
