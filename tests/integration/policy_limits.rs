//! Limits of queries of teams with a policy.

use crate::support::*;

#[tokio::test]
async fn copies_of_required_filters_are_limited() {
    let values: Vec<_> = (0..100).map(|n| format!("'CLOSED-{n:03}'")).collect();
    let require =
        format!("[{{ op = 'IN', field = 'Conversation.ConversationStatus', values = [{}] }}]", values.join(","));
    let upstream = Upstream::with_metadata().await;
    let gateway = TestConfig::new(upstream.url())
        .set("teams.closed.token_sha256", sha256_hex("closed"))
        .set("teams.closed.policy.require", require)
        .start()
        .await;
    let ask = async |groups: &[String]| {
        let body = format!(r#"{{"query":{{"measures":["Conversation.Count"],"filters":[{}]}}}}"#, groups.join(","));
        gateway.ask(&post_to(QUERY, "Authorization: Bearer closed\r\n", &body)).await
    };
    let empty = r#"{"op":"AND","expressions":[]}"#.to_owned();
    let of_queue = |name: String| {
        format!(r#"{{"op":"AND","expressions":[{{"op":"EQ","field":"Conversation.Queue","values":["{name}"]}}]}}"#)
    };
    // Equal groups count as one, however they are written.
    assert_eq!(ask(&vec![empty.clone(); 20_000]).await.status, 200);
    let sent = upstream.seen().last().unwrap().text();
    assert_eq!(sent.matches("CLOSED-000").count(), 1, "{sent}");
    let turned = r#"{"expressions":[{"values":["a"],"field":"Conversation.Queue","op":"EQ"}],"op":"AND"}"#.to_owned();
    assert_eq!(ask(&[of_queue("a".to_owned()), turned, of_queue("b".to_owned())]).await.status, 200);
    let sent = upstream.seen().last().unwrap().text();
    assert_eq!(sent.matches("CLOSED-000").count(), 2, "{sent}");
    let before = upstream.count();
    let different: Vec<_> = (0..3000).map(|n| of_queue(n.to_string())).collect();
    ask(&different).await.assert_refused(413, "body_too_large");
    assert_eq!(upstream.count(), before);
    assert_eq!(ask(&different[..500]).await.status, 200);
}
