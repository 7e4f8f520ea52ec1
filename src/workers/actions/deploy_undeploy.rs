//! `deploy.undeploy`: takes away what a project has on the cluster, as `POST /projects/{id}/undeploy` does.
//! There is no way back.

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{ATTEMPTS, deploy_apply::NO_CLUSTER, ended, failed, project, works::Works};
use crate::{
    domain::saga::{Nature, Outcome, check::Rules, fields::Fields},
    error::Error,
    services::{
        deploys::Deploys,
        projects::Projects,
        sagas::{Action, Attempt},
    },
};

/// So many of the objects that stayed are named.
const NAMED: usize = 3;

pub struct DeployUndeploy {
    pub deploys: Deploys,
    pub projects: Projects,
    pub works: Works,
}

impl DeployUndeploy {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let id = attempt.read(project)?;
        attempt.project(&id).await?;
        let projects = self.projects.clone();
        let undeployed = self.works.through(attempt, async move { projects.undeploy(&id).await }).await;
        let deleted = undeployed.map_err(|error| incomplete(&error).unwrap_or_else(|| failed(error)))?.deleted;
        let shown = deleted.iter().map(|one| json!({"kind": one.kind, "name": one.name}));
        Ok(json!({"deleted": shown.collect::<Vec<_>>()}))
    }
}

/// What stayed, and why.
fn incomplete(error: &Error) -> Option<Outcome> {
    let errors = error.details().get("errors")?.as_array()?;
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let said = |one: &Value| format!("{} {}: {}", text(one, "kind"), text(one, "name"), text(one, "message"));
    let mut named: Vec<_> =
        errors.iter().take(NAMED).map(|one| said(one).trim_matches([' ', ':']).to_owned()).collect();
    if errors.len() > NAMED {
        named.push(format!("and {} more", errors.len() - NAMED));
    }
    let error = format!("not everything could be removed: {}", named.join("; "));
    Some(match Outcome::failed(error) {
        Outcome::Failed { error, retry, .. } => Outcome::Failed { error, retry, partly: true },
        other => other,
    })
}

impl Rules for DeployUndeploy {
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
        self.deploys.namespace().is_none().then_some(NO_CLUSTER)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        fields.project();
    }
}

impl Action for DeployUndeploy {
    fn name(&self) -> &'static str {
        "deploy.undeploy"
    }

    fn nature(&self) -> Nature {
        ATTEMPTS
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn cut<'a>(&'a self, attempt: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        async {
            self.works.settled(attempt).await;
            Outcome::CutOff(why)
        }
        .boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_stayed_is_named_and_tried_again() {
        let errors =
            json!([{"kind": "Secret", "name": "s", "message": "forbidden"}, {"message": "out of reach"}, {}, {}]);
        let error = Error::new(Kind::BadGateway, "UNDEPLOY_INCOMPLETE", "no").detail("errors", errors);
        let Some(Outcome::Failed { error, partly: true, .. }) = incomplete(&error) else { panic!("it failed in part") };
        assert_eq!(error, "not everything could be removed: Secret s: forbidden; out of reach; ; and 1 more");
        assert!(incomplete(&Error::timeout()).is_none());
    }
}
