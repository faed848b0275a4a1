//! Finds out why an attempt failed, from its errors. The class tells an operator what to check first.

use std::error::Error;
use std::io;
use std::time::Duration;

use http::Uri;
use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use tower::BoxError;

use super::dial::DialError;
use super::egress::ProxyError;
use super::pool::ConnectError;
use crate::core::cause::{Cause, CauseKind};
use crate::core::chain::chain;

/// How many names of a certificate are shown: it may have hundreds.
const MOST_NAMES: usize = 5;

/// Why there is no connection.
pub(super) fn of_connecting(error: &ConnectError, upstream: &Uri, limit: Duration) -> Cause {
    match error {
        ConnectError::TooSlow => {
            let text = format!("no connection to {} within {} ms", authority(upstream), limit.as_millis());
            Cause::new(CauseKind::Timeout, text)
        }
        ConnectError::Failed(error) => of_connection(error, upstream),
    }
}

fn of_connection(error: &BoxError, upstream: &Uri) -> Cause {
    let error = &**error as &(dyn Error + 'static);
    if let Some(proxy) = error.downcast_ref::<ProxyError>() {
        return Cause::new(CauseKind::Proxy, chain(proxy));
    }
    if let Some(dial) = error.downcast_ref::<DialError>() {
        let kind = match dial {
            DialError::Resolve { .. } | DialError::NoAddress { .. } => CauseKind::Dns,
            DialError::Connect { .. } => CauseKind::Tcp,
        };
        return Cause::new(kind, chain(dial));
    }
    of_io(error, upstream, "the connection broke before TLS was agreed upon")
}

/// Why a connection broke during an exchange. `what` describes the exchange.
pub(super) fn of_exchange(error: &hyper::Error, upstream: &Uri, what: &str) -> Cause {
    match error.is_parse() {
        true => Cause::new(CauseKind::InvalidAnswer, format!("not HTTP: {error}")),
        false => of_io(error, upstream, what),
    }
}

fn of_io(error: &(dyn Error + 'static), upstream: &Uri, what: &str) -> Cause {
    match tls(error) {
        Some(error) => Cause::new(CauseKind::Tls, of_tls(error, upstream)),
        None => Cause::new(CauseKind::Tcp, format!("{what}: {}", chain(error))),
    }
}

fn of_tls(error: &rustls::Error, upstream: &Uri) -> String {
    use CertificateError as Certificate;
    let host = upstream.host().unwrap_or_default();
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return match error {
            rustls::Error::InvalidMessage(_) => format!("{} does not answer in TLS ({error})", authority(upstream)),
            _ => error.to_string(),
        };
    };
    match certificate {
        Certificate::ExpiredContext { not_after, .. } => {
            format!("the certificate of {host} expired {}", time(*not_after))
        }
        Certificate::Expired => format!("the certificate of {host} has expired"),
        Certificate::NotValidYetContext { not_before, .. } => {
            format!("the certificate of {host} is not valid before {}", time(*not_before))
        }
        Certificate::NotValidForNameContext { presented, .. } => {
            // The form in which the library shows them: `DnsName("insights.example")`.
            let bare = |name: &'_ String| name.split('"').nth(1).unwrap_or(name).to_owned();
            let mut names = presented.iter().take(MOST_NAMES).map(bare).collect::<Vec<_>>().join(", ");
            if presented.len() > MOST_NAMES {
                names.push_str(" and more");
            }
            let names = if names.is_empty() { "for no name" } else { &format!("for {names}") };
            format!("the certificate is {names}, not for {host}")
        }
        Certificate::NotValidForName => format!("the certificate is not for {host}"),
        Certificate::UnknownIssuer => {
            format!("an unknown authority signed the certificate of {host} (upstream.ca_file can add one)")
        }
        Certificate::Revoked => format!("the certificate of {host} was revoked"),
        // The library has no variant of its own for it.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            format!("{host} shows the certificate of an authority; it needs one that the authority signed")
        }
        other => format!("the certificate of {host} cannot be used: {other}"),
    }
}

