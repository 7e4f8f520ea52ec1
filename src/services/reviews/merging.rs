//! The merge of what passed. What the base is to become is written down before the base is moved,
//! and the base is moved only from where it was seen; so one who comes after a death finds either
//! nothing done or the very commit, and there is never a second merge.

use super::{Reviewing, Stage};
use crate::{
    domain::review::{Merge, MergeStep, Review, Standing, merge_step},
    error::{Error, Result},
    forge::Move,
    queue::{Claimed, stale},
    store,
};

/// Moves of the base meanwhile after which others get a turn.
const TRIES: u32 = 20;

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
            if let Tried::Decided(merge, sha) = self.try_merge(task, &mut review).await? {
                return self.decided(task, merge, sha).await;
            }
        }
        Err(Error::unavailable("the branch to merge into", "it moves all the time"))
    }

    async fn try_merge(&self, task: &Claimed, review: &mut Review) -> Result<Tried> {
        let (forge, project) = (&self.parts().forge, review.project_id.clone());
        let Some(base) = forge.branch(&project, &review.base).await.map_err(Error::internal)? else {
            return Ok(Tried::Decided(Merge::Blocked, None));
        };
        let head = review.head_sha.clone();
        let step = merge_step(self.standing(review, &base).await?);
        let to = match step {
            MergeStep::IsMerged { at_candidate } => {
                let sha = review.merge_candidate.clone().filter(|_| at_candidate).unwrap_or(head);
                return Ok(Tried::Decided(Merge::Merged, Some(sha)));
            }
            MergeStep::Blocked => return Ok(Tried::Decided(Merge::Blocked, None)),
            MergeStep::FastForward => head.clone(),
            MergeStep::Join => {
                let message = format!("Merge branch '{}'\n\nReview: {}\n", review.branch, review.id);
                match forge.join(&project, &base, &head, &message).await.map_err(Error::internal)? {
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
        let moved = forge.move_while(&project, what).await.map_err(Error::internal)?;
        Ok(if moved { Tried::Decided(Merge::Merged, Some(to)) } else { Tried::Moved })
    }

    async fn standing(&self, review: &Review, base: &str) -> Result<Standing> {
        let (forge, project, head) = (&self.parts().forge, review.project_id.as_str(), review.head_sha.as_str());
        let branch = forge.branch(project, &review.branch).await.map_err(Error::internal)?;
        let has_candidate = match &review.merge_candidate {
            Some(candidate) => forge.has(project, base, candidate).await.map_err(Error::internal)?,
            None => false,
        };
        Ok(Standing {
            unmoved: branch.as_deref() == Some(head),
            has_candidate,
            has_head: forge.has(project, base, head).await.map_err(Error::internal)?,
            forward: forge.has(project, head, base).await.map_err(Error::internal)?,
        })
    }

    async fn note(&self, task: &Claimed, review: &mut Review, candidate: &str) -> Result<()> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let mut held = store::reviews::lock(&mut tx, &review.id).await?.ok_or_else(stale)?;
        if held.stage() != Stage::Merge {
            return Err(stale());
        }
        held.merge_candidate = Some(candidate.to_owned());
        store::reviews::save(&mut tx, &held).await?;
        tx.commit().await?;
        *review = held;
        Ok(())
    }

    async fn decided(&self, task: &Claimed, merge: Merge, sha: Option<String>) -> Result<()> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let held = store::reviews::lock(&mut tx, &task.subject).await?.ok_or_else(stale)?;
        if held.stage() != Stage::Merge {
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
}
