//! Ages and proofs on a machine whose clock is set, and that is suspended.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_suspended_machine_ages_its_pages() {
    let upstream = Upstream::new(&[Next::Page("1"), Next::Page("2")]);
    let (cache, machine) = cache_on(&upstream);
    ask(&cache, call("q")).await.unwrap();
    machine.suspend(59 * S);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(59)));
    machine.suspend(9 * 3600 * S);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "2", None), "nine hours later it has expired");
}

#[tokio::test(start_paused = true)]
async fn setting_the_clock_makes_no_page_younger_or_older() {
    let upstream = Upstream::new(&[Next::Page("1")]);
    let (cache, machine) = cache_on(&upstream);
    ask(&cache, call("q")).await.unwrap();
    advance(30 * S).await;
    for step in [-100_000, 1_000_000] {
        machine.step_wall(step);
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(30)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_proves_nothing_settled() {
    const METADATA: &str = r#"{"cubes":[{"dimensions":[{"name":"C.Created","type":"time"}]}]}"#;
    // The simulated machine begins on 2027-01-15T08:00:00Z.
    const QUERY: &str = r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"LT","field":"C.Created","values":["2027-01-16"]}]}]}}"#;
    const DATED: &str = "date: Mon, 18 Jan 2027 08:00:00 GMT";
    let script = [
        Next::Page(METADATA),
        Next::Page("1"),
        Next::With(DATED, "2"),
        Next::With(DATED, "3"),
        Next::Page(METADATA),
        Next::With(DATED, "4"),
    ];
    let upstream = Upstream::new(&script);
    let (cache, machine) = cache_on(&upstream);
    ask(&cache, ClientQuery::example(Operation::Metadata, "", "")).await.unwrap();
    let kept_for = async || {
        let forced = forcing(call(QUERY));
        ask(&cache, forced).await.unwrap();
        cache.layer.store.page(call(QUERY).key()).unwrap().stored.lifetimes
    };
    machine.step_wall(3 * 86_400);
    assert_eq!(kept_for().await, POLICY.query, "set forward since the start");
    assert_eq!(kept_for().await, POLICY.query, "although the response's own date agrees");
    machine.step_wall(-3 * 86_400);
    assert_eq!(kept_for().await, POLICY.query, "set back: the date alone proves nothing either");
    machine.suspend(3 * 86_400 * S);
    ask(&cache, ClientQuery::example(Operation::Metadata, "", "")).await.unwrap();
    assert_eq!(kept_for().await, POLICY.settled, "all three agree");
    assert_eq!(upstream.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_response_counts_and_is_passed_on() {
    let upstream =
        Upstream::new(&[Next::With("age: 50\ncache-control: max-age=55", "1"), Next::With("age: 4000", "2")]);
    let cache = cache(&upstream);
    let first = ask(&cache, call("q")).await.unwrap();
    assert_eq!((first.outcome, first.age), (Outcome::Miss, Some(50 * S)));
    let passed_on = first.page.headers.iter().find(|(name, _)| *name == http::header::CACHE_CONTROL);
    assert_eq!(passed_on.unwrap().1, "max-age=55");
    advance(5 * S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(55)));
    advance(S).await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(56)));
    settle().await;
    // It is beyond every window when it arrives.
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Stale, "1", Some(56)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_as_old_as_its_date_says() {
    // The simulated machine begins on 2027-01-15T08:00:00Z.
    const DATED: &str = "date: Fri, 15 Jan 2027 07:59:10 GMT";
    const DATED_AND_AGED: &str = "date: Fri, 15 Jan 2027 07:59:10 GMT\nage: 55";
    const JUST_NOW: &str = "date: Fri, 15 Jan 2027 07:59:59 GMT";
    const AHEAD: &str = "date: Fri, 15 Jan 2027 09:00:00 GMT";
    let cases = [(DATED, Some(50)), (DATED_AND_AGED, Some(55)), (JUST_NOW, None), (AHEAD, None)];
    for (headers, age) in cases {
        let cache = cache(&Upstream::new(&[Next::With(headers, "1"), Next::With(headers, "1"), Next::Page("2")]));
        let bypassed = ask(&cache, alone(call("q"))).await.unwrap();
        assert_eq!(bypassed.age.map(|age| age.as_secs()), age, "{headers}");
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", age), "{headers}");
        assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", age.or(Some(0))), "{headers}");
        advance(11 * S).await;
        let outcome = if age.is_some() { Outcome::Stale } else { Outcome::Hit };
        assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, outcome, "{headers}");
    }
    // If the clock was set, a date proves nothing.
    let (cache, machine) = cache_on(&Upstream::new(&[Next::With(DATED, "1")]));
    machine.step_wall(3600);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}
