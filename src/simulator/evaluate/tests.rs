//! Compares the evaluation with plain counting over the same data.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::catalog::CustomMeasures;
use super::super::cell::Item;
use super::super::data::generate;
use super::*;

fn now() -> Timestamp {
    "2026-05-20T12:00:00Z".parse().unwrap()
}

fn data() -> Data {
    generate(11, 600, now())
}

fn ask_all(data: &Data, body: Json) -> Vec<Json> {
    let query =
        Query::parse(&body, &CustomMeasures::default()).unwrap_or_else(|error| panic!("{body}: {}", error.message));
    let table = evaluate(data, &query);
    let items = table.rows.iter().map(|cells| Item { names: &table.names, cells });
    items.map(|item| serde_json::to_value(item).unwrap()).collect()
}

fn ask(data: &Data, query: Json) -> Vec<Json> {
    ask_all(data, json!({ "query": query }))
}

fn filter(op: &str, field: &str, values: &[&str]) -> Json {
    json!([{"expressions": [{"op": op, "field": field, "values": values}]}])
}

fn count_where(data: &Data, filters: Json) -> u64 {
    let rows = ask(data, json!({"measures": ["Conversation.Count"], "filters": filters}));
    assert_eq!(rows.len(), 1);
    rows[0]["Conversation.Count"].as_u64().unwrap()
}

fn counted(data: &Data, predicate: impl Fn(&Conversation) -> bool) -> u64 {
    data.conversations.iter().filter(|c| predicate(c)).count() as u64
}

#[test]
fn without_dimensions_there_is_one_row() {
    let data = data();
    assert_eq!(ask(&data, json!({"measures": ["Conversation.Count"]})), [json!({"Conversation.Count": 600})]);
}

#[test]
fn nothing_found_is_no_rows_or_one_of_zeros() {
    let data = data();
    let never = filter("LT", "Conversation.CreatedDate", &["2000-01-01"]);
    let grouped = json!({"measures": ["Conversation.Count"], "dimensions": ["Id"], "filters": never});
    assert_eq!(ask(&data, grouped), Vec::<Json>::new());
    let measures = [
        "Conversation.Count",
        "Conversation.UniqueParticipants",
        "ConversationSummary.TotalMessages",
        "ConversationSummary.AverageMessages",
        "ConversationSummary.MaxDurationSeconds",
    ];
    assert_eq!(
        ask(&data, json!({"measures": measures, "filters": never})),
        [json!({
            "Conversation.Count": 0, "Conversation.UniqueParticipants": 0, "ConversationSummary.TotalMessages": 0,
            "ConversationSummary.AverageMessages": null, "ConversationSummary.MaxDurationSeconds": null,
        })]
    );
}

#[test]
fn every_operator_agrees_with_counting() {
    let data = data();
    let status = "Conversation.ConversationStatus";
    let is = |wanted: &'static str| move |c: &Conversation| &*c.status == wanted;
    assert_eq!(count_where(&data, filter("EQ", status, &["CLOSED"])), counted(&data, is("CLOSED")));
    assert_eq!(count_where(&data, filter("NE", status, &["CLOSED"])), 600 - counted(&data, is("CLOSED")));
    assert_eq!(
        count_where(&data, filter("IN", status, &["ACTIVE", "INACTIVE"])),
        counted(&data, is("ACTIVE")) + counted(&data, is("INACTIVE"))
    );
    let messages = "ConversationSummary.MessageCount";
    assert_eq!(count_where(&data, filter("GT", messages, &["20"])), counted(&data, |c| c.messages > 20));
    assert_eq!(count_where(&data, filter("LT", messages, &["20.5"])), counted(&data, |c| c.messages <= 20));
    assert_eq!(
        count_where(&data, filter("IN", messages, &["10", "20"])),
        counted(&data, |c| c.messages == 10 || c.messages == 20)
    );
    let midnight: Timestamp = "2026-04-02T00:00:00Z".parse().unwrap();
    let created = "Conversation.CreatedDate";
    assert_eq!(count_where(&data, filter("GT", created, &["2026-04-02"])), counted(&data, |c| c.created > midnight));
    assert_eq!(
        count_where(&data, filter("LT", created, &["2026-04-02T00:00:00Z"])),
        counted(&data, |c| c.created < midnight)
    );
    let exact = data.conversations[17].created.to_string();
    assert_eq!(
        count_where(&data, filter("EQ", created, &[&exact])),
        counted(&data, |c| c.created == data.conversations[17].created)
    );
    let human = |c: &Conversation| c.participants.iter().any(|p| &*p.kind == "HUMAN_AGENT");
    let by_human = "ConversationSummary.HandledByHuman";
    assert_eq!(count_where(&data, filter("EQ", by_human, &["true"])), counted(&data, human));
    assert_eq!(count_where(&data, filter("NE", by_human, &["true"])), 600 - counted(&data, human));
    // A list is equal to a text when one of its elements is.
    let voice = |c: &Conversation| c.channels.iter().any(|channel| &**channel == "voice");
    assert_eq!(count_where(&data, filter("EQ", "Channels", &["voice"])), counted(&data, voice));
    // An absent value differs from every constant.
    assert_eq!(
        count_where(&data, filter("NE", "ConversationSummary.LeadScore", &["50"])),
        counted(&data, |c| c.lead_score != Some(50.0))
    );
}

