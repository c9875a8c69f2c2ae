//! The keys that steps sign and verify with, from what is written to [`KeySettings`].

use std::borrow::Cow;

use toml::Value;

use super::reach::{scopes_out_of, secret, tenants};
use super::resolve::Desk;
use crate::config::{Key, Leaf, Rule, Signer, choice, text};
use crate::policy::Scope;
use crate::policy::keys::{Algorithm, KeySettings, Material, PublicKey, Seed, Shared};
use crate::policy::narrow::Scopes;
use crate::policy::signers::SignerSettings;

/// Whether the key of this name takes an Ed25519 public key.
pub(super) fn holds_public(key: &str) -> bool {
    (key.starts_with("keys.") || key.starts_with("signers.")) && key.ends_with(".public")
}

/// A public key as it is shown, in one form whatever the one it was written in; `None`: it is none, and may be its secret half.
pub(super) fn shown_public(written: &str) -> Option<String> {
    PublicKey::parse(written).ok().map(|public| public.to_string())
}

impl Desk {
    fn of_key<T>(&mut self, key: &str, field: &str, leaf: fn(&Key) -> &Leaf, rule: impl Fn(&Value) -> Rule<T>) -> T {
        let name = Cow::Owned(format!("keys.{key}.{field}"));
        self.take_from(name, |written| written.keys.get(key).map(leaf), "", rule)
    }

    /// One key; none where something is wrong with it, which is noted.
    pub(super) fn key_of_steps(&mut self, name: &str) -> Option<KeySettings> {
        let key = |field: &str| format!("keys.{name}.{field}");
        let tenants = self.of_key(name, "tenants", |one| &one.tenants, tenants);
        self.named(name, &key("tenants"));
        let algorithm = self.of_key(name, "algorithm", |one| &one.algorithm, algorithm);
        let secret = self.of_key(name, "secret", |one| &one.secret, secret);
        let public = self.of_key(name, "public", |one| &one.public, public);
        let Some(algorithm) = algorithm else {
            self.must(&key("algorithm"), format!("must be set: {}", choices()));
            return None;
        };
        let material = match (algorithm, secret, public) {
            (Algorithm::Ed25519, Some(secret), public) => Material::Ed25519(Seed { secret, public }),
            (Algorithm::Ed25519, None, Some(public)) => Material::Ed25519Public(public),
            (Algorithm::Ed25519, None, None) if self.is_faulty(&key("public")) => return None,
            (Algorithm::Ed25519, None, None) => {
                self.must(&key("secret"), format!("must be set, or {} for a key that only verifies", key("public")));
                return None;
            }
            (Algorithm::HmacSha256, _, Some(_)) => {
                self.must(&key("public"), "must be left out: an hmac-sha256 key has no public half".to_owned());
                return None;
            }
            (Algorithm::HmacSha256, Some(secret), None) => Material::HmacSha256(Shared { secret }),
            (Algorithm::HmacSha256, None, None) => {
                self.must(&key("secret"), "must be set: both sides of an hmac-sha256 key need it".to_owned());
                return None;
            }
        };
        Some(KeySettings { tenants, material })
    }

    /// One who signs messages; none where something is wrong with it, which is noted.
    pub(super) fn signer(&mut self, name: &str) -> Option<SignerSettings> {
        let key = |field: &str| format!("signers.{name}.{field}");
        let tenants = self.of_signer(name, "tenants", |one| &one.tenants, tenants);
        self.named(name, &key("tenants"));
        let public = self.of_signer(name, "public", |one| &one.public, public);
        let all: Vec<Scope> = Scope::NAMES.iter().map(|(_, scope)| *scope).collect();
        let scopes = self.of_signer(
            name,
            "scopes",
            |one| &one.scopes,
            |value| match value.as_str() {
                Some("") => Ok(None),
                _ => scopes_out_of(&all, value).map(|list| Some(Scopes::of(&list))),
            },
        );
        let not_before_ms = self.of_signer(name, "not_before", |one| &one.not_before, moment).unwrap_or(0);
        let not_after_ms = self.of_signer(name, "not_after", |one| &one.not_after, moment).unwrap_or(u64::MAX);
        if not_after_ms <= not_before_ms {
            self.must(&key("not_after"), format!("must be later than {}", key("not_before")));
        }
        let Some(public) = public else {
            self.must(&key("public"), "must be set: the Ed25519 key that its signatures hold under".to_owned());
            return None;
        };
        Some(SignerSettings { tenants, public, scopes, not_before_ms, not_after_ms })
    }

    fn of_signer<T>(&mut self, signer: &str, field: &str, leaf: fn(&Signer) -> &Leaf, rule: impl Fn(&Value) -> Rule<T>) -> T {
        let name = Cow::Owned(format!("signers.{signer}.{field}"));
        self.take_from(name, |written| written.signers.get(signer).map(leaf), "", rule)
    }

    /// Notes that a key breaks a rule, unless it breaks one already.
    fn must(&mut self, key: &str, rule: String) {
        if !self.is_faulty(key) {
            self.fault(key, rule);
        }
    }
}

fn choices() -> String {
    let names: Vec<&str> = Algorithm::NAMES.iter().map(|(name, _)| *name).collect();
    names.join(" or ")
}

/// Unix ms.
fn moment(value: &Value) -> Rule<Option<u64>> {
    let written = match value {
        Value::Datetime(moment) => moment.to_string(),
        _ => text(value)?,
    };
    if written.is_empty() {
        return Ok(None);
    }
    let moment: Option<jiff::Timestamp> = written.parse().ok();
    let ms = moment.and_then(|moment| u64::try_from(moment.as_millisecond()).ok());
    ms.map(Some).ok_or_else(|| "must be a moment with its zone, such as 2027-01-31T00:00:00Z".to_owned())
}

