//! One change, and its form in the store.

use crate::replicas::StoreTime;
use crate::replicas::purge_log::PurgeTarget;

/// One change, which all replicas apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Pages were purged.
    Purged(PurgeTarget),
    /// A page was replaced by one that was requested then.
    Replaced { key: [u8; 32], asked: StoreTime },
}

impl Change {
    pub(super) fn write(&self) -> Vec<u8> {
        match self {
            Self::Purged(target) => target.write(),
            Self::Replaced { key, asked } => [&key[..], &asked.0.to_le_bytes()].concat(),
        }
    }

    pub(super) fn read(stream: Stream, bytes: &[u8]) -> Option<Self> {
        Some(match stream {
            Stream::Purged => Self::Purged(PurgeTarget::read(bytes)?),
            Stream::Replaced => {
                let (key, asked) = bytes.split_first_chunk()?;
                Self::Replaced { key: *key, asked: StoreTime(u64::from_le_bytes(asked.try_into().ok()?)) }
            }
        })
    }

    pub(super) fn stream(&self) -> Stream {
        match self {
            Self::Purged(_) => Stream::Purged,
            Self::Replaced { .. } => Stream::Replaced,
        }
    }
}

/// The key of the generation, and of how many entries each stream has ever had. All keys are in one hash slot, so that
/// one script can use them in a cluster.
pub(in crate::replicas) const HEAD: &str = "{changes}";

/// The two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Purged,
    Replaced,
}

impl Stream {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Purged => "{changes}:purged",
            Self::Replaced => "{changes}:replaced",
        }
    }
}
