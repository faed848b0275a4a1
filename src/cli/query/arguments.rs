//! The command line arguments of `query`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use super::filter::{Filter, member};
use super::moment::moment;
use crate::config::check_team_name;

// Not as a doc comment, where `<` and `>` would be read as a tag.
const FILTER: &str = "A condition: F=V, F=V,W (one of them), F!=V, F<V or F>V; repeatable, all must hold";
const FILTER_LONG: &str = "\
A condition: F=V, F=V,W (one of them), F!=V, F<V or F>V; repeatable, all must hold

Write a value that contains a comma in double quotes. In a shell, put the whole condition in single quotes: 'F>V'.";

/// Arguments of `query`.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("members").args(["measure", "dimension"]).required(true).multiple(true)))]
pub struct QueryArgs {
    /// What to count or compute, such as Conversation.Count; repeatable
    #[arg(long, value_name = "M", num_args = 1.., value_delimiter = ',', value_parser = member)]
    pub measure: Vec<String>,
    /// What to group by, such as Conversation.CreatedDate.hour; repeatable
    #[arg(long, value_name = "D", num_args = 1.., value_delimiter = ',', value_parser = member)]
    pub dimension: Vec<String>,
    /// Conditions, all of which must hold.
    #[arg(long, value_name = "F=V", num_args = 1.., help = FILTER, long_help = FILTER_LONG)]
    pub filter: Vec<Filter>,
    /// Only rows later than this: 2026-04-02, or 2026-04-02T10:00:00Z
    #[arg(long, value_name = "T", value_parser = moment)]
    pub since: Option<String>,
    /// Only rows earlier than this
    #[arg(long, value_name = "T", value_parser = moment)]
    pub until: Option<String>,
    /// The time dimension of --since and --until; by default the only one of the first member's cube
    #[arg(long, value_name = "D", value_parser = member)]
    pub time: Option<String>,
    /// Where days begin, such as Europe/Zurich; by default UTC
    #[arg(long, value_name = "Z")]
    pub zone: Option<String>,
    /// What to sort by, such as Conversation.Count:desc; repeatable
    #[arg(long, value_name = "F[:desc]", num_args = 1..)]
    pub order: Vec<Order>,
    /// Rows on a page
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub page_size: Option<u32>,
    /// Fetch all pages, not just the first
    #[arg(long)]
    pub all: bool,
    /// Submit a query job, wait for it and print its results: for queries that take long
    #[arg(long)]
    pub job: bool,
    /// How rows are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Print on standard error how the answer was made: key, Cache-Status, times, usage
    #[arg(long)]
    pub explain: bool,
    /// Gateway URL, or unix:///path; by default INSIGHTS_GATEWAY_SERVER__LISTEN, else http://127.0.0.1:8080
    #[arg(long, value_name = "URL", help_heading = "Gateway")]
    pub url: Option<String>,
    /// Sign in as this team: its name is sent together with the token
    #[arg(long, value_name = "NAME", value_parser = team, help_heading = "Gateway")]
    pub team: Option<String>,
    /// File with the team's token; without it, the token comes from INSIGHTS_GATEWAY_TOKEN
    #[arg(long, value_name = "FILE", help_heading = "Gateway")]
    pub token_file: Option<PathBuf>,
    /// A certificate to trust in addition to the machine's own roots (PEM)
    #[arg(long, value_name = "FILE", help_heading = "Gateway")]
    pub ca_file: Option<PathBuf>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One header, then one line per row
    Csv,
    /// One array of rows
    Json,
    /// One JSON object per line
    Ndjson,
}

/// What rows are sorted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A measure or a dimension.
    pub field: String,
    /// Largest values first.
    pub descending: bool,
}

impl std::str::FromStr for Order {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (field, descending) = match text.rsplit_once(':') {
            None => (text, false),
            Some((field, "asc" | "ASC")) => (field, false),
            Some((field, "desc" | "DESC")) => (field, true),
            Some(_) => return Err("expected a member, then :asc or :desc or nothing"),
        };
        Ok(Self { field: member(field)?, descending })
    }
}

fn team(text: &str) -> Result<String, &'static str> {
    check_team_name(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<QueryArgs, String> {
        let words = ["insights-gateway", "query"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words) {
            Ok(Cli { command: Command::Query(args) }) => Ok(args),
            Ok(_) => panic!("no query"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn lists_are_accepted_in_every_form() {
        for line in [
            "--measure C.A --measure C.B --dimension C.D",
            "--measure C.A C.B --dimension C.D",
            "--dimension=C.D --measure=C.A,C.B",
        ] {
            let args = parse(line).unwrap();
            assert_eq!((args.measure, args.dimension), (vec!["C.A".to_owned(), "C.B".into()], vec!["C.D".to_owned()]));
        }
        let args = parse("--dimension C.D --filter C.D=a,b C.E<5 --filter C.F!=x --order C.A C.D:desc --order C.E:ASC");
        let args = args.unwrap();
        assert_eq!(args.filter.len(), 3);
        let order: Vec<_> = args.order.iter().map(|order| (order.field.as_str(), order.descending)).collect();
        assert_eq!(order, [("C.A", false), ("C.D", true), ("C.E", false)]);
        assert_eq!(args.format, Format::Table);
    }

    #[test]
    fn invalid_arguments_are_refused_with_a_next_step() {
        for (line, said) in [
            ("", "--measure"),
            ("--all", "--measure"),
            ("--measure C.A --filter C.D>=5", "Twilio has no >="),
            ("--measure C.A --order C.A:down", ":asc or :desc"),
            ("--measure C.A --page-size 0", "1..="),
            ("--measure C.A --format xml", "table, csv, json, ndjson"),
            ("--measure C.A --since yesterday", "2026-04-02"),
            ("--measure C.A --team a:b", "--team"),
            ("--measure C.A --token secret", "--token"),
            ("--measure ,", "name of a member"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }
}
