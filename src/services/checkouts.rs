//! Checkouts: a branch and a credential that dies with it. The token is dead before the
//! answer that ends a checkout is sent: the commit kills it, or promises that it will be
//! revoked where it lives (`tokens`), and pushes under way are ended before anybody is told.

mod asked;
mod ending;
mod reviewed;
mod rotated;
mod tokens;

use std::{sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use super::{
    projects::{Projects, record_activity, stamp},
    receipts::Answer,
    reviews::Reviews,
};
use crate::{
    database::{Conn, Db, DbError},
    domain::{
        api_key::GitToken,
        branch::{BranchName, FromRef, Protected},
        checkout::{Checkout, CheckoutStatus},
        clock::{Clock, later},
        key::Key,
        project::Project,
    },
    error::{Error, Result},
    forge::{Branch, BranchError, Credential, Forge},
    metrics::Metrics,
    queue::{Claimed, Queue},
    store,
    streams::{Streams, Unshown},
};

pub use self::{
    asked::{Asked, expires_in},
    tokens::Revoking,
};

/// Pause before an undo that failed is tried again.
const UNDO_AGAIN: Duration = Duration::from_secs(2);

pub const CREATE_TASK: &str = "checkout.create";

/// Expired checkouts that are ended on the way to a new one.
const DUE_AT_ONCE: i64 = 50;

/// Which branch, by the caller's choice.
#[derive(Debug, Clone)]
pub enum Wanted {
    Existing(BranchName),
    New { name: BranchName, from: Option<FromRef> },
}

/// A checkout asked for.
#[derive(Debug, Clone)]
pub struct NewCheckout {
    pub wanted: Wanted,
    pub feature_slug: Option<String>,
    pub expires_in: Duration,
}

/// A checkout and its credential, which is shown this once.
pub struct Opened {
    pub checkout: Checkout,
    pub token: GitToken,
}

/// How a checkin ended.
pub struct CheckedIn {
    pub checkout: Checkout,
}

/// Where a branch is to begin.
pub struct Prepared {
    pub branch: String,
    pub makes_branch: bool,
    pub start_sha: String,
}

#[derive(Clone)]
pub struct Checkouts {
    inner: Arc<Parts>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub forge: Forge,
    pub projects: Projects,
    pub reviews: Reviews,
    pub metrics: Metrics,
}

impl Checkouts {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// The repository's branches, each with whether it is protected.
    ///
    /// # Errors
    /// Those of git.
    pub async fn branches(&self, project: &Project) -> Result<Vec<(Branch, bool)>> {
        let protected = protection(project)?;
        let branches = self.inner.forge.branches(&project.id).await?;
        Ok(branches.into_iter().map(|b| (protected.matches_name(&b.name), b)).map(|(p, b)| (b, p)).collect())
    }

    /// # Errors
    /// Those of the database.
    pub async fn page(
        &self,
        project: &Project,
        status: CheckoutStatus,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Checkout>> {
        Ok(store::checkouts::page(&mut self.inner.db.conn().await?, &project.id, status, before, limit).await?)
    }

    /// # Errors
    /// "checkout not found".
    pub async fn get(&self, project: &Project, id: Uuid) -> Result<Checkout> {
        let found = store::checkouts::find(&mut self.inner.db.conn().await?, &project.id, id).await?;
        found.ok_or_else(not_found)
    }

    /// # Errors
    /// The contract's cases, in its order.
    pub async fn create(
        &self,
        caller: &Key,
        project: &Project,
        new: NewCheckout,
        answer: Answer<Opened>,
    ) -> Result<Opened> {
        let prepared = self.prepare(project, &new.wanted).await?;
        let mut tx = self.inner.db.begin().await?;
        let checkout = self.fresh(caller, project, &prepared, &new, None);
        self.insert(&mut tx, &checkout).await?;
        let task = self.inner.queue.insert_owned(&mut tx, CREATE_TASK, &checkout.id.to_string()).await?;
        tx.commit().await?;
        match self.carry_out(caller, project, &prepared, checkout, &task, &answer).await {
            Ok(made) => Ok(made),
            Err(error) => {
                let error = self.unless_gone(project, error).await;
                self.undo(&task).await;
                Err(error)
            }
        }
    }

    /// See [`Projects::unless_gone`].
    pub async fn unless_gone(&self, project: &Project, error: Error) -> Error {
        self.inner.projects.unless_gone(&project.id, error).await
    }

    /// Looks at everything that can refuse a checkout before anything is made.
    ///
    /// # Errors
    /// The contract's cases, in its order.
    pub async fn prepare(&self, project: &Project, wanted: &Wanted) -> Result<Prepared> {
        match self.look(project, wanted).await {
            Ok(prepared) => Ok(prepared),
            Err(error) => Err(self.unless_gone(project, error).await),
        }
    }

    async fn look(&self, project: &Project, wanted: &Wanted) -> Result<Prepared> {
        let (name, start_sha, makes_branch) = match wanted {
            Wanted::Existing(name) => {
                let sha = self.inner.forge.branch(&project.id, name.as_str()).await?;
                (name, sha.ok_or_else(|| Error::not_found("branch not found"))?, false)
            }
            Wanted::New { name, from } => {
                let from = from.as_ref().map_or(project.default_branch.as_str(), FromRef::as_str);
                let sha = self.inner.forge.resolve(&project.id, from).await?;
                let sha = sha.ok_or_else(|| Error::not_found("from_ref not found"))?;
                let taken = self.inner.forge.in_the_way(&project.id, name.as_str()).await?;
                match taken {
                    Some(taken) => return Err(branch_exists(&taken)),
                    None => (name, sha, true),
                }
            }
        };
        if protection(project)?.matches(name) {
            return Err(Error::invalid("cannot checkout protected branch").reason("BRANCH_PROTECTED"));
        }
        if self.is_taken(project, name).await? {
            // Its time may be up, and nobody has written that down yet.
            self.expire(DUE_AT_ONCE).await?;
            if self.is_taken(project, name).await? {
                return Err(checkout_exists());
            }
        }
        Ok(Prepared { branch: name.as_str().to_owned(), makes_branch, start_sha })
    }

    async fn is_taken(&self, project: &Project, name: &BranchName) -> Result<bool> {
        let mut conn = self.inner.db.conn().await?;
        Ok(store::checkouts::branch_is_taken(&mut conn, &project.id, name.as_str()).await?)
    }

    /// A checkout in the making.
    pub fn fresh(
        &self,
        caller: &Key,
        project: &Project,
        prepared: &Prepared,
        new: &NewCheckout,
        session_id: Option<Uuid>,
    ) -> Checkout {
        let now = self.inner.clock.now();
        Checkout {
            id: Uuid::now_v7(),
            project_id: project.id.clone(),
            session_id,
            branch: prepared.branch.clone(),
            made_branch: prepared.makes_branch,
            start_sha: prepared.start_sha.clone(),
            feature_slug: new.feature_slug.clone(),
            checked_out_by: caller.id,
            checked_out_at: now,
            expires_at: later(now, new.expires_in),
            ended_at: None,
            status: CheckoutStatus::Pending,
            review_task_id: None,
        }
    }

    /// Its row, seen by nobody yet.
    ///
    /// # Errors
    /// `CHECKOUT_EXISTS`.
    pub async fn insert(&self, tx: &mut Conn, checkout: &Checkout) -> Result<()> {
        store::checkouts::insert(tx, checkout).await.map_err(taken)
    }

    /// Its token, which is known by the checkout's row or by its id: what comes of a death in the
    /// middle is found either way.
    ///
    /// # Errors
    /// Those of the git host.
    pub async fn issue(&self, checkout: &Checkout) -> Result<Credential> {
        Ok(self.inner.forge.issue(&checkout.project_id, checkout.id).await?)
    }

    /// # Errors
    /// `BRANCH_EXISTS`, also when it appeared only just now: then it is somebody else's, and an undo spares it.
    pub async fn make_branch(&self, project: &Project, prepared: &Prepared, checkout: Uuid) -> Result<()> {
        if !prepared.makes_branch {
            return Ok(());
        }
        match self.inner.forge.create_branch(&project.id, &prepared.branch, &prepared.start_sha).await {
            Ok(()) => Ok(()),
            Err(BranchError::Exists(name)) => {
                store::checkouts::disown_branch(&mut self.inner.db.conn().await?, checkout).await?;
                Err(branch_exists(&name))
            }
            Err(BranchError::Git(error)) => Err(error.into()),
        }
    }

    async fn carry_out(
        &self,
        caller: &Key,
        project: &Project,
        prepared: &Prepared,
        checkout: Checkout,
        task: &Claimed,
        answer: &Answer<Opened>,
    ) -> Result<Opened> {
        let inner = &self.inner;
        self.make_branch(project, prepared, checkout.id).await?;
        let Credential { token, kept } = self.issue(&checkout).await?;
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        if !store::checkouts::activate(&mut tx, checkout.id, kept.hash(), kept.sealed()).await? {
            return Err(crate::queue::stale());
        }
        let opened = Opened { checkout: Checkout { status: CheckoutStatus::Active, ..checkout }, token };
        answer.keep(&mut tx, &opened).await?;
        let unshown = self.activity(&mut tx, &opened.checkout, "checkout.created", Some(caller.id)).await?;
        tx.commit().await?;
        inner.streams.show(unshown);
        Ok(opened)
    }

    /// Takes back what a creation made; what cannot be taken back now is left to the task.
    pub async fn undo(&self, task: &Claimed) {
        if let Err(error) = self.try_undo(task).await {
            tracing::warn!(%error, checkout.id = task.subject, "a checkout's creation is not undone yet");
            self.inner.queue.give_back(task, UNDO_AGAIN);
        }
    }

    async fn try_undo(&self, task: &Claimed) -> Result<()> {
        let id: Uuid = task.subject.parse().map_err(Error::internal)?;
        let found = store::checkouts::find_any(&mut self.inner.db.conn().await?, id).await?;
        if let Some(checkout) = found.filter(|checkout| checkout.status == CheckoutStatus::Pending) {
            self.take_back(&checkout).await?;
        }
        let mut tx = self.inner.db.begin().await?;
        self.inner.queue.finish(&mut tx, task).await?;
        store::checkouts::delete_pending(&mut tx, id).await?;
        Ok(tx.commit().await?)
    }

    /// Takes back what a creation made outside of the database: the token, and the branch unless it has moved.
    ///
    /// # Errors
    /// Those of git.
    pub async fn take_back(&self, checkout: &Checkout) -> Result<()> {
        self.inner.forge.revoke(&checkout.project_id, checkout.id, None).await?;
        if !checkout.made_branch || !self.inner.forge.exists(&checkout.project_id).await? {
            return Ok(());
        }
        let (project, branch, sha) = (&checkout.project_id, &checkout.branch, &checkout.start_sha);
        self.inner.forge.delete_branch_if(project, branch, sha).await.map(drop).map_err(Error::from)
    }

    /// The checkout, active and nobody's session's, locked.
    async fn active_alone(&self, tx: &mut Conn, project: &Project, id: Uuid) -> Result<Checkout> {
        self.alone(store::checkouts::lock(tx, &project.id, id).await?.ok_or_else(not_found)?)
    }

    fn alone(&self, checkout: Checkout) -> Result<Checkout> {
        let checkout = self.active(checkout)?;
        match checkout.session_id {
            None => Ok(checkout),
            Some(session) => {
                let why = "this checkout belongs to a session; use the session's routes";
                Err(Error::conflict("CHECKOUT_IN_SESSION", why).detail("session_id", session.to_string()))
            }
        }
    }

    /// One whose time is up has ended, whether that is written down yet or not: its token is dead.
    fn active(&self, checkout: Checkout) -> Result<Checkout> {
        let is_active = checkout.status == CheckoutStatus::Active && checkout.expires_at > self.inner.clock.now();
        if is_active { Ok(checkout) } else { Err(not_active()) }
    }

    /// Appends to the project's activity.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn activity(
        &self,
        tx: &mut Conn,
        checkout: &Checkout,
        kind: &str,
        actor: Option<Uuid>,
    ) -> Result<Unshown> {
        let mut data =
            json!({"type": kind, "id": checkout.id, "at": stamp(&self.inner.clock), "branch": checkout.branch});
        if let Some(actor) = actor {
            data["actor"] = actor.to_string().into();
        }
        record_activity(tx, &self.inner.streams, &checkout.project_id, &data).await
    }

    /// The URL to clone from, with the credential in it.
    pub fn authenticated_url(&self, opened: &Opened) -> String {
        let plain = self.inner.projects.clone_url(&opened.checkout.project_id);
        let credential = format!("://rdev:{}@", opened.token.expose());
        plain.replacen("://", &credential, 1)
    }

    /// Whether a token pushes to its own branch alone. Another host's opens more than that.
    pub fn token_is_bound(&self) -> bool {
        !self.inner.forge.keeps_tokens()
    }

    pub fn clone_url(&self, project: &str) -> String {
        self.inner.projects.clone_url(project)
    }
}

/// # Errors
/// A pattern in the database that cannot be used.
fn protection(project: &Project) -> Result<Protected> {
    Protected::new(&project.default_branch, &project.protected_branches).map_err(Error::internal)
}

fn not_active() -> Error {
    Error::invalid("checkout is not active").reason("CHECKOUT_NOT_ACTIVE")
}

fn not_found() -> Error {
    Error::not_found("checkout not found")
}

fn checkout_exists() -> Error {
    Error::conflict("CHECKOUT_EXISTS", "active checkout already exists for this branch")
}

fn branch_exists(name: &str) -> Error {
    Error::conflict("BRANCH_EXISTS", format!("branch {name} already exists")).detail("branch", name)
}

fn taken(error: DbError) -> Error {
    match error.constraint() {
        Some("checkout_branch_taken") => checkout_exists(),
        _ => error.into(),
    }
}

/// The activity event of an end.
pub fn event_of(status: CheckoutStatus) -> &'static str {
    match status {
        CheckoutStatus::Expired => "checkout.expired",
        CheckoutStatus::Revoked => "checkout.revoked",
        _ => "checkout.checked_in",
    }
}
