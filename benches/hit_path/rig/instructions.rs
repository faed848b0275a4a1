//! Counts the user-space instructions of one request, which do not depend on what else runs on the machine.
//!
//! A server runs under callgrind and gets N requests on one kept-alive connection. A second one, started in the same
//! way, gets 2 N. Starting, connecting, the first response and stopping cost both the same, so the difference divided
//! by N is one request, with all threads of the server. The kernel's instructions are not counted.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::options::{Options, Size};
use super::part::{Failure, Order, Role, Task, Turn};
use super::process::{LOAD, Placement, Process, SERVER};
use super::row::Row;
use super::servers::{self, Server};
use super::table::{grouped, print};

/// N. Large enough that the occasional work of a timer or a housekeeping thread is less than one in a hundred.
const REQUESTS: u64 = 4000;

/// Counts and prints every row, and fails where one takes more than `options.max` allows.
pub fn measure(options: &Options, placement: Placement) -> Result<(), Failure> {
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Err("there is no valgrind; Debian has it in the package of that name".into());
    }
    let size = options.sizes.0.first().copied().unwrap_or(Size(16 << 10));
    let counter = Counter { options, placement: placement.without_real_time(), size, folder: servers::folder()? };
    let is_counted = |row: &&Row| options.only.is_empty() || options.only.contains(row);
    let count = |row: &Row| Ok((*row, counter.instructions(*row)?));
    let counts: Vec<(Row, f64)> = Row::ALL.iter().filter(is_counted).map(count).collect::<Result<_, Failure>>()?;
    let bare = counts.iter().find(|(row, _)| *row == Row::Bare).map(|(_, count)| *count);
    let most = |row: Row| options.max.iter().find(|max| max.row == row).map(|max| max.instructions as f64);
    let rows: Vec<Vec<String>> = counts
        .iter()
        .map(|&(row, count)| {
            let most = most(row).map(grouped).unwrap_or_default();
            let ratio = bare.map(|bare| format!("{:.2}", count / bare)).unwrap_or_default();
            vec![row.name().to_owned(), row.description().to_owned(), grouped(count), ratio, most]
        })
        .collect();
    println!("User-space instructions of one request, {size}, 1 connection, of {REQUESTS}\n");
    print(&["row", "request", "instructions", "× bare", "at most"], &rows);
    let exceeded = |&&(row, count): &&(Row, f64)| most(row).is_some_and(|most| count > most);
    let too_many: Vec<&str> = counts.iter().filter(exceeded).map(|(row, _)| row.name()).collect();
    match too_many.as_slice() {
        [] => Ok(()),
        rows => Err(format!("more instructions than allowed: {}", rows.join(", ")).into()),
    }
}

struct Counter<'o> {
    options: &'o Options,
    placement: Placement,
    size: Size,
    folder: tempfile::TempDir,
}

impl Counter<'_> {
    /// The instructions of one request.
    fn instructions(&self, row: Row) -> Result<f64, Failure> {
        let (once, twice) = (self.run(row, REQUESTS)?, self.run(row, 2 * REQUESTS)?);
        Ok((twice as f64 - once as f64) / REQUESTS as f64)
    }

    /// The instructions of a server's whole run with this many requests.
    fn run(&self, row: Row, requests: u64) -> Result<u64, Failure> {
        let folder = self.options.profiles.as_deref().unwrap_or(self.folder.path());
        let profile = folder.join(format!("{}.{requests}.callgrind", row.name()));
        let (_upstream, upstream) = self.placement.serve(LOAD, Role::Upstream, self.size.0, 1)?;
        if row == Row::Bare {
            let mut command = Role::Bare.of(self.counted(&profile, &std::env::current_exe()?));
            command.args(["--size", &self.size.0.to_string()]).stderr(Stdio::null());
            let (process, port) = Process::serving(command)?;
            self.ask(row, port, requests)?;
            process.end()?;
        } else {
            let command = self.counted(&profile, &self.options.gateway);
            let server = Server::gateway_by(command, row.name(), self.folder.path(), upstream, &row.settings())?;
            self.ask(row, server.port, requests)?;
            let calls = servers::calls(upstream)?;
            if calls != if row == Row::Miss { requests } else { 1 } {
                return Err(format!("{}: {requests} requests, and {calls} calls of the upstream", row.name()).into());
            }
            server.empty_log()?;
            server.end()?;
        }
        total(&profile)
    }

    fn counted(&self, profile: &Path, program: &Path) -> Command {
        let mut command = self.placement.command(SERVER, Path::new("valgrind"));
        command.args(["--quiet", "--tool=callgrind"]).arg({
            let mut option = std::ffi::OsString::from("--callgrind-out-file=");
            option.push(profile);
            option
        });
        command.arg(program);
        command
    }

    fn ask(&self, row: Row, port: u16, requests: u64) -> Result<(), Failure> {
        let order = if row == Row::Miss { Order::Counting } else { Order::Zipf };
        let Turn { answers, wrong, .. } = self.placement.load(&Task {
            port,
            size: self.size.0,
            order,
            distinct: 1,
            first: 0,
            count: requests,
            time: 600.0,
            clients: 1,
            token: row.token().map(str::to_owned),
        })?;
        match (answers == requests, wrong) {
            (true, 0) => Ok(()),
            _ => Err(format!("{}: {answers} answers of {requests}, {wrong} wrong", row.name()).into()),
        }
    }
}

/// The sum in one of callgrind's files.
fn total(profile: &PathBuf) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(profile)?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.ok_or("callgrind wrote no total: the server did not end by itself")?.trim().parse()?)
}
