//! The command line, with one file per command.

mod ask;
mod check;
mod client;
mod completions;
mod demo;
mod descriptors;
mod exit;
mod health;
mod json_lines;
mod logs;
mod man;
mod output;
mod query;
mod runtime;
mod schema;
mod serve;
mod simulate;
mod sink;
mod sources;
mod status;
mod status_text;
mod systemd;
mod terminal;
mod text;
mod text_lines;
mod token;
mod traffic;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use self::sources::{ConfigArgs, load_or_explain};

/// A caching reverse proxy for Twilio's Conversation Insights API, which holds the credentials and limits the rate.
#[derive(Debug, Parser)]
#[command(name = "insights-gateway", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "\
Exit codes: 0 done, 1 no answer or refused, 64 bad configuration or usage, 70 internal, 74 could not bind.
Try it without a Twilio account: insights-gateway demo")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway
    ///
    /// Reads a configuration file, or runs from the environment alone: TWILIO_ACCOUNT_SID, TWILIO_API_KEY and
    /// TWILIO_API_SECRET are enough. SIGHUP, or a change of the file or of a secret file, reloads it; SIGTERM
    /// lets requests in progress finish.
    Serve(serve::ServeArgs),
    /// Run gateway, simulator and admin page on loopback, without a Twilio account
    ///
    /// Needs no file. Prints the URLs and three curl lines to paste. If a default port is in use, it takes a free one.
    Demo(demo::DemoArgs),
    /// Run only the local Insights simulator
    ///
    /// A stand-in for Twilio with generated, seeded data. Any account SID works, with the password "secret".
    Simulate(simulate::SimulateArgs),
    /// Validate the configuration and print what is in effect, secrets masked
    ///
    /// Checks files, secrets, references and values, and opens no port. Prints all faults and warnings on standard
    /// error, each as file:line: key: what is wrong. The last line there is OK, or how many there are.
    Check(check::CheckArgs),
    /// Make access tokens for teams
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Ask a question through a running gateway, and print the rows
    ///
    /// For example: insights-gateway query --measure Conversation.Count --dimension Conversation.ConversationStatus
    ///
    /// The token comes from INSIGHTS_GATEWAY_TOKEN or --token-file. Exits with 0 when the question was answered, with 1
    /// when it was refused or failed.
    Query(query::QueryArgs),
    /// Ask a running gateway whether it is ready
    ///
    /// For containers without curl. Exits with 0 when /readyz answers 200 within three seconds, else with 1.
    Health(health::HealthArgs),
    /// Print how a running gateway is doing
    ///
    /// A summary of /status on the admin plane. For scripts, --json prints /status unchanged. Exits with 0 if the status
    /// could be read, whatever it says, else with 1.
    Status(status::StatusArgs),
    /// Print a completion script for a shell
    ///
    /// For example: insights-gateway completions bash > /etc/bash_completion.d/insights-gateway
    Completions(completions::CompletionsArgs),
    /// Write the manual pages into a folder
    ///
    /// For example: insights-gateway man /usr/local/share/man/man1
    Man(man::ManArgs),
    /// Print the JSON Schema of the configuration file
    ///
    /// For editors that complete and check TOML, and for other programs that write configurations.
    Schema(schema::SchemaArgs),
}

/// Parses the command line and runs the command.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Standard error may be closed, which is not a second failure.
            let _ = error.print();
            // `--help` and `--version` arrive here too, and are not errors.
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Check(args) => check::run(&args),
        Command::Token(command) => token::run(&command),
        Command::Query(args) => query::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
        Command::Schema(args) => schema::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_keys() {
        let cli = Cli::try_parse_from([
            "insights-gateway",
            "serve",
            "--listen=127.0.0.1:1",
            "--listen=unix:/run/x.sock",
            "--admin-listen=127.0.0.1:2",
            "--upstream=http://127.0.0.1:3",
            "--set=cache.capacity=64MiB",
        ]);
        let Ok(Cli { command: Command::Serve(args) }) = cli else {
            panic!("no serve");
        };
        let flags = args.config.sources().flags;
        let flag = |key: &str| flags.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        assert_eq!(flag("server.listen"), Some("127.0.0.1:1,unix:/run/x.sock"));
        assert_eq!(flag("admin.listen"), Some("127.0.0.1:2"));
        assert_eq!(flag("upstream.url"), Some("http://127.0.0.1:3"));
        assert_eq!(flag("cache.capacity"), Some("64MiB"));
    }
}
