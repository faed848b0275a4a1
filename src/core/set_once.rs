//! A value of a short closed list that is set at most once.
//!
//! Every request records a few of these. A cell with a lock or a state of its own costs ten times as much.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, Ordering};

/// The values of a type, of which there are fewer than 255.
pub trait Listed: Copy + 'static {
    /// All values.
    const ALL: &'static [Self];

    /// The value's place in [`ALL`](Self::ALL).
    fn place(self) -> u8;
}

/// Empty until it is set. The first value stays.
pub struct SetOnce<T> {
    /// The value's place plus one; 0 while there is none.
    place: AtomicU8,
    of: PhantomData<T>,
}

impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self { place: AtomicU8::new(0), of: PhantomData }
    }
}

impl<T: Listed> SetOnce<T> {
    /// The value, if one is set.
    pub fn get(&self) -> Option<T> {
        let place = self.place.load(Ordering::Acquire).checked_sub(1)?;
        T::ALL.get(usize::from(place)).copied()
    }

    /// Sets the value.
    ///
    /// # Errors
    ///
    /// `value`, if there is one already.
    pub fn set(&self, value: T) -> Result<(), T> {
        let set = self.place.compare_exchange(0, value.place() + 1, Ordering::AcqRel, Ordering::Acquire);
        set.map(drop).map_err(|_| value)
    }
}

impl<T: Listed + fmt::Debug> fmt::Debug for SetOnce<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::error::Reason;
    use crate::core::outcome::Outcome;

    fn each_is_found_again<T: Listed + PartialEq + fmt::Debug>() {
        for value in T::ALL {
            let cell = SetOnce::default();
            assert_eq!(cell.get(), None);
            assert_eq!(cell.set(*value), Ok(()));
            for other in T::ALL {
                assert_eq!(cell.set(*other), Err(*other));
            }
            assert_eq!(cell.get(), Some(*value));
        }
    }

    #[test]
    fn the_first_value_stays() {
        each_is_found_again::<Outcome>();
        each_is_found_again::<Reason>();
    }
}