#[test]
fn groups_join_with_their_operator_and_each_other_with_and() {
    let data = data();
    let active = json!({"op": "EQ", "field": "Conversation.ConversationStatus", "values": ["CLOSED"]});
    let long = json!({"op": "GT", "field": "ConversationSummary.MessageCount", "values": ["20"]});
    let (a, b) = (|c: &Conversation| &*c.status == "CLOSED", |c: &Conversation| c.messages > 20);
    let (both, either) = (counted(&data, |c| a(c) && b(c)), counted(&data, |c| a(c) || b(c)));
    assert!(both > 0 && both < either);
    for (filters, expected) in [
        (json!([{"op": "AND", "expressions": [active, long]}]), both),
        (json!([{"expressions": [active, long]}]), both),
        (json!([{"op": "OR", "expressions": [active]}, {"op": "OR", "expressions": [long]}]), both),
        (json!([{"op": "OR", "expressions": [active, long]}]), either),
    ] {
        assert_eq!(count_where(&data, filters.clone()), expected, "{filters}");
    }
    // The same across joined parts: an OR of a conversation's and a participant's property.
    let agent = json!({"op": "EQ", "field": "Conversation.ParticipantType", "values": ["AI_AGENT"]});
    let ai = |c: &Conversation| c.participants.iter().any(|p| &*p.kind == "AI_AGENT");
    let filters = json!([{"op": "OR", "expressions": [agent, long]}]);
    assert_eq!(count_where(&data, filters), counted(&data, |c| ai(c) || b(c)));
}

#[test]
fn a_conversation_is_in_the_row_of_each_participant_and_counts_once_in_each() {
    let data = data();
    let rows = ask(
        &data,
        json!({"measures": ["Conversation.Count", "ConversationSummary.TotalMessages"],
               "dimensions": ["Conversation.ParticipantType"]}),
    );
    assert_eq!(rows.len(), 3);
    for row in &rows {
        let kind = row["Conversation.ParticipantType"].as_str().unwrap();
        let takes_part = |c: &&Conversation| c.participants.iter().any(|p| &*p.kind == kind);
        let (mut count, mut messages) = (0u64, 0u64);
        for conversation in data.conversations.iter().filter(takes_part) {
            count += 1;
            messages += u64::from(conversation.messages);
        }
        assert_eq!(row["Conversation.Count"], count);
        assert_eq!(row["ConversationSummary.TotalMessages"], messages);
    }
    let sum: u64 = rows.iter().map(|r| r["Conversation.Count"].as_u64().unwrap()).sum();
    assert!(sum > 600);
}

#[test]
fn joins_do_not_multiply_results() {
    let data = data();
    let total: u64 = data.conversations.iter().map(|c| c.results.len() as u64).sum();
    assert_eq!(ask(&data, json!({"measures": ["OperatorResult.Count"]})), [json!({"OperatorResult.Count": total})]);
    // With participants and configurations joined, the counts of one participant type stay those of results.
    let rows = ask(
        &data,
        json!({"measures": ["OperatorResult.Count", "Conversation.Count"],
               "dimensions": ["Conversation.ParticipantType"],
               "filters": filter("NE", "Conversation.IntelligenceConfigurationIds", &["none"])}),
    );
    let customers = rows.iter().find(|r| r["Conversation.ParticipantType"] == "CUSTOMER").unwrap();
    assert_eq!(customers["OperatorResult.Count"], total);
    assert_eq!(customers["Conversation.Count"], 600);
}

