//! The key of a page. The lines of the input are account, parameters and body of one request, then of another, each
//! after the number of its operation. Two requests have the same key only if they are equal.

#![no_main]

use insights_gateway::accounts::Account;
use insights_gateway::request::key::Key;
use insights_gateway::twilio::endpoint::Operation;
use insights_gateway_fuzz::choices;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    account: String,
    operation: Operation,
    parameters: String,
    body: Vec<u8>,
}

impl Said {
    fn key(&self) -> Key {
        let account = Account { name: "main".into(), sid: self.account.clone(), origin: String::new(), ordinal: 0 };
        Key::new(&account, self.operation, &self.parameters, &self.body)
    }

    /// The same bytes, divided into parts at other places.
    fn cut_otherwise(&self, rng: &mut fastrand::Rng) -> Self {
        let all = [self.account.as_bytes(), self.parameters.as_bytes(), &self.body].concat();
        let first = rng.usize(..=all.len());
        let second = rng.usize(first..=all.len());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            account: text(&all[..first]),
            operation: self.operation,
            parameters: text(&all[first..second]),
            body: all[second..].to_vec(),
        }
    }
}

fn check(one: &Said, other: &Said) {
    let (a, b) = (one.key(), other.key());
    assert_eq!(one == other, a == b, "{one:?} and {other:?}");
    assert_eq!(a, Key::from_bytes(*a.as_bytes()));
    let (whole, short) = (a.to_string(), a.short().to_string());
    assert!(whole.len() == 64 && short.len() == 16 && whole.starts_with(&short));
}

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut said = || {
        let account = text();
        let operation = account.len() % Operation::ALL.len();
        Said { account, operation: Operation::ALL[operation], parameters: text(), body: text().into_bytes() }
    };
    let (one, other) = (said(), said());
    check(&one, &other);
    let mut rng = choices(data, 0);
    for _ in 0..4 {
        check(&one, &one.cut_otherwise(&mut rng));
    }
    for operation in Operation::ALL {
        check(&one, &Said { operation, ..one.clone() });
    }
});
