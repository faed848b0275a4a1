use super::*;
use crate::cache::EntryView;
use crate::semantics::freshness::Lifetimes;

#[tokio::test]
async fn a_page_is_found_by_a_replica_with_other_names_and_another_wall_clock() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    // Its clocks have nothing in common with those of this machine.
    let (clock, machine) = Clock::simulation();
    machine.step_wall(-3600);
    let other = Replica::with(server.settings(), "renamed", clock);
    other.shares().await;
    let stored = StoredResponse { made: one.clock.moment().before(20 * S), ..one.response("a") };
    one.keep_as(stored, Kind::Any);
    one.written().await;
    assert_eq!(other.in_memory("a"), None);
    assert_eq!(other.body("a").await, Some(example_body("a")));
    let entry = other.store.page(&key("a")).unwrap();
    assert_eq!(entry.stored.account, one.account.id());
    let age = entry.stored.age(other.clock.moment());
    assert!(age >= 20 * S && age < 25 * S, "{age:?}");
    assert!(entry.asked <= other.clock.now());
    // And back: what the other replica keeps.
    other.keep("b");
    other.written().await;
    assert_eq!(one.body("b").await, Some(example_body("b")));
    assert_eq!(one.operations("page_get", "ok"), 1);
}

#[tokio::test]
async fn many_who_ask_at_once_look_once() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    let found = futures_util::future::join_all((0..200).map(|_| other.body("a"))).await;
    assert!(found.iter().all(Option::is_some));
    assert_eq!(other.operations("page_get", "ok"), 1);
    assert!(other.pages.lookups().is_empty());
    assert_eq!(other.body("absent").await, None);
    assert_eq!(other.operations("page_get", "miss"), 1);
}

#[tokio::test]
async fn a_page_beyond_its_windows_is_not_used() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let stored = StoredResponse { lifetimes: Lifetimes::fresh_only(4 * S), ..one.response("a") };
    one.keep_as(stored, Kind::Any);
    one.written().await;
    let name = one.page_keys().await.remove(0);
    // Whoever can write to the store makes it last.
    let _: bool = one.run(cmd("PERSIST").arg(&name)).await;
    tokio::time::sleep(4 * S).await;
    assert_eq!(other.body("a").await, None);
    let entries: Vec<EntryView> = other.store.entries(None, 10, other.clock.moment());
    assert!(entries.is_empty());
}

#[tokio::test]
async fn a_request_that_has_waited_enough_does_not_ask_the_store() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    assert!(one.load("a", &Arc::new(RequestContext::that_has_waited())).is_none());
    let context = Arc::default();
    one.load("a", &context).unwrap().await;
    assert!(
        context.store_wait.left(one.shared.patience()).is_some_and(|left| left < one.shared.patience()),
        "it counts"
    );
}

#[tokio::test]
async fn a_look_up_that_panics_is_not_waited_for() {
    let Some(server) = TestServer::start() else { return };
    let replica = Replica::start(&server).await;
    let mut failed = replica.pages.join(key("a"), async { panic!("a defect") });
    let ended = async { while failed.changed().await.is_ok() {} };
    tokio::time::timeout(10 * S, ended).await.expect("it has ended");
    let (sender, begun) = tokio::sync::oneshot::channel();
    let _second = replica.pages.join(key("a"), async { sender.send(()).unwrap() });
    tokio::time::timeout(10 * S, begun).await.expect("another one begins").unwrap();
}
