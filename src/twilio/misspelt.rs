//! Recognises paths that mean an endpoint and are not spelt like one.

use super::endpoint::{ENDPOINTS, Endpoint, is_id};

/// What every path begins with.
const VERSION: &str = "/v3";

/// The path that a misspelt path most likely means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misspelt {
    /// The intended path, with parameters in braces.
    pub path: &'static str,
    /// What is wrong with it.
    pub mistake: Mistake,
}

/// What can be wrong with a path that means an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// It differs in case, ends in a slash, or has no `/v3`.
    Spelling,
    /// It begins with `/v3` twice, because the client's base URL ends in `/v3`.
    RepeatedVersion,
    /// Something else is in front of it, because the client's base URL has a path.
    Prefix,
}

impl Misspelt {
    /// The intended path of a path that has no endpoint.
    pub fn of(path: &str) -> Option<Self> {
        let mut rest = path.trim_end_matches('/');
        let mut versions = 0;
        while let Some((_, behind)) =
            rest.split_at_checked(VERSION.len()).filter(|(v, _)| v.eq_ignore_ascii_case(VERSION))
        {
            (rest, versions) = (behind, versions + 1);
        }
        let is_meant = |endpoint: &&Endpoint| {
            let known = endpoint.path.strip_prefix(VERSION).unwrap_or(endpoint.path);
            known.split('/').count() == rest.split('/').count()
                && known.split('/').zip(rest.split('/')).all(|(known, said)| match known.starts_with('{') {
                    true => is_id(said),
                    false => known.eq_ignore_ascii_case(said),
                })
        };
        if let Some(endpoint) = ENDPOINTS.iter().find(is_meant) {
            let mistake = if versions > 1 { Mistake::RepeatedVersion } else { Mistake::Spelling };
            return Some(Self { path: endpoint.path, mistake });
        }
        // The last version in it begins what the client meant.
        let begins = path.rmatch_indices('/').map(|(at, _)| at).find(|at| {
            let segment = path[at + 1..].split('/').next().unwrap_or_default();
            *at > 0 && segment.eq_ignore_ascii_case(&VERSION[1..])
        })?;
        Self::of(&path[begins..]).map(|meant| Self { mistake: Mistake::Prefix, ..meant })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_path_is_recognised() {
        use Mistake::{Prefix, RepeatedVersion, Spelling};
        let meant = |path: &str| Misspelt::of(path).map(|misspelt| (misspelt.path, misspelt.mistake));
        let query = "/v3/InsightsDomains/Conversations/Query";
        for (path, mistake) in [
            ("/v3/v3/InsightsDomains/Conversations/Query", RepeatedVersion),
            ("/V3/v3/insightsdomains/conversations/query/", RepeatedVersion),
            ("/v3/insightsdomains/conversations/query", Spelling),
            ("/V3/InsightsDomains/Conversations/Query", Spelling),
            ("/InsightsDomains/Conversations/Query", Spelling),
            ("/v3/InsightsDomains/Conversations/Query/", Spelling),
            ("/insights/v3/InsightsDomains/Conversations/Query", Prefix),
            ("//v3/InsightsDomains/Conversations/Query", Prefix),
            ("/v3/InsightsDomains/Conversations/v3/InsightsDomains/Conversations/Query", Prefix),
            ("/api/V3/insightsdomains/conversations/query/", Prefix),
        ] {
            assert_eq!(meant(path), Some((query, mistake)), "{path}");
        }
        let status = "/v3/InsightsDomains/Conversations/QueryJobs/{operationId}";
        assert_eq!(meant("/v3/InsightsDomains/Conversations/queryjobs/op_1"), Some((status, Spelling)));
        for path in [
            "",
            "/",
            "/v3",
            "/v3/v3",
            "/v3/",
            "/v3/InsightsDomains",
            "/v3/InsightsDomains/Voice/Query",
            "/x/v3/y/v3",
            "/v\u{e9}",
            "/\u{e9}/v3/\u{e9}",
        ] {
            assert_eq!(meant(path), None, "{path}");
        }
    }
}
