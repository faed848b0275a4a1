//! The end of a flight as bytes, for other replicas.
//!
//! It is like a [`record`](super::record), but is kept for seconds only. It may be a failure, or a response that is not
//! stored. A long body is left out. If that response was stored, the others find it there.

use std::sync::Arc;
use std::time::Duration;

use super::flight::FlightResult;
use super::record::{Reader, put, put_option, put_representation};
use crate::core::error::{GatewayError, Reason};

/// Version of this encoding. Another one is not read.
const VERSION: u8 = 1;

const RESPONSE: u8 = 0;
const FAILURE: u8 = 1;
const TOO_LONG: u8 = 2;

/// The end of a flight, as another replica reads it.
#[derive(Debug)]
pub(crate) enum FlightRecord {
    /// How it ended.
    Ended(FlightResult),
    /// It brought a response that is too long for a record. `is_shared`: the others find it where pages are stored,
    /// soon.
    TooLong { is_shared: bool },
}

/// The bytes of an end whose response is too long.
pub(crate) fn encode_too_long(is_shared: bool) -> Vec<u8> {
    vec![VERSION, is_shared.into(), 0, TOO_LONG]
}

/// The bytes of this end. `None` where a part is longer than anything that the gateway accepts from upstream.
pub(crate) fn encode(finished: &FlightResult) -> Option<Vec<u8>> {
    let mut record = vec![VERSION, finished.stored.into()];
    put_duration(&mut record, finished.age)?;
    match &finished.result {
        Ok(representation) => {
            record.push(RESPONSE);
            put_representation(&mut record, representation)?;
        }
        Err(error) => {
            record.push(FAILURE);
            put(&mut record, error.reason().as_str().as_bytes())?;
            put(&mut record, error.message().as_bytes())?;
            put_duration(&mut record, error.retry_after())?;
        }
    }
    Some(record)
}

/// The end that was written; `None` if the bytes are anything else.
pub(crate) fn decode(record: &[u8]) -> Option<FlightRecord> {
    let mut reader = Reader(record);
    if reader.u8()? != VERSION {
        return None;
    }
    let stored = reader.u8()? == 1;
    let age = duration(&mut reader)?;
    let result = match reader.u8()? {
        RESPONSE => Ok(Arc::new(reader.representation()?)),
        FAILURE => Err(error(&mut reader)?),
        TOO_LONG => return reader.is_empty().then_some(FlightRecord::TooLong { is_shared: stored }),
        _ => return None,
    };
    reader.is_empty().then_some(FlightRecord::Ended(FlightResult { result, stored, age, by_another: true }))
}

fn error(reader: &mut Reader<'_>) -> Option<GatewayError> {
    let word = reader.bytes()?;
    let reason = Reason::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == word)?;
    let error = GatewayError::new(reason, std::str::from_utf8(reader.bytes()?).ok()?);
    Some(match duration(reader)? {
        Some(wait) => error.with_retry_after(wait),
        None => error,
    })
}

fn put_duration(record: &mut Vec<u8>, duration: Option<Duration>) -> Option<()> {
    put_option(record, duration, |record, duration| {
        record.extend_from_slice(&u64::try_from(duration.as_nanos()).ok()?.to_le_bytes());
        Some(())
    })
}

fn duration(reader: &mut Reader<'_>) -> Option<Option<Duration>> {
    reader.option(|reader| reader.u64().map(Duration::from_nanos))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::request::call::UpstreamResponse;
    use crate::request::response::Representation;

    fn response() -> FlightResult {
        let answer = UpstreamResponse {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: r#"{"data":[]}"#.into(),
            next_token: None,
        };
        let result = Ok(Arc::new(Representation::new(answer, &[])));
        FlightResult { result, stored: true, age: Some(Duration::from_secs(3)), by_another: false }
    }

    fn failure() -> FlightResult {
        let error = GatewayError::new(Reason::UpstreamRateLimit, "slower").with_retry_after(Duration::from_secs(7));
        FlightResult { result: Err(error), stored: false, age: None, by_another: false }
    }

    fn read_end(record: &[u8]) -> FlightResult {
        match decode(record) {
            Some(FlightRecord::Ended(finished)) => finished,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let read = read_end(&encode(&response()).unwrap());
        assert!(read.stored && read.by_another && read.age == Some(Duration::from_secs(3)));
        let (page, written) = (read.result.unwrap(), response().result.unwrap());
        assert_eq!(
            (page.status, &page.headers, &page.body, &page.etag),
            (written.status, &written.headers, &written.body, &written.etag)
        );
        let read = read_end(&encode(&failure()).unwrap());
        let error = read.result.unwrap_err();
        let told = (error.reason(), error.message(), error.retry_after());
        assert_eq!(told, (Reason::UpstreamRateLimit, "slower", Some(Duration::from_secs(7))));
        assert!(!read.stored && read.age.is_none());
    }

    #[test]
    fn other_bytes_are_refused() {
        for is_shared in [true, false] {
            let told = decode(&encode_too_long(is_shared));
            assert!(matches!(told, Some(FlightRecord::TooLong { is_shared: read }) if read == is_shared), "{told:?}");
        }
        let ends = [response(), failure()].map(|finished| encode(&finished).unwrap());
        for mut record in ends.into_iter().chain([encode_too_long(true)]) {
            for end in 0..record.len() {
                assert!(decode(&record[..end]).is_none(), "cut at {end}");
            }
            record.push(0);
            assert!(decode(&record).is_none(), "longer");
            record.pop();
            record[0] += 1;
            assert!(decode(&record).is_none(), "another version");
        }
    }
}
