//! The gateway's listeners, and what it learns of its peers: unix sockets, PROXY protocol, sockets handed over by
//! systemd.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::certificate::Certificate;
use crate::support::client::http2_status;
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::process::{Process, command, quiet, set, told};
use crate::support::*;
use insights_gateway::config;
use insights_gateway::server::{Inherited, InheritedSocket};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};

fn socket(folder: &TempDir) -> (String, PathBuf) {
    let path = folder.path().join("gateway.sock");
    (format!("unix:{}", path.display()), path)
}

#[tokio::test]
async fn a_unix_socket_speaks_both_and_has_its_mode() {
    for (mode, expected) in [(None, 0o600), (Some("0660"), 0o660), (Some("666"), 0o666)] {
        let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
        let (listen, path) = socket(&folder);
        let config = TestConfig::new(upstream.url()).set("server.listen", listen);
        let config = match mode {
            Some(mode) => config.set("server.unix_mode", mode),
            None => config,
        };
        let _gateway = config.start().await;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, expected);
        Client::connect_unix(&path).await.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
        assert_eq!(http2_status(UnixStream::connect(&path).await.unwrap()).await, 200);
    }
}

#[tokio::test]
async fn a_socket_file_that_another_process_has_made_is_not_removed() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let (listen, path) = socket(&folder);
    let config = || TestConfig::new(upstream.url()).set("server.listen", listen.clone());
    let old = config().start().await;
    fs::remove_file(&path).unwrap();
    let new = config().start().await;
    let inode = fs::metadata(&path).unwrap().ino();
    old.stop().await;
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(Client::connect_unix(&path).await.ask(&post(ASK)).await.status, 200);
    new.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn the_access_log_names_the_peer() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let (listen, path) = socket(&folder);
    let listen = set("server.listen", &format!("127.0.0.1:0,{listen}"));
    let mut process = Process::start(vec![set("upstream.url", &upstream.url()), listen]).await;
    let mut client = Client::connect(process.data).await;
    let address = client.stream.local_addr().unwrap().to_string();
    assert_eq!(client.ask(&get("/over-tcp", "")).await.status, 404);
    let line = process.says(|event| event["path"] == "/over-tcp").await;
    assert_eq!(line["peer"], address.as_str());
    assert_eq!(Client::connect_unix(&path).await.ask(&get("/over-unix", "")).await.status, 404);
    let line = process.says(|event| event["path"] == "/over-unix").await;
    let uid = fs::metadata(&path).unwrap().uid();
    assert_eq!(line["peer"], format!("unix:uid={uid},pid={}", std::process::id()).as_str());
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header that states: TCP over IPv4, from 192.0.2.7:4711.
fn proxy_header() -> Vec<u8> {
    [SIGNATURE, &[0x21, 0x11, 0, 12, 192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90]].concat()
}

/// A gateway process that trusts the tests' own address as a load balancer.
async fn behind_a_proxy(upstream: &Upstream, more: Vec<String>) -> Process {
    let base = [set("upstream.url", &upstream.url()), set("server.proxy_protocol", "127.0.0.0/8")];
    Process::start(base.into_iter().chain(more).collect()).await
}

#[tokio::test]
async fn a_trusted_proxy_states_the_clients_address() {
    let upstream = Upstream::start().await;
    let mut process = behind_a_proxy(&upstream, Vec::new()).await;
    // In one piece, byte by byte, and with HTTP/2 after it.
    let mut client = Client::connect(process.data).await;
    client.send(&[proxy_header(), get("/whole", "")].concat()).await;
    client.answer().await.assert_refused(404, "not_found");
    assert_eq!(process.says(|event| event["path"] == "/whole").await["peer"], "192.0.2.7:4711");
    let mut client = Client::connect(process.data).await;
    for byte in proxy_header() {
        client.send(&[byte]).await;
    }
    assert_eq!(client.ask(&post(ASK)).await.status, 200);
    assert_eq!(client.ask(&post(ASK)).await.status, 200, "one header per connection, not per request");
    let mut client = Client::connect(process.data).await;
    client.send(&proxy_header()).await;
    assert_eq!(http2_status(client.stream).await, 200);
    // A connection that the proxy opens for itself.
    let mut client = Client::connect(process.data).await;
    let own = client.stream.local_addr().unwrap().to_string();
    client.send(&[SIGNATURE, &[0x20, 0, 0, 0]].concat()).await;
    assert_eq!(client.ask(&get("/own", "")).await.status, 404);
    assert_eq!(process.says(|event| event["path"] == "/own").await["peer"], own.as_str());
}

