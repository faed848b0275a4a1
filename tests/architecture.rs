//! Checks the rules for imports between modules, which `lib.rs` lists, by reading the sources.
//!
//! Every path counts, in a `use` line or elsewhere; comments and unit tests do not.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "architecture/rings.rs"]
mod rings;

use std::fs;
use std::path::{Path, PathBuf};

use rings::Tree;

/// A source file: its path under `src/`, and its lines without comments and unit tests.
struct Source {
    path: String,
    lines: Vec<(usize, String)>,
}

impl Source {
    /// The top-level module, such as `layers`.
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap()
    }

    /// The layer that a file below `layers` belongs to.
    fn layer(&self) -> Option<&str> {
        self.path.strip_prefix("layers/")?.split(['/', '.']).next().filter(|layer| *layer != "mod")
    }

    fn is(&self, places: &[&str]) -> bool {
        places.iter().any(|place| match place.strip_suffix('/') {
            Some(_) => self.path.starts_with(place),
            None => self.path == *place,
        })
    }
}

fn sources() -> Vec<Source> {
    let sources = below("src");
    assert!(sources.len() > 50, "only {} files were found", sources.len());
    sources
}

/// The sources in a folder, and in the folders in it.
fn below(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.iter().filter_map(|file| read(&root, file)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(root: &Path, file: &Path) -> Option<Source> {
    let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    // Only unit tests have these.
    if path.ends_with("tests.rs") || path.ends_with("test_server.rs") {
        return None;
    }
    let text = fs::read_to_string(file).unwrap();
    Some(Source { path, lines: code(&text) })
}

/// The lines that are neither comments nor in a module for tests, with their numbers.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut in_tests = false;
    for (number, line) in text.lines().enumerate() {
        if line == "#[cfg(test)]" {
            in_tests = true;
        }
        let ends_tests = line == "}" || line.starts_with("mod ") && line.ends_with(';');
        let code = line.split("//").next().unwrap_or_default();
        if !in_tests && !code.trim().is_empty() {
            match lines.last_mut() {
                // A `use` on several lines is read as one.
                Some((_, open)) if is_open_use(open) => open.push_str(code.trim()),
                _ => lines.push((number + 1, code.to_owned())),
            }
        }
        if in_tests && ends_tests {
            in_tests = false;
        }
    }
    lines
}

fn is_open_use(line: &str) -> bool {
    let line = line.trim();
    let item = if line.starts_with("pub") { line.split_once(' ').map_or(line, |(_, item)| item) } else { line };
    item.starts_with("use ") && !line.ends_with(';')
}

/// The modules of this crate that a text names, with the next path segment: `crate::a::b::C` is `a::b`. Braces are
/// expanded: `crate::{a, b::C}` is `a` and `b::C`.
fn mentions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                found.extend(group.split(',').map(|part| two(part.trim())).filter(|part| !part.is_empty()));
            }
            None => found.push(two(rest)),
        }
    }
    found
}

fn two(path: &str) -> String {
    let end = path.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))).unwrap_or(path.len());
    path[..end].split("::").filter(|segment| !segment.is_empty()).take(2).collect::<Vec<_>>().join("::")
}

