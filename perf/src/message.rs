//! The messages of a measurement: assignments of about 400 bytes whose ids are numbers, and how to read a number back.

/// Where assignments go.
pub(crate) const ASSIGN: &str = "caf.exec.assign.v1";
/// Where ack messages go.
pub(crate) const ACK: &str = "caf.exec.assign.v1.ack";
/// Where results come.
pub(crate) const RESULT: &str = "caf.exec.result.v1";

/// The id of assignment `n`: a UUIDv4 to look at.
pub(crate) fn id(n: u32) -> String {
    format!("5e5e5e5e-0000-4000-8000-{n:012x}")
}

/// Assignment `n`, of one of so many tenants.
pub(crate) fn assignment(n: u32, tenants: u32) -> Vec<u8> {
    let tenant = n % tenants.max(1);
    format!(
        concat!(
            r#"{{"version":"1","assignment_id":"{id}","request_id":"{id}","tenant_id":"tenant-{tenant}","#,
            r#""executor":{{"provider_id":"endstation","channel":"nats"}},"#,
            r#""job":{{"type":"echo","payload":{{"text":"the quick brown fox jumps"}}}},"#,
            r#""options":{{"priority":50,"deadline_ms":60000}},"#,
            r#""correlation":{{"trace_id":"0af7651916cd43dd8448eb21{n:08x}"}},"metadata":{{"source":"perf"}}}}"#
        ),
        id = id(n),
        tenant = tenant,
        n = n
    )
    .into_bytes()
}

/// The bytes between the quotes of the first `assignment_id`.
pub(crate) fn id_in(body: &[u8]) -> Option<&[u8]> {
    const KEY: &[u8] = br#""assignment_id":""#;
    let start = body.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let length = body[start..].iter().position(|byte| *byte == b'"')?;
    Some(&body[start..start + length])
}

/// The number of the assignment that this result answers, and whether it is a success.
pub(crate) fn answered(body: &[u8]) -> Option<(u32, bool)> {
    let id = std::str::from_utf8(id_in(body)?).ok()?;
    let n = u32::from_str_radix(id.rsplit_once('-')?.1, 16).ok()?;
    const GOOD: &[u8] = br#""status":"success""#;
    Some((n, body.windows(GOOD.len()).any(|window| window == GOOD)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_json_of_about_400_bytes_and_its_number_comes_back() {
        let body = assignment(70_000, 16);
        assert!((380..=440).contains(&body.len()), "{} bytes", body.len());
        let value: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
        assert_eq!(value["tenant_id"], "tenant-0");
        assert_eq!(answered(&body), Some((70_000, false)));
    }
}
