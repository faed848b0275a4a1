//! Tests of the exposition, and that its table in the handbook is correct.

use std::collections::BTreeMap;

use super::hot_requests::HotRequests;
use super::*;

fn team(name: &str, ordinal: usize) -> Team {
    Team { ordinal, ..Team::example(name) }
}

#[test]
fn counters_by_index_are_those_of_the_registry() {
    let metrics = Metrics::new();
    let hot = HotRequests::new(Arc::clone(&metrics), 2);
    let (a, b, beyond) = (team("a", 0), team("b", 1), team("c", 9));
    for team in [&a, &b, &b, &beyond] {
        hot.requested(Some(team), Some(Operation::Query), Outcome::Hit, 200, Duration::from_micros(60));
    }
    hot.requested(Some(&a), Some(Operation::Query), Outcome::Hit, 304, Duration::ZERO);
    hot.requested(None, None, Outcome::Refused, 404, Duration::ZERO);
    metrics.requested(Some(&a), Some(Operation::Query), Outcome::Hit, 200, Duration::ZERO);
    let text = metrics.encode().unwrap();
    for line in [
        "insights_gateway_requests_total{team=\"a\",operation=\"query\",outcome=\"hit\",status=\"200\"} 2",
        "insights_gateway_requests_total{team=\"b\",operation=\"query\",outcome=\"hit\",status=\"200\"} 2",
        "insights_gateway_requests_total{team=\"c\",operation=\"query\",outcome=\"hit\",status=\"200\"} 1",
        "insights_gateway_requests_total{team=\"a\",operation=\"query\",outcome=\"hit\",status=\"304\"} 1",
        "insights_gateway_requests_total{team=\"\",operation=\"none\",outcome=\"refused\",status=\"404\"} 1",
        "insights_gateway_request_duration_seconds_count{operation=\"query\",outcome=\"hit\"} 6",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_exposition_has_the_older_format() {
    let metrics = Metrics::new();
    metrics.requested(None, None, Outcome::Refused, 404, Duration::ZERO);
    let text = metrics.encode().unwrap();
    assert!(text.contains("# TYPE insights_gateway_requests_total counter\n"));
    assert!(text.contains("# TYPE insights_gateway_cache_bytes gauge\n"));
    assert!(!text.contains("# EOF"));
}

/// A set in which every metric has a sample. The pattern has no `..`, so that a new metric cannot be forgotten here.
fn touched() -> Arc<Metrics> {
    let metrics = Metrics::new();
    let Metrics {
        registry: _,
        requests,
        errors,
        request_duration,
        upstream_attempts,
        upstream_duration,
        upstream_wait,
        upstream_in_flight,
        retries,
        budget_tokens,
        budget_rate,
        budget_paused,
        circuit_state,
        queue_length,
        credentials_rejected,
        cache_entries: _,
        cache_bytes: _,
        cache_capacity: _,
        cache_evictions,
        cache_settled,
        cache_disk_entries: _,
        cache_disk_bytes: _,
        cache_disk_writes,
        shared_up,
        shared_operations,
        shared_duration,
        shared_unsealed: _,
        shared_skipped,
        replicas,
        spans,
        credential_echoes,
        audit_records,
        reloads,
        health_state: _,
        certificate_expiry,
        token_expiry,
        uptime: _,
        build: _,
    } = &*metrics;
    let (name, word) = (|| ConfigLabel("a".into()), StaticLabel("b"));
    let account = || AccountLabels { account: name() };
    requests.get_or_create(&RequestLabels { team: name(), operation: word, outcome: word, status: 200 }).inc();
    for counter in [errors, shared_skipped] {
        counter.get_or_create(&ReasonLabels { reason: word }).inc();
    }
    request_duration.get_or_create(&OutcomeLabels { operation: word, outcome: word }).observe(1.0);
    let ending = Ending::Status(200);
    upstream_attempts.get_or_create(&AttemptLabels { account: name(), operation: word, status: ending }).inc();
    upstream_duration.get_or_create(&UpstreamLabels { account: name(), operation: word }).observe(1.0);
    upstream_wait.get_or_create(&account()).observe(1.0);
    retries.get_or_create(&RetryLabels { account: name(), reason: ending }).inc();
    for gauge in [budget_tokens, budget_rate, budget_paused] {
        gauge.get_or_create(&account()).set(1.0);
    }
    for gauge in [upstream_in_flight, queue_length, credentials_rejected, circuit_state] {
        gauge.get_or_create(&account()).set(1);
    }
    for gauge in [certificate_expiry, shared_up, replicas] {
        gauge.get_or_create(&NoLabels {}).set(1);
    }
    shared_operations.get_or_create(&SharedLabels { operation: word, result: word }).inc();
    shared_duration.get_or_create(&SharedOperationLabels { operation: word }).observe(1.0);
    token_expiry.get_or_create(&TeamLabels { team: name() }).set(1);
    credential_echoes.get_or_create(&account()).inc();
    cache_evictions.get_or_create(&CauseLabels { cause: word }).inc();
    cache_settled.get_or_create(&SettledLabels { reason: word }).inc();
    for counter in [cache_disk_writes, audit_records, spans, reloads] {
        counter.get_or_create(&ResultLabels { result: word }).inc();
    }
    metrics
}

/// Type, unit and labels.
type Described = (String, String, Vec<String>);

/// What the exposition says of every metric. The unit is part of its name.
fn exposed() -> BTreeMap<String, Described> {
    let text = touched().encode().unwrap();
    let mut metrics = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let plain = name.strip_suffix("_total").unwrap_or(name);
        let unit = ["seconds", "bytes"].into_iter().find(|unit| plain.ends_with(&format!("_{unit}")));
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| rest.strip_prefix(suffix)).unwrap_or(rest);
            let labels = rest.strip_prefix('{').map(|rest| rest.split_once('}').unwrap().0);
            rest.starts_with(['{', ' ']).then(|| {
                let labels = labels.unwrap_or_default().split(',').filter_map(|pair| pair.split_once('='));
                labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le").collect::<Vec<_>>()
            })
        });
        let mut labels: Vec<Vec<String>> = samples.collect();
        labels.dedup();
        assert_eq!(labels.len(), 1, "{name} has samples, all with the same labels: {labels:?}");
        metrics.insert(name.to_owned(), (kind.to_owned(), unit.unwrap_or_default().to_owned(), labels.remove(0)));
    }
    metrics
}

