//! Answers a [`Query`] from the [`Data`]: filters, groups, aggregates and sorts.
//!
//! Conversations are joined with their participants, configurations and results only where the query uses those. Every
//! conversation or result counts once per group, however many joined rows it has. So a conversation with two
//! participants is in both their rows, but is one conversation in a total. A query for results and conversations keeps
//! conversations without results, with null cells. A query for results alone does not.
//!
//! The order is always total. Where `orderBy` does not decide, or is absent, times decide first, then the first measure
//! from large to small, then every dimension. Absent values are the largest. A dimension in `orderBy` that is not
//! selected counts with its smallest value in the group, or its largest where the order is descending.
//!
//! Pages, tokens and JSON texts are made in other modules.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::aggregate::SoFar;
use super::cell::{Cell, QuickHasher};
use super::data::{Conversation, Data};
use super::members::{Kind, Level, Measure, Row, Value};
use super::query::{Column, Condition, Group, OrderBy, Query, Test};
use super::time::LocalTime;

/// All rows of a response, in order.
#[derive(Debug)]
pub struct Table {
    /// Dimensions and then measures, as the caller named them.
    pub names: Vec<String>,
    /// Each row has as many cells as there are names.
    pub rows: Vec<Vec<Cell>>,
}

/// Answers `query` completely.
pub fn evaluate(data: &Data, query: &Query) -> Table {
    let plan = Plan::new(query);
    let mut buckets = Buckets::default();
    let mut key = Vec::with_capacity(query.dimensions.len());
    for (position, conversation) in data.conversations.iter().enumerate() {
        plan.each_row(data, conversation, |row, result| {
            key.clear();
            key.extend(query.dimensions.iter().map(|(_, column)| plan.cell(*column, row)));
            match buckets.get_mut(key.as_slice()) {
                Some(bucket) => bucket.add(&plan, row, position, result),
                None => {
                    let mut bucket = Bucket::new(&plan);
                    bucket.add(&plan, row, position, result);
                    buckets.insert(key.clone().into_boxed_slice(), bucket);
                }
            }
        });
    }
    if query.dimensions.is_empty() && buckets.is_empty() {
        buckets.insert(Box::default(), Bucket::new(&plan));
    }
    plan.table(buckets)
}

/// The parts of the evaluation that are the same for every row.
struct Plan<'q> {
    query: &'q Query,
    /// The measures of the query, and those that only the order needs.
    measures: Vec<&'static Measure>,
    /// Dimensions that only the order needs.
    hidden: Vec<(Column, bool)>,
    participants: bool,
    configurations: bool,
    results: bool,
    /// Whether conversations without a result are kept.
    keep_without_result: bool,
    /// Groups that can be decided before joining.
    early: Vec<&'q Group>,
    late: Vec<&'q Group>,
}

impl<'q> Plan<'q> {
    fn new(query: &'q Query) -> Self {
        let mut measures: Vec<&'static Measure> = query.measures.iter().map(|(_, m)| *m).collect();
        let mut hidden = Vec::new();
        for order in &query.order {
            match order.by {
                OrderBy::Measure(measure) if !measures.iter().any(|m| std::ptr::eq(*m, measure)) => {
                    measures.push(measure);
                }
                OrderBy::Column(column) if selected(query, column).is_none() => {
                    hidden.push((column, order.descending));
                }
                _ => {}
            }
        }
        let shown = query.dimensions.iter().map(|(_, column)| column.dimension.level);
        let shown: Vec<Level> = shown.chain(query.measures.iter().map(|(_, m)| m.level)).collect();
        let conditions = query.filters.iter().flat_map(|group| &group.conditions);
        let levels: Vec<Level> = conditions
            .map(|condition| condition.column.dimension.level)
            .chain(hidden.iter().map(|(column, _)| column.dimension.level))
            .chain(measures.iter().map(|measure| measure.level))
            .chain(shown.iter().copied())
            .collect();
        let (early, late) = query.filters.iter().partition(|group| {
            let mut levels = group.conditions.iter().map(|c| c.column.dimension.level);
            levels.all(|level| level == Level::Conversation)
        });
        Self {
            query,
            measures,
            hidden,
            participants: levels.contains(&Level::Participant),
            configurations: levels.contains(&Level::Configuration),
            results: levels.contains(&Level::Result),
            keep_without_result: shown.iter().any(|level| *level != Level::Result),
            early,
            late,
        }
    }

