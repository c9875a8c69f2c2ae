//! Why an exchange with a store came to nothing, in facts that a block can act on. What the store said is kept for people, short
//! and without the secrets that it was asked with.

use std::error::Error;
use std::fmt;

use hyper_util::client::legacy;
use opendal::ErrorKind;

use crate::net::error::{NetError, Phase};
use crate::secrets::Redaction;

/// What is kept of what was said, in bytes.
const CAUSE_BYTES_MAX: usize = 512;

/// See the module. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// The fact.
    pub trouble: Trouble,
    /// In words, for people.
    pub cause: String,
    /// Whether the store may have acted on it so that others see it.
    pub sent: bool,
}

/// What can go wrong. Crosses cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such object.
    Missing,
    /// There is no such bucket, or the store says that it is set up wrongly.
    Setup,
    /// It does not let us in, or not there.
    Denied,
    /// Something stands there and may not be replaced.
    Taken,
    /// The object is not the one any more that reading began with.
    Changed,
    /// Others write the same object just now.
    Contended,
    /// It asks to be left alone for now.
    Busy,
    /// It failed.
    Failed,
    /// It will not do what was asked.
    Refused,
    /// What it said cannot be read.
    Unclear,
    /// The way there is closed: by the guard.
    Forbidden,
    /// No connection.
    Unreachable,
    /// Its certificate does not hold.
    Untrusted,
    /// A wait was over.
    Late(Phase, u64),
    /// The exchange broke off.
    Broken,
    /// A secret could not be read.
    Secret,
    /// Too much is under way.
    Full,
}

impl StoreError {
    /// One before anything was sent.
    pub(super) fn unsent(trouble: Trouble, cause: impl Into<String>) -> Self {
        StoreError { trouble, cause: cause.into(), sent: false }
    }

    /// The thread that speaks to stores has gone.
    pub(super) fn gone() -> Self {
        StoreError { trouble: Trouble::Broken, cause: "the thread for stores has gone".to_owned(), sent: true }
    }

    /// The object is another one by now.
    pub(super) fn changed() -> Self {
        StoreError { trouble: Trouble::Changed, cause: "it has another etag by now".to_owned(), sent: true }
    }

    /// Too much waits already.
    pub(super) fn full() -> Self {
        StoreError::unsent(Trouble::Full, "too much is under way")
    }

    /// What a client's error comes from.
    pub(super) fn of_client(error: &legacy::Error) -> Self {
        let mut source: Option<&(dyn Error + 'static)> = error.source();
        while let Some(inner) = source {
            if let Some(inner) = inner.downcast_ref::<NetError>() {
                return StoreError { sent: !error.is_connect(), ..StoreError::of_net(inner) };
            }
            source = inner.source();
        }
        let trouble = if error.is_connect() { Trouble::Unreachable } else { Trouble::Broken };
        StoreError { trouble, cause: chain(error), sent: !error.is_connect() }
    }

    fn of_net(error: &NetError) -> Self {
        let trouble = match error {
            NetError::Denied(_) => Trouble::Forbidden,
            NetError::NoSuchName | NetError::Unresolved(_) | NetError::Unreachable(_) | NetError::Tls(_) | NetError::Proxy(_) => {
                Trouble::Unreachable
            }
            NetError::Untrusted(_) => Trouble::Untrusted,
            NetError::Late { phase, ms } => Trouble::Late(*phase, *ms),
            NetError::Secret(_) => Trouble::Secret,
            NetError::Full => Trouble::Full,
            NetError::Broken(_) | NetError::Redirects(_) | NetError::Encoding(_) | NetError::Blob => Trouble::Broken,
        };
        StoreError::unsent(trouble, error.to_string())
    }

    /// What the library's error comes from. `reading`: a condition that failed is about what was read.
    pub(super) fn of(error: &opendal::Error, reading: bool, redaction: &Redaction) -> Self {
        let mut source: Option<&(dyn Error + 'static)> = error.source();
        while let Some(inner) = source {
            if let Some(own) = inner.downcast_ref::<StoreError>() {
                return own.clone().clean(redaction);
            }
            if let Some(nested) = inner.downcast_ref::<opendal::Error>()
                && let Some(own) = nested.source().and_then(|own| own.downcast_ref::<StoreError>())
            {
                return own.clone().clean(redaction);
            }
            source = inner.source();
        }
        let trouble = match error.kind() {
            ErrorKind::NotFound => Trouble::Missing,
            ErrorKind::ConfigInvalid => Trouble::Setup,
            ErrorKind::PermissionDenied => Trouble::Denied,
            ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists if reading => Trouble::Changed,
            ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists => Trouble::Taken,
            ErrorKind::Conflict => Trouble::Contended,
            ErrorKind::RateLimited => Trouble::Busy,
            ErrorKind::Unexpected if error.is_temporary() => Trouble::Failed,
            ErrorKind::Unexpected if !says_no(error) => Trouble::Unclear,
            _ => Trouble::Refused,
        };
        let cause = format!("{}: {}", error.kind(), error.message());
        StoreError { trouble, cause, sent: true }.clean(redaction)
    }

    fn clean(mut self, redaction: &Redaction) -> Self {
        if let Some(clean) = redaction.apply(self.cause.as_bytes()) {
            self.cause = String::from_utf8_lossy(&clean).into_owned();
        }
        let cut = self.cause.floor_char_boundary(CAUSE_BYTES_MAX);
        self.cause.truncate(cut);
        self
    }
}

/// Whether the store answered with a status that says that it did nothing. The library keeps an answer's head in words
/// alone: `only_an_answer_that_says_no_leaves_no_doubt` notices when it chooses others. Without them there is doubt.
fn says_no(error: &opendal::Error) -> bool {
    error.to_string().contains("response: Parts { status: 4")
}

/// An error with all that it comes from.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl Error for StoreError {}

impl From<StoreError> for opendal::Error {
    fn from(error: StoreError) -> Self {
        opendal::Error::new(ErrorKind::Unexpected, "the exchange came to nothing").set_source(error)
    }
}
