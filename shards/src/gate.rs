//! A gate: what a step that waits for people asks of them ([`Gate`]), what they say ([`Vote`]), and what that comes to
//! ([`Gate::decision`]). Pure: the same votes at the same moment always come to the same.
//!
//! A gate is never opened by silence unless whoever asked said so, never by somebody it does not name, and a person's first word
//! stands. One rejection closes it; its quorum of approvals opens it. After its first round's time a second one, where there is
//! one, asks others.

use bytes::Bytes;

use crate::ids::Text;

/// Stands in a list of approvers for whoever may signal at all.
pub const ANYBODY: &str = "*";
/// Most people that one round names.
pub const APPROVERS_MAX: usize = 64;

/// What a step asks of people. Lives on its core; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Who is asked first.
    pub first: Round,
    /// Who is asked when the first have not decided in their time.
    pub escalation: Option<Round>,
    /// What becomes of the step when nobody has decided in time: whether it is approved.
    pub approve_overdue: bool,
    /// Everybody is reminded so long before a round ends, in milliseconds.
    pub remind_ms: Option<u64>,
    /// A decision counts only where its message is signed by who decides.
    pub signed: bool,
    /// The digest of the plan that is approved: an approval must name it.
    pub plan: Option<Text>,
}

/// Who is asked, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// By name; [`ANYBODY`] stands for all.
    pub approvers: Vec<Text>,
    /// So many approvals are needed.
    pub quorum: u32,
    /// So long it lasts, in milliseconds.
    pub wait_ms: u64,
}

/// What one person has said. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Who.
    pub actor: Text,
    /// For or against.
    pub approve: bool,
    /// Why; may be empty.
    pub comment: Text,
    /// The name of the signal; may be empty.
    pub id: Text,
    /// Whether its message was signed by the actor.
    pub signed: bool,
    /// The plan that is meant; may be empty.
    pub plan: Text,
    /// When it came by the shard's clock, Unix ms.
    pub at_ms: u64,
}

/// What a gate came to. Lives on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// It is open.
    pub approved: bool,
    /// Nobody decided it: its time was over.
    pub overdue: bool,
}

/// Why a vote does not count. Lives on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// The round that is asked does not name this person.
    Stranger,
    /// It had to be signed by who decides.
    Unsigned,
    /// It approves another plan than the one that is asked about.
    OtherPlan,
    /// This person has been heard: the vote at this place stands.
    Heard(usize),
}

impl Gate {
    /// How long it lasts, in milliseconds.
    pub fn wait_ms(&self) -> u64 {
        self.first.wait_ms.saturating_add(self.escalation.as_ref().map_or(0, |round| round.wait_ms))
    }

    /// When the first round ends, Unix ms, of a gate that ends at `deadline_ms`.
    pub fn escalates_ms(&self, deadline_ms: u64) -> u64 {
        deadline_ms.saturating_sub(self.escalation.as_ref().map_or(0, |round| round.wait_ms))
    }

    /// Whether the second round is on at `at_ms`.
    pub fn is_escalated(&self, deadline_ms: u64, at_ms: u64) -> bool {
        self.escalation.is_some() && at_ms >= self.escalates_ms(deadline_ms)
    }

    /// Who is asked at `at_ms`.
    pub fn round(&self, deadline_ms: u64, at_ms: u64) -> &Round {
        self.round_of(self.is_escalated(deadline_ms, at_ms))
    }

    /// Who is asked in the second round, or the first.
    pub fn round_of(&self, escalated: bool) -> &Round {
        self.escalation.as_ref().filter(|_| escalated).unwrap_or(&self.first)
    }

    /// Whether a vote that comes at `at_ms` counts beside those that were heard.
    ///
    /// # Errors
    /// Why not.
    pub fn hear(&self, votes: &[Vote], vote: &Vote, deadline_ms: u64, at_ms: u64) -> Result<(), Unheard> {
        if self.signed && !vote.signed {
            return Err(Unheard::Unsigned);
        }
        // Also where others are asked by now: the word still counts.
        if let Some(at) = votes.iter().position(|heard| heard.actor == vote.actor) {
            return Err(Unheard::Heard(at));
        }
        if !self.round(deadline_ms, at_ms).names(&vote.actor) {
            return Err(Unheard::Stranger);
        }
        if vote.approve && self.plan.as_ref().is_some_and(|plan| *plan != vote.plan) {
            return Err(Unheard::OtherPlan);
        }
        Ok(())
    }

