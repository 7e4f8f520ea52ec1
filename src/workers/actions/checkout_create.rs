//! `checkout.create`: a branch that is checked out while the saga needs it. Its credential is
//! shown to nobody: a step's output is there for all who read the saga.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ATTEMPTS, ended, failed, insistently, made, noted, project, works::Works};
use crate::{
    domain::{
        checkout::{Checkout, CheckoutStatus},
        key::Key,
        project::Project,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
    },
    error::{Error, Kind, Result},
    services::{
        checkouts::{Asked, Checkouts, NewCheckout, Opened},
        sagas::{Action, Attempt},
    },
};

const FIELDS: [&str; 5] = ["branch", "new_branch", "from_ref", "feature_slug", "expires_in"];
/// When to look again whether what an earlier attempt left half-made has been taken back.
const REMAINS: chrono::TimeDelta = chrono::TimeDelta::seconds(1);

pub struct CheckoutCreate {
    pub checkouts: Checkouts,
    pub min_expires_in: Duration,
    pub works: Works,
}

/// In a client's words; nothing where some of them are not known yet.
pub fn asked(fields: &mut Fields<'_>) -> Option<Asked> {
    let [branch, new_branch, from_ref, feature_slug, expires_in] = FIELDS.map(|name| fields.text(name));
    if FIELDS.iter().any(|name| fields.is_open(name)) {
        fields.exactly_one(&["branch", "new_branch"]);
        return None;
    }
    Some(Asked { branch, new_branch, from_ref, feature_slug, expires_in })
}

impl CheckoutCreate {
    fn read(&self, fields: &mut Fields<'_>) -> (String, Option<NewCheckout>) {
        let project = fields.project();
        let new = asked(fields).map(|asked| asked.parse(self.min_expires_in));
        let new = new.transpose().map_err(|error| fields.problem("", error.message())).ok().flatten();
        (project, new)
    }

    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let (project, new) = attempt.read(|fields| self.read(fields))?;
        let new = new.ok_or_else(|| Outcome::never("config must hold exactly one of branch, new_branch"))?;
        let (caller, project) = attempt.project(&project).await?;
        if let Some(checkout) = self.before(attempt, &project).await? {
            return Ok(output(&checkout));
        }
        match self.create(attempt, &caller, &project, new.clone()).await {
            // What is in the way may be what an attempt before left half-made.
            Err(error) if error.kind() == Kind::Conflict && attempt.number() > 1 => {
                if in_the_making(&self.checkouts, &project).await.map_err(failed)? {
                    return Err(put_off(attempt));
                }
                self.create(attempt, &caller, &project, new).await.map_err(failed)
            }
            made => made.map_err(failed),
        }
    }

    /// The checkout that this attempt had made before its process died, or an earlier one that is still open.
    async fn before(&self, attempt: &Attempt, project: &Project) -> Result<Option<Checkout>, Outcome> {
        let Some(noted) = noted(attempt) else { return Ok(None) };
        let Some(id) = noted.note["checkout_id"].as_str().and_then(|id| id.parse().ok()) else { return Ok(None) };
        match insistently(|| self.checkouts.get(project, id)).await {
            Ok(checkout) => Ok(Some(checkout).filter(|one| noted.resumed || one.status == CheckoutStatus::Active)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn create(&self, attempt: &Attempt, caller: &Key, project: &Project, new: NewCheckout) -> Result<Value> {
        let answer = attempt.answer(|Opened { checkout, .. }: &Opened| {
            json!({"checkout_id": checkout.id, "project_id": checkout.project_id, "branch": checkout.branch})
        });
        let (checkouts, caller, project) = (self.checkouts.clone(), caller.clone(), project.clone());
        let create = async move { checkouts.create(&caller, &project, new, answer).await };
        Ok(output(&self.works.through(attempt, create).await?.checkout))
    }

    async fn revoke(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Some(id) = made(attempt, "checkout_id").and_then(|id| id.parse::<Uuid>().ok()) else {
            return Ok(Value::Null);
        };
        let project = attempt.read(project)?;
        let caller = attempt.caller().await.map_err(failed)?;
        let checkouts = self.checkouts.clone();
        let revoke = async move { checkouts.revoke(Some(&caller), &project, id).await };
        match self.works.through(attempt, revoke).await {
            Err(error) if !is_over(&error) => Err(failed(error)),
            _ => Ok(Value::Null),
        }
    }
}

/// It ended before, by whatever way, or is gone with its project.
pub fn is_over(error: &Error) -> bool {
    error.kind() == Kind::NotFound
        || error.details().get("reason").is_some_and(|reason| reason == "CHECKOUT_NOT_ACTIVE")
}

/// Something is half-made in this project, and will soon be whole or taken back.
pub async fn in_the_making(checkouts: &Checkouts, project: &Project) -> Result<bool> {
    Ok(!checkouts.page(project, CheckoutStatus::Pending, None, 1).await?.is_empty())
}

pub fn put_off(attempt: &Attempt) -> Outcome {
    let why = "what an earlier attempt left half-made is still being taken back".to_owned();
    Outcome::PutOff { until: attempt.sagas().now() + REMAINS, why }
}

pub fn output(checkout: &Checkout) -> Value {
    json!({"checkout_id": checkout.id, "branch": checkout.branch})
}

impl Rules for CheckoutCreate {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        true
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        self.read(fields);
    }
}

impl Action for CheckoutCreate {
    fn name(&self) -> &'static str {
        "checkout.create"
    }

    fn nature(&self) -> Nature {
        Nature { undoes_itself: true, ..ATTEMPTS }
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn undo<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.revoke(attempt).await) }.boxed()
    }

    /// What was made in time counts; anything else is taken back by who makes it.
    fn cut<'a>(&'a self, attempt: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        async {
            self.works.settled(attempt).await;
            let made = noted(attempt).filter(|noted| noted.resumed).map(|noted| noted.note);
            match made {
                Some(note) => Outcome::Done(json!({"checkout_id": note["checkout_id"], "branch": note["branch"]})),
                None => Outcome::CutOff(why),
            }
        }
        .boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}
