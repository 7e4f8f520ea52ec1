//! `checkout.checkin`: the end of a checkout. One that is checked in already is done.

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::Value;
use uuid::Uuid;

use super::{
    ATTEMPTS,
    checkout_create::{is_over, output},
    ended, failed,
    works::Works,
};
use crate::{
    domain::{
        checkout::CheckoutStatus,
        ids,
        key::Key,
        project::Project,
        review::Wish,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
    },
    error::Result,
    services::{
        checkouts::Checkouts,
        receipts::Answer,
        sagas::{Action, Attempt},
    },
};

pub struct CheckoutCheckin {
    pub checkouts: Checkouts,
    pub works: Works,
}

struct Config {
    project: String,
    /// None where it is no id: there is no such checkout.
    checkout: Option<Uuid>,
    wish: Wish,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        let project = fields.project();
        let checkout = ids::uuid_from_path(&fields.required_text("checkout_id"));
        let wish = reviewed(fields);
        Self { project, checkout, wish }
    }
}

/// What is to become of the branch.
pub fn reviewed(fields: &mut Fields<'_>) -> Wish {
    let skip = fields.flag("skip_review") == Some(true);
    let auto_merge = fields.flag("auto_merge") == Some(true);
    if skip && auto_merge {
        fields.problem("auto_merge", "and skip_review exclude each other: only a reviewed branch is merged");
    }
    Wish { skip, auto_merge }
}

impl CheckoutCheckin {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let config = attempt.read(Config::read)?;
        let (caller, project) = attempt.project(&config.project).await?;
        let id = config.checkout.ok_or_else(|| Outcome::never("checkout not found"))?;
        match self.checkin(attempt, caller, project.clone(), (id, config.wish)).await {
            Err(error) if is_over(&error) => {
                let checkout = self.checkouts.get(&project, id).await.map_err(failed)?;
                // An undo asks for no more than its end.
                if checkout.status == CheckoutStatus::CheckedIn || attempt.is_undo() {
                    return Ok(output(&checkout));
                }
                Err(failed(error))
            }
            checked_in => checked_in.map_err(failed),
        }
    }

    async fn checkin(&self, attempt: &Attempt, caller: Key, project: Project, what: (Uuid, Wish)) -> Result<Value> {
        let (id, wish) = what;
        let checkouts = self.checkouts.clone();
        let checkin = async move { checkouts.checkin(&caller, &project, id, wish, Answer::none()).await };
        Ok(output(&self.works.through(attempt, checkin).await?.checkout))
    }
}

impl Rules for CheckoutCheckin {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for CheckoutCheckin {
    fn name(&self) -> &'static str {
        "checkout.checkin"
    }

    fn nature(&self) -> Nature {
        ATTEMPTS
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}
