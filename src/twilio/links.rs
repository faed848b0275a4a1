//! Links in the responses about query jobs. They come as absolute URLs of Twilio's host, where a client without
//! Twilio's credentials can do nothing, so they are rewritten to lead to the gateway.
//!
//! Links are the values of [`MEMBERS`] in a response's outermost object and in the objects of its `items`, and the
//! `Location` header. A link is rewritten if all of these hold, and otherwise not changed:
//!
//! * It is a string of characters that a URL may have (RFC 3986): an absolute URL of `http` or `https`, or one that
//!   begins with `//` and so has the scheme of the page or request that it is used in. Scheme and host may be in any
//!   case.
//! * It has no user information, which Twilio never writes and which readers of URLs treat differently.
//! * It names Twilio's own host, with any port, or the configured upstream, with its scheme and port. A port that is
//!   left out or empty is the scheme's default, and a host with a dot at its end (the root of DNS) is the same host.
//! * Its path is exactly one of the API's own, after the path of `upstream.url` if that has one. Other spellings of a
//!   path, with escapes or dot segments, do not count.
//!
//! Only the part before the path is replaced. The rest of the link, its query and its fragment, and all other bytes of
//! the response stay unchanged, escapes included.
//!
//! The gateway's address is the one that the client used, so a response is rewritten for each client and never stored
//! in that form.

use std::ops::Range;

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, Uri};

use super::endpoint::{self, Route};
use crate::core::json::{self, JsonError, Member, Text, Value};
use crate::semantics::origin;

/// The members that contain links.
pub const MEMBERS: [&str; 2] = ["statusUrl", "resultUrl"];

/// Twilio's own host.
const TWILIO: &str = "insights.twilio.com";

/// Finds links to the upstream, and makes them lead to the gateway.
#[derive(Debug, Clone)]
pub struct Links {
    upstream: Place,
    public: Option<Base>,
}

/// The parts of a URL before its path.
#[derive(Debug, Clone)]
struct Place {
    secure: bool,
    host: Box<str>,
    port: u16,
    /// The path, without a slash at its end.
    prefix: Box<str>,
}

/// The address at which a client reaches the gateway: the part before the API's own paths, without a slash at its end.
///
/// It is empty for a client of HTTP/1.0 that names no host. Then only the path of a link is left, which is relative to
/// the address that the client used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base(Box<str>);

impl Base {
    /// The gateway at this URL, whose path counts.
    pub fn of_url(url: &Uri) -> Self {
        let authority = url.authority().map_or("", Authority::as_str);
        let scheme = url.scheme_str().unwrap_or("http");
        Self(format!("{scheme}://{authority}{}", url.path().trim_end_matches('/')).into())
    }

    /// The address that the client used: the target's authority, or else `Host`. `tls` says whether the client speaks
    /// TLS with the gateway itself. Headers of proxies (`Forwarded`, `X-Forwarded-*`) are not read, because any client
    /// can send them.
    pub fn of_request<B>(request: &Request<B>, tls: bool) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let authority = origin::authority_of(request).filter(|authority| !authority.as_str().contains('@'));
        Self(authority.map(|authority| format!("{scheme}://{authority}")).unwrap_or_default().into())
    }

    /// The address in the form in which a link begins.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Writes it as a part of a JSON string.
    fn write(&self, out: &mut Vec<u8>) {
        for byte in self.0.bytes() {
            // The parser accepts these in a URL's path, but not control characters.
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
    }
}

impl Links {
    /// Rewrites links to Twilio's host and to `upstream`, so that they lead to `public_url`, or else to the address
    /// that each client used.
    pub fn new(upstream: &Uri, public_url: Option<&Uri>) -> Self {
        let secure = upstream.scheme_str() != Some("http");
        let upstream = Place {
            secure,
            host: without_root(upstream.host().unwrap_or_default()).into(),
            port: upstream.port_u16().unwrap_or(default_port(secure)),
            prefix: upstream.path().trim_end_matches('/').into(),
        };
        Self { upstream, public: public_url.map(Base::of_url) }
    }

    /// Where the links in the response to this request lead: to `server.public_url`, or else to the address that the
    /// client used, see [`Base::of_request`].
    pub fn base<B>(&self, request: &Request<B>, tls: bool) -> Base {
        self.public.clone().unwrap_or_else(|| Base::of_request(request, tls))
    }

