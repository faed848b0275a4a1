//! Where values may come from, and the only place that reads the process environment for them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::fault::Report;

/// Of a variable whose value is no text.
pub(super) const NOT_TEXT: &str = "is not UTF-8 text; set it to plain text";

/// What every environment variable that names a key starts with.
pub(super) const PREFIX: &str = "INSIGHTS_GATEWAY_";

/// A file, an environment and flags, in rising order of strength. Cheap to keep for the next reload.
#[derive(Clone, Default)]
pub struct Sources {
    /// The TOML file; without one the environment has to be enough.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub environment: BTreeMap<String, Variable>,
    /// Dotted key and value; the last one of a key wins.
    pub flags: Vec<(String, Zeroizing<String>)>,
}

/// The value of an environment variable, wiped when dropped. One that is not UTF-8 is a fault where it is used, and
/// only there.
#[derive(Clone)]
pub struct Variable(Zeroizing<Vec<u8>>);

impl Variable {
    fn new(value: OsString) -> Self {
        Self(Zeroizing::new(value.into_vec()))
    }

    /// The value, if it is text.
    pub(super) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The value as it is.
    pub(super) fn bytes(&self) -> &Zeroizing<Vec<u8>> {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Sources {
    /// `file`, and the environment of this process.
    pub fn from_process(file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), Variable::new(value)))
            .collect();
        Self { file, environment, flags: Vec::new() }
    }

    /// The same with this file.
    #[must_use]
    pub fn with_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// The same with this environment variable.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), Variable::new(value.into()));
        self
    }

    /// The same with this flag: a dotted key such as `server.listen`, and its value.
    #[must_use]
    pub fn with_flag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push((key.into(), Zeroizing::new(value.into())));
        self
    }

    /// A variable that is set, not empty and text. Empty counts as unset everywhere, because that is
    /// what compose files and unit files make of a variable that nobody filled in. One that is no text counts as unset
    /// too, and is a fault: whoever set it meant something.
    pub(super) fn variable(&self, name: &str, report: &Report) -> Option<&str> {
        let value = self.environment.get(name)?;
        let text = value.text();
        if text.is_none() {
            report.fault_of_variable(name, NOT_TEXT);
        }
        text.filter(|text| !text.is_empty())
    }
}

/// Names only: any value may be a secret.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("environment", &self.environment.keys())
            .field("flags", &self.flags.iter().map(|(key, _)| key).collect::<Vec<_>>())
            .finish()
    }
}
