//! Polls of a job's status, and waits for its end.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_hundred_watchers_cost_one_poll_per_retry_after() {
    let rig = Rig::with(
        LIFETIMES,
        Duration::from_millis(50),
        twilio(|_, age| if age < 25 { "RUNNING" } else { "COMPLETED" }),
    );
    rig.submit().await;
    let watch = || async {
        loop {
            let query = rig.query(Operation::JobStatus, "op_1");
            // Even with directives that ask for a new status.
            let status = rig.ask(forced(query)).await.unwrap();
            let told = wait(&status);
            if body(&status).contains("COMPLETED") {
                assert_eq!(told, None);
                return;
            }
            assert!((1..=10).contains(&told.unwrap()), "{told:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    futures_util::future::join_all((0..100).map(|_| watch())).await;
    // After 0, 10, 20 and 30 seconds.
    assert_eq!(rig.calls(Operation::JobStatus), 4);
    tokio::time::advance(47 * 3600 * S).await;
    assert_eq!(rig.status("op_1").await.outcome, Outcome::Hit, "stored as long as its results");
    tokio::time::advance(2 * 3600 * S).await;
    assert_eq!(rig.status("op_1").await.outcome, Outcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_is_polled_again_only_if_a_client_asks_for_it() {
    let rig = Rig::new(twilio(|_, _| "COMPLETED"));
    for (elapsed, insists, outcome) in [
        (0, false, Outcome::Miss),
        (0, true, Outcome::Hit),
        (4, true, Outcome::Hit),
        (2, true, Outcome::Miss),
        (60, false, Outcome::Hit),
    ] {
        tokio::time::advance(elapsed * S).await;
        let query = rig.query(Operation::JobStatus, "op_1");
        let status = rig.ask(if insists { forced(query) } else { query }).await.unwrap();
        assert_eq!(status.outcome, outcome, "{elapsed} {insists}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_keeps_its_state() {
    let mut asked = 0;
    let rig = Rig::new(twilio(move |_, _| {
        asked += 1;
        if asked == 1 { "COMPLETED" } else { "RUNNING" }
    }));
    rig.status("op_1").await;
    tokio::time::advance(10 * S).await;
    let again = rig.ask(forced(rig.query(Operation::JobStatus, "op_1"))).await.unwrap();
    assert_eq!((again.outcome, body(&again)), (Outcome::StaleError, job("op_1", "COMPLETED")));
    assert_eq!(rig.status("op_1").await.outcome, Outcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn prefer_wait_holds_a_status_until_the_job_ends_or_the_time_is_up() {
    let rig = Rig::new(twilio(|_, age| if age < 25 { "RUNNING" } else { "COMPLETED" }));
    rig.submit().await;
    let begun = Instant::now();
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 12)).await.unwrap();
    assert_eq!((begun.elapsed().as_secs(), body(&status)), (12, job("op_1", "RUNNING")));
    assert_eq!(rig.calls(Operation::JobStatus), 2);
    assert!((8..=9).contains(&wait(&status).unwrap()), "{:?}", wait(&status));
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)).await.unwrap();
    // Polls at 0, 10, 20 and 30 seconds.
    assert_eq!((begun.elapsed().as_secs(), body(&status)), (30, job("op_1", "COMPLETED")));
    assert_eq!(rig.calls(Operation::JobStatus), 4);
    let begun = Instant::now();
    rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_takes_too_long_leaves_the_last_status() {
    let mut polls = 0;
    let rig = Rig::with(LIFETIMES, 4 * S, move |call: &UpstreamCall| {
        polls += 1;
        (200, Some(if polls == 1 { 2 } else { 60 }), job(call.endpoint.id(&call.path).unwrap(), "RUNNING"))
    });
    // The first poll ends after 4 s, the second would after 10.
    let status = rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 8)).await.unwrap();
    assert_eq!((body(&status), rig.calls(Operation::JobStatus)), (job("op_1", "RUNNING"), 2));
    let none = rig.ask(waiting(rig.query(Operation::JobStatus, "op_9"), 1)).await.unwrap_err();
    assert_eq!(none.reason(), Reason::UpstreamTimeout);
}

#[tokio::test(start_paused = true)]
async fn polls_that_fail_wait_as_long_as_the_submission_said() {
    let rig = Rig::new(|call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobSubmit => (202, Some(30), job("op_1", "PENDING")),
        _ => (503, None, "{}".to_owned()),
    });
    rig.submit().await;
    for elapsed in 0..30 {
        let status = rig.status("op_1").await;
        assert_eq!((body(&status), wait(&status)), (accepted("op_1"), Some(30 - elapsed)));
        tokio::time::advance(S).await;
    }
    assert_eq!(rig.calls(Operation::JobStatus), 1);
    rig.status("op_1").await;
    assert_eq!(rig.calls(Operation::JobStatus), 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_waits_with_the_last_known_status() {
    let rig = Rig::with(LIFETIMES, 2 * S, twilio(|_, _| "RUNNING"));
    rig.submit().await;
    rig.status("op_1").await;
    let shut_down = async |rig: &Rig, after| {
        tokio::time::sleep(after).await;
        rig.draining.begin();
    };
    let (begun, hold) = (Instant::now(), || rig.ask(waiting(rig.query(Operation::JobStatus, "op_1"), 60)));
    let (status, ()) = tokio::join!(hold(), shut_down(&rig, 3 * S));
    let status = status.unwrap();
    assert_eq!((begun.elapsed(), body(&status), wait(&status)), (3 * S, job("op_1", "RUNNING"), Some(7)));
    assert_eq!((status.age, rig.calls(Operation::JobStatus)), (Some(3 * S), 1));
    // One that comes later is not held.
    hold().await.unwrap();
    assert_eq!(begun.elapsed(), 3 * S);
    // A poll that is on its way is not waited for if there is another answer.
    for (id, elapsed) in [("op_1", 1), ("op_9", 2)] {
        let rig = Rig::with(LIFETIMES, 2 * S, twilio(|_, _| "RUNNING"));
        rig.submit().await;
        let begun = Instant::now();
        let (status, ()) = tokio::join!(rig.ask(waiting(rig.query(Operation::JobStatus, id), 60)), shut_down(&rig, S));
        let told = if elapsed == 1 { accepted(id) } else { job(id, "RUNNING") };
        assert_eq!((begun.elapsed().as_secs(), body(&status.unwrap())), (elapsed, told), "{id}");
    }
}
