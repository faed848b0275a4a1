//! Secrets, wherever they are kept, and files that must be readable, or writable.
//!
//! A secret is read here once, held in memory that is wiped, and never part of a message.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};

use rustix::fs::Access;
use zeroize::Zeroizing;

use super::document::Value;
use super::fault::{Path, Place, Report, suggest};
use super::reader::Field;
use super::sources::{Sources, Variable};

const LARGEST_SECRET: u64 = 64 << 10;
const FORMS: [&str; 3] = ["file", "env", "credential"];

/// Where a secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// Written out in the configuration file or in a flag.
    Literal,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential: a file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// What an account signs in with, and where that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// An API key's SID and its secret.
    ApiKey {
        /// The SID.
        key: SecretSource,
        /// The secret.
        secret: SecretSource,
    },
    /// The account's own auth token; the user is the account's SID.
    AuthToken(SecretSource),
}

/// A secret and where it is kept. Not `Debug`.
pub(super) struct Secret {
    /// Wiped when dropped. Becomes a `SecretString` as soon as it leaves this room.
    pub(super) text: Zeroizing<String>,
    pub(super) source: SecretSource,
}

/// Reads `field` in any of its forms: literal, `{ file }`, `{ env }` or `{ credential }`.
pub(super) fn read(field: Field<'_>, sources: &Sources) -> Option<Secret> {
    let (report, path) = (field.report, field.path.clone());
    let (text, source) = match &field.node.value {
        Value::Table(_) => read_form(field, sources)?,
        _ => {
            let place = field.node.place.clone();
            let text = field.text("a text, { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }")?;
            let source = match place {
                Place::Environment(Some(name)) => SecretSource::Env(name),
                _ => SecretSource::Literal,
            };
            (text, source)
        }
    };
    let text = text.trim_end_matches(['\r', '\n']);
    let refusal = match text {
        "" => "the secret is empty; put the secret where this key says",
        _ if text.trim().is_empty() => "the secret is only white space; put the secret where this key says",
        _ if text.contains(['\r', '\n']) => "the secret has several lines; does this key name the right place?",
        _ => {
            let text = Zeroizing::new(text.to_owned());
            return Some(Secret { text, source });
        }
    };
    report.fault(&path, refusal);
    None
}

/// `{ file = "…" }` and its like: exactly one member.
fn read_form(field: Field<'_>, sources: &Sources) -> Option<(Zeroizing<String>, SecretSource)> {
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
        report.fault(&path, "name exactly one of file, env or credential");
        return None;
    };
    let path = path.key(&form);
    let field = Field { report, path, node };
    let (path, name) = (field.path.clone(), field.text("text")?.to_string());
    match form.as_str() {
        "file" => {
            let text = read_secret_file(FilePath::new(&name), &path, report)?;
            Some((text, SecretSource::File(name.into())))
        }
        "env" => match sources.environment.get(&name).map(Variable::text) {
            Some(Some(value)) if !value.is_empty() => Some((Zeroizing::new(value.to_owned()), SecretSource::Env(name))),
            Some(None) => refuse(report, &path, "this environment variable is not UTF-8 text"),
            _ => refuse(report, &path, "this environment variable is not set, or empty; set it"),
        },
        _ => {
            let file = credential_file(&name, &path, sources, report)?;
            let text = read_secret_file(&file, &path, report)?;
            Some((text, SecretSource::Credential(name)))
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
    match sources.variable("CREDENTIALS_DIRECTORY") {
        Some(folder) => Some(FilePath::new(folder).join(name)),
        None => refuse(
            report,
            path,
            "CREDENTIALS_DIRECTORY is not set; run under systemd with LoadCredential=, or use { file = \"…\" }",
        ),
    }
}

/// The text of a secret file, which is then watched. Others being able to read it is worth a warning.
fn read_secret_file(file: &FilePath, path: &Path, report: &Report) -> Option<Zeroizing<String>> {
    let (bytes, about) = read_file(file, LARGEST_SECRET, path, report)?;
    warn_if_readable_by_all(&about, path, report);
    match std::str::from_utf8(&bytes) {
        Ok(text) => Some(Zeroizing::new(text.to_owned())),
        Err(_) => refuse(report, path, "this file is not UTF-8 text; is it the right one?"),
    }
}

/// A PEM file that somebody else will parse: it must be there, readable and look like PEM.
pub(super) fn check_pem(file: &FilePath, label: &str, path: &Path, report: &Report) -> Option<Metadata> {
    const LARGEST_PEM: u64 = 4 << 20;
    let (bytes, about) = read_file(file, LARGEST_PEM, path, report)?;
    let text = String::from_utf8_lossy(&bytes);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    if !Zeroizing::new(text.into_owned()).lines().any(begins) {
        let message = format!("this file holds no PEM block \"BEGIN … {label}\"; is it the right one?");
        return refuse(report, path, &message);
    }
    Some(about)
}

/// A file that can be written, or made. It is only looked at: one that `check` made would belong to whoever ran that.
pub(super) fn check_writable(file: &FilePath, path: &Path, report: &Report) {
    let folder = match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => FilePath::new("."),
        folder => folder.unwrap_or(FilePath::new("/")),
    };
    let allows = |path: &FilePath, access| rustix::fs::access(path, access).is_ok();
    match std::fs::metadata(file) {
        Ok(about) if !about.is_file() => report.fault(path, "this is not a file; name a regular file, or a new one"),
        Ok(_) if !allows(file, Access::WRITE_OK) => report.fault(path, "this file cannot be written; change its owner"),
        Err(_) if !folder.is_dir() => report.fault(path, "the folder of this file does not exist; make it"),
        Err(_) if !allows(folder, Access::WRITE_OK | Access::EXEC_OK) => {
            report.fault(path, "no file can be made in this folder; change its owner, or make the file there");
        }
        Ok(_) | Err(_) => {}
    }
}

/// Warns where a file that only the gateway should read can be read by everybody.
pub(super) fn warn_if_readable_by_all(about: &Metadata, path: &Path, report: &Report) {
    if about.permissions().mode() & 0o004 != 0 {
        report.warn(path, "every user of this machine can read this file; chmod o-r it");
    }
}

/// Watched even when it cannot be read: its appearance is a reason to try again.
fn read_file(file: &FilePath, largest: u64, path: &Path, report: &Report) -> Option<(Zeroizing<Vec<u8>>, Metadata)> {
    report.watch(file);
    let read = || -> io::Result<_> {
        // Looked at before it is opened: opening a pipe would wait for a writer.
        let about = std::fs::metadata(file)?;
        let bytes = if about.is_file() { read_whole(file, largest)? } else { Zeroizing::default() };
        Ok((bytes, about))
    };
    match read() {
        Err(error) => refuse(report, path, &format!("this file cannot be read: {error}")),
        Ok((_, about)) if !about.is_file() => refuse(report, path, "this is not a file; name a regular file"),
        Ok((bytes, _)) if bytes.len() as u64 > largest => {
            let limit = largest >> 10;
            refuse(report, path, &format!("this file is larger than {limit}KiB; is it the right one?"))
        }
        Ok(read) => Some(read),
    }
}

/// What is in `file`, at most one byte beyond `largest`. Wiped when dropped, and in one place: the buffer does not
/// grow unless the file does while it is read.
pub(super) fn read_whole(file: &FilePath, largest: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(file)?;
    let length = file.metadata()?.len().min(largest);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    file.take(largest.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}
