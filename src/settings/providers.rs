//! What a connector says of the models behind it, from what is written to [`ProviderSettings`].

use toml::Value;

use super::reach::is_text;
use super::resolve::Desk;
use crate::config::{Rule, choice, text, words};
use crate::policy::providers::{Kind, Prices, ProviderSettings};

/// The highest price for a million tokens, in the currency's unit.
const PRICE_MAX: f64 = 1e9;
/// Longest name of a currency, in bytes.
const CURRENCY_BYTES_MAX: usize = 16;
/// Longest name of a model, in bytes.
const MODEL_BYTES_MAX: usize = 256;

impl Desk {
    /// The provider of one connector, where it has one; `placed`: the connector says where it is.
    pub(super) fn provider_of(&mut self, name: &str, placed: bool) -> Option<ProviderSettings> {
        let key = |field: &str| format!("connectors.{name}.{field}");
        let kind = self.of_connector(name, "provider", |one| &one.provider, kind);
        let models = self.of_connector(name, "models", |one| &one.models, models);
        let input = self.of_connector(name, "price_in", |one| &one.price_in, price);
        let output = self.of_connector(name, "price_out", |one| &one.price_out, price);
        let currency = self.of_connector(name, "currency", |one| &one.currency, currency);
        match (input, output) {
            (Some(_), None) => self.fault(&key("price_in"), format!("needs {} beside it", key("price_out"))),
            (None, Some(_)) => self.fault(&key("price_out"), format!("needs {} beside it", key("price_in"))),
            _ => {}
        }
        let Some(kind) = kind else {
            for (field, set) in [("models", !models.is_empty()), ("price_in", input.is_some())] {
                if set {
                    self.fault(&key(field), format!("needs {} beside it", key("provider")));
                }
            }
            return None;
        };
        if !placed {
            self.fault(&key("provider"), format!("needs {} beside it", key("url")));
        }
        let prices = input.zip(output).map(|(input, output)| Prices { input, output });
        Some(ProviderSettings { kind, models, prices, currency })
    }
}

fn kind(value: &Value) -> Rule<Option<Kind>> {
    if value.as_str() == Some("") { Ok(None) } else { choice(Kind::NAMES)(value).map(Some) }
}

fn models(value: &Value) -> Rule<Vec<String>> {
    let rule = || format!("must be a list of models' names of at most {MODEL_BYTES_MAX} bytes");
    let list = words(value).ok_or_else(rule)?;
    list.iter().all(|model| is_text(model, MODEL_BYTES_MAX)).then_some(list).ok_or_else(rule)
}

/// In millionths.
fn price(value: &Value) -> Rule<Option<u64>> {
    let price = match value {
        Value::Integer(whole) => Some(*whole as f64),
        Value::Float(price) => Some(*price),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let price = price.filter(|price| (0.0..=PRICE_MAX).contains(price));
    let rule = || "must be a price for a million tokens, such as 0.15".to_owned();
    price.map(|price| Some((price * 1e6).round() as u64)).ok_or_else(rule)
}

fn currency(value: &Value) -> Rule<String> {
    let rule = || format!("must be a currency's name of at most {CURRENCY_BYTES_MAX} characters, such as \"USD\"");
    text(value).ok().filter(|text| is_text(text, CURRENCY_BYTES_MAX)).ok_or_else(rule)
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn settle(text: &str) -> Result<Settings, Vec<String>> {
        let settled = Settings::of(Some(("e.toml", text)), std::iter::empty(), &[]);
        settled.map_err(|error| error.faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_provider_is_what_its_connector_says() {
        let settings = settle(
            r#"
            [connectors.llm]
            tenants = "*"
            url = "https://api.example.com/v1"
            provider = "openai"
            models = ["small-1", "large-1"]
            price_in = 0.15
            price_out = "0.6"
            currency = "EUR"
            [connectors.local]
            url = "http://models.internal:11434"
            provider = "ollama"
            [connectors.crm]
            url = "https://crm.internal"
            "#,
        )
        .expect("a configuration");
        let of = |name: &str| settings.policy.connectors[name].provider.clone();
        let llm = of("llm").expect("a provider");
        assert_eq!(
            (llm.kind, llm.currency.as_str(), llm.models),
            (Kind::OpenAi, "EUR", vec!["small-1".into(), "large-1".into()])
        );
        let prices = llm.prices.expect("prices");
        assert_eq!(prices, Prices { input: 150_000, output: 600_000 });
        assert_eq!(prices.cost(1_000, 2_000), 0.00135);
        assert_eq!(prices.cost(0, 0), 0.0);
        let local = of("local").expect("a provider");
        assert_eq!((local.kind, local.prices, local.currency.as_str()), (Kind::Ollama, None, "USD"));
        assert_eq!(of("crm"), None);
    }

    #[test]
    fn each_thing_that_is_wrong_with_one_names_its_key() {
        let url = "url = \"https://h.example\"\n";
        for (text, key, rule) in [
            ("provider = \"llama\"", "provider", "must be one of openai, anthropic, ollama"),
            ("models = \"m\"", "models", "needs connectors.a.provider beside it"),
            ("provider = \"openai\"\nmodels = [\"a\", \"\"]", "models", "a list of models' names"),
            ("provider = \"openai\"\nprice_in = 1", "price_in", "needs connectors.a.price_out beside it"),
            ("provider = \"openai\"\nprice_out = 1", "price_out", "needs connectors.a.price_in beside it"),
            ("price_in = 1\nprice_out = 1", "price_in", "needs connectors.a.provider beside it"),
            ("provider = \"openai\"\nprice_in = -1\nprice_out = 1", "price_in", "a price for a million tokens"),
            ("provider = \"openai\"\nprice_in = 1\nprice_out = \"nan\"", "price_out", "a price for a million tokens"),
            ("provider = \"openai\"\ncurrency = \"\"", "currency", "a currency's name"),
        ] {
            let faults = settle(&format!("[connectors.a]\n{url}{text}")).map(|_| ()).expect_err(text);
            let key = format!("connectors.a.{key}");
            assert!(faults.iter().any(|fault| fault.starts_with(&key) && fault.contains(rule)), "{text}: {faults:?}");
        }
        let faults = settle("[connectors.a]\nprovider = \"openai\"").map(|_| ()).expect_err("no place");
        assert!(faults.iter().any(|fault| fault.contains("needs connectors.a.url beside it")), "{faults:?}");
    }
}
