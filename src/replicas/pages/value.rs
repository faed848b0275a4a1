//! The value under the key of a page.
//!
//! `stamp · sealed(kind · gzip(record))`. The stamp is the time of the page's request. The store's scripts compare it,
//! so that an older page never replaces a newer one. It is authenticated like all else. The times in the record are on
//! the shared clock.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::StatusCode;

use crate::accounts::AccountId;
use crate::cache::record::{self, ClockSnapshot, Nanos};
use crate::cache::sets::ResultSet;
use crate::cache::stored::StoredResponse;
use crate::replicas::seal::{Context, Sealer};
use crate::replicas::{LONGEST_BODY, StoreTime};
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::twilio::endpoint::Operation;

/// The longest value that is put into the store, or taken from there: more than the longest body, if that cannot be
/// compressed, and its headers.
pub(super) const MOST_BYTES: usize = LONGEST_BODY + 1024 * 1024;
/// The longest record that is packed or unpacked.
const MOST_UNPACKED: u64 = 64 * 1024 * 1024;

/// The kind of these values.
pub(super) const KIND: &str = "page";

const PAGE: u8 = 0;
const PLACE: u8 = 1;

/// The content of such a value.
#[derive(Debug)]
pub(super) enum PageValue {
    /// A response.
    Page(StoredResponse),
    /// The result set that a page will belong to when it is fetched: the page before it names it.
    Place(ResultSet),
}

/// The digits of a stamp: microseconds since 1970.
pub(super) const STAMP: usize = 16;

/// A time as the scripts compare it.
pub(super) fn stamp(time: StoreTime) -> String {
    format!("{:0STAMP$}", time.0)
}

/// Seals and opens the value of one page.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageSealer<'b> {
    pub(super) sealer: &'b Sealer,
    /// The SID.
    pub(super) account: &'b str,
    /// The name of the key in the store.
    pub(super) name: &'b str,
    pub(super) key: &'b Key,
}

impl PageSealer<'_> {
    fn context<'c>(&'c self, stamp: &'c [u8]) -> Context<'c> {
        Context { kind: KIND, account: self.account, key: self.name, bound: stamp }
    }

    /// The value's bytes, and when they are of no more use. `None` if it is too long.
    pub(super) fn seal(&self, value: &PageValue, asked: StoreTime, clocks: &ClockSnapshot) -> Option<(Vec<u8>, Nanos)> {
        let placeholder;
        let (kind, stored) = match value {
            PageValue::Page(stored) => (PAGE, stored),
            PageValue::Place(result_set) => {
                placeholder = place(*result_set, *self.key);
                (PLACE, &placeholder)
            }
        };
        let mut record = Vec::new();
        record::encode(self.key, stored, clocks, &mut record)?;
        if record.len() as u64 > MOST_UNPACKED {
            return None;
        }
        let mut packed = vec![kind];
        // Each page is packed once and unpacked by few: what counts is the time until another replica can find it.
        let mut encoder = GzEncoder::new(&mut packed, Compression::fast());
        encoder.write_all(&record).ok()?;
        encoder.finish().ok()?;
        let mut bytes = stamp(asked).into_bytes();
        let sealed = self.sealer.seal(&self.context(&bytes), &packed).ok()?;
        bytes.extend_from_slice(&sealed);
        (bytes.len() <= MOST_BYTES).then(|| (bytes, record::expiry(stored, clocks)))
    }

    /// Opens such bytes. `None` if they are anything else.
    pub(super) fn open(&self, bytes: &[u8], clocks: &ClockSnapshot) -> Option<(PageValue, StoreTime)> {
        let (stamp, sealed) = bytes.split_at_checked(STAMP)?;
        let asked = StoreTime(std::str::from_utf8(stamp).ok()?.parse().ok()?);
        let packed = self.sealer.open(&self.context(stamp), sealed)?;
        let (kind, packed) = packed.split_first()?;
        let mut record = Vec::new();
        GzDecoder::new(packed).take(MOST_UNPACKED + 1).read_to_end(&mut record).ok()?;
        let stored = record::decode(self.key, &record, clocks)?;
        // A page from the future has an age that nobody knows: its writer knew another clock.
        let is_past = record::head(&record)?.fetched <= clocks.now() && asked.0.saturating_mul(1000) <= clocks.now();
        let value = match *kind {
            PAGE => PageValue::Page(stored),
            PLACE => PageValue::Place(stored.result_set?),
            _ => return None,
        };
        is_past.then_some((value, asked))
    }
}

/// A result set in the form of a record.
fn place(result_set: ResultSet, key: Key) -> StoredResponse {
    let representation = Representation {
        status: StatusCode::NO_CONTENT,
        headers: Vec::new(),
        body: Bytes::new(),
        etag: None,
        no_transform: false,
    };
    StoredResponse {
        representation: Arc::new(representation),
        // Nobody reads it.
        account: AccountId([0; 16]),
        operation: Operation::Page,
        made: result_set.begun,
        lifetimes: result_set.lifetimes,
        place: key,
        result_set: Some(result_set),
        next: None,
        settled: None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::clock::Moment;

    #[test]
    fn the_longest_body_fits_even_if_it_cannot_be_compressed() {
        let mut body = vec![0; LONGEST_BODY];
        fastrand::fill(&mut body);
        let (key, sealer) = (Key::from_bytes([1; 32]), Sealer::default());
        let stored = StoredResponse::example(key, Moment::from_nanos(0), Duration::from_secs(60));
        let representation = Arc::new(stored.representation.with_body(body.clone().into()));
        let clocks = ClockSnapshot::at(1_800_000_000_000_000_000, Moment::from_nanos(0));
        let page_sealer = PageSealer { sealer: &sealer, account: "AC1", name: "name", key: &key };
        let value = PageValue::Page(StoredResponse { representation, ..stored });
        let (bytes, _) = page_sealer.seal(&value, StoreTime(1_700_000_000_000_000), &clocks).unwrap();
        match page_sealer.open(&bytes, &clocks) {
            Some((PageValue::Page(read), _)) => assert!(read.representation.body == body),
            other => panic!("{other:?}"),
        }
    }
}