    /// Calls `found` with every joined row of a conversation that passes the filters, and the index of its result. The
    /// rows of one result follow each other; [`Bucket::add`] relies on that.
    fn each_row<'a>(
        &self,
        data: &'a Data,
        conversation: &'a Conversation,
        mut found: impl FnMut(Row<'a>, Option<usize>),
    ) {
        let alone = Row { data, conversation, participant: None, configuration: None, result: None };
        if !self.early.iter().all(|group| self.passes(group, alone)) {
            return;
        }
        let results = joined(self.results, &conversation.results, self.keep_without_result);
        for (position, result) in results.enumerate() {
            for participant in joined(self.participants, &conversation.participants, true) {
                for configuration in joined(self.configurations, &conversation.configurations, true) {
                    let row = Row { participant: participant.map(|p| &**p), configuration, result, ..alone };
                    if self.late.iter().all(|group| self.passes(group, row)) {
                        found(row, result.map(|_| position));
                    }
                }
            }
        }
    }

    fn passes(&self, group: &Group, row: Row<'_>) -> bool {
        let mut conditions = group.conditions.iter();
        if group.any {
            conditions.any(|condition| self.holds(condition, row))
        } else {
            conditions.all(|condition| self.holds(condition, row))
        }
    }

    fn holds(&self, condition: &Condition, row: Row<'_>) -> bool {
        let column = condition.column;
        let value = match ((column.dimension.read)(row), column.grain) {
            (Value::Moment(moment), Some(grain)) => {
                Value::Moment(LocalTime::cut(moment, Some(grain), &self.query.zone).start)
            }
            (value, _) => value,
        };
        holds(&condition.test, value)
    }

    fn cell(&self, column: Column, row: Row<'_>) -> Cell {
        match (column.dimension.read)(row) {
            Value::Absent => Cell::Null,
            Value::Text(text) => Cell::Text(Arc::clone(text)),
            Value::List(list) => Cell::List(Arc::clone(list)),
            Value::Number(number) => Cell::Number(number),
            Value::Flag(flag) => Cell::Flag(flag),
            Value::Moment(moment) => Cell::Time(LocalTime::cut(moment, column.grain, &self.query.zone)),
        }
    }

    /// Finishes all aggregates and sorts the rows.
    fn table(&self, buckets: Buckets) -> Table {
        let query = self.query;
        let mut finished: Vec<Finished> = buckets
            .into_iter()
            .map(|(key, bucket)| {
                let measures = bucket.measures.into_iter().zip(&self.measures);
                let measures = measures.map(|(so_far, measure)| so_far.finish(measure.aggregation));
                Finished { key, measures: measures.collect(), extremes: bucket.extremes }
            })
            .collect();
        let sorters = self.sorters();
        finished.sort_unstable_by(|a, b| {
            let mut decided = sorters.iter().map(|(place, descending)| {
                let order = match *place {
                    Place::Dimension(at) => a.key[at].cmp(&b.key[at]),
                    Place::Measure(at) => a.measures[at].cmp(&b.measures[at]),
                    Place::Hidden(at) => a.extremes[at].cmp(&b.extremes[at]),
                };
                if *descending { order.reverse() } else { order }
            });
            let first = decided.find(|order| order.is_ne());
            first.unwrap_or_else(|| a.key.cmp(&b.key))
        });
        let dimensions = query.dimensions.iter().map(|(name, _)| name);
        let names = dimensions.chain(query.measures.iter().map(|(name, _)| name));
        let rows = finished.into_iter().map(|row| {
            let shown = row.measures.into_iter().take(query.measures.len());
            row.key.into_vec().into_iter().chain(shown).collect()
        });
        Table { names: names.cloned().collect(), rows: rows.collect() }
    }

