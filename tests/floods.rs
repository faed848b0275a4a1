//! Clients that follow the rules of framing but misbehave: they read nothing of their responses, or send cheap frames
//! in masses. Each is disconnected, and others are served meanwhile.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::Duration;

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a GET, in HPACK without a dynamic table (RFC 7541 appendix A).
fn head(path: &str) -> Vec<u8> {
    let text = |name: u8, value: &str| [&[name, u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    [vec![0x82, 0x86], text(0x04, path), text(0x01, "localhost")].concat()
}

/// The beginning of a connection, with these settings.
fn start(settings: &[(u16, u32)]) -> Vec<u8> {
    let pair = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    let payload: Vec<u8> = settings.iter().flat_map(pair).collect();
    [PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()
}

/// The next frame: kind, flags, stream and payload; `None` at the connection's end.
async fn next(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    within(stream.read_exact(&mut head)).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    within(stream.read_exact(&mut payload)).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// Reads to the connection's end. Returns the code of the GOAWAY that announced it, if there was one.
async fn sent_away(stream: &mut TcpStream) -> Option<u32> {
    let mut code = None;
    while let Some((kind, _, _, payload)) = next(stream).await {
        if kind == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
    code
}

async fn connect(gateway: &Gateway) -> TcpStream {
    within(TcpStream::connect(gateway.data)).await.unwrap()
}

/// With one place, so that the next client is served only when the first has been disconnected.
async fn with_one_place(upstream: &Upstream) -> Gateway {
    TestConfig::new(upstream.url()).set("server.max_connections", "1").set("server.write_timeout", "1s").start().await
}

fn large_page(bytes: usize) -> String {
    format!(r#"{{"data":[],"meta":{{}},"filler":"{}"}}"#, "x".repeat(bytes))
}

#[tokio::test]
async fn a_client_that_never_reads_its_answer_is_dropped() {
    let page = large_page(12 << 20);
    let upstream = Upstream::script(move |_| Plan::page(&page)).await;
    let gateway = with_one_place(&upstream).await;
    for request in [post(ASK), [post(ASK), post(ASK)].concat()] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut deaf = within(socket.connect(gateway.data)).await.unwrap();
        deaf.write_all(&request).await.unwrap();
        // Served once the first client has lost its place.
        gateway.ask(&get("/nowhere", "Connection: close\r\n")).await.assert_refused(404, "not_found");
        let mut taken = Vec::new();
        let _ = within(deaf.read_to_end(&mut taken)).await;
        assert!(taken.len() < 12 << 20, "it was cut off");
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_its_answer() {
    let page = large_page(12 << 20);
    let upstream = Upstream::script({
        let page = page.clone();
        move |_| Plan::page(&page)
    })
    .await;
    let gateway = with_one_place(&upstream).await;
    let mut slow = gateway.connect().await;
    slow.send(&post(ASK)).await;
    let mut taken = Vec::new();
    while taken.len() < page.len() {
        // Longer in all than the write timeout, but never that long without progress.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut piece = vec![0; 1 << 20];
        let read = within(slow.stream.read(&mut piece)).await.unwrap();
        taken.extend_from_slice(&piece[..read]);
    }
    assert!(taken.ends_with(page.as_bytes()));
}

#[tokio::test]
async fn a_stream_whose_window_stays_closed_is_reset_and_its_connection_is_not() {
    let upstream = Upstream::start().await;
    let gateway = with_one_place(&upstream).await;
    let mut stream = connect(&gateway).await;
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(METADATA));
    // INITIAL_WINDOW_SIZE 0.
    stream.write_all(&[start(&[(4, 0)]), ask].concat()).await.unwrap();
    let mut answered = false;
    loop {
        let (kind, flags, id, payload) = next(&mut stream).await.expect("the connection goes on");
        match kind {
            HEADERS => answered = true,
            DATA => panic!("the window is still closed"),
            RST_STREAM => {
                assert_eq!(id, 1);
                break;
            }
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload)).await.unwrap(),
            _ => {}
        }
    }
    assert!(answered);
    // A stream whose window is opened gets its page: WINDOW_UPDATE.
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 3, &head(METADATA));
    stream.write_all(&[ask, frame(8, 0, 3, &[0, 1, 0, 0])].concat()).await.unwrap();
    let mut page = Vec::new();
    while page.len() < PAGE.len() {
        let (kind, _, id, payload) = next(&mut stream).await.expect("the connection goes on");
        if (kind, id) == (DATA, 3) {
            page.extend(payload);
        }
    }
    assert_eq!(page, PAGE.as_bytes());
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_again_and_again_end_the_connection() {
    let upstream = Upstream::start().await;
    let gateway = with_one_place(&upstream).await;
    let mut stream = connect(&gateway).await;
    let mut flood = start(&[]);
    for id in (1..20_000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &head("/nowhere")));
        flood.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
    }
    let _ = within(stream.write_all(&flood)).await;
    // ENHANCE_YOUR_CALM, unless the end came before it could be read.
    assert!(matches!(sent_away(&mut stream).await, Some(11) | None));
    assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
}

#[tokio::test]
async fn heads_without_end_end_the_connection() {
    let upstream = Upstream::start().await;
    let gateway = with_one_place(&upstream).await;
    let filler = [&[0x00, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'y'; 16_000]].concat();
    for piece in [&b""[..], b"\x00", &filler] {
        let mut stream = connect(&gateway).await;
        stream.write_all(&start(&[])).await.unwrap();
        stream.write_all(&frame(HEADERS, END_STREAM, 1, &head(METADATA))).await.unwrap();
        let mut frames = 0;
        let continuation = frame(CONTINUATION, 0, 1, piece);
        while frames < 100_000 && within(stream.write_all(&continuation)).await.is_ok() {
            frames += 1;
        }
        assert!(frames < 100_000, "the gateway accepted {frames} frames of {} bytes", piece.len());
        drop(stream);
        assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    }
}

#[tokio::test]
async fn a_head_that_unpacks_to_much_more_is_refused() {
    let upstream = Upstream::start().await;
    let gateway = with_one_place(&upstream).await;
    let mut stream = connect(&gateway).await;
    // 4000 bytes into the dynamic table, and 12,000 times out of it: 48 MB.
    let entry = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let bomb = [head(METADATA), entry, vec![0xbe; 12_000]].concat();
    let (first, rest) = bomb.split_at(16_000);
    stream.write_all(&start(&[])).await.unwrap();
    stream.write_all(&frame(HEADERS, END_STREAM, 1, first)).await.unwrap();
    let _ = stream.write_all(&frame(CONTINUATION, END_HEADERS, 1, rest)).await;
    // The stream is refused, or the connection ends.
    while let Some((kind, _, id, _)) = next(&mut stream).await {
        if matches!((kind, id), (HEADERS | RST_STREAM, 1) | (GOAWAY, _)) {
            break;
        }
    }
    drop(stream);
    assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn pings_and_settings_whose_replies_are_not_read_end_the_connection() {
    let upstream = Upstream::start().await;
    let gateway = with_one_place(&upstream).await;
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut stream = connect(&gateway).await;
        stream.write_all(&start(&[])).await.unwrap();
        let flood = flood.repeat(10_000);
        // Until the gateway reads no more, and then until its write timeout.
        while within(stream.write_all(&flood)).await.is_ok() {}
        drop(stream);
        assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    }
}

#[tokio::test]
async fn all_that_an_http_2_client_begins_has_the_time_limit_of_a_head() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("server.header_timeout", "1s").start().await;
    let preface = start(&[]);
    let head = frame(HEADERS, END_STREAM, 1, &head(METADATA));
    for begun in [
        // A head without its last frame, also after other frames and next to a request that waits.
        [&preface[..], &head].concat(),
        [&preface[..], &head, &frame(CONTINUATION, 0, 1, &[])].concat(),
        // Incomplete frames, preface and settings.
        [&preface[..], &head[..20]].concat(),
        [&preface[..], &frame(PING, 0, 0, &[7; 8])[..12]].concat(),
        [&preface[..], &frame(DATA, 0, 1, &[7; 8000])[..7000]].concat(),
        [&preface[..], &[0, 0, 8, PING]].concat(),
        preface[..20].to_vec(),
        preface[..PREFACE.len() + 5].to_vec(),
    ] {
        let mut stream = connect(&gateway).await;
        stream.write_all(&begun).await.unwrap();
        let since = tokio::time::Instant::now();
        let mut rest = Vec::new();
        let _ = within(stream.read_to_end(&mut rest)).await;
        // The limit on pings would end it only after 40 s.
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}: {begun:?}", since.elapsed());
    }
    // A client that sends slowly; sending may fail.
    let mut stream = connect(&gateway).await;
    stream.write_all(&[&preface[..], &head].concat()).await.unwrap();
    let since = tokio::time::Instant::now();
    while stream.write_all(&frame(CONTINUATION, 0, 1, b"\x82")[..9]).await.is_ok() {
        assert!(since.elapsed() < Duration::from_secs(10), "it never ends");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn an_unfinished_head_ends_its_connection_though_another_request_waits() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let gateway = TestConfig::new(upstream.url()).set("server.header_timeout", "1s").start().await;
    let mut stream = connect(&gateway).await;
    let waits = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(METADATA));
    let unfinished = frame(HEADERS, END_STREAM, 3, &head(METADATA));
    stream.write_all(&[start(&[]), waits, unfinished].concat()).await.unwrap();
    upstream.arrived(1).await;
    // ENHANCE_YOUR_CALM.
    assert_eq!(sent_away(&mut stream).await, Some(11));
}

