//! What replicas tell each other of submissions whose end is unknown, and of polls that failed.

use super::*;
use crate::cache::fill_lock::{ClaimOutcome, ClaimRequest, FillLease, FillLock};
use crate::cache::job_notes::{MemoryJobNotes, Note};
use crate::core::clock::Moment;
use crate::request::context::RequestContext;

/// A lock that everybody gets.
#[derive(Debug)]
struct Free;

impl FillLock for Free {
    fn claim(&self, _: &ClaimRequest) -> BoxFuture<'static, ClaimOutcome> {
        Box::pin(async { ClaimOutcome::Lead(FillLease::new().0) })
    }

    fn patience(&self) -> Duration {
        S
    }

    fn purge(&self, _: &Purge, _: Option<Moment>) {}

    fn outdate(&self, _: Vec<(Key, Moment)>) {}
}

/// What Twilio answers to submissions and polls; `None`: as [`twilio`] does.
type Answer = Arc<Mutex<Option<(u16, Option<u64>)>>>;

/// Replicas that share notes and one Twilio, and nothing else.
struct Replicas {
    all: Vec<Rig>,
    notes: Arc<MemoryJobNotes>,
    answer: Answer,
}

impl Replicas {
    fn new(takes: Duration) -> Self {
        Self::with(LIFETIMES, takes)
    }

