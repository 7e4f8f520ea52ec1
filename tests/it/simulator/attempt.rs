//! One attempt at a task, step by step: a job from its claim to its end, a webhook from its
//! reading to what became of the call, a task whose owners kept dying.

use std::time::Duration;

use super::{
    Away, Millis, World,
    database::{Begun, Flaw, Outcome, Subject, millis},
    domain::{
        delivery::{self, DeliveryStatus, Fate},
        job::{Happening, Retry, Then},
        task::{Claimed, Lane},
    },
    process::Process,
};

/// Before a step that failed is taken again, and before an attempt that could not begin.
const RETRY: Millis = 300;
const LATER: Millis = 1_000;
/// Of an attempt at a job, and of a call.
const JOB_TIMEOUT: Millis = 40_000;
const CALL_TIMEOUT: Millis = 15_000;
/// Before the first retry of a webhook.
const BACKOFF: Duration = Duration::from_secs(1);

pub struct Attempt {
    pub claim: Claimed,
    pub subject: Subject,
    /// The lease that it was claimed under.
    pub under: u64,
    pub at: Millis,
    pub stage: Stage,
}

pub enum Stage {
    Begin,
    Talk(Talk),
    /// So many tokens are being stored.
    Store(Talk, i64),
    End(Happening),
    Read,
    /// With the retries used so far.
    Call(u32),
    Heard(u32, delivery::Outcome),
    GiveUp,
    Park,
}

/// What upstream is still to say.
pub struct Talk {
    /// Last event of the log that this run knows.
    n: i64,
    tokens: u32,
    answer: Happening,
    hangs: bool,
}

