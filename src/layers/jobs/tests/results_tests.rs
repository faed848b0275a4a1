//! Results, before the end of their job and after their own.

use super::*;

#[tokio::test(start_paused = true)]
async fn missing_results_are_asked_for_again_once_the_job_has_completed() {
    let rig = Rig::new(twilio(|_, age| if age < 3 { "RUNNING" } else { "COMPLETED" }));
    rig.submit().await;
    assert_eq!(rig.results("op_1").await.representation().status, 404);
    assert_eq!((rig.results("op_1").await.outcome, rig.calls(Operation::JobResults)), (Outcome::Hit, 1));
    tokio::time::advance(4 * S).await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit, "the status is not known yet");
    rig.status("op_1").await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss);
    tokio::time::advance(47 * 3600 * S).await;
    assert_eq!((rig.results("op_1").await.outcome, rig.calls(Operation::JobResults)), (Outcome::Hit, 2));
    tokio::time::advance(2 * 3600 * S).await;
    assert_eq!(rig.results("op_1").await.outcome, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn expired_results_remove_all_stored_responses_of_the_job() {
    for (status, told) in [(404, "results"), (410, "results"), (404, "status")] {
        let gone = Arc::new(Mutex::new(false));
        let is_gone = Arc::clone(&gone);
        let mut completed = twilio(|_, _| "COMPLETED");
        let rig = Rig::new(move |call: &UpstreamCall| match *is_gone.lock().unwrap() {
            true => (status, None, "{}".to_owned()),
            false => completed(call),
        });
        rig.status("op_1").await;
        rig.results("op_1").await;
        assert_eq!(rig.results("op_1").await.outcome, Outcome::Hit);
        *gone.lock().unwrap() = true;
        tokio::time::advance(10 * S).await;
        if told == "results" {
            // Ask for another page, which is not stored.
            let other =
                rig.jobs.about(&rig.query(Operation::JobResults, "op_1"), Operation::JobResults, "op_1", "pageToken=b");
            assert_eq!(rig.ask(other).await.unwrap().representation().status, status);
            assert_eq!(rig.status("op_1").await.representation().status, status, "it is asked for again");
        } else {
            let status = rig.ask(forced(rig.query(Operation::JobStatus, "op_1"))).await.unwrap();
            assert_eq!(status.representation().status, 404);
        }
        assert_eq!(rig.results("op_1").await.representation().status, status, "{status} {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_is_no_answer_once_the_time_of_the_results_is_over() {
    let (mut jobs, mut polls) = (twilio(|_, _| "COMPLETED"), 0);
    let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobStatus if polls == 0 => {
            polls += 1;
            (200, None, job("op_1", "COMPLETED").replace("P2D", "PT20S"))
        }
        Operation::JobStatus => (503, None, "{}".to_owned()),
        _ => jobs(call),
    });
    rig.submit().await;
    for (elapsed, expected) in [(0, 200), (19, 200), (2, 503), (60, 503)] {
        tokio::time::advance(S * elapsed).await;
        assert_eq!(rig.status("op_1").await.representation().status, expected, "{elapsed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_stored_status_says_of_results_holds_when_nothing_else_is_known() {
    for (retention, elapsed, outcomes) in [
        ("P2D", 6, [Outcome::Miss, Outcome::Hit]),
        ("PT20S", 6, [Outcome::Miss, Outcome::Hit]),
        ("PT20S", 21, [Outcome::Miss, Outcome::Miss]),
        ("PT0S", 6, [Outcome::Miss, Outcome::Miss]),
    ] {
        let mut jobs = twilio(|_, _| "COMPLETED");
        let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
            Operation::JobStatus => (200, None, job("op_1", "COMPLETED").replace("P2D", retention)),
            _ => jobs(call),
        });
        rig.submit().await;
        rig.status("op_1").await;
        // As at a restart.
        let status = Key::of_job(&rig.submission().team.account, "op_1");
        rig.store.jobs.update(status, |known| *known = KnownJob::default());
        tokio::time::advance(S * elapsed).await;
        let read = [rig.results("op_1").await, rig.results("op_1").await].map(|results| results.outcome);
        assert_eq!(read, outcomes, "{retention} {elapsed}");
        let is_over = retention == "PT0S" || elapsed > 20;
        assert_eq!(rig.submit().await.outcome == Outcome::Miss, is_over, "{retention} {elapsed}");
    }
}
