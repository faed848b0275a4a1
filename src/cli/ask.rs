//! One question to the admin plane of a running gateway, for `health` and `status`.
//!
//! Small on purpose: containers that hold nothing but this binary ask with it every few seconds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use http::Uri;

use super::{exit, explain};

/// For resolving, connecting, asking and answering together.
const PATIENCE: Duration = Duration::from_secs(3);
/// Enough for a word on each of a thousand accounts and teams.
const LARGEST_ANSWER: u64 = 4 << 20;
const DEFAULT_URL: &str = "http://127.0.0.1:9090";
/// The gateway's own variable: inside its container a question then needs no argument.
const ADMIN_LISTEN: &str = "INSIGHTS_GATEWAY_ADMIN__LISTEN";

/// Whom to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    authority: String,
    host: String,
    port: u16,
    /// What stands before every path.
    base: String,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Asks for `path` at the URL, or where the environment says that the gateway is, and explains why there is no answer.
///
/// # Errors
///
/// The code to exit with, when all has been said.
pub(super) fn ask(url: Option<&str>, path: &str, token: Option<&str>) -> Result<(Target, Answer), ExitCode> {
    let failed = |message: String, code| {
        explain(&format!("insights-gateway: {message}"));
        Err(ExitCode::from(code))
    };
    let target = match url {
        Some(url) => Target::of_url(url),
        None => Target::of_listen(&std::env::var(ADMIN_LISTEN).unwrap_or_default()),
    };
    let target = match target {
        Ok(target) => target,
        Err(message) => return failed(message.to_owned(), exit::USAGE),
    };
    if token.is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
        return failed("the token must be plain visible characters".to_owned(), exit::USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format!("cannot start: {error}"), exit::INTERNAL),
    };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, target.ask(path, token)).await });
    // A resolver that hangs in a thread of its own must not outlast our patience.
    runtime.shutdown_background();
    let why = match answer {
        Ok(Ok(answer)) => match Answer::read(&answer) {
            Some(answer) => return Ok((target, answer)),
            None => "what answered does not speak HTTP/1.1; is this the admin address?".to_owned(),
        },
        Ok(Err(error)) => format!("no answer: {error}"),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    failed(format!("{target}: {why}"), exit::NOT_READY)
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl Target {
    fn of_url(url: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "--url: expected an admin URL such as http://127.0.0.1:9090";
        let url: Uri = url.parse().map_err(|_| EXPECTED)?;
        let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(EXPECTED);
        };
        if scheme != "http" {
            return Err("--url: only http:// URLs can be asked; the admin plane speaks no TLS");
        }
        let rest = authority.as_str().strip_prefix(authority.host());
        let port = match rest.ok_or("--url: must not hold a user or password")? {
            "" => 80,
            _ => authority.port_u16().ok_or(EXPECTED)?,
        };
        if url.query().is_some() {
            return Err("--url: must not hold a query");
        }
        Ok(Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            base: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// `listen` is where the gateway listens, which may be every address: loopback is one of them.
    fn of_listen(listen: &str) -> Result<Self, &'static str> {
        if listen.is_empty() {
            return Self::of_url(DEFAULT_URL);
        }
        let mut address: SocketAddr = listen
            .parse()
            .map_err(|_| "INSIGHTS_GATEWAY_ADMIN__LISTEN: expected an IP address with a port; or give --url")?;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Self::of_url(&format!("http://{address}"))
    }

    async fn ask(&self, path: &str, token: Option<&str>) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let Self { authority, base, .. } = self;
        let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!("GET {base}{path} HTTP/1.1\r\nHost: {authority}\r\n{token}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut stream = stream.take(LARGEST_ANSWER);
        // Not all that answers closes when it was asked to.
        while !Answer::is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {}
        Ok(answer)
    }
}

impl Answer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let status = status(bytes)?;
        let text = String::from_utf8_lossy(bytes);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        Some(Self { status, body })
    }

    /// Has all of it come that its head announces.
    fn is_whole(bytes: &[u8]) -> bool {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        length.is_some_and(|length| bytes.len() >= end + 4 + length)
    }
}

/// The status of an HTTP/1 answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (_, rest) = line.split_once(' ').filter(|(version, _)| version.starts_with("HTTP/1."))?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whom_to_ask() {
        let target = Target::of_url("http://localhost:9090/x/").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.base.as_str()), ("localhost", 9090, "/x"));
        let target = Target::of_listen("[::]:9091").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("::1", 9091));
        assert_eq!(Target::of_listen("0.0.0.0:9090"), Target::of_listen(""));
        for url in ["", "127.0.0.1:9090", "https://localhost", "http://user@localhost", "http://h:99999", "http://h?x"]
        {
            assert!(Target::of_url(url).is_err(), "{url}");
        }
        assert!(Target::of_listen("unix:/x").is_err());
    }

    #[test]
    fn reads_answers() {
        let read = |bytes: &[u8]| Answer::read(bytes).map(|answer| (answer.status, answer.body));
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n\r\n"), Some((200, String::new())));
        assert_eq!(read(b"HTTP/1.0 503\r\na: b\r\n\r\nno\n"), Some((503, "no\n".to_owned())));
        assert_eq!(read(b"SSH-2.0-x 200\r\n"), None);
        assert_eq!(read(b""), None);
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes";
        assert!(Answer::is_whole(whole) && !Answer::is_whole(&whole[..whole.len() - 1]) && !Answer::is_whole(b"HTTP"));
    }
}
