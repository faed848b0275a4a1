//! Content codings of responses (RFC 9110 section 8.4): only gzip and identity.
//!
//! A body is decoded before any other check, so that the checks see what a client would read. A body that does not
//! match its coding is an error: the gateway does not guess, and passes no coded byte on. The decoded size is limited
//! here; the caller limits the coded size.

use std::io::{self, Read};

use bytes::Bytes;
use bytes::buf::{Buf, Reader};
use flate2::bufread::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, header};

/// The codings that the upstream is asked for.
pub(super) const ACCEPTED: HeaderValue = HeaderValue::from_static("gzip");

/// Bytes that are decoded at once, which takes about 50 µs. The rest of a larger body is decoded on a blocking thread.
const ON_THE_SPOT: u64 = 64 << 10;

/// A body with more coded bytes than this is decoded on a blocking thread too: empty gzip members take 2 ms at worst.
const CODED_ON_THE_SPOT: usize = 16 << 10;

/// How a body is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
}

/// Why a body cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodingError {
    #[error("it is coded in a way that was not asked for")]
    Unknown,
    #[error("its Content-Encoding is gzip, but its bytes are not")]
    Broken(#[source] io::Error),
    #[error("it is larger than upstream.max_response when it is decoded")]
    TooLarge,
}

impl Coding {
    /// The coding that a response's head states. A body with two codings is refused, even if both are the same.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, CodingError> {
        let mut coding = Self::Identity;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            let list = value.to_str().map_err(|_| CodingError::Unknown)?;
            for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                coding = match coding {
                    coding if word.eq_ignore_ascii_case("identity") => coding,
                    // RFC 9110 section 8.4.1.3: both names mean the same coding.
                    Self::Identity if word.eq_ignore_ascii_case("gzip") || word.eq_ignore_ascii_case("x-gzip") => {
                        Self::Gzip
                    }
                    _ => return Err(CodingError::Unknown),
                };
            }
        }
        Ok(coding)
    }

    /// The decoded body, at most `limit` bytes.
    pub(super) async fn decode(self, body: Bytes, limit: u64) -> Result<Bytes, CodingError> {
        if self == Self::Identity {
            return Ok(body);
        }
        let is_long = body.len() > CODED_ON_THE_SPOT;
        let mut decoding = Decoding { coded: MultiGzDecoder::new(body.reader()), plain: Vec::new(), limit };
        if !is_long && decoding.advance(ON_THE_SPOT)? {
            return Ok(decoding.end());
        }
        let rest = tokio::task::spawn_blocking(move || decoding.advance(u64::MAX).map(|_| decoding.end()));
        // Only a runtime that shuts down, or a panic, can stop it.
        rest.await.unwrap_or_else(|error| Err(CodingError::Broken(error.into())))
    }
}

struct Decoding {
    /// Decodes all members of a gzip file (RFC 1952 section 2.2). Other bytes after the last member are an error.
    coded: MultiGzDecoder<Reader<Bytes>>,
    plain: Vec<u8>,
    limit: u64,
}

impl Decoding {
    /// Decodes up to `most` further bytes; `true` at the end.
    fn advance(&mut self, most: u64) -> Result<bool, CodingError> {
        let left = (self.limit - self.plain.len() as u64).saturating_add(1);
        let step = left.min(most);
        let read = (&mut self.coded).take(step).read_to_end(&mut self.plain).map_err(CodingError::Broken)?;
        match () {
            () if self.plain.len() as u64 > self.limit => Err(CodingError::TooLarge),
            () => Ok((read as u64) < step),
        }
    }

