//! Deliberate faults of the engine, by which tests prove that their checks find faults. Only the feature `testing` can
//! inject one: without it the engine has no code for them.

/// Deliberate faults that tests inject into the engine to prove that a check finds them. Never set outside tests.
///
/// Every guarantee that is tested in memory has at least one fault here; `tests/faults.rs` names the check that finds
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "tests name faults"))]
pub enum Fault {
    /// Drops one closed row of each epoch instead of emitting it.
    LoseRow,
    /// `on_change` and `on_fire` do not retract old rows.
    SkipRetraction,
    /// Lateness ignores the activation watermarks of partitions.
    IgnoreActivationWatermark,
    /// A sink publishes rows of an epoch before the epoch is complete.
    PublishEarly,
    /// A worker releases its capability for an epoch before the journal has synced the epoch.
    ReleaseEarly,
    /// Drops records between the source and the flow.
    LoseRecord,
    /// A window closes by its watermark before all records of the epoch have arrived.
    CloseEarly,
    /// `on_change` ignores rows that a seal has moved from the memtable into the trace.
    IgnoreSealed,
    /// A worker may discover partitions that exist from the start only after the first epoch.
    DiscoverLate,
    /// Records lose their offsets, which break ties.
    ForgetOffsets,
    /// A sink publishes again what an earlier incarnation published.
    PublishAgain,
    /// One segment of the snapshot is not loaded.
    LoseSegment,
    /// A checkpointed operator accepts input that its snapshot already counts.
    SkipGate,
    /// A sink acknowledges a snapshot's epoch before it has published that epoch.
    AcknowledgeEarly,
    /// A table drops the deletes of its snapshot.
    ForgetDeletes,
    /// A stream is joined with a table that is not complete yet.
    LookUpEarly,
    /// A view applies changes of an epoch before the epoch is complete.
    AnswerEarly,
    /// A view answers before the journal has been replayed.
    AnswerUnready,
}

#[cfg(feature = "testing")]
impl Fault {
    /// All faults.
    pub const ALL: [Fault; 18] = [
        Fault::LoseRow,
        Fault::SkipRetraction,
        Fault::IgnoreActivationWatermark,
        Fault::PublishEarly,
        Fault::ReleaseEarly,
        Fault::LoseRecord,
        Fault::CloseEarly,
        Fault::IgnoreSealed,
        Fault::DiscoverLate,
        Fault::ForgetOffsets,
        Fault::PublishAgain,
        Fault::LoseSegment,
        Fault::SkipGate,
        Fault::AcknowledgeEarly,
        Fault::ForgetDeletes,
        Fault::LookUpEarly,
        Fault::AnswerEarly,
        Fault::AnswerUnready,
    ];
}

/// The fault that a job injects, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InjectedFault {
    #[cfg(feature = "testing")]
    fault: Option<Fault>,
}

impl InjectedFault {
    #[cfg(feature = "testing")]
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        InjectedFault { fault }
    }

    /// `true` if this is the fault; never without the feature `testing`.
    #[inline]
    pub(crate) fn is(self, fault: Fault) -> bool {
        #[cfg(feature = "testing")]
        return self.fault == Some(fault);
        #[cfg(not(feature = "testing"))]
        {
            let _ = fault;
            false
        }
    }
}
