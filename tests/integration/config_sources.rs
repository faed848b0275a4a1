//! A configuration is read only once, from a file or a pipe.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::process::{Process, command, quiet, set};
use crate::support::*;
use tempfile::TempDir;

const GOOD: &str = "# one\n[cache]\ncapacity = '7MiB'\n";
const BAD: &str = "# one\n\n[cache]\ncapcity = '7MiB'\n";

fn shell(script: &str, file: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_insights-gateway")]).arg(file).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("TWILIO_ACCOUNT_SID", SID).env("TWILIO_API_KEY", KEY);
    let output = command.env("TWILIO_API_SECRET", SECRET).stdin(Stdio::null()).output().unwrap();
    let Output { status, stdout, stderr } = output;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn fifo(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_configuration_from_a_pipe_is_read_whole_and_once() {
    let folder = TempDir::new().unwrap();
    let (good, bad) = (file(&folder, "good.toml", GOOD), file(&folder, "bad.toml", BAD));
    for script in [
        "\"$0\" check --config <(cat \"$1\")",
        "\"$0\" check --config /dev/stdin < \"$1\"",
        "cat \"$1\" | \"$0\" check --config /dev/stdin",
        "(head -c 20 \"$1\"; sleep 0.3; tail -c +21 \"$1\") | \"$0\" check --config /dev/stdin",
        "mkfifo \"$1.fifo\"; cat \"$1\" > \"$1.fifo\" & \"$0\" check --config \"$1.fifo\"; code=$?; rm \"$1.fifo\"; exit $code",
        "mkfifo \"$1.fifo\"; (sleep 0.3; cat \"$1\" > \"$1.fifo\") & \"$0\" check --config \"$1.fifo\"; code=$?; rm \"$1.fifo\"; exit $code",
    ] {
        let (code, page, errors) = shell(script, &good);
        assert_eq!((code, errors.as_str()), (Some(0), "OK\n"), "{script}");
        assert!(page.contains("capacity = \"7MiB\""), "{script}: {page}");
        let (code, page, errors) = shell(script, &bad);
        assert_eq!((code, page.as_str()), (Some(64), ""), "{script}");
        assert!(errors.contains(":4: cache.capcity: unknown key (did you mean capacity?)"), "{script}: {errors}");
    }
}

#[test]
fn a_pipe_without_a_writer_is_not_waited_for_for_ever() {
    let folder = TempDir::new().unwrap();
    fifo(&folder);
    let (code, page, errors) = shell("\"$0\" check --config \"$1/fifo\"", folder.path());
    assert_eq!((code, page.as_str()), (Some(64), ""));
    assert!(errors.contains("fifo: cannot be read: no data came through it for 10 s"), "{errors}");
}

#[test]
fn a_folder_or_a_too_large_file_is_reported() {
    let folder = TempDir::new().unwrap();
    let (code, _, errors) = shell("\"$0\" check --config /dev/zero", folder.path());
    assert!(code == Some(64) && errors.contains("/dev/zero: is larger than 1MiB"), "{errors}");
    let (code, _, errors) = shell("\"$0\" check --config \"$1\"", folder.path());
    assert!(code == Some(64) && errors.contains("this is not a file"), "{errors}");
}

#[tokio::test]
async fn a_configuration_from_a_pipe_is_not_read_again() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let path = fifo(&folder);
    let writer = {
        let (path, text) = (path.clone(), format!("[upstream]\nurl = '{}'\n", upstream.url()));
        thread::spawn(move || fs::OpenOptions::new().write(true).open(path).unwrap().write_all(text.as_bytes()))
    };
    let mut command = command(&quiet(Vec::new()));
    command.env("INSIGHTS_GATEWAY_CONFIG", &path);
    let mut process = Process::spawn(command).await;
    writer.join().unwrap().unwrap();
    assert_eq!(process.ask(&post(ASK)).await.status, 200);
    process.signal("HUP");
    let refused = process.says(|event| event["level"] == "ERROR").await;
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("fifo: is not a regular file") && message.contains("restart the gateway"), "{message}");
    let counted = process.metric("insights_gateway_reloads_total{result=\"refused\"}").await;
    assert_eq!(counted.as_deref(), Some("1"));
    // Logged once, however often the gateway checks for changes.
    let uptime = async || process.metric("insights_gateway_uptime_seconds").await.unwrap().parse::<f64>().unwrap();
    let begun = uptime().await;
    poll("some looks", || async { (uptime().await > begun + 4.5).then_some(()) }).await;
    assert_eq!(process.metric("insights_gateway_reloads_total{result=\"refused\"}").await.as_deref(), Some("1"));
    assert_eq!(process.ask(&get(METADATA, "")).await.status, 200);
    // A regular file that replaces it can be read.
    fs::remove_file(&path).unwrap();
    fs::write(&path, format!("[upstream]\nurl = '{}'\n", upstream.url())).unwrap();
    process.signal("HUP");
    process.says(|event| event["message"] == "configuration reloaded").await;
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn a_configuration_on_standard_input_serves() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let text = format!("[upstream]\nurl = '{}'\n", upstream.url());
    let path = file(&folder, "gateway.toml", &text);
    let mut command = command(&quiet(vec!["--config=/dev/stdin".into(), set("log.access", "false")]));
    command.stdin(Stdio::from(fs::File::open(&path).unwrap()));
    let process = Process::spawn(command).await;
    assert_eq!(process.ask(&post(ASK)).await.status, 200);
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}