/// What the table says: rows of name, type, unit, labels and meaning.
fn documented() -> BTreeMap<String, Described> {
    let page = include_str!("../../docs/metrics.md");
    let row = |line: &'static str| {
        let cells: Vec<_> =
            line.strip_prefix("| `insights_gateway_").map(|_| line.trim_matches('|').split('|'))?.collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { panic!("five cells: {line}") };
        assert!(meaning.trim().len() > 10, "{line}");
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some((name.trim().trim_matches('`').to_owned(), (kind.trim().to_owned(), unit.trim().to_owned(), labels)))
    };
    let rows: Vec<_> = page.lines().filter_map(row).collect();
    let metrics: BTreeMap<_, _> = rows.iter().cloned().collect();
    assert_eq!(metrics.len(), rows.len(), "no metric has two rows");
    metrics
}

#[test]
fn the_handbooks_table_is_the_registry() {
    let (exposed, documented) = (exposed(), documented());
    for (name, described) in &exposed {
        let (kind, unit, labels) = documented.get(name).unwrap_or_else(|| panic!("{name} is not in docs/metrics.md"));
        assert_eq!((kind, labels), (&described.0, &described.2), "{name}");
        match described.1.as_str() {
            "" => assert!(!["", "seconds", "bytes"].contains(&unit.as_str()), "{name} counts something: {unit}"),
            named => assert_eq!(unit, named, "{name}"),
        }
    }
    for name in documented.keys() {
        assert!(exposed.contains_key(name), "{name} is only in docs/metrics.md");
    }
}

/// What Prometheus' own linter demands of names and texts.
#[test]
fn names_and_texts_follow_the_rules() {
    let text = touched().encode().unwrap();
    for (name, (kind, ..)) in exposed() {
        assert!(
            name.starts_with("insights_gateway_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        assert!(!["_bucket", "_sum", "_count", "_milliseconds", "_ms"].iter().any(|end| name.ends_with(end)), "{name}");
        let help = format!("# HELP {name} ");
        assert_eq!(
            text.lines().filter(|line| line.starts_with(&help) && line.len() > help.len() + 10).count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn buckets_reach_from_a_hit_to_a_whole_deadline() {
    let text = touched().encode().unwrap();
    let bound = |line: &str| {
        let le = line.strip_prefix("insights_gateway_request_duration_seconds_bucket")?.split("le=\"").nth(1)?;
        le.split('"').next().unwrap().parse::<f64>().ok()
    };
    let bounds: Vec<f64> = text.lines().filter_map(bound).filter(|bound| bound.is_finite()).collect();
    assert_eq!((bounds.first(), bounds.last()), (Some(&50e-6), Some(&90.0)));
    assert!(bounds.windows(2).all(|pair| pair[1] > pair[0] && pair[1] <= pair[0] * 3.01), "{bounds:?}");
}
