//! Shared code of the fuzz targets: another reader of queries, independent of the gateway's own.

pub mod query;
pub mod strict;

use insights_gateway::twilio::query::{Query, QueryError};

/// A generator of choices that depends only on the input, so that every finding can be repeated.
pub fn choices(input: &[u8], salt: u64) -> fastrand::Rng {
    // FNV-1a: any mixing is good enough.
    let hash = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64 ^ salt, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    fastrand::Rng::with_seed(hash)
}

/// The canonical form of a query's body.
pub fn canonical(body: &[u8]) -> Result<bytes::Bytes, QueryError> {
    Ok(Query::read(&insights_gateway::twilio::query::parse(body)?)?.canonical())
}

/// The text of a secret.
pub fn exposed(secret: &secrecy::SecretString) -> &str {
    secrecy::ExposeSecret::expose_secret(secret)
}
