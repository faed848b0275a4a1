//! Misses: how much a proxy adds to the upstream's own latency, with one request at a time.

use super::options::{Options, Size};
use super::part::{Failure, Order, Role, Task, Turn};
use super::process::{LOAD, Placement, SERVER};
use super::servers::{self, Server};
use super::table::{grouped, median, print};

/// The gateway's default, and the same for nginx: both evict during the measurement, as they would in use.
const CAPACITY: &str = "256MiB";
const NGINX_CAPACITY: &str = "256m";

/// The numbers of a turn's queries are below this, plus a multiple of it.
const TURN: u64 = 10_000_000;

struct Way {
    name: &'static str,
    port: u16,
    /// The upstream at its end.
    upstream: u16,
    server: Option<Server>,
}

/// Measures and prints, for each size of responses.
pub fn measure(options: &Options, placement: Placement) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for &size in &options.sizes.0 {
        lines.extend(of_size(options, placement, size)?);
    }
    println!("{}", lines.join("\n"));
    Ok(())
}

fn of_size(options: &Options, placement: Placement, size: Size) -> Result<Vec<String>, Failure> {
    let folder = servers::folder()?;
    let (_beside_load, upstream) = placement.serve(LOAD, Role::Upstream, size.0, 1)?;
    // On the servers' processor: a request through a proxy crosses processors too, and otherwise the direct way would
    // look too fast.
    let (_direct, direct) = placement.serve(SERVER, Role::Upstream, size.0, 1)?;
    let gateway = Server::gateway(options, placement, folder.path(), upstream, CAPACITY, false)?;
    let mut ways = vec![
        Way { name: "direct", port: direct, upstream: direct, server: None },
        Way { name: "gateway", port: gateway.port, upstream, server: Some(gateway) },
    ];
    if let Some(nginx) = Server::nginx(placement, folder.path(), upstream, NGINX_CAPACITY)? {
        ways.push(Way { name: "nginx", port: nginx.port, upstream, server: Some(nginx) });
    }

    let mut turns = 0;
    let mut estimated_start = |way: &Way, seconds: f64| -> Result<(Turn, f64), Failure> {
        turns += 1;
        let task = Task {
            port: way.port,
            size: size.0,
            order: Order::Counting,
            distinct: 1,
            first: turns * TURN,
            count: TURN,
            time: seconds,
            clients: 1,
            token: None,
        };
        let cpu = || way.server.as_ref().map_or(Ok(0.0), Server::cpu_seconds);
        let (calls, cpu_before) = (servers::calls(way.upstream)?, cpu()?);
        let estimated_start = placement.load(&task)?;
        let cost = (cpu()? - cpu_before) * 1e6 / estimated_start.answers as f64;
        let calls = servers::calls(way.upstream)? - calls;
        // The last request of a turn is not awaited.
        if estimated_start.wrong > 0 || calls < estimated_start.answers {
            let Turn { answers, wrong, .. } = estimated_start;
            return Err(format!("{}: {answers} answers, {wrong} wrong, {calls} upstream calls", way.name).into());
        }
        Ok((estimated_start, cost))
    };
    for way in &ways {
        estimated_start(way, options.seconds.min(1.0))?;
    }
    let mut rounds: Vec<Vec<(Turn, f64)>> = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(ways.iter().map(|way| estimated_start(way, options.seconds)).collect::<Result<_, _>>()?);
    }
    println!("Misses of {size}, 1 connection, {} rounds of {} s\n", options.rounds, options.seconds);
    Ok(report(&ways, &rounds, size))
}

fn report(ways: &[Way], rounds: &[Vec<(Turn, f64)>], size: Size) -> Vec<String> {
    let of = |i: usize, value: fn(&Turn) -> f64| median(rounds.iter().map(|round| value(&round[i].0)));
    // Of two turns of one round. The first entry is the direct one.
    let added =
        |i: usize, value: fn(&Turn) -> f64| median(rounds.iter().map(|round| value(&round[i].0) - value(&round[0].0)));
    let mut rows = Vec::new();
    for (i, way) in ways.iter().enumerate() {
        let number = |value: f64| if i == 0 { String::new() } else { format!("{value:.0}") };
        rows.push(vec![
            way.name.to_owned(),
            format!("{:.0}", of(i, |estimated_start| estimated_start.p50)),
            format!("{:.0}", of(i, |estimated_start| estimated_start.p99)),
            number(added(i, |estimated_start| estimated_start.p50)),
            number(added(i, |estimated_start| estimated_start.p99)),
            number(median(rounds.iter().map(|round| round[i].1))),
            grouped(of(i, Turn::rate)),
        ]);
    }
    if ways.len() < 3 {
        rows.push(std::iter::once("nginx (not installed)").chain([""; 6]).map(str::to_owned).collect());
    }
    print(&["way", "p50 µs", "p99 µs", "added p50 µs", "added p99 µs", "CPU µs/miss", "misses/s"], &rows);
    let beside = |value: fn(&Turn) -> f64| {
        median(rounds.iter().map(|round| {
            let direct = value(&round[0].0);
            (value(&round[1].0) - direct) / (value(&round[2].0) - direct)
        }))
    };
    let nginx = match ways.len() {
        3 => format!(
            ", {:.2} and {:.2} × what nginx adds",
            beside(|estimated_start| estimated_start.p50),
            beside(|estimated_start| estimated_start.p99)
        ),
        _ => String::new(),
    };
    vec![format!(
        "- a miss of {size}: the gateway adds {:.0} µs (median) and {:.0} µs (p99) to the upstream's latency{nginx}",
        added(1, |estimated_start| estimated_start.p50),
        added(1, |estimated_start| estimated_start.p99),
    )]
}
