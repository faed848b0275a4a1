//! All faults of a configuration at once: each with its place, its key and a remedy.
//!
//! A fault never repeats a value, because any value may be a secret under the wrong key.

use std::fmt;
use std::path::Path as FilePath;

use super::files::Files;
use super::path::Path;
use super::place::{Place, write_escaped};

/// A fault, or a warning.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) path: Path,
    pub(super) message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, path, message } = self;
        let line = match place {
            Place::Environment(Some(_)) => match path.last_item() {
                Some(item) => format!("{place}: entry {}: {message}", item + 1),
                None => format!("{place}: {message}"),
            },
            Place::File(_) => format!("{place}: {message}"),
            Place::Line(..) if path.is_root() => format!("{place}: {message}"),
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
    /// In the order of the report.
    pub(super) fn new(mut faults: Vec<Fault>, warnings: Vec<String>) -> Self {
        faults.sort_by(|a, b| a.place.cmp(&b.place));
        Self { faults, warnings, files: Files::default() }
    }

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
    of_file(place, "keeps changing while it is read; try again when it is completely written")
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
    Faults::new(vec![fault], Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

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
