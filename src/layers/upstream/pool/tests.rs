use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower::util::BoxCloneService;

use super::*;

type Io = TokioIo<DuplexStream>;
type TestPool = Pool<BoxCloneService<Uri, Io, BoxError>, Io>;
type Upstreams = UnboundedReceiver<DuplexStream>;

/// A pool, and the upstream ends of its connections in the order in which they are made.
fn pool() -> (TestPool, Upstreams) {
    let (made, upstreams): (UnboundedSender<DuplexStream>, _) = unbounded_channel();
    let connect = tower::service_fn(move |_| {
        let (ours, theirs) = duplex(1 << 16);
        let is_there = made.send(theirs).is_ok();
        async move { if is_there { Ok(TokioIo::new(ours)) } else { Err(BoxError::from("no server")) } }
    });
    let url = Uri::from_static("http://upstream");
    (Pool::new(BoxCloneService::new(connect), url, Duration::from_secs(5), Clock::new()), upstreams)
}

/// Sends a request over `link`. Returns the status and the body, or whether the request was not sent.
async fn ask(link: &mut Link<Io>) -> Result<(u16, Bytes), bool> {
    link.drive(async |sender| {
        let answered = sender.try_send_request(Request::new(Full::default())).await;
        let (head, body) = answered.map_err(|mut error| error.take_message().is_some())?.into_parts();
        let body = body.collect().await.map_err(|_| false)?;
        Ok((head.status.as_u16(), body.to_bytes()))
    })
    .await
}

