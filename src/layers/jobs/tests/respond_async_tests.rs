//! Queries that become jobs.

use super::*;

fn asynchronous(rig: &Rig, parameters: &str) -> ClientQuery {
    let query = ClientQuery::example(Operation::Query, parameters, ASK);
    let (received, deadline) = (rig.clock.now(), rig.clock.now() + LIFETIMES.deadline);
    let directives = RequestDirectives { respond_async: true, ..RequestDirectives::default() };
    let base = Some(Arc::new(Base::of_url(&http::Uri::from_static("http://gw:8080"))));
    ClientQuery { received, deadline, directives, base, ..query }
}

fn applied(response: &CacheResponse) -> bool {
    response.headers.iter().any(|(name, value)| name == "preference-applied" && value == "respond-async")
}

/// Jobs that take `takes` seconds. Queries take as long as every other request.
fn rig_of_jobs(takes: u64, query: Duration) -> Rig {
    let mut jobs = twilio(move |_, age| if age < takes { "RUNNING" } else { "COMPLETED" });
    Rig::with(LIFETIMES, query, move |call: &UpstreamCall| match call.endpoint.operation {
        Operation::Query => (200, None, r#"{"page":1}"#.to_owned()),
        _ => jobs(call),
    })
}

#[tokio::test(start_paused = true)]
async fn respond_async_makes_a_job_if_no_fresh_page_is_stored() {
    let rig = rig_of_jobs(20, Duration::ZERO);
    let accepted = rig.ask(asynchronous(&rig, "pageSize=3")).await.unwrap();
    assert_eq!((accepted.representation().status.as_u16(), wait(&accepted)), (202, Some(5)));
    assert!(applied(&accepted) && accepted.has_links);
    assert_eq!(rig.submit().await.outcome, Outcome::Hit, "it is a job like any other");
    let call = rig.upstream.calls.lock().unwrap()[0].clone();
    assert_eq!((&*call.parameters, &*call.body), ("", ASK.as_bytes()));
    // A fresh page is the answer.
    let plain = ClientQuery { directives: RequestDirectives::default(), ..asynchronous(&rig, "") };
    rig.ask(plain).await.unwrap();
    let page = rig.ask(asynchronous(&rig, "")).await.unwrap();
    assert_eq!((page.outcome, applied(&page), page.has_links), (Outcome::Hit, false, false));
    // A team that may not use jobs waits for its query.
    let operations = [Permission::Query].into_iter().collect();
    let team = Arc::new(Team { operations, ..Team::example("a") });
    let page = rig.ask(ClientQuery { team, ..asynchronous(&rig, "pageSize=4") }).await.unwrap();
    assert_eq!((page.outcome, applied(&page)), (Outcome::Miss, false));
}

#[tokio::test(start_paused = true)]
async fn respond_async_submits_the_whole_query_without_its_page_size() {
    let rig = Rig::new(twilio(|_, _| "RUNNING"));
    let asked = |parameters: &str, body: &'static str| {
        let query = ClientQuery::example(Operation::Query, parameters, body);
        let (received, deadline) = (rig.clock.now(), rig.clock.now() + LIFETIMES.deadline);
        let directives = RequestDirectives { respond_async: true, ..RequestDirectives::default() };
        ClientQuery { received, deadline, directives, ..query }
    };
    rig.submit().await;
    for (parameters, body) in [("pageSize=3", ASK), ("", r#"{"pageSize":3,"query":{"measures":["C.Count"]}}"#)] {
        let accepted = rig.ask(asked(parameters, body)).await.unwrap();
        assert_eq!((accepted.outcome, rig.calls(Operation::JobSubmit)), (Outcome::Hit, 1), "{parameters} {body}");
    }
    rig.ask(asked("a=1&pageSize=3&z", ASK)).await.unwrap();
    let call = rig.upstream.calls.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        (call.endpoint.operation, &*call.parameters, &call.body[..]),
        (Operation::JobSubmit, "a=1&z", ASK.as_bytes())
    );
    // A further page is not a query of its own.
    let mut page = asked("pageToken=x", ASK);
    let place = Some(*page.key());
    let canonical = Arc::get_mut(&mut page.canonical).unwrap();
    canonical.expected_as = place;
    rig.ask(page).await.unwrap();
    assert_eq!((rig.calls(Operation::Query), rig.calls(Operation::JobSubmit)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn respond_async_with_a_wait_watches_the_job() {
    let rig = rig_of_jobs(8, Duration::ZERO);
    let begun = Instant::now();
    let results = rig.ask(waiting(asynchronous(&rig, "pageSize=3"), 30)).await.unwrap();
    assert_eq!((results.representation().status.as_u16(), body(&results)), (200, PAGE.to_owned()));
    assert_eq!((begun.elapsed().as_secs(), applied(&results)), (15, false));
    let (name, address) = &results.headers[0];
    let path = Operation::JobResults.endpoint().path_of("op_1");
    assert_eq!(
        (name, address.to_str().unwrap()),
        (&header::CONTENT_LOCATION, &*format!("http://gw:8080{path}?pageSize=3"))
    );
    let last = rig.upstream.calls.lock().unwrap().last().unwrap().clone();
    assert_eq!((last.endpoint.operation, &*last.parameters), (Operation::JobResults, "pageSize=3"));

    let rig = rig_of_jobs(60, Duration::ZERO);
    let begun = Instant::now();
    let accepted = rig.ask(waiting(asynchronous(&rig, ""), 7)).await.unwrap();
    assert_eq!((accepted.representation().status.as_u16(), begun.elapsed().as_secs()), (202, 7));
    assert!(applied(&accepted) && (8..=9).contains(&wait(&accepted).unwrap()), "{:?}", wait(&accepted));
}

#[tokio::test(start_paused = true)]
async fn respond_async_gives_out_no_job_that_it_has_just_found_lost() {
    for state in ["FAILED", "EXPIRED", "gone"] {
        let known = Mutex::new(twilio(move |id, _| if id == "op_1" { state } else { "COMPLETED" }));
        let rig = Rig::new(move |call: &UpstreamCall| match call.endpoint.id(&call.path) {
            Some("op_1") if state == "gone" => (404, None, "{}".to_owned()),
            _ => (known.lock().unwrap())(call),
        });
        rig.submit().await;
        let results = rig.ask(waiting(asynchronous(&rig, ""), 20)).await.unwrap();
        assert_eq!((results.representation().status.as_u16(), body(&results)), (200, PAGE.to_owned()), "{state}");
        assert_eq!(rig.calls(Operation::JobSubmit), 2, "{state}");
    }
    // A query that fails each time costs two jobs, and the status of the second says why.
    let rig = Rig::new(twilio(|_, _| "FAILED"));
    let accepted = rig.ask(waiting(asynchronous(&rig, ""), 60)).await.unwrap();
    assert_eq!((body(&accepted), rig.calls(Operation::JobSubmit)), (job("op_2", "PENDING"), 2));
    // Also without any time left.
    let rig = Rig::new(twilio(|id, _| if id == "op_1" { "FAILED" } else { "RUNNING" }));
    let accepted = rig.ask(waiting(asynchronous(&rig, ""), 6)).await.unwrap();
    assert_eq!((body(&accepted), rig.calls(Operation::JobSubmit)), (job("op_2", "PENDING"), 2));
}

#[tokio::test(start_paused = true)]
async fn respond_async_with_a_wait_joins_a_call_that_runs() {
    let rig = rig_of_jobs(60, 4 * S);
    let plain = || ClientQuery { directives: RequestDirectives::default(), ..asynchronous(&rig, "") };
    let (first, joined) = tokio::join!(rig.ask(plain()), async {
        tokio::task::yield_now().await;
        rig.ask(waiting(asynchronous(&rig, ""), 10)).await.unwrap()
    });
    assert_eq!(
        (first.unwrap().outcome, joined.outcome, body(&joined)),
        (Outcome::Miss, Outcome::Collapsed, r#"{"page":1}"#.to_owned())
    );
    assert_eq!(rig.calls(Operation::JobSubmit), 0);
    tokio::time::advance(61 * S).await;
    let (first, late) = tokio::join!(rig.ask(plain()), async {
        tokio::task::yield_now().await;
        rig.ask(waiting(asynchronous(&rig, ""), 2)).await.unwrap()
    });
    assert_eq!((first.unwrap().outcome, late.representation().status.as_u16()), (Outcome::Miss, 202));
    assert!(applied(&late) && rig.calls(Operation::Query) == 2);
}

#[tokio::test(start_paused = true)]
async fn respond_async_accepts_neither_a_page_nor_a_job_that_is_too_old() {
    let rig = rig_of_jobs(600, Duration::ZERO);
    let plain = ClientQuery { directives: RequestDirectives::default(), ..asynchronous(&rig, "") };
    rig.ask(plain).await.unwrap();
    let ask = async |max_age: Option<u64>, min_fresh: Option<u64>| {
        tokio::time::advance(2 * S).await;
        let mut query = asynchronous(&rig, "");
        query.directives.cache.max_age = max_age.map(Duration::from_secs);
        query.directives.cache.min_fresh = min_fresh.map(Duration::from_secs);
        body(&rig.ask(query).await.unwrap())
    };
    let (page, job) = (r#"{"page":1}"#.to_owned(), |id| job(id, "PENDING"));
    assert_eq!([ask(None, None).await, ask(Some(30), Some(30)).await], [page.clone(), page]);
    // The page is 6 s old, then 8 and 10.
    assert_eq!(ask(Some(5), None).await, job("op_1"));
    assert_eq!(ask(Some(5), None).await, job("op_1"), "the job is as new as the client wants");
    assert_eq!(ask(Some(1), None).await, job("op_2"));
    assert_eq!(ask(None, Some(50)).await, job("op_2"));
    assert_eq!(ask(None, Some(600)).await, job("op_3"));
    assert_eq!((rig.calls(Operation::Query), rig.calls(Operation::JobSubmit)), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn respond_async_waits_for_the_call_that_renews_a_stale_page() {
    let minute = 60 * S;
    let stale_while_revalidate = Lifetimes { stale_while_revalidate: minute, ..Lifetimes::fresh_only(minute) };
    let stale_if_error = Lifetimes { stale_if_error: minute, ..Lifetimes::fresh_only(minute) };
    for (query, is_served) in [(stale_while_revalidate, true), (stale_if_error, false)] {
        let (mut jobs, mut pages) = (twilio(|_, _| "RUNNING"), 0);
        let rig = Rig::with(cache::Policy { query, ..LIFETIMES }, 4 * S, move |call: &UpstreamCall| {
            match call.endpoint.operation {
                Operation::Query => {
                    pages += 1;
                    (200, None, format!(r#"{{"page":{pages}}}"#))
                }
                _ => jobs(call),
            }
        });
        let plain = || rig.ask(ClientQuery { directives: RequestDirectives::default(), ..asynchronous(&rig, "") });
        plain().await.unwrap();
        let renewing = async |seconds| {
            tokio::time::advance(minute + S).await;
            let (first, second) = tokio::join!(plain(), async {
                tokio::time::sleep(S).await;
                rig.ask(waiting(asynchronous(&rig, ""), seconds)).await.unwrap()
            });
            assert_eq!(first.unwrap().outcome == Outcome::Stale, is_served);
            second
        };
        let joined = renewing(10).await;
        assert_eq!((joined.outcome, body(&joined)), (Outcome::Collapsed, r#"{"page":2}"#.to_owned()));
        let accepted = renewing(2).await;
        assert_eq!((accepted.representation().status.as_u16(), applied(&accepted)), (202, true), "{is_served}");
        // It has filled the cache.
        tokio::time::sleep(4 * S).await;
        assert_eq!((body(&plain().await.unwrap()), rig.calls(Operation::Query)), (r#"{"page":3}"#.to_owned(), 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_the_watch_of_a_job() {
    for elapsed in [2, 7] {
        let rig = rig_of_jobs(60, Duration::ZERO);
        let begun = Instant::now();
        let (accepted, ()) = tokio::join!(rig.ask(waiting(asynchronous(&rig, ""), 30)), async {
            tokio::time::sleep(S * elapsed).await;
            rig.draining.begin();
        });
        let accepted = accepted.unwrap();
        assert_eq!((accepted.representation().status.as_u16(), applied(&accepted)), (202, true));
        assert_eq!(begun.elapsed(), S * elapsed);
    }
}
