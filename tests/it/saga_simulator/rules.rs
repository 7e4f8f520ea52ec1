//! The contract in tables, written down without a look at the engine: which status may follow
//! which, and what may be asked of a saga when.

use rdev::domain::saga::{
    Control,
    SagaStatus::{self, Cancelled, Compensated, Compensating, Completed, Failed, Pending, Running, Stuck, Waiting},
    StepStatus,
};

/// Whether a saga's status may follow another.
pub fn saga_may(from: SagaStatus, to: SagaStatus) -> bool {
    let next: &[SagaStatus] = match from {
        // One that ran before and waits for its turn again may have something to undo.
        Pending => &[Running, Cancelled, Compensating],
        Running => &[Waiting, Completed, Failed, Compensating, Cancelled],
        Waiting => &[Running, Compensating, Cancelled],
        // Retried; as pending where it has to wait for its turn.
        Failed => &[Running, Pending, Compensating, Cancelled],
        Completed => &[Compensating],
        Compensating => &[Compensated, Stuck],
        Stuck => &[Compensating, Cancelled],
        Compensated | Cancelled => &[],
    };
    next.contains(&to)
}

/// Whether a step's status may follow another.
pub fn step_may(from: StepStatus, to: StepStatus) -> bool {
    use StepStatus as S;
    let next: &[S] = match from {
        // Failed where its config refers to nothing; unknown where an attempt before was cut off.
        S::Pending => &[S::Running, S::Waiting, S::Skipped, S::Failed, S::Cancelled, S::Unknown],
        S::Running => &[S::Completed, S::Failed, S::Unknown, S::Retrying, S::Cancelled],
        S::Retrying => &[S::Running, S::Failed, S::Unknown, S::Cancelled],
        S::Waiting => &[S::Completed, S::Failed, S::Cancelled],
        S::Completed | S::CompensationFailed => &[S::Compensating],
        S::Failed | S::Unknown => &[S::Pending, S::Skipped, S::Compensating],
        S::Skipped => &[S::Pending],
        S::Compensating => &[S::Compensated, S::CompensationFailed],
        S::Compensated | S::Cancelled => &[],
    };
    next.contains(&to)
}

/// What a control call looks at.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    pub saga: SagaStatus,
    /// It was cancelled, and what is in flight has its grace.
    pub is_stopping: bool,
    pub step: Option<StepStatus>,
    pub is_approval: bool,
}

/// Whether somebody may ask this now.
pub fn may_ask(asked: &Control, now: Standing) -> bool {
    use StepStatus as S;
    let Standing { saga, step, .. } = now;
    let goes_on = matches!(saga, Running | Waiting) && !now.is_stopping;
    match asked {
        Control::Retry => saga == Failed,
        Control::Rollback => matches!(saga, Failed | Running | Waiting | Stuck | Completed),
        Control::Cancel { .. } => matches!(saga, Pending | Running | Waiting | Failed | Stuck),
        Control::Abandon { .. } => saga == Stuck,
        Control::RetryStep(_) => {
            (goes_on || saga == Failed) && matches!(step, Some(S::Failed | S::Unknown | S::Skipped))
        }
        Control::SkipStep(_) => {
            (goes_on || matches!(saga, Failed | Pending)) && matches!(step, Some(S::Failed | S::Unknown | S::Pending))
        }
        Control::Answer { .. } => goes_on && now.is_approval && step == Some(S::Waiting),
    }
}
