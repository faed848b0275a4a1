//! The parts of the benchmark and its command line.
//!
//! The executable starts itself again as load, bare server and upstream, each as a separate process, so that each can
//! be pinned and its processor time read.

mod answer;
mod hits;
mod instructions;
mod load;
mod misses;
mod process;
mod queries;
mod servers;
mod table;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use clap::{Parser, ValueEnum};

/// Any error that ends the run, with the sentence to print.
type Failure = Box<dyn std::error::Error>;

/// Sizes of responses that `--sizes all` means.
const ALL_SIZES: [Size; 4] = [Size(1 << 10), Size(2 << 10), Size(16 << 10), Size(256 << 10)];

/// Measures cache hits of the gateway against a bare hyper server and nginx.
#[derive(Debug, Clone, Parser)]
#[command(name = "hit_path")]
struct Options {
    /// Sizes of the answers, such as 2KiB,16KiB; or all
    #[arg(long, default_value = "16KiB")]
    sizes: Sizes,
    /// How many distinct queries are cached and asked for, in Zipf order
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    keys: Vec<u32>,
    /// Turns that each server gets
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a turn
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections of the load; misses have one
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Measure what a miss adds to the upstream's own latency, instead of hits
    #[arg(long)]
    misses: bool,
    /// Count the user-space instructions of single requests with callgrind, instead of measuring time
    #[arg(long, conflicts_with = "misses")]
    instructions: bool,
    /// Count only these kinds of requests
    #[arg(long, value_delimiter = ',', requires = "instructions")]
    only: Vec<instructions::Row>,
    /// Fail where a kind of request takes more instructions than this, such as hit=20000,hit-log=25000
    #[arg(long, value_delimiter = ',', requires = "instructions")]
    max: Vec<instructions::Max>,
    /// Leave callgrind's files in this folder, for callgrind_annotate
    #[arg(long, requires = "instructions")]
    profiles: Option<PathBuf>,
    /// Another build of the gateway
    #[arg(long, default_value = env!("CARGO_BIN_EXE_insights-gateway"))]
    gateway: PathBuf,

    /// Given by `cargo bench`, and not by `cargo test`.
    #[arg(long, hide = true)]
    bench: bool,
    /// The role of this process; `None` for the one that the user started.
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[command(flatten)]
    task: load::Task,
}

/// The processes of the benchmark's own executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Sends requests.
    Load,
    /// Answers from memory. The upper limit: the cost of hyper and the kernel without a gateway.
    Bare,
    /// Plays the role of Twilio.
    Upstream,
}

impl Role {
    /// Changes `command`, which starts the benchmark itself, to run as this part.
    fn of(self, mut command: Command) -> Command {
        let name = match self {
            Self::Load => "load",
            Self::Bare => "bare",
            Self::Upstream => "upstream",
        };
        command.args(["--role", name]).stdout(Stdio::piped());
        command
    }
}

/// Bytes of a response's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(usize);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} KiB", self.0 >> 10)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sizes(Vec<Size>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(ALL_SIZES.to_vec()));
        }
        let size = |part: &str| match part.trim().strip_suffix("KiB").map(str::parse) {
            Some(Ok(kib @ 1..=4096)) => Ok(Size(kib << 10)),
            _ => Err(format!("\"{part}\" is not a size from 1KiB to 4096KiB")),
        };
        text.split(',').map(size).collect::<Result<_, _>>().map(Self)
    }
}

/// Runs what the command line says.
pub fn run() -> ExitCode {
    let options = Options::parse();
    let done = match options.role {
        Some(Role::Load) => load::run(&options.task),
        Some(role @ (Role::Bare | Role::Upstream)) => answer::run(role, options.task.size, options.task.distinct),
        None if !options.bench => {
            println!("hit_path measures for a minute: cargo bench --bench hit_path");
            return ExitCode::SUCCESS;
        }
        None => measure(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("hit_path: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    if !(options.seconds.is_finite() && options.seconds > 0.0) {
        return Err("--seconds has to be more than 0".into());
    }
    let placement = process::Placement::find();
    if options.instructions {
        return instructions::measure(options, placement);
    }
    println!("{placement}\n");
    if options.misses {
        return misses::measure(options, placement);
    }
    let mut ratios = Vec::new();
    for &size in &options.sizes.0 {
        for &keys in &options.keys {
            ratios.extend(hits::measure(options, placement, size, keys)?);
        }
    }
    println!("{}", ratios.join("\n"));
    Ok(())
}
