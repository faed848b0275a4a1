//! Who is calling: client certificates and tokens, and how unidentified clients are treated.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::certificate::{Authority, Certificate, Issued};
use crate::support::client::http2_status;
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::*;
use rcgen::SanType;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// A gateway with TLS and a client CA.
async fn certified(upstream: &Upstream, certificate: &Certificate, authority: &Authority, teams: &str) -> Gateway {
    let file = Path::new(&certificate.path("gateway.toml")).to_owned();
    let account = format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\n");
    fs::write(&file, format!("{account}rate = '0/s'\n{teams}")).unwrap();
    let config = TestConfig::new(upstream.url())
        .without_account()
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"))
        .set("server.tls.client_ca", authority.write(certificate));
    Gateway::start(config.sources().with_file(file)).await
}

fn dns(name: &str) -> Vec<SanType> {
    vec![SanType::DnsName(name.try_into().unwrap())]
}

#[tokio::test]
async fn a_client_certificate_that_names_a_team_is_that_team() {
    let (upstream, certificate, authority) = (Upstream::start().await, Certificate::new(), Authority::new());
    let teams = format!(
        "[teams.dashboards]\noperations = ['metadata']\n[teams.exports]\ntoken_sha256 = ['{}']\n",
        sha256_hex("export-token")
    );
    // One for every few unidentified clients, so that they are not slowed.
    let gateway = async || certified(&upstream, &certificate, &authority, &teams).await;
    let ask = async |gateway: &Gateway, own: Option<&Issued>, request: Vec<u8>| {
        let stream = TcpStream::connect(gateway.data).await.unwrap();
        Client::over(certificate.shake(stream, &[], own).await.unwrap()).ask(&request).await
    };
    let bearer = |token: &str| get(METADATA, &format!("Authorization: Bearer {token}\r\n"));
    let uri = SanType::URI("spiffe://example.org/dashboards".try_into().unwrap());
    for named in [
        authority.issue(&dns("dashboards"), "whoever"),
        authority.issue(&[], "dashboards"),
        authority.issue(&[uri], "whoever"),
    ] {
        let gateway = gateway().await;
        assert_eq!(ask(&gateway, Some(&named), get(METADATA, "")).await.status, 200);
        // It really is that team.
        ask(&gateway, Some(&named), post(ASK)).await.assert_refused(403, "operation_not_allowed");
        ask(&gateway, Some(&named), bearer("wrong")).await.assert_refused(401, "unauthenticated");
        ask(&gateway, Some(&named), bearer("export-token")).await.assert_refused(401, "unauthenticated");
        assert_eq!(http2_as(&gateway, &certificate, &named).await, 200);
    }
    let gateway = gateway().await;
    let unknown = authority.issue(&dns("nobody"), "whoever");
    ask(&gateway, Some(&unknown), get(METADATA, "")).await.assert_refused(401, "unauthenticated");
    assert_eq!(ask(&gateway, Some(&unknown), bearer("export-token")).await.status, 200);
    let both = authority.issue(&dns("dashboards"), "exports");
    ask(&gateway, Some(&both), get(METADATA, "")).await.assert_refused(401, "unauthenticated");
    assert_eq!(ask(&gateway, None, bearer("export-token")).await.status, 200, "a token is sufficient");
    ask(&gateway, None, get(METADATA, "")).await.assert_refused(401, "unauthenticated");
}

async fn http2_as(gateway: &Gateway, certificate: &Certificate, own: &Issued) -> u16 {
    let stream = TcpStream::connect(gateway.data).await.unwrap();
    http2_status(certificate.shake(stream, &["h2"], Some(own)).await.unwrap()).await
}

/// With TLS 1.3 a client notices a refused certificate only when it reads.
async fn is_let_in(gateway: &Gateway, certificate: &Certificate, own: Option<&Issued>) -> bool {
    let stream = TcpStream::connect(gateway.data).await.unwrap();
    let Ok(stream) = certificate.shake(stream, &[], own).await else { return false };
    Client::over(stream).try_ask(&get(METADATA, "")).await.is_some()
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (upstream, certificate, authority) = (Upstream::start().await, Certificate::new(), Authority::new());
    let gateway = certified(&upstream, &certificate, &authority, "[teams.dashboards]\n").await;
    let stranger = Authority::new().issue(&dns("dashboards"), "dashboards");
    assert!(!is_let_in(&gateway, &certificate, Some(&stranger)).await);
    let known = authority.issue(&dns("dashboards"), "dashboards");
    assert!(is_let_in(&gateway, &certificate, Some(&known)).await);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn without_teams_a_client_ca_demands_a_certificate() {
    let (upstream, certificate, authority) = (Upstream::start().await, Certificate::new(), Authority::new());
    let gateway = certified(&upstream, &certificate, &authority, "").await;
    assert!(!is_let_in(&gateway, &certificate, None).await);
    assert!(is_let_in(&gateway, &certificate, Some(&authority.issue(&[], "whoever"))).await);
}

#[tokio::test]
async fn refusals_of_unidentified_clients_are_delayed_and_delay_no_others() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let file = folder.path().join("gateway.toml");
    let account = format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\n");
    fs::write(&file, format!("{account}rate = '0/s'\n[teams.a]\ntoken_sha256 = ['{}']\n", sha256_hex("good"))).unwrap();
    let gateway = Gateway::start(TestConfig::new(upstream.url()).without_account().sources().with_file(file)).await;
    let bearer = |token: &str| get(METADATA, &format!("Authorization: Bearer {token}\r\n"));
    let begun = tokio::time::Instant::now();
    for _ in 0..6 {
        gateway.ask(&bearer("wrong")).await.assert_refused(401, "unauthenticated");
    }
    assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
    // Of the next refusals the first takes less than a second, and most take five seconds.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send(&bearer("wrong")).await;
        held.push(client);
    }
    let begun = tokio::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(gateway.ask(&bearer("good")).await.status, 200);
    }
    let good = begun.elapsed();
    let mut buffer = [0];
    assert!(held[19].stream.try_read(&mut buffer).is_err(), "no response yet, after {good:?}");
    held[0].answer().await.assert_refused(401, "unauthenticated");
}
