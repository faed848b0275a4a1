//! All faults of a configuration at once: each with its place, its key and a remedy.
//!
//! A fault has the path of its key, and the report knows where each path was written. A fault never repeats a value,
//! because any value may be a secret under the wrong key.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use super::document::{Node, Value};
use super::files::Files;
use super::record::{Entry, Record};
use super::settings::Config;
use super::sources::PREFIX;
use crate::core::spelling;

/// Where a value was written. The order is that of the report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The file as a whole, which could not be read.
    File(Arc<str>),
    /// A line of the file, counted from 1.
    Line(Arc<str>, usize),
    /// An environment variable, or the environment as a whole.
    Environment(Option<String>),
    /// A command line flag.
    Flags,
}

impl fmt::Display for Place {
    /// In one line, with control characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Self::File(file) => file.to_string(),
            Self::Line(file, line) => format!("{file}:{line}"),
            Self::Environment(Some(name)) => format!("environment: {name}"),
            Self::Environment(None) => "environment".to_owned(),
            Self::Flags => "flags".to_owned(),
        };
        write_escaped(&place, f)
    }
}

fn write_escaped(line: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    line.chars().try_for_each(|c| match c.is_control() {
        true => write!(f, "{}", c.escape_default()),
        false => write!(f, "{c}"),
    })
}

/// One step down the tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Item(usize),
}

/// The path of a value: `teams.dashboards.operations[1]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path(Vec<Step>);

impl Path {
    /// The path through these keys.
    pub(super) fn of<K: Into<String> + Clone>(keys: &[K]) -> Self {
        let step = |key: &K| Step::Key(key.clone().into());
        Self(keys.iter().map(step).collect())
    }

