//! One stored response as bytes, for any tier outside this process.
//!
//! The encoding is written by hand, and has about twenty fields. Its decoder must survive any input. It borrows from
//! the input, and checks every length against the bytes that are left. So no input makes it panic, or allocate more
//! than the input's own size. A BLAKE3 hash over version, key and fields comes first. So a record that has a wrong key,
//! is cut short, or has one bit changed is refused.
//!
//! Every moment is written twice: as wall time, and as time since boot with the boot's id. Other machines and later
//! boots understand wall time. Nobody can set the time since boot. The request, its caller and its credentials are not
//! in the record. Of the account it has only the hash of SID and origin.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::sets::ResultSet;
use super::stored::StoredResponse;
use crate::accounts::AccountId;
use crate::core::clock::{Clock, Moment};
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::settled::Verdict;

/// Version of this encoding. A file of another version is not read.
pub(crate) const VERSION: u8 = 4;

const HASH: usize = blake3::OUT_LEN;

/// Their order is the encoding: append only, or increase [`VERSION`].
const OPERATIONS: [Operation; 9] = [
    Operation::Metadata,
    Operation::Query,
    Operation::Page,
    Operation::JobSubmit,
    Operation::JobList,
    Operation::JobStatus,
    Operation::JobResults,
    Operation::FieldsRead,
    Operation::FieldsWrite,
];

/// As with [`OPERATIONS`].
const VERDICTS: [Verdict; 9] = [
    Verdict::Settled,
    Verdict::NoUpperBound,
    Verdict::OrGroup,
    Verdict::NotATimeDimension,
    Verdict::Recent,
    Verdict::UnknownValue,
    Verdict::UnknownZone,
    Verdict::UnknownShape,
    Verdict::NoMetadata,
];

/// Wall time as it is written: nanoseconds since 1970.
pub(crate) type Nanos = u64;

/// Which boot of the machine this is; 0 where that is not known.
pub(crate) type Boot = u128;

/// One reading of all clocks. It converts between the time since boot, which ends with the boot, and wall time, which
/// goes on but can be set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockSnapshot {
    wall: Nanos,
    moment: Moment,
    boot: Boot,
}

impl ClockSnapshot {
    pub(crate) fn read(clock: Clock, boot: Boot) -> Self {
        let wall = clock.wall_now().duration_since(UNIX_EPOCH).map_or(0, nanos);
        Self { wall, moment: clock.moment(), boot }
    }

    /// One on which it is `wall` at this `moment`. It knows no boots: all moments are converted by the wall time alone,
    /// which may be another machine's.
    pub(crate) fn at(wall: Nanos, moment: Moment) -> Self {
        Self { wall, moment, boot: 0 }
    }

    pub(crate) fn now(&self) -> Nanos {
        self.wall
    }

    /// The wall time of a moment of this boot.
    pub(crate) fn nanos(&self, moment: Moment) -> Nanos {
        let (ago, ahead) = (nanos(self.moment.since(moment)), nanos(moment.since(self.moment)));
        self.wall.saturating_sub(ago).saturating_add(ahead)
    }

    /// The moment that was written. Within one boot the time since boot counts as well as the wall time, which may have
    /// been set meanwhile. The earlier of the two holds, because a response must never seem younger than it is.
    fn moment(&self, written: WrittenMoment) -> Moment {
        let (ago, ahead) = (self.wall.saturating_sub(written.wall), written.wall.saturating_sub(self.wall));
        let by_wall = self.moment.before(Duration::from_nanos(ago)).after(Duration::from_nanos(ahead));
        match written.boot == self.boot && self.boot != 0 {
            true => by_wall.min(written.moment),
            false => by_wall,
        }
    }
}

/// A moment on both clocks, as it is written.
#[derive(Debug, Clone, Copy)]
struct WrittenMoment {
    wall: Nanos,
    moment: Moment,
    boot: Boot,
}

fn nanos(duration: Duration) -> Nanos {
    // A `u64` holds 584 years, which is enough.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The part of a record that a purge needs, read without the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) fetched: Nanos,
    pub(crate) operation: Operation,
    pub(crate) account: AccountId,
    /// The first page of its result set.
    pub(crate) first: Option<[u8; 32]>,
}

