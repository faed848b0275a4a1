//! Limits of a query's body.

use crate::support::*;

#[tokio::test]
async fn a_body_of_too_many_values_is_refused() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let nested = |element: &str, count: usize| format!(r#"{{"query":{{"x":[{}]}}}}"#, vec![element; count].join(","));
    for (element, values) in [("{\"\":0}", 2), ("0", 1), ("[]", 1), ("[[0]]", 3), ("\"\"", 1), ("{\"\":{\"\":{}}}", 3)]
    {
        // Three values contain the list.
        let most = (100_000 - 3) / values;
        let answer = gateway.ask(&post(&nested(element, most + 1))).await;
        answer.assert_refused(413, "body_too_large");
        assert!(answer.text().contains("100000 JSON values"), "{}", answer.text());
        assert_eq!(gateway.ask(&post(&nested(element, most))).await.status, 200, "{element}");
    }
    let flat: Vec<_> = (0..100_000).map(|n| format!("\"{n}\":0")).collect();
    gateway.ask(&post(&format!(r#"{{"query":{{{}}}}}"#, flat.join(",")))).await.assert_refused(413, "body_too_large");
    assert_eq!(upstream.count(), 6);
}
