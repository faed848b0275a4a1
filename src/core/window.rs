//! Counts recent events in slots of time. Pure: the time is an argument.

use std::time::Duration;

use crate::core::clock::Instant;

/// Events of some kinds in the last `SLOTS` slots. Older slots are dropped as a whole.
#[derive(Debug, Clone)]
pub struct Window<const SLOTS: usize, const KINDS: usize> {
    begun: Instant,
    slot: Duration,
    slots: [Slot<KINDS>; SLOTS],
}

#[derive(Debug, Clone, Copy)]
struct Slot<const KINDS: usize> {
    /// The number of the current slot.
    number: u64,
    counts: [u32; KINDS],
}

impl<const SLOTS: usize, const KINDS: usize> Window<SLOTS, KINDS> {
    /// Empty, with slots of length `slot`.
    pub fn new(slot: Duration, begun: Instant) -> Self {
        Self { begun, slot, slots: [Slot { number: 0, counts: [0; KINDS] }; SLOTS] }
    }

    /// Counts an event of this kind, which must be below `KINDS`.
    pub fn count(&mut self, kind: usize, now: Instant) {
        let number = self.number(now);
        let slot = &mut self.slots[(number % SLOTS as u64) as usize];
        if slot.number != number {
            *slot = Slot { number, counts: [0; KINDS] };
        }
        slot.counts[kind] = slot.counts[kind].saturating_add(1);
    }

    /// The counted events of each kind.
    pub fn counts(&self, now: Instant) -> [u32; KINDS] {
        let sum = |kind| self.recent(now).fold(0u32, |sum, slot| sum.saturating_add(slot.counts[kind]));
        std::array::from_fn(sum)
    }

    /// How long ago the oldest slot began that has a counted event; zero without any.
    pub fn span(&self, now: Instant) -> Duration {
        let first = self.recent(now).filter(|slot| slot.counts != [0; KINDS]).map(|slot| slot.number).min();
        let began = first.map(|number| self.slot.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX)));
        began.map_or(Duration::ZERO, |began| now.saturating_duration_since(self.begun).saturating_sub(began))
    }

    fn recent(&self, now: Instant) -> impl Iterator<Item = &Slot<KINDS>> {
        let number = self.number(now);
        self.slots.iter().filter(move |slot| slot.number + SLOTS as u64 > number)
    }

    fn number(&self, now: Instant) -> u64 {
        let number = now.saturating_duration_since(self.begun).as_nanos() / self.slot.as_nanos().max(1);
        u64::try_from(number).unwrap_or(u64::MAX - SLOTS as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn counts_recent_events_and_drops_older_ones() {
        let start = Instant::now();
        let mut window = Window::<3, 2>::new(S, start);
        assert_eq!((window.counts(start), window.span(start)), ([0, 0], Duration::ZERO));
        window.count(0, start);
        window.count(1, start + S);
        window.count(1, start + 2 * S);
        assert_eq!((window.counts(start + 2 * S), window.span(start + 2 * S)), ([1, 2], 2 * S));
        assert_eq!((window.counts(start + 3 * S), window.span(start + 3 * S)), ([0, 2], 2 * S));
        window.count(0, start + 3 * S);
        assert_eq!(window.counts(start + 3 * S), [1, 2], "the first slot is used again");
        assert_eq!(window.counts(start + 60 * S), [0, 0]);
        window.count(0, start + 60 * S);
        assert_eq!((window.counts(start + 60 * S), window.span(start + 60 * S + S / 2)), ([1, 0], S / 2));
    }
}
