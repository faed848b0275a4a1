//! Names in a query that the account's metadata does not have, and the name that was probably meant.
//!
//! If in doubt, a name counts as known. Twilio documents neither all grains nor the name of a custom measure in every
//! cube. So a query with an undocumented part is not checked, metadata without members proves nothing, and a name
//! counts as known if it belongs to a member in metadata:
//!
//! * a member and anything after it (`Conversation.CreatedDate.hour`), whatever the type of the member;
//! * the dimension of a grain that metadata lists, and its other grains;
//! * the member of a cube that metadata names without the cube.
//!
//! # Which name was probably meant
//!
//! The first of these that exists, among the members that are allowed in that place:
//!
//! 1. the same name in different upper and lower case;
//! 2. for a name without a cube: a member of that name in a cube;
//! 3. the nearest name, ignoring case: at most one edit for every three letters after the cube's name, with a minimum
//!    of one edit and a maximum of three. An edit is a letter more, less or replaced, or two neighbours swapped.
//!
//! A time dimension is also compared with the grain of the written name added to it. Of equally near names the first in
//! alphabetical order is taken.

use std::fmt;

use crate::core::spelling;
use crate::twilio::catalog::{Catalog, is_name};
use crate::twilio::query::{Group, List, Order, Part, Place, Query};

/// What the gateway does about names that metadata does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// Nothing.
    Off,
    /// Responses with Twilio's 400 list them.
    Hint,
    /// As for `Hint`, and a query that has such a name is refused.
    Reject,
}

/// The most names that are listed for one query.
const MOST_TOLD: usize = 3;

/// The most names of one query that are compared with the catalog.
const MOST_COMPARED: usize = 64;

/// The most letters of a name that are shown.
const MOST_LETTERS: usize = 64;

/// A name that metadata does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UnknownName {
    place: Place,
    /// Its letters, digits, `_` and `.` only, because a client's text may hold anything.
    name: String,
    /// Whether it has the form of a name.
    is_name: bool,
    meant: Option<String>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.place {
            Place::Measure => "measure",
            Place::Dimension => "dimension",
            Place::Filter => "filter field",
            Place::Order => "order field",
        };
        write!(f, "unknown {kind} \"{}\"", self.name)?;
        match &self.meant {
            Some(meant) => write!(f, "; did you mean \"{meant}\"?"),
            None => Ok(()),
        }
    }
}

/// The names of a query that metadata does not have: at least one. As text they are visible ASCII and spaces, and less
/// than 600 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownNames(Vec<UnknownName>);

impl fmt::Display for UnknownNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

impl UnknownNames {
    /// Finds them in a query of a team that may see all of `catalog`. A suggestion is made only if the team `may_read`
    /// metadata, because it reveals a name.
    pub fn find(query: &Query<'_>, catalog: &Catalog, may_read: bool) -> Option<Self> {
        if !is_documented(query) || catalog.names().next().is_none() {
            return None;
        }
        let (mut unknown, mut compared) = (Vec::<UnknownName>::new(), 0);
        query.visit_names(|place, name| {
            if unknown.len() == MOST_TOLD || compared == MOST_COMPARED || catalog.knows(Place::Filter, name) {
                return;
            }
            compared += 1;
            let told = told(name);
            let is_told = unknown.iter().any(|other| other.place == place && other.name == told);
            if !is_told && !may_exist(catalog, name) {
                let meant = may_read.then(|| meant(catalog, place, &told)).flatten();
                unknown.push(UnknownName { place, name: told, is_name: is_name(name), meant });
            }
        });
        (!unknown.is_empty()).then_some(Self(unknown))
    }

    /// Whether at least one of them is certainly unknown to Twilio. Text without the form of a name could be
    /// undocumented syntax.
    pub fn are_certain(&self) -> bool {
        self.0.iter().any(|unknown| unknown.is_name)
    }
}

/// Whether all parts of the query are documented. An undocumented part could define a name.
fn is_documented(query: &Query<'_>) -> bool {
    let is_group = |group: &Group<'_>| group.documented().is_some();
    let is_order = |order: &Order<'_>| order.field.known().is_some();
    !query.has_unknown_members()
        && matches!(query.domain, Part::Absent | Part::Known("Conversations"))
        && [&query.measures, &query.dimensions].into_iter().all(|names| is_list(names, |_| true))
        && is_list(&query.filters, is_group)
        && is_list(&query.order, is_order)
}

fn is_list<T>(list: &List<'_, T>, is_right: impl Fn(&T) -> bool) -> bool {
    match list {
        Part::Absent => true,
        Part::Known(elements) => elements.iter().all(|element| element.known().is_some_and(&is_right)),
        Part::Other(_) => false,
    }
}

/// Whether this could be the name of something in metadata.
fn may_exist(catalog: &Catalog, name: &str) -> bool {
    // The dimension, if this is a grain. In a name with one dot this part is the cube.
    let dimension = name.rsplit_once('.').map(|(dimension, _)| dimension).filter(|dimension| dimension.contains('.'));
    let is_related = |member: &str| {
        member == name
            || is_below(name, member)
            || (name.contains('.') && is_below(member, name))
            || dimension.is_some_and(|dimension| is_below(member, dimension))
    };
    catalog.names().any(is_related) || catalog.all_aliases().any(|alias| alias == name || is_below(name, alias))
}

/// Whether this is the other name, with or without something after it.
fn is_below(name: &str, other: &str) -> bool {
    name.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'))
}

/// The part of a name that may be shown.
fn told(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).take(MOST_LETTERS).collect()
}

/// A name without that of its cube.
fn without_cube(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, member)| member)
}

/// The name in the catalog that was probably meant in that place.
fn meant(catalog: &Catalog, place: Place, written: &str) -> Option<String> {
    let (written, reach) = (written.to_ascii_lowercase(), spelling::reach(without_cube(written).len()));
    let fits = |name: &&str| name.len() <= MOST_LETTERS && catalog.knows(place, name);
    let nearness = |name: &str| {
        let name = name.to_ascii_lowercase();
        let member = without_cube(&name);
        let compared = if written.contains('.') { &name } else { member };
        match spelling::edits_within(reach, &written, compared) {
            Some(0) => Some((usize::from(name != written), 0)),
            edits => Some((2, edits?)),
        }
    };
    let near = |name: String| Some((nearness(&name)?, name));
    let grain = written.rsplit_once('.').map(|(_, grain)| grain).filter(|_| place != Place::Measure);
    let with_grain = |name: &str| Some([name, grain?].join(".")).filter(|_| catalog.is_time(name));
    let names = || catalog.names().filter(fits);
    let plain = names().filter_map(|name| near(name.to_owned()));
    let grains = names().filter_map(with_grain).filter(|name| name.len() <= MOST_LETTERS).filter_map(near);
    plain.chain(grains).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
