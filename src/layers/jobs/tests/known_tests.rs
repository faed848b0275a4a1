//! What is known of jobs beyond their stored answers.

use super::*;
use crate::accounts::AccountId;

/// Answers that replace those of [`twilio`].
type Replies = Arc<Mutex<Vec<(Operation, Reply)>>>;

fn with_jobs(dedup: u64, results: u64, errors: u64) -> cache::Policy {
    let jobs = JobLifetimes { dedup: Duration::from_secs(dedup), results: Duration::from_secs(results) };
    cache::Policy { jobs, errors: Duration::from_secs(errors), ..LIFETIMES }
}

/// Jobs that run until replies say otherwise.
fn rig_of(policy: cache::Policy) -> (Rig, Replies) {
    let replies = Replies::default();
    let (scripted, mut jobs) = (Arc::clone(&replies), twilio(|_, _| "RUNNING"));
    let rig = Rig::with(policy, Duration::ZERO, move |call: &UpstreamCall| {
        let reply = scripted.lock().unwrap().iter().find(|(of, _)| *of == call.endpoint.operation).cloned();
        reply.map_or_else(|| jobs(call), |(_, reply)| reply)
    });
    (rig, replies)
}

fn say(replies: &Replies, operation: Operation, status: u16, body: &str) {
    let mut replies = replies.lock().unwrap();
    replies.retain(|(of, _)| *of != operation);
    replies.push((operation, (status, None, body.to_owned())));
}

fn completed(retention: &str) -> String {
    format!(r#"{{"operationId":"op_1","status":"COMPLETED","resultRetentionPeriod":"{retention}"}}"#)
}

/// Submits again after `elapsed`, and expects a new job without a poll.
async fn expect_a_new_job(rig: &Rig, elapsed: Duration, case: &str) {
    tokio::time::advance(elapsed).await;
    let polls = rig.calls(Operation::JobStatus);
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"), "{case}");
    assert_eq!((rig.submit().await.outcome, rig.calls(Operation::JobStatus)), (Outcome::Hit, polls), "{case}");
}

#[tokio::test(start_paused = true)]
async fn a_job_is_not_shared_after_its_results_are_gone() {
    for (status, elapsed) in [(404, 0), (410, 0), (404, 30), (410, 30)] {
        let (rig, replies) = rig_of(LIFETIMES);
        rig.submit().await;
        say(&replies, Operation::JobStatus, 200, &completed("P2D"));
        say(&replies, Operation::JobResults, 200, PAGE);
        rig.status("op_1").await;
        rig.results("op_1").await;
        tokio::time::advance(S).await;
        say(&replies, Operation::JobResults, status, "{}");
        let page = rig.query(Operation::JobResults, "op_1");
        rig.ask(rig.jobs.about(&page, Operation::JobResults, "op_1", "pageToken=b")).await.unwrap();
        expect_a_new_job(&rig, S * elapsed, &format!("{status} {elapsed}")).await;
    }
    // Results that were read show that the job has completed.
    let (rig, replies) = rig_of(LIFETIMES);
    rig.submit().await;
    say(&replies, Operation::JobResults, 200, PAGE);
    rig.results("op_1").await;
    tokio::time::advance(S).await;
    say(&replies, Operation::JobResults, 404, "{}");
    rig.ask(forced(rig.query(Operation::JobResults, "op_1"))).await.unwrap();
    expect_a_new_job(&rig, S, "never polled").await;
    // Results of an unfinished job do not exist yet.
    let (rig, replies) = rig_of(LIFETIMES);
    rig.submit().await;
    say(&replies, Operation::JobResults, 404, "{}");
    rig.results("op_1").await;
    assert_eq!(body(&rig.submit().await), job("op_1", "PENDING"));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_page_token_says_nothing_of_the_job() {
    let (rig, replies) = rig_of(LIFETIMES);
    rig.submit().await;
    say(&replies, Operation::JobStatus, 200, &completed("P2D"));
    say(&replies, Operation::JobResults, 200, PAGE);
    rig.status("op_1").await;
    rig.results("op_1").await;
    tokio::time::advance(6 * S).await;
    say(&replies, Operation::JobResults, 404, "{}");
    let first = rig.query(Operation::JobResults, "op_1");
    let wrong = rig.jobs.about(&first, Operation::JobResults, "op_1", "pageSize=3&pageToken=wrong");
    assert_eq!(rig.ask(wrong).await.unwrap().representation().status, 404);
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit);
    assert_eq!((body(&rig.submit().await), rig.calls(Operation::JobSubmit)), (job("op_1", "PENDING"), 1));
    // It could be that the results are gone, so the status is asked for again.
    assert_eq!(rig.calls(Operation::JobStatus), 2);
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit);
    say(&replies, Operation::JobResults, 410, "{}");
    rig.ask(rig.jobs.about(&first, Operation::JobResults, "op_1", "pageToken=other")).await.unwrap();
    expect_a_new_job(&rig, S, "410").await;
}

