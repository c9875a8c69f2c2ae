//! Reads the reply subject of a JetStream delivery: where it stands in its stream, and what settles it.

use shards::ids::Text;
use shards::step::StreamToken;

/// Parses `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>`, or the longer form
/// `$JS.ACK.<domain>.<account>.<stream>.…[.<random>]` of newer servers. `None` for anything else.
pub(crate) fn parse(reply: &str, consumer: u16) -> Option<StreamToken> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    // From the left by count: the stream and consumer are names without dots.
    let mut fields = [""; 10];
    let mut count = 0;
    for field in rest.split('.') {
        *fields.get_mut(count)? = field;
        count += 1;
    }
    let first = match count {
        7 => 2,
        9 | 10 => 4,
        _ => return None,
    };
    let delivered: u64 = fields[first].parse().ok()?;
    let stored_ns: u64 = fields[first + 3].parse().ok()?;
    Some(StreamToken {
        consumer,
        sequence: fields[first + 1].parse().ok()?,
        stored_ms: stored_ns / 1_000_000,
        delivered: u32::try_from(delivered).unwrap_or(u32::MAX),
        reply: Text::from(reply),
        inherited: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reply: &str) -> Option<(u64, u64, u32)> {
        parse(reply, 3).map(|token| {
            assert_eq!((token.consumer, &*token.reply), (3, reply));
            (token.sequence, token.stored_ms, token.delivered)
        })
    }

    #[test]
    fn a_delivery_says_its_sequence_time_and_count() {
        assert_eq!(read("$JS.ACK.CAF.endstation.2.77.5.1700000000123456789.0"), Some((77, 1_700_000_000_123, 2)));
    }

    #[test]
    fn the_longer_forms_of_newer_servers_mean_the_same() {
        let expected = Some((77, 1_700_000_000_123, 2));
        assert_eq!(read("$JS.ACK._.acc.CAF.endstation.2.77.5.1700000000123456789.0"), expected);
        assert_eq!(read("$JS.ACK.hub.acc.CAF.endstation.2.77.5.1700000000123456789.0.r4nd"), expected);
    }

    #[test]
    fn anything_else_is_no_delivery() {
        for reply in
            ["", "_INBOX.x.1", "$JS.ACK.", "$JS.ACK.a.b.1.2.3.4", "$JS.ACK.a.b.x.77.5.1.0", "$JS.ACK.a.b.1.2.3.4.5.6.7.8.9"]
        {
            assert_eq!(read(reply), None, "{reply}");
        }
    }
}
