//! The account's secret: how it changes under load, and that no response of the upstream passes it on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use insights_gateway::config::{self, Sources};
use tempfile::TempDir;
use tokio::time::Instant;

fn basic(user: &str, secret: &str) -> String {
    BASE64_STANDARD.encode(format!("{user}:{secret}"))
}

// --- Echoes ------------------------------------------------------------------------------------------------------

/// Percent-encodes every byte.
fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// The content of all files below a folder.
fn everything_in(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        all.extend(if path.is_dir() { everything_in(&path) } else { fs::read(&path).unwrap() });
    }
    all
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn an_answer_that_repeats_the_credential_reaches_neither_client_nor_cache_nor_disk() {
    let pair = basic(KEY, SECRET);
    let forms = [SECRET.to_owned(), pair.clone(), format!("Basic {pair}"), percent(SECRET), percent(&pair)];
    let in_body = |form: &str| format!(r#"{{"data":[{{"headers":"{form}"}}],"meta":{{}}}}"#);
    let mut answers = Vec::new();
    for form in &forms {
        answers.push(Plan::page(&in_body(form)));
        for name in ["Twilio-Request-Id", "Content-Type", "Cache-Control"] {
            answers.push(Plan::with(200, &format!("{name}: {form}\r\n"), PAGE));
        }
        answers.push(Plan::json(400, &in_body(form)));
        answers.push(Plan::json(404, &in_body(form)));
        answers.push(Plan::json(501, &in_body(form)));
    }
    // Across chunks of a few bytes.
    let body = in_body(SECRET);
    let chunks: String = body
        .as_bytes()
        .chunks(7)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()))
        .collect();
    answers.push(Plan::raw(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")));

    let folder = TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url())
        .set("cache.disk.path", folder.path().join("pages").display().to_string())
        .set("admin.show_queries", "true")
        .start()
        .await;
    let count = answers.len();
    for (n, plan) in answers.into_iter().enumerate() {
        upstream.set(move |_| plan.clone());
        let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        answer.assert_refused(502, "upstream_invalid");
        for form in &forms {
            let seen = format!("{answer:?}{}", answer.text());
            assert!(!seen.contains(form.as_str()), "answer {n} shows {form}");
        }
        assert_eq!(upstream.count(), n + 1, "a response that repeats a secret is not retried");
    }
    let account = ["account=\"default\""];
    assert_eq!(gateway.metric("credential_echoes_total", &account).await, count as f64);
    assert_eq!(gateway.metric("cache_entries", &[]).await, 0.0);
    upstream.heal(PAGE);
    gateway.ask(&get(&format!("{METADATA}?n=0"), "")).await.assert_page(PAGE, "miss");
    gateway.stop().await;
    let kept = everything_in(folder.path());
    assert!(contains(&kept, PAGE), "the page without a secret is stored");
    for form in &forms {
        assert!(!contains(&kept, form), "the disk shows {form}");
    }
}

#[tokio::test]
async fn headers_that_are_not_passed_on_may_contain_anything() {
    let echo = format!("X-Debug: {SECRET}\r\nSet-Cookie: auth={}\r\n", basic(KEY, SECRET));
    let upstream = Upstream::script(move |_| Plan::with(200, &echo, PAGE)).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let answer = gateway.ask(&post(ASK)).await;
    answer.assert_page(PAGE, "miss");
    assert!(!format!("{answer:?}").contains(SECRET));
}

#[tokio::test]
async fn a_stale_page_is_served_rather_than_an_echo() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url())
        .set("cache.metadata.fresh", "0s")
        .set("cache.metadata.stale_while_revalidate", "0s")
        .start()
        .await;
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    upstream.set(|_| Plan::page(&format!("{{\"data\":\"{SECRET}\"}}")));
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "stale_error");
}

// --- Rotation ----------------------------------------------------------------------------------------------------

/// A key and its secret as Kubernetes mounts them: the names lead through one link, which is replaced.
struct Volume {
    folder: TempDir,
    versions: AtomicUsize,
}

impl Volume {
    fn new(version: &str) -> Self {
        let volume = Self { folder: TempDir::new().unwrap(), versions: AtomicUsize::new(0) };
        for name in ["key", "secret"] {
            symlink(Path::new("..data").join(name), volume.folder.path().join(name)).unwrap();
        }
        volume.swap(version);
        let config = format!(
            "[accounts.main]\naccount_sid = '{SID}'\napi_key = {{ file = '{0}/key' }}\napi_secret = {{ file = '{0}/secret' }}\nrate = '0/s'\n",
            volume.folder.path().display()
        );
        fs::write(volume.config(), config).unwrap();
        volume
    }

    fn config(&self) -> std::path::PathBuf {
        self.folder.path().join("gateway.toml")
    }