#[test]
fn conversations_without_results_stay_only_where_conversations_are_asked_for() {
    let data = data();
    let without = counted(&data, |c| c.results.is_empty());
    assert!(without > 0);
    let both = ask(&data, json!({"measures": ["Conversation.Count"], "dimensions": ["OperatorResults"]}));
    let null = both.iter().find(|row| row["OperatorResults"].is_null()).unwrap();
    assert_eq!(null["Conversation.Count"], without);
    let alone = ask(&data, json!({"measures": ["OperatorResult.Count"], "dimensions": ["OperatorResult.Value"]}));
    assert!(alone.iter().all(|row| row["OperatorResult.Value"].is_string()));
}

#[test]
fn every_aggregation_agrees_with_arithmetic() {
    let data = data();
    let all = &data.conversations;
    let scores: Vec<f64> = all.iter().map(|c| c.sentiment_score).collect();
    let leads: Vec<f64> = all.iter().filter_map(|c| c.lead_score).collect();
    let people: BTreeSet<_> = all.iter().flat_map(|c| &c.participants).map(|p| &p.id).collect();
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    let row = ask(
        &data,
        json!({"measures": [
            "ConversationSummary.AverageSentimentScore", "ConversationSummary.MinSentimentScore",
            "ConversationSummary.MaxSentimentScore", "ConversationSummary.LeadScoreAverage",
            "ConversationSummary.TotalDurationSeconds", "Conversation.UniqueParticipants"]}),
    )
    .remove(0);
    let close = |name: &str, expected: f64| {
        let got = row[name].as_f64().unwrap();
        assert!((got - expected).abs() < 0.0001, "{name}: {got} for {expected}");
    };
    close("ConversationSummary.AverageSentimentScore", mean(&scores));
    close("ConversationSummary.MinSentimentScore", scores.iter().copied().fold(1.0, f64::min));
    close("ConversationSummary.MaxSentimentScore", scores.iter().copied().fold(-1.0, f64::max));
    close("ConversationSummary.LeadScoreAverage", mean(&leads));
    let seconds: u64 = all.iter().map(|c| u64::from(c.duration_seconds)).sum();
    assert_eq!(row["ConversationSummary.TotalDurationSeconds"], seconds);
    assert_eq!(row["Conversation.UniqueParticipants"], people.len());
}

#[test]
fn buckets_follow_the_zone() {
    let data = data();
    for (grain, zone) in
        [("hour", "America/Los_Angeles"), ("day", "Asia/Kolkata"), ("week", "Europe/Zurich"), ("month", "UTC")]
    {
        let column = format!("Conversation.CreatedDate.{grain}");
        let rows = ask_all(
            &data,
            json!({"properties": {"timezone": zone},
                   "query": {"measures": ["Conversation.Count"], "dimensions": [column]}}),
        );
        let zone = jiff::tz::TimeZone::get(zone).unwrap();
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for conversation in &data.conversations {
            let local = conversation.created.to_zoned(zone.clone()).datetime();
            let start = match grain {
                "hour" => local.date().at(local.hour(), 0, 0, 0),
                "day" => local.date().at(0, 0, 0, 0),
                "month" => local.date().first_of_month().at(0, 0, 0, 0),
                _ => {
                    let mut date = local.date();
                    while date.weekday() != jiff::civil::Weekday::Monday {
                        date = date.yesterday().unwrap();
                    }
                    date.at(0, 0, 0, 0)
                }
            };
            *expected.entry(start.strftime("%Y-%m-%dT%H:%M:%S.000").to_string()).or_default() += 1;
        }
        // Without `orderBy`, rows are sorted by time.
        let got: Vec<_> = rows
            .iter()
            .map(|r| (r[&column].as_str().unwrap().to_owned(), r["Conversation.Count"].as_u64().unwrap()))
            .collect();
        assert_eq!(got, expected.into_iter().collect::<Vec<_>>(), "{grain}");
    }
}

#[test]
fn the_cell_of_a_bucket_can_be_used_as_a_filter() {
    let data = data();
    let zone = json!({"timezone": "America/New_York"});
    let rows = ask_all(
        &data,
        json!({"properties": zone, "query": {"measures": ["Conversation.Count"], "dimensions": ["DateCreated.day"]}}),
    );
    let (day, count) = (&rows[10]["DateCreated.day"], &rows[10]["Conversation.Count"]);
    let again = ask_all(
        &data,
        json!({"properties": zone, "query": {"measures": ["Conversation.Count"],
            "filters": filter("EQ", "DateCreated.day", &[day.as_str().unwrap()])}}),
    );
    assert_eq!(again[0]["Conversation.Count"], *count);
}

