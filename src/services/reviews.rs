//! Reviews: queued with the checkin that asks for them, looked at, done again. What carries one
//! through is `reviews/running.rs`; its job, by which clients wait for it, is `jobs/reviewed.rs`.

mod command;
mod ending;
mod merging;
mod model;
mod running;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    commands::Commands,
    jobs::Jobs,
    output::Outputs,
    projects::{Projects, Site, record_activity, stamp},
    receipts::Answer,
    workspaces::Workspaces,
};
use crate::{
    database::{Conn, Db},
    domain::{
        chat,
        checkout::Checkout,
        clock::Clock,
        project::Project,
        review::{Merge, Review, ReviewStatus, Reviewer, Stage, Wish},
        task::{Lane, NewTask, PRIORITY},
    },
    error::{Error, Result},
    forge::Forge,
    models::Upstreams,
    queue::Queue,
    store,
    streams::{Streams, Unshown},
};

pub use self::running::Reviewing;
pub use super::jobs::REVIEW_TASK;

#[derive(Clone)]
pub struct Reviews {
    inner: Arc<Parts>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    /// For what works on tasks.
    pub core: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub metrics: crate::metrics::Metrics,
    pub forge: Forge,
    pub workspaces: Workspaces,
    pub commands: Commands,
    pub outputs: Outputs,
    pub projects: Projects,
    pub jobs: Jobs,
    pub upstreams: Upstreams,
    pub site: Site,
    /// Reviews where a project has no command for that.
    pub model: Option<String>,
    /// Of one attempt.
    pub timeout: Duration,
}

/// A review that a checkin will queue, found out before its transaction.
#[derive(Debug, Clone)]
pub struct Due {
    reviewer: Reviewer,
    base: String,
    head_sha: String,
    auto_merge: bool,
}

impl Due {
    /// The commit that will be reviewed.
    pub fn head(&self) -> &str {
        &self.head_sha
    }
}

impl Reviews {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// Whether somebody is there to review, and the checkin does not skip it.
    pub fn is_wanted(&self, project: &Project, wish: Wish) -> bool {
        !wish.skip && self.reviewer(project).is_some()
    }

    /// Whether a branch whose head this is will be reviewed: somebody is there to do it, the default
    /// branch lacks something of it, and the checkin does not skip it. A review of nothing does no
    /// harm, so what git cannot tell holds no checkin up.
    pub async fn due(&self, project: &Project, head: Option<&str>, wish: Wish) -> Option<Due> {
        let (Some(head), Some(reviewer)) = (head.filter(|_| !wish.skip), self.reviewer(project)) else {
            return None;
        };
        let base = &project.default_branch;
        let is_ahead = self.inner.forge.has_beyond(&project.id, head, base).await.unwrap_or_else(|error| {
            tracing::warn!(%error, project.id, "what a branch is ahead by is not known, so it is reviewed");
            true
        });
        let due = || Due { reviewer, base: base.clone(), head_sha: head.to_owned(), auto_merge: wish.auto_merge };
        is_ahead.then(due)
    }

    fn reviewer(&self, project: &Project) -> Option<Reviewer> {
        let model = self.inner.model.as_deref().filter(|_| self.inner.upstreams.is_configured());
        Reviewer::choose(project.review_command.as_deref(), model)
    }

