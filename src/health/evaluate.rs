//! Computes the health from everything that is checked.

use std::time::SystemTime;

use jiff::Timestamp;

use super::check::{Check, EXPIRY_NOTICE, Health, State, earliest};
use super::inputs::{AccountInput, CredentialState, DiskState, Inputs, StoreState, TeamInput};
use crate::core::cause::{Cause, CauseKind};
use crate::core::validity::Validity;

/// Computes the health. For one configuration the checks are always the same, in the same order, so that their output
/// can be compared.
pub fn evaluate(inputs: &Inputs) -> Health {
    let mut checks = vec![serving(inputs.draining_since), configuration(inputs.refused.as_ref())];
    checks.extend(inputs.disk.as_ref().map(disk));
    checks.extend(inputs.shared.as_ref().map(shared));
    checks.extend(inputs.certificate.map(|(validity, in_use)| certificate(validity, in_use, inputs.now)));
    let ends = |team: &&TeamInput| team.tokens.iter().any(Option::is_some);
    checks.extend(inputs.teams.iter().filter(ends).map(|team| tokens(team, inputs.now)));
    for account in &inputs.accounts {
        checks.push(credentials(account));
        checks.push(upstream(account));
    }
    Health { checks }
}

fn ok(kind: &'static str, subject: Option<&str>) -> Check {
    let subject = subject.map(str::to_owned);
    Check { kind, subject, state: State::Ok, since: None, cause: None, detail: None, runbook: None }
}

fn shared(state: &StoreState) -> Check {
    let (since, cause, detail, runbook) = match state {
        StoreState::Used => return ok("shared", None),
        StoreState::Alone { since, cause } => {
            let detail = "the shared store is not reached or grants no tokens, and this replica goes on alone with its \
                          part of the rate; repair the store or the way to it";
            (since, cause, detail, "insightsgatewaysharedstoredown")
        }
        StoreState::UsedInPart { since, cause } => {
            let detail = "the shared store is reached, but some of its operations fail, so this replica shares less \
                          and may not learn of purges; the cause says what to repair";
            (since, cause, detail, "insightsgatewaysharedstorefailing")
        }
    };
    Check {
        state: State::Degraded,
        since: Some(*since),
        cause: Some(cause.clone()),
        detail: Some(detail.to_owned()),
        runbook: Some(runbook),
        ..ok("shared", None)
    }
}

fn serving(draining_since: Option<SystemTime>) -> Check {
    let Some(since) = draining_since else { return ok("serving", None) };
    Check {
        state: State::Failing,
        since: Some(since),
        detail: Some("draining: the gateway is shutting down".to_owned()),
        runbook: Some("draining"),
        ..ok("serving", None)
    }
}

fn configuration(refused: Option<&(SystemTime, String)>) -> Check {
    let Some((since, faults)) = refused else { return ok("configuration", None) };
    Check {
        state: State::Degraded,
        since: Some(*since),
        cause: faults.lines().next().map(str::to_owned),
        detail: Some(
            "the new configuration is refused, and the old one in use; /status and the log list its faults".to_owned(),
        ),
        runbook: Some("insightsgatewayreloadrefused"),
        ..ok("configuration", None)
    }
}

fn disk(state: &DiskState) -> Check {
    let DiskState::Broken { since, cause } = state else { return ok("disk", None) };
    let detail = "the disk cache does not work, so pages are only in memory; it is tried again by itself";
    Check {
        state: State::Degraded,
        since: Some(*since),
        cause: Some(cause.clone()),
        detail: Some(detail.to_owned()),
        runbook: Some("insightsgatewaydiskfailing"),
        ..ok("disk", None)
    }
}

/// The check of a certificate that has been in use since `in_use`.
fn certificate(validity: Validity, in_use: SystemTime, now: SystemTime) -> Check {
    let Validity { not_before, not_after } = validity;
    let (since, what) = match () {
        () if now > not_after => (not_after, format!("ended {}", time(not_after))),
        () if now < not_before => (in_use, format!("is not valid before {}", time(not_before))),
        () if now + EXPIRY_NOTICE >= not_after => (not_after - EXPIRY_NOTICE, format!("ends {}", time(not_after))),
        () => return ok("certificate", None),
    };
    Check {
        state: State::Degraded,
        since: Some(since),
        detail: Some(format!(
            "the certificate of server.tls {what}; put a new one in its place, the gateway takes it by itself"
        )),
        runbook: Some("insightsgatewaycertificateexpires"),
        ..ok("certificate", None)
    }
}