/// When a response can no longer be served.
pub(crate) fn expiry(stored: &StoredResponse, clocks: &ClockSnapshot) -> Nanos {
    clocks.nanos(stored.made).saturating_add(nanos(stored.lifetimes.usable()))
}

/// Writes the record of a page into `record`, replacing its content. `None` where a part is longer than anything that
/// the gateway accepts from upstream.
pub(crate) fn encode(key: &Key, stored: &StoredResponse, clocks: &ClockSnapshot, record: &mut Vec<u8>) -> Option<()> {
    let page = &stored.representation;
    record.clear();
    record.reserve(page.body.len() + 512);
    record.push(VERSION);
    record.extend_from_slice(&[0; HASH]);
    // The head.
    record.extend_from_slice(&clocks.nanos(stored.made).to_le_bytes());
    record.push(code(&OPERATIONS, stored.operation)?);
    record.extend_from_slice(&stored.account.0);
    put_option(record, stored.result_set, |record, result_set| {
        record.extend_from_slice(result_set.first.as_bytes());
        record.extend_from_slice(&result_set.id.to_le_bytes());
        put_moment(record, result_set.begun, clocks);
        put_lifetimes(record, result_set.lifetimes);
        Some(())
    })?;
    // The rest.
    record.extend_from_slice(&clocks.boot.to_le_bytes());
    record.extend_from_slice(&stored.made.nanos().to_le_bytes());
    put_lifetimes(record, stored.lifetimes);
    record.extend_from_slice(stored.place.as_bytes());
    put_option(record, stored.next, |record, next| {
        record.extend_from_slice(next.as_bytes());
        Some(())
    })?;
    put_option(record, stored.settled, |record, verdict| {
        record.push(code(&VERDICTS, verdict)?);
        Some(())
    })?;
    put_representation(record, page)?;
    let hash = hash(key, &record[1 + HASH..]);
    record[1..1 + HASH].copy_from_slice(&hash);
    Some(())
}

/// The page of a record that was written under `key`; `None` if the bytes are anything else.
pub(crate) fn decode(key: &Key, record: &[u8], clocks: &ClockSnapshot) -> Option<StoredResponse> {
    let (hashed, fields) = fields(record)?;
    (hash(key, fields) == *hashed).then_some(())?;
    read_stored(fields, clocks)
}

/// The head of a record. Its hash is not checked, because that would require to read the whole page.
pub(crate) fn head(record: &[u8]) -> Option<RecordHead> {
    let (_, fields) = fields(record)?;
    let mut reader = Reader(fields);
    Some(read_head(&mut reader)?.0)
}

fn hash(key: &Key, fields: &[u8]) -> [u8; HASH] {
    blake3::Hasher::new().update(&[VERSION]).update(key.as_bytes()).update(fields).finalize().into()
}

fn fields(record: &[u8]) -> Option<(&[u8; HASH], &[u8])> {
    let (version, rest) = record.split_first()?;
    if *version != VERSION {
        return None;
    }
    rest.split_first_chunk()
}

struct SavedResultSet {
    first: [u8; 32],
    id: u64,
    begun: (Nanos, Moment),
    lifetimes: Lifetimes,
}

fn read_head(reader: &mut Reader<'_>) -> Option<(RecordHead, Option<SavedResultSet>)> {
    let fetched = reader.u64()?;
    let operation = *OPERATIONS.get(usize::from(reader.u8()?))?;
    let account = AccountId(*reader.array()?);
    let result_set = reader.option(|reader| {
        let (first, id) = (*reader.array()?, reader.u64()?);
        Some(SavedResultSet { first, id, begun: (reader.u64()?, reader.moment()?), lifetimes: reader.lifetimes()? })
    })?;
    let first = result_set.as_ref().map(|result_set| result_set.first);
    Some((RecordHead { fetched, operation, account, first }, result_set))
}

