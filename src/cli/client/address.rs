//! The address of a gateway: `http://host:port/base`, `https://host:port/base` or `unix:///path/to.sock`.

use std::fmt;
use std::path::{Path, PathBuf};

use http::Uri;

/// Why a text is not an address of a gateway. Never repeats the text, which may contain a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::cli) enum AddressError {
    /// It is not a URL.
    #[error("expected a URL: http://HOST:PORT, https://HOST or unix:///path/to.sock")]
    Malformed,
    /// A host without a scheme.
    #[error("it begins with a host; put http:// or https:// in front of it")]
    Scheme,
    /// A user or password before an `@`.
    #[error("must not contain a user or password; a token comes from a variable or a file")]
    User,
    /// A query after a `?`.
    #[error("must not contain a query")]
    Query,
}

/// The address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Address {
    pub(super) transport: Transport,
    authority: String,
    base: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl Address {
    /// Reads a URL. `unix:/path`, as the configuration writes it, means the same as `unix:///path`.
    pub(in crate::cli) fn parse(url: &str) -> Result<Self, AddressError> {
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.starts_with('/') && path.len() > 1 {
                true => Ok(Self::unix(Path::new(path))),
                false => Err(AddressError::Malformed),
            };
        }
        let url: Uri = url.parse().map_err(|_| AddressError::Malformed)?;
        let (scheme, authority) = match (url.scheme_str(), url.authority()) {
            (Some(scheme), Some(authority)) => (scheme, authority),
            (None, Some(_)) => return Err(AddressError::Scheme),
            _ => return Err(AddressError::Malformed),
        };
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(AddressError::Malformed),
        };
        let port = match authority.as_str().strip_prefix(authority.host()).ok_or(AddressError::User)? {
            "" if tls => 443,
            "" => 80,
            _ => authority.port_u16().ok_or(AddressError::Malformed)?,
        };
        if url.query().is_some() {
            return Err(AddressError::Query);
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(AddressError::Malformed);
        }
        Ok(Self {
            transport: Transport::Tcp { host, port, tls },
            authority: authority.to_string(),
            base: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The socket at `path`.
    pub(in crate::cli) fn unix(path: &Path) -> Self {
        Self { transport: Transport::Unix(path.to_owned()), authority: "localhost".to_owned(), base: String::new() }
    }

    /// The prefix of every path, without a slash at its end.
    pub(in crate::cli) fn base(&self) -> &str {
        &self.base
    }

    /// The same gateway with another base path.
    pub(in crate::cli) fn with_base(self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self }
    }

    pub(in crate::cli) fn speaks_tls(&self) -> bool {
        matches!(self.transport, Transport::Tcp { tls: true, .. })
    }

    /// The value of `Host`.
    pub(super) fn host(&self) -> &str {
        &self.authority
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Tcp { tls: true, .. } => write!(f, "https://{}{}", self.authority, self.base),
            Transport::Tcp { tls: false, .. } => write!(f, "http://{}{}", self.authority, self.base),
            Transport::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_the_gateway() {
        let tcp = |host: &str, port, tls| Transport::Tcp { host: host.to_owned(), port, tls };
        for (url, transport, host, base, shown) in [
            (
                "http://localhost:9090/x/",
                tcp("localhost", 9090, false),
                "localhost:9090",
                "/x",
                "http://localhost:9090/x",
            ),
            ("http://gateway", tcp("gateway", 80, false), "gateway", "", "http://gateway"),
            ("https://gateway", tcp("gateway", 443, true), "gateway", "", "https://gateway"),
            ("https://[::1]:8443/", tcp("::1", 8443, true), "[::1]:8443", "", "https://[::1]:8443"),
            ("unix:///run/x.sock", Transport::Unix("/run/x.sock".into()), "localhost", "", "unix:///run/x.sock"),
            ("unix:/run/x.sock", Transport::Unix("/run/x.sock".into()), "localhost", "", "unix:///run/x.sock"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((&address.transport, address.host(), address.base()), (&transport, host, base), "{url}");
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_refused_and_never_repeated() {
        for (url, error) in [
            ("", AddressError::Malformed),
            ("127.0.0.1:9090", AddressError::Scheme),
            ("localhost", AddressError::Scheme),
            ("ftp://h", AddressError::Malformed),
            ("http://", AddressError::Malformed),
            ("http://h:99999", AddressError::Malformed),
            ("unix:", AddressError::Malformed),
            ("unix://", AddressError::Malformed),
            ("unix://relative.sock", AddressError::Malformed),
            ("http://user:s3cret@h", AddressError::User),
            ("http://h?x", AddressError::Query),
        ] {
            assert_eq!(Address::parse(url), Err(error), "{url}");
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
