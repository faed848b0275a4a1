//! Finds the time dimension for `--since` and `--until` in the account's metadata.

use serde::Deserialize;

/// The suffixes that round a time down to a grain. Twilio documents `hour`; the others are the usual ones.
const GRAINS: [&str; 8] = ["second", "minute", "hour", "day", "week", "month", "quarter", "year"];
/// Types of a dimension that is a time.
const TIMES: [&str; 4] = ["time", "date", "datetime", "timestamp"];
/// The most candidates that a message lists.
const LISTED: usize = 12;

/// The part of the data model that is needed here.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    cubes: Vec<Cube>,
}

#[derive(Debug, Deserialize)]
struct Cube {
    name: String,
    #[serde(default)]
    measures: Vec<Member>,
    #[serde(default)]
    dimensions: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    name: String,
    #[serde(default)]
    r#type: String,
}

/// Why `--time` is needed. Names come from metadata, so they must be escaped before they are printed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TimeDimensionError {
    /// The cube has several times.
    #[error("--since and --until: cube {cube} has several time dimensions; choose one with --time: {}", list(.candidates))]
    Several {
        /// Its name.
        cube: String,
        /// The times.
        candidates: Vec<String>,
    },
    /// The cube has none.
    #[error("--since and --until: cube {0} has no time dimension; name one with --time")]
    None(String),
    /// No cube has the member.
    #[error("--since and --until: no cube has {member}; name the time dimension with --time{}", suffix(.candidates))]
    NoCube {
        /// The query's first member.
        member: String,
        /// All time dimensions.
        candidates: Vec<String>,
    },
}

fn list(candidates: &[String]) -> String {
    let listed = candidates.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match candidates.len().checked_sub(LISTED) {
        None | Some(0) => listed,
        Some(more) => format!("{listed} and {more} more"),
    }
}

fn suffix(candidates: &[String]) -> String {
    if candidates.is_empty() { String::new() } else { format!(": {}", list(candidates)) }
}

impl Metadata {
    /// The only time dimension of the cube that `member` belongs to.
    pub(super) fn time_of(&self, member: &str) -> Result<String, TimeDimensionError> {
        let Some(cube) = self.cube_of(member) else {
            let candidates = self.cubes.iter().flat_map(Cube::times).collect();
            return Err(TimeDimensionError::NoCube { member: member.to_owned(), candidates });
        };
        let mut times = cube.times();
        match times.len() {
            0 => Err(TimeDimensionError::None(cube.name.clone())),
            1 => Ok(times.remove(0)),
            _ => Err(TimeDimensionError::Several { cube: cube.name.clone(), candidates: times }),
        }
    }

    /// The cube that lists the member, with or without a grain; otherwise the cube whose name the member begins with.
    fn cube_of(&self, member: &str) -> Option<&Cube> {
        let lists = |cube: &&Cube, name: &str| {
            let mut all = cube.measures.iter().chain(&cube.dimensions);
            all.any(|listed| listed.name == name || without_grain(&listed.name) == name)
        };
        let by_name = |name: &str| self.cubes.iter().find(|cube| lists(cube, name));
        let prefix = member.split_once('.').map_or(member, |(cube, _)| cube);
        by_name(member)
            .or_else(|| by_name(without_grain(member)))
            .or_else(|| self.cubes.iter().find(|cube| cube.name == prefix))
    }
}

impl Cube {
    /// Its time dimensions, each once. A time and its grains are one, named without a grain: a filter on a grain would
    /// compare the start of the hour or day, and so exclude rows later within it.
    fn times(&self) -> Vec<String> {
        let is_time = |member: &&Member| TIMES.iter().any(|word| word.eq_ignore_ascii_case(&member.r#type));
        let listed: Vec<&str> = self.dimensions.iter().filter(is_time).map(|member| member.name.as_str()).collect();
        // A grain with an unknown suffix is recognised by the plain dimension of the same name.
        let plain = |name: &'_ str| match name.rsplit_once('.') {
            Some((base, _)) if listed.contains(&base) => base.to_owned(),
            _ => without_grain(name).to_owned(),
        };
        let mut times = Vec::new();
        for time in listed.iter().map(|name| plain(name)) {
            if !times.contains(&time) {
                times.push(time);
            }
        }
        times
    }
}

/// `Conversation.CreatedDate` of `Conversation.CreatedDate.hour`.
fn without_grain(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((base, grain)) if GRAINS.contains(&grain) && base.contains('.') => base,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata() -> Metadata {
        let cube = |name: &str, dimensions: &[(&str, &str)]| {
            let dimensions: Vec<_> =
                dimensions.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
            json!({"name": name, "measures": [{"name": format!("{name}.Count"), "type": "number"}], "dimensions": dimensions})
        };
        serde_json::from_value(json!({"domain": "Conversations", "cubes": [
            cube("C", &[("C.Created", "time"), ("C.Created.hour", "time"), ("C.Created.fortnight", "TIME"), ("C.Status", "string")]),
            // Like an older page of the documentation: only the grain exists.
            cube("Grain", &[("Grain.Created.hour", "time")]),
            cube("Two", &[("Two.Created", "time"), ("Two.Closed", "date"), ("Two.Closed.day", "date")]),
            cube("Zero", &[("Zero.Status", "string")]),
        ]}))
        .unwrap()
    }

    #[test]
    fn a_time_and_its_grains_are_one() {
        let metadata = metadata();
        for (member, time) in [
            ("C.Count", "C.Created"),
            ("C.Status", "C.Created"),
            ("C.Created.day", "C.Created"),
            // It belongs to this cube by its name, although no cube lists it.
            ("C.Unheard", "C.Created"),
            ("Grain.Count", "Grain.Created"),
            ("Grain.Created.hour", "Grain.Created"),
            ("Grain.Created", "Grain.Created"),
        ] {
            assert_eq!(metadata.time_of(member).as_deref(), Ok(time), "{member}");
        }
    }

    #[test]
    fn ambiguous_dimensions_are_reported_with_the_candidates() {
        let metadata = metadata();
        let said = |member| metadata.time_of(member).unwrap_err().to_string();
        assert!(
            said("Two.Count").ends_with("choose one with --time: Two.Created, Two.Closed"),
            "{}",
            said("Two.Count")
        );
        assert!(said("Zero.Count").contains("cube Zero has no time dimension"));
        let unknown = said("Count");
        assert!(unknown.ends_with("--time: C.Created, Grain.Created, Two.Created, Two.Closed"), "{unknown}");
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<String> = (0..20).map(|n| format!("C.T{n}")).collect();
        assert!(list(&many).ends_with("C.T11 and 8 more"));
    }
}
