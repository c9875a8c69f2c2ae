//! What a connector says of the models behind it, and which connector a step that generates goes by. Shared, never changes.
//!
//! A step names its connector, or what the platform's executor calls its provider does, or there is only one for its tenant.

use super::{Connector, Policy, Refused, Route};

/// How the other side is spoken to. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Chat completions, completions and embeddings as OpenAI has them, and many servers after it.
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
    /// Ollama's own.
    Ollama,
}

impl Kind {
    /// Every kind, by the name that a configuration gives it.
    pub const NAMES: &'static [(&'static str, Kind)] =
        &[("openai", Kind::OpenAi), ("anthropic", Kind::Anthropic), ("ollama", Kind::Ollama)];

    /// As written in a configuration.
    pub fn as_str(self) -> &'static str {
        Kind::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// What a connector with `provider` says of it. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderSettings {
    /// How it is spoken to.
    pub kind: Kind,
    /// The models that steps may ask for, the first where a step names none; none listed: any.
    pub models: Vec<String>,
    /// What it takes, where the operator says so.
    pub prices: Option<Prices>,
    /// In which unit, such as `USD`.
    pub currency: String,
}

/// Prices in millionths of the currency's unit for a million tokens. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// For what is read.
    pub input: u64,
    /// For what is written.
    pub output: u64,
}

impl Prices {
    /// What so many tokens cost, in the currency's unit.
    pub fn cost(&self, input: u64, output: u64) -> f64 {
        let whole = u128::from(input) * u128::from(self.input) + u128::from(output) * u128::from(self.output);
        whole as f64 / 1e12
    }
}

/// A door to a provider. Lives on its core.
#[derive(Clone, Copy)]
pub struct Served<'a> {
    /// The way there; it is through a connector.
    pub route: Route<'a>,
    /// That connector.
    pub connector: &'a Connector,
    /// What it says of its provider.
    pub provider: &'a ProviderSettings,
}

impl Policy {
    /// The provider for a step of this tenant: by the connector that it names, else by the one that `provider_id` names, by its
    /// own name or by its kind's, else by the only one there is.
    ///
    /// # Errors
    /// The rule that denies it. Whether a connector is there that does not list the tenant, the tenant is not told.
    pub fn provider(&self, tenant: &str, connector: Option<&str>, provider_id: Option<&str>) -> Result<Served<'_>, Refused> {
        if let Some(name) = connector {
            let route = self.route(tenant, connector)?;
            return route.served().ok_or_else(|| refused(format!("connectors.{name}.provider is not set")));
        }
        let all: Vec<Served<'_>> = (self.connectors.iter().enumerate())
            .filter(|(_, one)| one.lists(tenant))
            .filter_map(|(at, one)| Route { connector: Some((at as u16, one)), guard: &one.guard }.served())
            .collect();
        if let Some(id) = provider_id {
            if let Some(named) = all.iter().find(|one| one.connector.name == id) {
                return Ok(*named);
            }
            if let Some((_, kind)) = Kind::NAMES.iter().find(|(name, _)| *name == id) {
                let same = all.iter().filter(|one| one.provider.kind == *kind);
                return only(same, format!("no [connectors.*] with provider {id:?} lists the tenant"));
            }
        }
        only(all.iter(), "no [connectors.*] with a provider lists the tenant".to_owned())
    }
}

fn only<'a, 's: 'a>(mut some: impl Iterator<Item = &'a Served<'s>>, none: String) -> Result<Served<'s>, Refused> {
    match (some.next(), some.next()) {
        (Some(one), None) => Ok(*one),
        (None, _) => Err(refused(none)),
        (Some(_), Some(_)) => {
            Err(refused("several [connectors.*] with a provider list the tenant: the step must name its own".to_owned()))
        }
    }
}

fn refused(rule: String) -> Refused {
    Refused { rule, pointer: Some("/connector".to_owned()) }
}

impl<'a> Route<'a> {
    fn served(self) -> Option<Served<'a>> {
        let (_, connector) = self.connector?;
        Some(Served { route: self, connector, provider: connector.settings.provider.as_ref()? })
    }
}
