//! Query jobs: what the gateway reads of Twilio's answers about them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

use super::endpoint::is_id;
use crate::core::json::{self, Member, Value};
use crate::semantics::upstream_headers;

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `PENDING`, `RUNNING`, or an undocumented word.
    Unfinished,
    /// `COMPLETED`: it has results.
    Completed,
    /// `FAILED` or `CANCELLED`.
    Failed,
    /// `EXPIRED`: its results are gone.
    Expired,
}

impl State {
    fn of(word: &str) -> Self {
        match word {
            "COMPLETED" => Self::Completed,
            "FAILED" | "CANCELLED" | "CANCELED" => Self::Failed,
            "EXPIRED" => Self::Expired,
            _ => Self::Unfinished,
        }
    }

    /// Whether a job in this state can change to `next`. A job that has ended keeps its state, except that results
    /// expire.
    pub fn may_become(self, next: Self) -> bool {
        self == Self::Unfinished || self == next || (self == Self::Completed && next == Self::Expired)
    }
}

/// What an answer says of one job: the answer to its submission, or its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id, if the text has the form of an id.
    pub id: Option<Box<str>>,
    /// Its state.
    pub state: State,
    /// How long its results are kept.
    retention: Option<Duration>,
    /// When it ended.
    completed: Option<Timestamp>,
}

impl Job {
    /// Reads an answer; `None` if it has no status.
    pub fn read(body: &[u8]) -> Option<Self> {
        let value = json::parse(body).ok()?;
        let job = value.as_object()?;
        let text = |name: &str| json::member(job, name).and_then(Value::as_str);
        Some(Self {
            id: text("operationId").filter(|id| is_id(id)).map(Into::into),
            state: State::of(text("status")?),
            retention: text("resultRetentionPeriod").and_then(period),
            completed: text("completedAt").and_then(|time| time.parse().ok()),
        })
    }

    /// How long after `now` its results still exist, if the answer says so.
    pub fn retained(&self, now: SystemTime) -> Option<Duration> {
        let elapsed = || Duration::try_from(Timestamp::try_from(now).ok()?.duration_since(self.completed?)).ok();
        Some(self.retention?.saturating_sub(elapsed().unwrap_or_default()))
    }
}

/// The body of an answer to a submission, as the status of the job, which has not ended: with `completedAt`. Twilio's Node
/// SDK shows the current time if that is absent.
pub fn status_of_submission(body: &Bytes) -> Bytes {
    const NAME: &str = "completedAt";
    let is_absent =
        |body| json::parse(body).is_ok_and(|job| job.as_object().is_some_and(|job| json::member(job, NAME).is_none()));
    match body.iter().rposition(|byte| *byte == b'}') {
        // The object has other members, or it would be no answer about a job.
        Some(end) if is_absent(body) => [&body[..end], br#","completedAt":null"#, &body[end..]].concat().into(),
        _ => body.clone(),
    }
}

/// An ISO 8601 duration. A day has 24 hours. A duration with years or months is not read, because their length varies.
fn period(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(length).ok().filter(|_| length >= SignedDuration::ZERO)
}

/// How much longer than Twilio's `Retry-After` the status of an unfinished job is served while polls fail.
pub const SERVED_ON_ERROR: Duration = Duration::from_secs(600);

/// Whether an answer with this status says nothing about the job that was polled.
pub fn is_failed_poll(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The value used for an absent or malformed `Retry-After`.
const USUAL_WAIT: Duration = Duration::from_secs(5);
/// The greatest value that is used.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long not to poll a job again after an answer with these headers: from 1 to 60 seconds.
pub fn poll_after(headers: &HeaderMap, now: SystemTime) -> Duration {
    wait(stated_wait(headers, now))
}

/// The wait before the next poll if this one was stated: from 1 to 60 seconds, and 5 if none was.
pub fn wait(stated: Option<Duration>) -> Duration {
    stated.unwrap_or(USUAL_WAIT).clamp(Duration::from_secs(1), LONGEST_WAIT)
}

/// The `Retry-After` of an answer; `None` if it is absent or malformed. Only the two forms of RFC 9110 section 10.2.3
/// are read, and only of a single line: a guess could be less than what Twilio means.
pub fn stated_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let mut lines = headers.get_all(header::RETRY_AFTER).into_iter();
    let (Some(value), None) = (lines.next(), lines.next()) else { return None };
    let text = value.to_str().ok()?.trim();
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows is greater than the longest wait.
        true => Some(text.parse().map_or(LONGEST_WAIT, Duration::from_secs)),
        false => upstream_headers::retry_after(headers, now).filter(|_| upstream_headers::is_retry_after(value)),
    }
}