    /// Puts the review, its job and its task in, with the checkin. Call [`Reviews::wake`] after the commit.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn insert(&self, tx: &mut Conn, due: &Due, checkout: &Checkout, by: Uuid) -> Result<Review> {
        let review = Review {
            id: self.inner.jobs.review_id(),
            project_id: checkout.project_id.clone(),
            checkout_id: checkout.id,
            session_id: checkout.session_id,
            created_by: by,
            branch: checkout.branch.clone(),
            base: due.base.clone(),
            head_sha: due.head_sha.clone(),
            feature_slug: checkout.feature_slug.clone(),
            status: ReviewStatus::Queued,
            attempt: 0,
            started: false,
            uncleared: false,
            auto_merge: due.auto_merge,
            merge: Merge::None,
            merge_candidate: None,
            merge_failures: 0,
            merge_error: None,
            merge_sha: None,
            model: String::new(),
            command: Vec::new(),
            command_id: None,
            summary: None,
            created_at: self.inner.clock.now(),
            completed_at: None,
        };
        let review = review.reviewed_by(due.reviewer.clone());
        store::reviews::insert(tx, &review).await?;
        self.inner.jobs.put_review(tx, &review).await?;
        self.inner.queue.insert(tx, &task(&review)).await?;
        Ok(review)
    }

    /// Its activity.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn tell_queued(&self, tx: &mut Conn, review: &Review, by: Uuid) -> Result<Unshown> {
        self.activity(tx, review, "review.queued", Some(by)).await
    }

    /// A review was put in and is committed.
    pub fn wake(&self, review: &Review) {
        let task = task(review);
        self.inner.queue.wake(task.lane, &task.queue);
    }

    /// # Errors
    /// "review not found".
    pub async fn get(&self, project: &str, id: &str) -> Result<Review> {
        let found = store::reviews::find(&mut self.inner.db.conn().await?, project, id).await?;
        found.ok_or_else(not_found)
    }

    /// Newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn page(&self, project: &str, before: Option<&str>, limit: i64) -> Result<Vec<Review>> {
        Ok(store::reviews::page(&mut self.inner.db.conn().await?, project, before, limit).await?)
    }

    /// The review once more, by whoever reviews now; where it passed, the merge.
    ///
    /// # Errors
    /// `NOTHING_TO_RETRY`, `NO_REVIEWER`, "review not found".
    pub async fn retry(&self, by: Uuid, project: &Project, id: &str, answer: Answer<Review>) -> Result<Review> {
        self.get(&project.id, id).await?;
        let mut tx = self.inner.db.begin().await?;
        self.inner.jobs.hold_review(&mut tx, id).await?;
        let review = store::reviews::lock(&mut tx, id).await?.ok_or_else(not_found)?;
        let mut again = review.again().ok_or_else(|| nothing_to_retry(&review))?;
        let mut unshown = Unshown::default();
        if again.stage() == Stage::Review {
            again = again.reviewed_by(self.reviewer(project).ok_or_else(no_reviewer)?);
            self.inner.jobs.put_review(&mut tx, &again).await?;
            unshown = self.tell_queued(&mut tx, &again, by).await?;
        }
        store::reviews::save(&mut tx, &again).await?;
        // Whoever still clears up after the last time goes on with it, once that is done.
        store::tasks::insert_once(&mut tx, &task(&again)).await?;
        answer.keep(&mut tx, &again).await?;
        tx.commit().await?;
        self.inner.streams.show(unshown);
        self.wake(&again);
        Ok(again)
    }

    /// Nothing of a project is reviewed or merged any more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn stop_all(&self, project: &str) -> Result<()> {
        let inner = &self.inner;
        let all = store::reviews::all_of_project(&mut inner.db.conn().await?, project).await?;
        for (id, _) in all.iter().filter(|(_, at_work)| *at_work) {
            inner.jobs.cancel_any(id).await?;
        }
        let ids: Vec<String> = all.into_iter().map(|(id, _)| id).collect();
        let mut conn = inner.db.conn().await?;
        store::tasks::cancel_all(&mut conn, REVIEW_TASK, &ids).await?;
        store::reviews::block_merges(&mut conn, project, inner.clock.now()).await?;
        Ok(())
    }

    /// The jobs of a project's reviews go with it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn forget_all(&self, tx: &mut Conn, project: &str) -> Result<()> {
        let all = store::reviews::all_of_project(tx, project).await?;
        let ids: Vec<String> = all.into_iter().map(|(id, _)| id).collect();
        store::jobs::lock_all(tx, &ids).await?;
        store::jobs::delete(tx, &ids).await?;
        Ok(())
    }

    /// Appends to the project's activity.
    async fn activity(&self, tx: &mut Conn, review: &Review, kind: &str, actor: Option<Uuid>) -> Result<Unshown> {
        let data = review.event(kind, &stamp(&self.inner.clock), actor);
        record_activity(tx, &self.inner.streams, &review.project_id, &data).await
    }
}

/// A model's review waits in line with the jobs for that model; everything else is the system's own work.
fn task(review: &Review) -> NewTask {
    if review.stage() != Stage::Review || review.model.is_empty() {
        return NewTask::work(REVIEW_TASK, &review.id);
    }
    let queue = chat::model_name(&review.model).into_owned();
    NewTask { lane: Lane::Jobs, queue, priority: PRIORITY, kind: REVIEW_TASK, subject: review.id.clone() }
}

fn not_found() -> Error {
    Error::not_found("review not found")
}

fn nothing_to_retry(review: &Review) -> Error {
    let why = match (review.stage(), review.merge) {
        (Stage::Review, _) => "the review has not ended yet",
        (Stage::Merge, _) => "the merge is not decided yet",
        (Stage::Over, Merge::Merged) => "the review passed and its commit is merged",
        (Stage::Over, _) => "the review passed and no merge was asked for",
    };
    Error::conflict("NOTHING_TO_RETRY", format!("there is nothing to retry: {why}"))
}

fn no_reviewer() -> Error {
    Error::conflict("NO_REVIEWER", "nobody is there to review any more; give the project a review_command")
}
