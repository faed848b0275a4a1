use super::*;
use crate::metrics::ReasonLabels;
use crate::replicas::LONGEST_BODY;
use crate::replicas::test_server::Bottleneck;

#[tokio::test]
async fn a_page_that_is_too_large_is_not_written_and_the_older_one_goes() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    one.keep("a");
    one.written().await;
    assert_eq!(one.page_keys().await.len(), 1);
    one.keep_as(one.long_response("a", LONGEST_BODY + 1), Kind::Any);
    let reason = ReasonLabels { reason: StaticLabel("too_large") };
    assert_eq!(one.metrics.shared_skipped.get_or_create(&reason).get(), 1);
    one.written().await;
    until("it is gone", || one.pages.0.writer.is_idle()).await;
    assert_eq!(one.page_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_large_page_is_shared() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep_as(one.long_response("a", 2 * LARGE), Kind::Any);
    one.written().await;
    let found = other.body("a").await;
    assert!(found.is_some() && found == one.in_memory("a"));
    assert_eq!((one.operations("page_put_large", "ok"), other.operations("page_get_large", "ok")), (1, 1));
    assert_eq!(other.metrics.shared_unsealed.get(), 0);
}

/// A replica that has sent a large page of which only a part has arrived.
async fn sending(server: &TestServer) -> (Replica, Bottleneck) {
    let (settings, bottleneck) = server.settings_with_bottleneck(LARGE);
    let one = Replica::with(settings, "main", Clock::new());
    one.shares().await;
    one.keep_as(one.long_response("large", 2 * LARGE), Kind::Any);
    bottleneck.is_reached().await;
    (one, bottleneck)
}

#[tokio::test]
async fn a_large_page_that_takes_long_holds_nothing_up() {
    let Some(server) = TestServer::start() else { return };
    let (one, bottleneck) = sending(&server).await;
    let (other, episode) = (Replica::start(&server).await, one.shared.episode());
    one.keep("small");
    until("a small page is written", || one.operations("page_put", "ok") == 1).await;
    other.keep("b");
    other.written().await;
    assert!(one.body("b").await.is_some());
    bottleneck.open();
    one.written().await;
    assert!(other.body("large").await.is_some());
    assert_eq!((one.shared.episode(), one.operations("page_put_large", "ok")), (episode, 1));
}

#[tokio::test]
async fn a_large_page_that_fails_is_no_lost_store() {
    let Some(server) = TestServer::start() else { return };
    let (one, bottleneck) = sending(&server).await;
    let episode = one.shared.episode();
    bottleneck.close();
    one.written().await;
    until("it is given up", || one.pages.0.writer.is_idle()).await;
    assert_eq!((one.operations("page_put_large", "error"), one.page_keys().await.len()), (1, 0));
    one.keep("small");
    one.written().await;
    assert_eq!((one.shared.episode(), one.page_keys().await.len()), (episode, 1));
    // The next large one has a new connection.
    bottleneck.open();
    one.keep_as(one.long_response("a", 2 * LARGE), Kind::Any);
    one.written().await;
    assert_eq!(one.operations("page_put_large", "ok"), 1);
}

#[tokio::test]
async fn a_large_page_that_was_overtaken_does_not_come_back() {
    let Some(server) = TestServer::start() else { return };
    for is_replaced in [true, false] {
        let (one, bottleneck) = sending(&server).await;
        if is_replaced {
            one.keep("large");
        } else {
            let account = one.account.id();
            let (asked, made) = (one.clock.now(), one.clock.moment());
            let unstored = UnstoredResponse { account, asked, made, begins: None, next: None, is_shared: true };
            one.store.supersede(key("large"), &unstored);
        }
        let done = if is_replaced { "page_put" } else { "page_remove" };
        until("the later change is made", || one.operations(done, "ok") == 1).await;
        bottleneck.open();
        one.written().await;
        let other = Replica::start(&server).await;
        assert_eq!(other.body("large").await, is_replaced.then(|| example_body("large")));
        server.flush();
    }
}
