//! Encrypts and authenticates the values in the store, so that nobody who has access to the store can read or forge
//! them.
//!
//! Values are sealed with AES-256-GCM-SIV (RFC 8452), which stays safe even if a nonce repeats: many replicas make
//! random nonces for one key. The kind of value, its account, the name of its key and everything else that must belong
//! together are authenticated. So a value cannot be unsealed if it was moved to another key, or used again in another
//! context.
//!
//! A sealed value is `version · key id · nonce · ciphertext and tag`. Without keys a value is `version · clear text`,
//! which the configuration allows only for stores on the same machine.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

/// The version of this format. Values of another version do not open.
const SEALED: u8 = 1;
const CLEAR: u8 = 0x81;

const KEY_ID: usize = 4;

/// What a value is and where it belongs. Two contexts that differ in any part are never confused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'c> {
    /// The kind of value: `page`.
    pub(crate) kind: &'static str,
    /// The SID of the account whose data it is.
    pub(crate) account: &'c str,
    /// The name of the key that holds it.
    pub(crate) key: &'c str,
    /// What else must be the same when it is opened.
    pub(crate) bound: &'c [u8],
}

impl Context<'_> {
    /// Every part after its length, so that no two contexts have the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let parts = [self.kind.as_bytes(), self.account.as_bytes(), self.key.as_bytes(), self.bound];
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// Seals and opens values.
#[derive(Debug, Default)]
pub(crate) struct Sealer {
    /// The first seals, all of them open. Empty: values are clear text.
    keys: Vec<SealKey>,
}

#[derive(Debug)]
struct SealKey {
    id: [u8; KEY_ID],
    key: LessSafeKey,
}

/// The value cannot be sealed: the machine has no random numbers, or the value is too long.
#[derive(Debug, thiserror::Error)]
#[error("the value cannot be sealed")]
pub(crate) struct SealError;

impl Sealer {
    /// With these keys, of which the first seals.
    pub(crate) fn new(keys: &[Zeroizing<[u8; 32]>]) -> Self {
        let key = |configured: &Zeroizing<[u8; 32]>| {
            let derived = Zeroizing::new(blake3::derive_key("insights-gateway 2026 shared store: seal", &**configured));
            let id = blake3::derive_key("insights-gateway 2026 shared store: id of seal", &**configured);
            let key = UnboundKey::new(&AES_256_GCM_SIV, &*derived).ok()?;
            Some(SealKey { id: *id.first_chunk()?, key: LessSafeKey::new(key) })
        };
        Self { keys: keys.iter().filter_map(key).collect() }
    }

    /// Seals a value.
    ///
    /// # Errors
    ///
    /// If the machine gives no random numbers.
    pub(crate) fn seal(&self, context: &Context<'_>, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let Some(SealKey { id, key }) = self.keys.first() else {
            let mut clear = Vec::with_capacity(1 + value.len());
            clear.push(CLEAR);
            clear.extend_from_slice(value);
            return Ok(clear);
        };
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError)?;
        let mut sealed = Vec::with_capacity(1 + KEY_ID + NONCE_LEN + value.len() + AES_256_GCM_SIV.tag_len());
        sealed.push(SEALED);
        sealed.extend_from_slice(id);
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(value);
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.bytes()),
                &mut sealed[start..],
            )
            .map_err(|_| SealError)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens a value. `None` if it was not sealed with one of the keys in this context: it is damaged, forged, moved,
    /// or of another format.
    pub(crate) fn open(&self, context: &Context<'_>, sealed: &[u8]) -> Option<Vec<u8>> {
        let (version, rest) = sealed.split_first()?;
        if self.keys.is_empty() {
            return (*version == CLEAR).then(|| rest.to_vec());
        }
        if *version != SEALED {
            return None;
        }
        let (id, rest) = rest.split_first_chunk::<KEY_ID>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = self.keys.iter().find(|key| key.id == *id)?;
        let mut value = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.key.open_in_place(nonce, Aad::from(context.bytes()), &mut value).ok()?.len();
        value.truncate(length);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context<'static> = Context { kind: "page", account: "AC1", key: "a", bound: b"1" };

    fn sealer(keys: &[u8]) -> Sealer {
        Sealer::new(&keys.iter().map(|key| Zeroizing::new([*key; 32])).collect::<Vec<_>>())
    }

    #[test]
    fn a_value_opens_only_in_its_own_context() {
        let sealer = sealer(&[1]);
        let sealed = sealer.seal(&CONTEXT, b"value").unwrap();
        assert_eq!(sealer.open(&CONTEXT, &sealed).as_deref(), Some(&b"value"[..]));
        assert!(!sealed.windows(5).any(|window| window == b"value"));
        for other in [
            Context { kind: "pag", ..CONTEXT },
            Context { account: "AC2", ..CONTEXT },
            Context { key: "b", ..CONTEXT },
            Context { bound: b"2", ..CONTEXT },
            Context { kind: "pageAC", account: "1", ..CONTEXT },
        ] {
            assert_eq!(sealer.open(&other, &sealed), None, "{other:?}");
        }
    }

    #[test]
    fn a_changed_value_does_not_open() {
        let sealer = sealer(&[1]);
        let sealed = sealer.seal(&CONTEXT, b"value").unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.open(&CONTEXT, &changed), None, "byte {at}");
            assert_eq!(sealer.open(&CONTEXT, &sealed[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        let (old, both, swapped, new) = (sealer(&[1]), sealer(&[1, 2]), sealer(&[2, 1]), sealer(&[2]));
        let of_old = both.seal(&CONTEXT, b"value").unwrap();
        let of_new = swapped.seal(&CONTEXT, b"value").unwrap();
        assert!(old.open(&CONTEXT, &of_old).is_some() && swapped.open(&CONTEXT, &of_old).is_some());
        assert!(both.open(&CONTEXT, &of_new).is_some() && new.open(&CONTEXT, &of_new).is_some());
        assert_eq!(new.open(&CONTEXT, &of_old), None);
    }

    #[test]
    fn clear_text_and_sealed_values_are_never_confused() {
        let (clear, sealer) = (Sealer::default(), sealer(&[1]));
        let value = clear.seal(&CONTEXT, b"value").unwrap();
        assert_eq!(clear.open(&CONTEXT, &value).as_deref(), Some(&b"value"[..]));
        assert_eq!(sealer.open(&CONTEXT, &value), None);
        assert_eq!(clear.open(&CONTEXT, &sealer.seal(&CONTEXT, b"value").unwrap()), None);
    }
}
