//! Why an upstream attempt failed: one class and one sentence.
//!
//! Only for operators. A cause may name hosts and addresses, so it appears in the log and on the admin plane, never in
//! a response to a client.

use std::fmt;

/// The step that failed, from name resolution to the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CauseKind {
    /// The name has no address.
    Dns,
    /// The connection could not be made, or broke.
    Tcp,
    /// The TLS handshake failed, most likely because of the certificate.
    Tls,
    /// The forward proxy failed or refused.
    Proxy,
    /// There was no connection, or no answer, in time.
    Timeout,
    /// The answer was a 5xx.
    Status,
    /// The answer cannot be used.
    InvalidAnswer,
}

impl CauseKind {
    /// The word with which the text of a cause begins.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "DNS",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Proxy => "proxy",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::InvalidAnswer => "invalid answer",
        }
    }
}

/// Why an attempt failed. Its text is `CLASS: what happened`, for example `TLS: the certificate expired`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The class.
    pub kind: CauseKind,
    /// What happened, in a few words; never a secret.
    pub text: String,
}

impl Cause {
    /// A cause of this class.
    pub fn new(kind: CauseKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.text)
    }
}
