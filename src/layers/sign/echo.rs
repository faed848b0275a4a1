//! Recognises credentials in what comes from upstream.
//!
//! Debug pages and proxies repeat what they were sent. An answer that does so must not be passed on: clients, the cache,
//! the disk and the log would get the secret. This module looks for the secret itself, for its forms in hexadecimal and in
//! Base64 at any offset, and for the `user:secret` of Basic in both alphabets of Base64. Each may be plain, or hidden by
//! percent, JSON and HTML escapes in any mixture, twice over. An answer of any status has been decoded before it comes
//! here. One that spells the secret in another way is not recognised.

mod search;

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue};
use memchr::memchr3;
use zeroize::Zeroizing;

use self::search::{Form, Search};

/// Secrets that are shorter than this are words, and would be found where nobody repeated anything. Twilio's have 32. The
/// same is true of the Base64 of a user and a secret that have fewer than 6 characters together.
const SHORTEST: usize = 8;

/// How many escapes are undone, one around the other.
const DEEPEST: usize = 3;

/// The forms of one credential. Wiped when dropped.
pub(super) struct Echo(Vec<Form>);

impl Echo {
    /// Of a secret, and of `user:secret` in Base64.
    pub(super) fn new(secret: &str, basic: &str) -> Self {
        Self::of_length(SHORTEST, secret, basic)
    }

    /// The same of a secret that somebody may have thought up, which has to be longer to be looked for by itself.
    pub(super) fn of_password(secret: &str, basic: &str) -> Self {
        Self::of_length(2 * SHORTEST, secret, basic)
    }

    fn of_length(shortest: usize, secret: &str, basic: &str) -> Self {
        let mut forms = Vec::with_capacity(11);
        // What fills up the last group says nothing.
        add_base64(&mut forms, basic.trim_end_matches('=').as_bytes());
        if secret.len() >= shortest {
            add(&mut forms, secret.as_bytes());
            for before in 0..3 {
                add_base64(&mut forms, &aligned(secret, before));
            }
            let hex = |digit: fn(u8) -> u8| secret.bytes().flat_map(move |byte| [byte >> 4, byte & 15].map(digit));
            let lower = |half: u8| b"0123456789abcdef"[usize::from(half)];
            let upper = |half: u8| b"0123456789ABCDEF"[usize::from(half)];
            for digit in [lower as fn(u8) -> u8, upper] {
                // As large as it gets, so that nothing is left behind in a smaller buffer.
                let mut form = Zeroizing::new(Vec::with_capacity(2 * secret.len()));
                form.extend(hex(digit));
                add(&mut forms, &form);
            }
        }
        Self(forms)
    }
}

fn add(forms: &mut Vec<Form>, form: &[u8]) {
    if form.len() >= SHORTEST && !forms.iter().any(|known| known.as_slice() == form) {
        forms.push(Arc::new(Zeroizing::new(form.to_vec())));
    }
}

/// Adds what is Base64, and the same in the alphabet of URLs.
fn add_base64(forms: &mut Vec<Form>, form: &[u8]) {
    let mut url_safe = Zeroizing::new(form.to_vec());
    for byte in url_safe.iter_mut() {
        *byte = match *byte {
            b'+' => b'-',
            b'/' => b'_',
            other => other,
        };
    }
    add(forms, form);
    add(forms, &url_safe);
}

/// The characters of Base64 that a secret alone decides, behind so many bytes of something else.
fn aligned(secret: &str, before: usize) -> Zeroizing<Vec<u8>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(before + secret.len()));
    plain.resize(before, 0);
    plain.extend_from_slice(secret.as_bytes());
    let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*plain));
    let (first, end) = ((before * 8).div_ceil(6), plain.len() * 8 / 6);
    Zeroizing::new(encoded.as_bytes()[first..end].to_vec())
}

/// Several credentials that are looked for at once. Wiped when dropped.
pub(super) struct Echoes {
    all: Vec<Arc<Echo>>,
    search: Search,
}

impl Echoes {
    /// Of these.
    pub(super) fn new(all: Vec<Arc<Echo>>) -> Self {
        let search = Search::new(all.iter().flat_map(|echo| &echo.0).cloned().collect());
        Self { all, search }
    }

    /// Whether this credential is among them.
    pub(super) fn contain(&self, echo: &Arc<Echo>) -> bool {
        self.all.iter().any(|one| Arc::ptr_eq(one, echo))
    }

    /// These and one more.
    pub(super) fn with(&self, echo: &Arc<Echo>) -> Self {
        Self::new(self.all.iter().chain([echo]).cloned().collect())
    }

    /// Is one of the credentials in these headers or this body.
    pub(super) fn are_in(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        headers.values().any(|value| self.are_in_value(value)) || self.are_in_text(body)
    }

    /// Is one of the credentials in this header.
    pub(super) fn are_in_value(&self, value: &HeaderValue) -> bool {
        self.are_in_text(value.as_bytes())
    }

