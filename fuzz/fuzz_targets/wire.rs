//! The bytes of a connection, through the listener, its guard, hyper and the stack. In all cases the connection ends,
//! every response is complete and says who made it, a request whose length is stated in two ways is refused, and
//! nothing after it is answered.

#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use insights_gateway::config::{self, Config, Sources};
use insights_gateway::core::error::Reason;
use insights_gateway::gateway::Gateway;
use insights_gateway_fuzz::choices;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The beginning of a connection from a load balancer (PROXY protocol, version 2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

struct Configs {
    plain: Config,
    behind_a_proxy: Config,
}

static CONFIGS: LazyLock<Configs> = LazyLock::new(|| {
    let listen = format!("unix:{}", SOCKET.display());
    let flags = [
        ("server.listen", listen.as_str()),
        ("admin.listen", "127.0.0.1:0"),
        // No process listens there.
        ("upstream.url", "http://127.0.0.1:1"),
        ("accounts.main.account_sid", "AC00000000000000000000000000000001"),
        ("accounts.main.api_key", "SK1"),
        ("accounts.main.api_secret", "planted-s3cret"),
        ("accounts.main.rate", "0/s"),
        ("server.max_body", "4KiB"),
        ("server.header_timeout", "30s"),
        ("retry.attempts", "1"),
        ("log.access", "false"),
    ];
    let plain = flags.iter().fold(Sources::default(), |sources, (key, value)| sources.with_flag(*key, *value));
    let behind_a_proxy = plain.clone().with_flag("server.proxy_protocol", "unix");
    let load = |sources| config::load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    Configs { plain: load(plain), behind_a_proxy: load(behind_a_proxy) }
});

static SOCKET: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("insights-gateway-fuzz-{}.sock", std::process::id())));

/// Sends `bytes` in pieces and reads until the gateway closes the connection.
async fn converse(bytes: &[u8]) -> Vec<u8> {
    let config = if bytes.starts_with(SIGNATURE) { &CONFIGS.behind_a_proxy } else { &CONFIGS.plain };
    let gateway = Gateway::bind(config.clone()).expect("a socket");
    tokio::spawn(gateway.run(None, Arc::default(), std::future::pending()));
    let (mut reading, mut writing) = UnixStream::connect(&*SOCKET).await.expect("a connection").into_split();
    let mut rng = choices(bytes, 0);
    let mut rest = bytes.to_vec();
    let sending = async move {
        while !rest.is_empty() {
            let n = if rng.bool() { rest.len() } else { rng.usize(1..=rest.len()) };
            if writing.write_all(&rest[..n]).await.is_err() {
                break;
            }
            rest.drain(..n);
            // Lets all other tasks run first, so that the pieces arrive as pieces.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Open until the gateway has sent everything.
        writing
    };
    let mut answers = Vec::new();
    let receiving = async {
        // A reset ends a connection like a close.
        let _ = reading.read_to_end(&mut answers).await;
    };
    let _ = tokio::join!(sending, receiving);
    answers
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Reads the final responses strictly.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let shown = || String::from_utf8_lossy(bytes);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| panic!("{:?}", shown()));
        let head = std::str::from_utf8(&bytes[..end]).expect("an ASCII head");
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        let status = status.strip_prefix("HTTP/1.1 ").or(status.strip_prefix("HTTP/1.0 ")).expect("a status line");
        let status: u16 = status[..3].parse().expect("a status");
        if status == 100 {
            continue;
        }
        let headers: Vec<_> = lines.map(|line| line.split_once(": ").expect("a header")).collect();
        let find = |name: &str| {
            let mut found = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
            let value = found.next();
            assert!(found.next().is_none(), "{name} occurs twice: {head}");
            value
        };
        assert!(find("x-request-id").is_some_and(|id| !id.is_empty()), "{head}");
        assert!(find("cache-status").is_some_and(|status| status.starts_with("insights-gateway")), "{head}");
        assert_eq!(find("transfer-encoding"), None, "{head}");
        let length: usize = find("content-length").map_or(0, |length| length.parse().expect("a length"));
        // Responses to HEAD have a length and no body.
        let has_body = bytes.first() == Some(&b'{');
        let body = if has_body { bytes.get(..length).expect("a whole body").to_vec() } else { Vec::new() };
        bytes = &bytes[body.len()..];
        if has_body {
            check_refusal(status, &body);
        }
        all.push(Answer { status, body });
    }
    all
}

/// There is no upstream, so every body is one of the gateway's own errors.
fn check_refusal(status: u16, body: &[u8]) {
    let error: Value = serde_json::from_slice(body).expect("JSON");
    let reason = error["params"]["reason"].as_str().expect("a reason");
    let known = Reason::ALL.into_iter().find(|known| known.as_str() == reason).expect("a reason of the list");
    assert!(known != Reason::Internal && known.status().as_u16() == status, "{status}: {error}");
}

/// The index of the first request that states its body's length in two ways: read as strictly as possible, and no
/// further than is certain.
fn ambiguous(mut bytes: &[u8]) -> Option<usize> {
    for number in 0.. {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let line = lines.next()?;
        let target = line.strip_prefix("POST ").or(line.strip_prefix("GET "))?.strip_suffix(" HTTP/1.1")?;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/?=&".contains(&b);
        if !target.starts_with('/') || !target.bytes().all(is_plain) {
            return None;
        }
        let (mut length, mut is_chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(": ")?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if name.is_empty() || !name.bytes().chain(value.bytes()).all(plain) {
                return None;
            }
            match name.to_ascii_lowercase().as_str() {
                "content-length" if length.is_none() && value.len() < 5 => length = Some(value.parse::<usize>().ok()?),
                "transfer-encoding" if value == "chunked" && !is_chunked => is_chunked = true,
                "content-length" | "transfer-encoding" | "connection" | "expect" | "upgrade" => return None,
                _ => {}
            }
        }
        match (length, is_chunked) {
            (Some(_), true) => return Some(number),
            (None, true) => return None,
            (length, false) => bytes = bytes.get(length.unwrap_or(0)..)?,
        }
    }
    None
}

fuzz_target!(|bytes: &[u8]| {
    let _ = &*CONFIGS;
    // The time moves only when all tasks wait for it, so long timeouts cost nothing.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let said = runtime.expect("a runtime").block_on(converse(bytes));
    if bytes.starts_with(b"PRI ") {
        return;
    }
    let answers = answers(&said);
    if let Some(number) = ambiguous(bytes) {
        let shown =
            || answers.iter().map(|answer| (answer.status, String::from_utf8_lossy(&answer.body))).collect::<Vec<_>>();
        assert!(answers.len() <= number + 1, "a request after an ambiguous one was answered: {:?}", shown());
        // After another request it may be answered by its chunks, as the last one (RFC 9112 section 6.1).
        let is_refused = answers.first().is_none_or(|answer| answer.status == 400);
        assert!(number > 0 || is_refused, "not refused: {:?}", shown());
    }
});
