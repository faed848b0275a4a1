//! Secrets from all places where they can be kept, and checks of files that must be readable or writable.
//!
//! A secret is read once, here. It is kept in memory that is wiped, and never put into a message.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};

use rustix::fs::Access;
use zeroize::Zeroizing;

use super::files::{LARGEST_PEM, is_no_file, read_regular};
use super::path::Path;
use super::place::Place;
use super::reader::Field;
use super::report::Report;
use super::settings::SecretSource;
use super::sources::Sources;
use super::suggest::suggest;
use super::tree::Value;

const LARGEST_SECRET: u64 = 64 << 10;
const FORMS: [&str; 3] = ["file", "env", "credential"];

/// A secret and where it is kept. Not `Debug`.
pub(super) struct Secret {
    /// Wiped when dropped. Becomes a `SecretString` before it leaves `config`.
    pub(super) text: Zeroizing<String>,
    pub(super) source: SecretSource,
}

/// Reads `field` in any of its forms: literal, `{ file }`, `{ env }` or `{ credential }`. Where secrets are not to be
/// read, the last three give an empty text.
pub(super) fn read(field: Field<'_>, sources: &Sources) -> Option<Secret> {
    let (report, path) = (field.report, field.path.clone());
    let (text, source) = match &field.node.value {
        Value::Table(_) => {
            let source = read_form(field)?;
            if report.is_without_secrets() {
                return Some(Secret { text: Zeroizing::default(), source });
            }
            (read_kept(&source, sources, &path, report)?, source)
        }
        _ => {
            let place = field.node.place.clone();
            let text = field.text("a text, { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }")?;
            let source = match place {
                Place::Environment(Some(name)) => SecretSource::Env(name),
                _ => SecretSource::Literal,
            };
            (Zeroizing::new(text.as_bytes().to_vec()), source)
        }
    };
    let bytes = without_line_end(&text);
    let refusal = match fault_in(bytes) {
        None => match std::str::from_utf8(bytes) {
            Ok(text) => return Some(Secret { text: Zeroizing::new(text.to_owned()), source }),
            // Visible ASCII is valid UTF-8.
            Err(_) => NOT_VISIBLE.to_owned(),
        },
        Some(refusal) => refusal,
    };
    report.fault(&path, refusal);
    None
}

/// Warns of a secret that is itself in the configuration.
pub(super) fn warn_if_written_out(source: &SecretSource, path: &Path, report: &Report) {
    if *source == SecretSource::Literal {
        report.warn(
            path,
            "the secret itself is in the configuration; keep it in { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }",
        );
    }
}

/// Removes one line end, which editors and `echo` append.
fn without_line_end(bytes: &[u8]) -> &[u8] {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if text.len() < bytes.len() { text.strip_suffix(b"\r").unwrap_or(text) } else { text }
}

const NOT_VISIBLE: &str = "a secret may contain only visible ASCII characters";

/// What is wrong with a secret, and at which byte, without repeating any part of it that could be secret.
fn fault_in(bytes: &[u8]) -> Option<String> {
    if bytes.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
        let what = if bytes.is_empty() { "empty" } else { "only white space" };
        return Some(format!("the secret is {what}; put the secret where this key says"));
    }
    let at = bytes.iter().position(|byte| !byte.is_ascii_graphic())?;
    let what = match &bytes[at..] {
        [0xef, 0xbb, 0xbf, ..] => "a byte order mark (U+FEFF); save the file without it",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "the mark of UTF-16; save the file as plain ASCII",
        [0xc2, 0xa0, ..] => "a no-break space (U+00A0); remove it",
        [0xe2, 0x80, 0x8b..=0x8f, ..] | [0xe2, 0x81, 0xa0, ..] => "a character without width; remove it",
        [0, ..] => "a zero byte; remove it",
        [b' ', ..] => "a space; remove it",
        [b'\t', ..] => "a tab; remove it",
        [b'\n' | b'\r', ..] => {
            "a line end, and only one after the secret is ignored; does this key name the right place?"
        }
        [0x01..=0x1f | 0x7f, ..] => "a control character; remove it",
        _ => "not ASCII; is this the right secret?",
    };
    Some(format!("{NOT_VISIBLE}, and its byte {at}, counted from 0, is {what}"))
}

/// `{ file = "…" }` and its like: exactly one member.
fn read_form(field: Field<'_>) -> Option<SecretSource> {
    let Field { report, path, node } = field;
    let Value::Table(entries) = node.value else {
        return None;
    };
    let unknown: Vec<&String> = entries.keys().filter(|form| !FORMS.contains(&form.as_str())).collect();
    for form in &unknown {
        report.fault(&path.key(form), format!("unknown key{}", suggest(form, FORMS)));
    }
    if !unknown.is_empty() {
        return None;
    }
    let mut entries = entries.into_iter();
    let (Some((form, node)), None) = (entries.next(), entries.next()) else {
        report.fault(&path, "give exactly one of file, env or credential");
        return None;
    };
    let name = Field { report, path: path.key(&form), node }.string()?;
    Some(match form.as_str() {
        "file" => SecretSource::File(name.into()),
        "env" => SecretSource::Env(name),
        _ => SecretSource::Credential(name),
    })
}