    pub(super) fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.to_owned()))
    }

    pub(super) fn item(&self, index: usize) -> Self {
        self.step(Step::Item(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut path = self.clone();
        path.0.push(step);
        path
    }

    /// The table that contains it.
    pub(super) fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
    }

    /// The keys of the path, without indices of lists.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Item(_) => None,
        })
    }

    pub(super) fn last_key(&self) -> Option<&str> {
        match self.0.last()? {
            Step::Key(key) => Some(key),
            Step::Item(_) => None,
        }
    }

    /// The keys of accounts and teams are names that the user chooses, so they mean nothing in other sections.
    fn is_named(&self) -> bool {
        matches!(self.0.first(), Some(Step::Key(key)) if key == "accounts" || key == "teams")
    }

    /// The environment variable that sets this key.
    fn variable(&self) -> String {
        let keys: Vec<String> = self.keys().map(str::to_uppercase).collect();
        format!("{PREFIX}{}", keys.join("__"))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Item(item) => write!(f, "[{item}]")?,
                Step::Key(key) => {
                    if index > 0 {
                        f.write_str(".")?;
                    }
                    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if !key.is_empty() && key.chars().all(bare) {
                        f.write_str(key)?;
                    } else {
                        write!(f, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A fault, or a warning.
#[derive(Debug, Clone)]
struct Fault {
    place: Place,
    path: Path,
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, path, message } = self;
        let line = match place {
            Place::Environment(Some(_)) => match path.0.last() {
                Some(Step::Item(item)) => format!("{place}: entry {}: {message}", item + 1),
                _ => format!("{place}: {message}"),
            },
            Place::File(_) => format!("{place}: {message}"),
            Place::Line(..) if path.0.is_empty() => format!("{place}: {message}"),
            Place::Line(..) | Place::Environment(None) | Place::Flags => format!("{place}: {path}: {message}"),
        };
        // One fault is one line, and control characters in a key or file name are escaped.
        write_escaped(&line, f)
    }
}

/// Every fault of a configuration, one per line, in the order of the file; then the environment, then flags.
#[derive(Debug, Clone)]
pub struct Faults {
    faults: Vec<Fault>,
    warnings: Vec<String>,
    files: Files,
}

impl Faults {
    /// How many.
    pub fn count(&self) -> usize {
        self.faults.len()
    }

    /// Values that are valid, but probably not what the user wants.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The files that were read, and those that were named but missing. When one of them changes, the configuration may
    /// be valid.
    pub fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn of_files(self, files: Files) -> Self {
        Self { files, ..self }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.faults.iter().enumerate().try_for_each(|(index, fault)| {
            let separator = if index > 0 { "\n" } else { "" };
            write!(f, "{separator}{fault}")
        })
    }
}

impl std::error::Error for Faults {}

/// The files changed during every attempt to read them.
pub(super) fn of_unrest() -> Faults {
    let place = Place::File("the configuration or a secret file".into());
    of_file(place, "keeps changing while it is read; try again when it is written")
}

/// The content of the pipe was read before, and is gone.
pub(super) fn of_a_pipe(path: &FilePath) -> Faults {
    let place = Place::File(path.display().to_string().into());
    of_file(
        place,
        "is not a regular file, so it cannot be read again; restart the gateway, or name a regular file with --config",
    )
}

fn of_file(place: Place, message: &str) -> Faults {
    let fault = Fault { place, path: Path::default(), message: message.to_owned() };
    Faults { faults: vec![fault], warnings: Vec::new(), files: Files::default() }
}

/// Collects faults, warnings and files while the tree is read. Shared by reference between readers.
#[derive(Default)]
pub(super) struct Report {
    root: RefCell<Option<Place>>,
    places: RefCell<BTreeMap<Path, Place>>,
    known: RefCell<BTreeSet<Path>>,
    unknown: RefCell<Vec<Path>>,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
    watched: RefCell<BTreeSet<PathBuf>>,
    record: RefCell<Record>,
    without_secrets: bool,
}

impl Report {
    /// For a check without access to secrets: they count as valid, and none is read.
    pub(super) fn without_secrets() -> Self {
        Self { without_secrets: true, ..Self::default() }
    }

    pub(super) fn is_without_secrets(&self) -> bool {
        self.without_secrets
    }

    /// Remembers where everything in `tree` was written.
    pub(super) fn locate(&self, tree: &Node) {
        *self.root.borrow_mut() = Some(tree.place.clone());
        self.locate_below(&Path::default(), tree);
    }

    fn locate_below(&self, path: &Path, node: &Node) {
        let locate = |path: Path, node: &Node| {
            self.locate_below(&path, node);
            self.places.borrow_mut().insert(path, node.place.clone());
        };
        match &node.value {
            Value::Table(entries) => entries.iter().for_each(|(key, node)| locate(path.key(key), node)),
            Value::List(items) => (0..).zip(items).for_each(|(i, node)| locate(path.item(i), node)),
            _ => {}
        }
    }

    /// Reports that `path` has, or lacks, a value that it should not.
    pub(super) fn fault(&self, path: &Path, message: impl Into<String>) {
        self.fault_at(self.place(path), path.clone(), message);
    }

    /// The same, where the tree does not know the place.
    pub(super) fn fault_at(&self, place: Place, path: Path, message: impl Into<String>) {
        let message = message.into();
        self.faults.borrow_mut().push(Fault { place, path, message });
    }

    /// Reports a variable that is not a key. Reported once, even if it is read several times.
    pub(super) fn fault_of_variable(&self, name: &str, message: &str) {
        let place = Place::Environment(Some(name.to_owned()));
        let is_known = self.faults.borrow().iter().any(|fault| fault.place == place && fault.message == message);
        if !is_known {
            self.fault_at(place, Path::default(), message);
        }
    }

    /// Warns that `path` is valid, but probably not what the user wants.
    pub(super) fn warn(&self, path: &Path, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Fault { place: self.place(path), path: path.clone(), message: message.into() });
    }

    /// Declares that the key `path` exists, whether or not it was given.
    pub(super) fn know(&self, path: Path) {
        self.known.borrow_mut().insert(path);
    }

    /// Adds a key to the record. It was set where the tree says, else at `origin`.
    pub(super) fn record(&self, entry: Entry, origin: Option<Place>) {
        let place = self.places.borrow().get(entry.path()).cloned();
        self.record.borrow_mut().add(entry.with_origin(place.or(origin)));
    }

    /// Notes a given `path` that is not a key. It is reported at the end, when all keys are known that it may be a
    /// misspelling of.
    pub(super) fn unknown(&self, path: Path) {
        self.unknown.borrow_mut().push(path);
    }

    /// Adds `file` to the files whose change causes a reload.
    pub(super) fn watch(&self, file: &FilePath) {
        self.watched.borrow_mut().insert(file.to_owned());
    }

    /// Whether `path` was given anywhere.
    pub(super) fn is_given(&self, path: &Path) -> bool {
        self.places.borrow().contains_key(path)
    }

    /// Where `path` was written; for a missing key, where the nearest table around it was written.
    fn place(&self, path: &Path) -> Place {
        let places = self.places.borrow();
        let mut around = Some(path.clone());
        while let Some(candidate) = around {
            if let Some(place) = places.get(&candidate) {
                let absent = path.0[candidate.0.len()..].iter().any(|s| matches!(s, Step::Key(_)));
                return match place {
                    Place::Environment(Some(name)) if absent && name.starts_with(PREFIX) => {
                        Place::Environment(Some(path.variable()))
                    }
                    place => place.clone(),
                };
            }
            around = candidate.parent();
        }
        self.root.borrow().clone().unwrap_or(Place::Environment(None))
    }

    /// The files so far whose change causes a reload.
    pub(super) fn watched(&self) -> Vec<PathBuf> {
        self.watched.borrow().iter().cloned().collect()
    }

    /// `config` with its warnings, if there is one and there are no faults.
    pub(super) fn finish(self, config: Option<Config>) -> Result<Config, Faults> {
        for path in self.unknown.take() {
            let place = self.place(&path);
            let suggestion = self.suggest_key(&path, &place);
            self.fault_at(place, path, format!("unknown key{suggestion}"));
        }
        let Some(config) = config.filter(|_| self.faults.borrow().is_empty()) else {
            return Err(self.into_faults());
        };
        Ok(Config { warnings: self.take_warnings(), record: self.record.take(), ..config })
    }

    /// The faults so far.
    pub(super) fn into_faults(self) -> Faults {
        let mut faults = self.faults.take();
        faults.sort_by(|a, b| a.place.cmp(&b.place));
        Faults { faults, warnings: self.take_warnings(), files: Files::default() }
    }

    fn take_warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.take();
        warnings.sort_by(|a, b| a.place.cmp(&b.place));
        warnings.iter().map(Fault::to_string).collect()
    }

    fn suggest_key(&self, path: &Path, place: &Place) -> String {
        let known = self.known.borrow();
        let written = path.last_key().unwrap_or_default();
        let siblings = known.iter().filter(|known| known.parent() == path.parent());
        let sibling = closest(written, siblings.filter_map(|p| Some((p.last_key()?, p))));
        // In a variable, the likeliest mistake is a single underscore instead of two.
        let variable = || {
            let wanted = path.variable();
            let all: Vec<(String, &Path)> = known.iter().map(|p| (p.variable(), p)).collect();
            closest(&wanted, all.iter().map(|(name, p)| (name.as_str(), *p))).cloned()
        };
        // The key may be right and its section wrong. The one nearest to the top level is the likeliest.
        let elsewhere = || {
            let same = |p: &&Path| !p.is_named() && p.last_key() == Some(written);
            known.iter().filter(same).min_by_key(|p| p.0.len()).cloned()
        };
        match place {
            Place::Environment(_) => match sibling.cloned().or_else(variable).or_else(elsewhere) {
                Some(path) => did_you_mean(&path.variable()),
                None => String::new(),
            },
            _ => match sibling.and_then(Path::last_key) {
                Some(key) => did_you_mean(key),
                None => elsewhere().map_or_else(String::new, |path| did_you_mean(&path.to_string())),
            },
        }
    }

    /// Every key that exists, for the test that the reference file is complete.
    #[cfg(test)]
    pub(super) fn known_keys(&self) -> Vec<String> {
        self.known.borrow().iter().map(Path::to_string).collect()
    }

    /// The record, whether or not there are faults.
    pub(super) fn record_so_far(&self) -> Record {
        self.record.borrow().clone()
    }
}

