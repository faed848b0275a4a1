//! What is known of a configuration while it is read: where each value was written, which keys exist, and every fault
//! and warning so far.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};

use super::fault::{Fault, Faults};
use super::path::{PREFIX, Path};
use super::place::Place;
use super::record::{Entry, Record};
use super::suggest::{closest, did_you_mean};
use super::tree::{Node, Value};

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
                return match place {
                    Place::Environment(Some(name)) if path.has_key_below(&candidate) && name.starts_with(PREFIX) => {
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

    /// `value` with the warnings and the record, if there is one and there are no faults.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<String>, Record), Faults> {
        for path in self.unknown.take() {
            let place = self.place(&path);
            let suggestion = self.suggest_key(&path, &place);
            self.fault_at(place, path, format!("unknown key{suggestion}"));
        }
        let Some(value) = value.filter(|_| self.faults.borrow().is_empty()) else {
            return Err(self.into_faults());
        };
        Ok((value, self.take_warnings(), self.record.take()))
    }

    /// The faults so far.
    pub(super) fn into_faults(self) -> Faults {
        Faults::new(self.faults.take(), self.take_warnings())
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
            known.iter().filter(same).min_by_key(|p| p.depth()).cloned()
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
