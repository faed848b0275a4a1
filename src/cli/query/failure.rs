//! Why a query failed, and its exit code.

use std::io;

use super::refusal::RefusedResponse;
use crate::cli::{client, exit};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line, the token or a file is wrong. No request was sent.
    #[error("{0}")]
    Usage(String),
    /// There is no response.
    #[error("{address}: {failure}")]
    Unanswered {
        /// The gateway's address.
        address: String,
        /// Why.
        #[source]
        failure: client::Failure,
    },
    /// The gateway or Twilio refused.
    #[error("{refusal}", refusal = .0.refusal)]
    RefusedResponse(Box<RefusedResponse>),
    /// The response is not what it should be.
    #[error("{0}")]
    Strange(String),
    /// The job ended without results.
    #[error("{0}")]
    Job(String),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    /// The system refuses something that the command needs.
    #[error("cannot start: {0}")]
    Machine(#[source] io::Error),
}

impl Failure {
    /// Whether the reader closed its end, as `head` does. That is not a failure.
    pub(super) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(super) const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Unanswered { .. } | Self::RefusedResponse(_) | Self::Strange(_) | Self::Job(_) => exit::NOT_READY,
            Self::Output(_) | Self::Machine(_) => exit::INTERNAL,
        }
    }
}
