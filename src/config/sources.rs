//! The places that values may come from. Only this module reads the process environment for them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::report::Report;

/// The fault of a variable whose value is not text.
pub(super) const NOT_TEXT: &str = "is not UTF-8 text; set it to plain text";

/// A file, an environment and flags; each overrides those before it. Kept for the next reload.
#[derive(Clone, Default)]
pub struct Sources {
    /// The TOML file. Without one the environment has to be enough.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub environment: BTreeMap<String, Variable>,
    /// Dotted key and value; the last one of a key wins.
    pub flags: Vec<(String, Zeroizing<String>)>,
}

/// The value of an environment variable, wiped when dropped. A value that is not UTF-8 is a fault only where it is
/// used.
#[derive(Clone)]
pub struct Variable(Zeroizing<Vec<u8>>);

impl Variable {
    fn new(value: OsString) -> Self {
        Self(Zeroizing::new(value.into_vec()))
    }

    /// The value, if it is UTF-8 text.
    pub(super) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The bytes of the value.
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

    /// The same sources with this file.
    #[must_use]
    pub fn with_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// The same sources with this environment variable.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), Variable::new(value.into()));
        self
    }

    /// The same sources with this flag: a dotted key such as `server.listen`, and its value.
    #[must_use]
    pub fn with_flag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push((key.into(), Zeroizing::new(value.into())));
        self
    }

    /// A variable that is set, not empty, and text. An empty variable counts as unset, because compose files and unit
    /// files set a variable to that if no value was given. A variable that is not text counts as unset too, and is a
    /// fault, because its value was meant for something.
    pub(super) fn variable(&self, name: &str, report: &Report) -> Option<&str> {
        let value = self.environment.get(name)?;
        let text = value.text();
        if text.is_none() {
            report.fault_of_variable(name, NOT_TEXT);
        }
        text.filter(|text| !text.is_empty())
    }
}

/// Only the names: any value may be a secret.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("environment", &self.environment.keys())
            .field("flags", &self.flags.iter().map(|(key, _)| key).collect::<Vec<_>>())
            .finish()
    }
}
