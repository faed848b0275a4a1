use super::*;
use crate::replicas::StoreUse;
use crate::replicas::seal::Context;

/// Runs this script on the keys of the feed.
async fn damage(replica: &Replica, what: Damage) {
    let names = ["{changes}", "{changes}:purged", "{changes}:replaced", "{changes}:clock"];
    let names = names.map(|kind| replica.shared.key_names().of_deployment(kind));
    let _: redis::Value = replica.run(cmd("EVAL").arg(what).arg(names.len()).arg(&names)).await;
}

#[tokio::test]
async fn damaged_keys_are_deleted_and_what_was_purged_does_not_come_back() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    for what in [
        "redis.call('HSET', KEYS[4], 'ahead', '90000000000')",
        "redis.call('SET', KEYS[1], 'text')",
        "redis.call('SET', KEYS[2], 'text')",
        "redis.call('DEL', KEYS[3]) redis.call('SADD', KEYS[3], 'text')",
        "redis.call('HDEL', KEYS[1], 'generation')",
        "redis.call('HSET', KEYS[1], 'generation', 'text')",
        "redis.call('HSET', KEYS[1], 'generation', string.rep(string.char(255), 32))",
        "redis.call('HSET', KEYS[1], 'generation', string.rep('A', 32))",
        "redis.call('HSET', KEYS[1], KEYS[2], 'text')",
        "redis.call('HSET', KEYS[1], KEYS[2], '')",
        "redis.call('HSET', KEYS[1], KEYS[3], '-1')",
        "redis.call('HSET', KEYS[1], 'trimmed', 'text')",
        "redis.call('HINCRBY', KEYS[1], KEYS[2], 1000)",
        "redis.call('DEL', KEYS[2])",
        "redis.call('XADD', KEYS[2], '99999999999999-0', 'number', '1', 'entry', 'text')",
    ] {
        let before = share_again(&one, &other).await;
        one.keep("a");
        one.written().await;
        other.keep("b");
        assert!(purge(&one, Purge::Key(key("a").to_string())).await, "{what}");
        damage(&one, what).await;
        until(what, || {
            let now = [&one, &other].map(|replica| replica.pages.feed().generation());
            now.iter().all(|now| now.is_some_and(|now| now != before))
        })
        .await;
        assert_eq!(other.in_memory("b"), None, "{what}: it may have been purged");
        // Not even by a replica that has just started.
        let third = Replica::start(&server).await;
        for replica in [&one, &other, &third] {
            assert_eq!(replica.body("a").await, None, "{what}");
        }
        assert_shared(&one, &other, what).await;
    }
}

#[tokio::test]
async fn damaged_entries_are_skipped_one_by_one() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let generation = share_again(&one, &other).await;
    let unsealed = || other.metrics.shared_unsealed.get();
    for what in [
        "redis.call('XADD', KEYS[3], '*', 'text', 'text')",
        "redis.call('XADD', KEYS[3], '*', 'number', '1', 'entry', 'text')",
        "redis.call('XADD', KEYS[2], '*', 'text', 'text')",
        "redis.call('XADD', KEYS[2], '*', 'number', '-1', 'entry', '')",
        "redis.call('XADD', KEYS[2], '*', 'number', '99999999', 'entry', 'text')",
        "redis.call('XADD', KEYS[2], '*', 'a', 'b', 'c', 'd', 'e', 'f')",
    ] {
        other.keep("b");
        let before = unsealed();
        damage(&one, what).await;
        until(what, || unsealed() > before).await;
        have_applied(&one, &other).await;
        let is_purged = other.in_memory("b").is_none();
        assert_eq!(is_purged, what.contains("KEYS[2]"), "{what}: a purge that cannot be read is one of everything");
        assert_shared(&one, &other, what).await;
    }
    // One that a later version has sealed.
    for (kind, entry) in [("{changes}:replaced", &b"text"[..]), ("{changes}:purged", &[250])] {
        let before = unsealed();
        let name = one.shared.key_names().of_deployment(kind);
        let context = Context { kind: "change", account: "", key: &name, bound: &generation.0 };
        let sealed = one.shared.sealer().seal(&context, &[&[b'0'; 32], entry].concat()).unwrap();
        let _: String = one.run(cmd("XADD").arg(&name).arg("*").arg("number").arg(0).arg("entry").arg(sealed)).await;
        until("it is read", || unsealed() > before).await;
        assert_shared(&one, &other, "of a later version").await;
    }
    assert_eq!(share_again(&one, &other).await, generation);
}

#[tokio::test]
async fn an_entry_that_is_too_long_does_not_cross() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    share_again(&one, &other).await;
    let (before, unsealed) = (server.sent(), || other.metrics.shared_unsealed.get());
    for what in [
        "redis.call('XADD', KEYS[3], '*', 'number', '1', 'entry', string.rep('x', 4194304))",
        "redis.call('XADD', KEYS[2], '*', string.rep('x', 4194304), '')",
    ] {
        let known = unsealed();
        damage(&one, what).await;
        until(what, || unsealed() > known).await;
        assert_shared(&one, &other, what).await;
    }
    assert!(server.sent() - before < 4 << 20);
}

#[tokio::test]
async fn a_feed_that_cannot_be_read_is_a_fault_that_ends_by_itself() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let view = || one.shared.view();
    // All keys but those of the feed, whose names end in `ed`.
    let _: () = one.run(cmd("ACL").arg(&["SETUSER", "default", "resetkeys", "~*[^e]?", "~*e[^d]"])).await;
    until("the fault is known", || view().cause.is_some()).await;
    assert!(view().usage == StoreUse::Part && view().cause.unwrap().ends_with("shared.prefix: NOPERM"), "{:?}", view());
    assert!(one.shared.is_up() && one.pages.feed().generation().is_none());
    let _: () = one.run(cmd("ACL").arg(&["SETUSER", "default", "allkeys"])).await;
    until("it is over", || view().cause.is_none()).await;
    one.shares().await;
}

#[test]
fn generations_are_written_as_digits() {
    let generation = Generation::random();
    assert_eq!(Generation::read(&generation.to_string()), Some(generation));
    for wrong in ["", "0", "+0000000000000000000000000000000", &"g".repeat(32)] {
        assert_eq!(Generation::read(wrong), None, "{wrong}");
    }
}