/// The check of a team's tokens. An expired token beside a valid one remains from a rotation, and is not reported.
fn tokens(team: &TeamInput, now: SystemTime) -> Check {
    let check = ok("token", Some(&team.name));
    let are_all_over = team.tokens.iter().all(|ends| ends.is_some_and(|ends| ends <= now));
    let (since, what) = match team.expiry(now) {
        Some(ended) if are_all_over => (ended, format!("the last token of team {} ended {}", team.name, time(ended))),
        Some(ends) if ends > now && now + EXPIRY_NOTICE >= ends => {
            (ends - EXPIRY_NOTICE, format!("a token of team {} ends {}", team.name, time(ends)))
        }
        _ => return check,
    };
    Check {
        state: State::Degraded,
        since: Some(since),
        detail: Some(format!(
            "{what}; make a new one with `insights-gateway token new {}`, and list both while clients change over",
            team.name
        )),
        runbook: Some("insightsgatewaytokenexpires"),
        ..check
    }
}

fn credentials(account: &AccountInput) -> Check {
    let check = ok("credentials", Some(&account.name));
    match account.credentials {
        CredentialState::Accepted => check,
        CredentialState::Unknown => {
            let detail = "unknown: nobody has asked Twilio with these credentials yet";
            Check { detail: Some(detail.to_owned()), ..check }
        }
        CredentialState::Rejected { since, status } => Check {
            state: State::Failing,
            since: Some(since),
            cause: Some(Cause::new(CauseKind::Status, status.to_string()).to_string()),
            detail: Some("Twilio rejects this account's credentials; replace its key or secret".to_owned()),
            runbook: Some("insightsgatewaycredentialsrejected"),
            ..check
        },
    }
}

fn upstream(account: &AccountInput) -> Check {
    let check = ok("upstream", Some(&account.name));
    let Some(since) = earliest(account.failing_since, account.broken_since) else { return check };
    let at = account.last_failure.as_ref().map_or_else(String::new, |(_, at)| format!(" at {}", time(*at)));
    let what = match account.broken_since {
        Some(_) => format!("Twilio fails again and again, the last time{at}, so only probes are sent"),
        None => format!("the last attempt to ask Twilio failed{at}"),
    };
    Check {
        state: State::Degraded,
        since: Some(since),
        cause: account.last_failure.as_ref().map(|(cause, _)| cause.to_string()),
        detail: Some(format!(
            "{what}; stored pages are served as far as stale_if_error allows, and the next answer ends this"
        )),
        runbook: Some(match &account.last_failure {
            _ if account.broken_since.is_some() => "insightsgatewaycircuitopen",
            Some((cause, _)) => entry(cause.kind),
            None => "insightsgatewayfailing",
        }),
        ..check
    }
}

/// The entry in the runbook for a kind of cause.
fn entry(kind: CauseKind) -> &'static str {
    match kind {
        CauseKind::Dns | CauseKind::Tcp | CauseKind::Tls | CauseKind::Proxy => "upstream_unreachable",
        CauseKind::Timeout => "upstream_timeout",
        CauseKind::InvalidAnswer => "upstream_invalid",
        CauseKind::Status => "insightsgatewayfailing",
    }
}

