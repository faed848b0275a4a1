//! The account's data: conversations, their participants, and the results of language operators.
//!
//! One seeded generator makes everything, so the same settings always give the same rows, and every page of a query
//! sees the same data. The data does not change after generation, and does not depend on queries. Ids have the form
//! that Twilio documents for its newer ids: a prefix and 26 characters.

use std::collections::HashMap;
use std::sync::Arc;

use fastrand::Rng;
use jiff::civil::Weekday;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

/// How many days the data covers.
pub const HISTORY_DAYS: i64 = 90;

/// A profile that exists with every seed, so that the published example that queries it finds a customer.
pub const WELL_KNOWN_PROFILE: &str = "mem_profile_01h9d8r0vte3hz8tykdj329t7r";

/// The one operator that writes JSON has this id with every seed. It is the id of the published examples.
pub const WELL_KNOWN_OPERATOR: &str = "intelligence_operator_01h9d8r0vte3hz8tykdj329t7r";

/// Shared text: thousands of rows contain the same few agents, labels and operators.
pub type Text = Arc<str>;

/// A participant of conversations.
#[derive(Debug)]
pub struct Participant {
    /// `conv_participant_…`
    pub id: Text,
    /// `HUMAN_AGENT`, `CUSTOMER` or `AI_AGENT`.
    pub kind: Text,
    /// Only customers have a profile.
    pub profile: Option<Text>,
}

/// One conversation with all its parts.
#[derive(Debug)]
pub struct Conversation {
    /// `conv_conversation_…`
    pub id: Text,
    /// Its name; not unique.
    pub name: Text,
    /// `ACTIVE`, `INACTIVE` or `CLOSED`.
    pub status: Text,
    /// When it began.
    pub created: Timestamp,
    /// When it was closed, if it was.
    pub closed: Option<Timestamp>,
    /// Channels it was held on, at least one.
    pub channels: Arc<[Text]>,
    /// Languages spoken in it, at least one.
    pub languages: Arc<[Text]>,
    /// Intelligence configurations attached to it, possibly none.
    pub configurations: Vec<Text>,
    /// Its participants, at least one.
    pub participants: Vec<Arc<Participant>>,
    /// Messages or utterances.
    pub messages: u32,
    /// Time from the first message to the last.
    pub duration_seconds: u32,
    /// From -1 (bad) to 1 (good).
    pub sentiment_score: f64,
    /// `positive`, `neutral`, `mixed` or `negative`.
    pub sentiment: Text,
    /// 0 to 100, where a lead was scored.
    pub lead_score: Option<f64>,
    /// The results of the operators, in the order in which they ran.
    pub results: Vec<OperatorResult>,
}

/// The result of one language operator for one conversation.
#[derive(Debug)]
pub struct OperatorResult {
    /// `intelligence_operatorresult_…`
    pub id: Text,
    /// `intelligence_operator_…`
    pub operator_id: Text,
    /// The operator's name.
    pub operator_name: Text,
    /// `CLASSIFICATION` or `JSON`.
    pub format: Text,
    /// The label it chose.
    pub value: Text,
    /// The number of the result, where the operator gives one.
    pub score: Option<f64>,
    /// The configuration that ran it.
    pub configuration: Option<Text>,
    /// When it was written, always after the conversation began.
    pub created: Timestamp,
}

/// All data of the simulated account.
#[derive(Debug)]
pub struct Data {
    /// `AC` and 32 hexadecimal digits.
    pub account_sid: Text,
    /// In order of creation.
    pub conversations: Vec<Conversation>,
    /// The language operators that wrote the results.
    pub operators: Vec<Operator>,
}

/// A language operator.
#[derive(Debug)]
pub struct Operator {
    /// `intelligence_operator_…`
    pub id: Text,
    /// Its name.
    pub name: Text,
    /// `CLASSIFICATION` or `JSON`.
    pub format: Text,
    /// On how many of a hundred conversations it runs.
    coverage: u32,
}

/// Words, and the weight with which each is drawn.
type Choices = &'static [(&'static str, u32)];

static CHANNELS: [(&str, u32); 6] =
    [("voice", 40), ("chat", 25), ("sms", 15), ("whatsapp", 12), ("email", 6), ("rcs", 2)];
