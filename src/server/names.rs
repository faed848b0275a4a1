//! The names in a client's certificate that may name a team.
//!
//! These are the DNS names of its subject alternative names, the common names of its subject, and the last part of its
//! URIs where that part is the whole path. `spiffe://example.org/dashboards` counts;
//! `spiffe://example.org/ns/dashboards/sa/x` does not, because a person who may choose a namespace's name could choose
//! a team's. All of these count, because certificate authorities put a client's name in different places. The caller
//! checks that they name exactly one team. The certificate has been verified before.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::core::der::{SEQUENCE, elements};

/// All names, in no particular order.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Vec<String> {
    // It parsed once already, when it was verified.
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let mut names: Vec<String> = certificate.valid_dns_names().map(str::to_owned).collect();
    names.extend(certificate.valid_uri_names().filter_map(of_uri));
    names.extend(common_names(certificate.subject()));
    names
}

/// `NAME` of `scheme://authority/NAME`.
fn of_uri(uri: &str) -> Option<String> {
    let (_, rest) = uri.split_once("://")?;
    let (_, name) = rest.split_once('/')?;
    (!name.contains(['/', '?', '#', '%'])).then(|| name.to_owned())
}

const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// 2.5.4.3, in DER.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The common names in a subject's relative distinguished names (RFC 5280 section 4.1.2.4).
fn common_names(subject: &[u8]) -> Vec<String> {
    let sets = elements(subject).filter(|(tag, _)| *tag == SET);
    let attributes = sets.flat_map(|(_, set)| elements(set)).filter(|(tag, _)| *tag == SEQUENCE);
    let common_name = |(_, attribute): (u8, &[u8])| {
        let mut parts = elements(attribute);
        let (kind, value) = (parts.next()?, parts.next()?);
        let is_text = matches!(value.0, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
        let is_common_name = kind == (OBJECT_IDENTIFIER, COMMON_NAME);
        (is_common_name && is_text).then(|| std::str::from_utf8(value.1).ok().map(str::to_owned))?
    };
    attributes.filter_map(common_name).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn names(alternative: &[SanType], common: &[&str]) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = alternative.to_vec();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "an organisation");
        for name in common {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        of(certificate.der())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    #[test]
    fn dns_names_uris_and_common_names_are_found() {
        assert_eq!(names(&[dns("dashboards")], &[]), ["dashboards"]);
        assert_eq!(names(&[dns("a"), uri("spiffe://example.org/b")], &["c"]), ["a", "b", "c"]);
        assert_eq!(names(&[], &["exports"]), ["exports"]);
        assert_eq!(names(&[], &["a name with spaces and ünïcode"]), ["a name with spaces and ünïcode"]);
        assert_eq!(names(&[], &[&"x".repeat(200)]), ["x".repeat(200)]);
        assert_eq!(names(&[], &[]), [""; 0]);
        assert_eq!(names(&[SanType::IpAddress("192.0.2.1".parse().unwrap())], &[]), [""; 0]);
    }

    #[test]
    fn a_uri_counts_only_if_its_path_has_one_part() {
        assert_eq!(of_uri("spiffe://example.org/dashboards").as_deref(), Some("dashboards"));
        for other in [
            "spiffe://example.org/ns/dashboards/sa/dashboards",
            "spiffe://dashboards",
            "https://example.org/dashboards?x",
            "https://example.org/%64ashboards",
            "https://example.org/dashboards/",
            "urn:dashboards",
            "dashboards",
        ] {
            assert_eq!(of_uri(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_subjects_do_not_panic(subject in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = common_names(&subject);
        }

        #[test]
        fn damaged_subjects_do_not_panic(at in 0usize..40, byte: u8) {
            let mut subject = b"\x31\x0e\x30\x0c\x06\x03\x55\x04\x03\x0c\x05teams\x31\x0e\x30\x0c\x06\x03\x55\x04\x03\x0c\x05other".to_vec();
            if let Some(place) = subject.get_mut(at) {
                *place = byte;
            }
            let _ = common_names(&subject);
        }
    }
}