/// A time in RFC 3339, to the second.
fn time(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "in another age".to_owned(), |time| format!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn now() -> SystemTime {
        "2026-11-28T12:00:00Z".parse::<Timestamp>().unwrap().into()
    }

    fn well() -> Inputs {
        let account = AccountInput {
            name: "main".to_owned(),
            credentials: CredentialState::Accepted,
            failing_since: None,
            broken_since: None,
            last_failure: None,
        };
        Inputs {
            now: now(),
            draining_since: None,
            refused: None,
            disk: Some(DiskState::Works),
            shared: None,
            certificate: Some((Validity { not_before: now() - 365 * DAY, not_after: now() + 365 * DAY }, now() - HOUR)),
            teams: Vec::new(),
            accounts: vec![account],
        }
    }

    /// The state, since when, and the checks that are not `ok`.
    fn verdict(inputs: &Inputs) -> (State, Option<SystemTime>, Vec<Check>) {
        let health = evaluate(inputs);
        let wrong: Vec<_> = health.checks.iter().filter(|check| check.state != State::Ok).cloned().collect();
        assert!(wrong.iter().all(|check| check.since.is_some()), "every one says since when: {wrong:?}");
        (health.state(), health.since(), wrong)
    }

    #[test]
    fn all_is_well_before_anything_has_happened() {
        let mut inputs = well();
        inputs.accounts[0].credentials = CredentialState::Unknown;
        assert_eq!(verdict(&inputs), (State::Ok, None, vec![]));
        let health = evaluate(&inputs);
        let names: Vec<_> = health.checks.iter().map(Check::name).collect();
        assert_eq!(names, ["serving", "configuration", "disk", "certificate", "credentials/main", "upstream/main"]);
        assert!(health.checks[4].detail.as_ref().unwrap().starts_with("unknown"));
        assert_eq!(evaluate(&well()).checks[4].detail, None);
    }

    #[test]
    fn only_draining_and_rejected_credentials_fail() {
        let draining = Inputs { draining_since: Some(now() - HOUR), ..well() };
        let (state, since, wrong) = verdict(&draining);
        assert_eq!((state, since, wrong[0].kind), (State::Failing, Some(now() - HOUR), "serving"));
        let mut rejected = well();
        rejected.accounts[0].credentials = CredentialState::Rejected { since: now() - DAY, status: 403 };
        let disk = DiskState::Broken { since: now() - 2 * DAY, cause: "No space left on device".to_owned() };
        rejected.disk = Some(disk);
        let (state, since, wrong) = verdict(&rejected);
        assert_eq!((state, since, wrong.len()), (State::Failing, Some(now() - DAY), 2));
        assert_eq!((wrong[0].kind, wrong[0].state), ("disk", State::Degraded));
        assert_eq!(
            (wrong[0].since, wrong[0].cause.as_deref()),
            (Some(now() - 2 * DAY), Some("No space left on device"))
        );
        assert_eq!(wrong[1].cause.as_deref(), Some("status: 403"));
    }

    #[test]
    fn an_upstream_is_degraded_while_its_last_attempt_failed_or_its_circuit_is_not_closed() {
        let refused = Cause::new(CauseKind::Tcp, "connection refused");
        for (failing, broken, since) in
            [(Some(HOUR), None, HOUR), (None, Some(2 * HOUR), 2 * HOUR), (Some(3 * HOUR), Some(2 * HOUR), 3 * HOUR)]
        {
            let mut inputs = well();
            let account = &mut inputs.accounts[0];
            account.failing_since = failing.map(|ago| now() - ago);
            account.broken_since = broken.map(|ago| now() - ago);
            account.last_failure = Some((refused.clone(), now() - HOUR / 2));
            let (state, found, wrong) = verdict(&inputs);
            assert_eq!((state, found), (State::Degraded, Some(now() - since)));
            assert_eq!(wrong[0].name(), "upstream/main");
            assert_eq!(wrong[0].cause.as_deref(), Some("TCP: connection refused"));
            assert!(wrong[0].detail.as_ref().unwrap().contains("at 2026-11-28T11:30:00Z"), "{wrong:?}");
            assert_eq!(wrong[0].detail.as_ref().unwrap().contains("probes"), broken.is_some());
        }
        let mut over = well();
        over.accounts[0].last_failure = Some((refused, now() - HOUR));
        assert_eq!(verdict(&over).0, State::Ok);
    }

    #[test]
    fn certificates_are_reported_two_weeks_before_they_end() {
        let state_of = |not_before: SystemTime, not_after: SystemTime| {
            let certificate = Some((Validity { not_before, not_after }, now() - HOUR));
            let inputs = Inputs { certificate, ..well() };
            let (state, since, wrong) = verdict(&inputs);
            (state, since, wrong.first().and_then(|check| check.detail.clone()).unwrap_or_default())
        };
        let second = Duration::from_secs(1);
        assert_eq!(state_of(now() - DAY, now() + 14 * DAY + second).0, State::Ok);
        let (state, since, detail) = state_of(now() - DAY, now() + 13 * DAY);
        assert_eq!((state, since), (State::Degraded, Some(now() - DAY)));
        assert!(detail.contains("ends 2026-12-11T12:00:00Z"), "{detail}");
        let (state, since, detail) = state_of(now() - 9 * DAY, now() - DAY);
        assert_eq!((state, since), (State::Degraded, Some(now() - DAY)));
        assert!(detail.contains("ended 2026-11-27T12:00:00Z"), "{detail}");
        let (state, since, detail) = state_of(now() + DAY, now() + 365 * DAY);
        assert_eq!((state, since), (State::Degraded, Some(now() - HOUR)), "since it is in use");
        assert!(detail.contains("not valid before"), "{detail}");
    }

    #[test]
    fn tokens_are_reported_two_weeks_before_they_end_and_leftovers_of_a_rotation_are_not() {
        let day = |days: i64| match days {
            0.. => now() + DAY * u32::try_from(days).unwrap(),
            _ => now() - DAY * u32::try_from(-days).unwrap(),
        };
        let state_of = |ends: &[Option<i64>]| {
            let tokens = ends.iter().map(|ends| ends.map(day)).collect();
            let inputs = Inputs { teams: vec![TeamInput { name: "dashboards".to_owned(), tokens }], ..well() };
            (verdict(&inputs), evaluate(&inputs).checks.iter().any(|check| check.kind == "token"))
        };
        for (ends, is_listed) in [(&[None][..], false), (&[Some(15)], true), (&[Some(-3), None], true), (&[], false)] {
            let ((state, ..), listed) = state_of(ends);
            assert_eq!((state, listed), (State::Ok, is_listed), "{ends:?}");
        }
        for (ends, since, said) in [
            (&[Some(13)][..], -1, "a token of team dashboards ends 2026-12-11"),
            (&[Some(3), None], -11, "ends 2026-12-01"),
            (&[Some(-3), Some(3), Some(9)], -11, "ends 2026-12-01"),
            (&[Some(-3), Some(-2)], -2, "the last token of team dashboards ended 2026-11-26"),
        ] {
            let ((state, found, wrong), _) = state_of(ends);
            assert_eq!((state, found), (State::Degraded, Some(day(since))), "{ends:?}");
            assert!(wrong[0].detail.as_ref().unwrap().contains(said), "{wrong:?}");
        }
    }

    #[test]
    fn a_refused_configuration_names_its_first_fault() {
        let inputs = Inputs { refused: Some((now() - HOUR, "a.toml:1: x\na.toml:2: y".to_owned())), ..well() };
        let (state, since, wrong) = verdict(&inputs);
        assert_eq!((state, since), (State::Degraded, Some(now() - HOUR)));
        assert_eq!(wrong[0].cause.as_deref(), Some("a.toml:1: x"));
    }

    #[test]
    fn without_a_token_only_states_are_shown() {
        let mut inputs = well();
        let mut other = inputs.accounts[0].clone();
        other.name = "other".to_owned();
        other.failing_since = Some(now() - 2 * HOUR);
        let cause = Cause::new(CauseKind::Dns, "insights.internal: no such name");
        other.last_failure = Some((cause, now() - HOUR));
        let mut third = other.clone();
        third.failing_since = Some(now() - 3 * HOUR);
        inputs.accounts.extend([other, third]);
        let anonymous = evaluate(&inputs).anonymous();
        let kinds: Vec<_> = anonymous.checks.iter().map(|check| (check.name(), check.state)).collect();
        let expected = [
            ("serving", State::Ok),
            ("configuration", State::Ok),
            ("disk", State::Ok),
            ("certificate", State::Ok),
            ("credentials", State::Ok),
            ("upstream", State::Degraded),
        ];
        assert_eq!(kinds, expected.map(|(name, state)| (name.to_owned(), state)));
        assert_eq!(anonymous.checks[5].since, Some(now() - 3 * HOUR));
        assert!(anonymous.checks.iter().all(|check| check.cause.is_none() && check.detail.is_none()));
    }

    #[test]
    fn every_entry_that_a_check_names_is_in_the_runbook() {
        let runbook = include_str!("../../docs/runbook.md");
        let source = include_str!("evaluate.rs").split("#[cfg(test)]").next().unwrap();
        let literals = source.split('"').skip(1).step_by(2).filter(|text| !text.contains(' '));
        let names = |prefix: &'static str| literals.clone().filter(move |text| text.starts_with(prefix));
        let named: Vec<_> = names("insightsgateway").chain(names("upstream_")).chain(names("draining")).collect();
        assert!(named.len() >= 8, "{named:?}");
        for name in named {
            let is_there =
                runbook.lines().any(|line| line.strip_prefix("### ").is_some_and(|h| h.to_lowercase() == name));
            assert!(is_there, "{name}");
        }
    }

    #[test]
    fn checks_are_left_out_by_kind_or_by_name() {
        let mut inputs = well();
        inputs.accounts[0].credentials = CredentialState::Rejected { since: now(), status: 401 };
        let health = evaluate(&inputs);
        for (excluded, state) in [
            ("credentials", State::Ok),
            ("credentials/main", State::Ok),
            ("credentials/other", State::Failing),
            ("cred", State::Failing),
        ] {
            assert_eq!(health.without(|name| name == excluded).state(), state, "{excluded}");
        }
    }
}