/// Reads a request's head and answers it.
async fn answer(upstream: &mut DuplexStream, answer: &[u8]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(upstream.read_u8().await.unwrap());
    }
    upstream.write_all(answer).await.unwrap();
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Takes a new connection, and answers a request over it `with` these bytes.
async fn used(pool: &TestPool, upstreams: &mut Upstreams, with: &[u8]) -> (Link<Io>, DuplexStream) {
    let (mut link, was_used) = pool.take().await.unwrap();
    assert!(!was_used);
    let mut upstream = upstreams.recv().await.unwrap();
    let (answered, ()) = tokio::join!(ask(&mut link), answer(&mut upstream, with));
    assert_eq!(answered, Ok((200, Bytes::from_static(b"hello"))));
    (link, upstream)
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again() {
    let (pool, mut upstreams) = pool();
    let (mut link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    for _ in 0..3 {
        pool.put_back(link);
        let was_used;
        (link, was_used) = pool.take().await.unwrap();
        assert!(was_used);
        let (answered, ()) = tokio::join!(ask(&mut link), answer(&mut upstream, OK));
        assert_eq!(answered, Ok((200, Bytes::from_static(b"hello"))));
    }
    assert!(upstreams.try_recv().is_err(), "another was made");
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_is_not_shared() {
    let (pool, mut upstreams) = pool();
    let (link, _one) = used(&pool, &mut upstreams, OK).await;
    let (other, _two) = used(&pool, &mut upstreams, OK).await;
    pool.put_back(link);
    pool.put_back(other);
    let taken = (pool.take().await.unwrap(), pool.take().await.unwrap());
    assert!(taken.0.1 && taken.1.1, "both were kept");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_to_an_upstream_that_has_closed() {
    let (pool, mut upstreams) = pool();
    let (link, upstream) = used(&pool, &mut upstreams, OK).await;
    pool.put_back(link);
    drop(upstream);
    let (mut link, was_used) = pool.take().await.unwrap();
    assert!(was_used);
    assert_eq!(ask(&mut link).await, Err(true), "the request is returned, so that it can be sent again");
    // A caller that puts it back anyway does not harm others.
    pool.put_back(link);
    used(&pool, &mut upstreams, OK).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_upstream_ends_with_its_answer_is_not_used_again() {
    let (pool, mut upstreams) = pool();
    let closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    let (link, _upstream) = used(&pool, &mut upstreams, closing).await;
    pool.put_back(link);
    used(&pool, &mut upstreams, OK).await;
}

#[tokio::test(start_paused = true)]
async fn an_unrequested_response_is_never_used() {
    let stolen = b"HTTP/1.1 203 OK\r\nContent-Length: 6\r\n\r\nstolen";
    for at_once in [true, false] {
        let (pool, mut upstreams) = pool();
        let first = if at_once { [OK, stolen].concat() } else { OK.to_vec() };
        let (link, mut upstream) = used(&pool, &mut upstreams, &first).await;
        pool.put_back(link);
        if !at_once {
            upstream.write_all(stolen).await.unwrap();
        }
        let (mut link, was_used) = pool.take().await.unwrap();
        assert!(!was_used || ask(&mut link).await == Err(true), "at once: {at_once}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_is_a_failure() {
    let (pool, mut upstreams) = pool();
    let (mut link, _) = pool.take().await.unwrap();
    let mut upstream = upstreams.recv().await.unwrap();
    let cut = async {
        answer(&mut upstream, &OK[..OK.len() - 1]).await;
        drop(upstream);
    };
    assert_eq!(tokio::join!(ask(&mut link), cut).0, Err(false), "it was sent");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_when_it_was_idle_for_long() {
    let (pool, mut upstreams) = pool();
    let (link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    pool.put_back(link);
    let begun = Instant::now();
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    let idle = begun.elapsed();
    assert!((IDLE..=IDLE * 3 / 2).contains(&idle), "after {idle:?}");
    // The next one is checked as well.
    let (link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    pool.put_back(link);
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_not_used_even_if_it_is_open() {
    let (pool, mut upstreams) = pool();
    let (link, _upstream) = used(&pool, &mut upstreams, OK).await;
    pool.idle.lock().idle.push((link, Instant::now()));
    tokio::time::advance(IDLE).await;
    used(&pool, &mut upstreams, OK).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_its_upstream_closed_does_not_stay_half_open() {
    let (pool, mut upstreams) = pool();
    let (link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    pool.put_back(link);
    upstream.shutdown().await.unwrap();
    let begun = Instant::now();
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    assert!(begun.elapsed() <= IDLE / 4, "after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn while_a_connection_is_made_another_may_become_idle() {
    let (ours, mut first) = duplex(1 << 16);
    let (made_late, _second) = duplex(1 << 16);
    let connections = Arc::new(Mutex::new(vec![(10, made_late), (0, ours)]));
    let connect = tower::service_fn(move |_| {
        let next = connections.lock().unwrap().pop();
        async move {
            let Some((seconds, io)) = next else { return std::future::pending().await };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok::<_, BoxError>(TokioIo::new(io))
        }
    });
    let pool = Pool::new(connect, Uri::from_static("http://upstream"), Duration::from_secs(60), Clock::new());
    let (mut link, _) = pool.take().await.unwrap();
    let begun = Instant::now();
    let soon = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(tokio::join!(ask(&mut link), answer(&mut first, OK)).0.is_ok());
        pool.put_back(link);
    };
    let (taken, ()) = tokio::join!(pool.take(), soon);
    assert!(taken.is_ok_and(|(_, was_used)| was_used));
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    // The connection that was being made is kept for the next caller.
    assert!(pool.take().await.is_ok_and(|(_, was_used)| was_used));
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_steady_use_is_closed_after_five_minutes() {
    let (pool, mut upstreams) = pool();
    let (mut link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    let begun = Instant::now();
    loop {
        pool.put_back(link);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let was_used;
        (link, was_used) = pool.take().await.unwrap();
        if !was_used {
            break;
        }
        assert!(tokio::join!(ask(&mut link), answer(&mut upstream, OK)).0.is_ok());
    }
    assert_eq!(begun.elapsed(), OLDEST);
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0, "it was closed");
    assert!(upstreams.recv().await.is_some(), "another was made");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_under_way_is_read_to_its_end_before_its_old_connection_is_closed() {
    let (pool, mut upstreams) = pool();
    let (mut link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    tokio::time::advance(OLDEST).await;
    assert!(tokio::join!(ask(&mut link), answer(&mut upstream, OK)).0.is_ok());
    pool.put_back(link);
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    used(&pool, &mut upstreams, OK).await;
}

#[tokio::test(start_paused = true)]
async fn when_one_has_died_all_idle_ones_are_discarded() {
    let (pool, mut upstreams) = pool();
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(used(&pool, &mut upstreams, OK).await);
    }
    let (links, others): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
    links.into_iter().for_each(|link| pool.put_back(link));
    let (died, was_used) = pool.take().await.unwrap();
    assert!(was_used);
    drop(died);
    pool.discard_idle();
    let (link, _upstream) = used(&pool, &mut upstreams, OK).await;
    for mut other in others {
        assert_eq!(other.read(&mut [0]).await.unwrap(), 0, "closed");
    }
    // A connection that has been used since may be used again.
    pool.put_back(link);
    assert!(pool.take().await.unwrap().1);
}

#[tokio::test(start_paused = true)]
async fn the_connections_end_with_the_pool() {
    let (pool, mut upstreams) = pool();
    let (link, mut upstream) = used(&pool, &mut upstreams, OK).await;
    pool.put_back(link);
    drop(pool);
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_user_of_a_connection_is_not_woken_for_it_any_more() {
    struct Counter(AtomicUsize);
    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (pool, mut upstreams) = pool();
    let (mut link, _) = pool.take().await.unwrap();
    let mut upstream = upstreams.recv().await.unwrap();
    let woken = Arc::new(Counter(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    {
        let mut asking = pin!(ask(&mut link));
        assert!(asking.as_mut().poll(&mut context).is_pending());
        answer(&mut upstream, OK).await;
        assert!(asking.as_mut().poll(&mut context).is_ready());
    }
    pool.put_back(link);
    let before = woken.0.load(Ordering::SeqCst);
    assert!(before > 0, "it was woken for the answer");
    drop(upstream);
    assert_eq!(woken.0.load(Ordering::SeqCst), before);
}

#[tokio::test(start_paused = true)]
async fn connecting_has_a_time_limit() {
    let never = tower::service_fn(|_| std::future::pending::<Result<Io, BoxError>>());
    let pool = Pool::new(never, Uri::from_static("http://upstream"), Duration::from_secs(5), Clock::new());
    let begun = Instant::now();
    assert!(matches!(pool.take().await, Err(ConnectError::TooSlow)));
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn the_error_says_why_there_is_no_connection() {
    let (pool, upstreams) = pool();
    drop(upstreams);
    let error = pool.take().await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "no server");
}
