//! The subset of DER that is needed to read names and times in certificates.

/// The tag of a sequence.
pub const SEQUENCE: u8 = 0x30;

/// The elements in some DER, each as tag and content. Stops at an element that is malformed or longer than 64 KiB.
pub fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[tag, first], rest) = der.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
            0x82 => rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?,
            // No certificate is that long.
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        der = rest;
        Some((tag, content))
    })
}