/// ` (did you mean …?)` for the word of `words` that `written` is probably a misspelling of, or nothing.
pub(super) fn suggest<'a>(written: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    closest(written, words.into_iter().map(|word| (word, word))).map_or_else(String::new, did_you_mean)
}

fn did_you_mean(word: &str) -> String {
    format!(" (did you mean {word}?)")
}

/// The nearest word, if it is so near that it was probably meant.
fn closest<'a, T>(written: &str, words: impl Iterator<Item = (&'a str, T)>) -> Option<T> {
    const LONGEST: usize = 80;
    let length = written.chars().count();
    if length > LONGEST {
        return None;
    }
    words
        .filter_map(|(word, meant)| Some((spelling::edits_within(spelling::reach(length), written, word)?, meant)))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, meant)| meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_nearest_key() {
        assert_eq!(suggest("qery", ["metadata", "query"]), " (did you mean query?)");
        assert_eq!(suggest("everything", ["metadata", "query"]), "");
        assert_eq!(suggest("x", ["on"]), "");
    }

    #[test]
    fn a_fault_is_one_line_without_control_characters() {
        let fault = Fault {
            place: Place::Line("gate\nway.toml".into(), 3),
            path: Path::default().key("a\u{1b}[2J").item(1),
            message: "unknown key".into(),
        };
        let line = fault.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.starts_with("gate\\nway.toml:3: "), "{line}");
    }
}
