//! What the machine provides: threads, a service manager, existing files.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use crate::support::process::{Process, command, quiet, set, told};
use crate::support::*;
use tempfile::TempDir;

#[test]
fn no_thread_to_be_had_is_said_and_ends_with_70() {
    for arguments in [vec!["serve"], vec!["demo", "--simulator=127.0.0.1:0"], vec!["simulate", "--listen=127.0.0.1:0"]]
    {
        let command = command(&quiet(Vec::new()));
        let mut process = std::process::Command::new(command.get_program());
        process.args(&arguments).env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // No stack is that large, so no thread can be started.
        let output = process.env("RUST_MIN_STACK", (1_u64 << 62).to_string()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(70), "{arguments:?}: {said}");
        assert!(said.contains("too few threads") && said.contains("TasksMax="), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_service_manager_in_the_abstract_namespace_is_told() {
    let upstream = Upstream::start().await;
    let name = format!("insights-gateway-test-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    manager.set_nonblocking(true).unwrap();
    let manager = tokio::net::UnixDatagram::from_std(manager).unwrap();
    let folder = TempDir::new().unwrap();
    let mut command = command(&quiet(vec![set("upstream.url", &upstream.url())]));
    command.env("NOTIFY_SOCKET", format!("@{name}")).current_dir(folder.path());
    let process = Process::spawn(command).await;
    assert_eq!(told(&manager).await, "READY=1\n");
    process.signal("HUP");
    assert!(told(&manager).await.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(told(&manager).await, "READY=1\n");
    process.signal("TERM");
    assert_eq!(told(&manager).await, "STOPPING=1\n");
    assert_eq!(process.ended().await.0, Some(0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no file of that name is created");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn page_and_audit_files_that_all_users_can_read_lose_that_permission() {
    for (before, after) in [(0o644, 0o600), (0o666, 0o600), (0o604, 0o600), (0o640, 0o640), (0o600, 0o600)] {
        let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
        let (audit, cache) = (folder.path().join("audit.jsonl"), folder.path().join("cache"));
        let flags = || {
            vec![
                set("upstream.url", &upstream.url()),
                set("log.audit", &audit.display().to_string()),
                set("cache.disk.path", &cache.display().to_string()),
            ]
        };
        let first = Process::start(flags()).await;
        assert_eq!(first.ask(&post(ASK)).await.status, 200);
        first.signal("TERM");
        assert_eq!(first.ended().await.0, Some(0));
        let pages = cache.join("pages.redb");
        assert_eq!((mode(&audit), mode(&pages)), (0o600, 0o600));
        for file in [&audit, &pages] {
            fs::set_permissions(file, fs::Permissions::from_mode(before)).unwrap();
        }
        let second = Process::start(flags()).await;
        // The pages are loaded before the first response.
        second.ask(&post(ASK)).await.assert_page(PAGE, "hit");
        assert_eq!((mode(&audit), mode(&pages)), (after, after), "{before:o}");
        second.signal("TERM");
        let (code, said) = second.ended().await;
        assert_eq!(code, Some(0));
        let warned = said.matches("every user of this machine could use this file").count();
        assert_eq!(warned, if before == after { 0 } else { 2 }, "{before:o}: {said}");
    }
}
