//! `query`: sends a query through a running gateway, from a terminal or a script.
//!
//! | file | what happens there |
//! | --- | --- |
//! | `arguments`, `filter`, `moment` | the command line and the syntax of its values |
//! | `question` | the request for Twilio's API |
//! | `token`, `gateway` | the credential, and sending requests |
//! | `cube` | finds the time dimension in the account's metadata |
//! | `job` | a query job, until it has ended |
//! | `page` | the rows of a response |
//! | `format` | how rows are written |
//! | `explain`, `progress` | what is printed on standard error meanwhile |
//! | `refusal`, `failure` | why there are no rows, and what to do |

mod arguments;
mod cube;
mod explain;
mod failure;
mod filter;
mod format;
mod gateway;
mod job;
mod moment;
mod page;
mod progress;
mod question;
mod refusal;
mod token;

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use bytes::Bytes;

pub use self::arguments::{Format, QueryArgs};
use self::explain::Explanation;
use self::failure::Failure;
use self::format::RowWriter;
use self::gateway::{Gateway, LIMITS};
use self::page::Page;
use self::progress::Progress;
use self::question::path;
use super::ask::reachable;
use super::client::{Address, Answer, Client};
use super::exit;
use super::output::explain as say;
use super::terminal::Terminal;
use super::text::plain;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// The gateway's own variable, so that no argument is needed where the environment configures the gateway.
const LISTEN: &str = "INSIGHTS_GATEWAY_SERVER__LISTEN";

