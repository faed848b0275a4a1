//! The parts that the benchmark starts as processes of its own executable: what each has to do, and what it returns.

use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Any error that ends the run, with the sentence to print.
pub type Failure = Box<dyn std::error::Error>;

/// The processes of the benchmark's own executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Sends requests.
    Load,
    /// Answers from memory. The upper limit: the cost of hyper and the kernel without a gateway.
    Bare,
    /// Plays the role of Twilio.
    Upstream,
}

impl Role {
    /// Changes `command`, which starts the benchmark itself, to run as this part.
    pub fn of(self, mut command: Command) -> Command {
        let name = match self {
            Self::Load => "load",
            Self::Bare => "bare",
            Self::Upstream => "upstream",
        };
        command.args(["--role", name]).stdout(Stdio::piped());
        command
    }
}

/// What a part that the benchmark starts has to do.
#[derive(Debug, Clone, Args)]
pub struct Task {
    /// The port to send requests to.
    #[arg(long, hide = true, default_value_t = 0)]
    pub port: u16,
    /// Bytes that every response must have.
    #[arg(long, hide = true, default_value_t = 0)]
    pub size: usize,
    /// The order of the queries.
    #[arg(long, hide = true, default_value = "zipf")]
    pub order: Order,
    /// The number of different queries in a Zipf order.
    #[arg(long, hide = true, default_value_t = 1)]
    pub distinct: u32,
    /// Number of the first query of a counting order.
    #[arg(long, hide = true, default_value_t = 0)]
    pub first: u64,
    /// Ends after this many responses.
    #[arg(long, hide = true, default_value_t = u64::MAX)]
    pub count: u64,
    /// Ends after this many seconds.
    #[arg(long, hide = true, default_value_t = 1.0)]
    pub time: f64,
    /// Requests in progress at the same time.
    #[arg(long, hide = true, default_value_t = 1)]
    pub clients: u32,
    /// The team's token.
    #[arg(long, hide = true)]
    pub token: Option<String>,
}

/// The order of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// A few of them often.
    Zipf,
    /// Each once.
    Counting,
}

/// The result of a turn.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Turn {
    /// Responses.
    pub answers: u64,
    /// The responses that were not 200 or did not have the size.
    pub wrong: u64,
    /// The length of the turn.
    pub seconds: f64,
    /// Latencies in microseconds.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The load's own share of its processor, in percent: near 100 it has measured itself.
    pub load_busy: f64,
}

impl Turn {
    /// Responses per second.
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.seconds
    }
}
