//! One exchange with a store from its beginning to its end, on the stores' thread. Whoever waits for it may go at any time: then
//! it is given up, and what was written of an object goes with it.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use opendal::{Buffer, Metadata, Writer};
use tokio::sync::{mpsc, oneshot};

use super::error::{StoreError, Trouble};
use super::service::Service;
use super::{Answer, Found, Load, PIECE_BYTES_MAX, Piece};

/// A part of a large object, in bytes: the least that S3 takes, and 10,000 of them hold what an object may.
pub(super) const PART_BYTES: usize = 5 << 20;
const _: () = assert!(PART_BYTES as u64 * 10_000 >= super::OBJECT_BYTES_MAX);
/// How long an upload that has only begun may still take to be known by its name, so that it can be given up properly.
const GRACE: Duration = Duration::from_secs(2);
/// How long giving up may take.
const ABORT_WAIT: Duration = Duration::from_secs(10);

/// Ends with `work`, or once nobody waits any more; then `work` still has `grace`.
async fn while_awaited<T, W>(answer: &mut oneshot::Sender<T>, grace: Duration, work: impl Future<Output = W>) -> Option<W> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return Some(done),
        () = answer.closed() => {}
    }
    tokio::time::timeout(grace, work).await.ok()
}

/// What stands under a key; nothing is told from nothing in a bucket that is not there.
pub(super) async fn look(service: &Service, key: &str, mut answer: Answer<Option<Found>>) {
    let operator = &service.operator;
    let looking = async {
        let error = match operator.stat(key).await {
            Ok(found) => return Ok(Some(Found::of(&found))),
            Err(error) => StoreError::of(&error, true, &service.redaction),
        };
        if error.trouble != Trouble::Missing {
            return Err(error);
        }
        match operator.lister_with(key).limit(1).await {
            Err(error) => {
                let error = StoreError::of(&error, true, &service.redaction);
                if error.trouble == Trouble::Setup { Err(error) } else { Ok(None) }
            }
            Ok(mut list) => match list.try_next().await.map_err(|error| StoreError::of(&error, true, &service.redaction)) {
                Err(error) if error.trouble == Trouble::Setup => Err(error),
                // Whoever may not list may still read.
                _ => Ok(None),
            },
        }
    };
    if let Some(found) = while_awaited(&mut answer, Duration::ZERO, looking).await {
        let _ = answer.send(found);
    }
}

/// The sum of all sizes under a prefix, in bytes.
pub(super) async fn measure(service: &Service, prefix: &str, mut answer: Answer<u64>) {
    let told = |error: opendal::Error| StoreError::of(&error, true, &service.redaction);
    let measuring = async {
        let operator = &service.operator;
        let mut list = match operator.lister_with(prefix).recursive(true).await {
            Ok(list) => list,
            Err(error) => match told(error) {
                StoreError { trouble: Trouble::Missing, .. } => return Ok(0),
                error => return Err(error),
            },
        };
        let mut sum = 0_u64;
        while let Some(entry) = list.try_next().await.map_err(told)? {
            sum += match entry.metadata().mode() {
                opendal::EntryMode::FILE => entry.metadata().content_length(),
                opendal::EntryMode::DIR => 0,
                // A store that lists names alone.
                _ => operator.stat(entry.path()).await.map_or(0, |found| found.content_length()),
            };
        }
        Ok(sum)
    };
    if let Some(sum) = while_awaited(&mut answer, Duration::ZERO, measuring).await {
        let _ = answer.send(sum);
    }
}

