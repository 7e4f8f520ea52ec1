//! The merge of what passed. What the base is to become is written down before the base is moved,
//! and the base is moved only from where it was seen; so one who comes after a death finds either
//! nothing done or the very commit, and there is never a second merge.

use super::{Reviewing, Stage};
use crate::{
    domain::review::{Merge, MergeStep, Review, Standing, merge_step},
    error::{Error, Result},
    forge::{GitError, Move},
    queue::{Claimed, stale},
    store,
};

/// Moves of the base meanwhile after which others get a turn.
const TRIES: u32 = 20;

/// Merges in a row that git cannot carry out, after which it is left to people.
const FAILURES: i32 = 10;
const GIT_FAILED: &str = "GIT_FAILED";

/// What a try came to.
enum Tried {
    Decided(Merge, Option<String>),
    /// Something moved meanwhile.
    Moved,
}

impl Reviewing {
    /// Merges the commit, or finds out why not, and writes that down.
    pub(super) async fn merge(&self, task: &Claimed, review: &Review) -> Result<()> {
        let mut review = review.clone();
        for _ in 0..TRIES {
            match self.try_merge(task, &mut review).await {
                Ok(Tried::Decided(merge, sha)) => return self.decided(task, &review, merge, sha).await,
                Ok(Tried::Moved) => {}
                Err(error) if error.stable_code() == GIT_FAILED => return self.failed(task, &review, error).await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable("the branch to merge into", "it moves all the time"))
    }

    /// Where the base has the commit already, as far as git can tell.
    pub(super) async fn is_merged(&self, review: &Review) -> Option<String> {
        let looked = async {
            let base = self.parts().forge.branch(&review.project_id, &review.base).await.map_err(git_failed)?;
            let Some(base) = base else { return Ok(None) };
            Ok::<_, Error>(match merge_step(self.standing(review, &base).await?) {
                MergeStep::IsMerged { at_candidate } => Some(merged_as(review, at_candidate)),
                _ => None,
            })
        };
        looked.await.unwrap_or_else(|error| {
            tracing::warn!(%error, review.id, "whether a commit is merged is not known");
            None
        })
    }

    async fn try_merge(&self, task: &Claimed, review: &mut Review) -> Result<Tried> {
        let (forge, project) = (&self.parts().forge, review.project_id.clone());
        let Some(base) = forge.branch(&project, &review.base).await.map_err(git_failed)? else {
            return Ok(Tried::Decided(Merge::Blocked, None));
        };
        let head = review.head_sha.clone();
        let step = merge_step(self.standing(review, &base).await?);
        let to = match step {
            MergeStep::IsMerged { at_candidate } => {
                return Ok(Tried::Decided(Merge::Merged, Some(merged_as(review, at_candidate))));
            }
            MergeStep::Blocked => return Ok(Tried::Decided(Merge::Blocked, None)),
            MergeStep::FastForward => head.clone(),
            MergeStep::Join => {
                let message = format!("Merge branch '{}'\n\nReview: {}\n", review.branch, review.id);
                match forge.join(&project, &base, &head, &message).await.map_err(git_failed)? {
                    Some(commit) => commit,
                    None => return Ok(Tried::Decided(Merge::Conflict, None)),
                }
            }
        };
        self.note(task, review, &to).await?;
        if !self.parts().queue.is_sure() {
            return Err(stale());
        }
        let what = Move { branch: &review.base, from: &base, to: &to, while_at: (&review.branch, &head) };
        let moved = forge.move_while(&project, what).await.map_err(git_failed)?;
        Ok(if moved { Tried::Decided(Merge::Merged, Some(to)) } else { Tried::Moved })
    }

    /// What git has thrown away by now is in no branch, and no base has it.
    async fn standing(&self, review: &Review, base: &str) -> Result<Standing> {
        let (forge, project, head) = (&self.parts().forge, review.project_id.as_str(), review.head_sha.as_str());
        let has = async |later: &str, earlier: &str| forge.has(project, later, earlier).await.map_err(git_failed);
        let knows = async |sha: &str| forge.knows(project, sha).await.map_err(git_failed);
        let branch = forge.branch(project, &review.branch).await.map_err(git_failed)?;
        let unmoved = branch.as_deref() == Some(head);
        let has_candidate = match &review.merge_candidate {
            Some(candidate) => knows(candidate).await? && has(base, candidate).await?,
            None => false,
        };
        let is_there = unmoved || knows(head).await?;
        Ok(Standing {
            unmoved,
            has_candidate,
            has_head: is_there && has(base, head).await?,
            forward: is_there && has(head, base).await?,
        })
    }

    async fn note(&self, task: &Claimed, review: &mut Review, candidate: &str) -> Result<()> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let mut held = store::reviews::lock(&mut tx, &review.id).await?.ok_or_else(stale)?;
        if held.stage() != Stage::Merge || held.attempt != review.attempt {
            return Err(stale());
        }
        held.merge_candidate = Some(candidate.to_owned());
        store::reviews::save(&mut tx, &held).await?;
        tx.commit().await?;
        *review = held;
        Ok(())
    }

    async fn decided(&self, task: &Claimed, mine: &Review, merge: Merge, sha: Option<String>) -> Result<()> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let held = store::reviews::lock(&mut tx, &task.subject).await?.ok_or_else(stale)?;
        if held.stage() != Stage::Merge || held.attempt != mine.attempt {
            return Ok(());
        }
        let review = held.merged(merge, sha, parts.clock.now());
        store::reviews::save(&mut tx, &review).await?;
        let mut unshown = crate::streams::Unshown::default();
        if merge == Merge::Merged {
            unshown = self.reviews.activity(&mut tx, &review, "review.merged", None).await?;
        }
        tx.commit().await?;
        parts.streams.show(unshown);
        Ok(())
    }

    /// Git could not do it: so often it is tried again, then it is for whoever asks for it once more.
    async fn failed(&self, task: &Claimed, mine: &Review, error: Error) -> Result<()> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let held = store::reviews::lock(&mut tx, &task.subject).await?.ok_or_else(stale)?;
        if held.stage() != Stage::Merge || held.attempt != mine.attempt {
            return Ok(());
        }
        let failures = held.merge_failures + 1;
        let review = Review { merge_failures: failures, ..held };
        if failures < FAILURES {
            store::reviews::save(&mut tx, &review).await?;
            tx.commit().await?;
            return Err(error);
        }
        let why = format!("It was not merged: git failed {failures} times in a row; the server's log says how.");
        let review = Review { merge_error: Some(why), ..review }.merged(Merge::Blocked, None, parts.clock.now());
        store::reviews::save(&mut tx, &review).await?;
        tx.commit().await?;
        tracing::error!(%error, review.id, "git cannot carry this merge out");
        Ok(())
    }
}

fn merged_as(review: &Review, at_candidate: bool) -> String {
    review.merge_candidate.clone().filter(|_| at_candidate).unwrap_or_else(|| review.head_sha.clone())
}

/// A host that is away has not failed: it is asked until it is back.
fn git_failed(error: GitError) -> Error {
    match error {
        GitError::Away(_) | GitError::PutOff(_) => error.into(),
        error => Error::from(error).code(GIT_FAILED),
    }
}
