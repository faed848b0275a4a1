//! A query job: submitted, polled until it ends, and then read page by page.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::failure::Failure;
use super::gateway::Gateway;
use super::progress::Progress;
use super::question::path;
use crate::cli::client::Answer;
use crate::cli::text::plain;

/// Time between two polls, where the response does not say.
const USUAL_WAIT: Duration = Duration::from_secs(5);
/// The longest time, whatever the response says.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a job is polled. It continues after that, and its results can be fetched later.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// Polls in a row that may be refused for lack of budget.
const REFUSALS: u32 = 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    operation_id: String,
    status: String,
    #[serde(default)]
    error: Option<Fault>,
}

#[derive(Debug, Deserialize)]
struct Fault {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: Option<String>,
}

/// Submits a query and waits for the end of its job. Returns the job's id.
pub(super) async fn complete(gateway: &mut Gateway, body: Bytes, progress: &mut Progress) -> Result<String, Failure> {
    let begun = Instant::now();
    let submitted = gateway.post(&path("/QueryJobs", &[]), body).await?;
    let (status, mut wait) = read(&submitted)?;
    let id = status.operation_id.clone();
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if id.is_empty() || id.len() > 128 || !id.chars().all(known) {
        return Err(Failure::Strange("the gateway returned a job id that cannot be part of a path".to_owned()));
    }
    let look = path(&format!("/QueryJobs/{id}"), &[]);
    let (mut status, mut refusals) = (status, 0);
    loop {
        match status.status.as_str() {
            "COMPLETED" => return Ok(id),
            "PENDING" | "RUNNING" => {}
            "FAILED" => return Err(Failure::Job(failed(&id, status.error.as_ref()))),
            "CANCELLED" => return Err(Failure::Job(format!("job {id} was cancelled"))),
            other => return Err(Failure::Strange(format!("job {id} is in an unknown state: {}", plain(other)))),
        }
        if begun.elapsed() + wait > PATIENCE {
            let hours = PATIENCE.as_secs() / 3600;
            return Err(Failure::Job(format!(
                "job {id} has not ended within {hours} h; it continues without this command"
            )));
        }
        progress.show(&format!("job {id}: {}, {} s", status.status, begun.elapsed().as_secs()));
        sleep(wait).await;
        match gateway.get(&look).await {
            Ok(answer) => {
                (status, wait) = read(&answer)?;
                refusals = 0;
            }
            // Only the poll was refused; the job is not affected.
            Err(Failure::RefusedResponse(refused)) if refused.refusal.passes() && refusals < REFUSALS => {
                wait = waiting(refused.refusal.seconds());
                refusals += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn read(answer: &Answer) -> Result<(Status, Duration), Failure> {
    let status = serde_json::from_slice(&answer.body)
        .map_err(|_| Failure::Strange("the answer is not a job; does the gateway serve query jobs?".to_owned()))?;
    Ok((status, waiting(answer.header("retry-after").and_then(|wait| wait.parse().ok()))))
}

fn waiting(seconds: Option<u64>) -> Duration {
    seconds.map_or(USUAL_WAIT, Duration::from_secs).clamp(Duration::from_secs(1), LONGEST_WAIT)
}

fn failed(id: &str, fault: Option<&Fault>) -> String {
    let Some(Fault { code, message, detail }) = fault else { return format!("job {id} failed, without a reason") };
    let detail = detail.as_deref().map_or_else(String::new, |detail| format!(" ({})", plain(detail)));
    format!("job {id} failed: {}{detail} (code {code})", plain(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded() {
        for (said, seconds) in [(None, 5), (Some(0), 1), (Some(10), 10), (Some(u64::MAX), 60)] {
            assert_eq!(waiting(said), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn a_failure_is_printed_on_one_line() {
        let fault = Fault { code: 50001, message: "too\nlong".to_owned(), detail: Some("120 s".to_owned()) };
        assert_eq!(failed("j1", Some(&fault)), "job j1 failed: too long (120 s) (code 50001)");
        assert_eq!(failed("j1", None), "job j1 failed, without a reason");
    }
}
