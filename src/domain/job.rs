//! A job for a model: its states, and what becomes of it when something befalls it. The
//! decisions are here and pure; `services/jobs` writes down what they say.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::backoff;

/// The last of the priorities.
pub const PRIORITY_MAX: i16 = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobState {
    pub fn text(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A job as it is kept, without its request and its result.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Job {
    /// A ULID.
    pub id: String,
    pub created_by: Uuid,
    /// Set where it is a project's review.
    pub project_id: Option<String>,
    pub state: JobState,
    pub model: String,
    pub priority: i16,
    /// Claims that counted.
    pub attempt: i32,
    /// Failed attempts.
    pub failures: i32,
    /// Key of its log.
    pub stream: i64,
    pub webhook_url: Option<String>,
    pub webhook_gone: bool,
    /// Number of its next webhook.
    pub sequence: i32,
    pub error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
}

/// What a job's next state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub state: JobState,
    pub attempt: i32,
    pub failures: i32,
    /// It has run before.
    pub started: bool,
}

/// What can befall a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Happening {
    /// A worker has claimed it. Found running, its last worker died.
    Claimed,
    /// Upstream answered, whole.
    Answered,
    /// The attempt failed. `retry` is `None` where another one would fail the same way.
    Failed { retry: Option<Retry> },
    /// Its worker stops in good order, or had no use for it: the claim does not count.
    GivenBack,
    /// Its workers kept dying.
    Parked,
    /// Somebody wants it no more.
    Cancelled,
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// What upstream asked for.
    pub after: Option<Duration>,
    /// Chance, in `0.0..1.0`.
    pub unit: f64,
}

/// One change of state, as events and webhooks tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub state: JobState,
    pub previous: JobState,
    pub attempt: i32,
    /// What was shown of an earlier attempt counts no more.
    pub resets: bool,
}

/// What becomes of the task that carries the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// This worker has it.
    Run,
    /// It is claimed again after so long.
    Again(Duration),
    /// It is over.
    End,
}

/// What is to be written down, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moves {
    pub now: Standing,
    pub changes: Vec<Change>,
    pub then: Then,
}

/// What becomes of a job. `None` where it has ended before: nothing changes any more.
pub fn decide(job: Standing, happening: Happening, failures_max: i32) -> Option<Moves> {
    if job.state.is_ended() {
        return None;
    }
    let mut moves = Moves { now: job, changes: Vec::new(), then: Then::End };
    match happening {
        Happening::Claimed => {
            if job.state == JobState::Running {
                moves.to(JobState::Queued);
            }
            moves.now.attempt += 1;
            moves.to(JobState::Running);
            if let Some(last) = moves.changes.last_mut() {
                last.resets = job.started;
            }
            moves.now.started = true;
            moves.then = Then::Run;
        }
        Happening::Answered => moves.to(JobState::Completed),
        Happening::Failed { retry } => {
            moves.now.failures += 1;
            match retry.filter(|_| moves.now.failures < failures_max) {
                None => moves.to(JobState::Failed),
                Some(retry) => {
                    moves.to(JobState::Queued);
                    let failures = u32::try_from(moves.now.failures).unwrap_or(1);
                    let pause = backoff::job(failures, retry.unit);
                    moves.then = Then::Again(retry.after.map_or(pause, |asked| asked.max(pause)));
                }
            }
        }
        Happening::GivenBack => {
            moves.now.attempt = (job.attempt - 1).max(0);
            moves.to(JobState::Queued);
            moves.then = Then::Again(Duration::ZERO);
        }
        Happening::Parked => moves.to(JobState::Failed),
        Happening::Cancelled => moves.to(JobState::Cancelled),
    }
    Some(moves)
}

impl Moves {
    fn to(&mut self, state: JobState) {
        let previous = std::mem::replace(&mut self.now.state, state);
        if previous != state {
            self.changes.push(Change { state, previous, attempt: self.now.attempt, resets: false });
        }
    }
}

impl Job {
    pub fn standing(&self) -> Standing {
        Standing {
            state: self.state,
            attempt: self.attempt,
            failures: self.failures,
            started: self.started_at.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        JobState::{Queued, Running},
        *,
    };

    const NEW: Standing = Standing { state: JobState::Queued, attempt: 0, failures: 0, started: false };
    const RETRY: Option<Retry> = Some(Retry { after: None, unit: 0.5 });

    fn after(happenings: &[Happening]) -> Standing {
        happenings.iter().fold(NEW, |job, happening| decide(job, *happening, 3).map_or(job, |moves| moves.now))
    }

    #[test]
    fn the_third_failure_is_the_last() {
        let failed = [Happening::Claimed, Happening::Failed { retry: RETRY }].repeat(3);
        assert_eq!(after(&failed[..4]).state, JobState::Queued);
        let end = after(&failed);
        assert_eq!((end.state, end.attempt, end.failures), (JobState::Failed, 3, 3));
    }

    #[test]
    fn a_worker_that_died_is_no_failure_and_its_claim_counts() {
        let rescued = decide(after(&[Happening::Claimed]), Happening::Claimed, 3).expect("it goes on");
        let told: Vec<_> = rescued.changes.iter().map(|c| (c.previous, c.state, c.attempt, c.resets)).collect();
        assert_eq!(told, [(Running, Queued, 1, false), (Queued, Running, 2, true)]);
        assert_eq!(rescued.now.failures, 0);
    }

    #[test]
    fn a_claim_that_was_given_back_does_not_count() {
        assert_eq!(after(&[Happening::Claimed, Happening::GivenBack]).attempt, 0);
        assert_eq!(after(&[Happening::Claimed, Happening::GivenBack, Happening::Claimed]).attempt, 1);
    }

    #[test]
    fn what_upstream_asks_for_raises_the_pause() {
        let claimed = after(&[Happening::Claimed]);
        let wait = |after| match decide(claimed, Happening::Failed { retry: Some(Retry { after, unit: 0.5 }) }, 3) {
            Some(Moves { then: Then::Again(wait), .. }) => wait,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(None), Duration::from_secs(2));
        assert_eq!(wait(Some(Duration::from_secs(40))), Duration::from_secs(40));
        assert_eq!(wait(Some(Duration::from_millis(1))), Duration::from_secs(2));
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            4 => Just(Happening::Claimed),
            1 => Just(Happening::Answered),
            2 => (0.0..1.0f64).prop_map(|unit| Happening::Failed { retry: Some(Retry { after: None, unit }) }),
            1 => Just(Happening::Failed { retry: None }),
            1 => Just(Happening::GivenBack),
            1 => Just(Happening::Parked),
            1 => Just(Happening::Cancelled),
        ]
    }

    proptest! {
        #[test]
        fn changes_form_a_chain_and_an_end_is_the_end(story in proptest::collection::vec(happening(), 0..40)) {
            let mut job = NEW;
            for happening in story {
                let Some(moves) = decide(job, happening, 3) else {
                    prop_assert!(job.state.is_ended());
                    continue;
                };
                let mut at = job.state;
                for change in &moves.changes {
                    prop_assert_eq!(change.previous, at);
                    prop_assert_ne!(change.state, at);
                    at = change.state;
                }
                prop_assert_eq!(at, moves.now.state);
                prop_assert_eq!(moves.then == Then::End, at.is_ended());
                prop_assert_eq!(moves.then == Then::Run, at == JobState::Running);
                prop_assert!(moves.now.attempt >= 0 && moves.now.failures <= 3);
                job = moves.now;
            }
        }
    }
}