static LANGUAGES: [(&str, u32); 5] = [("en", 70), ("es", 16), ("fr", 6), ("de", 5), ("pt", 3)];
static TOPICS: [(&str, u32); 6] =
    [("billing", 26), ("delivery", 24), ("technical", 20), ("returns", 14), ("sales", 12), ("other", 4)];
static SENTIMENTS: [(&str, u32); 4] = [("positive", 44), ("neutral", 30), ("negative", 18), ("mixed", 8)];
static RESOLUTIONS: [(&str, u32); 3] = [("resolved", 68), ("unresolved", 20), ("escalated", 12)];
static COMPLIANCE: [(&str, u32); 2] = [("pass", 94), ("fail", 6)];
/// Not drawn by weight: these depend on a conversation's age and score.
static DERIVED: [(&str, u32); 6] =
    [("ACTIVE", 0), ("INACTIVE", 0), ("CLOSED", 0), ("hot", 0), ("warm", 0), ("cold", 0)];
static WORDS: [Choices; 7] = [&CHANNELS, &LANGUAGES, &TOPICS, &SENTIMENTS, &RESOLUTIONS, &COMPLIANCE, &DERIVED];
/// A day's traffic by hour in UTC: the working day of the Americas, with some traffic at all hours.
const HOURS: [u32; 24] = [30, 22, 16, 12, 9, 7, 6, 6, 8, 10, 14, 22, 40, 66, 88, 98, 100, 96, 92, 94, 86, 72, 54, 40];

/// Generates `rows` conversations over the 90 days before `now`.
pub fn generate(seed: u64, rows: usize, now: Timestamp) -> Data {
    let mut rng = Rng::with_seed(seed);
    let account_sid = Text::from(format!("AC{:032x}", rng.u128(..)));
    let start = now.checked_sub(SignedDuration::from_hours(24 * HISTORY_DAYS)).unwrap_or(Timestamp::MIN);
    let mut moments: Vec<Timestamp> = (0..rows).map(|_| moment(&mut rng, start, now)).collect();
    moments.sort_unstable();

    let cast = Cast::new(&mut rng, rows, start);
    let conversations = moments.into_iter().map(|created| cast.conversation(&mut rng, created, now)).collect();
    Data { account_sid, conversations, operators: cast.operators }
}

/// A random time in the history, by rejection sampling: office hours and working days are busier.
fn moment(rng: &mut Rng, start: Timestamp, now: Timestamp) -> Timestamp {
    let span = (now.as_millisecond() - start.as_millisecond()).max(1);
    let mut candidate = start;
    // A few dozen attempts always suffice. The limit makes the end provable.
    for _ in 0..1000 {
        let millisecond = start.as_millisecond() + rng.i64(0..span);
        candidate = Timestamp::from_millisecond(millisecond).unwrap_or(start);
        let local = Offset::UTC.to_datetime(candidate);
        let day = match local.weekday() {
            Weekday::Saturday => 35,
            Weekday::Sunday => 28,
            Weekday::Monday => 100,
            _ => 88,
        };
        let hour = HOURS[usize::from(local.hour().unsigned_abs()) % HOURS.len()];
        if rng.u32(..10_000) < day * hour {
            break;
        }
    }
    candidate
}

/// The participants, operators and words that conversations are made from.
struct Cast {
    human_agents: Vec<Arc<Participant>>,
    ai_agents: Vec<Arc<Participant>>,
    customers: Vec<Arc<Participant>>,
    configurations: Vec<Text>,
    operators: Vec<Operator>,
    /// Every label once, shared by all rows.
    words: HashMap<&'static str, Text>,
}

