//! Which core does what: the configured lists, checked against what this process may use, or a sensible default.

use thiserror::Error;

/// Cores as they were configured; none: what the machine has. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Lists {
    /// One shard on each.
    pub shards: Option<Vec<usize>>,
    /// The edge threads.
    pub edge: Option<Vec<usize>>,
    /// One compute thread on each.
    pub cpu: Option<Vec<usize>>,
    /// Where the threads of devices run.
    pub gpu: Option<Vec<usize>>,
}

/// Cores by role. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// One shard for each, in order.
    pub shards: Vec<usize>,
    /// The edge thread's; may overlap the shards' on small machines.
    pub edge: Vec<usize>,
    /// One compute thread for each, where they were named; may overlap the others.
    pub cpu: Option<Vec<usize>>,
}

/// Why a layout cannot be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// A core is named that this process may not run on.
    #[error(
        "cores.{role} names core {core}, but this process may use only {allowed:?}; change the list or the process's CPU affinity"
    )]
    NotAllowed {
        /// Which list.
        role: &'static str,
        /// Which core.
        core: usize,
        /// What is allowed.
        allowed: Vec<usize>,
    },
    /// A core is named twice.
    #[error("cores.shards names core {core} twice; each shard needs its own")]
    Twice {
        /// Which core.
        core: usize,
    },
    /// A list is empty.
    #[error("cores.{role} is empty; name at least one core or leave it out")]
    Empty {
        /// Which list.
        role: &'static str,
    },
    /// The system does not say which cores there are.
    #[error("the system does not tell which cores this process may use")]
    Unknown,
}

impl Layout {
    /// The cores this process may use, in order.
    pub fn allowed() -> Vec<usize> {
        let mut cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        cores.sort_unstable();
        cores
    }

    /// Resolves the configured lists against `allowed`. Without lists the first core is the edge's and all others are
    /// shards; a machine with one core uses it for both.
    ///
    /// # Errors
    /// Which list breaks which rule.
    pub fn resolve(lists: &Lists, allowed: &[usize]) -> Result<Layout, LayoutError> {
        let first = *allowed.first().ok_or(LayoutError::Unknown)?;
        let edge = lists.edge.clone().unwrap_or_else(|| vec![first]);
        let shards = match &lists.shards {
            Some(shards) => shards.clone(),
            None => {
                let rest: Vec<usize> = allowed.iter().copied().filter(|core| !edge.contains(core)).collect();
                if rest.is_empty() { vec![first] } else { rest }
            }
        };
        let roles = [("shards", Some(&shards)), ("edge", Some(&edge)), ("cpu", lists.cpu.as_ref()), ("gpu", lists.gpu.as_ref())];
        for (role, cores) in roles {
            let Some(cores) = cores else { continue };
            if cores.is_empty() {
                return Err(LayoutError::Empty { role });
            }
            if let Some(core) = cores.iter().copied().find(|core| !allowed.contains(core)) {
                return Err(LayoutError::NotAllowed { role, core, allowed: allowed.to_vec() });
            }
        }
        let mut seen = shards.clone();
        seen.sort_unstable();
        if let Some(pair) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(LayoutError::Twice { core: pair[0] });
        }
        Ok(Layout { shards, edge, cpu: lists.cpu.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shards: &[usize], edge: &[usize]) -> Result<Layout, LayoutError> {
        Ok(Layout { shards: shards.to_vec(), edge: edge.to_vec(), cpu: None })
    }

    fn resolve(
        shards: Option<&[usize]>,
        edge: Option<&[usize]>,
        cpu: Option<&[usize]>,
        allowed: &[usize],
    ) -> Result<Layout, LayoutError> {
        let list = |cores: Option<&[usize]>| cores.map(<[usize]>::to_vec);
        Layout::resolve(&Lists { shards: list(shards), edge: list(edge), cpu: list(cpu), gpu: None }, allowed)
    }

    #[test]
    fn the_default_leaves_one_core_to_the_edge_and_works_on_one() {
        assert_eq!(resolve(None, None, None, &[3]), layout(&[3], &[3]));
        assert_eq!(resolve(None, None, None, &[0, 1]), layout(&[1], &[0]));
        assert_eq!(resolve(None, Some(&[2]), None, &[0, 1, 2]), layout(&[0, 1], &[2]));
    }

    #[test]
    fn a_list_that_breaks_a_rule_is_named() {
        let allowed = vec![0, 1];
        let bad = LayoutError::NotAllowed { role: "shards", core: 7, allowed: allowed.clone() };
        assert_eq!(resolve(Some(&[0, 7]), None, None, &allowed), Err(bad));
        assert_eq!(resolve(Some(&[1, 1]), None, None, &allowed), Err(LayoutError::Twice { core: 1 }));
        let bad = LayoutError::NotAllowed { role: "cpu", core: 9, allowed: allowed.clone() };
        assert_eq!(resolve(None, None, Some(&[0, 9]), &allowed), Err(bad));
        assert_eq!(resolve(None, None, Some(&[]), &allowed), Err(LayoutError::Empty { role: "cpu" }));
        let lists = Lists { gpu: Some(vec![5]), ..Lists::default() };
        let bad = LayoutError::NotAllowed { role: "gpu", core: 5, allowed: allowed.clone() };
        assert_eq!(Layout::resolve(&lists, &allowed), Err(bad));
        assert_eq!(resolve(Some(&[]), None, None, &allowed), Err(LayoutError::Empty { role: "shards" }));
        assert_eq!(resolve(None, None, None, &[]), Err(LayoutError::Unknown));
    }
}
