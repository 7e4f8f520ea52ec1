//! The book that the witness keeps of one saga: what listeners heard, what was done outside, what
//! was undone. It knows the contract, and of the engine only what it answers.

use chrono::{DateTime, Utc};
use rdev::domain::saga::{
    AT_ONCE, CUT_OFFS_MAX, Changes, Control, GRACE, Plan, Saga, SagaStatus, Step, StepStatus, Transition, Undo,
};

use super::{
    checks::Witness,
    database::same_heads,
    ensure,
    plans::{Kind, is_attempted},
    rules::{saga_may, step_may},
};

/// Who changed a saga.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    Driver,
    /// One that stops, and begins nothing.
    Leaver,
    /// Whoever found that it kills.
    Undertaker,
    Control(&'a Control),
}

/// A decision that is durable.
pub struct Commit<'a> {
    pub plan: &'a Plan,
    pub kinds: &'a [Kind],
    pub old: &'a Saga,
    pub new: &'a Saga,
    pub changes: &'a Changes,
    pub by: By<'a>,
    pub now: DateTime<Utc>,
    /// Also what takes long is looked at.
    pub whole: bool,
}

/// What is known of one saga.
pub struct Book {
    told: SagaStatus,
    steps: Vec<Page>,
    at_work: usize,
    undoing: usize,
}

/// Of one step.
#[derive(Clone)]
struct Page {
    told: StepStatus,
    /// Done outside and not undone: under the key of this generation, and whether all of it was.
    effect: Option<(i32, bool)>,
    /// Sent, and nobody has recorded what came of it.
    unanswered: bool,
    /// Somebody asked for another although attempts up to this one may still be under way.
    forgiven: i32,
    /// Somebody says that there is nothing to undo.
    vouched: bool,
    /// The newest attempt that has ended, and the generation that completed.
    ended: i32,
    completed: Option<i32>,
    /// Since its retries began, and in a row.
    failures: i32,
    cut_offs: i32,
    undo_began: bool,
    /// Of its attempts, and of those of its compensation: by generation.
    keys: [Option<(i32, String)>; 2],
}

const UNTOUCHED: Page = Page {
    told: StepStatus::Pending,
    effect: None,
    unanswered: false,
    forgiven: 0,
    vouched: false,
    ended: 0,
    completed: None,
    failures: 0,
    cut_offs: 0,
    undo_began: false,
    keys: [None, None],
};

impl Book {
    pub fn new(steps: usize) -> Self {
        Self { told: SagaStatus::Pending, steps: vec![UNTOUCHED; steps], at_work: 0, undoing: 0 }
    }

    pub fn told(&self) -> SagaStatus {
        self.told
    }

    pub fn told_of(&self, step: usize) -> StepStatus {
        self.steps[step].told
    }

    pub fn is_idle(&self) -> bool {
        self.at_work + self.undoing == 0
    }

    pub fn committed(&mut self, seen: &mut Witness, commit: &Commit) -> Result<(), String> {
        self.log(seen, commit)?;
        for change in &commit.changes.transitions {
            let (told, at) = match change {
                Transition::Saga { status, previous, at, .. } => (self.saga_moved(*previous, *status, commit), at),
                Transition::Step { step, status, previous, at, .. } => {
                    (self.step_moved(*step, *previous, *status, commit), at)
                }
            };
            told.map_err(|what| format!("{change:?}: {what}"))?;
            ensure(*at == commit.now, || format!("{change:?} was told at {}", commit.now))?;
            count(seen, change);
        }
        self.agrees(commit)?;
        obeys(commit)?;
        let Commit { plan, new, by, .. } = commit;
        if let By::Control(Control::Cancel { compensate: true, .. }) = by {
            let left = self.left_to_undo(plan, new);
            let undone = new.status != SagaStatus::Cancelled || left.is_none();
            ensure(undone, || format!("it was to be compensated, and step {left:?} is not"))?;
        }
        Ok(())
    }

