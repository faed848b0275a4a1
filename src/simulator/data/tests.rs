//! The generated data: reproducible, well formed, and plausible.

use std::collections::HashSet;

use super::*;

fn now() -> Timestamp {
    "2026-05-20T12:00:00Z".parse().unwrap()
}

fn well_formed(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == 26
            && (b'0'..=b'7').contains(&rest.as_bytes()[0])
            && rest.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    })
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let text = |seed| format!("{:?}", generate(seed, 200, now()));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

#[test]
fn ids_have_the_documented_form_and_are_unique() {
    let data = generate(1, 3000, now());
    let mut seen = HashSet::new();
    for conversation in &data.conversations {
        assert!(well_formed(&conversation.id, "conv_conversation_"), "{}", conversation.id);
        assert!(seen.insert(&conversation.id));
        for result in &conversation.results {
            assert!(well_formed(&result.id, "intelligence_operatorresult_"));
            assert!(well_formed(&result.operator_id, "intelligence_operator_"));
            assert!(seen.insert(&result.id));
        }
        for configuration in &conversation.configurations {
            assert!(well_formed(configuration, "intelligence_configuration_"));
        }
        for person in &conversation.participants {
            assert!(well_formed(&person.id, "conv_participant_"));
            assert_eq!(person.profile.is_some(), &*person.kind == "CUSTOMER");
        }
    }
    assert!(data.account_sid.starts_with("AC") && data.account_sid.len() == 34);
}

#[test]
fn the_history_is_plausible() {
    let data = generate(1, 5000, now());
    let start = now() - SignedDuration::from_hours(24 * HISTORY_DAYS);
    let (mut weekend, mut night, mut noon) = (0, 0, 0);
    for conversation in &data.conversations {
        assert!((start..now()).contains(&conversation.created));
        assert!(conversation.closed.is_none_or(|c| c >= conversation.created));
        assert_eq!(conversation.closed.is_some(), &*conversation.status == "CLOSED");
        assert!(conversation.results.len() <= 5);
        let local = Offset::UTC.to_datetime(conversation.created);
        weekend += usize::from(matches!(local.weekday(), Weekday::Saturday | Weekday::Sunday));
        night += usize::from((4..8).contains(&local.hour()));
        noon += usize::from((14..18).contains(&local.hour()));
    }
    assert!(weekend * 7 < data.conversations.len(), "{weekend} on weekends");
    assert!(night * 5 < noon, "{night} at night, {noon} at noon");
    let active = |rows: &[Conversation]| rows.iter().filter(|c| &*c.status == "ACTIVE").count();
    let (old, recent) = data.conversations.split_at(4900);
    assert!(active(recent) * 49 > active(old) * 5);
}

#[test]
fn extreme_settings_do_not_panic() {
    for now in [Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH] {
        for rows in [0, 1, 10] {
            assert_eq!(generate(0, rows, now).conversations.len(), rows);
        }
    }
}
