//! `GET /events`: live events, as server-sent events (HTML, section 9.2).
//!
//! The first event is a `snapshot` with the content of `/status`. Then there is a `request` at the end of each request,
//! and an `account` and the `health` whenever they have changed. A stream ends when the gateway drains, and when the
//! token or session that opened it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::access::Access;
use super::answer::{of, refuse};
use super::state::AdminState;
use crate::live::{Listener, LiveEvent, frame};
use crate::request::body::ResponseBody;

/// The most streams at one time.
pub(super) const STREAMS: usize = 16;

/// How often accounts and health are compared with what was sent last.
const LOOK: Duration = Duration::from_secs(1);

/// How often a comment is sent, so that no proxy closes the stream as idle.
const COMMENT: Duration = Duration::from_secs(15);

/// The most events that are sent in one chunk.
const TOGETHER: usize = 64;

impl AdminState {
    pub(super) fn events(self: &Arc<Self>, access: Access) -> Response<ResponseBody> {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            let message =
                format!("{STREAMS} streams of events are open, and no more are allowed; close one, or come back later");
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, &message);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            return response;
        };
        let events = Events::begin(Arc::clone(self), access, place);
        let body = stream::unfold(events, |mut events| async move {
            let next = events.next().await?;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(next)), events))
        });
        let content_type = HeaderValue::from_static("text/event-stream");
        let mut response = of(StatusCode::OK, content_type, ResponseBody::stream(StreamBody::new(body)));
        // A proxy in front that buffers responses would delay events.
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

/// One stream.
struct Events {
    admin: Arc<AdminState>,
    access: Access,
    listener: Listener,
    /// What was last sent about each account, and about the health.
    accounts: HashMap<String, Value>,
    health: Value,
    look: Interval,
    comment: Interval,
    first: bool,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Events {
    fn begin(admin: Arc<AdminState>, access: Access, place: OwnedSemaphorePermit) -> Self {
        let listener = admin.shared.live.listen();
        let every = |period| {
            let mut interval = interval_at(admin.shared.clock.now() + period, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (look, comment) = (every(LOOK), every(COMMENT));
        let (accounts, health) = (HashMap::new(), Value::Null);
        Self { admin, access, listener, accounts, health, look, comment, first: true, ended: false, _place: place }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if std::mem::take(&mut self.first) {
            let status = self.admin.status();
            self.remember(&status);
            return Some(frame("snapshot", &status));
        }
        loop {
            let admin = Arc::clone(&self.admin);
            tokio::select! {
                biased;
                () = admin.shared.draining.begun() => {
                    self.ended = true;
                    return Some(self.changes().unwrap_or_else(|| Bytes::from_static(b": the gateway drains\n\n")));
                }
                _ = self.look.tick() => {
                    if !self.admin.is_still_granted(self.access) {
                        return None;
                    }
                    if let Some(changes) = self.changes() {
                        return Some(changes);
                    }
                }
                _ = self.comment.tick() => return Some(Bytes::from_static(b": still here\n\n")),
                heard = self.listener.hear() => return Some(match heard {
                    LiveEvent::Event(first) => self.together(first),
                    LiveEvent::Lost(lost) => frame("lost", &json!({"events": lost})),
                }),
            }
        }
    }

    /// This event and those that are already waiting, as one chunk.
    fn together(&mut self, first: Bytes) -> Bytes {
        let Some(second) = self.listener.heard() else { return first };
        let mut all = BytesMut::from(first);
        all.extend_from_slice(&second);
        for _ in 2..TOGETHER {
            let Some(next) = self.listener.heard() else { break };
            all.extend_from_slice(&next);
        }
        all.freeze()
    }

    /// The accounts and the health that have changed since they were last sent.
    fn changes(&mut self) -> Option<Bytes> {
        let status = self.admin.status();
        let mut said = BytesMut::new();
        for account in status["accounts"].as_array().into_iter().flatten() {
            let name = account["name"].as_str().unwrap_or_default();
            if self.accounts.get(name) != Some(account) {
                said.extend_from_slice(&frame("account", account));
            }
        }
        if health(&status) != self.health {
            said.extend_from_slice(&frame("health", &health(&status)));
        }
        self.remember(&status);
        (!said.is_empty()).then(|| said.freeze())
    }

    fn remember(&mut self, status: &Value) {
        let accounts = status["accounts"].as_array().into_iter().flatten();
        let named = |account: &Value| Some((account["name"].as_str()?.to_owned(), account.clone()));
        self.accounts = accounts.filter_map(named).collect();
        self.health = health(status);
    }
}

/// The overall state, and the checks.
fn health(status: &Value) -> Value {
    let of = |member: &str| (member.to_owned(), status[member].clone());
    ["state", "ready", "checks", "configuration"].into_iter().map(of).collect::<serde_json::Map<_, _>>().into()
}