impl Attempt {
    /// `None` when it is over.
    pub fn step(self, process: &mut Process, world: &mut World) -> Option<Self> {
        match self.subject {
            _ if matches!(self.stage, Stage::GiveUp | Stage::Park) => self.put_aside(process, world),
            Subject::Job(job) => self.run(job, process, world),
            Subject::Delivery(delivery) => self.deliver(delivery, process, world),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is how a step ends that goes on")]
    fn then(mut self, stage: Stage, at: Millis) -> Option<Self> {
        (self.stage, self.at) = (stage, at);
        Some(self)
    }

    fn run(mut self, job: usize, process: &mut Process, world: &mut World) -> Option<Self> {
        let now = world.db.now;
        let stopped = process.is_stopped(self.under);
        match std::mem::replace(&mut self.stage, Stage::Begin) {
            Stage::Begin => match world.ask(|db| db.begin(&self.claim, job)) {
                Ok(Begun::Runs(n)) => {
                    process.mark(Lane::Webhooks);
                    let talk = Talk::new(n, world);
                    let at = now + if talk.hangs { JOB_TIMEOUT } else { world.within(5..2_000) };
                    self.then(Stage::Talk(talk), at)
                }
                Ok(Begun::Over) => {
                    process.done(self.claim);
                    None
                }
                Ok(Begun::Stale) | Err(Away) => {
                    process.give_back(self.claim, LATER, now);
                    None
                }
            },
            Stage::Talk(_) | Stage::Store(..) if stopped => self.then(Stage::End(Happening::GivenBack), now),
            Stage::Talk(talk) => self.listen(job, talk, world),
            Stage::Store(talk, tokens) => self.store(job, talk, tokens, process, world),
            Stage::End(happening) => self.end(job, happening, process, world),
            _ => unreachable!("a stage of a job"),
        }
    }

    fn listen(self, job: usize, mut talk: Talk, world: &mut World) -> Option<Self> {
        let now = world.db.now;
        if world.stormy && world.db.jobs[job].deadly && world.chance(0.9) {
            world.kills = true;
        }
        // What is not its own in its log is the sign to look.
        if world.db.jobs[job].log.last_n > talk.n && world.chance(0.5) {
            let held = world.ask(|db| db.is_held(&self.claim));
            return if held == Ok(false) { None } else { self.then(Stage::Talk(talk), now + RETRY) };
        }
        if talk.tokens == 0 {
            let answer = talk.answer;
            return self.then(Stage::End(answer), now);
        }
        talk.tokens -= 1;
        let tokens = world.within(1..5).cast_signed();
        self.then(Stage::Store(talk, tokens), now)
    }

    fn store(self, job: usize, mut talk: Talk, tokens: i64, process: &mut Process, world: &mut World) -> Option<Self> {
        let now = world.db.now;
        match world.ask(|db| db.append(&self.claim, job, talk.n, tokens)) {
            Ok(true) => {
                talk.n += tokens;
                let at = now + world.within(5..1_500);
                self.then(Stage::Talk(talk), at)
            }
            Ok(false) => {
                // Somebody else's, or written before with the answer lost: the fence knows.
                if world.db.flaw != Some(Flaw::DropsWhatItCannotAppend) {
                    process.give_back(self.claim, 0, now);
                }
                None
            }
            Err(Away) => self.then(Stage::Store(talk, tokens), now + RETRY),
        }
    }

    fn end(self, job: usize, happening: Happening, process: &mut Process, world: &mut World) -> Option<Self> {
        let now = world.db.now;
        match world.ask(|db| db.end(&self.claim, job, happening)) {
            Ok(then) => {
                process.mark(Lane::Webhooks);
                match then {
                    Some(Then::Again(pause)) if pause.is_zero() => process.mark(Lane::Jobs),
                    Some(Then::Again(_)) => process.look_soon(now),
                    _ => {}
                }
                None
            }
            Err(Away) if process.is_stopped(self.under) => None,
            Err(Away) => self.then(Stage::End(happening), now + RETRY),
        }
    }

    fn deliver(mut self, delivery: usize, process: &mut Process, world: &mut World) -> Option<Self> {
        let now = world.db.now;
        let stopped = process.is_stopped(self.under);
        match std::mem::replace(&mut self.stage, Stage::Read) {
            Stage::Read => match world.ask(|db| db.outgoing(delivery)) {
                Ok(Some(retries)) => self.then(Stage::Call(retries), now),
                Ok(None) => {
                    process.done(self.claim);
                    None
                }
                Err(Away) => {
                    process.give_back(self.claim, LATER, now);
                    None
                }
            },
            Stage::Call(_) | Stage::Heard(..) if stopped => {
                process.give_back(self.claim, 0, now);
                None
            }
            Stage::Call(retries) => {
                world.db.called(delivery);
                let (heard, took) = answer_of_receiver(world);
                self.then(Stage::Heard(retries, heard), now + took)
            }
            Stage::Heard(retries, heard) => {
                process.record(outcome(self.claim, delivery, retries, heard, world));
                None
            }
            _ => unreachable!("a stage of a webhook"),
        }
    }

    /// Its owners kept dying.
    fn put_aside(self, process: &mut Process, world: &mut World) -> Option<Self> {
        let now = world.db.now;
        let failed = match (&self.stage, self.subject) {
            (Stage::GiveUp, Subject::Job(job)) => world.ask(|db| db.give_up(&self.claim, job)),
            (Stage::GiveUp, Subject::Delivery(delivery)) => match world.ask(|db| db.outgoing(delivery)) {
                Ok(Some(retries)) => {
                    let died = delivery::Outcome::Refused("its senders kept dying".to_owned());
                    process.record(outcome(self.claim, delivery, retries, died, world));
                    return None;
                }
                read => read.map(drop),
            },
            _ => {
                if world.ask(|db| db.park(&self.claim)).is_err() {
                    process.give_back(self.claim, RETRY, now);
                }
                return None;
            }
        };
        if failed.is_err() && world.db.flaw != Some(Flaw::ParksWithoutFailing) {
            process.give_back(self.claim, RETRY, now);
            return None;
        }
        self.then(Stage::Park, now)
    }
}

impl Talk {
    fn new(n: i64, world: &mut World) -> Self {
        let tokens = u32::try_from(world.within(0..6)).unwrap_or(0);
        let mut talk = Self { n, tokens, answer: Happening::Answered, hangs: false };
        if !world.stormy {
            return talk;
        }
        let unit = world.unit();
        let retry = |after| Happening::Failed { retry: Some(Retry { after, unit }) };
        talk.answer = match world.within(0..100) {
            0..60 => Happening::Answered,
            60..72 => retry(None),
            72..78 => retry(Some(Duration::from_millis(world.within(0..30_000)))),
            78..84 => Happening::Failed { retry: None },
            84..92 => Happening::GivenBack,
            _ => {
                (talk.hangs, talk.tokens) = (true, 0);
                retry(None)
            }
        };
        talk
    }
}

/// And how long that took.
fn answer_of_receiver(world: &mut World) -> (delivery::Outcome, Millis) {
    let status =
        |code, after: Option<Millis>| delivery::Outcome::Status { code, retry_after: after.map(Duration::from_millis) };
    let took = world.within(5..800);
    if !world.stormy {
        return (status(200, None), took);
    }
    match world.within(0..100) {
        0..58 => (status(200, None), took),
        58..78 => (status(500, None), took),
        78..82 => (status(503, Some(world.within(0..40_000))), took),
        82..84 => (status(410, None), took),
        84..86 => (delivery::Outcome::Refused("a private address".to_owned()), took),
        86..92 => (delivery::Outcome::Failed("connection refused".to_owned()), took),
        _ => (delivery::Outcome::Failed("timed out".to_owned()), CALL_TIMEOUT),
    }
}

/// What is written down of a call.
fn outcome(claim: Claimed, delivery: usize, retries: u32, heard: delivery::Outcome, world: &mut World) -> Outcome {
    let (status, again) = match delivery::decide(&heard, retries, BACKOFF, world.unit()) {
        Fate::Delivered => (DeliveryStatus::Delivered, None),
        Fate::RetryAfter(pause) => (DeliveryStatus::Pending, Some(millis(pause))),
        Fate::GivenUp { .. } | Fate::Gone => (DeliveryStatus::Failed, None),
    };
    Outcome { claim, delivery, heard, status, again }
}
