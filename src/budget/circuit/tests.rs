use super::*;

const S: Duration = Duration::from_secs(1);

/// One of several queries.
fn query(n: u32) -> Key {
    Key::from_bytes([n as u8; 32])
}

fn circuit(start: Instant) -> Circuit {
    Circuit::new(CircuitPolicy { consecutive: 10, ratio: 0.5, open: 5 * S }, start)
}

fn open_circuit(now: Instant) -> Circuit {
    let mut circuit = circuit(now);
    let opened: Vec<_> = (0..10).map(|n| circuit.failed(query(n), false, true, now)).collect();
    assert_eq!(opened.iter().position(|opened| *opened), Some(9));
    circuit
}

#[test]
fn another_process_opens_it_and_opens_it_again() {
    let start = Instant::now();
    let (mut circuit, open) = (circuit(start), CommonCircuit::Open);
    assert!(!circuit.hear(open(start + S / 20), start), "it has as good as ended");
    assert!(circuit.hear(open(start + 5 * S), start));
    assert_eq!(circuit.pass(query(1), start + S), Decision::Reject(4 * S));
    assert!(!circuit.hear(open(start + 5 * S + S / 20), start + 2 * S), "the same opening");
    assert_eq!(circuit.pass(query(1), start + 6 * S), Decision::Probe);
    assert!(circuit.hear(open(start + 9 * S), start + 6 * S), "who waits to send a probe is refused");
    assert_eq!(circuit.pass(query(1), start + 6 * S), Decision::Reject(3 * S));
    circuit.probe_lost();
    assert_eq!(circuit.pass(query(1), start + 9 * S), Decision::Probe);
}

#[test]
fn a_probe_of_another_process_closes_it_unless_the_way_from_here_fails() {
    let start = Instant::now();
    for on_the_way in [false, true] {
        let mut circuit = circuit(start);
        assert!(circuit.hear(CommonCircuit::HalfOpen, start) && !circuit.hear(CommonCircuit::HalfOpen, start));
        assert_eq!(circuit.state(start), (CircuitState::HalfOpen, Some(start)));
        assert_eq!(circuit.pass(query(1), start), Decision::Probe);
        circuit.failed(query(1), true, !on_the_way, start);
        assert!(!circuit.hear(CommonCircuit::Closed, start + S));
        assert_eq!(circuit.state(start + S).1, on_the_way.then_some(start));
        assert!((1..10).all(|n| !circuit.failed(query(n), false, true, start + S)), "counted from here on");
    }
}

#[test]
fn a_failure_on_the_way_makes_an_opening_its_own() {
    let start = Instant::now();
    for on_the_way in [None, Some(4)] {
        let mut circuit = circuit(start);
        for n in 0..10 {
            circuit.failed(query(n), false, Some(n) != on_the_way, start);
        }
        assert_eq!(circuit.state(start).0, CircuitState::Open);
        assert_eq!(circuit.opened_by_answers(), on_the_way.is_none().then_some(start + 5 * S));
    }
}

#[test]
fn failures_in_a_row_open_it_and_a_probe_closes_it() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    for n in 1..=10 {
        assert_eq!(circuit.pass(query(99), start), Decision::Allow);
        assert_eq!(circuit.failed(query(n), false, true, start), n == 10);
    }
    assert_eq!(circuit.pass(query(99), start + S), Decision::Reject(4 * S));
    assert_eq!(circuit.state(start + S), (CircuitState::Open, Some(start)));
    assert_eq!(circuit.pass(query(99), start + 5 * S), Decision::Probe);
    assert_eq!(circuit.state(start + 5 * S).0, CircuitState::HalfOpen);
    assert_eq!(circuit.pass(query(99), start + 5 * S), Decision::Reject(S), "one probe at a time");
    circuit.succeeded(true, start + 6 * S);
    assert_eq!(circuit.pass(query(99), start + 6 * S), Decision::Allow);
    assert!(!circuit.failed(query(0), false, true, start + 6 * S), "what was before is forgotten");
}

#[test]
fn one_query_that_goes_on_failing_does_not_keep_it_open_for_others() {
    let start = Instant::now();
    let mut circuit = open_circuit(start);
    let later = start + 5 * S;
    assert_eq!(circuit.pass(query(1), later), Decision::Probe);
    assert!(!circuit.failed(query(1), true, true, later));
    assert_eq!(circuit.state(later).0, CircuitState::Open);
    assert_eq!(circuit.pass(query(1), later), Decision::Reject(5 * S), "not this one again so soon");
    assert_eq!(circuit.pass(query(2), later), Decision::Probe);
    circuit.succeeded(true, later);
    assert_eq!(circuit.pass(query(1), later), Decision::Allow);
}

