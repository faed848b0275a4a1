//! Tokens that expire: by the clock alone, and by a reload.

use std::fs;
use std::time::Duration;

use insights_gateway::config::Sources;
use tempfile::TempDir;

use crate::support::gateway::{Gateway, KEY, SECRET, SID};
use crate::support::*;

fn entry(token: &str, expires: jiff::Timestamp) -> String {
    let hash = sha256_hex(token);
    format!("{{ sha256 = '{hash}', expires = '{expires}' }}")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn a_token_is_accepted_until_it_expires_and_after_a_reload_that_extends_it() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let path = folder.path().join("gateway.toml");
    let write = |entries: &[String]| {
        let text = format!(
            "[server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n[upstream]\nurl = '{}'\n\
             [accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\n\
             [teams.dashboards]\ntoken_sha256 = [{}]\n",
            upstream.url(),
            entries.join(", ")
        );
        fs::write(&path, text).unwrap();
    };
    let now = jiff::Timestamp::now();
    let (past, soon, later) =
        (now - Duration::from_secs(1), now + Duration::from_secs(4), now + Duration::from_secs(3600));
    write(&[entry("past", past), entry("soon", soon), entry("later", later)]);
    let gateway = Gateway::start(Sources::default().with_file(&path)).await;
    let mut connection = gateway.connect().await;
    assert_eq!(connection.ask(&get(METADATA, &bearer("later"))).await.status, 200);
    let status = async |token: &str| gateway.ask(&get(METADATA, &bearer(token))).await.status;
    assert_eq!(status("past").await, 401);
    poll("the token's end", || async {
        let asked = jiff::Timestamp::now();
        let status = status("soon").await;
        // The response may be slow, so only requests that began and ended on one side of the expiry count.
        assert!(status == 200 || jiff::Timestamp::now() >= soon, "{status} before the end");
        assert!(status == 401 || asked < soon, "{status} after the end");
        (status == 401).then_some(())
    })
    .await;
    // A connection that was opened before the expiry does not change that.
    assert_eq!(connection.ask(&get(METADATA, &bearer("soon"))).await.status, 401);
    assert_eq!(connection.ask(&get(METADATA, &bearer("later"))).await.status, 200);

    write(&[entry("past", later), entry("later", now)]);
    gateway.reload.notify_one();
    poll("the reload", || async { (status("later").await == 401).then_some(()) }).await;
    assert_eq!(status("past").await, 200);
    gateway.stop().await;
}
