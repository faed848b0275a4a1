//! The end of a request: one event for everything that counts, logs or exports requests.

use std::sync::Arc;
use std::time::Duration;

use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::outcome::Outcome;
use crate::request::context::RequestContext;
use crate::twilio::endpoint::Operation;

/// A request was answered, or its client has left. Clones share the context.
#[derive(Debug, Clone)]
pub struct RequestEnded {
    /// What is known of it.
    pub context: Arc<RequestContext>,
    /// When its head was complete.
    pub received: Instant,
    /// When the head of its response was complete, or when its client left.
    pub ended: Instant,
    /// How it was answered.
    pub outcome: Outcome,
    /// The HTTP status, or [`RequestEnded::CLIENT_LEFT`].
    pub status: u16,
    /// Bytes of the response's body; 0 where their number is not known in advance.
    pub bytes: u64,
    /// Whether it is exported as a trace.
    pub is_traced: bool,
}

impl RequestEnded {
    /// The status of a request whose client left before the response, as nginx writes it. No client ever sees it.
    pub const CLIENT_LEFT: u16 = 499;

    /// From the request's head to the response's.
    pub fn took(&self) -> Duration {
        self.ended - self.received
    }

    /// The team, if it was identified.
    pub fn team(&self) -> Option<&Arc<Team>> {
        self.context.team.get()
    }

    /// The operation, if it was recognised.
    pub fn operation(&self) -> Option<Operation> {
        self.context.operation.get()
    }

    /// Why the gateway refused or failed; `client_left`; or empty.
    pub fn reason(&self) -> &'static str {
        match self.context.reason.get() {
            Some(reason) => reason.as_str(),
            None if self.status == Self::CLIENT_LEFT => "client_left",
            None => "",
        }
    }
}

/// Told of every request's end. The list of subscribers is fixed when the stack is built.
pub trait RequestSubscriber: Send + Sync {
    /// A request has ended. Called on the task that answered it, so this must not block.
    fn ended(&self, request: &RequestEnded);

    /// Whether [`RequestContext::query`] has to be kept for this subscriber.
    fn reads_query(&self) -> bool {
        false
    }
}
