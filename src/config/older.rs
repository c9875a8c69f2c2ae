//! The environment variables of the older worker. They rank below `ENDSTATION__…` and above the file.

/// How an older variable writes its value.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// As the key does.
    Same,
    /// A bare number of milliseconds.
    Milliseconds,
}

/// Variable, key, form.
pub(super) const NAMES: [(&str, &str, Form); 11] = [
    ("NATS_URL", "nats.url", Form::Same),
    ("WORKER_ID", "worker.id", Form::Same),
    ("CAF_ASSIGN_SUBJECT", "nats.assign_subjects", Form::Same),
    ("CAF_RESULT_SUBJECT", "nats.result_subject", Form::Same),
    ("CAF_HEARTBEAT_SUBJECT", "nats.heartbeat_subject", Form::Same),
    ("CAF_DLQ_SUBJECT", "nats.dlq_subject", Form::Same),
    ("CAF_HEARTBEAT_INTERVAL_MS", "nats.heartbeat", Form::Milliseconds),
    ("HEALTH_BIND", "ops.bind", Form::Same),
    ("WORKER_MAX_CONCURRENCY", "limits.process_running", Form::Same),
    ("DEFAULT_JOB_TIMEOUT_MS", "limits.default_budget", Form::Milliseconds),
    ("FS_BASE_DIR", "storage.blobs_dir", Form::Same),
];

/// The value as the key writes it. Anything else than a bare number stays as it is and meets the key's own rule.
pub(super) fn modern(form: Form, value: &str) -> String {
    match form {
        Form::Milliseconds if value.bytes().all(|b| b.is_ascii_digit()) => format!("{value}ms"),
        Form::Milliseconds | Form::Same => value.to_owned(),
    }
}
