//! Checks of the certificate of `server.tls`: whether it fits its key, is valid now, and covers the host of
//! `server.public_url`.

use std::path::Path as FilePath;
use std::time::SystemTime;

use http::Uri;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use super::path::Path;
use super::report::Report;
use super::settings::Tls;
use crate::core::validity::Validity;
use crate::health::EXPIRY_NOTICE;

/// How long before its end a certificate causes a warning.
pub(super) const SOON: SignedDuration = SignedDuration::from_secs(EXPIRY_NOTICE.as_secs().cast_signed());

/// Checks the files of `tls`. Unreadable or malformed files have already been reported.
pub(super) fn check(tls: &Tls, public_url: Option<&Uri>, now: Timestamp, path: &Path, report: &Report) {
    let at = path.key("cert");
    let chain = CertificateDer::pem_file_iter(&tls.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let leaf = match chain.as_ref().map(|chain| chain.first()) {
        Err(PemError::Io(_)) | Ok(None) => return,
        Ok(Some(leaf)) if EndEntityCert::try_from(leaf).is_ok() => leaf,
        Ok(Some(_)) | Err(_) => {
            return report.fault(&at, "the certificate in this file cannot be parsed; is the file complete?");
        }
    };
    if !report.is_without_secrets() {
        check_key(&tls.key, leaf, &path.key("key"), report);
    }
    check_time(leaf, now, &at, report);
    if let Some(host) = public_url.and_then(Uri::host) {
        check_name(leaf, host.trim_matches(['[', ']']), &at, report);
    }
}

fn check_key(key: &FilePath, leaf: &CertificateDer<'static>, path: &Path, report: &Report) {
    let key = match PrivateKeyDer::from_pem_file(key) {
        Err(PemError::Io(_) | PemError::NoItemsFound) => return,
        key => key.ok().and_then(|key| rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).ok()),
    };
    let Some(key) = key else {
        let message = "the key in this file cannot be parsed; is the file complete, and without a pass phrase?";
        return report.fault(path, message);
    };
    let fits = CertifiedKey::new(vec![leaf.clone()], key).keys_match();
    if matches!(fits, Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch))) {
        report.fault(
            path,
            "this key does not belong to the certificate in server.tls.cert; use the key that was made with it",
        );
    }
}

fn check_time(leaf: &CertificateDer<'_>, now: Timestamp, path: &Path, report: &Report) {
    let as_time = |time: SystemTime| Timestamp::try_from(time).ok();
    let Some(Validity { not_before, not_after }) = Validity::of(leaf) else { return };
    let (Some(not_before), Some(not_after)) = (as_time(not_before), as_time(not_after)) else { return };
    let message = match () {
        () if now > not_after => format!("this certificate expired at {not_after}, so clients refuse it; renew it"),
        () if now < not_before => {
            format!("this certificate is not valid before {not_before}, so clients refuse it until then")
        }
        () if not_after.duration_since(now) <= SOON => format!("this certificate expires at {not_after}; renew it"),
        () => return,
    };
    report.warn(path, message);
}

fn check_name(leaf: &CertificateDer<'_>, host: &str, path: &Path, report: &Report) {
    let (Ok(certificate), Ok(name)) = (EndEntityCert::try_from(leaf), ServerName::try_from(host)) else { return };
    if certificate.verify_is_valid_for_subject_name(&name).is_err() {
        report.warn(path, "this certificate is not for the host of server.public_url, so clients refuse it there");
    }
}
