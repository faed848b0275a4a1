use std::pin::pin;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::*;
use crate::server::protocol::PREFACE;

const S: Duration = Duration::from_secs(1);
const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn timeout_io(place: &Place) -> (TimeoutIo<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(1024);
    let timeouts = Timeouts { header: 10 * S, write: 30 * S };
    (TimeoutIo::new(ours, place, timeouts), theirs)
}

/// Reads as hyper does between requests: until it gives up or `most` has passed.
async fn gives_up(timeout_io: &mut TimeoutIo<DuplexStream>, most: Duration) -> Option<Duration> {
    let begun = Instant::now();
    let silence = async {
        while timeout_io.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
        begun.elapsed()
    };
    timeout(most, silence).await.ok()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_late() {
    let (mut timeout_io, _client) = timeout_io(&Connection::alone());
    assert_eq!(gives_up(&mut timeout_io, 100 * S).await, Some(10 * S));
}

#[tokio::test(start_paused = true)]
async fn a_task_without_budget_loses_no_alarm() {
    let (mut timeout_io, _client) = timeout_io(&Connection::alone());
    std::future::poll_fn(|context| {
        while has_budget_remaining() {
            let _ = pin!(tokio::task::coop::consume_budget()).poll(context);
        }
        let mut byte = [0; 1];
        let read = Pin::new(&mut timeout_io).poll_read(context, &mut ReadBuf::new(&mut byte));
        assert!(read.is_pending());
        Poll::Ready(())
    })
    .await;
    // The next turn of the task has a new budget.
    tokio::task::yield_now().await;
    assert_eq!(gives_up(&mut timeout_io, 100 * S).await, Some(10 * S));
}

#[tokio::test(start_paused = true)]
async fn idleness_counts_from_the_last_request_however_quickly_it_was_served() {
    // In HTTP/2 an empty HEADERS frame, whose content is not read here.
    for (preface, head) in [(&b""[..], HEAD), (PREFACE, b"\0\0\0\x01\x05\0\0\0\x01")] {
        let place = Connection::alone();
        let (mut timeout_io, mut client) = timeout_io(&place);
        client.write_all(preface).await.unwrap();
        for _ in 0..20 {
            client.write_all(head).await.unwrap();
            // No task polls the connection while the request is served, as with a cache hit.
            assert!(timeout_io.read(&mut [0; 1024]).await.unwrap() > 0);
            drop(place.connection().begin());
            place.connection().next_turn();
            assert_eq!(gives_up(&mut timeout_io, 60 * S).await, None);
        }
        assert_eq!(gives_up(&mut timeout_io, 100 * S).await, Some(IDLE - 60 * S));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_read_while_it_was_busy_ends_all_the_same() {
    let place = Connection::alone();
    let (mut timeout_io, _client) = timeout_io(&place);
    let serving = place.connection().begin();
    let ended = tokio::spawn(async move { timeout_io.read_u8().await.map_err(|error| error.kind()) });
    tokio::task::yield_now().await;
    // The response is written, and no task reads again.
    drop(serving);
    let ended = timeout(IDLE * 2, ended).await.expect("idle connections end").unwrap();
    assert_eq!(ended, Err(io::ErrorKind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_head_is_due_from_its_first_byte() {
    let place = Connection::alone();
    let (mut timeout_io, mut client) = timeout_io(&place);
    client.write_all(HEAD).await.unwrap();
    assert!(timeout_io.read(&mut [0; 1024]).await.unwrap() > 0);
    drop(place.connection().begin());
    assert_eq!(gives_up(&mut timeout_io, 40 * S).await, None);
    client.write_all(&HEAD[..5]).await.unwrap();
    assert_eq!(gives_up(&mut timeout_io, 6 * S).await, None);
    client.write_all(&HEAD[5..9]).await.unwrap();
    assert_eq!(gives_up(&mut timeout_io, 100 * S).await, Some(4 * S));
    let mut said = [0; 12];
    client.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 408");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_dropped_and_one_that_takes_a_little_is_not() {
    let place = Connection::alone();
    let (mut timeout_io, mut client) = timeout_io(&place);
    let sending = tokio::spawn(async move {
        let _serving = place.connection().begin();
        let begun = Instant::now();
        let ended = timeout_io.write_all(&[7; 8 * 1024]).await.map_err(|error| error.kind());
        (ended, begun.elapsed())
    });
    for _ in 0..5 {
        tokio::time::sleep(29 * S).await;
        client.read_exact(&mut [0; 1]).await.unwrap();
    }
    assert_eq!(sending.await.unwrap(), (Err(io::ErrorKind::TimedOut), (5 * 29 + 30) * S));
}

#[tokio::test]
async fn an_ambiguous_head_is_replaced_by_a_malformed_one() {
    let ambiguous = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for cut in 0..ambiguous.len() - 5 {
        let (mut timeout_io, mut client) = timeout_io(&Connection::alone());
        client.write_all(&[HEAD, &ambiguous[..cut]].concat()).await.unwrap();
        let mut seen = Vec::with_capacity(1024);
        timeout_io.read_buf(&mut seen).await.unwrap();
        client.write_all(&ambiguous[cut..]).await.unwrap();
        timeout_io.read_buf(&mut seen).await.unwrap();
        assert_eq!(seen, [HEAD, &ambiguous[..cut], MALFORMED].concat(), "cut at {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_http_2_head_is_due_from_its_first_byte_whatever_else_is_served() {
    // HEADERS without END_HEADERS, and an empty CONTINUATION.
    let (headers, more) = (b"\0\0\x01\x01\x01\0\0\0\x01\x82", b"\0\0\0\x09\0\0\0\0\x01");
    let place = Connection::alone();
    let (mut timeout_io, mut client) = timeout_io(&place);
    client.write_all(PREFACE).await.unwrap();
    assert_eq!(gives_up(&mut timeout_io, 40 * S).await, None);
    let _busy = place.connection().begin();
    client.write_all(headers).await.unwrap();
    assert_eq!(gives_up(&mut timeout_io, 6 * S).await, None);
    client.write_all(more).await.unwrap();
    assert_eq!(gives_up(&mut timeout_io, 100 * S).await, Some(4 * S));
    let mut said = [0; 17];
    client.read_exact(&mut said).await.unwrap();
    assert_eq!(said, go_away(1));
}

#[tokio::test]
async fn no_more_http_2_heads_are_read_than_requests_begin() {
    let head = b"\0\0\0\x01\x05\0\0\0\x01";
    let place = Connection::alone();
    let (mut timeout_io, mut client) = timeout_io(&place);
    client.write_all(&[PREFACE, &head.repeat(20)].concat()).await.unwrap();
    timeout_io.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    let mut reads = async || {
        let mut buffer = [0; 9];
        let read = std::pin::pin!(timeout_io.read(&mut buffer));
        futures_util::future::poll_immediate(read).await.is_some_and(|read| read.is_ok_and(|n| n == 9))
    };
    let mut waiting = Vec::new();
    for _ in 0..4 {
        while reads().await {
            waiting.push(place.wait_to_begin(&http::HeaderMap::new()));
        }
        place.connection().next_turn();
    }
    assert_eq!(waiting.len(), 4);
    waiting.pop();
    assert!(reads().await && !reads().await);
}

#[tokio::test]
async fn an_http_1_request_that_begins_like_http_2_is_followed_as_http_1() {
    let (mut timeout_io, mut client) = timeout_io(&Connection::alone());
    let first = b"PRI * HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let second = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n";
    client.write_all(&[&first[..], second].concat()).await.unwrap();
    let mut seen = Vec::with_capacity(1024);
    timeout_io.read_buf(&mut seen).await.unwrap();
    assert_eq!(seen, [&first[..], MALFORMED].concat());
}

#[tokio::test]
async fn responses_of_hyper_are_replaced_and_those_of_a_service_are_not() {
    const WORDS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let place = Connection::alone();
    let (mut timeout_io, mut client) = timeout_io(&place);
    client.write_all(HEAD).await.unwrap();
    assert_eq!(timeout_io.read(&mut [0; 1024]).await.unwrap(), HEAD.len());
    let mut request = place.connection().begin();
    request.answered();
    drop(request);
    timeout_io.write_all(WORDS).await.unwrap();
    let mut said = vec![0; WORDS.len()];
    client.read_exact(&mut said).await.unwrap();
    assert_eq!(said, WORDS);
    // No request was made for these.
    timeout_io.write_all(WORDS).await.unwrap();
    drop(timeout_io);
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("bad_request"), "{said}");
}
