//! The messages of a measurement: assignments and native steps of about 400 bytes whose ids are numbers, and how to read a
//! number back.

/// Where assignments go.
pub(crate) const ASSIGN: &str = "caf.exec.assign.v1";
/// Where ack messages go.
pub(crate) const ACK: &str = "caf.exec.assign.v1.ack";
/// Where results come.
pub(crate) const RESULT: &str = "caf.exec.result.v1";
/// Where native steps go, of all tenants.
pub(crate) const STEPS: &str = "beamline.worker.steps.v1.*";
/// Where their results come, each on the subject of its key.
pub(crate) const RESULTS: &str = "beamline.worker.results.v1.*.*";

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Nothing.
    Echo,
    /// A GET at the place (`place`), by a connector.
    HttpGet,
    /// A POST of some hundred bytes there; never run twice.
    HttpPost,
    /// A new blob of some hundred bytes.
    BlobPut,
    /// One that is there.
    BlobGet,
    /// The digest of [`LARGE`].
    HashLarge,
    /// A GET whose answer comes one byte a second.
    HttpSlow,
    /// A GET of a large answer, into a blob.
    HttpLarge,
    /// One row by its key, of a server's table.
    SqlSelect,
    /// A row inserted there, with the record of its step.
    SqlWrite,
    /// The same without; never run twice.
    SqlPlain,
    /// Two people are asked, who say nothing.
    Approval,
}

/// A blob that keeps a compute thread for about a second, and its size in bytes.
pub(crate) const LARGE: (&str, u64) = ("large.bin", 1 << 30);
/// Steps that wait for people, at once.
pub(crate) const WAITING: u32 = 100_000;
/// Whose steps run beside those that are measured.
pub(crate) const LOUD: &str = "loud";
/// The first number of these: below it are those that are measured.
pub(crate) const BESIDE: u32 = 1 << 31;

/// The blob that every tenant has, and what is in it.
pub(crate) const BLOB: (&str, &str) = ("there.txt", "the quick brown fox jumps over the lazy dog\n");

