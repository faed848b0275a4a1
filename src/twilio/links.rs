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
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    const JOB: &str = "/v3/InsightsDomains/Conversations/QueryJobs/insights_operation_01";

    fn links_to(upstream: &'static str) -> Links {
        Links::new(&Uri::from_static(upstream), None)
    }

    fn base(url: &'static str) -> Base {
        Base::of_url(&Uri::from_static(url))
    }

    fn rewritten(answer: &str) -> String {
        let links = links_to("http://upstream.example:4010");
        let out = links.rewrite(&Bytes::copy_from_slice(answer.as_bytes()), &base("http://gw:8080")).unwrap();
        String::from_utf8(out.to_vec()).unwrap()
    }

    /// The rewritten form of a link to `upstream`.
    fn led(upstream: &'static str, link: &str) -> Option<String> {
        links_to(upstream).rewrite_location(link, &base("http://gw:8080"))
    }

    #[test]
    fn links_of_single_answers_and_lists_lead_to_the_gateway() {
        for host in ["https://insights.twilio.com", "http://upstream.example:4010"] {
            let answer = r#"{"operationId":"insights_operation_01", "statusUrl" : "HOST/JOB","n":1.50e+3,
                "items":[{"statusUrl":"HOST/JOB","resultUrl":"HOST/JOB/Results?pageSize=1#x"},{},7,null], "resultUrl":null}"#;
            let with = |host: &str| answer.replace("HOST", host).replace("/JOB", JOB);
            assert_eq!(rewritten(&with(host)), with("http://gw:8080"));
        }
    }

    #[test]
    fn all_other_bytes_stay_unchanged() {
        let link = format!("https://insights.twilio.com{JOB}");
        for answer in [
            r#"{"url":"LINK","error":{"statusUrl":"LINK"},"message":"see LINK"}"#,
            r#"{"statusurl":"LINK","resultUrl ":"LINK","":"LINK"}"#,
            r#"{"statusUrl":["LINK"],"resultUrl":{"statusUrl":"LINK"}}"#,
            r#"{"items":{"statusUrl":"LINK"},"jobs":[{"statusUrl":"LINK"}]}"#,
            r#"{"items":[[{"statusUrl":"LINK"}],{"items":[{"statusUrl":"LINK"}]}]}"#,
            r#"[{"statusUrl":"LINK"}]"#,
            r#"{"statusUrl":null,"resultUrl":12.0,"items":null}"#,
            r#""LINK""#,
            "{}",
        ] {
            let answer = answer.replace("LINK", &link);
            assert_eq!(rewritten(&answer), answer);
        }
    }

    #[test]
    fn links_are_understood_in_every_spelling_of_json_and_keep_what_is_not_replaced() {
        let spelled = r#"{ "status\u0055rl":"\u0068ttps:\/\/insights\u002etwilio.com\/v3\/InsightsDomains\/Conversations\/QueryJobs\/\u0061b\/Results?a=\u0062" , "x":"\/" }"#;
        let expected = r#"{ "status\u0055rl":"http://gw:8080\/v3\/InsightsDomains\/Conversations\/QueryJobs\/\u0061b\/Results?a=\u0062" , "x":"\/" }"#;
        assert_eq!(rewritten(spelled), expected);
        let astral = r#"{"statusUrl":"\uD83D\uDE00https://insights.twilio.com/"}"#;
        assert_eq!(rewritten(astral), astral);
    }

    #[test]
    fn an_ambiguous_response_is_an_error() {
        let twice = format!(r#"{{"statusUrl":"x","statusUrl":"https://insights.twilio.com{JOB}"}}"#);
        for answer in [twice.as_str(), "{", "", "{} {}", r#"{"statusUrl":"\ud800"}"#, "\u{feff}{}"] {
            let answer = Bytes::copy_from_slice(answer.as_bytes());
            assert!(links_to("http://upstream").rewrite(&answer, &base("http://gw")).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn hosts_are_compared_by_the_rules_of_dns_and_urls() {
        let ours = |upstream, place: &str| {
            let led = led(upstream, &format!("{place}{JOB}?a=b#c"));
            assert!(led.as_ref().is_none_or(|led| *led == format!("http://gw:8080{JOB}?a=b#c")), "{led:?}");
            led.is_some()
        };
        let upstream = "http://upstream.example:4010";
        for place in [
            "https://insights.twilio.com",
            "HTTPS://Insights.TWILIO.com",
            "https://insights.twilio.com:443",
            "https://insights.twilio.com:",
            "https://insights.twilio.com:0443",
            "https://insights.twilio.com:8443",
            "http://insights.twilio.com",
            "https://insights.twilio.com.",
            "//insights.twilio.com",
            "//insights.twilio.com:443",
            "http://upstream.example:4010",
            "HTTP://UPSTREAM.example.:04010",
            "//upstream.example:4010",
        ] {
            assert!(ours(upstream, place), "{place}");
        }
        for place in [
            "",
            "/",
            "///insights.twilio.com",
            "https:/insights.twilio.com",
            "https:///insights.twilio.com",
            "https:insights.twilio.com",
            "https://",
            "https://user@insights.twilio.com",
            "https://user:secret@insights.twilio.com",
            "https://@insights.twilio.com",
            "https://insights.twilio.com@evil.example",
            "https://evil.example@insights.twilio.com",
            "https://insights.twilio.com:443@evil.example",
            "https://insights.twilio.com.evil.example",
            "https://evil.example/insights.twilio.com",
            "https://evil.example?https://insights.twilio.com",
            "https://evil.example#https://insights.twilio.com",
            "https://xinsights.twilio.com",
            "https://twilio.com",
            "https://api.twilio.com",
            "https://insights.us1.twilio.com",
            "https://insights.twilio.com..",
            "https://.insights.twilio.com",
            "https://insights%2Etwilio.com",
            "https://insights.twilio.com:99999",
            "https://insights.twilio.com:+443",
            "https://insights.twilio.com::443",
            "https://insights.twilio.com:443:443",
            "https://[insights.twilio.com]",
            "https://insights.twilio.com\\",
            "https:\\\\insights.twilio.com",
            "https://insights.twilio.com\t",
            " https://insights.twilio.com",
            "\u{ff48}ttps://insights.twilio.com",
            "ftp://insights.twilio.com",
            "wss://insights.twilio.com",
            "javascript://insights.twilio.com",
            "x https://insights.twilio.com",
            "https://https://insights.twilio.com",
            "https://upstream.example:4010",
            "http://upstream.example",
            "//upstream.example",
            "http://upstream.example:4011",
        ] {
            assert!(!ours(upstream, place), "{place:?}");
        }
        assert!(ours("https://upstream.example", "//upstream.example"));
        assert!(ours("https://upstream.example", "https://upstream.example:443"));
        assert!(!ours("https://upstream.example", "https://upstream.example:80"));
        assert!(ours("http://[::1]:4010", "http://[::1]:4010") && !ours("http://[::1]:4010", "http://[::1]"));
        assert!(!ours("http://[::1]:4010", "http://[::1]x:4010") && !ours("http://[::1]:4010", "http://::1:4010"));
    }

    #[test]
    fn only_the_apis_own_paths_lead_to_the_gateway() {
        let ours = |path: &str| led("http://upstream", &format!("https://insights.twilio.com{path}")).is_some();
        let jobs = "/v3/InsightsDomains/Conversations/QueryJobs";
        let fields = "/v3/ControlPlane/ConversationInsights/CustomFieldMappings";
        for path in [jobs, &format!("{jobs}/a-_9/Results?pageToken=a%2Bb%3D&x=[1]"), &format!("{fields}/x#"), JOB] {
            assert!(ours(path), "{path}");
        }
        for path in [
            "",
            "/",
            "?x=/v3/InsightsDomains/Conversations/QueryJobs",
            "/2010-04-01/Accounts.json",
            "/v3/InsightsDomains/Conversations/QueryJobs/",
            "/v3/InsightsDomains/Conversations/QueryJobs/a/../b",
            "/v3/InsightsDomains/Conversations/QueryJobs/..",
            "/v3/InsightsDomains/Conversations/QueryJobs/%61",
            "/v3/InsightsDomains/Conversations//QueryJobs",
            "//v3/InsightsDomains/Conversations/QueryJobs",
            "/v3/insightsDomains/Conversations/QueryJobs",
            "/v3/InsightsDomains/Conversations/QueryJobs/a;b",
            "/v3/InsightsDomains/Conversations/QueryJobs/a b",
            "/v3/InsightsDomains/Conversations/QueryJobs?x=\u{e4}",
            "/v3/InsightsDomains/Conversations/QueryJobs?x=\"",
            "/v3/InsightsDomains/Conversations/QueryJobs?x=\r\nSet-Cookie:",
        ] {
            assert!(!ours(path), "{path:?}");
        }
    }

    #[test]
    fn the_path_of_the_upstream_is_removed() {
        let upstream = "https://proxy.example/Twilio/";
        let led = |link: String| led(upstream, &link);
        assert_eq!(led(format!("https://proxy.example/Twilio{JOB}")), Some(format!("http://gw:8080{JOB}")));
        assert_eq!(led(format!("https://proxy.example{JOB}")), None);
        assert_eq!(led(format!("https://proxy.example/twilio{JOB}")), None);
        assert_eq!(led(format!("https://insights.twilio.com/Twilio{JOB}")), None);
        assert!(led(format!("https://insights.twilio.com{JOB}")).is_some());
    }

    #[test]
    fn a_client_finds_the_gateway_where_it_reached_it() {
        let request = |uri: &str, host: Option<&str>| {
            let request = Request::builder().uri(uri).header("x-forwarded-host", "evil.example");
            let request = request.header("x-forwarded-proto", "https").header("forwarded", "host=evil.example");
            host.into_iter().fold(request, |request, host| request.header(header::HOST, host)).body(()).unwrap()
        };
        let of = |uri, host, tls| Base::of_request(&request(uri, host), tls).as_str().to_owned();
        assert_eq!(of(JOB, Some("Gw.example:8443"), true), "https://Gw.example:8443");
        assert_eq!(of(JOB, Some("[::1]"), false), "http://[::1]");
        assert_eq!(of("http://target.example:81/v3", Some("other"), false), "http://target.example:81");
        for host in [None, Some("user@gw"), Some("gw:"), Some("gw:99999"), Some("gw/x"), Some("")] {
            assert_eq!(of(JOB, host, true), "", "{host:?}");
        }
        let links = |public| Links::new(&Uri::from_static("http://up"), public);
        let public = Uri::from_static("https://insights.internal:8443/twilio/");
        let base = links(Some(&public)).base(&request(JOB, Some("gw")), false);
        assert_eq!(base.as_str(), "https://insights.internal:8443/twilio");
        assert_eq!(links(None).base(&request(JOB, Some("gw")), false).as_str(), "http://gw");
        let nameless = Base::of_request(&request(JOB, None), false);
        let link = format!("https://insights.twilio.com{JOB}");
        assert_eq!(links(None).rewrite_location(&link, &nameless).as_deref(), Some(JOB));
    }

    #[test]
    fn an_address_cannot_end_the_string_that_it_is_written_into() {
        let public: Uri = r#"http://gw/a"b\c"#.parse().unwrap();
        let answer = Bytes::from(format!(r#"{{"statusUrl":"https://insights.twilio.com{JOB}"}}"#));
        let out = links_to("http://up").rewrite(&answer, &Base::of_url(&public)).unwrap();
        let out: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(out["statusUrl"], format!(r#"http://gw/a"b\c{JOB}"#));
    }

    /// Text with links or almost links, in places where they count or almost count.
    fn answers() -> impl Strategy<Value = String> {
        let parts = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            " ",
            "\n",
            "\"",
            "1.50",
            "null",
            "\"a\":",
            "\"items\":",
            "\"items\":[{",
            "\"statusUrl\":",
            "\"resultUrl\":\"",
            "\"result\\u0055rl\":",
            "\\/",
            "\\u0068",
            "}]",
            "?a=b",
            "#c",
            "é",
            "\"https://insights.twilio.com/v3/InsightsDomains/Conversations/QueryJobs/a\"",
            "\"http:\\/\\/up:1\\/v3\\/InsightsDomains\\/Conversations\\/QueryJobs\\/\\u0061\\/Results\"",
            "//insights.twilio.com",
            "https://",
            "https://insights.twilio.com",
            "/v3/InsightsDomains/Conversations/Query",
        ];
        let text = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..10).prop_map(|parts| parts.concat());
        let link = "[\\PC]{0,3}(https?:)?//(insights\\.twilio\\.com|up|up:1)(:443)?/v3/InsightsDomains/Conversations/QueryJobs(/a)?(/Results)?[ -~]{0,4}";
        prop_oneof![
            text.clone(),
            text.prop_map(|text| format!("{{\"statusUrl\":{text}}}")),
            (link, 0..4_usize).prop_map(|(link, place)| {
                let link = serde_json::to_string(&link).unwrap();
                ["{\"statusUrl\": LINK}", "{\"items\":[ {\"resultUrl\":LINK}],\"n\":1.0}", "{\"a\":LINK}", "[LINK]"]
                    [place]
                    .replace("LINK", &link)
            }),
        ]
    }

    /// The response without its links.
    fn without_links(answer: &[u8]) -> Vec<u8> {
        let value = json::parse(answer).unwrap();
        let (mut out, mut copied) = (Vec::new(), 0);
        for link in links(&value).map(|link| link.range_in(answer).unwrap()) {
            out.extend_from_slice(&answer[copied..link.start]);
            copied = link.end;
        }
        out.extend_from_slice(&answer[copied..]);
        out
    }

    proptest! {
        #[test]
        fn only_links_change_and_only_once(answer in answers(), public in 0..3_usize) {
            let links = links_to("http://up:1");
            // Among them are the upstream itself, and Twilio's host with a path.
            let base = base(["http://gw/prefix", "http://up:1", "https://insights.twilio.com/x"][public]);
            let answer = Bytes::from(answer);
            let out = links.rewrite(&answer, &base);
            prop_assert_eq!(out.is_ok(), json::parse(&answer).is_ok());
            let Ok(out) = out else { return Ok(()) };
            prop_assert!(json::parse(&out).is_ok());
            prop_assert_eq!(without_links(&out), without_links(&answer));
            prop_assert_eq!(links.rewrite(&out, &base).unwrap(), out);
        }
    }
}
