//! Checks all that has to happen to a request whose upstream is broken.

use super::client::refusal;
use super::gateway::TestConfig;
use super::requests::{ASK, post};
use super::upstream::{Plan, Upstream};

/// The response of a broken upstream once it works again.
pub const HEALED: &str = r#"{"cubes":[],"data":[],"meta":{"healed":true}}"#;

/// An upstream that fails as in `plan` is tried `tries` times, and the request ends in this refusal. When it works
/// again, the same request succeeds and its response is stored.
pub struct Fault {
    name: &'static str,
    plan: Plan,
    tries: usize,
    status: u16,
    reason: &'static str,
}

/// A fault and its expected result.
pub fn fault(name: &'static str, plan: Plan, tries: usize, status: u16, reason: &'static str) -> Fault {
    Fault { name, plan, tries, status, reason }
}

/// Reports all faults with another result together. They run in parallel, because some take a while.
pub async fn ends_as_documented(faults: Vec<Fault>) {
    let wrong = futures_util::future::join_all(faults.into_iter().map(what_is_wrong)).await.concat();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

async fn what_is_wrong(fault: Fault) -> Vec<String> {
    let Fault { name, plan, tries, status, reason } = fault;
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: String| {
        if !holds {
            wrong.push(format!("{name}: {what}"));
        }
    };
    let upstream = Upstream::script(move |_| plan.clone()).await;
    let gateway = TestConfig::new(upstream.url())
        // Longer where the test is not about time, because machines may be busy.
        .set("upstream.attempt_timeout", if reason == "upstream_timeout" { "1s" } else { "3s" })
        .set("upstream.max_response", "64KiB")
        .start()
        .await;
    let answer = gateway.ask(&post(ASK)).await;
    if let Err(fault) = refusal(&answer, status, reason) {
        check(false, fault);
    }
    check(upstream.count() == tries, format!("{} tries instead of {tries}", upstream.count()));
    let label = format!("status=\"{reason}\"");
    let counted = gateway.metric("upstream_attempts_total", &["operation=\"query\"", &label]).await;
    check(counted == tries as f64, format!("{counted} attempts counted as {reason}"));
    let retried = gateway.metric("retries_total", &["account=\"default\""]).await;
    check(retried == (tries - 1) as f64, format!("{retried} retries counted"));
    check(gateway.metric("cache_entries", &[]).await == 0.0, "something was stored".to_owned());
    upstream.heal(HEALED);
    let healed = gateway.ask(&post(ASK)).await;
    check((healed.status, healed.detail(), healed.text().as_str()) == (200, "miss", HEALED), format!("{healed:?}"));
    let again = gateway.ask(&post(ASK)).await;
    check((again.status, again.detail()) == (200, "hit"), format!("{again:?}"));
    check(upstream.count() == tries + 1, format!("{} attempts in the end", upstream.count()));
    wrong
}