    fn sorters(&self) -> Vec<(Place, bool)> {
        let query = self.query;
        if query.order.is_empty() {
            let times = query.dimensions.iter().enumerate();
            let times = times.filter(|(_, (_, column))| column.dimension.kind == Kind::Time);
            let mut sorters: Vec<_> = times.map(|(at, _)| (Place::Dimension(at), false)).collect();
            if !query.measures.is_empty() {
                sorters.push((Place::Measure(0), true));
            }
            return sorters;
        }
        let mut next_hidden = 0;
        let mut place = |by| match by {
            OrderBy::Measure(measure) => {
                let at = self.measures.iter().position(|m| std::ptr::eq(*m, measure));
                at.map(Place::Measure)
            }
            OrderBy::Column(column) => selected(query, column).map(Place::Dimension).or_else(|| {
                next_hidden += 1;
                Some(Place::Hidden(next_hidden - 1))
            }),
        };
        let order = query.order.iter();
        order.filter_map(|o| place(o.by).map(|place| (place, o.descending))).collect()
    }
}

/// A group with finished aggregates.
struct Finished {
    key: Box<[Cell]>,
    measures: Vec<Cell>,
    /// The values that only the order uses.
    extremes: Vec<Cell>,
}

/// The place of the cell that an order uses.
enum Place {
    Dimension(usize),
    Measure(usize),
    Hidden(usize),
}

/// The index of a selected column with the same dimension and grain.
fn selected(query: &Query, column: Column) -> Option<usize> {
    query
        .dimensions
        .iter()
        .position(|(_, chosen)| std::ptr::eq(chosen.dimension, column.dimension) && chosen.grain == column.grain)
}

/// The parts to join: each one, or a single absent one if none is used, or (with `keep`) if there is none.
fn joined<T>(wanted: bool, parts: &[T], keep: bool) -> impl Iterator<Item = Option<&T>> {
    let parts: &[T] = if wanted { parts } else { &[] };
    let absent = parts.is_empty() && (keep || !wanted);
    parts.iter().map(Some).chain(absent.then_some(None))
}

fn holds(test: &Test, value: Value<'_>) -> bool {
    match (test, value) {
        (Test::Not(test), value) => !holds(test, value),
        (Test::Text(texts), Value::Text(text)) => texts.contains(&**text),
        (Test::Text(texts), Value::List(list)) => list.iter().any(|text| texts.contains(&**text)),
        (Test::Numbers(numbers), Value::Number(number)) => numbers.contains(&number),
        (Test::Flags(flags), Value::Flag(flag)) => flags.contains(&flag),
        (Test::Moments(moments), Value::Moment(moment)) => moments.contains(&moment),
        (Test::NumberAbove(limit), Value::Number(number)) => number > *limit,
        (Test::NumberBelow(limit), Value::Number(number)) => number < *limit,
        (Test::After(limit), Value::Moment(moment)) => moment > *limit,
        (Test::Before(limit), Value::Moment(moment)) => moment < *limit,
        _ => false,
    }
}

/// One group during aggregation.
struct Bucket {
    conversation: Option<usize>,
    result: Option<usize>,
    measures: Vec<SoFar>,
    extremes: Vec<Cell>,
}

type Buckets = HashMap<Box<[Cell]>, Bucket, BuildHasherDefault<QuickHasher>>;

impl Bucket {
    fn new(plan: &Plan<'_>) -> Self {
        Self {
            conversation: None,
            result: None,
            measures: plan.measures.iter().map(|m| SoFar::new(m.aggregation)).collect(),
            extremes: Vec::new(),
        }
    }

    /// Adds a row, which is of the same conversation and result as the previous one, or of a new one.
    fn add(&mut self, plan: &Plan<'_>, row: Row<'_>, conversation: usize, result: Option<usize>) {
        let new_conversation = self.conversation != Some(conversation);
        let new_result = result.is_some() && (new_conversation || self.result != result);
        self.conversation = Some(conversation);
        self.result = result.or(self.result);
        if new_conversation {
            self.result = result;
        }
        for (so_far, measure) in self.measures.iter_mut().zip(&plan.measures) {
            let counts = match measure.level {
                Level::Conversation => new_conversation,
                Level::Result => new_result,
                Level::Participant | Level::Configuration => true,
            };
            if counts {
                so_far.add(measure, row);
            }
        }
        let first = self.extremes.is_empty();
        for (at, (column, descending)) in plan.hidden.iter().enumerate() {
            let cell = plan.cell(*column, row);
            match self.extremes.get_mut(at) {
                Some(extreme) if !first => {
                    if (cell > *extreme) == *descending && cell != *extreme {
                        *extreme = cell;
                    }
                }
                _ => self.extremes.push(cell),
            }
        }
    }
}

#[cfg(test)]
mod tests;