    /// The response with links to `base`; the same bytes if it has no links.
    ///
    /// # Errors
    ///
    /// When it is not JSON in the strict sense of [`json`]. Then it is not certain which links a client would find in
    /// it, and it must not be passed on.
    pub fn rewrite(&self, answer: &Bytes, base: &Base) -> Result<Bytes, JsonError> {
        let value = json::parse(answer)?;
        let found: Vec<_> = links(&value).filter_map(|link| self.before_path(link, answer)).collect();
        if found.is_empty() {
            return Ok(answer.clone());
        }
        let mut out = Vec::with_capacity(answer.len() + found.len() * base.0.len());
        let mut copied = 0;
        for replaced in found {
            out.extend_from_slice(&answer[copied..replaced.start]);
            base.write(&mut out);
            copied = replaced.end;
        }
        out.extend_from_slice(&answer[copied..]);
        Ok(out.into())
    }

    /// The value of a `Location` header with the address `base`; `None` where it does not change.
    pub fn rewrite_location(&self, location: &str, base: &Base) -> Option<String> {
        Some([base.as_str(), &location[self.length_before_path(location)?..]].concat())
    }

    /// The range in `answer` of the part of a link that is replaced.
    fn before_path(&self, link: &Text<'_>, answer: &[u8]) -> Option<Range<usize>> {
        let length = self.length_before_path(link.as_str())?;
        let Range { start, .. } = link.range_in(answer)?;
        // It is all ASCII, so each of its bytes is spelled as itself or as one escape.
        let mut end = 0;
        for _ in 0..length {
            end += match link.raw().as_bytes().get(end..)? {
                [b'\\', b'u', ..] => r"\u0000".len(),
                [b'\\', ..] => r"\/".len(),
                _ => 1,
            };
        }
        Some(start..start + end)
    }

    /// The length of the part of a link that is replaced. `None` if it is not a link to the upstream; see the module.
    fn length_before_path(&self, link: &str) -> Option<usize> {
        if !link.bytes().all(is_of_a_url) {
            return None;
        }
        let (secure, rest) = match link.split_once("//")? {
            ("", rest) => (None, rest),
            (scheme, rest) if scheme.eq_ignore_ascii_case("https:") => (Some(true), rest),
            (scheme, rest) if scheme.eq_ignore_ascii_case("http:") => (Some(false), rest),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let path = self.path_at(secure, authority, path)?;
        let end = path.find(['?', '#']).unwrap_or(path.len());
        let is_of_the_api = endpoint::route(&Method::GET, &path[..end]) != Route::NotFound;
        is_of_the_api.then(|| link.len() - path.len())
    }

    /// The API's own path in a URL with this `authority` and `path`; `None` if they are neither Twilio's nor the
    /// upstream's.
    fn path_at<'l>(&self, secure: Option<bool>, authority: &str, path: &'l str) -> Option<&'l str> {
        let (host, port) = host_and_port(authority)?;
        let upstream = &self.upstream;
        let is_upstream = host.eq_ignore_ascii_case(&upstream.host)
            && secure.is_none_or(|secure| secure == upstream.secure)
            && port.unwrap_or(default_port(upstream.secure)) == upstream.port;
        let behind_prefix = path.strip_prefix(&*upstream.prefix).filter(|_| is_upstream);
        behind_prefix.or_else(|| host.eq_ignore_ascii_case(TWILIO).then_some(path))
    }
}

/// The strings in a response that may be links, in their order.
fn links<'v, 'a>(answer: &'v Value<'a>) -> impl Iterator<Item = &'v Text<'a>> {
    let links_of = |member: &'v Member<'a>| match &member.value {
        Value::String(text) if MEMBERS.contains(&member.name.as_str()) => Some(text),
        _ => None,
    };
    answer.as_object().unwrap_or_default().iter().flat_map(move |member| {
        let items = Some(&member.value).filter(|_| member.name.as_str() == "items").and_then(Value::as_array);
        let of_items = items.unwrap_or_default().iter().filter_map(Value::as_object).flatten().filter_map(links_of);
        links_of(member).into_iter().chain(of_items)
    })
}

/// Host and port of an authority: the host without the dot of DNS's root, the port if one is stated.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    // The colons of an IPv6 address are in brackets.
    let behind_address = authority.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match authority[behind_address..].find(':') {
        Some(colon) => authority.split_at(behind_address + colon),
        None => (authority, ""),
    };
    let is_host = !host.is_empty() && !authority.contains('@');
    let port = match port.strip_prefix(':').unwrap_or_default() {
        "" => None,
        // The parser would also accept a sign.
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    is_host.then(|| (without_root(host), port))
}

fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

const fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// Whether a URL may contain this byte (RFC 3986 section 2).
fn is_of_a_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

#[cfg(test)]
mod tests;
