//! stub
use crate::settings::Settings;
/// stub
pub fn main(_settings: &Settings) -> u8 {
    2
}
