//! Objects that a step of a saga puts on the cluster. What was there before is written down before
//! anything is changed, so whoever comes after a crash goes on, or takes all of it back: what was made
//! is removed, by its UID, and what was changed is put back.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::receipts::Answer;
use crate::{
    database::Db,
    domain::manifest,
    error::{Error, Kind, Result},
    runtime::{
        Place,
        objects::{Object, Objects},
    },
};

/// What is kept of one deployment for the way back, as JSON.
const RECORD_MAX: usize = 8 << 20;
/// An object that changes all the time is looked at so often.
const LOOKS: usize = 5;
/// After this it is asked again whether the saga is still this process's to carry.
const STILL_OURS: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct Deploys {
    db: Db,
    runtime: Place,
}

/// What is to be applied, and in whose name.
#[derive(Clone)]
pub struct Deployment {
    pub project: String,
    /// The step; the same over its attempts.
    pub step: String,
    pub objects: Vec<Value>,
    /// Fields that others hold are taken over.
    pub force: bool,
    /// What an attempt before this one wrote down.
    pub known: Option<Record>,
}

/// What there was before a deployment, one for each of its objects.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    pub objects: Vec<Before>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Before {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    /// Of the object that was there; of one that was made, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// There was none.
    #[serde(default)]
    pub made: bool,
    /// The merge patch that puts it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Value>,
    /// Who held its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Value>,
}

/// An object that was applied.
#[derive(Debug, Clone)]
pub struct Applied {
    pub object: Object,
    /// `created`, `changed`, `unchanged`.
    pub result: &'static str,
}

/// One that will be.
struct Planned {
    object: Value,
    result: &'static str,
}

impl Deploys {
    pub fn new(db: Db, runtime: Place) -> Self {
        Self { db, runtime }
    }

    /// Where objects go; `None` where there is no cluster.
    pub fn namespace(&self) -> Option<String> {
        self.runtime.objects().map(|objects| objects.namespace().to_owned())
    }

    /// Applies all of them. Nothing is changed unless all would be taken; what is kept by `record` is there before
    /// the first change.
    ///
    /// # Errors
    /// `APPLY_CONFLICT` with the managers; 409 for an object of another project; those of the cluster.
    pub async fn apply(&self, deployment: Deployment, record: Answer<Record>) -> Result<Vec<Applied>> {
        let objects = self.objects()?;
        let mut kept = Record::default();
        let mut planned = Vec::with_capacity(deployment.objects.len());
        for object in &deployment.objects {
            let (before, plan) = plan(&objects, &deployment, object).await?;
            kept.objects.push(before);
            planned.push(plan);
        }
        self.keep(&kept, &record).await?;
        let mut applied = Vec::with_capacity(planned.len());
        let mut kept_at = Instant::now();
        for (at, Planned { mut object, result }) in planned.into_iter().enumerate() {
            // Whose saga another process has taken over changes nothing more.
            if kept_at.elapsed() > STILL_OURS {
                self.keep(&kept, &record).await?;
                kept_at = Instant::now();
            }
            if let Some(uid) = &kept.objects[at].uid {
                object["metadata"]["uid"] = uid.clone().into();
            }
            let done = objects.apply(object.clone(), deployment.force).await;
            let done = done.map_err(|error| without_secrets(error, &object))?;
            kept.objects[at].uid = Some(done.uid.clone());
            applied.push(Applied { object: done, result });
        }
        self.keep(&kept, &record).await?;
        Ok(applied)
    }

