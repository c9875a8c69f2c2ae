//! Which step comes before which: an order of the steps, the cycles that leave none, and what lies before each step. Pure.

use super::{WRONG_MAX, Wrong};

/// How the steps of a flow follow from each other. Lives with the flow.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// By step: those that wait for it.
    pub(crate) after: Vec<Vec<usize>>,
    /// By step: how many it waits for.
    pub(crate) waits_for: Vec<usize>,
    /// By step: all that lie before it, directly or not, one bit each.
    before: Vec<Vec<u64>>,
}

impl Order {
    /// Of `ids`, with an edge from the first to the second of each pair; the pairs are all different. Every cycle is told at
    /// the edge that closes it.
    pub(crate) fn of(ids: &[&str], edges: &[(usize, usize)], wrong: &mut Vec<Wrong>) -> Order {
        let mut left: Vec<bool> = vec![true; edges.len()];
        let order = loop {
            let (order, stuck) = sorted(ids.len(), edges, &left);
            let Some(first) = stuck.first().filter(|_| wrong.len() < WRONG_MAX) else { break order };
            // Each of these waits for another of them, so whoever goes back from one comes round.
            let (cycle, closing) = round(*first, &stuck, edges, &left);
            let path: Vec<&str> = cycle.iter().map(|step| ids[*step]).collect();
            wrong.push(Wrong::new(format!("/edges/{closing}"), format!("closes a cycle: {}", path.join(" → "))));
            left[closing] = false;
        };
        let words = ids.len().div_ceil(64);
        let mut result =
            Order { after: vec![Vec::new(); ids.len()], waits_for: vec![0; ids.len()], before: vec![vec![0; words]; ids.len()] };
        for (from, to) in edges {
            result.after[*from].push(*to);
            result.waits_for[*to] += 1;
        }
        for step in order {
            let mut own = result.before[step].clone();
            own[step / 64] |= 1 << (step % 64);
            for to in &result.after[step] {
                result.before[*to].iter_mut().zip(&own).for_each(|(word, more)| *word |= more);
            }
        }
        result
    }

    /// Whether `step` begins only after `other` has ended.
    pub(crate) fn is_after(&self, step: usize, other: usize) -> bool {
        self.before[step][other / 64] & 1 << (other % 64) != 0
    }
}

/// The steps in an order that the edges allow, and those that can stand in none.
fn sorted(count: usize, edges: &[(usize, usize)], left: &[bool]) -> (Vec<usize>, Vec<usize>) {
    let edges = || edges.iter().zip(left).filter(|(_, left)| **left).map(|(edge, _)| *edge);
    let (mut waits_for, mut after) = (vec![0_usize; count], vec![Vec::new(); count]);
    for (from, to) in edges() {
        waits_for[to] += 1;
        after[from].push(to);
    }
    let mut order: Vec<usize> = (0..count).filter(|step| waits_for[*step] == 0).collect();
    let mut at = 0;
    while at < order.len() {
        for to in &after[order[at]] {
            waits_for[*to] -= 1;
            if waits_for[*to] == 0 {
                order.push(*to);
            }
        }
        at += 1;
    }
    let stuck = (0..count).filter(|step| waits_for[*step] > 0).collect();
    (order, stuck)
}

/// A cycle among `stuck` as it is walked, its first step again at its end, and the last of its edges in the list.
fn round(first: usize, stuck: &[usize], edges: &[(usize, usize)], left: &[bool]) -> (Vec<usize>, usize) {
    let into = |step: usize| {
        let found = edges.iter().enumerate().find(|(at, (from, to))| left[*at] && *to == step && stuck.contains(from));
        found.map(|(at, (from, _))| (at, *from)).expect("each of them waits for another of them")
    };
    let mut walked = vec![first];
    let mut by = Vec::new();
    loop {
        let (edge, from) = into(walked[walked.len() - 1]);
        by.push(edge);
        if let Some(begin) = walked.iter().position(|step| *step == from) {
            let closing = by[begin..].iter().copied().max().expect("a cycle has an edge");
            let mut cycle: Vec<usize> = walked[begin..].to_vec();
            cycle.push(from);
            cycle.reverse();
            // From the step that the closing edge leads to.
            let start = cycle.iter().position(|step| *step == edges[closing].1).unwrap_or(0);
            let steps = cycle.len() - 1;
            let turned = (0..=steps).map(|at| cycle[(start + at) % steps]).collect();
            return (turned, closing);
        }
        walked.push(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(edges: &[(usize, usize)]) -> (Order, Vec<String>) {
        let mut wrong = Vec::new();
        let order = Order::of(&["a", "b", "c", "d", "e"], edges, &mut wrong);
        (order, wrong.into_iter().map(|Wrong { pointer, rule }| format!("{pointer} {rule}")).collect())
    }

    #[test]
    fn what_lies_before_a_step_lies_before_it_at_any_distance() {
        let (order, wrong) = order(&[(0, 1), (1, 2), (0, 3), (3, 2)]);
        assert!(wrong.is_empty());
        assert_eq!(order.waits_for, [0, 1, 2, 1, 0]);
        assert_eq!(order.after, [vec![1, 3], vec![2], vec![], vec![2], vec![]]);
        for (step, other, is) in
            [(2, 0, true), (2, 1, true), (2, 3, true), (1, 3, false), (0, 2, false), (4, 0, false), (1, 1, false)]
        {
            assert_eq!(order.is_after(step, other), is, "{step} after {other}");
        }
    }

    #[test]
    fn every_cycle_is_told_by_its_path_at_the_edge_that_closes_it() {
        for (edges, told) in [
            (&[(0, 0)][..], &["/edges/0 closes a cycle: a → a"][..]),
            (&[(0, 1), (1, 0)], &["/edges/1 closes a cycle: a → b → a"]),
            (&[(3, 0), (0, 1), (1, 2), (2, 0), (2, 4)], &["/edges/3 closes a cycle: a → b → c → a"]),
            (&[(1, 0), (0, 1), (3, 4), (4, 3)], &["/edges/1 closes a cycle: b → a → b", "/edges/3 closes a cycle: d → e → d"]),
        ] {
            assert_eq!(order(edges).1, told, "{edges:?}");
        }
    }

    #[test]
    fn a_long_chain_and_many_steps_are_no_matter() {
        let ids: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let edges: Vec<(usize, usize)> = (1..1_000).rev().map(|n| (n - 1, n)).collect();
        let mut wrong = Vec::new();
        let order = Order::of(&ids, &edges, &mut wrong);
        assert!(wrong.is_empty() && order.is_after(999, 0) && !order.is_after(0, 999));
    }
}