#[tokio::test]
async fn a_trusted_proxy_that_leaves_the_header_out_is_refused() {
    let upstream = Upstream::start().await;
    let mut process = behind_a_proxy(&upstream, vec![set("server.header_timeout", "1s")]).await;
    let truncated = &proxy_header()[..20];
    let too_long = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
    let old = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 8080\r\n";
    for bytes in [&get(METADATA, "")[..], old, &too_long, truncated, b""] {
        let mut client = Client::connect(process.data).await;
        client.send(bytes).await;
        assert_eq!(client.rest().await, b"", "{bytes:?}");
    }
    let line = process.says(|event| event["level"] == "WARN").await;
    assert!(line["message"].as_str().unwrap().contains("PROXY protocol v2"), "{line}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn only_a_trusted_proxy_may_state_an_address() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("server.proxy_protocol", "192.0.2.0/24,unix").start().await;
    let mut client = gateway.connect().await;
    client.send(&[proxy_header(), get("/whole", "")].concat()).await;
    client.answer().await.assert_refused(400, "bad_request");
    assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls_and_over_unix_sockets_too() {
    let (upstream, certificate, folder) = (Upstream::start().await, Certificate::new(), TempDir::new().unwrap());
    let (listen, path) = socket(&folder);
    let gateway = TestConfig::new(upstream.url())
        .set("server.listen", format!("127.0.0.1:0,{listen}"))
        .set("server.proxy_protocol", "127.0.0.1,unix")
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"))
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.send(&proxy_header()).await;
    let stream = certificate.shake(client.stream, &["h2"], None).await.unwrap();
    assert_eq!(http2_status(stream).await, 200);
    let mut client = Client::connect_unix(&path).await;
    client.send(&proxy_header()).await;
    assert_eq!(client.ask(&get(METADATA, "")).await.status, 200);
}

/// A command that gets `listener` as its third descriptor, as systemd hands sockets over.
fn activated(listener: OwnedFd, names: &str, arguments: Vec<String>) -> Command {
    let plain = command(&quiet(arguments));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null"]);
    shell.arg(plain.get_program()).args(plain.get_args());
    shell.env_clear().env("LISTEN_FDNAMES", names).stdin(Stdio::from(listener)).stderr(Stdio::piped());
    shell.env("TWILIO_ACCOUNT_SID", SID).env("TWILIO_API_KEY", KEY).env("TWILIO_API_SECRET", SECRET);
    shell
}

#[tokio::test]
async fn sockets_that_systemd_has_opened_are_taken_over() {
    let upstream = Upstream::start().await;
    let flags = || vec![set("upstream.url", &upstream.url()), set("server.listen", "systemd:gateway")];

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It has waited in the socket's queue since before the gateway started.
    let mut early = Client::connect(address).await;
    let process = Process::spawn(activated(listener.into(), "gateway", flags())).await;
    assert_eq!(process.data, address);
    assert_eq!(early.ask(&post(ASK)).await.status, 200);
    assert_eq!(http2_status(TcpStream::connect(address).await.unwrap()).await, 200);
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));

    let folder = TempDir::new().unwrap();
    let path = folder.path().join("handed-over.sock");
    let process = Process::spawn(activated(UnixListener::bind(&path).unwrap().into(), "gateway", flags())).await;
    assert_eq!(Client::connect_unix(&path).await.ask(&post(ASK)).await.status, 200);
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
    assert!(path.exists(), "the file is systemd's to remove");
}

#[tokio::test]
async fn a_socket_that_was_not_handed_over_is_a_start_that_fails() {
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
    let refused = |mut command: Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = refused(activated(listener(), "other", vec![set("server.listen", "systemd:gateway")]));
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("systemd:gateway") && said.contains("other"), "{said}");
    let (code, said) = refused(command(&quiet(vec![set("server.listen", "systemd:gateway")])));
    assert_eq!(code, Some(74), "{said}");
    // A connection, which cannot accept.
    let waiting = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = std::net::TcpStream::connect(waiting.local_addr().unwrap()).unwrap().into();
    let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    for socket in [connection, unix.into()] {
        let (code, said) = refused(activated(socket, "gateway", vec![set("server.listen", "systemd:gateway")]));
        assert!(code == Some(74) && said.contains("does not listen"), "{code:?}: {said}");
    }
    let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let (code, said) = refused(activated(file, "gateway", vec![set("server.listen", "systemd:gateway")]));
    assert_eq!(code, Some(74), "{said}");
}

#[tokio::test]
async fn without_teams_a_socket_that_is_handed_over_has_to_be_loopback() {
    let bind = |address: &str, open: &str| {
        let mut inherited = Inherited::default();
        inherited.add("gateway", InheritedSocket::Tcp(std::net::TcpListener::bind(address).unwrap()));
        let sources = TestConfig::new("http://127.0.0.1:9").set("server.listen", "systemd:gateway");
        let config = config::load(&sources.set("server.open", open).sources()).unwrap();
        insights_gateway::gateway::Gateway::bind_with(config, inherited).map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = bind("0.0.0.0:0", "false").unwrap_err();
    assert!(refused.contains("not loopback") && refused.contains("server.open"), "{refused}");
    bind("0.0.0.0:0", "true").unwrap();
    bind("127.0.0.1:0", "false").unwrap();
}

#[tokio::test]
async fn systemd_is_told_the_gateways_state() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let path = folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let manager = tokio::net::UnixDatagram::from_std(manager).unwrap();
    let mut command = command(&quiet(vec![set("upstream.url", &upstream.url())]));
    command.env("NOTIFY_SOCKET", &path);
    let process = Process::spawn(command).await;
    assert_eq!(told(&manager).await, "READY=1\n");
    assert_eq!(process.ask(&post(ASK)).await.status, 200);
    process.signal("HUP");
    let reloading = told(&manager).await;
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{reloading}"));
    assert!(since.trim().parse::<u64>().unwrap() > 0);
    assert_eq!(told(&manager).await, "READY=1\n");
    process.signal("TERM");
    assert_eq!(told(&manager).await, "STOPPING=1\n");
    assert_eq!(process.ended().await.0, Some(0));
}
