//! Requests that two servers could understand differently.

use crate::support::*;

#[tokio::test]
async fn two_authorization_headers_are_refused() {
    let upstream = Upstream::start().await;
    let gateway = ["one", "two"]
        .iter()
        .fold(TestConfig::new(upstream.url()), |config, team| {
            config.set(&format!("teams.{team}.token_sha256"), sha256_hex(team))
        })
        .start()
        .await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (one, other) in [("one", "two"), ("one", "one"), ("one", "nobody"), ("nobody", "one")] {
        let headers = format!("{}{}", bearer(one), bearer(other));
        gateway.ask(&get(METADATA, &headers)).await.assert_refused(401, "unauthenticated");
        gateway.ask(&post_to(QUERY, &headers, ASK)).await.assert_refused(401, "unauthenticated");
    }
    assert_eq!(gateway.ask(&get(METADATA, &bearer("one"))).await.status, 200);
}

#[tokio::test]
async fn a_coded_body_is_refused() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for coding in ["gzip", "br", "identity, gzip", "x", "identity\r\nContent-Encoding: gzip"] {
        let answer = gateway.ask(&post_to(QUERY, &format!("Content-Encoding: {coding}\r\n"), ASK)).await;
        answer.assert_refused(400, "bad_request");
    }
    for coding in ["identity", "Identity", ""] {
        assert_eq!(gateway.ask(&post_to(QUERY, &format!("Content-Encoding: {coding}\r\n"), ASK)).await.status, 200);
    }
}
