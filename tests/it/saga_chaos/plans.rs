//! Sagas that nobody would think of: random graphs whose steps meet all that a receiver can say, and
//! what somebody does about them when they need a decision. The same seed makes the same ones again.

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};

use crate::{jobs::and, sagas};

/// Decisions about one saga before somebody has enough of it.
const DECISIONS: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    Call { idempotent: bool },
    Sleep { millis: u64 },
    Nothing,
}

/// What the receiver says to a call or a compensation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Well,
    /// 503 to the first request of all.
    BusyFirst,
    /// 409 to the first request of all.
    RefusesFirst,
    Refuses,
}

#[derive(Clone, Copy, Debug)]
pub struct Meets {
    pub says: Says,
    /// Until it says so, in milliseconds.
    pub takes: u64,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub does: Does,
    pub needs: Vec<usize>,
    pub call: Meets,
    pub undo: Option<Meets>,
}

/// What is done to a saga that needs nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Left,
    RolledBackAtItsEnd,
    RolledBackAfter { millis: u64 },
    CancelledAfter { millis: u64, compensate: bool },
}

/// What somebody decides about a step that failed, or of which nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decides {
    Leave,
    RetryStep,
    Retry,
    Skip,
    RollBack,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub n: usize,
    pub steps: Vec<Step>,
    /// No step names what it needs: each needs the one before.
    one_by_one: bool,
    compensates: bool,
    pub fate: Fate,
    on_doubt: Decides,
    on_failure: Decides,
}

/// A control call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// As the log calls it.
    pub word: &'static str,
    pub step: Option<String>,
}

impl Ask {
    fn saga(word: &'static str) -> Self {
        Self { word, step: None }
    }

    /// Below `/sagas/{id}`.
    pub fn path(&self) -> String {
        match &self.step {
            None => self.word.to_owned(),
            Some(step) => format!("steps/{step}/{}", self.word),
        }
    }
}

pub fn plans(seed: u64, count: usize) -> Vec<Plan> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..count).map(|n| Plan::random(n, &mut rng)).collect()
}

pub fn name(step: usize) -> String {
    format!("s{step}")
}

impl Plan {
    fn random(n: usize, rng: &mut SmallRng) -> Self {
        let one_by_one = rng.random_bool(0.3);
        let count = rng.random_range(3..=10_usize);
        let mut steps: Vec<Step> = (0..count).map(|at| Step::random(at, one_by_one, rng)).collect();
        if !one_by_one && steps.iter().all(|step| step.needs.is_empty()) {
            steps[1].needs = vec![0];
        }
        if rng.random_bool(0.3) {
            let at = rng.random_range(0..count);
            steps[at].does = Does::Call { idempotent: rng.random_bool(0.7) };
            steps[at].call.says = Says::Refuses;
        }
        let fate = match rng.random_range(0..100) {
            0..55 => Fate::Left,
            55..80 => Fate::RolledBackAtItsEnd,
            80..90 => Fate::RolledBackAfter { millis: rng.random_range(0..2_500) },
            _ => Fate::CancelledAfter { millis: rng.random_range(0..2_500), compensate: rng.random_bool(0.6) },
        };
        let on_doubt = [Decides::RetryStep, Decides::Retry, Decides::Skip, Decides::RollBack];
        let on_failure = [Decides::Leave, Decides::RollBack, Decides::Skip, Decides::RollBack];
        Self {
            n,
            steps,
            one_by_one,
            compensates: rng.random_bool(0.5),
            fate,
            on_doubt: on_doubt[rng.random_range(0..on_doubt.len())],
            on_failure: on_failure[rng.random_range(0..on_failure.len())],
        }
    }

    pub fn name(&self) -> String {
        format!("chaos-{}", self.n)
    }

    /// Of a saga's name.
    pub fn number(name: &str) -> Option<usize> {
        name.strip_prefix("chaos-")?.parse().ok()
    }

    /// For POST `/sagas`, with steps that call this receiver.
    pub fn body(&self, receiver: &str) -> Value {
        let steps: Vec<Value> = (0..self.steps.len()).map(|at| self.step(at, receiver)).collect();
        let on_failure = if self.compensates { "compensate" } else { "stop" };
        json!({"name": self.name(), "steps": steps, "on_failure": on_failure})
    }

