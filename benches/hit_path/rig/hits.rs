//! Hits: all requested pages are cached.

use super::options::{Options, Size};
use super::part::{Failure, Order, Role, Task, Turn};
use super::process::{LOAD, Placement, SERVER};
use super::servers::{self, Server};
use super::table::{grouped, median, print, spread};

/// Most bytes of pages, so that large pages with many keys fit into any machine.
const PAGES: usize = 1 << 30;
const CAPACITY: &str = "2GiB";
const NGINX_CAPACITY: &str = "4g";

struct Measured {
    estimated_start: Turn,
    /// Processor time per response in microseconds.
    cpu: f64,
    /// The server's share of its processor in percent.
    busy: f64,
}

/// Measures one size of responses with one number of keys, prints the table, and returns the lines to quote.
pub fn measure(options: &Options, placement: Placement, size: Size, keys: u32) -> Result<Vec<String>, Failure> {
    let keys = keys.min(u32::try_from(PAGES / size.0).unwrap_or(u32::MAX));
    let folder = servers::folder()?;
    let (_upstream, upstream) = placement.serve(LOAD, Role::Upstream, size.0, 1)?;
    let mut servers = vec![Server::bare(placement.serve(SERVER, Role::Bare, size.0, keys)?)];
    for access_log in [false, true] {
        servers.push(Server::gateway(options, placement, folder.path(), upstream, CAPACITY, access_log)?);
    }
    servers.extend(Server::nginx(placement, folder.path(), upstream, NGINX_CAPACITY)?);

    let task = |server: &Server, seconds: f64| Task {
        port: server.port,
        size: size.0,
        order: Order::Zipf,
        distinct: keys,
        first: 0,
        count: u64::MAX,
        time: seconds,
        clients: options.connections,
        token: None,
    };
    for server in &servers {
        if server.caches {
            fill(server, placement, &task(server, 60.0), upstream)?;
        }
        placement.load(&task(server, options.seconds.min(1.0)))?;
    }

    let mut rounds: Vec<Vec<Measured>> = Vec::new();
    for _ in 0..options.rounds {
        let mut round = Vec::new();
        for server in &servers {
            server.empty_log()?;
            let (calls, cpu) = (servers::calls(upstream)?, server.cpu_seconds()?);
            let estimated_start = placement.load(&task(server, options.seconds))?;
            let cpu = server.cpu_seconds()? - cpu;
            let missed = servers::calls(upstream)? - calls;
            if estimated_start.wrong > 0 || missed > 0 {
                let Turn { answers, wrong, .. } = estimated_start;
                let name = server.name;
                return Err(format!("{name}: of {answers} answers {wrong} were wrong and {missed} no hits").into());
            }
            if server.name == "gateway+log" && server.empty_log()? < estimated_start.answers * 100 {
                return Err("the gateway did not log its answers".into());
            }
            round.push(Measured {
                cpu: cpu * 1e6 / estimated_start.answers as f64,
                busy: cpu / estimated_start.seconds * 100.0,
                estimated_start,
            });
        }
        rounds.push(round);
    }
    let connections = options.connections;
    println!("{size}, {}, {connections} connections, {} rounds of {} s", named(keys), options.rounds, options.seconds);
    println!();
    report(&servers, &rounds, size, keys)
}

fn named(keys: u32) -> String {
    match keys {
        1 => "1 query".into(),
        n => format!("{} queries in Zipf order", grouped(f64::from(n))),
    }
}

/// Requests every key once, and checks that all are cached and that a hit is one.
fn fill(server: &Server, placement: Placement, task: &Task, upstream: u16) -> Result<(), Failure> {
    let before = servers::calls(upstream)?;
    let keys = u64::from(task.distinct);
    let once = Task { order: Order::Counting, count: keys, clients: 16, ..task.clone() };
    let estimated_start = placement.load(&once)?;
    let calls = servers::calls(upstream)? - before;
    if (estimated_start.answers, estimated_start.wrong, calls) != (keys, 0, keys) {
        let Turn { answers, wrong, .. } = estimated_start;
        let name = server.name;
        return Err(format!("{name}: {keys} queries, but {answers} answers ({wrong} wrong) and {calls} calls").into());
    }
    let head = servers::head(server.port, 0)?;
    let by_itself = head.lines().filter_map(|line| line.split_once(':'));
    let mut status = by_itself.filter(|(name, _)| name.eq_ignore_ascii_case("cache-status"));
    let is_hit = status.any(|(_, value)| value.split(';').any(|part| part.trim() == "hit"));
    // nginx does not say so; that the upstream had no call has to be enough.
    if server.name.starts_with("gateway") && !is_hit {
        return Err(format!("the gateway's answer is no hit: {head}").into());
    }
    Ok(())
}

fn report(servers: &[Server], rounds: &[Vec<Measured>], size: Size, keys: u32) -> Result<Vec<String>, Failure> {
    let of = |index: usize, value: fn(&Measured) -> f64| median(rounds.iter().map(|round| value(&round[index])));
    // Of two turns of one round, because rounds differ by more than servers do.
    let ratio = |a: usize, b: usize| {
        median(rounds.iter().map(|round| round[a].estimated_start.rate() / round[b].estimated_start.rate()))
    };
    let cost = |a: usize, b: usize| median(rounds.iter().map(|round| round[a].cpu / round[b].cpu));
    let mut rows = Vec::new();
    for (i, server) in servers.iter().enumerate() {
        let rates: Vec<f64> = rounds.iter().map(|round| round[i].estimated_start.rate()).collect();
        rows.push(vec![
            server.name.to_owned(),
            grouped(median(rates.iter().copied())),
            format!("{:.2}", ratio(i, 0)),
            format!("{:.1}", of(i, |m| m.cpu)),
            format!("{:.2}", cost(i, 0)),
            format!("{:.0}", of(i, |m| m.estimated_start.p50)),
            format!("{:.0}", of(i, |m| m.estimated_start.p99)),
            format!("{:.0}", of(i, |m| m.busy)),
            format!("{:.0}", of(i, |m| m.estimated_start.load_busy)),
            format!("{:.0}", spread(&rates)),
        ]);
    }
    let nginx = servers.iter().position(|server| server.name == "nginx");
    if nginx.is_none() {
        rows.push(std::iter::once("nginx (not installed)").chain([""; 9]).map(str::to_owned).collect());
    }
    print(
        &[
            "server",
            "hits/s",
            "× bare",
            "CPU µs/hit",
            "× bare",
            "p50 µs",
            "p99 µs",
            "server busy %",
            "load busy %",
            "spread %",
        ],
        &rows,
    );
    let mut lines = Vec::new();
    for (i, server) in servers.iter().enumerate().filter(|(_, server)| server.name.starts_with("gateway")) {
        let beside = nginx.map(|nginx| format!(", {:.2} × nginx", ratio(i, nginx))).unwrap_or_default();
        lines.push(format!(
            "- {size}, {}: {} answers {:.2} × as many hits a second as bare hyper{beside}, at {:.1} µs of CPU each",
            named(keys),
            server.name,
            ratio(i, 0),
            of(i, |m| m.cpu),
        ));
    }
    Ok(lines)
}
