//! Jobs that wait, put together: by kind and size, under a bound of memory and number, no longer than a job may wait for
//! others. Pure: knows no device and no clock, time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// What a device does for a job. Jobs of one kind share kernels. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SHA-256 of buffers.
    Sha256,
    /// BLAKE3 of buffers.
    Blake3,
    /// Operations on images.
    Render,
}

/// Jobs of one class may share a batch. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// What is done.
    pub kind: Kind,
    /// How large it is: a class spans four times its smallest size, so that a small job does not wait for a long one's end.
    pub size: u8,
}

impl Class {
    /// The class of work that is `bytes` large at its largest piece.
    pub fn of(kind: Kind, bytes: u64) -> Class {
        Class { kind, size: (bytes.max(1).ilog2() / 2) as u8 }
    }
}

/// How batches are made. Shared, never changes.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Memory of the jobs of one batch together, in bytes.
    pub bytes_max: u64,
    /// Jobs of one batch.
    pub jobs_max: usize,
    /// How long a job may wait for others.
    pub wait: Duration,
}

struct Waiting<T> {
    since: Instant,
    bytes: u64,
    item: T,
}

#[derive(Default)]
struct Queue<T> {
    jobs: VecDeque<Waiting<T>>,
    bytes: u64,
}

/// Jobs that wait. Lives on the group's threads, one at a time.
pub struct Batcher<T> {
    rules: Rules,
    queues: BTreeMap<Class, Queue<T>>,
}

impl<T> Batcher<T> {
    /// None wait.
    pub fn new(rules: Rules) -> Batcher<T> {
        Batcher { rules, queues: BTreeMap::new() }
    }

    /// One more, which takes `bytes` of a device's memory. It came at `now`.
    ///
    /// # Errors
    /// It is larger than a batch may be, and is given back.
    pub fn put(&mut self, now: Instant, class: Class, bytes: u64, item: T) -> Result<(), T> {
        if bytes > self.rules.bytes_max {
            return Err(item);
        }
        let queue = self.queues.entry(class).or_insert_with(|| Queue { jobs: VecDeque::new(), bytes: 0 });
        queue.bytes = queue.bytes.saturating_add(bytes);
        queue.jobs.push_back(Waiting { since: now, bytes, item });
        Ok(())
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// When the next batch is ready, if none comes to fill one before that; not after `now` where one is ready.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.queues.values().filter_map(|queue| self.ready_at(queue, now)).min()
    }

    /// A batch that is ready; of several, the one whose first job came first.
    pub fn take(&mut self, now: Instant) -> Option<Vec<T>> {
        let ready = self.queues.iter().filter(|(_, queue)| self.ready_at(queue, now).is_some_and(|at| at <= now));
        let class = *ready.min_by_key(|(_, queue)| queue.jobs.front().map(|job| job.since))?.0;
        Some(self.cut(class))
    }

    /// The oldest batch, whether it is ready or not: there is nothing more to wait for.
    pub fn flush(&mut self) -> Option<Vec<T>> {
        let class = *self.queues.iter().min_by_key(|(_, queue)| queue.jobs.front().map(|job| job.since))?.0;
        Some(self.cut(class))
    }

    fn ready_at(&self, queue: &Queue<T>, now: Instant) -> Option<Instant> {
        let first = queue.jobs.front()?.since;
        let full = queue.jobs.len() >= self.rules.jobs_max || queue.bytes >= self.rules.bytes_max;
        // A sum that does not exist is a wait without an end: such a job waits for company.
        if full { Some(now.min(first)) } else { first.checked_add(self.rules.wait) }
    }