/// Sends the query, and prints the result.
pub fn run(args: &QueryArgs) -> ExitCode {
    let answered = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let answered = runtime.block_on(answer(args));
            // A resolver that hangs in its own thread must not delay the exit.
            runtime.shutdown_background();
            answered
        }
        Err(error) => Err(Failure::Machine(error)),
    };
    match answered {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) if failure.is_closed_pipe() => ExitCode::from(exit::DONE),
        Err(failure) => {
            say(&format!("insights-gateway: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

async fn answer(args: &QueryArgs) -> Result<(), Failure> {
    if args.job && args.page_size.is_some_and(|size| size > 1000) {
        return Err(Failure::Usage("--page-size: a job's results come in pages of at most 1000 rows".to_owned()));
    }
    let terminal = Terminal::of_process();
    let mut gateway = open(args)?;
    let time = time_dimension(args, &mut gateway).await?;
    let body: Bytes = question::body(args, time.as_deref()).to_string().into();
    // Rows that are written as they arrive show the progress themselves, if they go to a terminal.
    let is_quiet = args.format == Format::Table || !terminal.output;
    let mut walk = Walk {
        progress: Progress::new(terminal.errors && is_quiet && (args.all || args.job)),
        explanation: args.explain.then(Explanation::default),
        writer: format::writer(args, terminal),
        gateway,
        rows: 0,
    };
    let walked = walk.pages(args, body).await;
    walk.progress.clear();
    let remark = walk.end(walked.is_err());
    // The error that stopped the walk is reported before an error of the output.
    let more = walked?;
    let remark = remark?;
    if let Some(explanation) = &walk.explanation {
        say(explanation.sum().trim_end());
        if let Ok(answer) = walk.gateway.get("/_gateway/usage").await
            && let Some(usage) = explain::usage(&answer.body)
        {
            say(usage.trim_end());
        }
    }
    if let Some(remark) = remark {
        say(&format!("insights-gateway: {remark}"));
    }
    if more {
        let shown = match walk.rows {
            1 => "this one".to_owned(),
            rows => format!("these {rows}"),
        };
        say(&format!("insights-gateway: there are more rows than {shown}; --all fetches all pages"));
    }
    Ok(())
}

/// The gateway that the command line names, or else the environment.
fn open(args: &QueryArgs) -> Result<Gateway, Failure> {
    let address = match &args.url {
        Some(url) => Address::parse(url).map_err(|error| Failure::Usage(format!("--url: {error}")))?,
        None => address_of_listen(&std::env::var(LISTEN).unwrap_or_default()).map_err(Failure::Usage)?,
    };
    // Paths begin with the version, so a base that contains it would repeat it.
    if let Some((base, _)) =
        address.base().split_once("/v3").filter(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
    {
        let right = address.clone().with_base(base);
        return Err(Failure::Usage(format!("--url: leave out /v3 and what follows: {right}")));
    }
    let (authorization, shown) =
        token::authorization(args.token_file.as_deref(), args.team.as_deref()).map_err(Failure::Usage)?;
    let client = Client::new(address, args.ca_file.as_deref(), LIMITS)
        .map_err(|error| Failure::Usage(format!("--ca-file: {error}")))?;
    Ok(Gateway::new(client, authorization, shown))
}

/// `listen` is the gateway's list of listeners; the first is used.
fn address_of_listen(listen: &str) -> Result<Address, String> {
    let first = listen.split(',').next().unwrap_or_default().trim();
    let url = match first {
        "" => DEFAULT_URL.to_owned(),
        unix if unix.starts_with("unix:") => unix.to_owned(),
        tcp => match reachable(tcp) {
            Some(address) => format!("http://{address}"),
            None => return Err(format!("{LISTEN}: requests cannot be sent to its first entry; give --url")),
        },
    };
    Address::parse(&url).map_err(|error| format!("{LISTEN}: {error}"))
}

/// The dimension for `--since` and `--until`, if one of them is given.
async fn time_dimension(args: &QueryArgs, gateway: &mut Gateway) -> Result<Option<String>, Failure> {
    if args.since.is_none() && args.until.is_none() {
        return Ok(None);
    }
    if args.time.is_some() {
        return Ok(args.time.clone());
    }
    let Some(first) = args.measure.first().or(args.dimension.first()) else { return Ok(None) };
    let answer = gateway.get(&path("/Metadata", &[])).await.inspect_err(|failure| {
        if matches!(failure, Failure::RefusedResponse(_)) {
            say("insights-gateway: without the metadata, --since and --until need --time");
        }
    })?;
    let metadata: cube::Metadata = serde_json::from_slice(&answer.body)
        .map_err(|_| Failure::Strange("the metadata cannot be read; name the time dimension with --time".to_owned()))?;
    metadata.time_of(first).map(Some).map_err(|unclear| Failure::Usage(plain(&unclear.to_string())))
}

/// The path of a result from the gateway to standard output.
struct Walk {
    gateway: Gateway,
    writer: Box<dyn RowWriter>,
    progress: Progress,
    explanation: Option<Explanation>,
    rows: usize,
}

impl Walk {
    /// Writes the first page, or all of them. Returns whether there are more.
    async fn pages(&mut self, args: &QueryArgs, body: Bytes) -> Result<bool, Failure> {
        let size = args.page_size.map(|size| size.to_string());
        let size = ("pageSize", size.as_deref());
        if self.explanation.is_some() {
            say(&format!("{:<9}{}", "query", String::from_utf8_lossy(&body)));
        }
        let results = match args.job {
            true => {
                let id = job::complete(&mut self.gateway, body.clone(), &mut self.progress).await?;
                Some(format!("/QueryJobs/{id}/Results"))
            }
            false => None,
        };
        self.progress.show("page 1");
        let first = match &results {
            Some(results) => self.gateway.get(&path(results, &[size])).await,
            None => self.gateway.post(&path("/Query", &[size]), body).await,
        };
        let mut answer = self.told(first)?;
        let mut tokens = HashSet::new();
        loop {
            let page = Page::read(&answer.body).map_err(|error| Failure::Strange(error.to_string()))?;
            self.write(&page)?;
            let Some(token) = page.next else { return Ok(false) };
            if !args.all {
                return Ok(true);
            }
            if !tokens.insert(blake3::hash(token.as_bytes())) {
                return Err(Failure::Strange(
                    "the next page repeats an earlier one; the rows so far are shown".to_owned(),
                ));
            }
            self.progress.show(&format!("page {}, {} rows so far", tokens.len() + 1, self.rows));
            let token = ("pageToken", Some(token.as_str()));
            // Only the results of a job take a page size with each request.
            let next = match &results {
                Some(results) => path(results, &[size, token]),
                None => path("/Query", &[token]),
            };
            let next = self.gateway.get(&next).await;
            answer = self.told(next)?;
        }
    }

    /// The same answer, after it has been explained.
    fn told(&mut self, answered: Result<Answer, Failure>) -> Result<Answer, Failure> {
        let lines = match (&mut self.explanation, &answered) {
            (Some(explanation), Ok(answer)) => explanation.answer(answer),
            (Some(_), Err(Failure::RefusedResponse(refused))) => Some(explain::lines(&refused.answer)),
            _ => None,
        };
        if let Some(lines) = lines {
            self.progress.clear();
            say(lines.trim_end());
        }
        answered
    }

    fn write(&mut self, page: &Page<'_>) -> Result<(), Failure> {
        self.rows += page.rows.len();
        if let Some(explanation) = &mut self.explanation {
            explanation.rows(page.rows.len());
        }
        // Without a buffer, standard output would make a system call for every line.
        let mut out = BufWriter::new(io::stdout().lock());
        self.writer.page(&page.rows, &mut out)?;
        Ok(out.flush()?)
    }

    fn end(&mut self, failed: bool) -> Result<Option<&'static str>, Failure> {
        let mut out = BufWriter::new(io::stdout().lock());
        let remark = self.writer.end(failed, &mut out)?;
        out.flush()?;
        Ok(remark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_own_variable_says_where_it_is() {
        let asked = |listen| address_of_listen(listen).unwrap().to_string();
        assert_eq!(asked(""), DEFAULT_URL);
        assert_eq!(asked("0.0.0.0:8081, unix:/run/x.sock"), "http://127.0.0.1:8081");
        assert_eq!(asked("unix:/run/x.sock,127.0.0.1:8080"), "unix:///run/x.sock");
        assert!(address_of_listen("systemd:insights").unwrap_err().contains("--url"));
    }
}
