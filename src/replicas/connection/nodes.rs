//! Which node of a cluster has a key.
//!
//! The library sends each operation to the right node. What is known here only says which operations fail together, so
//! it may be out of date after slots were moved.

use std::hash::{DefaultHasher, Hash, Hasher};

use redis::{FromRedisValue, Value};

/// A node of the store, the same each time that the replica connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u64);

impl NodeId {
    /// The only one.
    pub(crate) const SINGLE: Self = Self(0);
}

/// The slots of each node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nodes(Vec<(u16, u16, NodeId)>);

impl Nodes {
    /// Reads the answer to `CLUSTER SLOTS`. `None` if it is of another form.
    pub(crate) fn read(slots: Value) -> Option<Self> {
        let ranges = Vec::<Vec<Value>>::from_redis_value(slots).ok()?;
        let range = |range: Vec<Value>| {
            let [first, last, primary, ..] =
                <[Value; 3]>::try_from(range.into_iter().take(3).collect::<Vec<_>>()).ok()?;
            let number = |value| u16::from_redis_value(value).ok();
            let [host, port] = <[Value; 2]>::try_from(
                Vec::<Value>::from_redis_value(primary).ok()?.into_iter().take(2).collect::<Vec<_>>(),
            )
            .ok()?;
            let mut hasher = DefaultHasher::new();
            (Option::<String>::from_redis_value(host).ok()?, number(port)?).hash(&mut hasher);
            Some((number(first)?, number(last)?, NodeId(hasher.finish())))
        };
        ranges.into_iter().map(range).collect::<Option<_>>().map(Self)
    }

    /// The node that has `key`.
    pub(crate) fn of(&self, key: &[u8]) -> NodeId {
        let slot = slot(key);
        let node = self.0.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        // A node usually has neighbouring slots.
        node.map_or(NodeId(u64::from(slot >> 10) + 1), |(.., node)| *node)
    }
}

/// Another key with the same slot, which begins in the same way. Replicas store nothing under it.
pub(crate) fn neighbour(key: &[u8]) -> Vec<u8> {
    match tag(key) {
        Some(_) => [key, b":try"].concat(),
        None => [key, b"{", key, b"}"].concat(),
    }
}

/// The part of a key that decides about its slot, if that is not all of it.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let rest = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
    let length = rest.iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &rest[..length])
}

/// The slot of a key: CRC-16/XMODEM, as the specification of Redis Cluster says.
fn slot(key: &[u8]) -> u16 {
    const SLOTS: u16 = 16_384;
    const POLYNOMIAL: u16 = 0x1021;
    let crc = tag(key).unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| (crc << 1) ^ (POLYNOMIAL * (crc >> 15)))
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"a{user1000}b"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), slot_of_all(b"foo{}{bar}"));
    }

    fn slot_of_all(key: &[u8]) -> u16 {
        // Braces around it make it the tag, unless it has some itself.
        assert!(tag(key).is_none());
        slot(key)
    }

    #[test]
    fn a_neighbour_is_another_key_of_the_same_slot() {
        for key in [b"p:1:page:abc".as_slice(), b"p:1:{tag}:budget"] {
            let neighbour = neighbour(key);
            assert!(neighbour.starts_with(key) && neighbour != key);
            assert_eq!(slot(&neighbour), slot(key));
        }
    }

    #[test]
    fn the_answer_of_a_cluster_is_read() {
        let node = |port: i64| {
            Value::Array(vec![Value::BulkString(b"h".to_vec()), Value::Int(port), Value::BulkString(b"id".to_vec())])
        };
        let range = |first, last, port| Value::Array(vec![Value::Int(first), Value::Int(last), node(port), node(9)]);
        let slots = Value::Array(vec![range(0, 8000, 1), range(8001, 16_000, 2), range(16_001, 16_383, 1)]);
        let nodes = Nodes::read(slots).unwrap();
        let at = |n: u16| (0..).map(|key: u32| key.to_string().into_bytes()).find(|key| slot(key) / 1000 == n).unwrap();
        assert_eq!(nodes.of(&at(0)), nodes.of(&at(7)));
        assert_ne!(nodes.of(&at(0)), nodes.of(&at(9)));
        assert_eq!(Nodes::read(Value::Okay), None);
        assert_eq!(Nodes::default().of(&at(9)), Nodes::default().of(&at(9)));
    }
}
