//! Much demand: teams that ask unevenly on the replicas, and everybody asking the same at once.

use std::time::Duration;

use tokio::time::Instant;

use super::bound::now;
use super::load::{Asks, query};
use super::rig::{PHASE, Rig, Row, Setup};
use super::support::store::Server;
use super::support::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn weights() {
    let Some(server) = Server::start().await else { return };
    let setup = Setup::new("weights 3:1, uneven demand", server.url()).teams(&[("heavy", 3), ("light", 1)]);
    let mut rig = setup.start_idle().await;
    rig.share().await;
    let many = |gateway: usize, team, count| {
        vec![Asks { gateway: rig.gateways[gateway].data, team: Some(team), only_new: true }; count]
    };
    // The light team asks more, and mostly elsewhere.
    let asks = [many(0, "heavy", 10), many(1, "heavy", 2), many(1, "light", 10), many(2, "light", 20)].concat();
    rig.load(asks);
    tokio::time::sleep(PHASE).await;
    let from = now();
    tokio::time::sleep(5 * PHASE).await;
    let until = now();
    let samples = rig.unload().await;
    let answered = |team| {
        let within = |at| (from..until).contains(&at);
        samples.iter().filter(|sample| sample.team == Some(team) && within(sample.answered)).count()
    };
    let (heavy, light) = (answered("heavy"), answered("light"));
    let used = Rig::used(heavy + light, from, until);
    println!("heavy {heavy}, light {light}, {:.0} % of the rate used", used * 100.0);
    let ratio = heavy as f64 / light as f64 / 3.0;
    rig.check((0.85..=1.15).contains(&ratio), format!("{heavy} and {light} are not 3:1 within 15 %"));
    rig.check(used >= 0.9, format!("only {:.0} % of the rate was used", used * 100.0));
    rig.finish().await;
}

/// 200 clients of each gateway ask the same at once, while the upstream takes a second and a half. Returns how long after
/// the first answer the last one came.
async fn stampede(rig: &mut Rig, request: &[u8], outcomes: &[&str]) -> Duration {
    rig.simulator.delay_next("1500ms").await;
    let mut clients = Vec::new();
    for gateway in &rig.gateways {
        for _ in 0..200 {
            clients.push(Client::connect(gateway.data).await);
        }
    }
    let begun = Instant::now();
    for client in &mut clients {
        client.send(request).await;
    }
    println!("all were sent within {:?}", begun.elapsed());
    let mut answers = tokio::task::JoinSet::new();
    for mut client in clients {
        answers.spawn(async move {
            let answer = client.answer().await;
            (answer, Instant::now())
        });
    }
    let answers = answers.join_all().await;
    for (answer, _) in &answers {
        let holds = answer.status == 200 && outcomes.contains(&answer.detail());
        rig.check(holds, format!("{} {:?}", answer.status, answer.find("cache-status")));
    }
    let times = answers.iter().map(|(_, at)| *at);
    times.clone().max().unwrap() - times.min().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn stampedes() {
    /// The contract's 100 ms are for a machine that can serve 600 clients in that time.
    const LONGEST: Duration = Duration::from_secs(1);
    let Some(server) = Server::start().await else { return };
    let setup = Setup::new("", server.url()).set("cache.query.fresh", "6s").set("shared.timeout", "1s");
    let mut rig = setup.set("cache.query.stale_while_revalidate", "60s").start_idle().await;
    rig.share().await;
    let forced = "Cache-Control: no-cache\r\n";
    let cases: [(&str, &str, &[&str]); 3] = [
        ("3 × 200 identical POSTs", "", &["miss", "collapsed", "shared"]),
        ("3 × 200 with no-cache", forced, &["miss", "collapsed", "shared"]),
        ("3 × 200 for a stale page", "", &["stale"]),
    ];
    let mut wrong = Vec::new();
    for (name, header, outcomes) in cases {
        if outcomes == ["stale"] {
            // The page that they had in common is no longer fresh.
            tokio::time::sleep(Duration::from_secs(7)).await;
        }
        let before = rig.simulator.calls().await.len();
        let took = stampede(&mut rig, &post_to(QUERY, header, &query(7)), outcomes).await;
        // A refresh outlives those who were answered with the stale page.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let calls = rig.simulator.calls().await.len() - before;
        println!("{name}: {calls} upstream calls, the last answer {} ms after the first", took.as_millis());
        rig.check(took <= LONGEST, format!("{name}: the last answer came {took:?} after the first"));
        let failures = rig.failures();
        let excess = calls as f64 - 1.0;
        let failed = failures.len();
        Row { name, requests: 600, calls }.print("1", &format!("{excess}"), failed);
        wrong.extend(failures.into_iter().take(3));
        if calls != 1 {
            wrong.push(format!("{name}: {calls} upstream calls"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