    /// What the votes come to at `at_ms`, if they come to anything yet. Those who were asked first are enough at any time.
    pub fn decision(&self, votes: &[Vote], deadline_ms: u64, at_ms: u64) -> Option<Decision> {
        if votes.iter().any(|vote| !vote.approve) {
            return Some(Decision { approved: false, overdue: false });
        }
        let reached = |round: &Round| votes.iter().filter(|vote| round.names(&vote.actor)).count() >= round.quorum as usize;
        if reached(&self.first) || reached(self.round(deadline_ms, at_ms)) {
            return Some(Decision { approved: true, overdue: false });
        }
        (at_ms >= deadline_ms).then_some(Decision { approved: self.approve_overdue, overdue: true })
    }

    /// When something is due next, Unix ms: a reminder, an escalation or the end; `now_ms` itself is past.
    pub fn due_ms(&self, deadline_ms: u64, now_ms: u64) -> (u64, Due) {
        let escalates_ms = self.escalates_ms(deadline_ms);
        let remind = self.remind_ms.into_iter();
        let reminders = remind.flat_map(|before| [escalates_ms.saturating_sub(before), deadline_ms.saturating_sub(before)]);
        let escalation = self.escalation.iter().map(|_| (escalates_ms, Due::Escalation));
        let marks = reminders.map(|at_ms| (at_ms, Due::Reminder)).chain(escalation);
        marks
            .filter(|(at_ms, _)| *at_ms > now_ms && *at_ms < deadline_ms)
            .min_by_key(|(at_ms, _)| *at_ms)
            .unwrap_or((deadline_ms, Due::End))
    }

    /// What was decided and by whom: the text of a JSON object.
    pub fn told(&self, votes: &[Vote], decision: Decision, at_ms: u64) -> Bytes {
        let word = if decision.approved { "approved" } else { "rejected" };
        let mut out = format!("{{\"approved\":{},\"decision\":\"{word}\",\"overdue\":{},", decision.approved, decision.overdue);
        out.push_str(&format!("\"decided_at_ms\":{at_ms},\"votes\":["));
        for (at, vote) in votes.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            vote.write(&mut out);
        }
        out.push(']');
        if let Some(plan) = &self.plan {
            out.push_str(",\"plan_digest\":");
            write_text(&mut out, plan);
        }
        out.push('}');
        out.into()
    }
}

/// What is due of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Who is asked is reminded.
    Reminder,
    /// Others are asked.
    Escalation,
    /// Its time is over.
    End,
}

impl Round {
    /// Whether this person is asked.
    pub fn names(&self, actor: &str) -> bool {
        self.approvers.iter().any(|name| **name == *actor || **name == *ANYBODY)
    }
}

impl Vote {
    /// As the text of a JSON object.
    fn write(&self, out: &mut String) {
        out.push_str("{\"actor\":");
        write_text(out, &self.actor);
        out.push_str(if self.approve { ",\"decision\":\"approved\"" } else { ",\"decision\":\"rejected\"" });
        if !self.comment.is_empty() {
            out.push_str(",\"comment\":");
            write_text(out, &self.comment);
        }
        if self.signed {
            out.push_str(",\"signed\":true");
        }
        out.push_str(&format!(",\"at_ms\":{}}}", self.at_ms));
    }
}