    fn with(policy: cache::Policy, takes: Duration) -> Self {
        let (notes, answer, mut jobs) = (Arc::<MemoryJobNotes>::default(), Answer::default(), twilio(|_, _| "RUNNING"));
        let scripted = Arc::clone(&answer);
        let script = move |call: &UpstreamCall| match *scripted.lock().unwrap() {
            Some((status, wait)) => (status, wait, r#"{"code":20500}"#.to_owned()),
            None => jobs(call),
        };
        let upstream = Twilio { script: Arc::new(Mutex::new(Box::new(script))), calls: Arc::default(), takes };
        let replica = || {
            let store = Store::new(1 << 20, &Metrics::new()).with_fill_lock(Arc::new(Free));
            Rig::over(store.with_job_notes(Arc::clone(&notes) as _), policy, upstream.clone())
        };
        Self { all: (0..3).map(|_| replica()).collect(), notes, answer }
    }

    fn answers(&self, answer: Option<(u16, Option<u64>)>) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Submits at one replica, and returns the key with which that was sent.
    async fn submit(&self, replica: usize) -> HeaderValue {
        self.ask(replica, self.all[replica].submission()).await
    }

    async fn ask(&self, replica: usize, query: ClientQuery) -> HeaderValue {
        let before = self.all[0].keys().len();
        // How it ends is up to the script.
        let _ = self.all[replica].ask(query).await;
        let keys = self.all[0].keys();
        assert_eq!(keys.len(), before + 1, "one submission is sent");
        // What is done after the answer.
        settled().await;
        keys[before].clone()
    }

    fn polls(&self) -> usize {
        self.all[0].calls(Operation::JobStatus)
    }
}

/// Returns when other tasks have done what they can do now.
async fn settled() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// One that is not answered by an earlier job that is older than this.
fn not_older(query: ClientQuery, age: Duration) -> ClientQuery {
    let cache = CacheDirectives { max_age: Some(age), ..query.directives.cache };
    ClientQuery { directives: RequestDirectives { cache, ..query.directives.clone() }, ..query }
}

#[tokio::test(start_paused = true)]
async fn a_submission_whose_end_is_unknown_is_repeated_with_its_key_at_every_replica() {
    for unknown in [RESET, 503, 500, 408, 429, 401] {
        let replicas = Replicas::new(S);
        replicas.answers(Some((unknown, None)));
        let first = replicas.submit(0).await;
        assert_eq!((replicas.submit(1).await, replicas.submit(0).await), (first.clone(), first.clone()), "{unknown}");
        assert_eq!(replicas.notes.text().as_deref(), first.to_str().ok(), "{unknown}");
        replicas.answers(None);
        assert_eq!(replicas.submit(2).await, first, "{unknown}");
        // Its end is known now, and nobody sends it any more.
        assert_eq!(replicas.notes.text(), None, "{unknown}");
        assert!(replicas.submit(1).await != first && replicas.submit(0).await != first, "{unknown}");
    }
    // A refusal is an end.
    let replicas = Replicas::new(S);
    replicas.answers(Some((422, None)));
    let first = replicas.submit(0).await;
    assert_eq!(replicas.notes.text(), None);
    assert_ne!(replicas.submit(1).await, first);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_ends_in_the_middle_of_a_submission_leaves_its_key() {
    let replicas = Replicas::new(30 * S);
    let submission = replicas.all[0].submission();
    let task = tokio::spawn(replicas.all[0].jobs.clone().oneshot(submission));
    tokio::time::sleep(S).await;
    let first = replicas.all[0].keys()[0].clone();
    // It will tell nothing more, and nobody else makes a key of his own meanwhile.
    replicas.notes.fake().is_away = true;
    task.await.unwrap().unwrap();
    replicas.notes.fake().is_away = false;
    assert_eq!(replicas.notes.text().as_deref(), first.to_str().ok());
    assert_eq!(replicas.submit(1).await, first);
    assert_eq!(replicas.notes.text(), None);
}

#[tokio::test(start_paused = true)]
async fn replicas_that_submit_the_same_at_once_have_one_key() {
    let replicas = Replicas::new(S);
    replicas.answers(Some((503, None)));
    let submit = |replica: usize| replicas.all[replica].ask(replicas.all[replica].submission());
    let _ = tokio::join!(submit(0), submit(1), submit(2));
    let keys = replicas.all[0].keys();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_used_again_for_as_long_as_submissions_are_shared() {
    // The call takes 30 s, and the time begins after it.
    for (elapsed, is_repeated) in [(599, true), (600, false)] {
        let replicas = Replicas::new(30 * S);
        replicas.answers(Some((503, None)));
        let first = replicas.submit(0).await;
        tokio::time::advance(S * elapsed).await;
        assert_eq!(replicas.submit(1).await == first, is_repeated, "{elapsed}");
    }
    // Sent again with the same key, it is as old as before, wherever it is sent.
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    let first = replicas.submit(0).await;
    for (replica, is_repeated) in [(1, true), (2, true), (1, false)] {
        tokio::time::advance(S * 200).await;
        assert_eq!(replicas.submit(replica).await == first, is_repeated, "{replica}");
    }
    // A client can be content with less.
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    let first = replicas.submit(0).await;
    tokio::time::advance(S * 100).await;
    let asked = |age: u32| not_older(replicas.all[1].submission(), S * age);
    assert_eq!(replicas.ask(1, asked(101)).await, first);
    let second = replicas.ask(1, asked(100)).await;
    assert!(second != first && replicas.submit(2).await == second, "it has taken the place of the first");
}

#[tokio::test(start_paused = true)]
async fn no_cache_has_a_new_key_that_later_submissions_have() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    let first = replicas.submit(0).await;
    let second = replicas.ask(1, forced(replicas.all[1].submission())).await;
    assert_ne!(second, first);
    for replica in [2, 0, 1] {
        assert_eq!(replicas.submit(replica).await, second, "{replica}");
    }
    // One whose end is known leaves none, nor does it take away that of another.
    replicas.answers(None);
    let third = replicas.ask(1, forced(replicas.all[1].submission())).await;
    assert!(third != second && replicas.notes.text().is_none());
}

#[tokio::test(start_paused = true)]
async fn keys_of_clients_and_submissions_that_are_not_shared_are_not_noted() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    let first = replicas.submit(0).await;
    let before = replicas.notes.fake().operations;
    let headers = Some(Arc::new(only(IDEMPOTENCY_KEY, HeaderValue::from_static("mine"))));
    assert_eq!(replicas.ask(1, ClientQuery { headers, ..replicas.all[1].submission() }).await, "mine");
    let mut unshared = replicas.all[1].submission();
    unshared.directives.cache.no_store = true;
    assert_ne!(replicas.ask(1, unshared).await, first);
    assert_eq!(replicas.notes.fake().operations, before);
    assert_eq!(replicas.submit(1).await, first);
    let jobs = JobLifetimes { dedup: Duration::ZERO, ..LIFETIMES.jobs };
    let replicas = Replicas::with(cache::Policy { jobs, ..LIFETIMES }, Duration::ZERO);
    replicas.answers(Some((503, None)));
    assert_ne!(replicas.submit(0).await, replicas.submit(0).await);
    assert_eq!(replicas.notes.fake().operations, 0);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_becomes_a_job_has_the_key_of_the_submission() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    let first = replicas.submit(0).await;
    let rig = &replicas.all[1];
    let directives = RequestDirectives { respond_async: true, ..RequestDirectives::default() };
    let deadline = rig.clock.now() + LIFETIMES.deadline;
    let query = ClientQuery { directives, deadline, ..ClientQuery::example(Operation::Query, "", ASK) };
    assert_eq!(replicas.ask(1, query).await, first);
}

#[tokio::test(start_paused = true)]
async fn a_note_that_is_no_key_is_replaced_and_fails_nobody() {
    let long = "0".repeat(300);
    for text in ["", "a\r\nb: c", "x", &long, "0190-\u{7f}190-7000-8000-000000000000"] {
        let replicas = Replicas::new(Duration::ZERO);
        replicas.answers(Some((503, None)));
        replicas.submit(0).await;
        for (note, _) in replicas.notes.fake().notes.values_mut() {
            *note = Note { text: text.as_bytes().to_vec(), ..note.clone() };
        }
        let second = replicas.submit(1).await;
        assert_eq!((second.len(), replicas.submit(2).await), (36, second), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_each_replica_repeats_what_it_has_sent_itself() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    replicas.notes.fake().is_away = true;
    let (first, second) = (replicas.submit(0).await, replicas.submit(1).await);
    assert_ne!(first, second);
    assert_eq!((replicas.submit(0).await, replicas.submit(1).await), (first.clone(), second));
    // Those that the others have not known yet are noted when the store is back.
    replicas.notes.fake().is_away = false;
    for replica in [0, 1, 2] {
        assert_eq!(replicas.submit(replica).await, first, "{replica}");
    }
    // It goes away again.
    replicas.notes.fake().is_away = true;
    for replica in [0, 1, 2] {
        assert_eq!(replicas.submit(replica).await, first, "{replica}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_delays_a_submission_by_what_its_request_has_left() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.notes.fake().takes = 10 * S;
    for (context, delay) in [(RequestContext::default(), S), (RequestContext::that_has_waited(), Duration::ZERO)] {
        let begun = Instant::now();
        let submission = ClientQuery { context: Arc::new(context), ..forced(replicas.all[0].submission()) };
        replicas.all[0].ask(submission).await.unwrap();
        assert_eq!(begun.elapsed(), delay);
    }
    assert_eq!(replicas.all[0].keys().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_submissions_here_makes_a_new_key_here_without_the_store() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    let first = replicas.submit(0).await;
    replicas.notes.fake().is_away = true;
    replicas.all[0].store.purge(&Purge::Operation(Operation::JobSubmit));
    assert_ne!(replicas.submit(0).await, first);
}

/// Asks every replica for the status once a second, for this long.
async fn watch(replicas: &Replicas, seconds: u32) -> Vec<Answered> {
    let mut answers = Vec::new();
    for _ in 0..seconds {
        for rig in &replicas.all {
            answers.push(rig.ask(rig.query(Operation::JobStatus, "op_1")).await);
        }
        tokio::time::advance(S).await;
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn while_polls_fail_all_replicas_together_send_one_when_it_is_due() {
    for (failure, wait_seconds) in [(503, Some(10)), (500, None), (429, Some(20))] {
        let replicas = Replicas::new(Duration::ZERO);
        replicas.answers(Some((failure, wait_seconds)));
        let answers = watch(&replicas, 60).await;
        let wait_seconds = wait_seconds.unwrap_or(5);
        assert_eq!(replicas.polls() as u64, 60 / wait_seconds, "{failure}");
        for (n, answer) in answers.into_iter().enumerate() {
            let (answer, elapsed) = (answer.unwrap(), n as u64 / 3 % wait_seconds);
            let told = (answer.representation().status.as_u16(), wait(&answer));
            assert_eq!(told, (failure, Some(wait_seconds - elapsed)), "{n}");
        }
        replicas.answers(None);
        assert!(body(&replicas.all[2].status("op_1").await).contains("RUNNING"), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_known_status_is_the_answer_while_polls_of_other_replicas_fail() {
    let replicas = Replicas::new(Duration::ZERO);
    for rig in &replicas.all {
        rig.status("op_1").await;
    }
    replicas.answers(Some((503, None)));
    tokio::time::advance(11 * S).await;
    let before = replicas.polls();
    for answer in watch(&replicas, 10).await {
        let answer = answer.unwrap();
        assert_eq!((answer.representation().status.as_u16(), body(&answer)), (200, job("op_1", "RUNNING")));
        assert!(matches!(answer.outcome, Outcome::Stale | Outcome::StaleError), "{:?}", answer.outcome);
    }
    // After the same wait as after a poll that succeeded.
    assert_eq!(replicas.polls(), before + 1);
    let begun = Instant::now();
    let query = waiting(replicas.all[1].query(Operation::JobStatus, "op_1"), 15);
    replicas.answers(None);
    let waited = replicas.all[1].ask(query).await.unwrap();
    assert_eq!((body(&waited), replicas.polls()), (job("op_1", "RUNNING"), before + 3));
    assert_eq!(begun.elapsed(), 15 * S);
}

#[tokio::test(start_paused = true)]
async fn failures_of_one_replicas_own_way_or_credentials_hold_up_no_other() {
    for failure in [RESET, 401] {
        let replicas = Replicas::new(Duration::ZERO);
        replicas.answers(Some((failure, None)));
        for answer in watch(&replicas, 10).await {
            assert!(answer.unwrap_err().retry_after().is_some(), "{failure}");
        }
        assert_eq!((replicas.polls(), replicas.notes.text()), (6, None), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_each_replica_polls_by_itself() {
    let replicas = Replicas::new(Duration::ZERO);
    replicas.answers(Some((503, None)));
    replicas.notes.fake().is_away = true;
    watch(&replicas, 10).await;
    assert_eq!(replicas.polls(), 6);
    // It is slow: no request waits longer than it may.
    replicas.notes.fake().is_away = false;
    replicas.notes.fake().takes = 10 * S;
    let begun = Instant::now();
    replicas.all[0].status("op_1").await;
    assert_eq!((begun.elapsed(), replicas.polls()), (S, 7));
}

#[tokio::test(start_paused = true)]
async fn a_note_that_is_no_failed_poll_or_is_over_does_not_keep_a_poll_back() {
    for case in 0..3 {
        let replicas = Replicas::new(Duration::ZERO);
        replicas.answers(Some((503, Some(10))));
        replicas.all[0].status("op_1").await;
        for (note, ends) in replicas.notes.fake().notes.values_mut() {
            match case {
                0 => note.text = b"garbage".to_vec(),
                1 => note.at = replicas.all[0].clock.moment(),
                // As if somebody kept it in the store for longer.
                _ => *ends += S * 3600,
            }
        }
        tokio::time::advance(if case == 2 { 10 * S } else { S }).await;
        replicas.all[1].status("op_1").await;
        assert_eq!(replicas.polls(), 2, "{case}");
    }
}
