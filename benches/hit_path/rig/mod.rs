//! The parts of the benchmark and its command line.
//!
//! The executable starts itself again as load, bare server and upstream, each as a separate process, so that each can
//! be pinned and its processor time read.

mod answer;
mod hits;
mod instructions;
mod load;
mod misses;
mod options;
mod part;
mod process;
mod queries;
mod row;
mod servers;
mod table;

use std::process::ExitCode;

use clap::Parser;

use self::options::Options;
use self::part::{Failure, Role};

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
