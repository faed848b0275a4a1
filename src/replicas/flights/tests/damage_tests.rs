use super::*;

#[tokio::test]
async fn every_key_expires_and_tells_nothing() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    let mut seen = one.content().await;
    lease.finish(&response("a secret page", true));
    assert_eq!(body(ended(ends).await), "a secret page");
    seen.extend(one.content().await);
    let has = |kind: &str| seen.iter().any(|(key, ..)| key.contains(kind));
    assert!(has(":flight:") && has(":flight-end:"), "{seen:?}");
    for (key, expiry, value) in seen {
        assert!((1..=5000).contains(&expiry), "{key}: {expiry} ms");
        assert!(!value.windows(6).any(|window| window == b"secret") && !key.contains("AC1"), "{key}");
    }
}

#[tokio::test]
async fn an_end_that_was_changed_in_the_store_is_not_believed() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let _lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    // An end of another flight, under this one's id.
    let id: String = three
        .store
        .run("test", redis::cmd("HGET").arg(Flight::new(three.store.clone(), three.clock, &wanted()).lock).arg("id"))
        .await
        .unwrap();
    let other = Flight::new(three.store.clone(), three.clock, &wanted());
    let sealed = other.seal(&flight_record::encode(&response("forged", true)).unwrap()).unwrap();
    let forged = Flight { id, ..Flight::new(three.store.clone(), three.clock, &wanted()) };
    three
        .store
        .run::<()>("test", redis::cmd("SET").arg(forged.ending()).arg(sealed).arg("PX").arg(5000))
        .await
        .unwrap();
    assert!(matches!(ended(ends).await, WaitOutcome::Unavailable));
}

#[tokio::test]
async fn what_is_too_long_does_not_cross() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    let lock = Flight::new(three.store.clone(), three.clock, &wanted()).lock;
    let id: String = three.store.run("test", redis::cmd("HGET").arg(&lock).arg("id")).await.unwrap();
    let flight = Flight { id, ..Flight::new(three.store.clone(), three.clock, &wanted()) };
    let long = vec![1_u8; LONGEST_END + 1];
    let before = server.sent();
    three
        .store
        .run::<()>("test", redis::cmd("SET").arg(flight.ending()).arg(&long).arg("PX").arg(60_000))
        .await
        .unwrap();
    assert!(matches!(ended(ends).await, WaitOutcome::Unavailable), "an end");
    three.store.run::<()>("test", redis::cmd("HSET").arg(&lock).arg("id").arg(&long)).await.unwrap();
    assert!(matches!(three.claim(&wanted()).await, ClaimOutcome::Lead(_)), "an id");
    assert!(server.sent() - before < 1 << 20);
    drop(lease);
}

#[tokio::test]
async fn a_lock_of_another_type_is_replaced() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let damage = async || {
        let lock = Flight::new(one.store.clone(), one.clock, &wanted()).lock;
        one.store.run::<()>("test", redis::cmd("SET").arg(lock).arg("x")).await.unwrap();
    };
    let mut flight = Flight::new(one.store.clone(), one.clock, &wanted());
    damage().await;
    let turn;
    (turn, _, flight.begun) = flight.claim(-1, true).await.unwrap();
    assert_eq!(turn, LEADS);
    damage().await;
    flight.renew().await;
    assert!(matches!(two.claim(&wanted()).await, ClaimOutcome::Wait(_)), "the renewal took it again");
    damage().await;
    assert_eq!(flight.end("lost", &[]).await, Ok(0));
    assert!(one.is_free().await);
}
