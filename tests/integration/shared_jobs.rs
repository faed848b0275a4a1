//! Query jobs on several gateways that share one store: submissions whose end is unknown, polls that fail, and jobs that are
//! lost.

use crate::jobs::{JOBS, RUNNING};
use crate::replicas::replicas;
use crate::support::process::{Process, set};
use crate::support::store::{Server, sharing};
use crate::support::*;

const KEY: &str = "Idempotency-Key";

/// The keys of all submissions so far.
fn keys(upstream: &Upstream) -> Vec<String> {
    let seen = upstream.seen();
    let submissions = seen.iter().filter(|seen| seen.head.starts_with("POST "));
    submissions.map(|seen| seen.header(KEY).unwrap().to_owned()).collect()
}

/// Accepts each submission as one more job.
fn accepting() -> impl FnMut(&Seen) -> Plan + Send + 'static {
    let mut jobs = 0;
    move |_| {
        jobs += 1;
        Plan::with(202, "Retry-After: 60\r\n", &format!(r#"{{"operationId":"op_{jobs}","status":"PENDING"}}"#))
    }
}

#[tokio::test]
async fn a_submission_whose_answer_was_lost_is_repeated_with_its_key_at_another_replica() {
    let Some(server) = Server::start().await else { return };
    for (case, lost) in [("reset", Plan::reset()), ("close", Plan::close()), ("503", Plan::json(503, "{}"))] {
        let upstream = Upstream::script(move |_| lost.clone()).await;
        let gateways = replicas(&upstream, &vec![server.url(); 3], &[]).await;
        let submit = post_to(JOBS, "", &ASK.replace("Count", &format!("Count{case}")));
        for gateway in &gateways {
            let failed = gateway.ask(&submit).await;
            assert!(failed.status >= 500, "{case}: {failed:?}");
        }
        let sent = keys(&upstream);
        assert!(sent.len() > 3 && sent.iter().all(|key| *key == sent[0]), "{case}: {sent:?}");
        upstream.set(accepting());
        let accepted = gateways[1].ask(&submit).await;
        assert_eq!((accepted.status, keys(&upstream).last()), (202, sent.first()), "{case}");
        // Its end is known, and the job is shared. A purge of it makes a new one.
        let again = gateways[2].ask(&submit).await;
        assert_eq!(again.json()["operationId"], "op_1", "{case}");
        let purge = post_to("/cache/purge", "", r#"{"operation":"job-submit"}"#);
        assert_eq!(gateways[2].ask_admin(&purge).await.json()["shared"], true, "{case}");
        assert_eq!(gateways[2].ask(&submit).await.json()["operationId"], "op_2", "{case}");
        assert_ne!(keys(&upstream).last(), sent.first(), "{case}");
        for gateway in gateways {
            gateway.stop().await;
        }
    }
}

#[tokio::test]
async fn a_purge_forgets_the_key_of_a_lost_answer_on_all_replicas() {
    let Some(server) = Server::start().await else { return };
    // An answer that opens no circuit.
    let upstream = Upstream::script(|_| Plan::json(408, "{}")).await;
    let gateways = replicas(&upstream, &vec![server.url(); 2], &[]).await;
    let submit = post_to(JOBS, "", ASK);
    for gateway in &gateways {
        gateway.ask(&submit).await;
    }
    let purged = gateways[0].ask_admin(&post_to("/cache/purge", "", r#"{"all":true}"#)).await;
    assert_eq!(purged.json()["shared"], true);
    let (old, submitted) = (keys(&upstream)[0].clone(), async |gateway: &Gateway| {
        gateway.ask(&submit).await;
        keys(&upstream).pop().unwrap()
    });
    // A key that is noted in the moment of the purge may count as purged too.
    poll("all replicas have one new key", || async {
        let new = submitted(&gateways[1]).await;
        (new != old && submitted(&gateways[0]).await == new).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_is_killed_in_the_middle_of_a_submission_leaves_its_key() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let flags = [
        ("upstream.url", upstream.url()),
        ("shared.url", server.url()),
        ("shared.replicas", "2".to_owned()),
        ("shared.timeout", "4s".to_owned()),
    ];
    let process = Process::start(flags.iter().map(|(key, value)| set(key, value)).collect()).await;
    let gateway = sharing(TestConfig::new(upstream.url()), &server.url(), 2).start().await;
    gateway.metric_reaches("replicas", &[], 2.0).await;
    let shares = async || {
        let read = process.metric("insights_gateway_shared_operations_total{operation=\"changes_read\",result=\"ok\"}");
        read.await
    };
    poll("the process shares", shares).await;
    let mut client = client::Client::connect(process.data).await;
    client.send(&post_to(JOBS, "", ASK)).await;
    upstream.arrived(1).await;
    process.signal("KILL");
    drop(process);
    upstream.set(accepting());
    let accepted = gateway.ask(&post_to(JOBS, "", ASK)).await;
    let sent = keys(&upstream);
    assert_eq!((accepted.status, sent.len()), (202, 2), "{accepted:?}");
    assert_eq!(sent[0], sent[1]);
}

#[tokio::test]
async fn while_polls_fail_all_replicas_together_send_one_per_retry_after() {
    let Some(server) = Server::start().await else { return };
    let failed = Plan::with(503, "Retry-After: 60\r\n", r#"{"code":20503}"#);
    let script = move |seen: &Seen| match seen.target().ends_with("/known") && seen.number == 1 {
        true => Plan::with(200, "Retry-After: 1\r\n", &RUNNING.replace("op_1", "known")),
        false => failed.clone(),
    };
    let upstream = Upstream::script(script).await;
    let gateways = replicas(&upstream, &vec![server.url(); 3], &[]).await;
    // A status is known everywhere, and one poll fails when it is due.
    let known = get(&format!("{JOBS}/known"), "");
    poll("the second poll", || async {
        gateways[0].ask(&known).await;
        (upstream.count() > 1).then_some(())
    })
    .await;
    // It is told before its own client gets its answer; one that got the known status meanwhile does not wait for it.
    gateways[0].metric_reaches("shared_operations_total", &["\"job_note_put\"", "\"miss\""], 1.0).await;
    for gateway in gateways.iter().cycle().take(12) {
        let answer = gateway.ask(&known).await;
        assert_eq!((answer.status, &answer.json()["status"]), (200, &"RUNNING".into()), "{answer:?}");
        assert!((2..=60).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
    }
    assert_eq!(upstream.count(), 2, "{:?}", upstream.seen());
    // Without a known status the failure is the answer, and says when the next poll is due.
    for gateway in gateways.iter().cycle().take(12) {
        let answer = gateway.ask(&get(&format!("{JOBS}/unknown"), "")).await;
        assert_eq!((answer.status, &answer.json()["code"]), (503, &20503.into()), "{answer:?}");
        assert!((2..=60).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
    }
    assert_eq!(upstream.count(), 3, "{:?}", upstream.seen());
}

#[tokio::test]
async fn a_job_that_one_replica_knows_to_be_lost_is_shared_by_none() {
    let Some(server) = Server::start().await else { return };
    for case in ["status", "list", "results"] {
        let (mut submitted, lost) = (0, format!(r#"{{"operationId":"{case}_1","status":"FAILED"}}"#));
        let upstream = Upstream::script(move |seen| match seen.target() {
            JOBS if seen.head.starts_with("POST ") => {
                submitted += 1;
                let job = format!(r#"{{"operationId":"{case}_{submitted}","status":"PENDING"}}"#);
                Plan::with(202, "Retry-After: 60\r\n", &job)
            }
            JOBS => Plan::page(&format!(r#"{{"items":[{lost}],"meta":{{"key":"items"}}}}"#)),
            target if target.ends_with("/Results") => Plan::json(410, r#"{"code":20410}"#),
            _ => Plan::page(&lost),
        })
        .await;
        let gateways = replicas(&upstream, &vec![server.url(); 2], &[]).await;
        let submit_at =
            async |replica: usize| gateways[replica].ask(&post_to(JOBS, "", ASK)).await.json()["operationId"].clone();
        let submit = async || submit_at(0).await;
        let first = format!("{case}_1");
        assert_eq!([submit().await, submit().await], [&*first, &first], "{case}");
        let learn = match case {
            "list" => JOBS.to_owned(),
            "results" => format!("{JOBS}/{first}/Results"),
            _ => format!("{JOBS}/{first}"),
        };
        gateways[1].ask(&get(&learn, "")).await;
        let second = format!("{case}_2");
        assert_eq!(submit_at(1).await, *second, "{case}: not even once by the one that knows");
        poll("the second job", || async { (submit().await == *second).then_some(()) }).await;
        assert_eq!(submit().await, *second, "{case}");
        for gateway in gateways {
            gateway.stop().await;
        }
    }
}
