//! `health`: is the gateway at that admin address ready. For containers that hold nothing but this binary.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{exit, explain};

/// For resolving, connecting, asking and answering together.
const PATIENCE: Duration = Duration::from_secs(3);
/// Enough for a status line, the head and a word on each check.
const LARGEST_ANSWER: u64 = 16 << 10;
const DEFAULT_URL: &str = "http://127.0.0.1:9090";
/// The gateway's own variable: inside its container the probe then needs no argument.
const ADMIN_LISTEN: &str = "INSIGHTS_GATEWAY_ADMIN__LISTEN";

/// Arguments of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Admin URL; by default http:// and INSIGHTS_GATEWAY_ADMIN__LISTEN, else http://127.0.0.1:9090
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
}

/// Asks, and explains an answer other than yes.
pub fn run(args: &HealthArgs) -> ExitCode {
    let listen = std::env::var(ADMIN_LISTEN).ok();
    let target = match &args.url {
        Some(url) => Target::of_url(url),
        None => Target::of_listen(listen.as_deref().unwrap_or_default()),
    };
    let target = match target {
        Ok(target) => target,
        Err(message) => {
            explain(&format!("insights-gateway: {message}"));
            return ExitCode::from(exit::USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            explain(&format!("insights-gateway: cannot start: {error}"));
            return ExitCode::from(exit::INTERNAL);
        }
    };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, target.ask()).await });
    // A resolver that hangs in a thread of its own must not outlast our patience.
    runtime.shutdown_background();
    let refusal = match answer {
        Ok(Ok(answer)) if status(&answer) == Some(200) => return ExitCode::from(exit::DONE),
        Ok(Ok(answer)) => match status(&answer) {
            Some(status) => format!("/readyz answered {status}{}", reasons(&answer)),
            None => "what answered does not speak HTTP/1.1; is this the admin address?".to_owned(),
        },
        Ok(Err(error)) => format!("no answer: {error}"),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    explain(&format!("insights-gateway: not ready at http://{}: {refusal}", target.authority));
    ExitCode::from(exit::NOT_READY)
}

/// Whom to ask, and for what.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    authority: String,
    host: String,
    port: u16,
    path: String,
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
            path: format!("{}/readyz", url.path().trim_end_matches('/')),
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

    async fn ask(&self) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let Self { authority, path, .. } = self;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut stream = stream.take(LARGEST_ANSWER);
        // A yes is complete with its status line; the reasons of a no are worth waiting for.
        while stream.read_buf(&mut answer).await? > 0 {
            if answer.contains(&b'\n') && status(&answer) == Some(200) {
                break;
            }
        }
        Ok(answer)
    }
}

/// The status of an HTTP/1 answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (_, rest) = line.split_once(' ').filter(|(version, _)| version.starts_with("HTTP/1."))?;
    rest.split(' ').next()?.parse().ok()
}

/// What the answer says beyond its status, on one line that steers no terminal.
fn reasons(answer: &[u8]) -> String {
    let answer = String::from_utf8_lossy(answer);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let words: Vec<&str> = body.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if line.is_empty() { line } else { format!(": {line}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whom_to_ask() {
        let target = Target::of_url("http://localhost:9090/").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("localhost", 9090, "/readyz"));
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
    fn reads_the_status_and_the_reasons() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503\r\n\r\n"), Some(503));
        assert_eq!(status(b"SSH-2.0-x 200\r\n"), None);
        assert_eq!(status(b""), None);
        assert_eq!(reasons(b"HTTP/1.1 503 X\r\n\r\n{\"a\":\x1b[1m1}\n"), ": {\"a\": [1m1}");
    }
}
