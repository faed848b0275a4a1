//! Processes: where they run, what they cost, how they end.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::part::{Failure, Order, Role, Task, Turn};

/// The processor of the servers that are measured.
pub const SERVER: usize = 0;
/// The processor of the load, and of the upstream.
pub const LOAD: usize = 1;

/// What this machine allows.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    pinned: bool,
    real_time: bool,
}

impl Placement {
    /// Tries both.
    pub fn find() -> Self {
        let works = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let pinned = [SERVER, LOAD].iter().all(|cpu| works("taskset", &["-c", &cpu.to_string()]));
        Self { pinned, real_time: works("chrt", &["-r", "5"]) }
    }

    /// The same at normal priority: a count does not depend on it, and callgrind is slow.
    pub fn without_real_time(self) -> Self {
        Self { real_time: false, ..self }
    }

    /// A command that runs `program` on `cpu`.
    pub fn command(self, cpu: usize, program: &Path) -> Command {
        let mut words: Vec<std::ffi::OsString> = Vec::new();
        if self.real_time {
            words.extend(["chrt", "-r", "5"].map(Into::into));
        }
        if self.pinned {
            words.extend(["taskset".into(), "-c".into(), cpu.to_string().into()]);
        }
        words.push(program.into());
        // Both programs replace themselves by the one that they start, so the process id is the child's.
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// A part of the benchmark itself, on `cpu`.
    fn part(self, cpu: usize, role: Role) -> Result<Command, Failure> {
        Ok(role.of(self.command(cpu, &std::env::current_exe()?)))
    }

    /// Starts the bare server or the upstream with `pages` pages in memory, and returns its port.
    pub fn serve(self, cpu: usize, role: Role, size: usize, pages: u32) -> Result<(Process, u16), Failure> {
        let mut command = self.part(cpu, role)?;
        command.args(["--size", &size.to_string(), "--distinct", &pages.to_string()]);
        Process::serving(command)
    }

    /// Loads a server for one turn.
    pub fn load(self, task: &Task) -> Result<Turn, Failure> {
        let order = match task.order {
            Order::Zipf => "zipf",
            Order::Counting => "counting",
        };
        let mut command = self.part(LOAD, Role::Load)?;
        command.args(["--port", &task.port.to_string(), "--size", &task.size.to_string()]);
        command.args(["--order", order, "--distinct", &task.distinct.to_string()]);
        command.args(["--first", &task.first.to_string(), "--count", &task.count.to_string()]);
        command.args(["--time", &task.time.to_string(), "--clients", &task.clients.to_string()]);
        command.args(task.token.iter().flat_map(|token| ["--token", token]));
        let output = command.stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("the load on port {} failed", task.port).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pinned {
            true => write!(f, "Servers on CPU {SERVER}, load on CPU {LOAD}")?,
            false => write!(f, "NOT PINNED (no taskset, or one CPU): ratios are rough")?,
        }
        match self.real_time {
            true => write!(f, ", both SCHED_RR."),
            false => write!(f, ", NOT SCHED_RR (not permitted): anything else that runs distorts this."),
        }
    }
}

/// A process that is ended when this value is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Ends `child` when it is dropped.
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// Starts a part of the benchmark that first prints its port, and that ends when its standard input does.
    pub fn serving(mut command: Command) -> Result<(Self, u16), Failure> {
        let mut process = Self::new(command.stdin(Stdio::piped()).spawn()?);
        let port = process.first_line()?;
        let port = port.trim().parse().map_err(|_| format!("a server does not start: it said {port:?}"))?;
        Ok((process, port))
    }

    fn first_line(&mut self) -> Result<String, Failure> {
        let output: ChildStdout = self.0.stdout.take().ok_or("standard output is not piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(line)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Asks it to end and waits for that, for a limited time.
    pub fn end(mut self) -> Result<(), Failure> {
        // The benchmark's own parts end with their input; others get a signal.
        if self.0.stdin.take().is_none() {
            self.terminate();
        }
        let given_up = Instant::now() + Duration::from_secs(60);
        while !self.has_ended() {
            if Instant::now() > given_up {
                return Err("a server does not end".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn terminate(&self) {
        if let Some(id) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended already.
            let _ = kill_process(id, Signal::TERM);
        }
    }

    /// Processor time so far, of it and its children, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64, Failure> {
        let id = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|id| cpu_seconds(id).ok());
        Ok(cpu_seconds(&id.to_string())? + children.sum::<f64>())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            // Not a kill, because nginx has to end its children.
            self.terminate();
            let end = Instant::now() + Duration::from_secs(5);
            while !self.has_ended() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Processor time of this process, in seconds.
pub fn cpu_seconds_of_self() -> Result<f64, Failure> {
    cpu_seconds("self")
}

fn cpu_seconds(id: &str) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The second field is the program's name in parentheses, and may contain anything.
    let behind_name = stat.rsplit_once(')').ok_or("/proc/PID/stat has no name")?.1;
    // User and system time: fields 14 and 15. The first field after the name is 3.
    let ticks = behind_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
