//! Reads lines on a thread of its own, so that a slow pipe holds up no result and no step.

use std::io::{self, BufRead, BufReader, Read};

use flume::{Receiver, Sender};

/// A line longer than this is an error of the file, not a step.
const LINE_BYTES_MAX: usize = shards::limits::MESSAGE_BYTES_MAX;
/// Most lines that travel together.
const BATCH_LINES_MAX: usize = 64;
/// Batches that wait for the feeder: what a file may be ahead of it.
const BATCHES_MAX: usize = 16;

/// Lines by their number, from 1, blank ones left out; or the number of the line that could not be read, and why.
pub(crate) type Lines = Result<Vec<(u64, Vec<u8>)>, (u64, io::Error)>;

/// Starts reading. The channel closes at the end of the input, or after an error.
///
/// # Errors
/// The system has no thread for it.
pub(crate) fn read(input: impl Read + Send + 'static) -> io::Result<Receiver<Lines>> {
    let (to, from) = flume::bounded(BATCHES_MAX);
    std::thread::Builder::new().name("lines".into()).spawn(move || {
        let mut input = BufReader::with_capacity(64 << 10, input);
        if let Err(error) = send_all(&mut input, &to) {
            let _ = to.send(Err(error));
        }
    })?;
    Ok(from)
}

/// What is there already travels together; a line that must be waited for holds up none before it.
fn send_all(input: &mut BufReader<impl Read>, to: &Sender<Lines>) -> Result<(), (u64, io::Error)> {
    let mut batch = Vec::new();
    for number in 1.. {
        let mut text = Vec::new();
        let more = read_line(input, &mut text).map_err(|error| (number, error))?;
        if !text.iter().all(u8::is_ascii_whitespace) {
            batch.push((number, text));
        }
        let waits = !input.buffer().contains(&b'\n');
        if !batch.is_empty()
            && (waits || !more || batch.len() >= BATCH_LINES_MAX)
            && to.send(Ok(std::mem::take(&mut batch))).is_err()
        {
            return Ok(());
        }
        if !more {
            break;
        }
    }
    Ok(())
}

/// Reads one line without its end; false at the end of the input.
fn read_line(input: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    let read = input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', text)?;
    if text.len() > LINE_BYTES_MAX {
        let rule = format!("longer than {LINE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, rule));
    }
    while text.last().is_some_and(|byte| *byte == b'\n' || *byte == b'\r') {
        text.pop();
    }
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Vec<(u64, String)> {
        let from = read(text.as_bytes()).expect("a thread");
        let all = from.into_iter().flat_map(|lines| lines.expect("no line is too long"));
        all.map(|(number, text)| (number, String::from_utf8(text).expect("it was text"))).collect()
    }

    #[test]
    fn lines_keep_their_numbers_and_blank_ones_are_left_out() {
        let own = |list: &[(u64, &str)]| list.iter().map(|(n, text)| (*n, (*text).to_owned())).collect::<Vec<_>>();
        assert_eq!(lines("a\r\n\n  \nb"), own(&[(1, "a"), (4, "b")]));
        assert_eq!(lines(""), own(&[]));
        assert_eq!(lines("a\n".repeat(200).leak()).len(), 200);
    }

    #[test]
    fn a_line_travels_before_the_next_one_is_there() -> anyhow::Result<()> {
        use std::io::Write;
        let (input, mut pipe) = io::pipe()?;
        let from = read(input)?;
        pipe.write_all(b"first\n")?;
        let batch = from.recv_timeout(std::time::Duration::from_secs(5))?;
        assert_eq!(batch.expect("a line"), [(1, b"first".to_vec())]);
        Ok(())
    }
}
