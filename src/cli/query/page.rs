//! One page of a result: its rows unchanged, and the token of the next page.

use crate::core::json::{self, JsonError, Member, Value};

/// The most JSON values in one page. The gateway passes on no page that is larger.
const MAX_VALUES: usize = 4_000_000;

/// A row: its cells by name. Digits, order and spelling are those of the response.
pub(super) type Row<'a> = Box<[Member<'a>]>;

/// One page. Borrows from the response's body.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) rows: Vec<Row<'a>>,
    /// Absent on the last page, where the response leaves it out or says null.
    pub(super) next: Option<String>,
}

/// Why a response is not a page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PageError {
    /// It is not JSON.
    #[error("the answer is not JSON: {0}")]
    NotJson(#[from] JsonError),
    /// It has no list of rows.
    #[error("the answer has no list of rows; is this a gateway's data address?")]
    NoRows,
}

impl<'a> Page<'a> {
    /// Reads a response of Query, or of a job's results.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, PageError> {
        let Value::Object(mut members) = json::parse_within(body, MAX_VALUES)? else { return Err(PageError::NoRows) };
        let meta = json::member(&members, "meta").and_then(Value::as_object).unwrap_or_default();
        let text = |name| json::member(meta, name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let next = text("nextToken").map(str::to_owned);
        // `meta` names the member that has the rows.
        let name = text("key").unwrap_or("items").to_owned();
        let rows = members.iter_mut().find(|member| member.name.as_str() == name).ok_or(PageError::NoRows)?;
        let Value::Array(rows) = std::mem::replace(&mut rows.value, Value::Null) else { return Err(PageError::NoRows) };
        let row = |value| match value {
            Value::Object(cells) => Ok(cells),
            _ => Err(PageError::NoRows),
        };
        Ok(Self { rows: rows.into_iter().map(row).collect::<Result<_, _>>()?, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_meta_says_and_the_last_page_has_no_token() {
        for (body, rows, next) in [
            (r#"{"items":[{"a":1},{}],"meta":{"key":"items","nextToken":"t"}}"#, 2, Some("t")),
            (r#"{"items":[],"meta":{"nextToken":null}}"#, 0, None),
            (r#"{"items":[]}"#, 0, None),
            (r#"{"items":[],"meta":{"nextToken":""}}"#, 0, None),
            (r#"{"items":null,"rows":[{}],"meta":{"key":"rows"}}"#, 1, None),
        ] {
            let page = Page::read(body.as_bytes()).unwrap();
            assert_eq!((page.rows.len(), page.next.as_deref()), (rows, next), "{body}");
        }
        for body in ["[]", "{}", r#"{"items":{}}"#, r#"{"items":[1]}"#, r#"{"items":[],"meta":{"key":"data"}}"#] {
            assert_eq!(Page::read(body.as_bytes()).unwrap_err(), PageError::NoRows, "{body}");
        }
        assert!(matches!(Page::read(b"<html>"), Err(PageError::NotJson(_))));
    }
}