    fn are_in_text(&self, text: &[u8]) -> bool {
        let unescaped = || std::iter::successors(unescape(text), |text| unescape(text)).take(DEEPEST);
        self.search.finds_in(text) || unescaped().any(|text| self.search.finds_in(&text))
    }
}

impl Default for Echoes {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// `text` with the escapes of URLs, JSON and HTML undone; `None` where there are none, which is nearly always.
fn unescape(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain: Option<Zeroizing<Vec<u8>>> = None;
    // `done` bytes of the text are in `plain`, as far as there is one.
    let (mut done, mut from) = (0, 0);
    while let Some(at) = memchr3(b'%', b'\\', b'&', &text[from..]).map(|at| from + at) {
        let Some((character, length)) = escaped(&text[at..]) else {
            from = at + 1;
            continue;
        };
        // Never longer than the text, so that nothing is left behind where a buffer was too small.
        let plain = plain.get_or_insert_with(|| Zeroizing::new(Vec::with_capacity(text.len())));
        plain.extend_from_slice(&text[done..at]);
        plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        done = at + length;
        from = done;
    }
    plain.map(|mut plain| {
        plain.extend_from_slice(&text[done..]);
        plain
    })
}

/// The character that the escape at the beginning of `text` stands for, and the bytes it takes. Only ASCII: a
/// credential is a header value.
fn escaped(text: &[u8]) -> Option<(char, usize)> {
    let hex = |digits: &[u8]| {
        let all_hex = digits.iter().all(u8::is_ascii_hexdigit);
        let code = u8::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| all_hex)?, 16).ok()?;
        code.is_ascii().then_some(char::from(code))
    };
    match text {
        [b'%', one, two, ..] => Some((hex(&[*one, *two])?, 3)),
        [b'\\', b'u', b'0', b'0', one, two, ..] => Some((hex(&[*one, *two])?, 6)),
        [b'\\', plain @ (b'"' | b'\\' | b'/'), ..] => Some((char::from(*plain), 2)),
        [b'&', ..] => entity(text),
        _ => None,
    }
}