    /// The result in a buffer of its own size, because it is kept for long.
    fn end(mut self) -> Bytes {
        self.plain.shrink_to_fit();
        self.plain.into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn of(values: &[&'static str]) -> Result<Coding, CodingError> {
        let pair = |value: &&'static str| (header::CONTENT_ENCODING, HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        for (name, value) in values.iter().map(pair) {
            headers.append(name, value);
        }
        Coding::of(&headers)
    }

    async fn decoded(coded: &[u8], limit: u64) -> Result<Bytes, CodingError> {
        Coding::Gzip.decode(Bytes::copy_from_slice(coded), limit).await
    }

    #[test]
    fn gzip_and_identity_are_recognised_by_all_their_names() {
        for identity in [&[][..], &["identity"], &["IDENTITY"], &[""], &[" , "], &["identity", "identity"]] {
            assert_eq!(of(identity).unwrap(), Coding::Identity, "{identity:?}");
        }
        for gzip in [&["gzip"][..], &["GZip"], &["x-gzip"], &["identity, gzip"], &["gzip", "identity"], &[",gzip,"]] {
            assert_eq!(of(gzip).unwrap(), Coding::Gzip, "{gzip:?}");
        }
        for other in [
            &["br"][..],
            &["deflate"],
            &["zstd, gzip"],
            &["gzip, gzip"],
            &["gzip", "x-gzip"],
            &["gzip, br"],
            &["gzip;q=1"],
            &["g zip"],
            &["nonsense"],
        ] {
            assert!(matches!(of(other), Err(CodingError::Unknown)), "{other:?}");
        }
        let latin = HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_bytes(b"gzip\xe9").unwrap())]);
        assert!(Coding::of(&latin).is_err());
    }

    #[tokio::test]
    async fn small_and_large_bodies_are_decoded_completely() {
        for length in [0, 1, 1000, ON_THE_SPOT - 1, ON_THE_SPOT, ON_THE_SPOT + 1, 3 * ON_THE_SPOT] {
            let plain: Vec<u8> = (0..length).map(|n| (n * 7 % 251) as u8).collect();
            assert_eq!(decoded(&gzip(&plain), length).await.unwrap(), plain, "{length}");
            if length > 0 {
                assert!(matches!(decoded(&gzip(&plain), length - 1).await, Err(CodingError::TooLarge)), "{length}");
            }
        }
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(200_000).collect();
        assert_eq!(decoded(&gzip(&noise), 1 << 20).await.unwrap(), noise);
        assert_eq!(Coding::Identity.decode(Bytes::from_static(b"{}"), 1).await.unwrap(), "{}", "limited by the caller");
    }

    #[tokio::test]
    async fn several_members_are_one_body_and_share_its_limit() {
        let members: Vec<u8> = (0..3).flat_map(|n| gzip(&[b'0' + n; 1000])).collect();
        assert_eq!(decoded(&members, 3000).await.unwrap().len(), 3000);
        assert!(matches!(decoded(&members, 2999).await, Err(CodingError::TooLarge)));
        let empty = gzip(b"").repeat(10_000);
        assert_eq!(decoded(&empty, 10).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_that_is_not_entirely_gzip_is_refused() {
        let whole = gzip(b"{\"data\":[]}");
        for end in 0..whole.len() {
            assert!(matches!(decoded(&whole[..end], 1000).await, Err(CodingError::Broken(_))), "{end}");
        }
        let checksum = whole.len() - 8;
        for at in [0, 1, 2, checksum, checksum + 4] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(decoded(&damaged, 1000).await.is_err(), "{at}");
        }
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflate.write_all(b"{}").unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(b"{}").unwrap();
        for other in [
            b"{}".to_vec(),
            deflate.finish().unwrap(),
            zlib.finish().unwrap(),
            [&whole[..], b"{}"].concat(),
            [&whole[..], b"\0\0\0\0"].concat(),
            [&whole[..], &whole[..9]].concat(),
        ] {
            assert!(matches!(decoded(&other, 1000).await, Err(CodingError::Broken(_))), "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_gzip_bomb_is_stopped_at_the_limit() {
        let bomb = gzip(&vec![b' '; 64 << 20]);
        assert!(matches!(decoded(&bomb, 1 << 20).await, Err(CodingError::TooLarge)));
        // Small enough to be decoded at once, and larger than the limit.
        let firecracker = gzip(&vec![b' '; 32 << 10]);
        assert!(matches!(decoded(&firecracker, 1 << 10).await, Err(CodingError::TooLarge)));
    }
}
