//! One value of a response: how it is compared, hashed and written as JSON.
//!
//! This module does not know where values come from.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::data::Text;
use super::time::LocalTime;

/// One cell of a response.
#[derive(Debug, Clone)]
pub enum Cell {
    /// One text.
    Text(Text),
    /// Several texts.
    List(Arc<[Text]>),
    /// A finite number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A local time.
    Time(LocalTime),
    /// `null`, which sorts last.
    Null,
}

/// One row of a table, as the JSON object that the API sends.
pub struct Item<'a> {
    /// The table's names.
    pub names: &'a [String],
    /// The row's cells.
    pub cells: &'a [Cell],
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.names.len()))?;
        for (name, cell) in self.names.iter().zip(self.cells) {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(list) => serializer.collect_seq(list.iter().map(|text| &**text)),
            Self::Number(number) if number.fract() == 0.0 && number.abs() < EXACT => {
                serializer.serialize_i64(*number as i64)
            }
            Self::Number(number) => serializer.serialize_f64(*number),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Time(time) => serializer.collect_str(time),
            Self::Null => serializer.serialize_none(),
        }
    }
}

impl Ord for Cell {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |cell: &Self| match cell {
            Self::Text(_) => 0,
            Self::List(_) => 1,
            Self::Number(_) => 2,
            Self::Flag(_) => 3,
            Self::Time(_) => 4,
            Self::Null => 5,
        };
        match (self, other) {
            // Most texts are shared, so comparing the pointers is usually enough.
            (Self::Text(a), Self::Text(b)) if Arc::ptr_eq(a, b) => Ordering::Equal,
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::List(a), Self::List(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => a.total_cmp(b),
            (Self::Flag(a), Self::Flag(b)) => a.cmp(b),
            (Self::Time(a), Self::Time(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for Cell {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cell {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Cell {}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Text(text) => text.hash(state),
            Self::List(list) => list.hash(state),
            Self::Number(number) => number.to_bits().hash(state),
            Self::Flag(flag) => flag.hash(state),
            Self::Time(time) => time.hash(state),
            Self::Null => 0u8.hash(state),
        }
    }
}

/// Hashes cells. They come from generated data, so no client can choose them so that hashes collide.
#[derive(Default)]
pub struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = self.0.rotate_left(5) ^ u64::from_le_bytes(word);
            self.0 = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        // The upper bits of the product are mixed best, and a hash table uses the lower ones first.
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(cell: &Cell) -> u64 {
        let mut hasher = QuickHasher::default();
        cell.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn equal_cells_have_equal_hashes_and_others_sort() {
        let (one, same) = (Cell::Text("a".into()), Cell::Text("a".into()));
        assert_eq!(one, same);
        assert_eq!(hash(&one), hash(&same));
        let sorted = [
            Cell::Text("a".into()),
            Cell::Text("b".into()),
            Cell::List([Text::from("a")].into()),
            Cell::Number(-1.5),
            Cell::Number(2.0),
            Cell::Flag(false),
            Cell::Flag(true),
            Cell::Null,
        ];
        assert!(sorted.is_sorted());
        assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn cells_are_written_as_json_has_them() {
        let names: Vec<String> = ["z", "a", "n", "x", "l"].map(String::from).to_vec();
        let cells = [
            Cell::Number(3.0),
            Cell::Number(0.25),
            Cell::Null,
            Cell::Flag(true),
            Cell::List([Text::from("en")].into()),
        ];
        let item = Item { names: &names, cells: &cells };
        let text = serde_json::to_string(&item).unwrap();
        assert_eq!(text, r#"{"z":3,"a":0.25,"n":null,"x":true,"l":["en"]}"#);
    }
}
