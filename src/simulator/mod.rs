//! A small Insights service of one's own, for people without an account, for demos and for tests.

pub mod catalog;
pub mod cubes;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod faults;
pub mod journal;
pub mod limit;
pub mod page;
pub mod query;
pub mod time;
