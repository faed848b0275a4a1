//! How an account behaves when somebody else writes to the store, or when the store has another format.

use super::super::ledger::AHEAD;
use super::*;

/// The greatest number that the script believes.
const LATEST: &str = "9000000000000000";

/// Replicas of two teams that send 5 a second with a burst of 5, and whose store is damaged. After 8 s, which is longer
/// than a replica counts that does not live, they send as before. Meanwhile they send at most a burst more.
async fn assert_harmless(replicas: u32, damage: &str) {
    let Some(store) = SimulatedStore::start(replicas) else { return };
    let (sent, limits) = (Sent::default(), Limits { max_pause: 5 * S, ..limits(5, 5) });
    let budgets: Vec<_> = (0..replicas).map(|_| store.link(2 * MS).budget(limits)).collect();
    let teams = ["a", "b"].map(|name| team(name, 1));
    let loads = budgets.iter().zip(teams.iter().cycle()).map(|(budget, team)| sent.load(budget, team, 3));
    let loads: Vec<_> = loads.collect();
    // Between two times at which the limits of all replicas are read.
    tokio::time::sleep(2300 * MS).await;
    let soon = store.now() + 1_000_000;
    store.run::<redis::Value>(&damage.replace("LATEST", LATEST).replace("SOON", &soon.to_string()));
    tokio::time::sleep(8 * S).await;
    let before = ["a", "b"].map(|team| sent.of(team));
    tokio::time::sleep(5 * S).await;
    drop(loads);
    let counts = [sent.of("a") - before[0], sent.of("b") - before[1]];
    assert!(counts.iter().all(|count| (11..=14).contains(count)), "{damage}: {counts:?} of 25");
    for budget in budgets {
        assert_eq!(budget.status().per_second, Some(5.0), "{damage}: it shares");
    }
    // What was granted ahead of its time is used, too.
    sent.assert_bound(5.0, 10.0, 2 * AHEAD);
}

#[tokio::test(start_paused = true)]
async fn a_number_that_was_forged_neither_stops_nor_speeds_up_an_account() {
    for name in [
        "tat", "paused", "open", "opened", "probed", "failing", "period", "burst", "read", "virtual", "granted",
        "base", "log",
    ] {
        for value in ["LATEST", "0", "nan"] {
            assert_harmless(2, &format!("HSET budget {name} {value}")).await;
        }
    }
    assert_harmless(2, "HSET budget open SOON probed LATEST failing a,SOON,b,SOON,c,LATEST,d").await;
    // As a number of Lua it has a digit more than can be read.
    assert_harmless(2, "HSET budget open SOON opened 9999999999999999").await;
    for value in ["1", "-5", "1e300", "0x10", "LATEST0"] {
        assert_harmless(4, &format!("HSET budget period {value}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_another_type_or_with_strange_entries_are_harmless() {
    for key in ["budget", "limits", "waiting", "teams"] {
        assert_harmless(2, &format!("SET {key} x")).await;
        assert_harmless(2, &format!("HSET {key} ghost x")).await;
    }
    for damage in [
        "HSET limits ghost LATEST,1,1",
        "HSET limits ghost SOON,LATEST,0",
        "HSET limits ghost SOON,0,0",
        "HSET waiting ghost LATEST,5,b,0,5,0,0,0",
        "HSET waiting ghost SOON,5,c,0,5,0,0,0",
        "HSET waiting ghost SOON,5,a,0,5,LATEST,1,0",
        "HSET waiting ghost SOON,5,b,0,5",
        "HSET waiting ghost SOON,5,b,0,x,0,0,0",
        "HSET waiting ghost SOON,LATEST",
        "HSET waiting ghost SOON,-5",
        "HSET waiting ghost SOON,5,b,0,5,0,0,LATEST",
        "HSET waiting ghost SOON,x,b,0,5,0,0,0",
        "HSET teams a:0 LATEST",
        "HSET teams a LATEST",
        "HSET teams a x",
    ] {
        assert_harmless(2, damage).await;
    }
}

/// The virtual time becomes so late after months at a high rate.
#[test]
fn the_budget_outlasts_its_virtual_time() {
    let Some(server) = TestServer::start() else { return };
    let mut store = TimedScript::new(&server);
    let ask = |weight| TeamDemand {
        team: format!("team{weight}"),
        background: false,
        weight,
        calls: 3,
        limit: TokenRate { period: 1_000_000, burst: 9 },
    };
    let rate = TokenRate { period: 1000, burst: 100 };
    let request = LedgerRequest { rate, most: 6, teams: vec![ask(1), ask(2)], ..LedgerRequest::default() };
    let mut now = 1_800_000_000_000_000;
    let mut granted = || {
        now += 1000;
        store.ask("one", &request, now).granted
    };
    assert_eq!(granted(), 6);
    let late = [("virtual", "9999999999999000")];
    redis::cmd("HSET").arg("budget").arg(&late).exec(&mut server.connection()).unwrap();
    let late = [("team1:0", "9999999999999000"), ("team2:0", "9999999999999990")];
    redis::cmd("HSET").arg("teams").arg(&late).exec(&mut server.connection()).unwrap();
    assert_eq!([granted(), granted()], [12, 18], "nothing is forgotten");
    let owed: u64 = redis::cmd("HGET").arg("teams").arg("team1").query(&mut server.connection()).unwrap();
    assert!(owed > 1_800_000_006_000_000, "the teams' own limits neither: {owed}");
}
