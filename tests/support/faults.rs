//! What must become of a request whose upstream is broken, checked from all sides.

use super::{ASK, Plan, TestConfig, Upstream, post, refusal};

/// What a broken upstream answers once it is healed.
pub const HEALED: &str = r#"{"cubes":[],"data":[],"meta":{"healed":true}}"#;

/// A broken upstream is tried `tries` times and ends in this refusal; healed, it is asked again, and what it
/// then says is kept.
pub struct Fault {
    name: &'static str,
    plan: Plan,
    tries: usize,
    status: u16,
    reason: &'static str,
}

/// What is to be expected of such an upstream.
pub fn fault(name: &'static str, plan: Plan, tries: usize, status: u16, reason: &'static str) -> Fault {
    Fault { name, plan, tries, status, reason }
}

/// All that do not end as they should are named at once. They run side by side, since some take their time.
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
        // Longer where it is not what the test is about, for the sake of busy machines.
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
    check(gateway.metric("cache_entries", &[]).await == 0.0, "something was kept".to_owned());
    upstream.heal(HEALED);
    let healed = gateway.ask(&post(ASK)).await;
    check((healed.status, healed.detail(), healed.text().as_str()) == (200, "miss", HEALED), format!("{healed:?}"));
    let again = gateway.ask(&post(ASK)).await;
    check((again.status, again.detail()) == (200, "hit"), format!("{again:?}"));
    check(upstream.count() == tries + 1, format!("{} tries after all", upstream.count()));
    wrong
}