#[tokio::test]
async fn a_body_that_contradicts_its_head_is_reset_and_not_forwarded() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let text = |value: &str| [&[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    // POST, http, path, authority, and content-length (RFC 7541 appendix A).
    let head = |length: usize| {
        let length = [vec![0x0f, 0x0d], text(&length.to_string())].concat();
        [vec![0x83, 0x86, 0x04], text(QUERY), vec![0x01], text("localhost"), length].concat()
    };
    let trailer = [vec![0x00], text("x"), text("y")].concat();
    for wrong in [
        // Shorter and longer than stated, in one frame and in two.
        [frame(HEADERS, END_HEADERS, 1, &head(100)), frame(DATA, END_STREAM, 1, ASK.as_bytes())].concat(),
        [frame(HEADERS, END_HEADERS, 1, &head(10)), frame(DATA, END_STREAM, 1, ASK.as_bytes())].concat(),
        [
            frame(HEADERS, END_HEADERS, 1, &head(100)),
            frame(DATA, 0, 1, &ASK.as_bytes()[..10]),
            frame(DATA, END_STREAM, 1, &ASK.as_bytes()[10..]),
        ]
        .concat(),
        // A second head that is not a trailer, because the body goes on.
        [
            frame(HEADERS, END_HEADERS, 1, &head(ASK.len())),
            frame(DATA, 0, 1, &ASK.as_bytes()[..10]),
            frame(HEADERS, END_HEADERS, 1, &trailer),
            frame(DATA, END_STREAM, 1, &ASK.as_bytes()[10..]),
        ]
        .concat(),
    ] {
        let mut stream = connect(&gateway).await;
        stream.write_all(&[start(&[]), wrong].concat()).await.unwrap();
        let code = loop {
            match next(&mut stream).await.expect("the gateway reports an error") {
                (RST_STREAM, _, 1, code) => break code,
                (GOAWAY, _, _, payload) => break payload[4..8].to_vec(),
                (DATA | HEADERS, _, 1, _) => panic!("the request was answered"),
                _ => {}
            }
        };
        assert_eq!(code, [0, 0, 0, 1], "PROTOCOL_ERROR");
    }
    assert_eq!(upstream.count(), 0);
}