#[tokio::test(start_paused = true)]
async fn a_job_is_not_shared_after_its_status_was_gone_or_lost() {
    for (policy, status, told) in [
        (LIFETIMES, 404, "{}".to_owned()),
        (LIFETIMES, 410, "{}".to_owned()),
        (with_jobs(600, 600, 0), 404, "{}".to_owned()),
        (with_jobs(600, 600, 0), 410, "{}".to_owned()),
        (with_jobs(600, 0, 10), 200, job("op_1", "FAILED")),
        (with_jobs(600, 1, 10), 200, job("op_1", "CANCELLED")),
        (with_jobs(600, 0, 10), 200, job("op_1", "EXPIRED")),
    ] {
        for elapsed in [0, 11] {
            let (rig, replies) = rig_of(policy);
            rig.submit().await;
            say(&replies, Operation::JobStatus, status, &told);
            rig.status("op_1").await;
            // Whatever Twilio says later.
            say(&replies, Operation::JobStatus, 200, &job("op_1", "RUNNING"));
            expect_a_new_job(&rig, S * elapsed, &format!("{status} {told} {elapsed}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_tells_how_jobs_have_ended() {
    let (rig, replies) = rig_of(LIFETIMES);
    rig.submit().await;
    rig.status("op_1").await;
    say(&replies, Operation::JobResults, 404, "{}");
    assert_eq!(rig.results("op_1").await.representation().status, 404);
    let list = |state: &str| {
        let items = [job("op_1", state), job("op_8", state), "7".to_owned()].join(",");
        say(&replies, Operation::JobList, 200, &format!(r#"{{"items":[{items}]}}"#));
        rig.ask(rig.query(Operation::JobList, ""))
    };
    tokio::time::advance(S).await;
    list("COMPLETED").await.unwrap();
    say(&replies, Operation::JobResults, 200, PAGE);
    let results = rig.results("op_1").await;
    assert_eq!((results.outcome, results.representation().status.as_u16()), (Outcome::Miss, 200));
    assert_eq!(rig.submit().await.outcome, Outcome::Hit);
    list("RUNNING").await.unwrap();
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit);
    tokio::time::advance(S).await;
    list("FAILED").await.unwrap();
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss);
    expect_a_new_job(&rig, S, "list").await;
    // After a restart no client may have asked about a job whose submission is on the disk.
    let unknown = rig.store.jobs.get(&Key::of_job(&rig.submission().team.account, "op_8"));
    assert!(unknown.is_some_and(|known| known.lost.is_some() && known.completed.is_none()));
}

#[tokio::test(start_paused = true)]
async fn polls_that_fail_are_as_rare_as_others_and_the_last_status_is_served() {
    for failure in [503, 500, 429, RESET, 401] {
        let (rig, replies) = rig_of(LIFETIMES);
        rig.submit().await;
        rig.status("op_1").await;
        say(&replies, Operation::JobStatus, failure, "{}");
        let watch = || async {
            for _ in 0..400 {
                let query = rig.query(Operation::JobStatus, "op_1");
                let status = rig.ask(forced(query)).await.unwrap();
                assert_eq!((body(&status), status.representation().status.as_u16()), (job("op_1", "RUNNING"), 200));
                assert!((1..=10).contains(&wait(&status).unwrap()), "{failure}");
                tokio::time::sleep(S / 10).await;
            }
        };
        futures_util::future::join_all((0..10).map(|_| watch())).await;
        let polls = rig.calls(Operation::JobStatus);
        assert!((4..=5).contains(&polls), "{failure} {polls}");
        say(&replies, Operation::JobStatus, 200, &completed("P2D"));
        tokio::time::advance(11 * S).await;
        assert!(body(&rig.status("op_1").await).contains("COMPLETED"));
    }
}

#[tokio::test(start_paused = true)]
async fn polls_are_rare_while_no_status_is_stored() {
    // Nothing is known but the failure.
    for failure in [503, RESET] {
        let (rig, replies) = rig_of(LIFETIMES);
        say(&replies, Operation::JobStatus, failure, "{}");
        for elapsed in 0..5 {
            let left = match rig.ask(rig.query(Operation::JobStatus, "op_1")).await {
                Ok(answer) => {
                    assert_eq!(answer.representation().status.as_u16(), failure);
                    wait(&answer)
                }
                Err(error) => error.retry_after().map(|left| left.as_secs()),
            };
            assert_eq!(left, Some(5 - elapsed), "{failure}");
            tokio::time::advance(S).await;
        }
        assert_eq!(rig.calls(Operation::JobStatus), 1, "{failure}");
        say(&replies, Operation::JobStatus, 200, &completed("P2D"));
        tokio::time::advance(S).await;
        assert!(body(&rig.status("op_1").await).contains("COMPLETED"));
    }
    // The answer to the submission is known.
    let (rig, replies) = rig_of(LIFETIMES);
    rig.submit().await;
    say(&replies, Operation::JobStatus, 503, "{}");
    for elapsed in 0..5 {
        let status = rig.status("op_1").await;
        assert_eq!((status.representation().status.as_u16(), body(&status)), (200, accepted("op_1")));
        assert_eq!((wait(&status), status.outcome), (Some(5 - elapsed), Outcome::StaleError));
        tokio::time::advance(S).await;
    }
    assert_eq!(rig.calls(Operation::JobStatus), 1);
    // The stored status has been evicted, or errors are not stored.
    for (status, told) in [(200, job("op_1", "RUNNING")), (404, r#"{"code":20404}"#.to_owned())] {
        let (rig, replies) = rig_of(with_jobs(600, 600, 0));
        replies.lock().unwrap().push((Operation::JobStatus, (status, Some(5), told.clone())));
        for elapsed in 0..5 {
            let known = rig.status("op_1").await;
            assert_eq!((known.representation().status.as_u16(), body(&known)), (status, told.clone()));
            assert!(status == 404 || wait(&known) == Some(5 - elapsed), "{:?}", wait(&known));
            evict(&rig);
            tokio::time::advance(S).await;
        }
        assert_eq!(rig.calls(Operation::JobStatus), 1, "{status}");
        say(&replies, Operation::JobStatus, 503, "{}");
        tokio::time::advance(S).await;
        let failed = rig.status("op_1").await;
        assert_eq!(failed.representation().status.as_u16(), if status == 200 { 200 } else { 503 });
        assert_eq!(rig.calls(Operation::JobStatus), 2, "{status}");
    }
    let (rig, _) = rig_of(LIFETIMES);
    let mut cached = rig.query(Operation::JobStatus, "op_2");
    cached.directives.cache.only_if_cached = true;
    assert_eq!(rig.ask(cached).await.unwrap_err().reason(), Reason::OnlyIfCached);
}

/// Drops the stored status of `op_1`, and nothing of what is known.
fn evict(rig: &Rig) {
    let unstored = UnstoredResponse {
        account: AccountId::example(),
        asked: rig.clock.now(),
        made: rig.clock.moment(),
        begins: None,
        next: None,
        is_shared: true,
    };
    rig.store.supersede(Key::of_job(&rig.submission().team.account, "op_1"), &unstored);
}

#[tokio::test(start_paused = true)]
async fn a_slow_poll_holds_nobody_who_can_have_a_known_status() {
    let mut rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    rig.status("op_1").await;
    rig.jobs.inner = rig.slow(40 * S);
    tokio::time::advance(11 * S).await;
    let begun = Instant::now();
    let polls = (0..3).map(|_| rig.status("op_1"));
    for status in futures_util::future::join_all(polls).await {
        assert_eq!((body(&status), wait(&status)), (job("op_1", "RUNNING"), Some(1)));
    }
    assert_eq!(begun.elapsed(), S);
    // A submission that asks whether the job may be shared does not wait longer either.
    assert_eq!((rig.submit().await.outcome, begun.elapsed()), (Outcome::Hit, 2 * S));
    // The poll goes on, and is the only one.
    tokio::time::sleep(39 * S).await;
    assert_eq!((rig.status("op_1").await.outcome, rig.calls(Operation::JobStatus)), (Outcome::Hit, 2));
}

#[tokio::test(start_paused = true)]
async fn a_submission_whose_end_is_unknown_is_repeated_with_its_key() {
    for unknown in [RESET, 503, 408] {
        let (rig, replies) = rig_of(LIFETIMES);
        say(&replies, Operation::JobSubmit, unknown, "{}");
        for _ in 0..2 {
            let _ = rig.ask(rig.submission()).await;
        }
        let _ = rig.ask(forced(rig.submission())).await;
        let sent = rig.keys();
        assert!(sent[0] == sent[1] && sent[1] != sent[2], "{unknown} {sent:?}");
        replies.lock().unwrap().clear();
        rig.submit().await;
        assert_eq!(rig.keys()[3], sent[2], "{unknown}");
        // Its end is known now.
        tokio::time::advance(601 * S).await;
        rig.submit().await;
        assert_ne!(rig.keys()[4], sent[2], "{unknown}");
    }
    // A refusal is an end, and so is time.
    for (status, elapsed, is_repeated) in [(422, 0, false), (409, 0, false), (503, 599, true), (503, 600, false)] {
        let (rig, replies) = rig_of(LIFETIMES);
        say(&replies, Operation::JobSubmit, status, "{}");
        let _ = rig.ask(rig.submission()).await;
        tokio::time::advance(S * elapsed).await;
        let _ = rig.ask(rig.submission()).await;
        let sent = rig.keys();
        assert!(sent.len() == 2 && (sent[0] == sent[1]) == is_repeated, "{status} {elapsed} {sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_fails_does_not_end_a_wait() {
    for failure in [503, RESET, 401] {
        let (rig, replies) = rig_of(LIFETIMES);
        rig.status("op_1").await;
        say(&replies, Operation::JobStatus, failure, "{}");
        let begun = Instant::now();
        let (status, ()) = tokio::join!(rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)), async {
            tokio::time::sleep(15 * S).await;
            say(&replies, Operation::JobStatus, 200, &completed("P2D"));
        });
        assert_eq!((body(&status.unwrap()), begun.elapsed().as_secs()), (completed("P2D"), 20), "{failure}");
        let (rig, replies) = rig_of(LIFETIMES);
        rig.status("op_1").await;
        say(&replies, Operation::JobStatus, failure, "{}");
        let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 35)).await.unwrap();
        assert_eq!((body(&status), rig.calls(Operation::JobStatus)), (job("op_1", "RUNNING"), 4), "{failure}");
        assert_eq!(status.age.map(|age| age.as_secs()), Some(35), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_first_poll_ends_with_what_the_submission_said() {
    let rig = Rig::with(LIFETIMES, 4 * S, twilio(|_, _| "RUNNING"));
    rig.submit().await;
    let begun = Instant::now();
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 1)).await.unwrap();
    assert_eq!((body(&status), begun.elapsed()), (accepted("op_1"), S));
    assert_eq!(
        (status.representation().status.as_u16(), status.outcome, wait(&status)),
        (200, Outcome::StaleError, Some(1))
    );
    // The answer of another job says nothing of this one.
    rig.ask(forced(rig.submission())).await.unwrap();
    rig.store.purge(&Purge::Operation(Operation::JobStatus));
    let unknown = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 1)).await.unwrap_err();
    assert_eq!(unknown.reason(), Reason::UpstreamTimeout);
    // A poll that failed does not end the wait.
    let (rig, replies) = rig_of(LIFETIMES);
    rig.submit().await;
    say(&replies, Operation::JobStatus, 503, "{}");
    assert_eq!(body(&rig.status("op_1").await), accepted("op_1"));
    let begun = Instant::now();
    let (status, ()) = tokio::join!(rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)), async {
        tokio::time::sleep(S).await;
        say(&replies, Operation::JobStatus, 200, &completed("P2D"));
    });
    assert_eq!((body(&status.unwrap()), begun.elapsed().as_secs()), (completed("P2D"), 5));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_forbids_polls_waits_without_any() {
    let (rig, _) = rig_of(LIFETIMES);
    rig.status("op_1").await;
    let mut query = waiting(rig.query(Operation::JobStatus, "op_1"), 30);
    query.directives.cache.only_if_cached = true;
    let begun = Instant::now();
    let status = rig.ask(query).await.unwrap();
    assert_eq!((body(&status), begun.elapsed().as_secs()), (job("op_1", "RUNNING"), 30));
    assert_eq!(rig.calls(Operation::JobStatus), 1);
}

#[tokio::test(start_paused = true)]
async fn results_are_kept_no_longer_than_a_status_says_that_is_learnt_later() {
    let (rig, replies) = rig_of(LIFETIMES);
    say(&replies, Operation::JobResults, 200, PAGE);
    say(&replies, Operation::JobStatus, 200, &completed("PT20S"));
    rig.results("op_1").await;
    rig.status("op_1").await;
    tokio::time::advance(19 * S).await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit);
    tokio::time::advance(2 * S).await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss);
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss, "the retention is over");
}

