//! One request to the admin plane of a running gateway, for `health` and `status`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;

use super::client::{Address, Client, Failure, Limits};
use super::exit;
use super::output::explain;

/// Time limit for resolving, connecting, sending and receiving together.
const PATIENCE: Duration = Duration::from_secs(3);
/// Enough for some text about each of a thousand accounts and teams.
const LARGEST_ANSWER: usize = 4 << 20;
const DEFAULT_URL: &str = "http://127.0.0.1:9090";
/// The gateway's own variable, so that inside its container no argument is needed.
const ADMIN_LISTEN: &str = "INSIGHTS_GATEWAY_ADMIN__LISTEN";

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Requests `path` from the URL, or from the gateway that the environment names. If there is no response, it explains
/// why.
///
/// # Errors
///
/// The exit code; the reason has been printed.
pub(super) fn ask(url: Option<&str>, path: &str, token: Option<&str>) -> Result<(Address, Answer), ExitCode> {
    let failed = |message: String, code| {
        explain(&format!("insights-gateway: {message}"));
        Err(ExitCode::from(code))
    };
    let address = match url {
        Some(url) => address_of_url(url),
        None => address_of_listen(&std::env::var(ADMIN_LISTEN).unwrap_or_default()),
    };
    let address = match address {
        Ok(address) => address,
        Err(message) => return failed(message, exit::USAGE),
    };
    if token.is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
        return failed("the token must be plain visible characters".to_owned(), exit::USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format!("cannot start: {error}"), exit::INTERNAL),
    };
    let asked = runtime.block_on(async {
        let question = question(address.clone(), path, token);
        tokio::time::timeout(PATIENCE, question).await.unwrap_or(Err(Failure::Silent(PATIENCE)))
    });
    // A resolver that hangs in its own thread must not delay the exit.
    runtime.shutdown_background();
    match asked {
        Ok(answer) => Ok((address, answer)),
        Err(failure) => failed(format!("{address}: {failure}"), exit::NOT_READY),
    }
}

/// Waits between two requests.
pub(super) fn pause(time: Duration) {
    // Without a runtime, no request could be sent either.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() {
        runtime.block_on(async { tokio::time::sleep(time).await });
    }
}

async fn question(address: Address, path: &str, token: Option<&str>) -> Result<Answer, Failure> {
    let limits = Limits { connect: PATIENCE, answer: PATIENCE, body: LARGEST_ANSWER };
    // Without TLS there is no trust root that could fail.
    let mut client = Client::new(address, None, limits).map_err(|_| Failure::Target)?;
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = path.parse().map_err(|_| Failure::Target)?;
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Some(token) = token {
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Failure::Target)?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    let answer = client.send(request).await?;
    Ok(Answer { status: answer.status.as_u16(), body: String::from_utf8_lossy(&answer.body).into_owned() })
}

fn address_of_url(url: &str) -> Result<Address, String> {
    let address = Address::parse(url).map_err(|error| format!("--url: {error}"))?;
    match address.speaks_tls() {
        true => {
            Err("--url: only http:// and unix:// URLs are possible, because the admin plane does not use TLS"
                .to_owned())
        }
        false => Ok(address),
    }
}

/// `listen` is the gateway's own address. If that means every address, loopback is one of them.
fn address_of_listen(listen: &str) -> Result<Address, String> {
    if listen.is_empty() {
        return address_of_url(DEFAULT_URL);
    }
    let address = reachable(listen)
        .ok_or_else(|| format!("{ADMIN_LISTEN}: expected an IP address with a port; or give --url"))?;
    address_of_url(&format!("http://{address}"))
}

/// An address at which a listener on `listen` can be reached from this machine.
pub(super) fn reachable(listen: &str) -> Option<SocketAddr> {
    let mut address: SocketAddr = listen.parse().ok()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_gateways_address() {
        assert_eq!(address_of_listen("[::]:9091").unwrap().to_string(), "http://[::1]:9091");
        assert_eq!(address_of_listen("0.0.0.0:9090"), address_of_listen(""));
        assert!(address_of_listen("unix:/x").is_err());
        assert!(address_of_url("https://localhost").unwrap_err().contains("does not use TLS"));
        assert!(address_of_url("unix:///run/admin.sock").is_ok());
    }
}