    /// Takes a deployment back, or as much of it as was made. All of it is tried, the last object first.
    ///
    /// # Errors
    /// The first of the cluster's; then it can be tried again.
    pub async fn take_back(&self, record: &Record, step: &str) -> Result<()> {
        let objects = self.objects()?;
        let mut failed = None;
        for before in record.objects.iter().rev() {
            if let Err(error) = take_back(&objects, before, step).await {
                tracing::warn!(%error, kind = before.kind, name = before.name, "an object was not put back");
                let is_secret = before.kind == "Secret" && error.stable_code() == "OBJECT_REFUSED";
                failed.get_or_insert(if is_secret { silent(&before.kind, &before.name) } else { error });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn keep(&self, kept: &Record, record: &Answer<Record>) -> Result<()> {
        let size = serde_json::to_vec(kept).map_err(Error::internal)?.len();
        if size > RECORD_MAX {
            return Err(Error::invalid("what these objects were before is too large to be kept for the way back"));
        }
        let mut tx = self.db.begin().await?;
        record.keep(&mut tx, kept).await?;
        Ok(tx.commit().await?)
    }

    fn objects(&self) -> Result<Objects> {
        self.runtime.objects().ok_or_else(|| Error::invalid("this server has no cluster"))
    }
}

/// What there is of an object, and what would become of it. What an attempt of this step has changed already
/// has its way back from then.
async fn plan(objects: &Objects, deployment: &Deployment, wanted: &Value) -> Result<(Before, Planned)> {
    let word = |path: &str| wanted.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let [api_version, kind, name] = ["/apiVersion", "/kind", "/metadata/name"].map(word);
    let mut object = wanted.clone();
    manifest::mark(&mut object, &deployment.project, &deployment.step);
    let is_this = |one: &&Before| one.api_version == api_version && one.kind == kind && one.name == name;
    let known = deployment.known.iter().flat_map(|record| &record.objects).find(is_this);
    let mut looks = 0;
    loop {
        looks += 1;
        let found = objects.find(&api_version, &kind, &name).await?;
        let mut asked = object.clone();
        if let Some((found, now)) = &found {
            may_be_applied(found, &deployment.project)?;
            asked["metadata"]["uid"] = found.uid.clone().into();
            asked["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
        }
        let would_be = match objects.rehearse(asked, deployment.force).await {
            // It was changed meanwhile.
            Err(error) if is_passing_conflict(&error) && looks < LOOKS => continue,
            told => told.map_err(|error| without_secrets(error, wanted))?,
        };
        let fresh = Before { api_version, kind, name, uid: None, made: true, back: None, fields: None };
        let Some((found, now)) = found else {
            return Ok((fresh, Planned { object, result: "created" }));
        };
        let ours = known.filter(|known| match &known.uid {
            Some(uid) => *uid == found.uid && (known.made || manifest::is_marked(&now, &deployment.step)),
            None => manifest::is_marked(&now, &deployment.step),
        });
        if let Some(ours) = ours {
            let result = if ours.made { "created" } else { "changed" };
            return Ok((Before { uid: Some(found.uid), ..ours.clone() }, Planned { object, result }));
        }
        let same = manifest::says_the_same(&would_be, &now);
        let fields = now["metadata"]["managedFields"].as_array().map(|fields| fields.clone().into());
        let back = manifest::way_back(&would_be, &now);
        let before = Before { uid: Some(found.uid), made: false, back, fields, ..fresh };
        return Ok((before, Planned { object, result: if same { "unchanged" } else { "changed" } }));
    }
}

/// What is another project's stays another project's, also by force.
fn may_be_applied(found: &Object, project: &str) -> Result<()> {
    let Object { kind, name, .. } = found;
    if found.managed && found.project.as_deref().is_some_and(|its| its != project) {
        return Err(Error::conflict("OBJECT_TAKEN", format!("{kind} {name} belongs to another project")));
    }
    if found.managed && found.session.is_some() {
        return Err(Error::conflict("OBJECT_TAKEN", format!("{kind} {name} belongs to a session")));
    }
    if found.going {
        return Err(Error::new(Kind::Unavailable, "OBJECT_GOING", format!("{kind} {name} is being removed just now")));
    }
    Ok(())
}

async fn take_back(objects: &Objects, before: &Before, step: &str) -> Result<()> {
    let Some((found, now)) = objects.find(&before.api_version, &before.kind, &before.name).await? else {
        return Ok(());
    };
    let is_it = match &before.uid {
        Some(uid) => *uid == found.uid,
        // Whoever made it died before it could say so.
        None => before.made && manifest::is_marked(&now, step),
    };
    if !is_it {
        return Ok(());
    }
    if before.made {
        return objects.delete(&found).await.map(drop);
    }
    match &before.back {
        Some(back) => objects.put_back(&found, back, before.fields.as_ref()).await.map(drop),
        None => Ok(()),
    }
}

/// It was changed, or made, at this very moment: nobody holds anything against us.
pub fn is_passing_conflict(error: &Error) -> bool {
    let managers = error.details().get("managers").and_then(Value::as_array);
    error.stable_code() == "APPLY_CONFLICT" && managers.is_none_or(Vec::is_empty)
}

/// Whose words may show what is in the object.
fn without_secrets(error: Error, object: &Value) -> Error {
    if object["kind"] != "Secret" || error.stable_code() != "OBJECT_REFUSED" {
        return error;
    }
    silent("Secret", object["metadata"]["name"].as_str().unwrap_or_default())
}

fn silent(kind: &str, name: &str) -> Error {
    let message =
        format!("the cluster refuses the {kind} {name}; why is not shown, as its words may hold what is secret");
    Error::new(Kind::BadGateway, "OBJECT_REFUSED", message)
}
