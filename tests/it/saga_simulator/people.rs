//! People who ask things of sagas: mostly what may be asked, and not always at a good time.

use rdev::domain::saga::{Control, SagaStatus};
use uuid::Uuid;

use super::{World, database::Turn};

impl World {
    /// Somebody asks something of a saga.
    pub fn somebody_asks(&mut self, id: usize) {
        if self.stormy && self.chance(0.2) {
            // Sooner than whoever drives it looks.
            self.db.now += self.span(0..40_000);
        }
        let count = self.db.rows[id].plan.steps.len();
        for _ in 0..40 {
            let asked = self.a_control(count);
            if (!self.db.may_ask(id, &asked) && self.chance(0.98)) || !self.asks(id, &asked) {
                continue;
            }
            if self.db.rows[id].stored.status == SagaStatus::Failed && self.chance(0.7) {
                // Before whoever drove it has heard of that.
                self.asks(id, &Control::Retry);
            }
            return;
        }
    }

    fn a_control(&mut self, steps: usize) -> Control {
        let step = self.index(steps);
        match self.within(0..16) {
            0..3 => Control::Retry,
            3 => Control::Rollback,
            4..7 => Control::RetryStep(step),
            7..9 => Control::SkipStep(step),
            9 => Control::Cancel { compensate: true, reason: Some("enough".to_owned()) },
            10 => Control::Cancel { compensate: false, reason: None },
            11 => Control::Abandon { reason: "enough".to_owned() },
            _ => Control::Answer { step, approve: self.chance(if self.crowded { 0.3 } else { 0.6 }), comment: None },
        }
    }

    /// True where it was allowed.
    pub fn asks(&mut self, id: usize, asked: &Control) -> bool {
        let allowed = self.db.control(id, asked, Uuid::from_u128(7));
        if allowed {
            self.tell(id, || format!("{asked:?}"));
        }
        allowed
    }

    /// Whoever has the turn that this one waits for lets go of it.
    pub fn somebody_passes_the_turn(&mut self, id: usize) {
        let key = self.db.rows[id].key;
        if let Some(id) = self.db.rows.iter().position(|row| row.key == key && row.turn == Turn::Has) {
            self.asks(id, &Control::Cancel { compensate: false, reason: None });
        }
    }

    /// Of one saga nothing is left but what is in flight, and then it is cancelled: no event tells of that.
    pub fn somebody_cancels_the_last(&mut self) {
        let is_last = |row: &super::database::Row| {
            let pending = |step: &rdev::domain::saga::Step| step.status == rdev::domain::saga::StepStatus::Pending;
            row.stored.status == SagaStatus::Running
                && row.stored.stop_by.is_none()
                && !row.stored.steps.iter().any(pending)
        };
        if let Some(id) = self.db.rows.iter().position(is_last) {
            self.asks(id, &Control::Cancel { compensate: false, reason: None });
        }
    }
}
