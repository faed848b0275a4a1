//! The team's token: from a file, or from a variable. Never from the command line, which every user of the machine can
//! read while the command runs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use super::refusal::SentCredential;

const VARIABLE: &str = "INSIGHTS_GATEWAY_TOKEN";
const LARGEST: u64 = 64 << 10;

/// Reads the token and makes the value of `Authorization`: Basic where a team is named, else Bearer.
///
/// # Errors
///
/// What is wrong with the file or the variable; never its content.
pub(super) fn authorization(
    file: Option<&Path>,
    team: Option<&str>,
) -> Result<(Option<HeaderValue>, SentCredential), String> {
    let (token, shown, place) = match file {
        Some(path) => {
            let place = format!("--token-file {}", path.display());
            (read(path).map_err(|error| format!("{place}: {error}"))?, SentCredential::FromFile, place)
        }
        None => match std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            None => return Ok((None, SentCredential::NoToken)),
            Some(value) => {
                let value = value.into_string().unwrap_or_default().into_bytes();
                (Zeroizing::new(value), SentCredential::FromVariable, VARIABLE.to_owned())
            }
        },
    };
    let token = token.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(format!("{place}: a token is one line of plain visible characters"));
    }
    let token = Zeroizing::new(String::from_utf8_lossy(token).into_owned());
    let value = Zeroizing::new(match team {
        Some(team) => {
            let pair = Zeroizing::new(format!("{team}:{}", *token));
            format!("Basic {}", *Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes())))
        }
        None => format!("Bearer {}", *token),
    });
    let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| format!("{place}: not a token"))?;
    value.set_sensitive(true);
    Ok((Some(value), shown))
}

/// A pipe is accepted like a file: `--token-file <(pass show insights)`.
fn read(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
    File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_contains_one_token() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "igw_abc\n").unwrap();
        let (bearer, shown) = authorization(Some(&path), None).unwrap();
        assert_eq!((bearer.unwrap().to_str().unwrap(), shown), ("Bearer igw_abc", SentCredential::FromFile));
        let (basic, _) = authorization(Some(&path), Some("dashboards")).unwrap();
        assert_eq!(basic.unwrap(), format!("Basic {}", BASE64_STANDARD.encode("dashboards:igw_abc")));
        for bad in ["", "\n", "a b", "a\nb", "é"] {
            fs::write(&path, bad).unwrap();
            let error = authorization(Some(&path), None).unwrap_err();
            assert!(error.contains("token-file") && error.contains("one line"), "{error}");
        }
        let error = authorization(Some(Path::new("/nowhere/token")), None).unwrap_err();
        assert!(error.starts_with("--token-file /nowhere/token: No such file"), "{error}");
    }
}