/// The content of `source`, which the key at `path` names.
fn read_kept(source: &SecretSource, sources: &Sources, path: &Path, report: &Report) -> Option<Zeroizing<Vec<u8>>> {
    match source {
        SecretSource::Literal => None,
        SecretSource::File(file) => read_secret_file(file, &path.key("file"), report),
        SecretSource::Env(name) => match sources.environment.get(name).filter(|value| !value.is_empty()) {
            Some(value) => Some(value.bytes().clone()),
            None => refuse(report, &path.key("env"), "this environment variable is not set, or empty; set it"),
        },
        SecretSource::Credential(name) => {
            let path = path.key("credential");
            let file = credential_file(name, &path, sources, report)?;
            read_secret_file(&file, &path, report)
        }
    }
}

fn refuse<T>(report: &Report, path: &Path, message: &str) -> Option<T> {
    report.fault(path, message);
    None
}

fn credential_file(name: &str, path: &Path, sources: &Sources, report: &Report) -> Option<PathBuf> {
    if name.contains('/') || name == "." || name == ".." {
        return refuse(report, path, "must be the plain name of a systemd credential, not a path");
    }
    match sources.variable("CREDENTIALS_DIRECTORY", report) {
        Some(folder) => Some(FilePath::new(folder).join(name)),
        None => refuse(
            report,
            path,
            "CREDENTIALS_DIRECTORY is not set; run under systemd with LoadCredential=, or use { file = \"…\" }",
        ),
    }
}

/// The content of a secret file, whose changes are then watched. Warns if all users can read it.
fn read_secret_file(file: &FilePath, path: &Path, report: &Report) -> Option<Zeroizing<Vec<u8>>> {
    let (bytes, about) = read_file(file, LARGEST_SECRET, path, report)?;
    warn_if_readable_by_all(&about, path, report);
    Some(bytes)
}

/// Checks a PEM file that another library parses later: it must exist, be readable and look like PEM.
pub(super) fn check_pem(file: &FilePath, label: &str, path: &Path, report: &Report) -> Option<Metadata> {
    let (bytes, about) = read_file(file, LARGEST_PEM, path, report)?;
    let text = String::from_utf8_lossy(&bytes);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    if !Zeroizing::new(text.into_owned()).lines().any(begins) {
        let message = format!("this file contains no PEM block \"BEGIN … {label}\"; is it the right one?");
        return refuse(report, path, &message);
    }
    Some(about)
}

/// Checks that a file can be written or created. It is not created here, because it would belong to the user who runs
/// `check`.
pub(super) fn check_writable(file: &FilePath, path: &Path, report: &Report) {
    let folder = match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => FilePath::new("."),
        folder => folder.unwrap_or(FilePath::new("/")),
    };
    let allows = |path: &FilePath, access| rustix::fs::access(path, access).is_ok();
    match std::fs::metadata(file) {
        Ok(about) if !about.is_file() => report.fault(path, "this is not a file; name a regular file, or a new one"),
        Ok(_) if !allows(file, Access::WRITE_OK) => report.fault(path, "this file cannot be written; change its owner"),
        Err(_) if !folder.is_dir() => report.fault(path, "the folder of this file does not exist; create it"),
        Err(_) if !allows(folder, Access::WRITE_OK | Access::EXEC_OK) => {
            report.fault(path, "no file can be created in this folder; change its owner, or create the file there");
        }
        Ok(_) | Err(_) => {}
    }
}

/// Warns where every user can read a file that only the gateway should read.
pub(super) fn warn_if_readable_by_all(about: &Metadata, path: &Path, report: &Report) {
    if about.permissions().mode() & 0o004 != 0 {
        report.warn(path, "every user of this machine can read this file; chmod o-r it");
    }
}

/// A path in front of an error message, where it is surely a path. What else stands there may be the secret itself, written
/// by mistake instead of the path of its file: in base64, which begins with a slash or has some inside as often as not.
struct PathPrefix<'p>(&'p FilePath);

impl fmt::Display for PathPrefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_explicit = self.0.is_absolute() || self.0.starts_with(".");
        // Base64 has no dots.
        let is_path = is_explicit && self.0.extension().is_some() || self.0.parent().is_some_and(is_folder);
        if is_path { write!(f, "{}: ", self.0.display()) } else { Ok(()) }
    }
}

/// Whether this is a folder that exists. Neither the root nor the working directory counts: both are the parent of any text.
fn is_folder(path: &FilePath) -> bool {
    path.file_name().is_some() && path.is_dir()
}

/// Reads a file and watches it, even if it cannot be read: when it appears, the configuration may be valid.
fn read_file(file: &FilePath, largest: u64, path: &Path, report: &Report) -> Option<(Zeroizing<Vec<u8>>, Metadata)> {
    report.watch(file);
    match read_regular(file, largest) {
        Err(error) if error.kind() == is_no_file().kind() => refuse(report, path, &error.to_string()),
        Err(error) => refuse(report, path, &format!("this file cannot be read: {}{error}", PathPrefix(file))),
        Ok((bytes, _)) if bytes.len() as u64 > largest => {
            let limit = largest >> 10;
            refuse(report, path, &format!("this file is larger than {limit}KiB; is it the right one?"))
        }
        Ok(read) => Some(read),
    }
}
