//! What a team may do: the names in `teams.*.operations`.

/// One of the names in `teams.*.operations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// `metadata`
    Metadata,
    /// `query`: queries and their pages.
    Query,
    /// `jobs`
    Jobs,
    /// `fields-read`
    FieldsRead,
    /// `fields-write`
    FieldsWrite,
}

impl Permission {
    /// All permissions, in the order of the contract.
    pub const ALL: [Self; 5] = [Self::Metadata, Self::Query, Self::Jobs, Self::FieldsRead, Self::FieldsWrite];

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Query => "query",
            Self::Jobs => "jobs",
            Self::FieldsRead => "fields-read",
            Self::FieldsWrite => "fields-write",
        }
    }

    /// The permission of that name.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == word)
    }
}

/// The operations that a team may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationSet(u8);

impl OperationSet {
    /// No operations.
    pub const NONE: Self = Self(0);

    /// `metadata`, `query` and `jobs`: all that read data.
    pub fn standard() -> Self {
        [Permission::Metadata, Permission::Query, Permission::Jobs].into_iter().collect()
    }

    /// Whether it has this permission.
    pub const fn allows(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u8) != 0
    }

    /// The permissions in it, in the contract's order.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.allows(*permission))
    }
}

impl FromIterator<Permission> for OperationSet {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |set, p| set | 1 << p as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_allows_what_is_in_it() {
        let set = OperationSet::standard();
        assert!(set.allows(Permission::Query) && set.allows(Permission::Jobs));
        assert!(!set.allows(Permission::FieldsRead) && !OperationSet::NONE.allows(Permission::Metadata));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Permission::Metadata, Permission::Query, Permission::Jobs]);
    }
}
