use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::units::Rate;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn quota(count: u32, period: Duration) -> Quota {
    Quota::new(Rate::new(count, period).unwrap(), count)
}

fn key(number: u32) -> Key {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Key::from_bytes(bytes)
}

/// A limit whose clients keep the places that they are told.
struct Rig {
    limit: TeamLimit,
    quota: Quota,
}

impl Rig {
    fn new(quota: Quota, now: Instant) -> Self {
        Self { limit: TeamLimit::new(quota, now), quota }
    }

    fn bucket(&mut self, now: Instant) -> TeamBucket {
        TeamBucket::new(self.limit.part(self.quota, 1, None, now), None, 0)
    }

    /// A client with this patience asks. Refused, it is told a time.
    fn ask(&mut self, number: u32, patience: Duration, now: Instant) -> TeamToken {
        let bucket = self.bucket(now);
        let token = self.limit.take(&key(number), &bucket, now + patience, now);
        if let TeamToken::NotBefore(at) = token {
            self.limit.reserve(key(number), at, 1000, now);
        }
        token
    }

    /// After how many seconds a client is told to come back; `None` if it has a token.
    fn told(&mut self, number: u32, now: Instant) -> Option<u64> {
        match self.ask(number, S, now) {
            TeamToken::Taken(_) => None,
            TeamToken::Soon(at) | TeamToken::NotBefore(at) => Some(whole_seconds(at - now).as_secs()),
        }
    }
}

#[test]
fn each_client_is_told_the_time_of_its_own_token() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(2, S), start);
    let told: Vec<_> = (0..8).map(|number| rig.told(number, start)).collect();
    assert_eq!(told, [None, None, Some(1), Some(1), Some(2), Some(2), Some(3), Some(3)]);
    let mut slow = Rig::new(quota(2, 60 * S), start);
    let told: Vec<_> = (0..5).map(|number| slow.told(number, start)).collect();
    assert_eq!(told, [None, None, Some(30), Some(60), Some(90)]);
}

#[test]
fn who_comes_too_early_keeps_its_place_and_is_told_what_is_left() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(1, S), start);
    let told: Vec<_> = (0..4).map(|number| rig.told(number, start)).collect();
    assert_eq!(told, [None, Some(1), Some(2), Some(3)]);
    for _ in 0..5 {
        assert_eq!(rig.told(3, start + 500 * MS), Some(3));
    }
    assert_eq!([1, 2, 3].map(|number| rig.told(number, start + number * S)), [None; 3]);
}

#[test]
fn a_token_for_which_a_client_was_told_to_come_back_is_for_nobody_else() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(1, 10 * S), start);
    assert_eq!([0, 1].map(|number| rig.told(number, start)), [None, Some(10)]);
    for (number, wait) in [(2, 19), (3, 29), (4, 39)] {
        assert_eq!(rig.told(number, start + S), Some(wait));
    }
    let (now, bucket) = (start + 10 * S, rig.bucket(start + 10 * S));
    assert!(matches!(rig.limit.take_for_refresh(&bucket, now), TeamToken::NotBefore(_)));
    assert!(rig.told(5, now).is_some());
    assert_eq!(rig.told(1, now), None);
}

#[test]
fn a_token_that_nobody_needs_so_soon_is_free() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(1, S), start);
    // Its account was short of tokens, not its team.
    rig.limit.reserve(key(1), start + 60 * S, 1000, start);
    assert_eq!(rig.told(2, start), None);
    assert_eq!(rig.told(3, start), Some(1));
}

#[test]
fn who_is_told_and_finds_its_token_taken_waits_for_the_next_if_it_can() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(1, S), start);
    assert_eq!([0, 1, 2].map(|number| rig.told(number, start)), [None, Some(1), Some(2)]);
    // The first one is late, and takes the token of the second.
    let now = start + 1900 * MS;
    assert!(matches!(rig.ask(1, S, now), TeamToken::Taken(_)));
    let now = start + 2 * S;
    assert!(matches!(rig.ask(2, 800 * MS, now), TeamToken::NotBefore(at) if at == now + 900 * MS));
    let now = start + 3 * S;
    assert!(matches!(rig.ask(2, S, now), TeamToken::Taken(_)));
}

#[test]
fn clients_that_do_not_come_back_keep_no_tokens_from_others() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(5, S), start);
    for number in 0..200 {
        rig.told(number, start);
    }
    // After some seconds their places count for little.
    let served = (0..100).filter(|n| rig.told(1000 + n, start + 20 * S + 250 * MS * *n).is_none()).count();
    assert!(served >= 95, "{served} of 100");
}

#[test]
fn places_are_bounded() {
    let start = Instant::now();
    let mut rig = Rig::new(quota(1, S), start);
    for number in 0..50 {
        rig.limit.reserve(key(number), start + S, 20, start);
        rig.limit.reserve(key(number), start + S, 20, start);
    }
    assert_eq!(rig.limit.places.len(), 20);
    rig.limit.remove_expired(start + 4 * S);
    assert!(rig.limit.places.is_empty());
}

proptest! {
    /// Clients arrive as they like, and come back when they were told or a little later. The limit is never exceeded, and
    /// those who come back are served within two seconds.
    #[test]
    fn whoever_comes_back_is_served_within_the_limit(
        per_second in 1u32..20,
        arrivals in proptest::collection::vec(0u64..8000, 1..150),
        late in 0u64..300,
    ) {
        let start = Instant::now();
        let mut rig = Rig::new(quota(per_second, S), start);
        let mut rng = fastrand::Rng::with_seed(late);
        // What happens at a time: a client asks, for the first time or not, and until when it waits.
        let mut events: BTreeMap<(Instant, u32), (bool, Instant)> = BTreeMap::new();
        for (number, at) in arrivals.iter().enumerate() {
            let at = start + Duration::from_millis(*at);
            events.insert((at, number as u32), (false, at + 2 * S));
        }
        let (mut sent, mut back, mut served) = (Vec::new(), 0_u32, 0_u32);
        while let Some(((now, number), (is_back, until))) = events.pop_first() {
            match rig.ask(number, until.saturating_duration_since(now), now) {
                TeamToken::Taken(_) => {
                    sent.push(now);
                    served += u32::from(is_back);
                }
                TeamToken::Soon(at) => {
                    prop_assert!(at > now && at <= until);
                    events.insert((at, number), (is_back, until));
                }
                TeamToken::NotBefore(_) if is_back => {}
                TeamToken::NotBefore(at) => {
                    back += 1;
                    let at = now + whole_seconds(at - now) + Duration::from_millis(rng.u64(0..=late));
                    events.insert((at, number), (true, at + 2 * S));
                }
            }
        }
        for (i, first) in sent.iter().enumerate() {
            for (j, last) in sent.iter().enumerate().skip(i) {
                let bound = f64::from(per_second) * (1.0 + (*last - *first).as_secs_f64());
                prop_assert!((j - i + 1) as f64 <= bound + 1e-6);
            }
        }
        prop_assert!(served * 10 >= back * 9, "{} of {}", served, back);
    }
}
