//! Requests to the admin plane, parsed strictly. A request with any fault is refused with an explanation, so that a
//! typing error never purges more than was meant.

use std::sync::Arc;

use crate::accounts::Account;
use crate::cache::Purge;
use crate::core::json::{self, Value};
use crate::twilio::endpoint::Operation;

/// The most entries in one answer of `/cache/entries`.
const MOST_ENTRIES: usize = 1000;

/// The forms of a purge.
const FORMS: &str = "send exactly one of {\"all\":true}, {\"account\":NAME}, {\"operation\":NAME}, {\"key\":KEY}";

/// The pages that a purge's body names. `accounts` are those of the configuration.
///
/// # Errors
///
/// What is wrong with the body, and what would be right.
pub(super) fn purge(body: &[u8], accounts: &[Arc<Account>]) -> Result<Purge, String> {
    let parsed =
        json::parse(body).map_err(|error| format!("the body is not JSON: {error} ({}); {FORMS}", error.place(body)))?;
    let Some(members) = parsed.as_object() else {
        return Err(format!("the body is not a JSON object; {FORMS}"));
    };
    let [member] = members else {
        return Err(format!("the body has {} members; {FORMS}", members.len()));
    };
    match (member.name.as_str(), &member.value) {
        ("all", Value::Bool(true)) => Ok(Purge::All),
        ("all", _) => Err(format!("\"all\" must be true; {FORMS}")),
        ("account", Value::String(name)) => {
            let known = accounts.iter().find(|account| *account.name == *name.as_str());
            known.map(|account| Purge::Account(account.id())).ok_or_else(|| {
                let names: Vec<_> = accounts.iter().map(|account| &*account.name).collect();
                format!("there is no such account; the accounts are {}", names.join(", "))
            })
        }
        ("operation", Value::String(word)) => {
            let known = Operation::ALL.into_iter().find(|operation| operation.as_str() == word.as_str());
            known.map(Purge::Operation).ok_or_else(|| {
                let words = Operation::ALL.map(Operation::as_str);
                format!("there is no such operation; the operations are {}", words.join(", "))
            })
        }
        ("key", Value::String(text)) if matches!(text.as_str().len(), 16 | 64) && is_hexadecimal(text.as_str()) => {
            Ok(Purge::Key(text.as_str().to_ascii_lowercase()))
        }
        ("key", Value::String(_)) => {
            Err("a key is the 16 hexadecimal digits that Cache-Status shows, or all 64 of /cache/entries".to_owned())
        }
        (name @ ("account" | "operation" | "key"), _) => Err(format!("\"{name}\" must be a string; {FORMS}")),
        _ => Err(format!("the body has an unknown member; {FORMS}")),
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The requested part of the cache's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntriesQuery {
    /// The most entries, 1 to 1000.
    pub(super) limit: usize,
    /// The key after which they begin.
    pub(super) after: Option<String>,
}

impl EntriesQuery {
    /// Parses the query string of `/cache/entries`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what would be right.
    pub(super) fn parse(query: &str) -> Result<Self, &'static str> {
        let (mut limit, mut after) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "limit" if limit.is_none() => {
                    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                    // A number that overflows counts as the greatest limit.
                    let number = digits.then(|| value.parse().unwrap_or(usize::MAX));
                    let Some(number @ 1..) = number else { return Err("limit is a number from 1 to 1000") };
                    limit = Some(number.min(MOST_ENTRIES));
                }
                "after" if after.is_none() => {
                    if value.len() != 64 || !is_hexadecimal(value) {
                        return Err("after is the 64 hexadecimal digits of a key, as \"next\" gives them");
                    }
                    after = Some(value.to_ascii_lowercase());
                }
                "limit" | "after" => return Err("limit and after may be given once"),
                _ => return Err("an unknown parameter; there are limit and after"),
            }
        }
        Ok(Self { limit: limit.unwrap_or(100), after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Team;

    #[test]
    fn a_purge_is_exactly_one_thing() {
        let account = |name: &str, sid: &str| {
            let (name, sid) = (name.into(), sid.to_owned());
            Arc::new(Account { name, sid, ..Account::clone(&Team::example("local").account) })
        };
        let accounts = [account("main", "AC1"), account("other", "AC2")];
        let read = |body: &str| purge(body.as_bytes(), &accounts);
        assert_eq!(read(" {\"all\": true}\n"), Ok(Purge::All));
        assert_eq!(read("{\"account\":\"main\"}"), Ok(Purge::Account(accounts[0].id())));
        assert_eq!(read("{\"operation\":\"query\"}"), Ok(Purge::Operation(Operation::Query)));
        assert_eq!(read("{\"key\":\"0123456789ABCDEF\"}"), Ok(Purge::Key("0123456789abcdef".into())));
        for (body, part) in [
            ("", "not JSON: the text ends"),
            ("{\"all\":\n  tru}", "line 2, column 6"),
            ("{\"all\":true}x", "line 1, column 13"),
            ("{\"all\":true,\"all\":true}", "a member name that the object has already"),
            ("[true]", "not a JSON object"),
            ("true", "not a JSON object"),
            ("{}", "has 0 members"),
            ("{\"all\":true,\"account\":null}", "has 2 members"),
            ("{\"all\":false}", "\"all\" must be true"),
            ("{\"all\":\"true\"}", "\"all\" must be true"),
            ("{\"al\":true}", "unknown member"),
            ("{\"account\":1}", "\"account\" must be a string"),
            ("{\"account\":\"mian\"}", "the accounts are main, other"),
            ("{\"operation\":\"queries\"}", "the operations are metadata"),
            ("{\"key\":\"0123\"}", "16 hexadecimal digits"),
            ("{\"key\":\"0123456789abcdeg\"}", "16 hexadecimal digits"),
            ("{\"key\":null}", "\"key\" must be a string"),
        ] {
            let message = read(body).unwrap_err();
            assert!(message.contains(part), "{body}: {message}");
        }
        assert!(purge(b"{\"all\":\xff}", &[]).unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn entries_are_asked_for_with_a_limit_and_a_key() {
        let key = "0".repeat(64);
        let read = EntriesQuery::parse;
        assert_eq!(read("").unwrap(), EntriesQuery { limit: 100, after: None });
        assert_eq!(read(&format!("limit=7&after={key}")).unwrap(), EntriesQuery { limit: 7, after: Some(key) });
        for large in ["1001", "99999999999999999999999"] {
            assert_eq!(read(&format!("limit={large}")).unwrap().limit, 1000);
        }
        for query in ["limit=abc", "limit=0", "limit=", "limit", "limit=-1", "limit=+1", "limit=1.5", "limit=%31"] {
            assert_eq!(read(query).unwrap_err(), "limit is a number from 1 to 1000", "{query}");
        }
        for query in ["limit=1&limit=2", "after=0", "after=", "limt=1", "x", "limit=1&x=2"] {
            assert!(read(query).is_err(), "{query}");
        }
    }
}
