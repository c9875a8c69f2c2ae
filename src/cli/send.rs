//! stub
use crate::settings::Settings;

/// What `send` was asked to do; the server is in the settings.
#[derive(Clone, Debug)]
pub struct Send {
    /// The file, or `-`.
    pub file: std::path::PathBuf,
    /// Where to send it, if not to the first assign subject.
    pub subject: Option<String>,
}

/// stub
pub fn main(_send: &Send, _settings: &Settings) -> u8 {
    2
}
