//! Runs each stream of an HTTP/2 connection as a separate task, and ends those whose client reads nothing of its
//! response.
//!
//! A client could leave a stream's window at zero, answer every ping, and so keep the response in memory for as long as
//! it likes. HTTP/1.1 has one response at a time, and such a client shows in the socket: `guard` handles it.

use std::cell::Cell;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

tokio::task_local! {
    /// Whether this stream's response is there, so that the client has to act next.
    static IS_ANSWERED: Cell<bool>;
}

/// Notes that the current task's stream has its response. On HTTP/1.1 there is no such task.
pub(super) fn answered() {
    let _ = IS_ANSWERED.try_with(|is_answered| is_answered.set(true));
}

/// Runs streams.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    /// For a client to take anything.
    pub(super) write_timeout: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(IS_ANSWERED.scope(Cell::new(false), patient(stream, self.write_timeout)));
    }
}

/// Runs the stream until its client has taken nothing for `timeouts`. Dropping the stream resets it.
async fn patient(stream: impl Future<Output = ()>, timeouts: Duration) {
    let mut stream = pin!(stream);
    // Most streams never need a timer.
    let mut alarm = pin!(None::<Sleep>);
    std::future::poll_fn(|context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if !IS_ANSWERED.with(Cell::get) {
            return Poll::Pending;
        }
        if alarm.as_mut().as_pin_mut().is_some_and(|alarm| alarm.is_elapsed()) {
            return Poll::Ready(());
        }
        // If the client takes nothing, only the timer wakes this task. So it has just taken something.
        alarm.set(Some(sleep(timeouts)));
        alarm.as_mut().as_pin_mut().map_or(Poll::Pending, |alarm| alarm.poll(context))
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// A stream that is answered after `thought`, and is then woken by its client `times` times.
    fn stream(thought: Duration, progress: Arc<Notify>, times: usize) -> oneshot::Receiver<&'static str> {
        let (ended, end) = oneshot::channel();
        Streams { write_timeout: 10 * S }.execute(async move {
            sleep(thought).await;
            answered();
            for _ in 0..times {
                progress.notified().await;
            }
            let _ = ended.send("whole");
        });
        end
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let begun = Instant::now();
        let end = stream(100 * S, Arc::default(), 1).await;
        assert!(end.is_err());
        assert_eq!(begun.elapsed(), 110 * S, "the time of thinking is not the client's");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_little_now_and_then_is_kept() {
        let progress = Arc::<Notify>::default();
        let end = stream(S, Arc::clone(&progress), 10);
        sleep(S).await;
        for _ in 0..10 {
            sleep(9 * S).await;
            progress.notify_one();
        }
        assert_eq!(end.await, Ok("whole"));
    }
}