#[test]
fn orders_are_total_and_followed() {
    let data = data();
    let ordered = |order: Json| {
        ask(
            &data,
            json!({"measures": ["Conversation.Count"],
                   "dimensions": ["Conversation.ConversationStatus", "Conversation.ParticipantType"],
                   "orderBy": order}),
        )
    };
    let rows = ordered(json!([
        {"field": "Conversation.ConversationStatus", "direction": "ASC"},
        {"field": "Conversation.Count", "direction": "DESC"}]));
    let keys: Vec<_> = rows
        .iter()
        .map(|r| {
            let status = r["Conversation.ConversationStatus"].as_str().unwrap().to_owned();
            (status, std::cmp::Reverse(r["Conversation.Count"].as_u64().unwrap()))
        })
        .collect();
    assert!(keys.is_sorted());
    let ascending = ordered(json!([{"field": "Conversation.Count"}]));
    let counts: Vec<_> = ascending.iter().map(|r| r["Conversation.Count"].as_u64()).collect();
    assert!(counts.is_sorted());
    let default: Vec<_> =
        ordered(json!([])).iter().map(|r| std::cmp::Reverse(r["Conversation.Count"].as_u64())).collect();
    assert!(default.is_sorted());
}

#[test]
fn an_order_may_use_unselected_members() {
    let data = data();
    let rows = ask(
        &data,
        json!({"dimensions": ["Conversation.ConversationId"],
               "orderBy": [{"field": "OperatorResults.CreatedDate", "direction": "DESC"},
                           {"field": "ConversationSummary.TotalMessages"}]}),
    );
    assert_eq!(rows.len(), 600);
    let latest: BTreeMap<_, _> =
        data.conversations.iter().map(|c| (&*c.id, c.results.iter().map(|r| r.created).max())).collect();
    let times: Vec<_> = rows
        .iter()
        .map(|r| latest[r["Conversation.ConversationId"].as_str().unwrap()])
        .skip_while(Option::is_none)
        .map(std::cmp::Reverse)
        .collect();
    assert!(times.is_sorted() && times.len() > 100);
    assert_eq!(rows[0].as_object().unwrap().len(), 1, "unselected members are not shown");
}

#[test]
fn lists_stay_lists_and_names_are_those_of_the_request() {
    let data = data();
    let rows = ask(
        &data,
        json!({"measures": ["OperatorResult.Count"], "dimensions": ["Channels", "Conversation.Channels", "Languages"]}),
    );
    for row in &rows {
        assert!(row["Channels"].is_array() && row["Languages"][0].is_string());
        assert_eq!(row["Channels"], row["Conversation.Channels"]);
    }
}

#[test]
fn the_documented_profile_exists() {
    let filters = filter("EQ", "Conversation.ParticipantProfileId", &[super::super::data::WELL_KNOWN_PROFILE]);
    assert!(count_where(&data(), filters) > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For every query, rows are distinct, and counting by a conversation's own property loses none.
    #[test]
    fn rows_are_distinct_combinations(
        dimensions in prop::sample::subsequence(vec![
            "Conversation.ConversationStatus", "Conversation.CreatedDate.week", "Channels", "Languages",
            "ConversationSummary.Sentiment", "ConversationSummary.HandledByHuman", "ConversationSummary.LeadScore",
        ], 1..5),
        descending in any::<bool>(),
    ) {
        let data = generate(3, 150, now());
        let direction = if descending { "DESC" } else { "ASC" };
        let rows = ask(&data, json!({
            "measures": ["Conversation.Count"], "dimensions": dimensions,
            "orderBy": [{"field": dimensions[0], "direction": direction}],
        }));
        let total: u64 = rows.iter().map(|r| r["Conversation.Count"].as_u64().unwrap()).sum();
        prop_assert_eq!(total, 150);
        let keys: BTreeSet<String> = rows.iter()
            .map(|r| dimensions.iter().map(|d| r[*d].to_string()).collect::<Vec<_>>().join("|"))
            .collect();
        prop_assert_eq!(keys.len(), rows.len());
    }
}
