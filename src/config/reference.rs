//! The reference file, and its comments by key.

use std::collections::BTreeMap;

/// `config/gateway.toml`: every key with its default and its purpose.
pub const REFERENCE: &str = include_str!("../../config/gateway.toml");

/// The comments, by the path of the key or table as it is written there. A key without a comment has the comment of the
/// key above it.
pub(super) fn comments() -> BTreeMap<String, String> {
    let (mut comments, mut table, mut comment, mut last) = (BTreeMap::new(), String::new(), Vec::new(), String::new());
    for line in REFERENCE.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        let said = std::mem::take(&mut comment).join(" ");
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = name.to_owned();
            last.clear();
            comments.insert(table.clone(), said);
        } else if let Some((key, _)) = line.split_once(" = ") {
            if !said.is_empty() {
                last = said;
            }
            comments.insert(format!("{table}.{key}"), last.clone());
        }
    }
    comments.retain(|_, comment| !comment.is_empty());
    comments
}
