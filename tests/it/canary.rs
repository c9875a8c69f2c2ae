//! Secrets planted to be found nowhere: each of them is looked for in every output, as it is and in the forms in which it is
//! sent.

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

/// One secret: where it was planted, and the texts that give it away.
#[derive(Clone, Debug)]
struct Canary {
    place: String,
    forms: Vec<String>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Canaries(Vec<Canary>);

impl Canaries {
    /// A secret of letters and digits.
    pub(crate) fn plant(&mut self, place: &str, secret: &str) {
        self.plant_around(place, secret, secret);
    }

    /// A secret of which this part is told from everything else, however what is around it is escaped.
    pub(crate) fn plant_around(&mut self, place: &str, part: &str, secret: &str) {
        assert!(secret.contains(part) && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{place}");
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let escaped: String = part.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
        let forms = vec![part.to_owned(), BASE64.encode(secret), hex, escaped];
        self.0.push(Canary { place: place.to_owned(), forms });
    }

    /// Such a secret, sent as the second half of a login.
    pub(crate) fn plant_login(&mut self, place: &str, user: &str, part: &str, password: &str) {
        self.plant_around(place, part, password);
        // The last character may depend on what follows.
        let mut pair = BASE64.encode(format!("{user}:{password}"));
        pair.pop();
        self.0.last_mut().expect("just planted").forms.push(pair);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// None of them is in this output.
    pub(crate) fn absent(&self, output: &str, bytes: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(bytes);
        for Canary { place, forms } in &self.0 {
            for form in forms {
                let found = text.find(form.as_str());
                let around = found.map(|at| {
                    let (from, to) = (text.floor_char_boundary(at.saturating_sub(300)), at + form.len() + 100);
                    &text[from..text.floor_char_boundary(to.min(text.len()))]
                });
                ensure!(around.is_none(), "{place} is in {output}: {}", around.unwrap_or_default());
            }
        }
        Ok(())
    }
}
