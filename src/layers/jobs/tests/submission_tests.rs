//! Submissions: which of them share a job.

use super::*;
use crate::accounts::AccountId;

#[tokio::test(start_paused = true)]
async fn an_identical_submission_gets_the_job_of_the_first() {
    let rig = Rig::with(LIFETIMES, S, twilio(|_, _| "RUNNING"));
    let (first, second) = tokio::join!(rig.submit(), rig.submit());
    let mut outcomes = [first.outcome, second.outcome];
    outcomes.sort();
    assert_eq!((outcomes, body(&first)), ([Outcome::Collapsed, Outcome::Miss], body(&second)));
    tokio::time::advance(3 * S).await;
    let third = rig.submit().await;
    assert_eq!((third.outcome, body(&third), wait(&third)), (Outcome::Hit, body(&first), Some(2)));
    assert_eq!(
        (rig.calls(Operation::JobSubmit), rig.calls(Operation::JobStatus)),
        (1, 0),
        "no poll before Retry-After"
    );
    tokio::time::advance(3 * S).await;
    assert_eq!((rig.submit().await.outcome, rig.calls(Operation::JobStatus)), (Outcome::Hit, 1));
    tokio::time::advance(600 * S).await;
    let later = rig.submit().await;
    assert_eq!((later.outcome, body(&later)), (Outcome::Miss, job("op_2", "PENDING")));
}

#[tokio::test(start_paused = true)]
async fn every_submission_has_a_key_and_keeps_its_own() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    let own = |key: &'static str| Some(Arc::new(only(IDEMPOTENCY_KEY, HeaderValue::from_static(key))));
    for _ in 0..2 {
        let answer = rig.ask(ClientQuery { headers: own("mine"), ..rig.submission() }).await.unwrap();
        assert_eq!((answer.outcome, wait(&answer)), (Outcome::Bypass, Some(5)));
    }
    assert_eq!(body(&rig.submit().await), job("op_1", "PENDING"), "a job with its own key is not shared");
    let keys = rig.keys();
    assert_eq!((keys.len(), &keys[1], &keys[2]), (3, &HeaderValue::from_static("mine"), &keys[1]));
    assert_eq!((keys[0].len(), keys[0].as_bytes()[14]), (36, b'7'));
    for bad in ["", "a b", &*"x".repeat(256)] {
        let headers = Some(Arc::new(only(IDEMPOTENCY_KEY, HeaderValue::from_str(bad).unwrap())));
        let refused = rig.ask(ClientQuery { headers, ..rig.submission() }).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::BadRequest, "{bad:?}");
    }
    let mut asked = ClientQuery { headers: own("mine"), ..rig.submission() };
    asked.directives.cache.only_if_cached = true;
    assert_eq!(rig.ask(asked).await.unwrap_err().reason(), Reason::OnlyIfCached);
}

#[tokio::test(start_paused = true)]
async fn no_cache_asks_for_a_new_job_and_later_submissions_share_it() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    tokio::time::advance(S).await;
    assert_eq!(body(&rig.ask(forced(rig.submission())).await.unwrap()), job("op_2", "PENDING"));
    let shared = rig.submit().await;
    assert_eq!((shared.outcome, body(&shared)), (Outcome::Hit, job("op_2", "PENDING")));
}

#[tokio::test(start_paused = true)]
async fn every_submission_with_no_cache_makes_a_job() {
    let rig = Rig::with(LIFETIMES, S, twilio(|_, _| "RUNNING"));
    let submit = || async { body(&rig.ask(forced(rig.submission())).await.unwrap()) };
    let (first, second, third) = tokio::join!(submit(), submit(), submit());
    let mut jobs = [first, second, third];
    jobs.sort();
    assert_eq!(jobs, ["op_1", "op_2", "op_3"].map(|id| job(id, "PENDING")));
    assert_eq!(rig.submit().await.outcome, Outcome::Hit);
    *rig.upstream.script.lock().unwrap() = Box::new(|_| (503, None, "{}".to_owned()));
    let failed = rig.ask(forced(rig.submission())).await.unwrap();
    assert_eq!(failed.representation().status, 503, "an earlier job is no answer");
}

#[tokio::test(start_paused = true)]
async fn clients_that_submit_a_lost_job_again_share_a_new_one() {
    let rig = Rig::with(LIFETIMES, S / 2, twilio(|id, _| if id == "op_1" { "FAILED" } else { "RUNNING" }));
    rig.submit().await;
    rig.status("op_1").await;
    let (first, second) = tokio::join!(rig.submit(), rig.submit());
    assert_eq!([body(&first), body(&second)], [(); 2].map(|()| job("op_2", "PENDING")));
    rig.status("op_2").await;
    let rig = Rig::new(twilio(|_, _| "FAILED"));
    rig.submit().await;
    rig.status("op_1").await;
    *rig.upstream.script.lock().unwrap() = Box::new(|_| (503, None, "{}".to_owned()));
    assert_eq!(rig.submit().await.representation().status, 503, "the lost job is no answer");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_known_to_have_failed_is_not_shared() {
    for state in ["FAILED", "CANCELLED", "EXPIRED"] {
        let rig = Rig::new(twilio(move |id, _| if id == "op_1" { state } else { "RUNNING" }));
        rig.submit().await;
        rig.status("op_1").await;
        let new = rig.submit().await;
        assert_eq!(body(&new), job("op_2", "PENDING"), "{state}");
        assert_eq!(rig.submit().await.outcome, Outcome::Hit, "{state}");
    }
    // The status of the job is not known yet. It is polled as soon as a poll is allowed.
    let rig = Rig::new(twilio(|id, _| if id == "op_1" { "FAILED" } else { "COMPLETED" }));
    rig.submit().await;
    tokio::time::advance(4 * S).await;
    assert_eq!(body(&rig.submit().await), job("op_1", "PENDING"));
    tokio::time::advance(2 * S).await;
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"));
    rig.status("op_2").await;
    tokio::time::advance(60 * S).await;
    assert_eq!((rig.submit().await.outcome, rig.calls(Operation::JobStatus)), (Outcome::Hit, 2), "it has ended");
    // A job that Twilio has lost.
    let mut known = twilio(|_, _| "RUNNING");
    let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::JobStatus => (404, None, "{}".to_owned()),
        _ => known(call),
    });
    rig.submit().await;
    tokio::time::advance(6 * S).await;
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"));
}

#[tokio::test(start_paused = true)]
async fn without_dedup_every_submission_is_a_job() {
    let policy = cache::Policy { jobs: JobLifetimes { dedup: Duration::ZERO, ..LIFETIMES.jobs }, ..LIFETIMES };
    let rig = Rig::with(policy, S, twilio(|_, _| "RUNNING"));
    let (first, second) = tokio::join!(rig.submit(), rig.submit());
    assert_ne!(body(&first), body(&second));
    assert_eq!(rig.submit().await.outcome, Outcome::Bypass);
}

#[tokio::test(start_paused = true)]
async fn a_purge_drops_jobs() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    rig.submit().await;
    rig.status("op_1").await;
    for which in [
        Purge::Operation(Operation::JobSubmit),
        Purge::Key(Key::of_job(&rig.submission().team.account, "op_1").to_string()),
    ] {
        assert_eq!(rig.store.purge(&which).pages, 1);
    }
    assert_eq!(body(&rig.submit().await), job("op_2", "PENDING"));
    assert_eq!(rig.store.purge(&Purge::Account(AccountId::example())).pages, 1);
}