    /// In the order in which they came, as many as fit. The first always does.
    fn cut(&mut self, class: Class) -> Vec<T> {
        let Some(queue) = self.queues.get_mut(&class) else { return Vec::new() };
        let (mut batch, mut bytes) = (Vec::new(), 0_u64);
        while let Some(job) = queue.jobs.front() {
            let more = bytes.saturating_add(job.bytes);
            if !batch.is_empty() && (more > self.rules.bytes_max || batch.len() >= self.rules.jobs_max) {
                break;
            }
            let Some(job) = queue.jobs.pop_front() else { break };
            bytes = more;
            queue.bytes = queue.bytes.saturating_sub(job.bytes);
            batch.push(job.item);
        }
        if queue.jobs.is_empty() {
            self.queues.remove(&class);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const RULES: Rules = Rules { bytes_max: 100, jobs_max: 4, wait: Duration::from_millis(5) };
    const SMALL: Class = Class { kind: Kind::Sha256, size: 1 };
    const LARGE: Class = Class { kind: Kind::Sha256, size: 9 };
    const IMAGE: Class = Class { kind: Kind::Render, size: 1 };

    fn ms(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_job_alone_is_ready_after_its_wait() {
        let (start, mut batcher) = (Instant::now(), Batcher::new(RULES));
        assert_eq!(batcher.due(start), None);
        batcher.put(start, SMALL, 1, 'a').unwrap();
        assert_eq!(batcher.due(start), Some(ms(start, 5)));
        assert_eq!(batcher.take(ms(start, 4)), None);
        assert_eq!(batcher.take(ms(start, 5)), Some(vec!['a']));
        assert!(batcher.is_empty());
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let (start, mut batcher) = (Instant::now(), Batcher::new(RULES));
        for job in 0..5 {
            batcher.put(start, SMALL, 1, job).unwrap();
        }
        assert_eq!(batcher.take(start), Some(vec![0, 1, 2, 3]));
        assert_eq!(batcher.take(start), None);
        batcher.put(start, IMAGE, 60, 7).unwrap();
        batcher.put(start, IMAGE, 60, 8).unwrap();
        assert!(batcher.due(start).is_some_and(|at| at <= start));
        assert_eq!(batcher.take(start), Some(vec![7]), "two do not fit together");
    }

    #[test]
    fn classes_do_not_mix_and_the_oldest_goes_first() {
        let (start, mut batcher) = (Instant::now(), Batcher::new(RULES));
        batcher.put(ms(start, 1), SMALL, 1, 'b').unwrap();
        batcher.put(start, LARGE, 1, 'a').unwrap();
        batcher.put(ms(start, 2), IMAGE, 1, 'c').unwrap();
        batcher.put(ms(start, 3), SMALL, 1, 'd').unwrap();
        let late = ms(start, 50);
        assert_eq!(batcher.take(late), Some(vec!['a']));
        assert_eq!(batcher.take(late), Some(vec!['b', 'd']));
        assert_eq!(batcher.take(late), Some(vec!['c']));
        assert_eq!(batcher.take(late), None);
    }

    #[test]
    fn what_is_larger_than_a_batch_is_given_back() {
        let mut batcher = Batcher::new(RULES);
        assert_eq!(batcher.put(Instant::now(), SMALL, 101, 'x'), Err('x'));
        assert!(batcher.is_empty());
    }

    #[test]
    fn no_batch_exceeds_its_bounds_and_every_job_comes_out_once_in_its_class_order() {
        let mut random = Random(7);
        for _ in 0..200 {
            let (start, mut batcher) = (Instant::now(), Batcher::new(RULES));
            let jobs: Vec<(Class, u64, usize)> = (0..random.below(60) as usize)
                .map(|n| ([SMALL, LARGE, IMAGE][random.below(3) as usize], u64::from(random.below(101)), n))
                .collect();
            let (mut out, mut at) = (Vec::new(), start);
            for job in &jobs {
                batcher.put(at, job.0, job.1, *job).unwrap();
                at += Duration::from_millis(u64::from(random.below(4)));
                if random.below(3) == 0 {
                    out.extend(batcher.take(at));
                }
            }
            while let Some(batch) = batcher.flush() {
                out.push(batch);
            }
            for batch in &out {
                assert!(!batch.is_empty() && batch.len() <= RULES.jobs_max);
                assert!(batch.iter().map(|job| job.1).sum::<u64>() <= RULES.bytes_max);
                assert!(batch.iter().all(|job| job.0 == batch[0].0));
            }
            for class in [SMALL, LARGE, IMAGE] {
                let came: Vec<usize> = jobs.iter().filter(|job| job.0 == class).map(|job| job.2).collect();
                let went: Vec<usize> = out.iter().flatten().filter(|job| job.0 == class).map(|job| job.2).collect();
                assert_eq!(came, went);
            }
        }
    }
}