#[tokio::test(start_paused = true)]
async fn results_without_retention_are_not_kept_and_their_status_is_polled_rarely() {
    for (policy, retention) in [(LIFETIMES, "PT0S"), (LIFETIMES, "P0D"), (with_jobs(600, 0, 10), "P2D")] {
        let (rig, replies) = rig_of(policy);
        say(&replies, Operation::JobResults, 200, PAGE);
        say(&replies, Operation::JobStatus, 200, &completed(retention));
        for _ in 0..20 {
            rig.ask(forced(rig.query(Operation::JobStatus, "op_1"))).await.unwrap();
            assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss, "{retention}");
        }
        assert_eq!(rig.calls(Operation::JobStatus), 1, "{retention}");
        tokio::time::advance(6 * S).await;
        rig.status("op_1").await;
        assert_eq!(rig.calls(Operation::JobStatus), 2, "{retention}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_keeps_its_state_after_its_status_has_expired() {
    let (rig, replies) = rig_of(with_jobs(600, 0, 10));
    say(&replies, Operation::JobStatus, 200, &job("op_1", "FAILED"));
    rig.status("op_1").await;
    tokio::time::advance(6 * S).await;
    say(&replies, Operation::JobStatus, 200, &job("op_1", "RUNNING"));
    let flipped = rig.ask(rig.query(Operation::JobStatus, "op_1")).await.unwrap_err();
    assert_eq!(flipped.reason(), Reason::UpstreamInvalid);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_its_own_submission_calls_lost_is_not_shared() {
    for state in ["FAILED", "CANCELLED", "EXPIRED"] {
        let (rig, replies) = rig_of(LIFETIMES);
        say(&replies, Operation::JobSubmit, 202, &job("op_0", state));
        let lost = rig.submit().await;
        assert_eq!((lost.outcome, body(&lost)), (Outcome::Miss, job("op_0", state)), "{state}");
        replies.lock().unwrap().clear();
        let new = rig.submit().await;
        assert_eq!((new.outcome, body(&new)), (Outcome::Miss, job("op_1", "PENDING")), "{state}");
        assert_eq!(rig.submit().await.outcome, Outcome::Hit, "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_results_have_expired_by_its_own_retention_is_not_shared() {
    for (retention, elapsed) in [("PT0S", 1), ("PT20S", 21)] {
        let (rig, replies) = rig_of(LIFETIMES);
        rig.submit().await;
        say(&replies, Operation::JobStatus, 200, &completed(retention));
        rig.status("op_1").await;
        if elapsed > 1 {
            assert_eq!(rig.submit().await.outcome, Outcome::Hit, "{retention}");
        }
        expect_a_new_job(&rig, S * elapsed, retention).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_not_found_at_first_is_shared_when_it_is() {
    let (rig, replies) = rig_of(with_jobs(600, 600, 1));
    rig.submit().await;
    say(&replies, Operation::JobStatus, 404, "{}");
    assert_eq!(rig.status("op_1").await.representation().status, 404);
    replies.lock().unwrap().clear();
    tokio::time::advance(6 * S).await;
    assert_eq!(body(&rig.status("op_1").await), job("op_1", "RUNNING"));
    let shared = rig.submit().await;
    assert_eq!((shared.outcome, body(&shared)), (Outcome::Hit, job("op_1", "PENDING")));
    // What else shows that a job is lost holds.
    for (operation, status, told) in [
        (Operation::JobStatus, 410, "{}".to_owned()),
        (Operation::JobResults, 410, "{}".to_owned()),
        (Operation::JobList, 200, format!(r#"{{"items":[{}]}}"#, job("op_1", "FAILED"))),
    ] {
        let (rig, replies) = rig_of(with_jobs(600, 600, 1));
        rig.submit().await;
        say(&replies, Operation::JobStatus, 404, "{}");
        rig.status("op_1").await;
        tokio::time::advance(6 * S).await;
        say(&replies, operation, status, &told);
        let id = if operation == Operation::JobList { "" } else { "op_1" };
        rig.ask(rig.query(operation, id)).await.unwrap();
        replies.lock().unwrap().clear();
        tokio::time::advance(6 * S).await;
        assert_eq!(body(&rig.status("op_1").await), job("op_1", "RUNNING"));
        assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"), "{operation:?} {status}");
    }
}
