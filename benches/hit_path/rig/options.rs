//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;

use super::part::{Role, Task};
use super::row::{Max, Row};

/// Sizes of responses that `--sizes all` means.
const ALL_SIZES: [Size; 4] = [Size(1 << 10), Size(2 << 10), Size(16 << 10), Size(256 << 10)];

/// Measures cache hits of the gateway against a bare hyper server and nginx.
#[derive(Debug, Clone, Parser)]
#[command(name = "hit_path")]
pub struct Options {
    /// Sizes of the answers, such as 2KiB,16KiB; or all
    #[arg(long, default_value = "16KiB")]
    pub sizes: Sizes,
    /// How many distinct queries are cached and asked for, in Zipf order
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub keys: Vec<u32>,
    /// Turns that each server gets
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Length of a turn
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Connections of the load; misses have one
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: u32,
    /// Measure what a miss adds to the upstream's own latency, instead of hits
    #[arg(long)]
    pub misses: bool,
    /// Count the user-space instructions of single requests with callgrind, instead of measuring time
    #[arg(long, conflicts_with = "misses")]
    pub instructions: bool,
    /// Count only these kinds of requests
    #[arg(long, value_delimiter = ',', requires = "instructions")]
    pub only: Vec<Row>,
    /// Fail where a kind of request takes more instructions than this, such as hit=20000,hit-log=25000
    #[arg(long, value_delimiter = ',', requires = "instructions")]
    pub max: Vec<Max>,
    /// Leave callgrind's files in this folder, for callgrind_annotate
    #[arg(long, requires = "instructions")]
    pub profiles: Option<PathBuf>,
    /// Another build of the gateway
    #[arg(long, default_value = env!("CARGO_BIN_EXE_insights-gateway"))]
    pub gateway: PathBuf,

    /// Given by `cargo bench`, and not by `cargo test`.
    #[arg(long, hide = true)]
    pub bench: bool,
    /// The role of this process; `None` for the one that the user started.
    #[arg(long, hide = true)]
    pub role: Option<Role>,
    #[command(flatten)]
    pub task: Task,
}

/// Bytes of a response's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} KiB", self.0 >> 10)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub Vec<Size>);

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
