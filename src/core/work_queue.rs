//! A bounded queue to a worker, which does the work that no request may wait for.
//!
//! An item that finds no space is returned to the caller, which decides what to do about that. [`WorkQueue::flush`]
//! waits until everything before it is done: an item counts as done when the worker asks for the next one.

use std::convert::Infallible;

use tokio::sync::{mpsc, oneshot};

/// Where work is left. Clones share one queue. After the last one is dropped, the worker does what waits and ends.
#[derive(Debug, Clone)]
pub struct WorkQueue<T>(mpsc::Sender<Message<T>>);

/// What the worker does, in the order in which it came.
#[derive(Debug)]
pub struct Work<T> {
    receiver: mpsc::Receiver<Message<T>>,
    /// Dropped once the batch is done.
    flush: Option<Flush>,
}

#[derive(Debug)]
enum Message<T> {
    Item(T),
    Flush(Flush),
}

/// Dropped once everything before it is done.
type Flush = oneshot::Sender<Infallible>;

impl<T> WorkQueue<T> {
    /// A queue in which this many items may wait.
    ///
    /// # Panics
    ///
    /// If that is zero, or more than [`Semaphore::MAX_PERMITS`](tokio::sync::Semaphore::MAX_PERMITS).
    #[must_use]
    pub fn bounded(capacity: usize) -> (Self, Work<T>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self(sender), Work { receiver, flush: None })
    }

    /// Leaves an item.
    ///
    /// # Errors
    ///
    /// The item, if too many wait or the worker has ended.
    pub fn offer(&self, item: T) -> Result<(), T> {
        match self.0.try_reserve() {
            Ok(place) => {
                place.send(Message::Item(item));
                Ok(())
            }
            Err(_) => Err(item),
        }
    }

    /// Returns once everything that was left until now is done, or the worker has ended. Callers limit how long they wait.
    pub async fn flush(&self) {
        let (flush, done) = oneshot::channel();
        if self.0.send(Message::Flush(flush)).await.is_ok() {
            let Err(_) = done.await;
        }
    }
}

impl<T> Work<T> {
    /// The next item, after a wait if there is none yet. Everything before it counts as done. `None` after the last one.
    pub async fn next(&mut self) -> Option<T> {
        self.flush = None;
        loop {
            if let Message::Item(item) = self.receiver.recv().await? {
                return Some(item);
            }
        }
    }

    /// [`Work::next`] for a thread.
    ///
    /// # Panics
    ///
    /// In a task.
    pub fn blocking_next(&mut self) -> Option<T> {
        self.flush = None;
        loop {
            if let Message::Item(item) = self.receiver.blocking_recv()? {
                return Some(item);
            }
        }
    }

    /// Another item for the same batch: what was taken before does not count as done. `None` if somebody waits for the
    /// batch, and after the last item.
    pub async fn more(&mut self) -> Option<T> {
        if self.flush.is_some() {
            return None;
        }
        match self.receiver.recv().await? {
            Message::Item(item) => Some(item),
            Message::Flush(flush) => {
                self.flush = Some(flush);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_finds_no_space_and_what_comes_after_the_end_is_returned() {
        let (queue, mut work) = WorkQueue::bounded(1);
        assert_eq!([1, 2].map(|item| queue.offer(item)), [Ok(()), Err(2)]);
        assert_eq!((work.next().await, queue.offer(3)), (Some(1), Ok(())));
        drop(work);
        assert_eq!(queue.offer(4), Err(4));
        queue.flush().await;
    }

    #[tokio::test]
    async fn a_flush_waits_for_what_is_being_done() {
        let (queue, mut work) = WorkQueue::bounded(8);
        assert_eq!(queue.offer(1), Ok(()));
        assert_eq!(work.next().await, Some(1));
        let mut flush = Box::pin(queue.flush());
        assert_eq!((&mut flush).now_or_never(), None);
        assert_eq!(work.next().now_or_never(), None);
        assert_eq!(flush.now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn a_flush_ends_a_batch_and_waits_for_all_of_it() {
        let (queue, mut work) = WorkQueue::bounded(8);
        assert_eq!([1, 2].map(|item| queue.offer(item)), [Ok(()); 2]);
        let mut flush = Box::pin(queue.flush());
        assert_eq!((&mut flush).now_or_never(), None);
        assert_eq!(queue.offer(3), Ok(()));
        assert_eq!((work.next().await, work.more().await), (Some(1), Some(2)));
        assert_eq!((work.more().await, work.more().await), (None, None));
        assert_eq!((&mut flush).now_or_never(), None);
        assert_eq!(work.next().await, Some(3));
        assert_eq!(flush.now_or_never(), Some(()));
    }

    #[test]
    fn a_thread_takes_all_that_was_left_and_ends_after_the_queue_is_dropped() {
        let (queue, mut work) = WorkQueue::bounded(8);
        let thread = std::thread::spawn(move || std::iter::from_fn(|| work.blocking_next()).collect::<Vec<_>>());
        assert_eq!([1, 2, 3].map(|item| queue.offer(item)), [Ok(()); 3]);
        drop(queue);
        assert_eq!(thread.join().unwrap(), [1, 2, 3]);
    }
}