pub(crate) fn read_stored(fields: &[u8], clocks: &ClockSnapshot) -> Option<StoredResponse> {
    let mut reader = Reader(fields);
    let (RecordHead { fetched, operation, account, .. }, result_set) = read_head(&mut reader)?;
    let boot = u128::from_le_bytes(*reader.array()?);
    let made = clocks.moment(WrittenMoment { wall: fetched, moment: reader.moment()?, boot });
    let result_set = result_set.map(|SavedResultSet { first, id, begun: (wall, moment), lifetimes }| {
        let begun = clocks.moment(WrittenMoment { wall, moment, boot });
        ResultSet { first: Key::from_bytes(first), id, begun, lifetimes }
    });
    let lifetimes = reader.lifetimes()?;
    let place = Key::from_bytes(*reader.array()?);
    let next = reader.option(|reader| reader.array().copied().map(Key::from_bytes))?;
    let settled = reader.option(|reader| VERDICTS.get(usize::from(reader.u8()?)).copied())?;
    let representation = Arc::new(reader.representation()?);
    if !reader.is_empty() {
        return None;
    }
    Some(StoredResponse { representation, account, operation, made, lifetimes, place, result_set, next, settled })
}

fn code<T: PartialEq>(all: &[T], one: T) -> Option<u8> {
    all.iter().position(|other| *other == one).and_then(|at| u8::try_from(at).ok())
}

pub(super) fn put_representation(record: &mut Vec<u8>, page: &Representation) -> Option<()> {
    record.extend_from_slice(&page.status.as_u16().to_le_bytes());
    put_option(record, page.etag.as_ref(), |record, etag| put(record, etag.as_bytes()))?;
    record.extend_from_slice(&u16::try_from(page.headers.len()).ok()?.to_le_bytes());
    for (name, value) in &page.headers {
        put(record, name.as_str().as_bytes())?;
        put(record, value.as_bytes())?;
    }
    put(record, &page.body)
}

pub(super) fn put(record: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    record.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
    record.extend_from_slice(bytes);
    Some(())
}

pub(super) fn put_option<T>(
    record: &mut Vec<u8>,
    value: Option<T>,
    write: impl FnOnce(&mut Vec<u8>, T) -> Option<()>,
) -> Option<()> {
    record.push(value.is_some().into());
    value.map_or(Some(()), |value| write(record, value))
}

fn put_moment(record: &mut Vec<u8>, moment: Moment, clocks: &ClockSnapshot) {
    record.extend_from_slice(&clocks.nanos(moment).to_le_bytes());
    record.extend_from_slice(&moment.nanos().to_le_bytes());
}

fn put_lifetimes(record: &mut Vec<u8>, lifetimes: Lifetimes) {
    for part in [lifetimes.fresh, lifetimes.stale_while_revalidate, lifetimes.stale_if_error] {
        record.extend_from_slice(&nanos(part).to_le_bytes());
    }
}

/// Takes fields from the front of what is left.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(array)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| *byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(|bytes| u16::from_le_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn moment(&mut self) -> Option<Moment> {
        self.array().map(|bytes| Moment::from_nanos(i64::from_le_bytes(*bytes)))
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(*self.array()?);
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    /// `None`: the value cannot be read. `Some(None)`: it is absent.
    pub(super) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }

    pub(super) fn representation(&mut self) -> Option<Representation> {
        let status = StatusCode::from_u16(self.u16()?).ok()?;
        let etag = self.option(|reader| HeaderValue::from_bytes(reader.bytes()?).ok())?;
        let mut headers = Vec::new();
        for _ in 0..self.u16()? {
            let name = HeaderName::from_bytes(self.bytes()?).ok()?;
            headers.push((name, HeaderValue::from_bytes(self.bytes()?).ok()?));
        }
        let body = Bytes::copy_from_slice(self.bytes()?);
        let no_transform = Representation::forbids_transforms(&headers);
        Some(Representation { status, no_transform, headers, body, etag })
    }

    /// Whether all fields were read.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn lifetimes(&mut self) -> Option<Lifetimes> {
        let mut part = || self.u64().map(Duration::from_nanos);
        Some(Lifetimes { fresh: part()?, stale_while_revalidate: part()?, stale_if_error: part()? })
    }
}
