//! The paths of values, and the environment variables that set them.

use std::fmt;

/// The prefix of every environment variable that names a key.
pub(super) const PREFIX: &str = "INSIGHTS_GATEWAY_";

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

    /// The place in its list, counted from 0, if the value is an item of one.
    pub(super) fn last_item(&self) -> Option<usize> {
        match self.0.last()? {
            Step::Key(_) => None,
            Step::Item(item) => Some(*item),
        }
    }

    /// Whether it is the path of the whole tree.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of keys and indices.
    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether a key leads from `table`, which contains this value, down to it: not only indices of lists.
    pub(super) fn has_key_below(&self, table: &Self) -> bool {
        self.0.iter().skip(table.0.len()).any(|step| matches!(step, Step::Key(_)))
    }

    /// The keys of accounts and teams are names that the user chooses, so they mean nothing in other sections.
    pub(super) fn is_named(&self) -> bool {
        matches!(self.0.first(), Some(Step::Key(key)) if key == "accounts" || key == "teams")
    }

    /// The environment variable that sets this key.
    pub(super) fn variable(&self) -> String {
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