impl Cast {
    fn new(rng: &mut Rng, rows: usize, start: Timestamp) -> Self {
        let mut people = |kind: &str, count: usize| -> Vec<Arc<Participant>> {
            let kind_text = Text::from(kind);
            (0..count)
                .map(|number| {
                    let profile = (kind == "CUSTOMER").then(|| match number {
                        0 => Text::from(WELL_KNOWN_PROFILE),
                        _ => id(rng, "mem_profile_", start),
                    });
                    Arc::new(Participant {
                        id: id(rng, "conv_participant_", start),
                        kind: Arc::clone(&kind_text),
                        profile,
                    })
                })
                .collect()
        };
        let human_agents = people("HUMAN_AGENT", 24);
        let ai_agents = people("AI_AGENT", 3);
        let customers = people("CUSTOMER", (rows / 3).clamp(1, 50_000));
        let configurations = (0..4).map(|_| id(rng, "intelligence_configuration_", start)).collect();
        let mut operator = |name: &str, format: &str, coverage| {
            let drawn = id(rng, "intelligence_operator_", start);
            let id = if format == "JSON" { Text::from(WELL_KNOWN_OPERATOR) } else { drawn };
            Operator { id, name: Text::from(name), format: Text::from(format), coverage }
        };
        let operators = vec![
            operator("Sentiment", "CLASSIFICATION", 92),
            operator("Topic", "CLASSIFICATION", 80),
            operator("Resolution", "CLASSIFICATION", 70),
            operator("Compliance", "CLASSIFICATION", 30),
            operator("Lead Score", "JSON", 35),
        ];
        Self {
            human_agents,
            ai_agents,
            customers,
            configurations,
            operators,
            words: WORDS.iter().flat_map(|list| list.iter()).map(|(word, _)| (*word, Text::from(*word))).collect(),
        }
    }

    fn word(&self, word: &'static str) -> Text {
        self.words.get(word).map_or_else(|| Text::from(word), Arc::clone)
    }

    /// One of `choices`, and sometimes (in `second` of a hundred cases) another one as well.
    fn several(&self, rng: &mut Rng, choices: Choices, second: u32) -> Arc<[Text]> {
        let first = weighted(rng, choices);
        let mut chosen = vec![self.word(first)];
        if rng.u32(..100) < second {
            let other = weighted(rng, choices);
            if other != first {
                chosen.push(self.word(other));
            }
        }
        Arc::from(chosen)
    }

    fn conversation(&self, rng: &mut Rng, created: Timestamp, now: Timestamp) -> Conversation {
        let topic = weighted(rng, &TOPICS);
        let duration_seconds = 45 + (rng.f64() * rng.f64() * 3600.0) as u32;
        let (sentiment, sentiment_score) = sentiment(rng);
        let lead_score = (rng.u32(..100) < 35).then(|| f64::from(rng.u32(0..=100)));
        let status = status(rng, created, now);
        let closed = (status == "CLOSED").then(|| {
            let end = SignedDuration::from_secs(i64::from(duration_seconds) + rng.i64(0..1800));
            created.checked_add(end).unwrap_or(now).min(now)
        });
        let configurations = self.configurations(rng);
        let mut conversation = Conversation {
            id: id(rng, "conv_conversation_", created),
            name: Text::from(format!("{topic} {}", 1000 + rng.u32(..9000))),
            status: self.word(status),
            created,
            closed,
            channels: self.several(rng, &CHANNELS, 12),
            languages: self.several(rng, &LANGUAGES, 8),
            configurations,
            participants: self.participants(rng),
            messages: 2 + duration_seconds / (20 + rng.u32(..40)),
            duration_seconds,
            sentiment_score,
            sentiment: self.word(sentiment),
            lead_score,
            results: Vec::new(),
        };
        conversation.results = self.results(rng, &conversation, topic, now);
        conversation
    }

    /// One customer, and an AI agent, a human agent, or both, where one hands over to the other.
    fn participants(&self, rng: &mut Rng) -> Vec<Arc<Participant>> {
        // Squared, so that some customers call far more often than others.
        let regular = rng.f64() * rng.f64();
        let customer = ((regular * self.customers.len() as f64) as usize).min(self.customers.len() - 1);
        let mut everyone = vec![Arc::clone(&self.customers[customer])];
        let (ai, human) = match rng.u32(..100) {
            0..35 => (true, false),
            35..70 => (false, true),
            _ => (true, true),
        };
        if ai {
            everyone.push(Arc::clone(&self.ai_agents[rng.usize(..self.ai_agents.len())]));
        }
        if human {
            let busiest_first = rng.f64() * rng.f64();
            let agent = (busiest_first * self.human_agents.len() as f64) as usize;
            everyone.push(Arc::clone(&self.human_agents[agent.min(self.human_agents.len() - 1)]));
        }
        everyone
    }