impl Job {
    /// Its block and its inputs as step `n`.
    fn spelt(self, n: u32) -> (&'static str, String) {
        match self {
            Job::Echo => ("echo", r#"{"text":"the quick brown fox jumps"}"#.to_owned()),
            Job::HttpGet => ("http.request", r#"{"connector":"place","path":"/fox"}"#.to_owned()),
            Job::HttpPost => {
                let text = BLOB.1.trim().repeat(8);
                ("http.request", format!(r#"{{"connector":"place","path":"/fox","method":"POST","text":"{text}"}}"#))
            }
            Job::BlobPut => {
                let text = BLOB.1.trim().repeat(8);
                ("fs.blob_put", format!(r#"{{"path":"{}/{n}.txt","content":"{text}"}}"#, n % 64))
            }
            Job::BlobGet => ("fs.blob_get", format!(r#"{{"path":"{}"}}"#, BLOB.0)),
            Job::HashLarge => ("crypto.hash", format!(r#"{{"path":"{}"}}"#, LARGE.0)),
            Job::HttpSlow => ("http.request", r#"{"connector":"place","path":"/slow"}"#.to_owned()),
            Job::SqlSelect => {
                let inputs =
                    format!(r#"{{"connector":"crm","sql":"{}","params":[{}]}}"#, crate::sql::SELECT, n % crate::sql::ROWS);
                ("sql.query", inputs)
            }
            Job::SqlWrite | Job::SqlPlain => {
                let connector = if self == Job::SqlWrite { "crm" } else { "plain" };
                let sql = crate::sql::INSERT;
                ("sql.query", format!(r#"{{"connector":"{connector}","mode":"write","sql":"{sql}","params":[{n},"visited"]}}"#))
            }
            Job::Approval => {
                let asks = r#""title":"Ship the order?","approvers":["ann","bob"],"quorum":1,"deadline_ms":86400000,"on_timeout":"reject""#;
                ("human.approval", format!(r#"{{{asks},"details":{{"order":{n},"total":"120.50 EUR"}}}}"#))
            }
            Job::HttpLarge => {
                let to = format!("got/{n}");
                let inputs = format!(r#"{{"connector":"place","path":"/large","response":"blob","response_blob":"{to}"}}"#);
                ("http.request", inputs)
            }
        }
    }
}

/// How steps are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As assignments, all on one subject; so are their results.
    Assignment(Job),
    /// Natively, in JSON.
    Native,
}

impl Form {
    /// Where step `n` goes.
    pub(crate) fn subject(self, n: u32, tenants: u32) -> String {
        match self {
            Form::Assignment(_) => ASSIGN.to_owned(),
            Form::Native => STEPS.replace('*', &format!("tenant-{}", n % tenants.max(1))),
        }
    }

    /// Step `n`, of one of so many tenants.
    pub(crate) fn body(self, n: u32, tenants: u32) -> Vec<u8> {
        match self {
            Form::Assignment(job) => spelt(job, n, tenants),
            Form::Native => native(n, tenants),
        }
    }

    /// Where results come.
    pub(crate) fn results(self) -> &'static str {
        match self {
            Form::Assignment(_) => RESULT,
            Form::Native => RESULTS,
        }
    }
}

/// The id of assignment `n`: a UUIDv4 to look at.
pub(crate) fn id(n: u32) -> String {
    format!("5e5e5e5e-0000-4000-8000-{n:012x}")
}

/// Assignment `n`, of one of so many tenants.
pub(crate) fn assignment(n: u32, tenants: u32) -> Vec<u8> {
    spelt(Job::Echo, n, tenants)
}

/// Assignment `n` of those that run beside: it has all the time that it wants.
pub(crate) fn beside(job: Job, n: u32) -> Vec<u8> {
    assigned(job, BESIDE + n, LOUD, 600_000)
}

fn spelt(job: Job, n: u32, tenants: u32) -> Vec<u8> {
    assigned(job, n, &format!("tenant-{}", n % tenants.max(1)), 60_000)
}

fn assigned(job: Job, n: u32, tenant: &str, deadline_ms: u32) -> Vec<u8> {
    let (block, payload) = job.spelt(n);
    format!(
        concat!(
            r#"{{"version":"1","assignment_id":"{id}","request_id":"{id}","tenant_id":"{tenant}","#,
            r#""executor":{{"provider_id":"endstation","channel":"nats"}},"#,
            r#""job":{{"type":"{block}","payload":{payload}}},"#,
            r#""options":{{"priority":50,"deadline_ms":{deadline_ms}}},"#,
            r#""correlation":{{"trace_id":"0af7651916cd43dd8448eb21{n:08x}"}},"metadata":{{"source":"perf"}}}}"#
        ),
        id = id(n),
        tenant = tenant,
        deadline_ms = deadline_ms,
        block = block,
        payload = payload,
        n = n
    )
    .into_bytes()
}

/// Native step `n`, of one of so many tenants; as much to read as an assignment.
fn native(n: u32, tenants: u32) -> Vec<u8> {
    let tenant = n % tenants.max(1);
    format!(
        concat!(
            r#"{{"type":"echo","assignment_id":"{id}","request_id":"{id}","inputs":{{"text":"the quick brown fox jumps"}},"#,
            r#""context":{{"tenant_id":"tenant-{tenant}","trace_id":"0af7651916cd43dd8448eb21{n:08x}"}},"#,
            r#""priority":50,"timeout_ms":60000,"resources":{{"class":"IO"}},"retry":{{"max_attempts":3}}}}"#
        ),
        id = id(n),
        tenant = tenant,
        n = n
    )
    .into_bytes()
}

/// Native step `n` that only says what it would do: a POST by the connector `crm`.
pub(crate) fn dry(n: u32, tenant: &str) -> Vec<u8> {
    format!(
        concat!(
            r#"{{"type":"http.request","assignment_id":"{id}","#,
            r#""inputs":{{"connector":"crm","path":"/people","json":{{"name":"Ada","text":"the quick brown fox jumps"}}}},"#,
            r#""context":{{"tenant_id":"{tenant}","trace_id":"0af7651916cd43dd8448eb21{n:08x}","sandbox":true}}}}"#
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
    let good = [&br#""status":"success""#[..], br#""status":"OK""#];
    Some((n, good.iter().any(|good| body.windows(good.len()).any(|window| window == *good))))
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

    #[test]
    fn a_native_step_is_as_much_to_read_and_its_number_comes_back() {
        let body = Form::Native.body(70_001, 16);
        assert!((320..=440).contains(&body.len()), "{} bytes", body.len());
        let value: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
        assert_eq!(value["context"]["tenant_id"], "tenant-1");
        assert_eq!(Form::Native.subject(70_001, 16), "beamline.worker.steps.v1.tenant-1");
        assert_eq!(answered(&body), Some((70_001, false)));
    }
}