/// The jobs of a list that have ended, with their states. Empty if it is not a list of jobs.
pub fn ended_of_list(body: &[u8]) -> Vec<(Box<str>, State)> {
    let Ok(value) = json::parse(body) else { return Vec::new() };
    let items = value.as_object().and_then(|list| json::member(list, "items")?.as_array()).unwrap_or_default();
    let ended = |item: &Value<'_>| {
        let job = item.as_object()?;
        let text = |name: &str| json::member(job, name).and_then(Value::as_str);
        let (id, state) = (text("operationId").filter(|id| is_id(id))?, State::of(text("status")?));
        (state != State::Unfinished).then(|| (id.into(), state))
    };
    items.iter().filter_map(ended).collect()
}

/// The ids of the jobs in a list; none if it is not a list of jobs.
pub fn ids_of_list(body: &[u8]) -> Vec<String> {
    let ids = |value: Value<'_>| {
        let items = json::member(value.as_object()?, "items")?.as_array()?;
        Some(items.iter().filter_map(id_of_item).map(str::to_owned).collect())
    };
    json::parse(body).ok().and_then(ids).unwrap_or_default()
}

fn id_of_item<'v>(item: &'v Value<'_>) -> Option<&'v str> {
    item.as_object().and_then(|job| json::member(job, "operationId")?.as_str()).filter(|id| is_id(id))
}