fn time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    seconds.and_then(|s| Timestamp::from_second(s).ok()).map_or_else(String::new, |time| time.to_string())
}

fn authority(url: &Uri) -> &str {
    url.authority().map_or("", |authority| authority.as_str())
}

/// The TLS library's error in the chain of sources. `source` of an `io::Error` skips the error that it wraps.
fn tls<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::uri::Authority;

    use super::*;

    const URL: &str = "https://insights.example:8443/";

    fn said(error: impl Into<BoxError>) -> String {
        of_connecting(&ConnectError::Failed(error.into()), &Uri::from_static(URL), Duration::ZERO).to_string()
    }

    /// An error as hyper-rustls wraps it: an I/O error around tokio-rustls' I/O error.
    fn certificate(error: CertificateError) -> io::Error {
        io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error)))
    }

    #[test]
    fn every_stage_of_connecting_has_its_class() {
        let address = SocketAddr::from(([192, 0, 2, 1], 8443));
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let resolve = DialError::Resolve { host: "insights.example".to_owned(), source: "no such name".into() };
        assert_eq!(said(resolve), "DNS: insights.example: no such name");
        assert_eq!(
            said(DialError::NoAddress { host: "a.example".to_owned() }),
            "DNS: a.example: the name has no address"
        );
        let connect = DialError::Connect { address, source: refused().into() };
        assert_eq!(said(connect), "TCP: 192.0.2.1:8443: connection refused");
        let proxy = || Authority::from_static("proxy.example:3128");
        assert_eq!(
            said(ProxyError::Refused { proxy: proxy(), status: 407 }),
            "proxy: the proxy proxy.example:3128 answers CONNECT with 407"
        );
        let unreachable = ProxyError::Unreachable {
            proxy: proxy(),
            source: Box::new(DialError::Connect { address, source: refused().into() }),
        };
        assert!(said(unreachable).starts_with("proxy: no connection to the proxy proxy.example:3128: 192.0.2.1"));
        let reset = io::Error::other(io::Error::from(io::ErrorKind::ConnectionReset));
        assert!(said(reset).starts_with("TCP: the connection broke before TLS was agreed upon: "));
        let slow = of_connecting(&ConnectError::TooSlow, &Uri::from_static(URL), Duration::from_millis(5000));
        assert_eq!(slow.to_string(), "timeout: no connection to insights.example:8443 within 5000 ms");
    }

    #[test]
    fn a_certificate_error_says_what_is_wrong() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let presented = |count: usize| (1..=count).map(|n| format!("DnsName(\"{n}.example\")")).collect::<Vec<_>>();
        let name = |count| CertificateError::NotValidForNameContext {
            expected: rustls::pki_types::ServerName::try_from("insights.example").unwrap(),
            presented: presented(count),
        };
        for (error, text) in [
            (
                CertificateError::ExpiredContext { time: at(9), not_after: at(1) },
                "TLS: the certificate of insights.example expired 1970-01-01T00:00:01Z",
            ),
            (
                CertificateError::NotValidYetContext { time: at(0), not_before: at(1) },
                "TLS: the certificate of insights.example is not valid before 1970-01-01T00:00:01Z",
            ),
            (name(2), "TLS: the certificate is for 1.example, 2.example, not for insights.example"),
            (name(0), "TLS: the certificate is for no name, not for insights.example"),
            (
                name(6),
                "TLS: the certificate is for 1.example, 2.example, 3.example, 4.example, 5.example and more, not for insights.example",
            ),
            (
                CertificateError::UnknownIssuer,
                "TLS: an unknown authority signed the certificate of insights.example (upstream.ca_file can add one)",
            ),
        ] {
            assert_eq!(said(certificate(error)), text);
        }
        let other = io::Error::other(io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
        ));
        assert!(said(other).starts_with("TLS: insights.example:8443 does not answer in TLS"));
    }
}
