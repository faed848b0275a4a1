//! The load: one thread; each connection sends a request as soon as the previous one is answered.
//!
//! It must cost less than the fastest server, or it would measure itself. So requests are changed in place, only the
//! head of a response is read, and the kernel discards the body (`MSG_TRUNC`).

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::net::RecvFlags;

use super::part::{Failure, Order, Task, Turn};
use super::process;
use super::queries::{self, Request};

/// Larger than any head. It is also larger than any body, for a receive that truncates; the kernel writes only heads.
const BUFFER: usize = 4 << 20;
const HEAD: usize = 4096;

struct Connection {
    stream: TcpStream,
    sent: Instant,
    head: Box<[u8; HEAD]>,
    filled: usize,
    /// Bytes of the body still to come, once the head is there.
    left: Option<usize>,
    good: bool,
}

/// Sends requests, and prints the [`Turn`].
pub fn run(task: &Task) -> Result<(), Failure> {
    let mut request = Request::new(task.port, task.token.as_deref());
    let draws = queries::zipf(task.distinct.max(1));
    let mut asked = 0_u64;
    let mut next = |request: &mut Request, stream: &mut TcpStream| {
        let number = match task.order {
            Order::Zipf => u64::from(draws[asked as usize % draws.len()]),
            Order::Counting => task.first + asked,
        };
        asked += 1;
        stream.write_all(request.numbered(number))
    };

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for index in 0..task.clients {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, task.port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(&epoll, &stream, epoll::EventData::new_u64(u64::from(index)), epoll::EventFlags::IN)?;
        let head = Box::new([0; HEAD]);
        connections.push(Connection { stream, sent: Instant::now(), head, filled: 0, left: None, good: true });
    }

    let mut latencies: Vec<u32> = Vec::with_capacity(4 << 20);
    let (mut wrong, mut scratch) = (0, vec![0_u8; BUFFER]);
    let mut events = Vec::with_capacity(256);
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut reader = HeadReader::default();
    let busy_before = process::cpu_seconds_of_self()?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(task.time);
    let expected = |answered: usize| task.count.saturating_sub(answered as u64);
    for connection in connections.iter_mut().take(usize::try_from(task.count).unwrap_or(usize::MAX)) {
        connection.sent = Instant::now();
        next(&mut request, &mut connection.stream)?;
    }
    let mut under_way = (task.clients as u64).min(task.count);
    let mut last = begun;
    while last < end && expected(latencies.len()) > 0 {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&patience))?;
        last = Instant::now();
        for event in &events {
            let connection = &mut connections[event.data.u64() as usize];
            if !connection.receive(&mut reader, task.size, &mut scratch)? {
                continue;
            }
            last = Instant::now();
            latencies.push(u32::try_from((last - connection.sent).as_nanos()).unwrap_or(u32::MAX));
            wrong += u64::from(!connection.good);
            connection.sent = last;
            under_way -= 1;
            if expected(latencies.len()) > under_way {
                next(&mut request, &mut connection.stream)?;
                under_way += 1;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let load_busy = (process::cpu_seconds_of_self()? - busy_before) / seconds * 100.0;
    latencies.sort_unstable();
    let quantile = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(f64::NAN, |&ns| f64::from(ns) / 1e3)
    };
    let (p50, p99, answers) = (quantile(0.5), quantile(0.99), latencies.len() as u64);
    if answers == 0 {
        return Err("not one answer".into());
    }
    println!("{}", serde_json::to_string(&Turn { answers, wrong, seconds, p50, p99, load_busy })?);
    Ok(())
}

impl Connection {
    /// Takes the bytes that came; true when they end a response.
    fn receive(&mut self, reader: &mut HeadReader, size: usize, scratch: &mut [u8]) -> Result<bool, Failure> {
        loop {
            let received = match self.left {
                Some(left) => {
                    let room = left.min(scratch.len());
                    rustix::net::recv(&self.stream, &mut scratch[..room], RecvFlags::TRUNC)
                        .map(|(_, received)| received)
                        .map_err(std::io::Error::from)
                }
                None => self.stream.read(&mut self.head[self.filled..]),
            };
            let received = match received {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            match &mut self.left {
                Some(left) => *left -= received,
                None => {
                    self.filled += received;
                    let Some(head) = reader.read(&self.head[..self.filled]) else {
                        if self.filled == HEAD {
                            return Err("the head of an answer is too long, or has no content-length".into());
                        }
                        continue;
                    };
                    self.good = head.ok && head.body == size;
                    self.left = Some((head.end + head.body).saturating_sub(self.filled));
                }
            }
            if self.left == Some(0) {
                (self.left, self.filled) = (None, 0);
                return Ok(true);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Head {
    end: usize,
    ok: bool,
    body: usize,
}

/// Finds the end of a head and its `content-length`. Both are nearly always at the same offsets as last time.
#[derive(Debug, Default)]
struct HeadReader {
    end: usize,
    length_line: std::ops::Range<usize>,
    length_text: Vec<u8>,
    body: usize,
}

impl HeadReader {
    fn read(&mut self, bytes: &[u8]) -> Option<Head> {
        let ok = bytes.get(9..12) == Some(b"200");
        let as_before = self.end > 4
            && bytes.get(self.end - 4..self.end) == Some(b"\r\n\r\n")
            && bytes.get(self.length_line.clone()) == Some(self.length_text.as_slice());
        if as_before {
            return Some(Head { end: self.end, ok, body: self.body });
        }
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let mut at = 0;
        for line in bytes[..end].split_inclusive(|byte| *byte == b'\n') {
            let line_at = at..at + line.len();
            at = line_at.end;
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            if line[..colon].eq_ignore_ascii_case(b"content-length") {
                let body = std::str::from_utf8(&line[colon + 1..]).ok()?.trim().parse().ok()?;
                *self = Self { end, length_line: line_at, length_text: line.to_vec(), body };
                return Some(Head { end, ok, body });
            }
        }
        None
    }
}
