//! The statuses of jobs, at times that the tests choose.

use proptest::prelude::*;

use super::super::catalog::CustomMeasures;
use super::*;

fn at(seconds: i64) -> Timestamp {
    "2026-05-25T14:30:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

fn jobs() -> Jobs {
    Jobs::new(JobSettings { at_once: 2, ..JobSettings::default() })
}

fn submission(user: &str, body: &str, key: Option<&str>) -> Submission {
    let query = json!({"query": {"measures": ["Conversation.Count"]}});
    Submission {
        user: user.to_owned(),
        key: key.map(str::to_owned),
        query: Query::parse(&query, &CustomMeasures::default()).unwrap_or_else(|error| panic!("{error:?}")),
        fingerprint: blake3::hash(body.as_bytes()),
        bytes: body.len(),
    }
}

fn submit(jobs: &Jobs, now: i64) -> Arc<str> {
    jobs.submit(submission("AC1", "{}", None), at(now)).unwrap().id
}

fn status(jobs: &Jobs, id: &str, now: i64) -> Option<Status> {
    jobs.fetch("AC1", id, at(now)).ok().map(|job| job.status)
}

fn rule(text: &str) -> JobFault {
    JobFault::from_json(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn a_job_is_pending_then_running_then_completed_then_expired() {
    let jobs = jobs();
    let accepted = jobs.submit(submission("AC1", "{}", None), at(0)).unwrap();
    assert_eq!((accepted.status, accepted.wait), (Status::Pending, Some(5)));
    let id = &*accepted.id;
    assert!(id.starts_with("proc_job_") && id.len() == 35);
    let week = 7 * 24 * 3600;
    for (now, expected) in [
        (0, Status::Pending),
        (1, Status::Pending),
        (2, Status::Running),
        (9, Status::Running),
        (10, Status::Completed),
        (week + 9, Status::Completed),
        (week + 10, Status::Expired),
    ] {
        let job = jobs.fetch("AC1", id, at(now)).unwrap();
        assert_eq!(job.status, expected, "after {now} s");
        assert_eq!(job.wait.is_some(), !expected.is_final());
        assert_eq!(jobs.results("AC1", id, at(now)).is_ok(), expected == Status::Completed);
    }
    assert!(jobs.fetch("AC2", id, at(0)).is_err(), "another user's");
    assert!(jobs.results("AC2", id, at(10)).is_err());
    assert!(jobs.fetch("AC1", "proc_job_unknown", at(0)).is_err());
}

#[test]
fn statuses_have_what_is_documented_and_nothing_before_its_time() {
    let jobs = jobs();
    jobs.script(rule(r#"{"next_jobs":1,"status":"FAILED"}"#)).unwrap();
    let (failing, completing) = (submit(&jobs, 0), submit(&jobs, 0));
    let describe = |id: &str, now: i64| jobs.fetch("AC1", id, at(now)).unwrap().describe("https://h/p");
    let url = format!("https://h/p{PATH}/{completing}");
    let running = json!({
        "operationId": &*completing, "status": "RUNNING", "statusUrl": url,
        "createdAt": "2026-05-25T14:30:00Z", "completedAt": null,
    });
    assert_eq!(describe(&completing, 5), running);
    assert_eq!(
        describe(&completing, 10),
        json!({
            "operationId": &*completing, "status": "COMPLETED", "statusUrl": url,
            "createdAt": "2026-05-25T14:30:00Z", "completedAt": "2026-05-25T14:30:10Z",
            "resultUrl": format!("{url}/Results"), "resultId": &*completing, "resultRetentionPeriod": "P7D",
        })
    );
    assert_eq!(describe(&failing, 5).get("error"), None);
    let failed = describe(&failing, 10);
    assert_eq!(
        failed["error"],
        json!({
            "code": 50001, "message": "Query execution timeout exceeded", "httpStatusCode": 504,
            "detail": "ClickHouse query exceeded the 120s execution limit for this account.",
        })
    );
    assert!(failed["completedAt"].is_string() && failed.get("resultUrl").is_none());
}

#[test]
fn few_run_at_once_and_the_others_wait_for_them() {
    let jobs = jobs();
    let ids: Vec<_> = (0..5).map(|_| submit(&jobs, 0)).collect();
    let running = |now: i64| ids.iter().filter(|id| status(&jobs, id, now) == Some(Status::Running)).count();
    let completed = |now: i64| ids.iter().filter(|id| status(&jobs, id, now) == Some(Status::Completed)).count();
    let counts: Vec<_> = [1, 2, 9, 10, 17, 18, 25, 26].map(|now| (running(now), completed(now))).to_vec();
    assert_eq!(counts, [(0, 0), (2, 0), (2, 0), (2, 2), (2, 2), (1, 4), (1, 4), (0, 5)]);
    let other = jobs.submit(submission("AC2", "{}", None), at(3)).unwrap().id;
    assert_eq!(jobs.fetch("AC2", &other, at(13)).unwrap().status, Status::Completed, "accounts do not share slots");
}

#[test]
fn a_key_belongs_to_one_request() {
    let jobs = jobs();
    let ask = |user: &str, body: &str, key: &str, now: i64| {
        jobs.submit(submission(user, body, Some(key)), at(now)).map(|job| job.id)
    };
    let first = ask("AC1", "a", "k", 0).unwrap();
    assert_eq!(ask("AC1", "a", "k", 60), Ok(Arc::clone(&first)));
    assert_eq!(ask("AC1", "b", "k", 60).unwrap_err().status, 422);
    assert_ne!(ask("AC1", "a", "other", 60), Ok(Arc::clone(&first)));
    assert_ne!(ask("AC2", "b", "k", 60), Ok(Arc::clone(&first)), "another account's key is another key");
    assert_eq!(ask("AC1", "a", "k", 24 * 3600 - 1), Ok(Arc::clone(&first)));
    let second = ask("AC1", "b", "k", 24 * 3600).unwrap();
    assert_ne!(second, first, "a key is remembered for a day");
    assert_eq!(ask("AC1", "b", "k", 24 * 3600 + 1), Ok(Arc::clone(&second)));
    assert!(jobs.lose(&first), "the older job's end does not concern the key");
    assert_eq!(ask("AC1", "b", "k", 24 * 3600 + 1), Ok(Arc::clone(&second)));
    assert!(jobs.lose(&second));
    assert!(!jobs.lose(&second));
    assert_ne!(ask("AC1", "b", "k", 24 * 3600 + 2), Ok(second), "a lost job is made again");
    let again = jobs.submit(submission("AC1", "a", Some("other")), at(100)).unwrap();
    assert_eq!((again.status, again.wait), (Status::Completed, None), "a repetition tells where it is");
}

#[test]
fn keys_are_uuids_in_any_case() {
    let uuid = "01890A5D-aa0f-7c80-b8e6-0242ac140004";
    assert_eq!(key(uuid).unwrap(), uuid.to_lowercase());
    for wrong in [
        "",
        "x",
        "01890a5daa0f7c80b8e60242ac140004",
        "01890a5d-aa0f-7c80-b8e6-0242ac14000",
        "01890a5d-aa0f-7c80-b8e6-0242ac1400044",
        "01890a5d-aa0f-7c80-b8e6-0242ac14000g",
        "01890a5d-aa0f-7c80-b8e6-0242ac140004-",
        "{01890a5d-aa0f-7c80-b8e6-0242ac140004}",
        "01890a5d-aa0f-7c80-b8e6-0242ac14é04",
    ] {
        assert_eq!(key(wrong).unwrap_err().status, 400, "{wrong}");
    }
}

#[test]
fn lists_are_walked_both_ways_while_jobs_come_and_go() {
    let jobs = jobs();
    let ids: Vec<_> = (0..5).map(|_| submit(&jobs, 0)).collect();
    let names = |listing: &Listing| listing.jobs.iter().map(|job| Arc::clone(&job.id)).collect::<Vec<_>>();
    let newest = |positions: &[usize]| positions.iter().map(|at| Arc::clone(&ids[*at])).collect::<Vec<_>>();
    let first = jobs.list("AC1", None, usize::MAX, 2, at(0));
    assert_eq!((names(&first), first.previous), (newest(&[4, 3]), None));
    submit(&jobs, 0);
    let second = jobs.list("AC1", None, first.next.unwrap(), 2, at(0));
    assert_eq!(names(&second), newest(&[2, 1]), "a new job shifts nothing");
    let third = jobs.list("AC1", None, second.next.unwrap(), 2, at(0));
    assert_eq!((names(&third), third.next), (newest(&[0]), None));
    let back = jobs.list("AC1", None, third.previous.unwrap(), 2, at(0));
    assert_eq!(names(&back), names(&second));
    assert_eq!(names(&jobs.list("AC1", None, back.previous.unwrap(), 2, at(0))), names(&first));
    let completed = jobs.list("AC1", Some(Status::Completed), usize::MAX, 50, at(10));
    assert_eq!(names(&completed), newest(&[1, 0]));
    assert_eq!(jobs.list("AC2", None, usize::MAX, 50, at(10)).jobs, []);
    assert_eq!(jobs.list("AC1", None, 0, 50, at(10)).jobs, []);
}

#[test]
fn scripts_decide_how_jobs_end() {
    let jobs = jobs();
    for text in [
        r#"{"next_jobs":1,"status":"CANCELLED","takes":"1s"}"#,
        r#"{"next_jobs":1,"status":"PENDING"}"#,
        r#"{"next_jobs":1,"status":"RUNNING"}"#,
        r#"{"next_jobs":1,"status":"EXPIRED","takes":"1s"}"#,
        r#"{"next_jobs":2,"takes":"1s","retention":"5s","then":"RUNNING"}"#,
        r#"{"next_jobs":1,"takes":"1s","lose":"COMPLETED"}"#,
        r#"{"next_jobs":1,"lose":"PENDING"}"#,
    ] {
        jobs.script(rule(text)).unwrap();
    }
    assert_eq!(jobs.describe_rules().len(), 7);
    // Far apart, so that none has to wait for another.
    let ids: Vec<_> = (0..9).map(|n| submit(&jobs, n * 100)).collect();
    let ends = |n: usize, later: i64| status(&jobs, &ids[n], n as i64 * 100 + later);
    assert_eq!(ends(0, 1), Some(Status::Cancelled));
    assert_eq!(ends(1, 10_000_000), Some(Status::Pending));
    assert_eq!(ends(2, 10_000_000), Some(Status::Running));
    assert_eq!(ends(3, 1), Some(Status::Expired));
    assert_eq!(
        (ends(4, 1), ends(4, 1), ends(4, 10_000)),
        (Some(Status::Completed), Some(Status::Running), Some(Status::Running))
    );
    assert!(jobs.results("AC1", &ids[4], at(401)).is_err(), "a job that changed has no results");
    assert_eq!(ends(5, 6), Some(Status::Expired), "after its own retention");
    assert_eq!((ends(6, 0), ends(6, 1)), (Some(Status::Pending), None));
    assert_eq!(ends(7, 0), None);
    assert_eq!(ends(8, 10), Some(Status::Completed), "rules run out");
    let listed = jobs.list("AC1", None, usize::MAX, 50, at(900)).jobs.len();
    assert_eq!(listed, 7, "a lost job is not listed");
    jobs.script(rule(r#"{"next_jobs":1,"status":"FAILED"}"#)).unwrap();
    jobs.clear_rules();
    assert!(jobs.describe_rules().is_empty());
    for _ in 0..MOST_RULES {
        jobs.script(rule(r#"{"next_jobs":1,"status":"FAILED"}"#)).unwrap();
    }
    assert!(jobs.script(rule(r#"{"next_jobs":1,"status":"FAILED"}"#)).is_err());
}

#[test]
fn a_jobs_outcome_can_be_decided_while_it_runs() {
    let jobs = jobs();
    let id = submit(&jobs, 0);
    for wanted in Status::ALL {
        assert!(jobs.settle(&id, wanted, None, at(3)));
        let job = jobs.fetch("AC1", &id, at(3)).unwrap();
        assert_eq!(job.status, wanted);
        assert_eq!(job.error.is_some(), wanted == Status::Failed);
        assert_eq!(job.completed.is_some(), wanted.is_final());
    }
    assert!(!jobs.settle("proc_job_unknown", Status::Failed, None, at(3)));
}

#[test]
fn jobs_are_bounded_in_number_and_bytes() {
    let jobs = jobs();
    let mut large = submission("AC1", "{}", Some("k"));
    large.bytes = MOST_BYTES / 2;
    let first = jobs.submit(large, at(0)).unwrap().id;
    let mut large = submission("AC1", "{}", None);
    large.bytes = MOST_BYTES / 2 + 1;
    let second = jobs.submit(large, at(0)).unwrap().id;
    assert_eq!((status(&jobs, &first, 0), status(&jobs, &second, 0)), (None, Some(Status::Pending)));
    for n in 0..MOST_JOBS as i64 {
        submit(&jobs, n * 100);
    }
    assert_eq!(status(&jobs, &second, 0), None);
    let state = jobs.lock();
    assert_eq!((state.jobs.len(), state.numbers.len(), state.keys.len()), (MOST_JOBS, MOST_JOBS, 0));
    assert_eq!(state.bytes, MOST_JOBS * 2);
}

#[test]
fn retention_is_written_as_a_duration() {
    let written = [7 * 24 * 3600, 24 * 3600, 3600, 0].map(|seconds| period(Duration::from_secs(seconds)));
    assert_eq!(written, ["P7D", "P1D", "PT3600S", "PT0S"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn only_a_few_run_at_a_time_and_none_is_lost(
        gaps in prop::collection::vec(0i64..8, 1..20),
        looks in prop::collection::vec(0i64..200, 1..20),
    ) {
        let jobs = jobs();
        let mut now = 0;
        let ids: Vec<_> = gaps.iter().map(|gap| { now += gap; submit(&jobs, now) }).collect();
        for look in looks {
            let look = now + look;
            let running = ids.iter().filter(|id| status(&jobs, id, look) == Some(Status::Running)).count();
            prop_assert!(running <= 2);
        }
        let end = now + 10 * (ids.len() as i64 + 1);
        prop_assert!(ids.iter().all(|id| status(&jobs, id, end) == Some(Status::Completed)));
    }

    #[test]
    fn arbitrary_keys_do_not_panic(text in ".{0,50}", near in "[0-9a-f-]{34,38}") {
        let _ = key(&text);
        let _ = key(&near);
    }
}
