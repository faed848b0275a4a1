//! Receives the whole body of a request.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_immediate;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::bodies::{BodyMemoryFull, BodyReservation};
use crate::core::error::{GatewayError, Reason};

/// How much is read, and how long a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body in bytes.
    pub max_body: u64,
    /// Time limit for the complete body.
    pub body_timeout: Duration,
    /// Time limit for the whole request, from its arrival. `Prefer: wait` can only shorten it.
    pub deadline: Duration,
}

/// The error of a body for which there is no memory.
pub(super) fn too_many(_: BodyMemoryFull) -> GatewayError {
    let message = "too many large request bodies are held at once; come back shortly";
    GatewayError::new(Reason::Overloaded, message).with_retry_after(Duration::from_secs(1))
}

/// The whole body, within the limits of its size, its time and the memory of all bodies.
pub(super) async fn collect<B>(
    body: B,
    limits: Limits,
    reservation: &mut BodyReservation,
) -> Result<Bytes, GatewayError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let message = format!("the request body is larger than {} bytes; ask for less at once", limits.max_body);
        GatewayError::new(Reason::BodyTooLarge, message)
    };
    if body.size_hint().lower() > limits.max_body {
        return Err(too_large());
    }
    let limit = usize::try_from(limits.max_body).unwrap_or(usize::MAX);
    let body = std::pin::pin!(body);
    let mut whole = std::pin::pin!(whole(Limited::new(reservation.count(body), limit)));
    // Nearly every body has arrived with its head, and a timer would cost more than reading it.
    let taken = match poll_immediate(whole.as_mut()).await {
        Some(taken) => Ok(taken),
        None => Box::pin(tokio::time::timeout(limits.body_timeout, whole)).await,
    };
    match taken {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.is::<BodyMemoryFull>() => Err(too_many(BodyMemoryFull)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) if error.is::<TooManyPieces>() => Err(GatewayError::new(
            Reason::BadRequest,
            "the request body comes in too many small pieces; send larger ones",
        )),
        Ok(Err(_)) => Err(GatewayError::new(Reason::BadRequest, "the request body ended before it was complete")),
        Err(_) => Err(GatewayError::new(
            Reason::ClientTimeout,
            format!("the request body took longer than {} s", limits.body_timeout.as_secs()),
        )),
    }
}

/// A body as one piece. Most have only one piece, which is not copied. The pieces of others are copied as they arrive,
/// because each keeps more memory than its own bytes.
async fn whole<B>(body: B) -> Result<Bytes, BoxError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let first = match body.frame().await {
        Some(frame) => frame.map_err(Into::into)?.into_data().unwrap_or_default(),
        None => return Ok(Bytes::new()),
    };
    if body.is_end_stream() {
        return Ok(first);
    }
    let (mut whole, mut pieces) = (first.to_vec(), 1);
    drop(first);
    while let Some(frame) = body.frame().await {
        // Trailers are not used.
        let Ok(piece) = frame.map_err(Into::into)?.into_data() else { continue };
        whole.extend_from_slice(&piece);
        pieces += 1;
        if pieces > MANY_PIECES && whole.len() / pieces < LEAST_PIECE {
            return Err(TooManyPieces.into());
        }
    }
    whole.shrink_to_fit();
    Ok(whole.into())
}

/// A body may always come in this many pieces, however small they are.
const MANY_PIECES: usize = 4096;

/// Beyond that, its pieces must have this many bytes on average, because every piece costs about as much as a hundred
/// bytes.
const LEAST_PIECE: usize = 16;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The pieces of a body are too small for their number.
#[derive(Debug, thiserror::Error)]
#[error("the body comes in too many small pieces")]
struct TooManyPieces;
