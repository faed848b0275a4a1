//! What is recorded of a request, and the line that is written for it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method};
use jiff::Timestamp;
use serde::Serialize;

use crate::accounts::Team;
use crate::core::clock::Clock;
use crate::core::escape;
use crate::core::outcome::Outcome;
use crate::core::peer::Peer;
use crate::request::ended::RequestEnded;
use crate::twilio::endpoint::Operation;
use crate::twilio::query::{self, Place, Query};

/// Most names of one kind, and most characters of a name, that are written: the client chooses both.
const MOST_NAMES: usize = 100;
const LONGEST_NAME: usize = 128;

/// The content of a line. It holds the query itself rather than the request's context, so that the query can be dropped
/// where there is no space for it.
#[derive(Debug)]
pub(super) struct Record {
    /// When the request's head was complete.
    pub(super) received: SystemTime,
    /// Its id, which the response also has.
    pub(super) request_id: HeaderValue,
    /// The connection that it came over.
    pub(super) peer: Arc<Peer>,
    /// The team, if it was identified.
    pub(super) team: Option<Arc<Team>>,
    /// The operation, if it was recognised.
    pub(super) operation: Option<Operation>,
    /// Its method.
    pub(super) method: Method,
    /// The query in canonical form, as the client asked it.
    pub(super) query: Option<Bytes>,
    /// How it was answered.
    pub(super) outcome: Outcome,
    /// The HTTP status.
    pub(super) status: u16,
    /// Why the gateway refused or failed; empty where it did not.
    pub(super) reason: &'static str,
    /// Bytes of the response's body.
    pub(super) bytes: u64,
    /// From the request's head to the response's.
    pub(super) took: Duration,
}

#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    request_id: &'a str,
    peer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<&'static str>,
    team: Option<&'a str>,
    account: Option<&'a str>,
    operation: Option<&'static str>,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<Fields>,
    outcome: &'static str,
    status: u16,
    reason: &'static str,
    bytes: u64,
    duration_ms: f64,
}

/// Compact JSON. Characters that are unsafe in a log (see [`escape`]) are escaped.
struct EscapingFormatter;

impl serde_json::ser::Formatter for EscapingFormatter {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut visible = String::new();
        for piece in fragment.split_inclusive(escape::is_unsafe) {
            let (plain, last) = match piece.chars().next_back().filter(|last| escape::is_unsafe(*last)) {
                Some(last) => (&piece[..piece.len() - last.len_utf8()], Some(last)),
                None => (piece, None),
            };
            writer.write_all(plain.as_bytes())?;
            if let Some(last) = last {
                visible.clear();
                escape::write_escaped(&mut visible, last).map_err(io::Error::other)?;
                writer.write_all(visible.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// The names in a query, by the part of the query that they are in.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fields {
    pub(super) measures: Vec<String>,
    pub(super) dimensions: Vec<String>,
    pub(super) filters: Vec<String>,
    pub(super) order_by: Vec<String>,
    /// More names, or longer ones, were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) cut: bool,
}

impl Record {
    pub(super) fn of(request: &RequestEnded, clock: Clock) -> Self {
        let head = &request.context.head;
        Self {
            received: clock.wall(request.received),
            request_id: head.id.clone(),
            peer: Arc::clone(&head.peer),
            team: request.team().cloned(),
            operation: request.operation(),
            method: head.method.clone(),
            query: request.context.query().cloned(),
            outcome: request.outcome,
            status: request.status,
            reason: request.reason(),
            bytes: request.bytes,
            took: request.took(),
        }
    }

    /// Bytes of memory that it uses while it waits.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.query.as_ref().map_or(0, Bytes::len)
    }

    /// Appends its line. If the query was left out (`is_cut`), the line says so in place of the names.
    pub(super) fn write(&self, lines: &mut Vec<u8>, is_cut: bool) {
        let team = self.team.as_deref();
        let line = Line {
            timestamp: Timestamp::try_from(self.received).map_or_else(|_| String::new(), |at| format!("{at:.6}")),
            request_id: self.request_id.to_str().unwrap_or_default(),
            peer: self.peer.as_str(),
            via: self.peer.via(),
            team: team.map(|team| &*team.name),
            account: team.map(|team| &*team.account.name),
            operation: self.operation.map(Operation::as_str),
            method: self.method.as_str(),
            fields: match &self.query {
                Some(query) => Some(Fields::of(query)),
                None => is_cut.then(|| Fields { cut: true, ..Fields::default() }),
            },
            outcome: self.outcome.as_str(),
            status: self.status,
            reason: self.reason,
            bytes: self.bytes,
            duration_ms: (self.took.as_secs_f64() * 1e6).round() / 1e3,
        };
        // Strings and numbers always serialise, and a buffer takes them.
        let _ = line.serialize(&mut serde_json::Serializer::with_formatter(&mut *lines, EscapingFormatter));
        lines.push(b'\n');
    }
}

impl Fields {
    /// Names in a query body. A body that is not a query has none.
    pub(super) fn of(query: &[u8]) -> Self {
        let mut fields = Self::default();
        let Ok(body) = query::parse(query) else { return fields };
        let Ok(query) = Query::read(&body) else { return fields };
        let Self { measures, dimensions, filters, order_by, cut } = &mut fields;
        query.visit_names(|place, name| {
            let list = match place {
                Place::Measure => &mut *measures,
                Place::Dimension => &mut *dimensions,
                Place::Filter => &mut *filters,
                Place::Order => &mut *order_by,
            };
            *cut |= !add(list, name);
        });
        fields
    }
}

/// Adds a name unless it is there. `false` if there are too many, or if the name had to be shortened.
fn add(list: &mut Vec<String>, name: &str) -> bool {
    let end = name.char_indices().nth(LONGEST_NAME).map_or(name.len(), |(end, _)| end);
    let short = &name[..end];
    if !list.iter().any(|known| known == short) {
        if list.len() == MOST_NAMES {
            return false;
        }
        list.push(short.to_owned());
    }
    end == name.len()
}
