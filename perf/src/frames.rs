//! Deliveries without a sender: copies of pre-encoded assignments with a number patched in, many in one piece of memory, as a
//! NATS client's read buffer holds them.

use std::time::SystemTime;

use bytes::Bytes;
use shards::ids::Text;
use shards::map;
use shards::step::{Delivery, Headers, Origin, StreamToken};

use crate::message::{ASSIGN, STEPS, assignment, dry, id_in};

/// Deliveries handed over at once, at most.
pub(crate) const BATCH: u32 = 256;
/// Tenants of one shard.
const TENANTS: usize = 16;
/// What stands before a number, and how many hexadecimal digits the number has.
const MARKS: [(&[u8], usize); 2] = [(b"5e5e5e5e-0000-4000-8000-", 12), (b"0af7651916cd43dd8448eb21", 8)];
const REPLY: &str = "$JS.ACK.CAF_ASSIGN.perf.1.000000000000.000000000000.1790000000000000000.0";

/// What the frames ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// Assignments of echo.
    Echo,
    /// Native steps of http.request that only say what they would do.
    Plans,
}

/// One tenant's message, and where its number stands.
struct Template {
    subject: Text,
    bytes: Vec<u8>,
    /// Where, and how many digits.
    places: Vec<(usize, usize)>,
}

/// The frames of one shard, numbered from 0.
pub(crate) struct Frames {
    templates: Vec<Template>,
    next: u32,
}

impl Frames {
    /// For tenants that shard `shard` of `shards` owns.
    pub(crate) fn new(what: What, shard: u16, shards: u16) -> Self {
        let owned = |n: &u32| map::shard(map::partition(&format!("tenant-{n}")), shards) == shard;
        let template = |n: u32| match what {
            What::Echo => Template::new(Text::from_static(ASSIGN), assignment(n, u32::MAX)),
            What::Plans => {
                let tenant = format!("tenant-{n}");
                Template::new(Text::from(STEPS.replace('*', &tenant)), dry(n, &tenant))
            }
        };
        let templates = (0..).filter(owned).take(TENANTS).map(template).collect();
        Frames { templates, next: 0 }
    }

    /// The next so many, in one piece of memory.
    pub(crate) fn batch(&mut self, count: u32) -> Vec<Delivery> {
        let mut bytes = Vec::with_capacity(count as usize * 512);
        let mut ends = Vec::with_capacity(count as usize);
        for n in self.next..self.next + count {
            let template = &self.templates[n as usize % TENANTS];
            let start = bytes.len();
            bytes.extend_from_slice(&template.bytes);
            for (at, digits) in &template.places {
                write_hex(&mut bytes[start + at..start + at + digits], n);
            }
            let body_end = bytes.len();
            bytes.extend_from_slice(REPLY.as_bytes());
            ends.push((body_end, bytes.len()));
        }
        let bytes = Bytes::from(bytes);
        let mut start = 0;
        // Stored just now: an old message would have come after its time.
        let stored_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
        let deliveries = ends.into_iter().zip(self.next..).map(|((body_end, end), n)| {
            let reply = Text::try_from(bytes.slice(body_end..end)).expect("it was a string");
            let body = bytes.slice(start..body_end);
            start = end;
            let token = StreamToken { consumer: 0, sequence: u64::from(n) + 1, stored_ms, delivered: 1, reply, inherited: false };
            let subject = self.templates[n as usize % TENANTS].subject.clone();
            Delivery { origin: Origin::Stream(token), subject, headers: Headers::new(), body, reply: None }
        });
        let deliveries = deliveries.collect();
        self.next += count;
        deliveries
    }
}

impl Template {
    fn new(subject: Text, bytes: Vec<u8>) -> Self {
        let mut places = Vec::new();
        for (mark, digits) in MARKS {
            let found = bytes.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark);
            places.extend(found.map(|(at, _)| (at + mark.len(), digits)));
        }
        Template { subject, bytes, places }
    }
}

fn write_hex(digits: &mut [u8], number: u32) {
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
}

/// The number of the assignment that this result answers.
pub(crate) fn number_in(body: &[u8]) -> Option<u32> {
    // At a fixed place in the results as they are; wherever it is in others.
    const START: &[u8] = br#"{"version":"1","assignment_id":""#;
    let id = if body.starts_with(START) { body.get(START.len()..START.len() + 36)? } else { id_in(body)? };
    let digits = id.get(MARKS[0].0.len()..)?;
    digits.iter().try_fold(0_u32, |sum, digit| Some(sum << 4 | (*digit as char).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_carry_their_own_numbers_and_their_shards_tenants() {
        let mut plans = Frames::new(What::Plans, 0, 1);
        let (first, second) = (plans.batch(1).swap_remove(0), plans.batch(1).swap_remove(0));
        assert_ne!(first.subject, second.subject, "each to its tenant");
        let step: serde_json::Value = serde_json::from_slice(&second.body).expect("JSON");
        assert!(second.subject.ends_with(step["context"]["tenant_id"].as_str().expect("a string")));
        assert_eq!((number_in(&first.body), number_in(&second.body)), (Some(0), Some(1)));
        let mut frames = Frames::new(What::Echo, 1, 2);
        frames.batch(BATCH);
        let batch = frames.batch(70);
        for (delivery, n) in batch.iter().zip(BATCH..) {
            let value: serde_json::Value = serde_json::from_slice(&delivery.body).expect("JSON");
            assert_eq!(value["assignment_id"], crate::message::id(n));
            assert_eq!(value["correlation"]["trace_id"], format!("0af7651916cd43dd8448eb21{n:08x}"));
            assert_eq!(map::shard(map::partition(value["tenant_id"].as_str().expect("a string")), 2), 1);
            assert_eq!(number_in(&delivery.body), Some(n));
        }
    }
}
