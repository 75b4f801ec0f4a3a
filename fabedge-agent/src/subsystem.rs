//! What every subsystem is: it observes the actual state, plans the difference (pure), and applies the plan in two
//! phases, so that across subsystems everything grows in order before anything shrinks in reverse.

use std::fmt;

/// An error with its chain of causes, kept as data.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Which half of a plan is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Add and change.
    Grow,
    /// Remove what is ours and no longer wanted.
    Shrink,
}

/// What became of one action of a plan. Partial failure is data: the other actions are carried out all the same.
#[derive(Debug)]
pub struct Outcome {
    /// What was done: `add`, `replace`, `delete`, `initiate`.
    pub action: &'static str,
    /// To which object, as a person would name it: `route 10.10.2.0/24 table 220`.
    pub object: String,
    /// How it went.
    pub result: Result<(), Error>,
}

impl Outcome {
    /// The outcome of `action` on `object`.
    pub fn new<E: Into<Error>>(
        action: &'static str,
        object: impl fmt::Display,
        result: Result<(), E>,
    ) -> Self {
        Self {
            action,
            object: object.to_string(),
            result: result.map_err(Into::into),
        }
    }
}

/// One subsystem. A desired state of `Default` means: nothing of ours may be left (that is how `cleanup` works).
#[allow(async_fn_in_trait, reason = "used only within this crate, on one thread")]
pub trait Subsystem {
    /// What should be, as computed by [`crate::desired`].
    type Desired: Default;
    /// The difference; equal plans mean equal work, and an empty plan means that nothing is to be done.
    type Plan: fmt::Debug + PartialEq;

    /// The name in logs, status and metrics.
    const NAME: &'static str;

    /// Observes and plans.
    ///
    /// # Errors
    /// When the actual state cannot be read. Unknown is not empty: no plan is made then.
    async fn plan(&mut self, desired: &Self::Desired) -> Result<Self::Plan, Error>;

    /// Carries out one phase of the plan, action by action; empty where there was nothing to do.
    async fn apply(&mut self, plan: &Self::Plan, phase: Phase) -> Vec<Outcome>;
}
