//! Stored responses belong to an account, whatever its name is: a reload or a restart may change the name.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::support::*;

const FIELDS: &str = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";

/// A configuration with an account and a team for each of these names and SIDs.
struct File {
    folder: TempDir,
    path: PathBuf,
    reloads: f64,
}

impl File {
    fn new(accounts: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let file = Self { path: folder.path().join("gateway.toml"), folder, reloads: 0.0 };
        file.write(accounts);
        file
    }

    fn write(&self, accounts: &[(&str, &str)]) {
        let of = |(name, sid): &(&str, &str)| {
            let hash = sha256_hex(&format!("token-of-{name}"));
            format!(
                "[accounts.{name}]\naccount_sid = '{sid}'\napi_key = 'SK1'\napi_secret = 's'\nrate = '0/s'\n\
                 [teams.{name}]\naccount = '{name}'\ntoken_sha256 = ['{hash}']\n\
                 operations = ['metadata', 'query', 'fields-write']\n"
            )
        };
        let new = self.path.with_extension("new");
        std::fs::write(&new, accounts.iter().map(of).collect::<String>()).unwrap();
        std::fs::rename(new, &self.path).unwrap();
    }

    async fn start(&self, upstream: &Upstream) -> Gateway {
        let disk = self.folder.path().join("disk");
        let config = TestConfig::new(upstream.url()).without_account().set("cache.disk.path", disk.to_str().unwrap());
        Gateway::start(config.sources().with_file(&self.path)).await
    }

    async fn reload(&mut self, gateway: &Gateway, accounts: &[(&str, &str)]) {
        self.write(accounts);
        self.reloads += 1.0;
        gateway.reload.notify_one();
        gateway.metric_reaches("reloads_total", &["applied"], self.reloads).await;
    }
}

fn of(team: &str) -> String {
    format!("Authorization: Bearer token-of-{team}\r\n")
}

fn metadata(team: &str) -> Vec<u8> {
    get(METADATA, &of(team))
}

async fn upstream() -> Upstream {
    Upstream::script(|seen| match seen.target() {
        METADATA => Plan::page(MEMBERS),
        FIELDS => Plan::json(201, "{}"),
        _ => Plan::page(PAGE),
    })
    .await
}

/// Names, in the order of the entries' keys.
async fn names(gateway: &Gateway) -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(&gateway.admin("/cache/entries").await.text()).unwrap();
    let entries = listed["entries"].as_array().unwrap().iter();
    entries.map(|entry| entry["account"].as_str().unwrap().to_owned()).collect()
}

async fn purge(gateway: &Gateway, what: &str) -> String {
    gateway.ask_admin(&post_to("/cache/purge", "", what)).await.text()
}

#[tokio::test]
async fn a_write_removes_what_was_stored_under_an_earlier_name() {
    let upstream = upstream().await;
    let mut file = File::new(&[("main", "AC1"), ("other", "AC2")]);
    let gateway = file.start(&upstream).await;
    for team in ["main", "other"] {
        gateway.ask(&metadata(team)).await.assert_page(MEMBERS, "miss");
        gateway.ask(&post_to(QUERY, &of(team), ASK)).await.assert_page(PAGE, "miss");
    }
    // The names change places, and then one is new.
    for (one, other) in [("other", "main"), ("prod", "main")] {
        file.reload(&gateway, &[(one, "AC1"), (other, "AC2")]).await;
        gateway.ask(&metadata(one)).await.assert_page(MEMBERS, "hit");
        gateway.ask(&post_to(QUERY, &of(one), ASK)).await.assert_page(PAGE, "hit");
        assert_eq!(gateway.ask(&post_to(FIELDS, &of(one), "{}")).await.status, 201);
        gateway.ask(&metadata(one)).await.assert_page(MEMBERS, "miss");
        gateway.ask(&post_to(QUERY, &of(one), ASK)).await.assert_page(PAGE, "miss");
        gateway.ask(&metadata(other)).await.assert_page(MEMBERS, "hit");
    }
}

#[tokio::test]
async fn the_admin_plane_knows_pages_by_the_name_that_their_account_has_now() {
    let upstream = upstream().await;
    let mut file = File::new(&[("main", "AC1")]);
    let gateway = file.start(&upstream).await;
    gateway.ask(&metadata("main")).await.assert_page(MEMBERS, "miss");
    assert_eq!(names(&gateway).await, ["main"]);
    file.reload(&gateway, &[("prod", "AC1"), ("main", "AC2")]).await;
    assert_eq!(names(&gateway).await, ["prod"]);
    assert_eq!(purge(&gateway, r#"{"account":"main"}"#).await.trim(), r#"{"purged":0}"#);
    gateway.ask(&metadata("prod")).await.assert_page(MEMBERS, "hit");
    assert_eq!(purge(&gateway, r#"{"account":"prod"}"#).await.trim(), r#"{"purged":1}"#);
    gateway.ask(&metadata("prod")).await.assert_page(MEMBERS, "miss");
    // Two names for one account.
    file.reload(&gateway, &[("one", "AC1"), ("two", "AC1")]).await;
    assert_eq!(names(&gateway).await, ["one"]);
    assert_eq!(purge(&gateway, r#"{"account":"two"}"#).await.trim(), r#"{"purged":1}"#);
}

#[tokio::test]
async fn pages_on_the_disk_survive_another_name_and_go_with_it() {
    let upstream = upstream().await;
    let file = File::new(&[("main", "AC1")]);
    let gateway = file.start(&upstream).await;
    gateway.ask(&metadata("main")).await.assert_page(MEMBERS, "miss");
    gateway.stop().await;
    file.write(&[("prod", "AC1")]);
    let gateway = file.start(&upstream).await;
    gateway.ask(&metadata("prod")).await.assert_page(MEMBERS, "hit");
    assert_eq!(gateway.ask(&post_to(FIELDS, &of("prod"), "{}")).await.status, 201);
    gateway.stop().await;
    let gateway = file.start(&upstream).await;
    gateway.ask(&metadata("prod")).await.assert_page(MEMBERS, "miss");
    gateway.stop().await;
    // No configuration has its account any more.
    file.write(&[("prod", "AC2")]);
    let gateway = file.start(&upstream).await;
    gateway.ask(&metadata("prod")).await.assert_page(MEMBERS, "miss");
    let names = names(&gateway).await;
    assert_eq!(names.len(), 2, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| *name != "prod").collect();
    assert!(unknown.len() == 1 && unknown[0].starts_with("not configured ("), "{names:?}");
    assert_eq!(purge(&gateway, r#"{"all":true}"#).await.trim(), r#"{"purged":2}"#);
}