fn algorithm(value: &Value) -> Rule<Option<Algorithm>> {
    if value.as_str() == Some("") { Ok(None) } else { choice(Algorithm::NAMES)(value).map(Some) }
}

fn public(value: &Value) -> Rule<Option<PublicKey>> {
    let text = text(value)?;
    if text.is_empty() { Ok(None) } else { Ok(PublicKey::parse(&text).map(Some)?) }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    /// The public half of the first key of RFC 8032, in three forms.
    const HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    const BASE64: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    const PEM: &str =
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    /// A seed where none belongs, and how it begins.
    const SEED: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    const CANARY: &str = "hunter2";

    fn settle(text: &str) -> Result<Settings, Vec<String>> {
        let settled = Settings::of(Some(("e.toml", text)), std::iter::empty(), &[]);
        settled.map_err(|error| error.faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn keys_are_what_the_file_says_by_their_own_names() {
        let settings = settle(&format!(
            r#"
            [keys.release]
            tenants = ["acme", "other"]
            algorithm = "ed25519"
            secret = "secret://file/etc/release.pem"
            public = "{HEX}"
            [keys.partner]
            tenants = "*"
            algorithm = "ed25519"
            public = """{PEM}"""
            [keys.hooks]
            algorithm = "hmac-sha256"
            secret = "secret://env/HOOKS"
            "#
        ))
        .expect("a configuration");
        let keys = &settings.policy.keys;
        let public = PublicKey::parse(BASE64).expect("a public key");
        assert_eq!(keys["release"].tenants, Some(vec!["acme".to_owned(), "other".to_owned()]));
        assert!(matches!(&keys["release"].material, Material::Ed25519(seed) if seed.public == Some(public)));
        assert_eq!((&keys["partner"].tenants, &keys["partner"].material), (&None, &Material::Ed25519Public(public)));
        assert!(matches!(keys["hooks"].material, Material::HmacSha256(_)));
        assert_eq!(keys["hooks"].tenants, Some(Vec::new()), "none named: nobody");
        let shown = |key: &str| settings.rows().iter().find(|row| row.key == key).expect("shown").value.clone();
        // One form, whatever the one it was written in, and one line.
        assert_eq!((shown("keys.release.public"), shown("keys.partner.public")), (BASE64.to_owned(), BASE64.to_owned()));
        assert_eq!(shown("keys.hooks.secret"), "secret://env/HOOKS");
    }

    #[test]
    fn variables_and_flags_reach_keys_too() {
        let env = [("ENDSTATION__KEYS__HOOKS__SECRET".to_owned(), "secret://env/H".to_owned())];
        let flags = [("keys.hooks.algorithm", "hmac-sha256", "--set"), ("keys.hooks.tenants", "*", "--set")];
        let settings = Settings::of(None, env.into_iter(), &flags).expect("a configuration");
        assert_eq!(settings.policy.keys["hooks"].tenants, None);
        let row = settings.rows().iter().find(|row| row.key == "keys.hooks.secret").expect("shown");
        assert_eq!(row.origin.to_string(), "env ENDSTATION__KEYS__HOOKS__SECRET");
    }

    #[test]
    fn each_key_that_is_wrong_names_its_rule_and_no_secret() {
        let weak = format!("01{}", "0".repeat(62));
        let ed = "[keys.k]\nalgorithm = \"ed25519\"\n";
        let hmac = "[keys.k]\nalgorithm = \"hmac-sha256\"\n";
        for (text, key, rule) in [
            ("[keys.k]\nsecret = \"secret://env/A\"".to_owned(), "keys.k.algorithm", "must be set: ed25519 or hmac-sha256"),
            ("[keys.k]\nalgorithm = \"rsa\"".to_owned(), "keys.k.algorithm = rsa", "one of ed25519, hmac-sha256"),
            ("[keys.k]\nalgorithms = \"rsa\"".to_owned(), "keys.k.algorithms", "no such key"),
            (format!("{ed}tenants = \"a b\"\npublic = \"{HEX}\""), "keys.k.tenants", "a list of tenants' ids"),
            (format!("[keys.\"a b\"]\nalgorithm = \"ed25519\"\npublic = \"{HEX}\""), "keys.a b.tenants", "a name of 1 to 64"),
            (ed.to_owned(), "keys.k.secret", "must be set, or keys.k.public"),
            (format!("{ed}secret = \"{CANARY}\""), "keys.k.secret = [REDACTED]", "a reference"),
            (format!("{ed}public = \"{CANARY}\""), "keys.k.public = [REDACTED]", "an Ed25519 public key"),
            (format!("{ed}public = \"\"\"{SEED}\"\"\""), "keys.k.public = [REDACTED]", "an Ed25519 public key"),
            (format!("{ed}public = \"{weak}\""), "keys.k.public = [REDACTED]", "an Ed25519 public key"),
            (format!("{ed}public = 7"), "keys.k.public = [REDACTED]", "a text"),
            (hmac.to_owned(), "keys.k.secret", "must be set: both sides"),
            (format!("{hmac}secret = \"{CANARY}\""), "keys.k.secret = [REDACTED]", "a reference"),
            (format!("{hmac}secret = \"secret://env/A\"\npublic = \"{HEX}\""), "keys.k.public", "must be left out"),
        ] {
            let faults = settle(&text).map(|settings| format!("{settings:?}")).expect_err(&text);
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            assert!(faults[0].starts_with(key) && faults[0].contains(rule), "{text}: {faults:?}");
            assert!(!faults[0].contains(CANARY) && !faults[0].contains("MC4CAQAw"), "{text}: {faults:?}");
        }
    }
}
