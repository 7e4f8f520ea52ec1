//! The engine's mind, decision by decision. What long histories bring out is for the simulator.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{retry::RetryPolicy, *};

const OUTSIDE: Nature = Nature {
    performs: Performs::Attempts,
    idempotent: true,
    leaves_doubt: true,
    resumes: false,
    undoes_itself: false,
    verbatim: None,
};
const NOTHING: Nature = Nature { performs: Performs::Instantly(given), leaves_doubt: false, ..OUTSIDE };
const APPROVAL: Nature = Nature {
    performs: Performs::Waits { until: |_, _| Ok(None), over: |_| Outcome::never("late"), answerable: true },
    leaves_doubt: false,
    ..OUTSIDE
};

#[expect(clippy::unnecessary_wraps, reason = "as actions are")]
fn given(config: &Map<String, Value>) -> Result<Value, String> {
    Ok(config.get("output").cloned().unwrap_or_default())
}

/// Steps by name, what they need, and what they are; each that goes outside is undone by `undo`.
fn saga(steps: &[(&str, &[usize], Nature)]) -> Saga {
    saga_on_failure(steps, OnFailure::Stop)
}

fn saga_on_failure(steps: &[(&str, &[usize], Nature)], on_failure: OnFailure) -> Saga {
    let planned = steps.iter().enumerate().map(|(at, (name, needs, nature))| PlannedStep {
        name: (*name).to_owned(),
        action: "some.action".to_owned(),
        nature: *nature,
        needs: needs.to_vec(),
        needed_by: (0..steps.len()).filter(|later| steps[*later].1.contains(&at)).collect(),
        config: json!({"output": name}),
        when: None,
        undo: nature.leaves_doubt.then(|| Undo::By { action: "undo".into(), config: None, nature: OUTSIDE }),
        policy: RetryPolicy::with_max_retries(1),
        timeout: None,
        idempotent: nature.idempotent,
    });
    let steps = planned.collect();
    Saga::new(Arc::new(Plan { id: Uuid::nil(), steps, vars: BTreeMap::new(), on_failure, timeout: None }))
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

fn begun(changes: &Changes) -> Vec<(usize, bool)> {
    changes.begin.iter().map(|begin| (begin.step, begin.undo)).collect()
}

fn ends(saga: &mut Saga, step: usize, outcome: Outcome) -> Changes {
    let attempt = saga.steps[step].attempt;
    saga.decide(Happening::Ended { step, attempt, outcome, note: None }, now(), 0.5)
}

fn undone(saga: &mut Saga, step: usize, outcome: Outcome) -> Changes {
    let attempt = saga.steps[step].undo.as_ref().map_or(0, |undo| undo.attempts);
    saga.decide(Happening::UndoEnded { step, attempt, outcome }, now(), 0.5)
}

fn taken(saga: &mut Saga) -> Changes {
    saga.decide(Happening::Taken, now(), 0.5)
}

fn done() -> Outcome {
    Outcome::Done(json!({}))
}

#[test]
fn steps_that_need_nobody_are_carried_out_in_one_decision() {
    let mut saga = saga(&[("a", &[], NOTHING), ("b", &[0], NOTHING), ("c", &[1], NOTHING)]);
    let changes = taken(&mut saga);
    assert_eq!(saga.status, SagaStatus::Completed);
    assert_eq!(saga.steps[2].output, Some(json!("c")));
    assert_eq!(changes.transitions.len(), 2 + 3 * 2);
}

#[test]
fn at_most_sixteen_are_at_work() {
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let steps: Vec<(&str, &[usize], Nature)> = names.iter().map(|name| (name.as_str(), &[][..], OUTSIDE)).collect();
    let mut saga = saga(&steps);
    assert_eq!(begun(&taken(&mut saga)).len(), AT_ONCE);
    assert_eq!(begun(&ends(&mut saga, 3, done())), [(16, false)]);
}

#[test]
fn branches_under_way_end_when_one_has_failed_and_none_begins() {
    let mut saga = saga(&[("a", &[], OUTSIDE), ("b", &[], OUTSIDE), ("c", &[1], OUTSIDE)]);
    taken(&mut saga);
    ends(&mut saga, 0, Outcome::never("no"));
    assert_eq!(saga.status, SagaStatus::Running);
    assert_eq!(begun(&ends(&mut saga, 1, done())), []);
    assert_eq!((saga.status, saga.steps[2].status), (SagaStatus::Failed, StepStatus::Pending));
    assert_eq!(saga.error.as_deref(), Some("step \"a\": no"));
    saga.control(&Control::Retry, Uuid::nil(), now(), true).expect("a failed saga is retried");
    assert_eq!(begun(&saga.decide(Happening::Look, now(), 0.5)), [(0, false), (2, false)]);
}

#[test]
fn a_retry_has_a_new_key_after_a_failure_and_the_old_one_after_doubt() {
    let unsafe_twice = Nature { idempotent: false, ..OUTSIDE };
    let mut saga = saga(&[("a", &[], unsafe_twice)]);
    let first = taken(&mut saga).begin[0].key.clone();
    ends(&mut saga, 0, Outcome::CutOff("gone".into()));
    assert_eq!((saga.status, saga.steps[0].status), (SagaStatus::Failed, StepStatus::Unknown));
    saga.control(&Control::RetryStep(0), Uuid::nil(), now(), true).expect("an unknown step is retried");
    let again = saga.decide(Happening::Look, now(), 0.5).begin[0].key.clone();
    assert_eq!(first, again);
    ends(&mut saga, 0, Outcome::CutOff("gone".into()));
    let mut saga = self::saga(&[("a", &[], OUTSIDE)]);
    taken(&mut saga);
    ends(&mut saga, 0, Outcome::never("no"));
    saga.control(&Control::RetryStep(0), Uuid::nil(), now(), true).expect("a failed step is retried");
    assert_ne!(saga.decide(Happening::Look, now(), 0.5).begin[0].key, first);
}

#[test]
fn a_diamond_is_undone_from_its_end() {
    let steps: &[(&str, &[usize], Nature)] =
        &[("a", &[], OUTSIDE), ("b", &[0], OUTSIDE), ("c", &[0], OUTSIDE), ("d", &[1, 2], OUTSIDE)];
    let mut saga = saga_on_failure(steps, OnFailure::Compensate);
    taken(&mut saga);
    (0..3).for_each(|step| drop(ends(&mut saga, step, done())));
    let changes = ends(&mut saga, 3, Outcome::never("no"));
    assert_eq!(begun(&changes), [(2, true), (1, true)]);
    assert_eq!(begun(&undone(&mut saga, 1, done())), []);
    assert_eq!(begun(&undone(&mut saga, 2, done())), [(0, true)]);
    undone(&mut saga, 0, done());
    assert_eq!(saga.status, SagaStatus::Compensated);
    assert_eq!(saga.steps[3].status, StepStatus::Failed);
}

#[test]
fn a_compensation_that_cannot_be_made_leaves_the_saga_stuck() {
    let mut saga = saga(&[("a", &[], OUTSIDE)]);
    taken(&mut saga);
    ends(&mut saga, 0, done());
    assert_eq!(saga.status, SagaStatus::Completed);
    saga.control(&Control::Rollback, Uuid::nil(), now(), true).expect("a completed saga is rolled back");
    taken(&mut saga);
    undone(&mut saga, 0, Outcome::never("no"));
    assert_eq!((saga.status, saga.steps[0].status), (SagaStatus::Stuck, StepStatus::CompensationFailed));
    saga.control(&Control::Rollback, Uuid::nil(), now(), true).expect("once more");
    assert_eq!(begun(&taken(&mut saga)), [(0, true)]);
    undone(&mut saga, 0, done());
    assert_eq!(saga.status, SagaStatus::Compensated);
}

#[test]
fn what_is_in_flight_has_its_grace_when_the_saga_is_cancelled() {
    let mut saga = saga(&[("a", &[], OUTSIDE), ("b", &[], APPROVAL), ("c", &[0], OUTSIDE)]);
    taken(&mut saga);
    let cancel = Control::Cancel { compensate: true, reason: None };
    saga.control(&cancel, Uuid::nil(), now(), true).expect("a running saga is cancelled");
    assert_eq!(saga.status, SagaStatus::Compensating);
    let statuses: Vec<_> = saga.steps.iter().map(|step| step.status).collect();
    assert_eq!(statuses, [StepStatus::Running, StepStatus::Cancelled, StepStatus::Cancelled]);
    let late = now() + GRACE;
    let changes = saga.decide(Happening::Look, late, 0.5);
    assert_eq!((changes.cut.as_slice(), begun(&changes)), (&[(0, false)][..], vec![(0, true)]));
    undone(&mut saga, 0, done());
    assert_eq!(saga.status, SagaStatus::Compensated);
}

#[test]
fn a_saga_that_only_waits_says_so_and_is_answered() {
    let mut saga = saga(&[("a", &[], APPROVAL), ("b", &[0], NOTHING)]);
    taken(&mut saga);
    assert_eq!((saga.status, saga.next_due(), saga.is_busy()), (SagaStatus::Waiting, None, false));
    let answer = Control::Answer { step: 0, approve: true, comment: Some("go".into()) };
    saga.control(&answer, Uuid::nil(), now(), true).expect("it waits for this");
    let refused = saga.control(&answer, Uuid::nil(), now(), true).expect_err("it has its answer");
    assert_eq!(refused.step_status, Some(StepStatus::Completed));
    saga.decide(Happening::Look, now() + TimeDelta::seconds(1), 0.5);
    assert_eq!(saga.status, SagaStatus::Completed);
}