/// Fails with every line where `is_wrong` is true.
fn forbid(rule: &str, is_wrong: impl Fn(&Source, &str) -> bool) {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in &source.lines {
            if is_wrong(&source, line) {
                wrong.push(format!("src/{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

fn names(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

#[test]
fn the_map_in_lib_rs_lists_every_module_bottom_up() {
    let listed: Vec<String> = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, ORDER, "the order below is that of lib.rs");
}

/// Each imports only modules before it.
const ORDER: [&str; 22] = [
    "core",
    "semantics",
    "twilio",
    "health",
    "accounts",
    "request",
    "budget",
    "metrics",
    "config",
    "trust",
    "telemetry",
    "audit",
    "live",
    "cache",
    "replicas",
    "layers",
    "stack",
    "server",
    "admin",
    "gateway",
    "simulator",
    "cli",
];

#[test]
fn no_module_imports_a_later_one() {
    forbid("a module imports only modules above it in lib.rs", |source, line| {
        let place = |module: &str| ORDER.iter().position(|known| *known == module);
        let Some(own) = place(source.module()) else { return false };
        mentions(line).iter().any(|path| place(path.split("::").next().unwrap()).is_some_and(|other| other > own))
    });
}

#[test]
fn no_files_import_each_other_in_a_ring() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut crates = vec![("src/".to_owned(), sources())];
    for kind in ["benches", "tests"] {
        for entry in fs::read_dir(root.join(kind)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let folder = format!("{kind}/{name}");
            if root.join(&folder).join("main.rs").exists() {
                let mut files = below(&folder);
                // Each crate of tests has its helpers as the module `support`.
                let support = |file: Source| Source { path: format!("support/{}", file.path), ..file };
                files.extend(below("tests/support").into_iter().filter(|_| kind == "tests").map(support));
                crates.push((folder + "/", files));
            }
        }
    }
    assert!(crates.len() >= 5, "only {} crates were found", crates.len());
    let mut wrong = Vec::new();
    for (folder, files) in crates {
        assert!(!files.is_empty(), "{folder} was not read");
        wrong.extend(Tree::of(files).rings().iter().map(|ring| format!("{folder}\n  {}", ring.join("\n  "))));
    }
    assert!(
        wrong.is_empty(),
        "files import each other in a ring; move what both need to a file of its own:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn no_layer_imports_another_layer() {
    forbid("a layer must not import another layer", |source, line| {
        let Some(own) = source.layer() else { return false };
        mentions(line).iter().any(|path| path.strip_prefix("layers").is_some_and(|layer| layer != format!("::{own}")))
    });
    let all = sources();
    let layers: std::collections::BTreeSet<_> = all.iter().filter_map(Source::layer).collect();
    forbid("a layer must not import another layer through their parent", |source, line| {
        let Some(own) = source.layer() else { return false };
        let depth = source.path.split('/').count() - usize::from(source.path.ends_with("/mod.rs"));
        let parent = "super::".repeat(depth - 1);
        layers.iter().filter(|layer| **layer != own).any(|layer| line.contains(&format!("{parent}{layer}::")))
            || line.contains(&format!("{parent}{{"))
    });
}

#[test]
fn only_cli_and_gateway_import_stack_server_and_admin() {
    forbid("only cli and gateway (and admin, for stack) import stack, server and admin", |source, line| {
        if source.is(&["cli/", "gateway.rs", "gateway/"]) {
            return false;
        }
        mentions(line).iter().any(|path| {
            let module = path.split("::").next().unwrap();
            let own = module == source.module();
            let reads_handles = (source.module(), module) == ("admin", "stack");
            !own && !reads_handles && matches!(module, "stack" | "server" | "admin" | "gateway")
        })
    });
}

#[test]
fn simulator_and_gateway_are_independent() {
    forbid("the simulator imports at most core::units", |source, line| {
        let allowed = |path: &str| path.starts_with("simulator") || path == "core::units";
        source.module() == "simulator" && mentions(line).iter().any(|path| !allowed(path))
    });
    forbid("only cli imports the simulator", |source, line| {
        !matches!(source.module(), "simulator" | "cli")
            && mentions(line).iter().any(|path| path.starts_with("simulator"))
    });
}

#[test]
fn libraries_are_used_only_in_their_modules() {
    for (library, places) in [
        ("moka", &["cache/"][..]),
        ("governor", &["core/limiter.rs"]),
        ("hyper_rustls", &["layers/upstream/", "telemetry/"]),
        ("tokio_rustls", &["server/", "cli/client/"]),
        ("prometheus_client", &["metrics.rs", "metrics/"]),
        ("clap", &["cli/"]),
        ("toml", &["config/"]),
    ] {
        forbid(&format!("{library} is used only in {places:?}"), |source, line| {
            !source.is(places) && names(line, library) && line.contains(&format!("{library}::"))
        });
    }
}

#[test]
fn secrets_are_read_only_where_they_are_used() {
    // Calls are signed, and the store of the replicas gets its password.
    let readers = ["layers/sign.rs", "replicas/connection.rs"];
    forbid("only these files read a secret", |source, line| {
        !source.is(&readers) && (names(line, "ExposeSecret") || names(line, "expose_secret"))
    });
}

#[test]
fn only_config_and_cli_read_the_environment() {
    forbid("only config and cli read the environment", |source, line| {
        !source.is(&["config/", "cli/"]) && (line.contains("std::env::") || line.contains("use std::env"))
    });
}

#[test]
fn clocks_are_read_in_one_place() {
    let clocks = ["Instant::now", "SystemTime::now", "std::time::Instant", "Timestamp::now", "Zoned::now"];
    // moka's expiry passes its own instants, which are ignored. The server and the simulator read tokio's clock, and
    // the simulator the calendar.
    let exempt = ["core/clock.rs", "cache/memory.rs", "server/", "simulator/", "cli/"];
    forbid("only core/clock.rs reads a clock", |source, line| {
        !source.is(&exempt) && clocks.iter().any(|clock| line.contains(clock))
    });
    forbid("only core/clock.rs reads std's clocks", |source, line| {
        !source.is(&["core/clock.rs"]) && (line.contains("SystemTime::now") || line.contains("std::time::Instant::now"))
    });
}

/// A check that reads nothing would always pass.
#[test]
fn the_reader_finds_what_it_has_to_find() {
    assert_eq!(mentions("use crate::layers::cache::{CacheLayer, Caching};"), ["layers::cache"]);
    assert_eq!(mentions("use crate::{admin, config::Config};"), ["admin", "config::Config"]);
    assert_eq!(
        mentions("fn f(a: &crate::config::Team, b: crate::request::key::Key)"),
        ["config::Team", "request::key"]
    );
    assert_eq!(mentions("pub(crate) fn f() {}"), [""; 0]);
    assert!(names("use moka::sync::Cache;", "moka") && !names("use smoka::x;", "moka"));
    let text = "use a;\n// crate::stack\n#[cfg(test)]\nmod tests {\n    use crate::admin;\n}\nuse b; // crate::x\n#[cfg(test)]\nmod tests;\nuse c;";
    let kept: Vec<_> = code(text).into_iter().map(|(_, line)| line.trim().to_owned()).collect();
    assert_eq!(kept, ["use a;", "use b;", "use c;"]);
    let broken = code("use crate::{\n    admin,\n    stack,\n};\nfn f() {}");
    assert_eq!((broken.len(), mentions(&broken[0].1)), (2, vec!["admin".to_owned(), "stack".to_owned()]));
    let all = sources();
    for module in ORDER {
        assert!(all.iter().any(|source| source.module() == module), "{module} was not read");
    }
    let layers: std::collections::BTreeSet<_> = all.iter().filter_map(Source::layer).collect();
    assert!(layers.len() >= 9, "{layers:?}");
    assert!(all.iter().any(|source| source.lines.iter().any(|(_, line)| line.contains("expose_secret"))));
}
