//! Checks the handbook against the code: its lists are complete, its links have targets, and its commands work.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use insights_gateway::cli::Cli;
use insights_gateway::core::error::Reason;
use insights_gateway::twilio::endpoint::{Body, CacheClass, ENDPOINTS, Endpoint, Repeatability};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and the handbook: paths from the root, and texts.
fn pages() -> Vec<(PathBuf, String)> {
    let folders = ["docs", "docs/recipes"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let handbook = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    let markdown = handbook.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let pages = markdown.chain([root().join("README.md"), root().join("CHANGELOG.md")]);
    pages.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The headings of one level below a heading of the level above.
fn headings<'a>(page: &'a str, below: &str, level: &str) -> Vec<&'a str> {
    let from = page.split(&format!("\n{below}\n")).nth(1).unwrap_or_else(|| panic!("no {below}"));
    let section = from.split("\n## ").next().unwrap();
    section.lines().filter_map(|line| line.strip_prefix(level)).collect()
}

#[test]
fn the_runbook_has_an_entry_for_every_reason_and_for_no_other() {
    let page = page("runbook.md");
    let expected: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(headings(&page, "## Reasons", "### "), expected);
    for reason in Reason::ALL {
        let entry = page.split(&format!("\n### {}\n", reason.as_str())).nth(1).unwrap();
        let entry = entry.split("\n### ").next().unwrap();
        let status = format!("\n{}. ", reason.status().as_u16());
        assert!(entry.starts_with(&status), "{} answers{status}", reason.as_str());
        assert!(entry.contains("**See:**") && entry.contains("**Do:**"), "{}: see what, do what", reason.as_str());
    }
}

/// Without a disk a restart empties the cache, at a time when it is needed most.
#[test]
fn the_runbook_asks_for_no_restart() {
    let page = page("runbook.md");
    let mentions = page.split_inclusive('.').filter(|sentence| sentence.contains("restart"));
    let asks = |sentence: &&str| {
        !["would", "could not restart", "before the last restart", "InsightsGatewayRestarting"]
            .iter()
            .any(|known| sentence.contains(known))
    };
    let asking: Vec<_> = mentions.filter(asks).collect();
    assert!(asking.is_empty(), "{asking:?}");
}

/// An endpoint in the form of a row of the handbook's tables.
fn row(endpoint: &Endpoint) -> String {
    let body = match endpoint.body {
        Body::None => "none",
        Body::Query => "query",
        Body::Field => "field",
    };
    let stored = match endpoint.cache {
        CacheClass::None => "no",
        CacheClass::Metadata => "`cache.metadata`",
        CacheClass::Query => "`cache.query`, `cache.settled`",
        CacheClass::Page => "like the first page",
        CacheClass::Job => "`cache.jobs.dedup`",
        CacheClass::Status => "until `Retry-After`",
        CacheClass::Results => "`cache.jobs.results`",
    };
    let repeated = match endpoint.repeat {
        Repeatability::Safe => "always",
        Repeatability::WithKey => "always, with its key",
        Repeatability::OnlyUnsent => "only if not processed",
        Repeatability::Poll => "only if not sent",
    };
    let (operation, permission) = (endpoint.operation.as_str(), endpoint.permission.as_str());
    let Endpoint { method, path, .. } = endpoint;
    format!("| {method} `{path}` | `{operation}` | `{permission}` | {body} | {stored} | {repeated} |")
}

#[test]
fn the_handbook_lists_the_endpoints_that_the_gateway_routes_by() {
    let page = page("endpoints.md");
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ") && line.contains("`/v3/")).collect();
    assert_eq!(rows, ENDPOINTS.iter().map(row).collect::<Vec<_>>());
}

#[test]
fn the_handbook_lists_every_section_of_the_configuration() {
    let reference = fs::read_to_string(root().join("config/gateway.toml")).unwrap();
    let name = |line: &str| {
        let name = line.trim_start_matches('#').strip_prefix('[')?.strip_suffix(']')?;
        Some(name.split('.').next().unwrap().to_owned())
    };
    let sections: BTreeSet<_> = reference.lines().filter_map(name).collect();
    let page = page("configuration.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `[")?.split(['.', ']']).next());
    assert_eq!(rows.map(str::to_owned).collect::<BTreeSet<_>>(), sections);
}

/// The targets of a page's links: `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchor by which a heading can be linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
}

#[test]
fn every_link_has_a_target() {
    for (path, text) in pages() {
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}", path.display());
            let found = || {
                fs::read_to_string(&target)
                    .unwrap()
                    .lines()
                    .any(|line| line.starts_with('#') && anchor(line) == fragment)
            };
            assert!(fragment.is_empty() || found(), "{} links to {link}: no such heading", path.display());
        }
    }
}

#[test]
fn every_page_of_the_handbook_can_be_found_from_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let recipes = fs::read_to_string(root().join("docs/recipes/README.md")).unwrap();
    for (path, _) in pages() {
        let Ok(name) = path.strip_prefix(root().join("docs")) else { continue };
        let is_linked = match name.strip_prefix("recipes") {
            Ok(recipe) if recipe != Path::new("README.md") => recipes.contains(&format!("]({})", recipe.display())),
            _ => readme.contains(&format!("](docs/{})", name.display())),
        };
        assert!(is_linked, "nothing links to docs/{}", name.display());
    }
}

/// The handbook shows the examples that the tests of the SDKs run.
#[test]
fn the_examples_are_shown_as_they_are() {
    let shown: String = pages().into_iter().map(|(_, text)| text).collect();
    let examples = fs::read_dir(root().join("examples/sdk")).unwrap().map(|entry| entry.unwrap().path());
    for path in examples {
        let (name, example) = (path.display().to_string(), fs::read_to_string(&path).unwrap());
        let language = if name.ends_with(".py") { "python" } else { "js" };
        assert!(shown.contains(&format!("```{language}\n{example}```\n")), "no page shows {name} verbatim");
    }
}

/// The commands of the gateway in shell blocks, as words.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_shell = false;
    for line in text.lines() {
        let fence = line.trim_start();
        if let Some(language) = fence.strip_prefix("```") {
            in_shell = ["sh", "console"].contains(&language);
            continue;
        }
        let line = line.trim_start().trim_start_matches("$ ");
        let program = line.split_whitespace().next().unwrap_or_default();
        if in_shell && program.rsplit('/').next().unwrap().starts_with("insights-gateway") && !program.ends_with(':') {
            let alone = line.split(" #").next().unwrap().split("&&").next().unwrap().trim_end_matches([' ', '&']);
            found.push(alone.to_owned());
        }
    }
    found
}

#[test]
fn every_command_of_the_handbook_exists() {
    let mut tried = 0;
    for (path, text) in pages() {
        for command in commands(&text).into_iter().filter(|command| command.contains(' ')) {
            let words = command.split_whitespace();
            // The output of a command begins with its version, or with words that are not a command.
            if command.starts_with("insights-gateway 0.") {
                continue;
            }
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{}: {command}: {}", path.display(), parsed.unwrap_err());
            tried += 1;
        }
    }
    assert!(tried >= 10, "only {tried} commands were found");
}