    /// A new folder, and a new link to it in the place of the old one.
    fn swap(&self, version: &str) {
        let root = self.folder.path();
        let name = format!("..{}", self.versions.fetch_add(1, Ordering::Relaxed));
        let data = root.join(&name);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("key"), format!("SK-{version}")).unwrap();
        fs::write(data.join("secret"), format!("secret-of-{version}\n")).unwrap();
        let old = fs::read_link(root.join("..data"));
        symlink(&name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if let Ok(old) = old {
            fs::remove_dir_all(root.join(old)).unwrap();
        }
    }
}

fn pair(version: &str) -> String {
    format!("Basic {}", basic(&format!("SK-{version}"), &format!("secret-of-{version}")))
}

/// An upstream that accepts some versions, and records all that came.
#[derive(Clone, Default)]
struct AccessControl {
    open_for: Arc<Mutex<BTreeSet<String>>>,
    came: Arc<Mutex<BTreeSet<String>>>,
}

impl AccessControl {
    fn open_for(&self, versions: &[&str]) {
        *self.open_for.lock().unwrap() = versions.iter().map(|version| pair(version)).collect();
    }

    fn answer(&self, seen: &Seen) -> Plan {
        let shown = seen.header("authorization").unwrap_or_default().to_owned();
        let known = self.open_for.lock().unwrap().contains(&shown);
        self.came.lock().unwrap().insert(shown);
        if known { Plan::page(PAGE) } else { Plan::json(401, "{}") }
    }

    fn has_seen(&self, version: &str) -> bool {
        self.came.lock().unwrap().contains(&pair(version))
    }
}

#[tokio::test]
async fn a_rotation_under_load_is_noticed_in_time_fails_nothing_and_mixes_nothing() {
    let (volume, access) = (Volume::new("1"), AccessControl::default());
    access.open_for(&["1", "2"]);
    let upstream = {
        let access = access.clone();
        Upstream::script(move |seen| access.answer(seen)).await
    };
    let sources = TestConfig::new(upstream.url()).without_account().sources().with_file(volume.config());
    let gateway = Arc::new(Gateway::start(sources).await);
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (gateway, done, asked) = (Arc::clone(&gateway), Arc::clone(&done), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut client = gateway.connect().await;
                while !done.load(Ordering::Relaxed) {
                    let n = asked.fetch_add(1, Ordering::Relaxed);
                    let answer = client.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
                    assert_eq!(answer.status, 200, "request {n}: {answer:?}");
                }
            })
        })
        .collect();
    // First by checking the files, and then by a signal.
    for (old, new, signal) in [("1", "2", false), ("2", "3", true)] {
        access.open_for(&[old, new]);
        let begun = Instant::now();
        volume.swap(new);
        if signal {
            gateway.reload.notify_one();
        }
        poll("the new secret", || async { access.has_seen(new).then_some(()) }).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(if signal { 2 } else { 5 }), "{took:?}");
        // From here on the old key is rejected, also for requests under way.
        access.open_for(&[new]);
        let seen = asked.load(Ordering::Relaxed);
        poll("some more requests", || async { (asked.load(Ordering::Relaxed) > seen + 200).then_some(()) }).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in load {
        client.await.unwrap();
    }
    let came = access.came.lock().unwrap().clone();
    assert_eq!(came, ["1", "2", "3"].iter().map(|version| pair(version)).collect(), "nothing mixed");
    assert_eq!(gateway.metric("reloads_total", &["result=\"applied\""]).await, 2.0);
    assert_eq!(gateway.admin("/readyz").await.status, 200);
}

#[test]
fn a_key_and_its_secret_are_read_in_one_state_however_often_they_change() {
    let volume = Volume::new("0");
    let sources = Sources::default().with_file(volume.config());
    let done = AtomicBool::new(false);
    let mut read = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                volume.swap(&n.to_string());
            }
        });
        for _ in 0..300 {
            // A read is refused if the files changed too often or were missing for a moment. A refusal changes nothing.
            let Ok(config) = config::load(&sources) else { continue };
            let account = &config.accounts[0];
            let version = account.username.strip_prefix("SK-").unwrap();
            let secret = secrecy::ExposeSecret::expose_secret(&account.secret);
            assert_eq!(secret, format!("secret-of-{version}"), "of {}", account.username);
            read += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(read > 0, "nothing could be read at all");
}

#[tokio::test]
async fn a_secret_may_be_a_systemd_credential_and_is_watched_there() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    fs::write(folder.path().join("twilio"), "secret-of-1\n").unwrap();
    let config = folder.path().join("gateway.toml");
    let text =
        format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = 'SK-1'\napi_secret = {{ credential = 'twilio' }}\n");
    fs::write(&config, text).unwrap();
    let sources = TestConfig::new(upstream.url())
        .without_account()
        .sources()
        .with_file(config)
        .with_variable("CREDENTIALS_DIRECTORY", folder.path());
    let gateway = Gateway::start(sources).await;
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    fs::write(folder.path().join("twilio"), "secret-of-2\n").unwrap();
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    let sent: Vec<_> = upstream.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    let expected = ["secret-of-1", "secret-of-2"].map(|secret| format!("Basic {}", basic("SK-1", secret)));
    assert_eq!(sent, expected);
}