/// A text as JSON.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(approvers: &[&str], quorum: u32, wait_ms: u64) -> Round {
        Round { approvers: approvers.iter().map(|name| Text::from(*name)).collect(), quorum, wait_ms }
    }

    fn gate(first: Round) -> Gate {
        Gate { first, escalation: None, approve_overdue: false, remind_ms: None, signed: false, plan: None }
    }

    fn vote(actor: &str, approve: bool, at_ms: u64) -> Vote {
        let (actor, empty) = (Text::from(actor), Text::new());
        Vote { actor, approve, comment: empty.clone(), id: empty.clone(), signed: false, plan: empty, at_ms }
    }

    #[test]
    fn a_quorum_opens_a_gate_and_one_rejection_closes_it() {
        let gate = gate(round(&["ann", "ben", "cy"], 2, 1_000));
        let mut votes = vec![];
        assert_eq!(gate.decision(&votes, 1_000, 999), None);
        votes.push(vote("ann", true, 10));
        assert_eq!(gate.decision(&votes, 1_000, 20), None, "one of two");
        let both = [&votes[..], &[vote("cy", true, 20)]].concat();
        assert_eq!(gate.decision(&both, 1_000, 20), Some(Decision { approved: true, overdue: false }));
        let against = [&votes[..], &[vote("ben", false, 20)]].concat();
        assert_eq!(gate.decision(&against, 1_000, 20), Some(Decision { approved: false, overdue: false }));
    }

    #[test]
    fn silence_approves_nothing_unless_that_was_asked_for() {
        let mut gate = gate(round(&["ann"], 1, 1_000));
        assert_eq!(gate.decision(&[], 1_000, 1_000), Some(Decision { approved: false, overdue: true }));
        gate.approve_overdue = true;
        assert_eq!(gate.decision(&[], 1_000, 999), None);
        assert_eq!(gate.decision(&[], 1_000, 1_000), Some(Decision { approved: true, overdue: true }));
    }

    #[test]
    fn a_word_counts_once_and_only_from_who_is_asked() {
        let mut gate = gate(round(&["ann", "ben"], 2, 1_000));
        let votes = [Vote { id: Text::from("s1"), ..vote("ann", true, 10) }];
        assert_eq!(gate.hear(&votes, &vote("eve", true, 20), 1_000, 20), Err(Unheard::Stranger));
        assert_eq!(gate.hear(&votes, &vote("ann", false, 20), 1_000, 20), Err(Unheard::Heard(0)), "the first word stands");
        let same_signal = Vote { id: Text::from("s1"), ..vote("ben", true, 20) };
        assert_eq!(gate.hear(&votes, &same_signal, 1_000, 20), Ok(()), "a name of somebody else's signal is no word of theirs");
        assert_eq!(gate.hear(&votes, &vote("ben", true, 20), 1_000, 20), Ok(()));
        gate.signed = true;
        assert_eq!(gate.hear(&votes, &vote("ben", true, 20), 1_000, 20), Err(Unheard::Unsigned));
        gate.plan = Some(Text::from("p1"));
        let other = Vote { signed: true, plan: Text::from("p2"), ..vote("ben", true, 20) };
        assert_eq!(gate.hear(&votes, &other, 1_000, 20), Err(Unheard::OtherPlan));
        assert_eq!(gate.hear(&votes, &Vote { approve: false, ..other }, 1_000, 20), Ok(()), "who refuses need not name a plan");
    }

    #[test]
    fn others_are_asked_when_the_first_are_silent() {
        let mut gate = gate(round(&["ann"], 1, 1_000));
        gate.escalation = Some(round(&["boss", "ann"], 2, 500));
        gate.remind_ms = Some(100);
        let deadline_ms = gate.wait_ms();
        assert_eq!(gate.hear(&[], &vote("boss", true, 999), deadline_ms, 999), Err(Unheard::Stranger), "not yet");
        assert_eq!(gate.hear(&[], &vote("boss", true, 1_000), deadline_ms, 1_000), Ok(()));
        assert_eq!(gate.decision(&[vote("boss", true, 1_100)], deadline_ms, 1_200), None, "one of two");
        let both = [vote("boss", true, 1_100), vote("ann", true, 1_200)];
        assert_eq!(gate.decision(&both, deadline_ms, 1_200), Some(Decision { approved: true, overdue: false }));
        let mut at_ms = 0;
        let dues = std::iter::from_fn(|| {
            let (due_ms, due) = gate.due_ms(deadline_ms, at_ms);
            at_ms = due_ms;
            Some((due_ms, due)).filter(|_| due != Due::End)
        });
        assert_eq!(dues.collect::<Vec<_>>(), [(900, Due::Reminder), (1_000, Due::Escalation), (1_400, Due::Reminder)]);
        assert_eq!(gate.due_ms(deadline_ms, at_ms), (1_500, Due::End));
    }

    #[test]
    fn a_decision_is_told_with_all_who_decided() {
        let gate = gate(round(&["*"], 1, 1_000));
        let votes = [Vote { comment: Text::from("a \"quote\"\n"), signed: true, ..vote("ann", true, 10) }];
        let told = gate.told(&votes, Decision { approved: true, overdue: false }, 12);
        let wanted = r#"{"approved":true,"decision":"approved","overdue":false,"decided_at_ms":12,"votes":[{"actor":"ann","decision":"approved","comment":"a \"quote\"\u000a","signed":true,"at_ms":10}]}"#;
        assert_eq!(std::str::from_utf8(&told), Ok(wanted));
    }
}
