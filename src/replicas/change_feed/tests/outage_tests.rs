use super::*;

#[tokio::test]
async fn a_purge_while_the_store_is_away_is_told_later_and_before_all_else() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    one.shares().await;
    let other = Replica::start(&server).await;
    other.keep("a");
    other.written().await;
    server.close_door("door", &one.shared).await;
    assert!(!purge(&one, Purge::Key(key("a").to_string())).await);
    assert!(other.in_memory("a").is_some());
    server.open_door("door");
    one.shares().await;
    assert!(!one.pages.feed().has_unsent(), "told before anything is shared");
    assert_eq!(one.body("a").await, None);
    until("dropped", || other.in_memory("a").is_none()).await;
    assert_eq!(other.body("a").await, None);
}

#[tokio::test]
async fn a_replica_that_was_cut_off_applies_what_it_missed_before_it_shares() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let away = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    away.shares().await;
    for name in ["a", "b"] {
        away.keep(name);
    }
    away.written().await;
    server.close_door("door", &away.shared).await;
    assert!(purge(&one, Purge::Key(key("a").to_string())).await);
    assert!(away.in_memory("a").is_some());
    server.open_door("door");
    away.shares().await;
    assert!(away.in_memory("a").is_none() && away.in_memory("b").is_some());
    assert_eq!(away.body("a").await, None);
}

#[tokio::test]
async fn who_cannot_read_all_that_was_missed_drops_everything() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let away = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    away.shares().await;
    one.keep_as(one.response("x"), Kind::Forced);
    one.written().await;
    away.keep("a");
    assert!(purge(&one, Purge::Key(key("marker").to_string())).await);
    until("all is read", || away.pages.feed().knows(&PurgeTarget::Page(*key("marker").as_bytes()))).await;
    server.close_door("door", &away.shared).await;
    for _ in 0..2 {
        one.keep_as(one.response("x"), Kind::Forced);
    }
    one.written().await;
    let replaced: Vec<String> = one.run(cmd("KEYS").arg("*:replaced")).await;
    let _: u64 = one.run(cmd("XTRIM").arg(&replaced[0]).arg("MAXLEN").arg(1)).await;
    server.open_door("door");
    away.shares().await;
    assert_eq!(away.in_memory("a"), None);
}

#[tokio::test]
async fn a_flush_and_an_older_state_bring_nothing_back() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    let mut kept = Vec::new();
    let names: Vec<String> = one.run(cmd("KEYS").arg("*")).await;
    for name in names {
        let dump: Vec<u8> = one.run(cmd("DUMP").arg(&name)).await;
        kept.push((name, dump));
    }
    assert!(purge(&one, Purge::All).await);
    until("the purge is read", || other.pages.feed().knows(&PurgeTarget::Everything(None))).await;
    assert_eq!(other.body("a").await, None);
    let before = other.pages.feed().generation();
    // The state from before the purge, in place of the present one.
    let mut script = cmd("EVAL");
    script.arg("redis.call('FLUSHALL') for i = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 60000, ARGV[i + 1]) end");
    script.arg(0);
    for (name, dump) in &kept {
        script.arg(name).arg(dump);
    }
    let _: redis::Value = one.run(&mut script).await;
    until("another generation", || {
        let now = [&one, &other].map(|replica| replica.pages.feed().generation());
        now[0].is_some() && now[0] == now[1] && now[0] != before
    })
    .await;
    for replica in [&one, &other] {
        assert_eq!(replica.body("a").await, None);
    }
    // Pages are shared again.
    one.keep("b");
    one.written().await;
    assert!(other.body("b").await.is_some());
    let _: () = one.run(&mut cmd("FLUSHALL")).await;
    until("memory is dropped", || other.in_memory("b").is_none()).await;
}

#[tokio::test]
async fn purges_that_wait_are_bounded() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    one.shares().await;
    server.close_door("door", &one.shared).await;
    for n in 0..=MOST_UNSENT {
        let _told = one.pages.feed().publish_purge(&Purge::Key(format!("{n:016x}")), &mut HashSet::new);
    }
    let pending: Vec<_> = one.pages.feed().state().unsent.keys().copied().collect();
    assert!(pending.len() <= 2 && pending.contains(&PurgeTarget::Everything(None)), "{pending:?}");
}
