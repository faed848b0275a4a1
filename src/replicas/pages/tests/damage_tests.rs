use super::*;

#[tokio::test]
async fn what_cannot_be_opened_is_a_miss() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    one.keep("a");
    one.written().await;
    let other_key = Settings { seal: vec![zeroize::Zeroizing::new([8; 32])], ..server.settings() };
    let stranger = Replica::with(other_key, "main", Clock::new());
    stranger.shares().await;
    assert_eq!(stranger.body("a").await, None);
    assert_eq!(stranger.metrics.shared_unsealed.get(), 1);

    let reader = Replica::start(&server).await;
    let name = one.page_keys().await.remove(0);
    let sealed: Vec<u8> = one.run(cmd("GET").arg(&name)).await;
    // Another time of the request, one bit, a cut, nothing at all.
    let mut later = sealed.clone();
    later[0] += 1;
    let mut damaged = sealed.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (n, forged) in [&later, &damaged, &sealed[..20].to_vec(), &vec![]].into_iter().enumerate() {
        let _: () = one.run(cmd("SET").arg(&name).arg(forged)).await;
        assert_eq!(reader.body("a").await, None);
        assert_eq!(reader.metrics.shared_unsealed.get(), n as u64 + 1);
        let there: Vec<u8> = one.run(cmd("GET").arg(&name)).await;
        assert!(there == *forged && reader.operations("page_remove", "ok") == 0, "it is left alone");
    }
    let _: () = one.run(cmd("SET").arg(&name).arg(&sealed)).await;
    assert!(reader.body("a").await.is_some());
}

#[tokio::test]
async fn a_value_of_another_type_is_a_miss_that_is_replaced_or_removed() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let damage = async || {
        let name = one.page_keys().await.remove(0);
        let _: () = one.run(cmd("DEL").arg(&name)).await;
        let _: () = one.run(cmd("RPUSH").arg(&name).arg("of another type")).await;
    };
    one.keep("a");
    one.written().await;
    damage().await;
    let other = Replica::start(&server).await;
    assert_eq!((other.body("a").await, other.metrics.shared_unsealed.get()), (None, 1));
    assert_eq!(one.page_keys().await.len(), 1, "who cannot read it leaves it alone");
    one.keep("a");
    one.written().await;
    assert!(other.body("a").await.is_some());
    damage().await;
    let account = one.account.id();
    let (asked, made) = (one.clock.now(), one.clock.moment());
    let unstored = UnstoredResponse { account, asked, made, begins: None, next: None, is_shared: true };
    one.store.supersede(key("a"), &unstored);
    one.written().await;
    assert!(one.pages.0.writer.is_idle() && one.page_keys().await.is_empty());
    assert_eq!((one.operations("page_remove", "ok"), one.operations("page_remove", "error")), (1, 0));
}