#[test]
fn probes_of_several_queries_that_fail_keep_it_open() {
    let start = Instant::now();
    let mut circuit = open_circuit(start);
    let later = start + 5 * S;
    let reopened: Vec<_> = (1..=3)
        .map(|n| {
            assert_eq!(circuit.pass(query(n), later), Decision::Probe);
            circuit.failed(query(n), true, true, later)
        })
        .collect();
    assert_eq!(reopened, [false, false, true]);
    assert_eq!(circuit.pass(query(9), later), Decision::Reject(5 * S));
    assert_eq!(circuit.pass(query(9), later + 5 * S), Decision::Probe);
}

#[test]
fn a_probe_that_hangs_lets_others_try() {
    let start = Instant::now();
    let mut circuit = open_circuit(start);
    let later = start + 5 * S;
    assert_eq!(circuit.pass(query(1), later), Decision::Probe);
    assert_eq!(circuit.pass(query(2), later), Decision::Reject(S));
    assert_eq!(circuit.pass(query(2), later + S), Decision::Probe);
    circuit.probe_lost();
    assert_eq!(circuit.pass(query(3), later + 2 * S), Decision::Probe);
}

#[test]
fn a_success_between_starts_the_count_anew() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    for n in 0..9 {
        assert!(!circuit.failed(query(n), false, true, start));
    }
    circuit.succeeded(false, start);
    assert!(!circuit.failed(query(9), false, true, start));
}

#[test]
fn a_share_of_failures_opens_it_once_there_are_enough() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    let mut opened_after = None;
    for n in 1..=40 {
        let now = start + n * S / 2;
        let opened = if n % 2 == 0 {
            circuit.failed(query(n), false, true, now)
        } else {
            circuit.succeeded(false, now);
            false
        };
        opened_after = opened_after.or(opened.then_some(n));
    }
    assert_eq!(opened_after, Some(20));
}

#[test]
fn old_failures_do_not_count() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    for n in 0..9 {
        assert!(!circuit.failed(query(n), false, true, start + n * S));
    }
    circuit.succeeded(false, start + 9 * S);
    for n in 0..9 {
        assert!(!circuit.failed(query(n), false, true, start + (60 + n) * S));
    }
    for _ in 0..11 {
        circuit.succeeded(false, start + 69 * S);
    }
    assert!(!circuit.failed(query(9), false, true, start + 69 * S), "10 failures of 21");
}

#[test]
fn a_probe_that_fails_or_is_lost_lets_another_try() {
    let start = Instant::now();
    let mut circuit = open_circuit(start);
    assert_eq!(circuit.pass(query(99), start + 5 * S), Decision::Probe);
    assert!(!circuit.failed(query(99), true, true, start + 7 * S));
    assert_eq!(circuit.pass(query(99), start + 8 * S), Decision::Reject(4 * S));
    assert_eq!(circuit.state(start + 8 * S), (CircuitState::Open, Some(start)), "it has been broken all the time");
    assert_eq!(circuit.pass(query(99), start + 12 * S), Decision::Probe);
    circuit.probe_lost();
    assert_eq!(circuit.pass(query(99), start + 12 * S), Decision::Probe);
    circuit.failed(query(0), false, true, start + 13 * S);
    assert_eq!(circuit.state(start + 13 * S).0, CircuitState::HalfOpen, "what was sent before says nothing new");
}

#[test]
fn a_query_that_always_fails_does_not_open_it_alone() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    for n in 0..1000 {
        // Not even together with another.
        assert!(!circuit.failed(query(n % 2), false, true, start + n * S / 100));
    }
    assert!(circuit.failed(query(2), false, true, start + 10 * S), "the third is one too many");
}

#[test]
fn a_share_of_failures_must_be_several_queries_too() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    for n in 0..700 {
        let now = start + n * S / 10;
        circuit.succeeded(false, now);
        assert!(!circuit.failed(query(0), false, true, now), "{n}");
        // Others fail as well, but not within the same half minute.
        if n % 350 == 0 {
            circuit.succeeded(false, now);
            assert!(!circuit.failed(query(1 + n / 350), false, true, now), "{n}");
        }
    }
    let end = start + 70 * S;
    let opened: Vec<_> = (7..10)
        .map(|n| {
            circuit.succeeded(false, end);
            circuit.failed(query(n), false, true, end)
        })
        .collect();
    assert_eq!(opened.iter().filter(|opened| **opened).count(), 1, "{opened:?}");
}

#[test]
fn successes_between_make_the_queries_that_fail_in_a_row_be_counted_anew() {
    let start = Instant::now();
    let mut circuit = circuit(start);
    for _ in 0..30 {
        circuit.succeeded(false, start);
    }
    for n in 0..3 {
        assert!(!circuit.failed(query(n), false, true, start));
    }
    circuit.succeeded(false, start);
    for _ in 0..15 {
        assert!(!circuit.failed(query(0), false, true, start), "of one query alone");
    }
}
