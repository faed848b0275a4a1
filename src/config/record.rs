//! The record of a configuration: every key that was read, with its effective value, its default, and where it was set.
//!
//! The reader fills it, so a key is declared only once, where it is read. The output of `check`, its `--diff`, and the
//! keys that wait for a restart all come from here.

use super::path::Path;
use super::place::Place;
use super::shape::Shape;

/// Follows every value that shows only where a secret is kept.
pub(super) const MASKED: &str = " # masked";

/// Which changes of a key wait for a restart. All others take effect at a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    /// None: a reload is enough.
    Never,
    /// Any change waits for a restart.
    OnChange,
    /// Only setting it or leaving it out waits for a restart.
    OnPresence,
}

/// The declaration of a key.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: &'static str,
    restart: Restart,
    shape: Shape,
}

impl From<&'static str> for Key {
    fn from(name: &'static str) -> Self {
        Self { name, restart: Restart::Never, shape: Shape::Text }
    }
}

impl Key {
    /// A key that is read only at the start.
    pub(super) const fn at_start(name: &'static str) -> Self {
        Self { name, restart: Restart::OnChange, shape: Shape::Text }
    }

    /// A key whose changes take effect at a reload, except setting it and removing it.
    pub(super) const fn present_at_start(name: &'static str) -> Self {
        Self { name, restart: Restart::OnPresence, shape: Shape::Text }
    }

    /// The same entry with this shape; text is the default.
    pub(super) fn of(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }
}

/// One key of a configuration. Values are TOML, secrets masked.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    path: Path,
    restart: Restart,
    pub(super) shape: Shape,
    /// `None` where it is not set.
    pub(super) value: Option<String>,
    /// `None` where there is no default.
    pub(super) default: Option<String>,
    /// `None` where it is not set, so that the default holds.
    origin: Option<Place>,
}

impl Entry {
    /// `key` of the table at `table`.
    pub(super) fn new(table: &Path, key: Key, value: Option<String>, default: Option<String>) -> Self {
        Self { path: table.key(key.name), restart: key.restart, shape: key.shape, value, default, origin: None }
    }

    /// The same key, set at this place, where one is known.
    pub(super) fn with_origin(self, origin: Option<Place>) -> Self {
        Self { origin, ..self }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a change of its value takes effect only after a restart.
    pub(super) fn is_read_at_start(&self) -> bool {
        self.restart == Restart::OnChange
    }

    fn line(&self) -> String {
        let key = self.path.last_key().unwrap_or_default();
        match &self.value {
            Some(value) => format!("{key} = {value}"),
            None => format!("# {key} is not set"),
        }
    }

    fn line_with_origin(&self) -> String {
        let line = self.line();
        let Some(origin) = &self.origin else { return line };
        let separator = if line.ends_with(MASKED) { "," } else { " #" };
        format!("{line}{separator} from {origin}")
    }

    /// Whether the new value of this key waits for a restart of a gateway that runs with `old`.
    fn waits(&self, old: &Self) -> bool {
        match self.restart {
            Restart::Never => false,
            Restart::OnChange => self.value != old.value,
            Restart::OnPresence => self.value.is_some() != old.value.is_some(),
        }
    }
}

/// Every key of a configuration that was read, in the order of the reference file. Holds no secret.
#[derive(Debug, Clone, Default)]
pub struct Record(Vec<Entry>);

impl Record {
    pub(super) fn add(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// The effective configuration as TOML: every key with its value, defaults included. A secret is shown as the place
    /// where it is kept, or masked where it was given in clear text.
    pub fn show(&self) -> String {
        page(self.0.iter(), Entry::line)
    }

    /// Like [`show`](Self::show), but only the keys whose value is not the default, each with where it was set.
    pub fn diff(&self) -> String {
        page(self.0.iter().filter(|entry| entry.value != entry.default), Entry::line_with_origin)
    }

    /// The keys whose new value waits for a restart of a gateway that runs with `old`.
    pub fn waiting_for_restart(&self, old: &Self) -> Vec<String> {
        let waits = |entry: &&Entry| old.0.iter().any(|old| old.path == entry.path && entry.waits(old));
        self.0.iter().filter(waits).map(|entry| entry.path.to_string()).collect()
    }

    /// All keys with changes that wait for a restart.
    pub fn restart_keys(&self) -> Vec<String> {
        let keys = self.0.iter().filter(|entry| entry.restart != Restart::Never);
        keys.map(|entry| entry.path.to_string()).collect()
    }
}

/// One line per entry, below the headers of the tables.
fn page<'e>(entries: impl Iterator<Item = &'e Entry>, line: impl Fn(&Entry) -> String) -> String {
    let (mut page, mut current) = (String::new(), None);
    for entry in entries {
        let table = entry.path.parent();
        if table != current {
            let gap = if page.is_empty() { "" } else { "\n" };
            let name = table.as_ref().map(ToString::to_string).unwrap_or_default();
            page.push_str(&format!("{gap}[{name}]\n"));
            current = table;
        }
        page.push_str(&line(entry));
        page.push('\n');
    }
    page
}
