//! Typed reading of the tree. Reading a key declares it: its name, type, default and limits, and whether a change of it
//! waits for a restart. Each key that was read goes into the record. A given key that no reader read is an unknown key.
//! A faulty value is reported and replaced by the default, so that reading goes on and every fault is found.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::document::parse_raw;
use super::path::Path;
use super::place::Place;
use super::record::{Entry, Key};
use super::report::Report;
use super::shape::Shape;
use super::show;
use super::suggest::suggest;
use super::tree::{Node, Value};
use crate::core::units::{Rate, Size, Span, parse_duration, parse_rate, parse_size};

/// One table while it is read.
pub(super) struct Table<'r> {
    report: &'r Report,
    path: Path,
    entries: BTreeMap<String, Node>,
}

/// Reads the whole tree with `read`, then reports the keys that were not read.
pub(super) fn read_tree<T>(tree: Node, report: &Report, read: impl FnOnce(&mut Table<'_>) -> T) -> T {
    let entries = match tree.value {
        Value::Table(entries) => entries,
        _ => BTreeMap::new(),
    };
    Table { report, path: Path::default(), entries }.read(read)
}

impl<'r> Table<'r> {
    /// Reads the table with `read`, then reports the keys that were not read.
    pub(super) fn read<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let value = read(&mut self);
        for key in self.entries.keys() {
            self.report.unknown(self.path.key(key));
        }
        value
    }

    /// The table's own path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The report that collects faults.
    pub(super) fn report(&self) -> &'r Report {
        self.report
    }

    /// The table under `key`. A missing table is read as an empty one, so that all its keys are declared.
    pub(super) fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Table<'r>) -> T) -> T {
        let field = self.take(key);
        let path = self.path.key(key);
        let table = field.and_then(Field::table).unwrap_or_else(|| Table {
            report: self.report,
            path,
            entries: BTreeMap::new(),
        });
        table.read(read)
    }

    /// Every table under `key`, where the user chooses the keys.
    pub(super) fn named<T>(&mut self, key: &str, mut read: impl FnMut(&str, &mut Table<'r>) -> T) -> Vec<T> {
        let Some(tables) = self.take(key).and_then(Field::table) else {
            return Vec::new();
        };
        let report = self.report;
        let read_one = |(name, node): (String, Node)| {
            let path = tables.path.key(&name);
            let table = Field { report, path, node }.table()?;
            Some(table.read(|table| read(&name, table)))
        };
        tables.entries.into_iter().filter_map(read_one).collect()
    }

    /// The value under `key`, if it was given.
    pub(super) fn take(&mut self, key: &str) -> Option<Field<'r>> {
        let path = self.path.key(key);
        self.report.know(path.clone());
        let node = self.entries.remove(key)?;
        let report = self.report;
        Some(Field { report, path, node })
    }

    /// The value under `key`, parsed by `read`, or `default`. `show` writes it as TOML.
    pub(super) fn value<T>(
        &mut self,
        key: impl Into<Key>,
        default: T,
        show: impl Fn(&T) -> String,
        read: impl FnOnce(Field<'r>) -> Option<T>,
    ) -> T {
        let key = key.into();
        let shown_default = show(&default);
        let value = self.take(key.name).and_then(read).unwrap_or(default);
        self.record(key, Some(show(&value)), Some(shown_default));
        value
    }

    /// The same for a key that has no default.
    pub(super) fn optional<T>(
        &mut self,
        key: impl Into<Key>,
        show: impl Fn(&T) -> String,
        read: impl FnOnce(Field<'r>) -> Option<T>,
    ) -> Option<T> {
        let key = key.into();
        let value = self.take(key.name).and_then(read);
        self.record(key, value.as_ref().map(show), None);
        value
    }

    /// Records a key that was read without these functions.
    pub(super) fn record(&self, key: impl Into<Key>, value: Option<String>, default: Option<String>) {
        self.report.record(Entry::new(&self.path, key.into(), value, default), None);
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: impl Into<Key>, default: bool) -> bool {
        self.value(key.into().of(Shape::Boolean), default, bool::to_string, Field::boolean)
    }

    /// A duration with its unit, zero included.
    pub(super) fn duration(&mut self, key: impl Into<Key>, default: Duration) -> Duration {
        let key = key.into().of(Shape::Duration);
        self.value(key, default, |value| show::text(&Span(*value)), |field| field.quantity(parse_duration))
    }

    /// A duration that may not be zero.
    pub(super) fn positive_duration(&mut self, key: impl Into<Key>, default: Duration) -> Duration {
        let checked = |text: &str| match parse_duration(text) {
            Ok(Duration::ZERO) => Err("must be longer than zero"),
            other => other,
        };
        let key = key.into().of(Shape::PositiveDuration);
        self.value(key, default, |value| show::text(&Span(*value)), |field| field.quantity(checked))
    }

    /// A duration within `limits`, which do not include zero.
    pub(super) fn duration_within(
        &mut self,
        key: impl Into<Key>,
        default: Duration,
        limits: RangeInclusive<Duration>,
    ) -> Duration {
        let key = key.into().of(Shape::PositiveDuration);
        self.value(key, default, |value| show::text(&Span(*value)), |field| field.duration(&limits))
    }

    /// A number of bytes with its unit.
    pub(super) fn size(&mut self, key: impl Into<Key>, default: u64, limits: RangeInclusive<u64>) -> u64 {
        self.value(key.into().of(Shape::Size), default, |value| show::text(&Size(*value)), |field| field.size(&limits))
    }

    /// A rate; `None` means no limit.
    pub(super) fn rate(&mut self, key: impl Into<Key>, default: Option<Rate>) -> Option<Rate> {
        self.value(key.into().of(Shape::Rate), default, show::rate, |field| field.quantity(parse_rate))
    }

    /// A whole number within `limits`.
    pub(super) fn number(&mut self, key: impl Into<Key>, default: u32, limits: RangeInclusive<u32>) -> u32 {
        let key = key.into().of(Shape::Number(limits.clone()));
        self.value(key, default, u32::to_string, |field| field.number(limits))
    }

    /// A number within `limits`, whole or not.
    pub(super) fn fraction(&mut self, key: impl Into<Key>, default: f64, limits: RangeInclusive<f64>) -> f64 {
        let key = key.into().of(Shape::Fraction(limits.clone()));
        self.value(key, default, |value| format!("{value:?}"), |field| field.fraction(limits))
    }

    /// A path in the file system.
    pub(super) fn file(&mut self, key: impl Into<Key>) -> Option<PathBuf> {
        self.optional(key, show::file, Field::file)
    }

    /// One of a few words.
    pub(super) fn word<T: Copy + PartialEq>(
        &mut self,
        key: impl Into<Key>,
        default: T,
        words: &[(&'static str, T)],
    ) -> T {
        let key = key.into().of(Shape::Word(words.iter().map(|(word, _)| *word).collect()));
        let written = |value: &T| words.iter().find(|(_, meaning)| meaning == value).map_or("", |(word, _)| word);
        self.value(key, default, |value| show::text(written(value)), |field| field.word(words))
    }

    /// The value under `key`. If it is missing, that is a fault with `advice`.
    pub(super) fn require(&mut self, key: &str, advice: &str) -> Option<Field<'r>> {
        let field = self.take(key);
        if field.is_none() {
            let path = self.path.key(key);
            self.report.fault(&path, format!("missing; {advice}"));
        }
        field
    }
}

/// One value while it is read.
pub(super) struct Field<'r> {
    pub(super) report: &'r Report,
    pub(super) path: Path,
    pub(super) node: Node,
}

impl<'r> Field<'r> {
    fn refuse<T>(&self, expected: &str) -> Option<T> {
        let found = match &self.node.value {
            Value::Raw(_) => String::new(),
            value => format!(", found {}", value.kind()),
        };
        self.report.fault(&self.path, format!("expected {expected}{found}"));
        None
    }

    /// The TOML value that a raw text spells, if the value is raw text.
    fn spelled(&self) -> Option<Value> {
        match &self.node.value {
            Value::Raw(raw) => parse_raw(raw, &self.node.place),
            _ => None,
        }
    }

    /// As a table, whose keys are read next.
    pub(super) fn table(mut self) -> Option<Table<'r>> {
        if let Some(value @ Value::Table(_)) = self.spelled() {
            self.node.value = value;
        }
        match self.node.value {
            Value::Table(entries) => Some(Table { report: self.report, path: self.path, entries }),
            _ => self.refuse("a table"),
        }
    }

    /// The value, with a raw text replaced by the TOML value that it spells, if it spells one.
    fn typed(mut self) -> Self {
        if let Some(value) = self.spelled() {
            self.node.value = value;
        }
        self
    }

    fn size(self, limits: &RangeInclusive<u64>) -> Option<u64> {
        let (report, path) = (self.report, self.path.clone());
        let size = self.quantity(parse_size)?;
        if !limits.contains(&size) {
            let (least, most) = (Size(*limits.start()), Size(*limits.end()));
            report.fault(&path, format!("must be from {least} to {most}"));
            return None;
        }
        Some(size)
    }

    fn duration(self, limits: &RangeInclusive<Duration>) -> Option<Duration> {
        let (report, path) = (self.report, self.path.clone());
        let duration = self.quantity(parse_duration)?;
        if !limits.contains(&duration) {
            let (least, most) = (Span(*limits.start()), Span(*limits.end()));
            report.fault(&path, format!("must be from {least} to {most}"));
            return None;
        }
        Some(duration)
    }

    fn boolean(self) -> Option<bool> {
        let field = self.typed();
        match field.node.value {
            Value::Boolean(value) => Some(value),
            _ => field.refuse("true or false"),
        }
    }

    pub(super) fn number(self, limits: RangeInclusive<u32>) -> Option<u32> {
        let field = self.typed();
        let wanted = format!("a whole number from {} to {}", limits.start(), limits.end());
        let Value::Integer(number) = field.node.value else {
            return field.refuse(&wanted);
        };
        let number = u32::try_from(number).ok().filter(|n| limits.contains(n));
        if number.is_none() {
            field.report.fault(&field.path, format!("must be {wanted}"));
        }
        number
    }

    fn fraction(self, limits: RangeInclusive<f64>) -> Option<f64> {
        let field = self.typed();
        let wanted = format!("a number from {} to {}", limits.start(), limits.end());
        let number = match field.node.value {
            Value::Float(number) => number,
            Value::Integer(number) => number as f64,
            _ => return field.refuse(&wanted),
        };
        if limits.contains(&number) {
            return Some(number);
        }
        field.report.fault(&field.path, format!("must be {wanted}"));
        None
    }

    fn quantity<T>(self, parse: impl FnOnce(&str) -> Result<T, &'static str>) -> Option<T> {
        let (report, path) = (self.report, self.path.clone());
        // Any other type gets the same message, which names the expected form.
        let text = match &self.node.value {
            Value::Text(_) | Value::Raw(_) => self.text("text")?,
            _ => Zeroizing::default(),
        };
        match parse(&text) {
            Ok(quantity) => Some(quantity),
            Err(message) => {
                report.fault(&path, message);
                None
            }
        }
    }

    /// A text that is not empty; `expected` describes it.
    pub(super) fn text(self, expected: &str) -> Option<Zeroizing<String>> {
        let quoted = matches!(&self.node.value, Value::Raw(raw) if raw.trim_start().starts_with(['"', '\'']));
        let field = if quoted { self.typed() } else { self };
        match field.node.value {
            Value::Text(text) | Value::Raw(text) => {
                if text.is_empty() {
                    field.report.fault(&field.path, "must not be empty");
                    return None;
                }
                Some(text)
            }
            _ => field.refuse(expected),
        }
    }

    /// The same, for a text that is not a secret.
    pub(super) fn string(self) -> Option<String> {
        Some(self.text("text")?.to_string())
    }

    /// A path in the file system.
    pub(super) fn file(self) -> Option<PathBuf> {
        self.string().map(PathBuf::from)
    }

    /// Converts a TOML date to its text.
    pub(super) fn date_or_text(mut self) -> Self {
        if let Value::Datetime(date) = self.node.value {
            self.node.value = Value::Text(Zeroizing::new(date));
        }
        self
    }

    /// The result of `parse` for a text.
    pub(super) fn parsed<T, E: Into<String>>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let (report, path) = (self.report, self.path.clone());
        parse(&self.string()?).map_err(|message| report.fault(&path, message)).ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(self, words: &[(&str, T)]) -> Option<T> {
        let (report, path) = (self.report, self.path.clone());
        let written = self.text("text")?;
        let meaning = words.iter().find(|(word, _)| *word == written.as_str());
        if meaning.is_none() {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let suggestion = suggest(&written, all.iter().copied());
            report.fault(&path, format!("must be one of {}{suggestion}", all.join(", ")));
        }
        meaning.map(|(_, meaning)| *meaning)
    }

    /// A list of texts, each with its path; `None` where it is not a list.
    /// From the environment or a flag: separated by commas, or a TOML array.
    pub(super) fn texts(self) -> Option<Vec<(Path, String)>> {
        let text = |item: Field<'_>| {
            let path = item.path.clone();
            Some((path, item.text("text")?.to_string()))
        };
        Some(self.items("a list of texts")?.into_iter().filter_map(text).collect())
    }

    /// The entries of a list, or a single value in place of a list with one entry.
    pub(super) fn one_or_more(self, expected: &str) -> Option<Vec<Field<'r>>> {
        match self.node.value {
            Value::Text(_) | Value::Table(_) => Some(vec![self]),
            _ => self.items(expected),
        }
    }

    /// A list of tables, each read with `read`.
    pub(super) fn tables<T>(self, mut read: impl FnMut(&mut Table<'r>) -> Option<T>) -> Vec<T> {
        let items = self.items("a list of tables").unwrap_or_default().into_iter();
        items.filter_map(|item| item.table()?.read(&mut read)).collect()
    }

    /// The entries of a list.
    fn items(self, expected: &str) -> Option<Vec<Field<'r>>> {
        let Self { report, path, node } = self;
        let Node { value, place } = node;
        let items = match value {
            Value::List(items) => items,
            Value::Raw(raw) => split_raw(&raw, &place),
            value => {
                let node = Node { value, place };
                return Field { report, path, node }.refuse(expected);
            }
        };
        let field = |(index, node)| Field { report, path: path.item(index), node };
        Some(items.into_iter().enumerate().map(field).collect())
    }
}

/// `[::1]:8080` starts like a TOML array but is not one: a text that is not an array is split at its commas.
fn split_raw(raw: &str, place: &Place) -> Vec<Node> {
    if let Some(Value::List(items)) = parse_raw(raw, place) {
        return items;
    }
    let node = |text: &str| Node { value: Value::Text(Zeroizing::new(text.to_owned())), place: place.clone() };
    raw.split(',').map(str::trim).filter(|text| !text.is_empty()).map(node).collect()
}