/// Reduces a list of jobs to those whose id is in `own`, with their number as `meta.pageSize`. Undocumented members are
/// removed, because they could reveal other jobs. `None` if it is not a list of jobs.
pub fn list_of(body: &[u8], own: impl Fn(&str) -> bool) -> Option<Bytes> {
    let value = json::parse(body).ok()?;
    let list = value.as_object()?;
    let items = json::member(list, "items")?.as_array()?;
    let items: Vec<_> = items.iter().filter(|item| id_of_item(item).is_some_and(&own)).collect();
    let mut out = Vec::with_capacity(body.len());
    out.extend_from_slice(b"{\"items\":");
    json::write_array(&mut out, &items, |out, item| item.write(out));
    if let Some(meta) = json::member(list, "meta").and_then(Value::as_object) {
        const KEPT: [&str; 4] = ["key", "pageSize", "nextToken", "previousToken"];
        let kept = meta.iter().filter(|member| KEPT.contains(&member.name.as_str()));
        out.extend_from_slice(b",\"meta\":{");
        json::write_separated(&mut out, kept, |out, Member { name, value }| {
            name.write(out);
            out.push(b':');
            match name.as_str() {
                "pageSize" => out.extend_from_slice(itoa::Buffer::new().format(items.len()).as_bytes()),
                _ => value.write(out),
            }
        });
        out.push(b'}');
    }
    out.push(b'}');
    Some(out.into())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_status_is_read_in_every_state() {
        let state = |word: &str| Job::read(format!(r#"{{"status":"{word}"}}"#).as_bytes()).unwrap().state;
        assert_eq!(["PENDING", "RUNNING", "SLEEPING"].map(state), [State::Unfinished; 3]);
        assert_eq!(["COMPLETED", "EXPIRED"].map(state), [State::Completed, State::Expired]);
        assert_eq!(["FAILED", "CANCELLED"].map(state), [State::Failed; 2]);
        for body in ["", "[]", "{}", r#"{"status":1}"#, r#"{"status":null,"operationId":"a"}"#] {
            assert_eq!(Job::read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn the_answer_to_a_submission_becomes_a_status_with_all_that_sdks_read() {
        for (answer, status) in [
            (r#"{"status":"PENDING"}"#, r#"{"status":"PENDING","completedAt":null}"#),
            ("{\"a\":{}} \n", "{\"a\":{},\"completedAt\":null} \n"),
            (r#"{"completedAt":null}"#, r#"{"completedAt":null}"#),
            ("[]", "[]"),
            ("}", "}"),
        ] {
            assert_eq!(status_of_submission(&Bytes::from_static(answer.as_bytes())), status);
        }
    }

    #[test]
    fn text_without_the_form_of_an_id_is_no_id() {
        for (id, is_one) in [("\"op_1\"", true), ("\"a/b\"", false), ("\"\"", false), ("1", false), ("null", false)] {
            let job = Job::read(format!(r#"{{"operationId":{id},"status":"PENDING"}}"#).as_bytes()).unwrap();
            assert_eq!(job.id.is_some(), is_one, "{id}");
        }
    }

    #[test]
    fn a_job_that_has_ended_keeps_its_state() {
        use State::{Completed, Expired, Failed, Unfinished};
        for next in [Unfinished, Completed, Failed, Expired] {
            assert!(Unfinished.may_become(next) && next.may_become(next));
        }
        assert!(Completed.may_become(Expired) && !Completed.may_become(Failed) && !Completed.may_become(Unfinished));
        assert!(!Failed.may_become(Completed) && !Failed.may_become(Unfinished) && !Expired.may_become(Completed));
    }

    #[test]
    fn retention_counts_from_the_end_of_the_job() {
        let job = |period: &str, ended: &str| {
            let body = format!(r#"{{"status":"COMPLETED","resultRetentionPeriod":{period},"completedAt":{ended}}}"#);
            let now = "2026-11-22T12:00:00Z".parse::<Timestamp>().unwrap();
            Job::read(body.as_bytes()).unwrap().retained(now.into()).map(|left| left.as_secs())
        };
        const DAY: u64 = 86_400;
        assert_eq!(job("\"P7D\"", "\"2026-11-21T12:00:00Z\""), Some(6 * DAY));
        assert_eq!(job("\"P1W\"", "null"), Some(7 * DAY));
        assert_eq!(job("\"PT36H\"", "\"2026-11-22T13:00:00Z\""), Some(36 * 3600), "its clock is ahead");
        assert_eq!(job("\"P1D\"", "\"2026-11-01T12:00:00Z\""), Some(0));
        assert_eq!([job("\"PT0S\"", "null"), job("\"P0D\"", "null")], [Some(0); 2]);
        for period in ["\"P1M\"", "\"-P1D\"", "\"7 days?\"", "7", "null"] {
            assert_eq!(job(period, "null"), None, "{period}");
        }
    }

    #[test]
    fn the_wait_before_a_poll_is_from_one_to_sixty_seconds() {
        let told = |value: &'static str| {
            let headers = [(header::RETRY_AFTER, HeaderValue::from_static(value))].into_iter().collect();
            poll_after(&headers, SystemTime::UNIX_EPOCH).as_secs()
        };
        for (value, seconds) in [
            ("1", 1),
            ("10", 10),
            (" 60 ", 60),
            ("61", 60),
            ("100000000", 60),
            ("99999999999999999999999", 60),
            ("0", 1),
            ("2.5", 5),
            ("5, 7", 5),
            ("7, 7", 5),
            ("2 s", 5),
            ("Thu, 01 Jan 1970 00:00:07 GMT", 7),
            ("Fri, 02 Jan 1970 00:00:00 GMT", 60),
            ("soon", 5),
            ("-1", 5),
            ("", 5),
        ] {
            assert_eq!(told(value), seconds, "{value}");
        }
        assert_eq!(poll_after(&HeaderMap::new(), SystemTime::UNIX_EPOCH).as_secs(), 5);
    }

    #[test]
    fn several_waits_are_none() {
        let mut headers = HeaderMap::new();
        for value in ["7", "9"] {
            headers.append(header::RETRY_AFTER, HeaderValue::from_static(value));
        }
        assert_eq!(stated_wait(&headers, SystemTime::UNIX_EPOCH), None);
    }

    #[test]
    fn the_ended_jobs_of_a_list_are_read() {
        let body = br#"{"items":[{"operationId":"a","status":"FAILED"},{"operationId":"b","status":"RUNNING"},
            {"operationId":"../c","status":"FAILED"},{"status":"FAILED"},{"operationId":"d"},7,
            {"operationId":"e","status":"COMPLETED"}]}"#;
        assert_eq!(ended_of_list(body), [("a".into(), State::Failed), ("e".into(), State::Completed)]);
        assert!(ended_of_list(b"[]").is_empty() && ended_of_list(b"{").is_empty());
    }

    #[test]
    fn a_list_keeps_own_jobs_and_documented_members_only() {
        let body = br#"{"items":[{"operationId":"a","x":1.0},{"operationId":"b"},{"other":1},7],"total":9,
            "meta":{"key":"items","pageSize":4,"nextToken":"t+","all":4}}"#;
        let left = list_of(body, |id| id == "a").unwrap();
        assert_eq!(
            left,
            r#"{"items":[{"operationId":"a","x":1.0}],"meta":{"key":"items","pageSize":1,"nextToken":"t+"}}"#
        );
        assert_eq!(list_of(br#"{"items":[]}"#, |_| true).unwrap(), r#"{"items":[]}"#);
        assert!(list_of(br#"{"items":{}}"#, |_| true).is_none() && list_of(b"[]", |_| true).is_none());
    }
}