    fn saga_moved(&mut self, previous: SagaStatus, status: SagaStatus, commit: &Commit) -> Result<(), String> {
        ensure(previous == self.told, || format!("it was {:?}", self.told))?;
        ensure(saga_may(previous, status), || "that may not follow".to_owned())?;
        self.told = status;
        let under_way = self.steps.iter().position(|page| page.told.is_under_way());
        let rests = !status.is_at_work() && status != SagaStatus::Pending;
        ensure(!rests || under_way.is_none(), || format!("step {under_way:?} is under way"))?;
        match status {
            SagaStatus::Completed => {
                let open = self.steps.iter().position(|page| !page.told.is_done());
                ensure(open.is_none(), || format!("step {open:?} is not done"))
            }
            SagaStatus::Compensated => {
                let left = self.left_to_undo(commit.plan, commit.new);
                ensure(left.is_none(), || format!("step {left:?} is not undone"))
            }
            SagaStatus::Stuck => {
                let failed = self.steps.iter().any(|page| page.told == StepStatus::CompensationFailed);
                ensure(self.undoing == 0, || "something is being undone".to_owned())?;
                ensure(failed || matches!(commit.by, By::Undertaker), || "nothing is stuck".to_owned())?;
                ensure(commit.new.error.is_some(), || "nobody says why".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn left_to_undo(&self, plan: &Plan, saga: &Saga) -> Option<usize> {
        (0..self.steps.len()).find(|at| self.may_have(*at, saga) && plan.steps[*at].undo.is_some())
    }

    /// It completed or may have.
    fn may_have(&self, at: usize, saga: &Saga) -> bool {
        use StepStatus::{Compensating, CompensationFailed, Completed, Failed, Pending, Unknown};
        match self.steps[at].told {
            Completed | Unknown | Compensating | CompensationFailed => true,
            Failed | Pending => saga.steps[at].doubtful,
            _ => false,
        }
    }

    fn step_moved(
        &mut self,
        at: usize,
        previous: StepStatus,
        status: StepStatus,
        commit: &Commit,
    ) -> Result<(), String> {
        use StepStatus::{Compensating, Failed, Pending, Retrying, Running, Skipped, Waiting};
        let before = self.steps[at].told;
        ensure(previous == before, || format!("it was {before:?}"))?;
        ensure(step_may(previous, status), || "that may not follow".to_owned())?;
        let drives = matches!(commit.by, By::Driver);
        ensure(drives || !matches!(status, Running | Waiting | Compensating), || format!("{:?} began it", commit.by))?;
        let begins = previous == Pending && matches!(status, Running | Waiting | Skipped | Failed);
        if begins && !matches!(commit.by, By::Control(_)) {
            let need = commit.plan.steps[at].needs.iter().find(|need| !self.steps[**need].told.is_done());
            ensure(need.is_none(), || format!("step {need:?}, which it needs, is not done"))?;
        }
        if status == Compensating {
            self.may_be_undone(at, commit)?;
        }
        self.steps[at].told = status;
        let works = |status| usize::from(matches!(status, Running | Retrying));
        self.at_work = self.at_work + works(status) - works(previous);
        let undoes = |status| usize::from(status == Compensating);
        self.undoing = self.undoing + undoes(status) - undoes(previous);
        let (at_work, undoing) = (self.at_work, self.undoing);
        ensure(at_work.max(undoing) <= AT_ONCE, || format!("{at_work} are at work, {undoing} are being undone"))?;
        self.turn_page(at, status, commit)
    }

    fn may_be_undone(&self, at: usize, commit: &Commit) -> Result<(), String> {
        let Commit { plan, new, .. } = commit;
        let there_is = plan.steps[at].undo.is_some() && self.may_have(at, new);
        ensure(there_is, || "there is nothing to undo".to_owned())?;
        let in_the_way = plan.steps[at].needed_by.iter().find(|by| {
            let is_left = self.may_have(**by, new) && plan.steps[**by].undo.is_some();
            is_left || self.steps[**by].told.is_under_way()
        });
        ensure(in_the_way.is_none(), || format!("step {in_the_way:?}, which needed it, is not out of the way"))
    }

    fn turn_page(&mut self, at: usize, status: StepStatus, commit: &Commit) -> Result<(), String> {
        use StepStatus::{Compensated, Compensating, Pending, Skipped};
        let page = &mut self.steps[at];
        if matches!(status, Pending | Compensating) {
            (page.failures, page.cut_offs) = (0, 0);
        }
        match status {
            Pending => {
                let retried = matches!(commit.by, By::Control(Control::Retry | Control::RetryStep(_)));
                ensure(retried, || "nobody asked for that".to_owned())?;
                (page.unanswered, page.vouched, page.forgiven) = (false, false, commit.new.steps[at].attempt);
            }
            Skipped => page.vouched = matches!(commit.by, By::Control(_)),
            Compensated => {
                // A compensation that needs nobody does what it does.
                if matches!(&commit.plan.steps[at].undo, Some(Undo::By { nature, .. }) if !is_attempted(nature)) {
                    page.effect = None;
                }
                ensure(page.effect.is_none(), || "what it did is still there".to_owned())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// An attempt ends once, and no more are made than the policy has.
    fn log(&mut self, seen: &mut Witness, commit: &Commit) -> Result<(), String> {
        for entry in &commit.changes.log {
            let (Some(at), Some(attempt)) = (entry.step, entry.attempt) else { continue };
            let (page, step) = (&mut self.steps[at], &commit.new.steps[at]);
            match entry.outcome {
                "cut_off" => page.cut_offs += 1,
                "put_off" => seen.count("steps put off"),
                "compensation_failed" => (page.failures, page.cut_offs) = (page.failures + 1, 0),
                "completed" | "failed" => {
                    // What came of it is not known where the step is not.
                    page.unanswered &= step.status == StepStatus::Unknown;
                    ensure(attempt > page.ended, || format!("attempt {attempt} of step {at} ended twice"))?;
                    (page.ended, page.cut_offs) = (attempt, 0);
                }
                _ => {}
            }
            if entry.outcome == "completed" {
                let before = page.completed.replace(step.generation);
                let again = before.is_some_and(|before| before >= step.generation);
                ensure(!again, || format!("step {at} completed twice"))?;
            }
            page.failures += i32::from(entry.outcome == "failed");
            if page.cut_offs == CUT_OFFS_MAX {
                seen.count("cut off too often");
            }
            let retries = commit.plan.steps[at].policy.retries();
            ensure(page.failures <= retries + 1 && page.cut_offs <= CUT_OFFS_MAX + 1, || {
                format!(
                    "step {at} failed {} times with {retries} retries, or was cut off {}",
                    page.failures, page.cut_offs
                )
            })?;
        }
        Ok(())
    }

    /// What is stored is what was told, and what was not told has not changed.
    fn agrees(&self, commit: &Commit) -> Result<(), String> {
        let Commit { old, new, changes, kinds, .. } = commit;
        ensure(self.told == new.status, || format!("it is {:?}, told was {:?}", new.status, self.told))?;
        for at in &changes.steps {
            let (told, was, is) = (self.steps[*at].told, &old.steps[*at], &new.steps[*at]);
            ensure(told == is.status, || format!("step {at} is {:?}, told was {told:?}", is.status))?;
            let forth = was.generation <= is.generation && was.attempt - 1 <= is.attempt;
            ensure(forth, || format!("step {at} goes back"))?;
            self.stands_by_its_effect(*at, new, kinds)?;
        }
        if commit.whole {
            let silent =
                |at: &usize| !changes.steps.contains(at) && !is_the_same_step(&old.steps[*at], &new.steps[*at]);
            let silent = (0..new.steps.len()).find(silent);
            ensure(silent.is_none(), || format!("step {silent:?} changed unseen"))?;
        }
        ensure(changes.any || same_heads(old, new), || "it changed although nothing did".to_owned())
    }

    /// What was done outside is not taken for undone.
    pub fn stands_by_its_effect(&self, at: usize, saga: &Saga, kinds: &[Kind]) -> Result<(), String> {
        use StepStatus as S;
        let page = &self.steps[at];
        let status = page.told;
        if page.effect.is_none() {
            return Ok(());
        }
        let may_be = match status {
            S::Running | S::Completed | S::Unknown | S::Compensating | S::CompensationFailed => true,
            S::Failed | S::Pending | S::Retrying => saga.steps[at].doubtful,
            S::Skipped => page.vouched,
            S::Waiting | S::Cancelled | S::Compensated => false,
        };
        ensure(may_be, || format!("step {at} ({:?}) is {status:?}, and what it did is there", kinds[at]))
    }

    /// An attempt begins under a key.
    pub fn began(&mut self, step: usize, undo: bool, generation: i32, key: &str) -> Result<(), String> {
        let slot = usize::from(undo);
        self.steps[step].undo_began |= undo;
        let known = &self.steps[step].keys;
        let stable = known[slot].as_ref().is_none_or(|(at, before)| (*at == generation) == (before == key));
        ensure(stable, || format!("step {step}: its key is {key} in generation {generation}, it was {known:?}"))?;
        let other = known[1 - slot].as_ref().is_some_and(|(_, other)| other == key);
        ensure(!other, || format!("step {step} is undone under its own key"))?;
        if known[slot].as_ref().is_none_or(|(at, _)| *at != generation) {
            self.steps[step].keys[slot] = Some((generation, key.to_owned()));
        }
        Ok(())
    }

    /// A request leaves.
    pub fn sent(&mut self, step: usize, attempt: i32, is_idempotent: bool) -> Result<(), String> {
        let page = &mut self.steps[step];
        if attempt <= page.forgiven {
            return Ok(());
        }
        let again = std::mem::replace(&mut page.unanswered, true);
        ensure(!again || is_idempotent, || format!("step {step} is not idempotent, and was sent again after a cut-off"))
    }

    /// Somebody outside has done what a step asked for.
    pub fn done_outside(&mut self, step: usize, generation: i32, whole: bool, stored: &Saga) -> Result<(), String> {
        use StepStatus::{Cancelled, Compensated, Compensating, Completed};
        let page = &mut self.steps[step];
        let status = stored.steps[step].status;
        // One that was cut by the decision that undoes it ends before its compensation begins.
        let undone = matches!(status, Compensating | Compensated);
        if status == Compensated && !page.undo_began {
            return Ok(());
        }
        ensure(!(undone && page.undo_began || matches!(status, Cancelled | Completed)), || {
            format!("step {step} was done when it was {status:?}")
        })?;
        let before = page.effect.replace((generation, whole));
        let again = before.is_some_and(|(before, whole)| whole && before != generation);
        ensure(!again, || format!("step {step} was done twice, under the keys of {before:?} and {generation}"))
    }

    /// Whoever honours keys knows this one, and says again what came of it.
    pub fn is_done_under(&self, step: usize, generation: i32) -> bool {
        self.steps[step].effect == Some((generation, true))
    }

    /// As [`Book::done_outside`], in the saga's own database.
    pub fn made(&mut self, step: usize, generation: i32) -> Result<(), String> {
        let before = self.steps[step].effect.replace((generation, true));
        ensure(before.is_none(), || format!("step {step} made its own twice"))
    }

    pub fn undone_outside(&mut self, step: usize) {
        self.steps[step].effect = None;
    }
}

/// The grace is given once, and a decision is of bounded size.
fn obeys(commit: &Commit) -> Result<(), String> {
    let Commit { old, new, changes, now, .. } = commit;
    let most = old.stop_by.unwrap_or(*now + GRACE);
    let over = new.stop_by.is_some_and(|by| by > most);
    ensure(!over, || format!("what is in flight may go on until {:?}, not {most}", new.stop_by))?;
    let told = changes.transitions.len();
    ensure(told <= 400 + old.steps.len(), || format!("{told} transitions in one decision"))
}

fn count(seen: &mut Witness, change: &Transition) {
    let what = match change {
        Transition::Saga { status: SagaStatus::Completed, .. } => "sagas completed",
        Transition::Saga { status: SagaStatus::Failed, .. } => "sagas failed",
        Transition::Saga { status: SagaStatus::Compensated, .. } => "sagas compensated",
        Transition::Saga { status: SagaStatus::Stuck, .. } => "sagas stuck",
        Transition::Saga { status: SagaStatus::Cancelled, .. } => "sagas cancelled",
        Transition::Step { status: StepStatus::Unknown, .. } => "steps unknown",
        Transition::Step { status: StepStatus::Skipped, .. } => "steps skipped",
        Transition::Step { status: StepStatus::CompensationFailed, .. } => "compensations failed",
        _ => return,
    };
    seen.count(what);
}

/// But for its note, which attempts write by themselves.
fn is_the_same_step(one: &Step, other: &Step) -> bool {
    if one.note == other.note {
        return one == other;
    }
    let mut other = other.clone();
    other.note.clone_from(&one.note);
    *one == other
}