/// The bytes of an object, piece by piece, as fast as they are taken.
pub(super) async fn read(
    service: &Service,
    key: &str,
    range: Range<u64>,
    etag: Option<&str>,
    pieces: mpsc::Sender<Result<Bytes, StoreError>>,
) {
    let reading = async {
        let mut reader = service.operator.reader_with(key);
        if let Some(etag) = etag.filter(|_| service.operator.info().capability().read_with_if_match) {
            reader = reader.if_match(etag);
        }
        let mut stream = reader.await?.into_stream(range).await?;
        // Not every server keeps to the condition, so what it answers with is compared, too.
        match (etag, stream.metadata().await) {
            (Some(etag), Ok(found)) if found.etag().is_some_and(|other| other != etag) => {
                return Err(StoreError::changed().into());
            }
            (_, Err(error)) if error.kind() != opendal::ErrorKind::Unsupported => return Err(error),
            _ => {}
        }
        while let Some(buffer) = stream.try_next().await? {
            for mut bytes in buffer {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
                    if pieces.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok::<(), opendal::Error>(())
    };
    let done = tokio::select! {
        biased;
        done = reading => done,
        () = pieces.closed() => return,
    };
    if let Err(error) = done {
        let _ = pieces.send(Err(StoreError::of(&error, true, &service.redaction))).await;
    }
}

/// Writes an object out of the pieces that come; it appears whole, at the end, or not at all.
pub(super) async fn write(
    service: &Service,
    key: &str,
    if_absent: bool,
    mut pieces: mpsc::Receiver<Piece>,
    mut answer: Answer<Found>,
    load: &Arc<Load>,
) {
    let told = |error: opendal::Error, sent: bool| {
        let error = StoreError::of(&error, false, &service.redaction);
        // Before the end nothing of it can be seen.
        StoreError { sent: error.sent && sent, ..error }
    };
    let opening = service.operator.writer_with(key).if_not_exists(if_absent).await;
    let writer = match opening {
        Ok(writer) => writer,
        Err(error) => return drop(answer.send(Err(told(error, false)))),
    };
    let mut upload = Upload { writer, part: Vec::new(), part_bytes: 0, handed: 0, parts: 0, held: Held { load, bytes: 0 } };
    // Some stores take an object in one piece only.
    let whole = !service.operator.info().capability().write_can_multi;
    let result = upload.run(&mut pieces, &mut answer, whole).await;
    match result {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            upload.give_up().await;
            return drop(answer.send(Err(told(error, false))));
        }
        None => return upload.give_up().await,
    }
    match while_awaited(&mut answer, Duration::ZERO, upload.writer.close()).await {
        Some(Ok(found)) => {
            fail::fail_point!("C3", |_| std::process::abort());
            let _ = answer.send(Ok(Found::of(&found)));
        }
        Some(Err(error)) => {
            let error = told(error, true);
            upload.give_up().await;
            let _ = answer.send(Err(error));
        }
        None => upload.give_up().await,
    }
}

struct Upload<'a> {
    writer: Writer,
    /// What is collected for the next part.
    part: Vec<Bytes>,
    part_bytes: usize,
    /// What the library holds of the last part until it has another.
    handed: usize,
    parts: u32,
    held: Held<'a>,
}

impl Upload<'_> {
    /// Takes pieces until their end; none: nobody waits any more.
    async fn run(
        &mut self,
        pieces: &mut mpsc::Receiver<Piece>,
        answer: &mut Answer<Found>,
        whole: bool,
    ) -> Option<opendal::Result<()>> {
        loop {
            if answer.is_closed() {
                return None;
            }
            match pieces.recv().await {
                None => return None,
                Some(Piece::End) => break,
                Some(Piece::Data(mut bytes)) => {
                    while !bytes.is_empty() {
                        let room = if whole { bytes.len() } else { PART_BYTES - self.part_bytes };
                        let piece = bytes.split_to(bytes.len().min(room));
                        self.part_bytes += piece.len();
                        self.held.add(piece.len());
                        self.part.push(piece);
                        if !whole
                            && self.part_bytes == PART_BYTES
                            && let Err(error) = self.hand_over(answer).await?
                        {
                            return Some(Err(error));
                        }
                    }
                }
            }
        }
        if self.part_bytes > 0 {
            return self.hand_over(answer).await;
        }
        Some(Ok(()))
    }

    async fn hand_over(&mut self, answer: &mut Answer<Found>) -> Option<opendal::Result<()>> {
        let part = Buffer::from(std::mem::take(&mut self.part));
        let bytes = std::mem::take(&mut self.part_bytes);
        self.parts += 1;
        // The second part is what begins an upload in parts.
        let grace = if self.parts == 2 { GRACE } else { Duration::ZERO };
        let done = while_awaited(answer, grace, self.writer.write(part)).await;
        self.held.give_back(std::mem::replace(&mut self.handed, bytes));
        done
    }

    /// Takes back what the store has of it, as far as it can be reached.
    async fn give_up(mut self) {
        let _ = tokio::time::timeout(ABORT_WAIT, self.writer.abort()).await;
    }
}

/// What an upload keeps of the thread's memory.
struct Held<'a> {
    load: &'a Load,
    bytes: u64,
}

impl Held<'_> {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        let now = self.load.bytes.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        self.load.bytes_peak.fetch_max(now, Relaxed);
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes as u64;
        self.load.bytes.fetch_sub(bytes as u64, Relaxed);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

impl Found {
    fn of(metadata: &Metadata) -> Found {
        Found { size: metadata.content_length(), etag: metadata.etag().map(str::to_owned) }
    }
}
