//! A table of the members of each cube, and what they read from a row.
//!
//! [`catalog`](super::catalog) says which of these names are published and which are invented.

use super::data::Text;
use super::members::Aggregation::{Average, Count, CountDistinct, Max, Min, Sum};
use super::members::Kind::{Boolean, Number, String as Str, Time};
use super::members::Level::{Configuration, Conversation as Whole, Participant as Person, Result as Finding};
use super::members::{Cube, Dimension, Measure, Row, Value};

/// All cubes, older generation first.
pub static CUBES: [Cube; 3] = [
    Cube {
        name: "Conversation",
        description: "Conversations with their participants and configurations",
        measures: &[
            Measure::new("Conversation.Count", Count, Whole, "Number of distinct conversations", |_| Value::Absent),
            Measure::new(
                "Conversation.UniqueParticipants",
                CountDistinct,
                Person,
                "Number of distinct participants",
                |r| text(r.participant.map(|p| &p.id)),
            ),
        ],
        dimensions: &[
            Dimension::new("Conversation.ConversationId", Str, Whole, "Identifier of the conversation", |r| {
                Value::Text(&r.conversation.id)
            }),
            Dimension::new("Conversation.ConversationName", Str, Whole, "Name of the conversation", |r| {
                Value::Text(&r.conversation.name)
            }),
            Dimension::new("Conversation.ConversationStatus", Str, Whole, "ACTIVE, INACTIVE or CLOSED", |r| {
                Value::Text(&r.conversation.status)
            }),
            Dimension::new(
                "Conversation.IntelligenceConfigurationIds",
                Str,
                Configuration,
                "Each attached intelligence configuration",
                |r| text(r.configuration),
            ),
            Dimension::new("Conversation.ParticipantId", Str, Person, "Identifier of each participant", |r| {
                text(r.participant.map(|p| &p.id))
            }),
            Dimension::new("Conversation.ParticipantType", Str, Person, "HUMAN_AGENT, CUSTOMER or AI_AGENT", |r| {
                text(r.participant.map(|p| &p.kind))
            }),
            Dimension::new("Conversation.ParticipantProfileId", Str, Person, "Profile of each customer", |r| {
                text(r.participant.and_then(|p| p.profile.as_ref()))
            }),
            Dimension::new("Conversation.CreatedDate", Time, Whole, "When the conversation began", |r| {
                Value::Moment(r.conversation.created)
            }),
            Dimension::new("Conversation.Channels", Str, Whole, "Channels, as a list", |r| {
                Value::List(&r.conversation.channels)
            }),
            Dimension::new("Conversation.Languages", Str, Whole, "Languages, as a list", |r| {
                Value::List(&r.conversation.languages)
            }),
            Dimension::new("Conversation.AccountSid", Str, Whole, "The account", |r| Value::Text(&r.data.account_sid)),
        ],
    },
    Cube {
        name: "OperatorResult",
        description: "What language operators found in conversations",
        measures: &[
            Measure::new("OperatorResult.Count", Count, Finding, "Number of operator results", |_| Value::Absent),
            Measure::new("OperatorResult.AverageScore", Average, Finding, "Mean score", |r| {
                number(r.result.and_then(|o| o.score))
            }),
            Measure::new("OperatorResult.MinScore", Min, Finding, "Lowest score", |r| {
                number(r.result.and_then(|o| o.score))
            }),
            Measure::new("OperatorResult.MaxScore", Max, Finding, "Highest score", |r| {
                number(r.result.and_then(|o| o.score))
            }),
        ],
        dimensions: &[
            Dimension::new("OperatorResult.OperatorResultId", Str, Finding, "Identifier of the result", |r| {
                text(r.result.map(|o| &o.id))
            }),
            Dimension::new("OperatorResult.OperatorId", Str, Finding, "Identifier of the operator", |r| {
                text(r.result.map(|o| &o.operator_id))
            }),
            Dimension::new("OperatorResult.OperatorName", Str, Finding, "Name of the operator", |r| {
                text(r.result.map(|o| &o.operator_name))
            }),
            Dimension::new("OperatorResult.OutputFormat", Str, Finding, "CLASSIFICATION or JSON", |r| {
                text(r.result.map(|o| &o.format))
            }),
            Dimension::new("OperatorResult.Value", Str, Finding, "The label that the operator chose", |r| {
                text(r.result.map(|o| &o.value))
            }),
            Dimension::new("OperatorResult.Score", Number, Finding, "The number next to the label", |r| {
                number(r.result.and_then(|o| o.score))
            }),
            Dimension::new(
                "OperatorResult.IntelligenceConfigurationId",
                Str,
                Finding,
                "The configuration that ran the operator",
                |r| text(r.result.and_then(|o| o.configuration.as_ref())),
            ),
            Dimension::new("OperatorResult.CreatedDate", Time, Finding, "When the result was written", |r| {
                r.result.map_or(Value::Absent, |o| Value::Moment(o.created))
            }),
        ],
    },
    Cube {
        name: "ConversationSummary",
        description: "One row per conversation, with participants and sentiment rolled up",
        measures: &[
            Measure::new("ConversationSummary.Count", Count, Whole, "Number of conversations", |_| Value::Absent),
            Measure::new("ConversationSummary.UniqueCustomers", CountDistinct, Person, "Distinct customers", |r| {
                text(r.participant.and_then(|p| p.profile.as_ref()))
            }),
            Measure::new("ConversationSummary.AverageSentimentScore", Average, Whole, "Mean sentiment, -1 to 1", |r| {
                Value::Number(r.conversation.sentiment_score)
            }),
            Measure::new("ConversationSummary.MinSentimentScore", Min, Whole, "Worst sentiment", |r| {
                Value::Number(r.conversation.sentiment_score)
            }),
            Measure::new("ConversationSummary.MaxSentimentScore", Max, Whole, "Best sentiment", |r| {
                Value::Number(r.conversation.sentiment_score)
            }),
            Measure::new("ConversationSummary.TotalMessages", Sum, Whole, "Messages in all", |r| {
                Value::Number(r.conversation.messages.into())
            }),
            Measure::new("ConversationSummary.AverageMessages", Average, Whole, "Messages per conversation", |r| {
                Value::Number(r.conversation.messages.into())
            }),
            Measure::new("ConversationSummary.TotalDurationSeconds", Sum, Whole, "Duration in all", |r| {
                Value::Number(r.conversation.duration_seconds.into())
            }),
            Measure::new("ConversationSummary.AverageDurationSeconds", Average, Whole, "Mean duration", |r| {
                Value::Number(r.conversation.duration_seconds.into())
            }),
            Measure::new("ConversationSummary.MaxDurationSeconds", Max, Whole, "Longest duration", |r| {
                Value::Number(r.conversation.duration_seconds.into())
            }),
            Measure::new("ConversationSummary.LeadScoreAverage", Average, Whole, "A custom measure", |r| {
                number(r.conversation.lead_score)
            }),
        ],
        dimensions: &[
            Dimension::new("ConversationSummary.ConversationId", Str, Whole, "Identifier of the conversation", |r| {
                Value::Text(&r.conversation.id)
            }),
            Dimension::new("ConversationSummary.ConversationName", Str, Whole, "Name of the conversation", |r| {
                Value::Text(&r.conversation.name)
            }),
            Dimension::new("ConversationSummary.ConversationStatus", Str, Whole, "ACTIVE, INACTIVE or CLOSED", |r| {
                Value::Text(&r.conversation.status)
            }),
            Dimension::new("ConversationSummary.CreatedDate", Time, Whole, "When the conversation began", |r| {
                Value::Moment(r.conversation.created)
            }),
            Dimension::new("ConversationSummary.ClosedDate", Time, Whole, "When the conversation was closed", |r| {
                r.conversation.closed.map_or(Value::Absent, Value::Moment)
            }),
            Dimension::new("ConversationSummary.Channels", Str, Whole, "Channels, as a list", |r| {
                Value::List(&r.conversation.channels)
            }),
            Dimension::new("ConversationSummary.Languages", Str, Whole, "Languages, as a list", |r| {
                Value::List(&r.conversation.languages)
            }),
            Dimension::new("ConversationSummary.Sentiment", Str, Whole, "positive, neutral, mixed or negative", |r| {
                Value::Text(&r.conversation.sentiment)
            }),
            Dimension::new("ConversationSummary.SentimentScore", Number, Whole, "Sentiment, -1 to 1", |r| {
                Value::Number(r.conversation.sentiment_score)
            }),
            Dimension::new("ConversationSummary.MessageCount", Number, Whole, "Messages", |r| {
                Value::Number(r.conversation.messages.into())
            }),
            Dimension::new("ConversationSummary.DurationSeconds", Number, Whole, "Duration", |r| {
                Value::Number(r.conversation.duration_seconds.into())
            }),
            Dimension::new("ConversationSummary.LeadScore", Number, Whole, "Lead score, where one was given", |r| {
                number(r.conversation.lead_score)
            }),
            Dimension::new("ConversationSummary.ParticipantCount", Number, Whole, "How many took part", |r| {
                Value::Number(r.conversation.participants.len() as f64)
            }),
            Dimension::new("ConversationSummary.HumanAgentCount", Number, Whole, "Human agents", |r| {
                people(r, "HUMAN_AGENT")
            }),
            Dimension::new("ConversationSummary.AiAgentCount", Number, Whole, "AI agents", |r| people(r, "AI_AGENT")),
            Dimension::new("ConversationSummary.CustomerCount", Number, Whole, "Customers", |r| people(r, "CUSTOMER")),
            Dimension::new("ConversationSummary.HandledByHuman", Boolean, Whole, "Did a human agent take part", |r| {
                Value::Flag(r.conversation.participants.iter().any(|p| &*p.kind == "HUMAN_AGENT"))
            }),
        ],
    },
];

fn number(value: Option<f64>) -> Value<'static> {
    value.map_or(Value::Absent, Value::Number)
}

fn people(row: Row<'_>, kind: &str) -> Value<'static> {
    let everyone = row.conversation.participants.iter();
    Value::Number(everyone.filter(|person| &*person.kind == kind).count() as f64)
}

fn text<'a>(value: Option<&'a Text>) -> Value<'a> {
    value.map_or(Value::Absent, Value::Text)
}