    fn configurations(&self, rng: &mut Rng) -> Vec<Text> {
        let count = match rng.u32(..100) {
            0..4 => 0,
            4..80 => 1,
            _ => 2,
        };
        let first = match rng.u32(..100) {
            0..50 => 0,
            50..78 => 1,
            78..92 => 2,
            _ => 3,
        };
        (0..count).map(|step| Arc::clone(&self.configurations[(first + step) % self.configurations.len()])).collect()
    }

    /// Operators run only where a configuration is attached, and soon after the conversation's end.
    fn results(
        &self,
        rng: &mut Rng,
        conversation: &Conversation,
        topic: &'static str,
        now: Timestamp,
    ) -> Vec<OperatorResult> {
        if conversation.configurations.is_empty() {
            return Vec::new();
        }
        let mut results = Vec::new();
        for operator in &self.operators {
            if rng.u32(..100) >= operator.coverage {
                continue;
            }
            let (value, score) = match &*operator.name {
                "Sentiment" => (Arc::clone(&conversation.sentiment), Some(conversation.sentiment_score)),
                "Topic" => (self.word(topic), None),
                "Resolution" => (self.word(weighted(rng, &RESOLUTIONS)), None),
                "Compliance" => (self.word(weighted(rng, &COMPLIANCE)), None),
                _ => match conversation.lead_score {
                    Some(score) if score >= 70.0 => (self.word("hot"), Some(score)),
                    Some(score) if score >= 35.0 => (self.word("warm"), Some(score)),
                    Some(score) => (self.word("cold"), Some(score)),
                    None => continue,
                },
            };
            let delay = i64::from(conversation.duration_seconds) * 1000 + rng.i64(2_000..90_000);
            let created = conversation.created.checked_add(SignedDuration::from_millis(delay)).unwrap_or(now).min(now);
            let configuration = rng.usize(..conversation.configurations.len());
            results.push(OperatorResult {
                id: id(rng, "intelligence_operatorresult_", created),
                operator_id: Arc::clone(&operator.id),
                operator_name: Arc::clone(&operator.name),
                format: Arc::clone(&operator.format),
                value,
                score,
                configuration: Some(Arc::clone(&conversation.configurations[configuration])),
                created,
            });
        }
        results
    }
}

/// Recent conversations are often still open; old ones almost never.
fn status(rng: &mut Rng, created: Timestamp, now: Timestamp) -> &'static str {
    let age_hours = now.duration_since(created).as_hours();
    let (active, inactive) = match age_hours {
        ..2 => (70, 15),
        2..24 => (22, 33),
        24..168 => (5, 25),
        _ => (1, 6),
    };
    match rng.u32(..100) {
        roll if roll < active => "ACTIVE",
        roll if roll < active + inactive => "INACTIVE",
        _ => "CLOSED",
    }
}

fn sentiment(rng: &mut Rng) -> (&'static str, f64) {
    let label = weighted(rng, &SENTIMENTS);
    let (low, high) = match label {
        "positive" => (0.3, 1.0),
        "negative" => (-1.0, -0.3),
        _ => (-0.3, 0.3),
    };
    let score: f64 = low + rng.f64() * (high - low);
    (label, (score * 100.0).round() / 100.0)
}

fn weighted(rng: &mut Rng, choices: Choices) -> &'static str {
    let total: u32 = choices.iter().map(|(_, weight)| weight).sum();
    let mut roll = rng.u32(..total.max(1));
    for (choice, weight) in choices {
        if roll < *weight {
            return choice;
        }
        roll -= weight;
    }
    ""
}

/// A prefix, ten characters of time and sixteen random ones, so that ids sort roughly by age.
pub fn id(rng: &mut Rng, prefix: &str, moment: Timestamp) -> Text {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let time = u128::from(moment.as_millisecond().unsigned_abs()) & ((1 << 48) - 1);
    let bits = (time << 80) | (rng.u128(..) >> 48);
    let mut text = String::with_capacity(prefix.len() + 26);
    text.push_str(prefix);
    for position in (0..26).rev() {
        text.push(char::from(ALPHABET[(bits >> (5 * position)) as usize & 31]));
    }
    Text::from(text)
}

#[cfg(test)]
mod tests;