/// The character of an HTML character reference, by number or by one of the names that escaping writes.
fn entity(text: &[u8]) -> Option<(char, usize)> {
    const LONGEST: usize = 12;
    const NAMES: [(&[u8], char); 5] = [(b"amp", '&'), (b"lt", '<'), (b"gt", '>'), (b"quot", '"'), (b"apos", '\'')];
    let end = text.iter().take(LONGEST).position(|byte| *byte == b';')?;
    let code = |digits: &[u8], radix| {
        let are_digits = digits.iter().all(u8::is_ascii_alphanumeric);
        let code = u8::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| are_digits)?, radix).ok()?;
        code.is_ascii().then_some(char::from(code))
    };
    let character = match &text[1..end] {
        [b'#', b'x' | b'X', digits @ ..] => code(digits, 16),
        [b'#', digits @ ..] => code(digits, 10),
        name => NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, character)| character),
    };
    Some((character?, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With every character that some form writes otherwise. Its Base64 has both `+` and `/`.
    const SECRET: &str = "pl\"nt/d+s3cr~t? >>>???~~";

    fn basic() -> String {
        BASE64_STANDARD.encode(format!("SK1:{SECRET}"))
    }

    fn echoes(echo: Echo) -> Echoes {
        Echoes::new(vec![Arc::new(echo)])
    }

    fn found(text: &str) -> bool {
        let echo = echoes(Echo::new(SECRET, &basic()));
        let body = format!("{{\"data\":\"some text, {text}, more of it\"}}");
        let in_body = echo.are_in(&HeaderMap::new(), body.as_bytes());
        if let Ok(value) = HeaderValue::from_str(text) {
            let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, value)]);
            assert_eq!(echo.are_in(&headers, b"{}"), in_body, "{text}");
        }
        in_body
    }

    fn percent(text: &str, all: bool, upper: bool) -> String {
        let write = |byte: u8| match byte {
            b if !all && (b.is_ascii_alphanumeric() || b"-._~".contains(&b)) => char::from(b).to_string(),
            b if upper => format!("%{b:02X}"),
            b => format!("%{b:02x}"),
        };
        text.bytes().map(write).collect()
    }

    #[test]
    fn every_form_is_found() {
        let basic = basic();
        assert!(basic.contains('+') && basic.contains('/') && basic.ends_with('='), "{basic}");
        let json = |text: &str| serde_json::to_string(text).unwrap();
        let html_safe = |text: &str| text.replace('+', "\\u002B").replace('/', "\\/").replace('"', "\\u0022");
        for form in [SECRET, &basic, basic.trim_end_matches('='), &basic.replace('+', "-").replace('/', "_")] {
            for shown in [
                form.to_owned(),
                format!("Basic {form}"),
                json(form),
                html_safe(form),
                percent(form, false, true),
                percent(form, false, false),
                percent(form, true, true),
                percent(&percent(form, false, true), false, true),
                percent(&json(form), false, false),
                json(&json(&json(form))),
                html(form),
                json(&html(form)),
                form.bytes().map(|byte| format!("&#{byte};")).collect(),
                form.bytes().map(|byte| format!("&#x{byte:04X};")).collect(),
            ] {
                assert!(found(&shown), "{shown}");
            }
        }
    }

    fn html(text: &str) -> String {
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    }

    #[test]
    fn the_secret_is_found_within_base64_and_in_hexadecimal() {
        for before in ["", "x", "xy", "xyz", "user:"] {
            for behind in ["", "!", "!!", " and more"] {
                let encoded = BASE64_STANDARD.encode(format!("{before}{SECRET}{behind}"));
                assert!(found(&encoded), "{before} {behind}");
                assert!(found(&encoded.replace('+', "-").replace('/', "_")), "{before} {behind}");
            }
        }
        let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(found(&hex) && found(&hex.to_ascii_uppercase()) && !found(&hex[..hex.len() - 1]));
    }

    #[test]
    fn a_password_is_looked_for_by_itself_where_it_is_no_word() {
        let is_in = |password: &str, text: &str| {
            let basic = BASE64_STANDARD.encode(format!("user:{password}"));
            let echoes = echoes(Echo::of_password(password, &basic));
            assert!(echoes.are_in(&HeaderMap::new(), basic.as_bytes()));
            echoes.are_in(&HeaderMap::new(), text.as_bytes())
        };
        assert!(!is_in("password", "a bad password"));
        assert!(is_in("correct horse battery", "not correct horse battery"));
    }

    #[test]
    fn a_secret_that_repeats_itself_is_found() {
        let secret = format!("b{}", "a".repeat(20));
        let echoes = echoes(Echo::new(&secret, "cGxhbnQ6c2VjcmV0"));
        for (text, there) in [(format!("aab{}a", "a".repeat(20)), true), ("a".repeat(100), false)] {
            assert_eq!(echoes.are_in(&HeaderMap::new(), text.as_bytes()), there, "{text}");
        }
    }

    #[test]
    fn nothing_else_is_found() {
        let basic = basic();
        for text in [
            "",
            "SK1",
            "100 % of \\ all \\u00e9 % %zz %+1 \\u00zz \\u12",
            "%",
            "\\",
            &SECRET[1..],
            &SECRET[..SECRET.len() - 1],
            &basic[..basic.len() - 4],
            &BASE64_STANDARD.encode("SK1:another secret of that length"),
        ] {
            assert!(!found(text), "{text}");
        }
    }

    #[test]
    fn a_word_is_found_only_beside_its_user() {
        let basic = BASE64_STANDARD.encode("SK1:secret");
        let echoes = echoes(Echo::new("secret", &basic));
        let is_in = |body: &str| echoes.are_in(&HeaderMap::new(), body.as_bytes());
        assert!(!is_in("{\"data\":\"a secret\"}"));
        assert!(is_in(&format!("{{\"data\":\"{basic}\"}}")));
    }

    #[test]
    fn a_pair_that_is_shorter_than_a_word_is_not_looked_for() {
        for (pair, there) in [(":", false), ("u:", false), ("u:pwd", false), ("u:pwds", true)] {
            let basic = BASE64_STANDARD.encode(pair);
            let echoes = echoes(Echo::new(&pair[pair.len().min(2)..], &basic));
            assert_eq!(
                echoes.are_in(&HeaderMap::new(), format!("{{\"data\":\"{basic}\"}}").as_bytes()),
                there,
                "{pair}"
            );
        }
    }

    #[test]
    fn secrets_of_any_lengths_are_found_together() {
        let all = ["eight888", "a-dozen-long", "as-long-as-the-secrets-of-Twilio", &"very-long".repeat(100)];
        let echo = |secret: &str| Arc::new(Echo::new(secret, &BASE64_STANDARD.encode(format!("SK1:{secret}"))));
        let together = Echoes::new(all.map(echo).to_vec());
        for secret in all {
            assert!(together.are_in(&HeaderMap::new(), format!("{{\"data\":\"{secret}\"}}").as_bytes()), "{secret}");
            let cut = &secret[1..];
            assert!(!together.are_in(&HeaderMap::new(), format!("{{\"data\":\"{cut}\"}}").as_bytes()), "{cut}");
        }
    }

    #[test]
    fn escapes_are_undone_and_other_bytes_kept() {
        let plain = |text: &[u8]| unescape(text).map(|plain| plain.to_vec());
        assert_eq!(plain(b"100 % \xff \\n \\u00e9 & &; &#; &#999; &nbsp; &amp"), None);
        assert_eq!(plain(b"&lt;a&#62;&#x3b;&amp;"), Some(b"<a>;&".to_vec()));
        assert_eq!(plain(b"a%2fb%2Fc\\/d\\u002Fe\\\"%"), Some(b"a/b/c/d/e\"%".to_vec()));
    }
}