    fn step(&self, at: usize, receiver: &str) -> Value {
        let (step, url) = (&self.steps[at], format!("{receiver}/{}/{at}", self.n));
        let mut body = match step.does {
            Does::Call { idempotent } => {
                let config = json!({"method": "POST", "url": format!("{url}/do"), "body": {"n": at}});
                and(sagas::step(&name(at), "http.request", config), json!({"idempotent": idempotent}))
            }
            Does::Sleep { millis } => sagas::step(&name(at), "wait.sleep", json!({"duration": format!("{millis}ms")})),
            Does::Nothing => sagas::noop(&name(at), json!(at)),
        };
        if step.undo.is_some() {
            let undo = json!({"method": "DELETE", "url": format!("{url}/undo")});
            body = and(body, json!({"compensate": "http.request", "compensate_config": undo}));
        }
        if !self.one_by_one && !step.needs.is_empty() {
            let needs: Vec<String> = step.needs.iter().map(|need| name(*need)).collect();
            body = and(body, json!({"depends_on": needs}));
        }
        body
    }

    /// All that a step needs, by whatever way, by position.
    pub fn ancestors(&self) -> Vec<Vec<usize>> {
        let mut all: Vec<Vec<usize>> = Vec::new();
        for step in &self.steps {
            let mut above: Vec<usize> =
                step.needs.iter().flat_map(|need| all[*need].iter().copied().chain([*need])).collect();
            above.sort_unstable();
            above.dedup();
            all.push(above);
        }
        all
    }

    /// Nobody has to do anything about it any more.
    pub fn is_settled(&self, status: &str, is_left: bool) -> bool {
        match status {
            "compensated" | "cancelled" => true,
            "completed" => self.fate != Fate::RolledBackAtItsEnd,
            "failed" => is_left,
            _ => false,
        }
    }

    /// What somebody asks of a saga that is shown so, where somebody has to, after so many decisions.
    pub fn decide(&self, shown: &Value, decided: usize) -> Option<Ask> {
        let enough = decided >= DECISIONS;
        match shown["status"].as_str()? {
            "completed" if self.fate == Fate::RolledBackAtItsEnd => Some(Ask::saga("rollback")),
            "stuck" => Some(Ask::saga("rollback")),
            "failed" => {
                let at = |status: &str| shown["steps"].as_array()?.iter().position(|step| step["status"] == status);
                match (at("unknown"), at("failed")) {
                    (Some(step), _) => asked(if enough { Decides::RollBack } else { self.on_doubt }, step),
                    (None, Some(step)) => asked(self.about_failure(step, enough), step),
                    (None, None) => None,
                }
            }
            _ => None,
        }
    }

    fn about_failure(&self, step: usize, enough: bool) -> Decides {
        match self.steps[step].call.says {
            _ if enough => Decides::RollBack,
            Says::RefusesFirst => Decides::RetryStep,
            _ => self.on_failure,
        }
    }
}

fn asked(decides: Decides, step: usize) -> Option<Ask> {
    let of_step = |word| Some(Ask { word, step: Some(name(step)) });
    match decides {
        Decides::Leave => None,
        Decides::RetryStep => of_step("retry"),
        Decides::Skip => of_step("skip"),
        Decides::Retry => Some(Ask::saga("retry")),
        Decides::RollBack => Some(Ask::saga("rollback")),
    }
}

impl Step {
    fn random(at: usize, one_by_one: bool, rng: &mut SmallRng) -> Self {
        let does = match rng.random_range(0..100) {
            0..45 => Does::Call { idempotent: true },
            45..75 => Does::Call { idempotent: false },
            75..87 => Does::Sleep { millis: rng.random_range(50..3_000) },
            _ => Does::Nothing,
        };
        let needs = match (at, one_by_one) {
            (0, _) => Vec::new(),
            (_, true) => vec![at - 1],
            (_, false) => {
                let mut needs: Vec<usize> = (0..rng.random_range(0..=2)).map(|_| rng.random_range(0..at)).collect();
                needs.sort_unstable();
                needs.dedup();
                needs
            }
        };
        let undone = if matches!(does, Does::Call { .. }) { 0.8 } else { 0.4 };
        let undo = rng.random_bool(undone).then(|| Meets::random(rng));
        Self { does, needs, call: Meets::random(rng), undo }
    }

    pub fn may_be_repeated(&self) -> bool {
        self.does != Does::Call { idempotent: false }
    }

    pub fn is_call(&self) -> bool {
        matches!(self.does, Does::Call { .. })
    }
}

impl Meets {
    fn random(rng: &mut SmallRng) -> Self {
        let says = match rng.random_range(0..100) {
            0..90 => Says::Well,
            90..95 => Says::BusyFirst,
            _ => Says::RefusesFirst,
        };
        let takes = if rng.random_bool(0.25) { rng.random_range(300..1_200) } else { rng.random_range(0..120) };
        Self { says, takes }
    }
}
