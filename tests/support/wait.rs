//! Waits for events, all with a limit.

use std::time::Duration;

/// Fails a test that hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it did not finish within 20 seconds")
}

/// Asks again until there is a result. The pause only keeps the loop from using a whole core; no test depends on its
/// length.
pub async fn poll<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not happen within 15 seconds: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
