//! Why an attempt upstream failed, in one class and one sentence.
//!
//! For operators: a cause may name hosts and addresses, so it goes to the log and to the admin plane, never to a client.

use std::fmt;

/// What failed, from the name to the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CauseKind {
    /// The name has no address.
    Dns,
    /// No connection, or one that broke.
    Tcp,
    /// The handshake; most likely the certificate.
    Tls,
    /// The forward proxy on the way.
    Proxy,
    /// No connection, or no answer, in time.
    Timeout,
    /// A 5xx.
    Status,
    /// An answer that cannot be used.
    InvalidAnswer,
}

impl CauseKind {
    /// The word that a cause begins with.
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

/// Why an attempt failed. Written as `CLASS: what happened`, such as `TLS: the certificate expired`.
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
