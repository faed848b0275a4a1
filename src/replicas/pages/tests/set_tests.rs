use super::*;
use crate::cache::sets::Membership;

#[tokio::test]
async fn a_further_page_comes_with_the_first_page_of_its_set() {
    let Some(server) = TestServer::start() else { return };
    let (one, other, third) =
        (Replica::start(&server).await, Replica::start(&server).await, Replica::start(&server).await);
    let [first, second] = set_of(&one, "first", "second");
    one.keep_as(first.clone(), Kind::Any);
    one.written().await;
    // Not fetched yet: it is known to which set it will belong.
    assert_eq!(third.body("second").await, None);
    let membership = third.store.membership(&key("second"), third.clock.moment());
    let id = |membership: Membership| membership.result_set().map(|set| (set.first, set.id));
    assert_eq!(id(membership), first.result_set.map(|set| (set.first, set.id)));
    one.keep_as(second, Kind::Any);
    one.written().await;
    assert_eq!(other.body("second").await, Some(example_body("second")));
    assert_eq!(other.in_memory("first"), Some(example_body("first")));
}

#[tokio::test]
async fn pages_of_a_replaced_set_are_not_mixed_with_those_of_the_new_one() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let [first, second] = set_of(&one, "first", "second");
    one.keep_as(first, Kind::Any);
    one.keep_as(second, Kind::Any);
    one.written().await;
    assert!(other.body("second").await.is_some() && other.body("first").await.is_some());
    // The same tokens name other rows now.
    let [newer, _] = set_of(&one, "first", "second");
    let newer = StoredResponse { representation: one.response("newer").representation, ..newer };
    one.keep_as(newer.clone(), Kind::Any);
    one.written().await;
    until("the other replica drops the old set", || other.in_memory("second").is_none()).await;
    assert_eq!(other.body("second").await, None);
    let membership = other.store.membership(&key("second"), other.clock.moment());
    assert_eq!(membership.result_set().map(|set| set.id), newer.result_set.map(|set| set.id));
    assert_eq!(other.body("first").await, Some(example_body("newer")));
}
