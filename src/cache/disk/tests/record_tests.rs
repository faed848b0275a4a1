//! Records: what is written is read, damage is found, and no clock makes a page younger.

use super::*;

/// The age that a page has when its record is read with the `later` clocks. It was new when it was written.
fn age_after(clock: Clock, boot: Boot, later: (Clock, Boot)) -> Duration {
    let mut record = Vec::new();
    encode(&key(1), &stored(1, clock, body(1)), &ClockSnapshot::read(clock, boot), &mut record).unwrap();
    let read = decode(&key(1), &record, &ClockSnapshot::read(later.0, later.1)).unwrap();
    read.age(later.0.moment())
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_between_two_processes_makes_no_page_younger() {
    let (clock, machine) = Clock::simulation();
    let mut record = Vec::new();
    encode(&key(1), &stored(1, clock, body(1)), &ClockSnapshot::read(clock, 7), &mut record).unwrap();
    let age = |boot| {
        let clocks = ClockSnapshot::read(clock, boot);
        decode(&key(1), &record, &clocks).unwrap().age(clock.moment())
    };
    machine.suspend(HOUR);
    assert_eq!([7, 8, 0].map(age), [HOUR; 3]);
    machine.step_wall(-1800);
    assert_eq!(age(7), HOUR, "of this boot");
    assert_eq!(age(8), HOUR / 2, "of another boot, only wall time counts");
    machine.step_wall(3600);
    assert_eq!(age(7), HOUR * 3 / 2, "the older of the two");
    assert_eq!(age_after(clock, 7, (clock, 7)), Duration::ZERO);
    assert!(clock.moment() > Moment::from_nanos(0));
}

fn lifetimes() -> impl Strategy<Value = Lifetimes> {
    let part = || (0u64..1 << 40).prop_map(Duration::from_millis);
    (part(), part(), part()).prop_map(|(fresh, stale_while_revalidate, stale_if_error)| Lifetimes {
        fresh,
        stale_while_revalidate,
        stale_if_error,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        body in prop::collection::vec(any::<u8>(), 0..2000), account in any::<[u8; 16]>(), status in 100u16..1000,
        lifetimes in lifetimes(), chained in any::<bool>(), next in any::<bool>(), age in 0u64..1_000_000,
    ) {
        let clock = Clock::new();
        let clocks = ClockSnapshot::read(clock, 7);
        let made = clock.moment().before(Duration::from_millis(age));
        let kept = StoredResponse {
            representation: Arc::new(Representation { status: StatusCode::from_u16(status).unwrap(), ..page_of(body) }),
            account: AccountId(account),
            made,
            lifetimes,
            result_set: chained.then(|| ResultSet::begin(key(7), made, lifetimes)),
            next: next.then(|| key(8)),
            ..stored(1, clock, "")
        };
        let mut record = Vec::new();
        encode(&key(1), &kept, &clocks, &mut record).unwrap();
        let read = decode(&key(1), &record, &clocks).unwrap();
        prop_assert_eq!(read.made, kept.made);
        prop_assert_eq!(read.lifetimes, kept.lifetimes);
        prop_assert_eq!(&read.representation.body, &kept.representation.body);
        prop_assert_eq!(&read.representation.headers, &kept.representation.headers);
        prop_assert_eq!((read.representation.status, &read.representation.etag), (kept.representation.status, &kept.representation.etag));
        prop_assert_eq!((read.place, read.result_set), (kept.place, kept.result_set));
        prop_assert_eq!((read.next, read.settled, read.account), (kept.next, kept.settled, kept.account));
        let head = head(&record).unwrap();
        prop_assert_eq!((head.account, head.first.is_some()), (AccountId(account), chained));
        // Not under another key.
        prop_assert!(decode(&key(2), &record, &clocks).is_none());
    }

    #[test]
    fn damaged_records_are_not_read(cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bit in 0u8..8) {
        let clock = Clock::new();
        let clocks = ClockSnapshot::read(clock, 7);
        let mut record = Vec::new();
        encode(&key(1), &stored(1, clock, body(1)), &clocks, &mut record).unwrap();
        prop_assert!(decode(&key(1), &record[..cut.index(record.len())], &clocks).is_none());
        let at = flip.index(record.len());
        record[at] ^= 1 << bit;
        prop_assert!(decode(&key(1), &record, &clocks).is_none());
        head(&record);
        // Without the hash, which an attacker could compute.
        let _ = record::read_stored(&record[1 + blake3::OUT_LEN..], &clocks);
    }

    #[test]
    fn arbitrary_bytes_are_not_read(mut garbage in prop::collection::vec(any::<u8>(), 0..600)) {
        let clocks = ClockSnapshot::read(Clock::new(), 7);
        prop_assert!(decode(&key(1), &garbage, &clocks).is_none());
        let _ = record::read_stored(&garbage, &clocks);
        if let Some(version) = garbage.first_mut() {
            *version = record::VERSION;
        }
        prop_assert!(decode(&key(1), &garbage, &clocks).is_none());
        head(&garbage);
    }
}

fn page_of(body: Vec<u8>) -> Representation {
    Arc::into_inner(page(body)).unwrap()
}
