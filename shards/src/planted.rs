//! Bugs planted on purpose, each of which the simulation must catch. Without the feature `planted` all of this is nothing.
//!
//! [`planted`] is asked at the spot where the bug would sit; a test arms one bug at a time for its own thread.

macro_rules! bugs {
    ($($variant:ident = $doc:literal,)*) => {
        /// The planted bugs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $doc] $variant,)*
        }

        impl Bug {
            /// Every planted bug.
            pub const ALL: &'static [Bug] = &[$(Bug::$variant),*];
        }
    };
}

bugs! {
    AckBeforeDurable = "The result leaves before its frame is durable.",
    SettleBeforeConfirm = "The delivery is acked before the result was stored.",
    ForgetOnSettle = "A finished key is forgotten at once.",
    IgnoreFingerprint = "Same key, other content is answered as if it were the same.",
    RerunUnsafe = "An unsafe step that may have run is run again after a crash.",
    DropUnpublished = "Outcomes without a publish record are not sent again after a crash.",
    LeakSlot = "A timed-out try never gives its slot back.",
    IgnoreTenantLimit = "A tenant may run more than its limit.",
    IgnoreLaneLimit = "More steps of a lane run than there is room for.",
    IgnoreMemory = "Steps run together that ask for more memory than there is.",
    IgnoreConcurrency = "A step begins beside more of its kind than it said.",
    NoNakOverQueue = "A delivery over the tenant's queue is acked and dropped.",
    ResetTries = "A restart forgets the tries already made.",
    ResetDeadline = "A restart gives a step its whole budget again.",
    NoDeadLetter = "A failed step leaves no dead letter.",
    DropOpenOnRecovery = "Accepted steps without an outcome are dropped at boot.",
    PruneLive = "A segment with a live step in it is pruned.",
    CarryWithoutTries = "What is carried forward forgets that it was tried.",
    SecondOutcome = "A late verdict after a time-out writes a second outcome.",
    StaleTicket = "A stale verdict is taken for the current try's.",
    LoseOtherAsker = "Only the first asker of a key is answered.",
    RunExpired = "A message past its time is run.",
    StrikeInFlight = "A step that was merely in flight at a death of the process gets a strike for it.",
    NoStrike = "A step that ends the process gets no strike.",
    RunInherited = "A step that must never run twice is run although an earlier owner may have run it.",
    NeverClaim = "A step that must never run twice is run without being claimed.",
    RunClaimed = "A step that must never run twice is run although another worker has claimed it.",
    RunForgotten = "A step that must never run twice is run although a forgotten life of it was claimed.",
    KeepSuperseded = "What another owner has had since is finished as if it were still ours.",
    ForgetUntold = "An outcome that was never told is told without its dead letter.",
    AcceptWhileFull = "New work is accepted though the journal's disk is full.",
    BelieveJump = "A clock that jumped far ahead is believed at once.",
    TimeoutWhileWriting = "A step whose outcome waits for the disk still times out.",
    SkipLook = "Nobody looks into key files for what is not in memory.",
    ForgetRetryTime = "A snapshot says nothing of when a retry is due.",
    SealBeforeDurable = "A snapshot is kept before the frames that it tells of are durable.",
    MergeForgets = "A merge of key files loses some keys.",
    StruckFirst = "A step with a strike does not wait for the others that were recovered with it.",
    StruckAtOnce = "A step with a strike leaves others no time to start before it.",
    CallUntold = "A call that rides along with a step is not told its outcome.",
    CallTwice = "A call that was turned away for another is told the outcome too.",
    ReplyEarly = "A cancel is confirmed before it is durable.",
    CancelUnheard = "A cancel is confirmed and the step goes on.",
    CancelAside = "A cancel by assignment finds a message that was put aside.",
    NoticeUnanswered = "Who cancels a step that has ended is not told.",
    CancelWaiting = "A cancelled arrival that waits for room is dropped without an answer.",
    Untouched = "A step that another may have had is taken for untouched.",
    DropWhileFull = "A delivery that comes while the disk is full is acked and dropped.",
    StayFull = "The disk is taken for full for ever.",
    HoldSlotInBackoff = "A step between two tries keeps its running slot.",
    LeakQueuePlace = "A step that ends before it runs never gives its place in the queue back.",
    LeakHeldBytes = "The bytes that a step held are never given back.",
    LeakWaiting = "Who waited unaccepted and was let in is still counted as waiting.",
    HeldOutOfOrder = "All that waits for the disk is let go with the first frame that is durable.",
    AuditSkip = "An audit number is passed over.",
    AuditRestart = "A restart forgets the newest audit numbers.",
    NoDeadline = "After a failed try a step has no deadline any more.",
    RetryAtOnce = "The wait between two tries is not waited.",
    RetryForever = "The number of tries is not bounded.",
    RetryUnsafe = "A step that must never run twice is tried again though it may have happened.",
    NoWatermark = "A segment is forgotten without its watermark.",
    KeepSettled = "Deliveries that were settled are kept alive.",
    DropCrowd = "Who asks on core NATS for a step that too many ask for is dropped without a word.",
    CutHarmless = "A step that was cut in the middle is said to have done nothing.",
    ClaimHarmless = "Where workers share, a step whose claim got no answer is said to have done nothing.",
}

#[cfg(feature = "planted")]
mod armed {
    use super::Bug;
    use std::cell::Cell;

    thread_local!(static ARMED: Cell<Option<Bug>> = const { Cell::new(None) });

    /// Arms one bug, or none, for this thread.
    pub fn arm(bug: Option<Bug>) {
        ARMED.set(bug);
    }

    /// Whether this bug is armed on this thread.
    pub fn planted(bug: Bug) -> bool {
        ARMED.get() == Some(bug)
    }
}
#[cfg(feature = "planted")]
pub use armed::{arm, planted};

/// Whether this bug is armed: never, in a build without the feature `planted`.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub fn planted(_: Bug) -> bool {
    false
}
