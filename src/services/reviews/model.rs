//! A model as the reviewer: one chat over the upstreams and seats of jobs. It sees the diff, or its
//! beginning, and nothing else of the server.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::{Reviewing, running::Outcome};
use crate::{
    domain::{
        job::Retry,
        review::{
            Review,
            asking::{self, DIFF_MAX, Diff, Word},
        },
    },
    error::Result,
    models::{CallError, Seat, Step},
    queue::stale,
};

impl Reviewing {
    pub(super) async fn by_model(&self, review: &Review, seat: Seat) -> Result<Outcome> {
        let diff = match self.diff(review).await {
            Ok(Some(diff)) => diff,
            Ok(None) => return Ok(Outcome::never(format!("the branch {} is gone", review.base))),
            Err(error) => {
                tracing::warn!(%error, review.id, "a review has no diff yet");
                return Ok(Outcome::later("the diff could not be made"));
            }
        };
        if !self.parts().queue.is_sure() {
            return Err(stale());
        }
        let body = Bytes::from(asking::chat(review, &diff).to_string());
        let answer = tokio::select! {
            () = self.is_given_up(review) => return Ok(Outcome::GivenUp),
            answer = self.answer(&seat, body) => answer,
        };
        Ok(match answer {
            Ok(whole) if !asking::has_read(&diff, whole["prompt_eval_count"].as_u64()) => {
                Outcome::never("the model was not given all of the diff: its context is too small")
            }
            Ok(whole) => match asking::read(whole["message"]["content"].as_str().unwrap_or_default()) {
                Ok(opinion) => Outcome::Judged { passed: opinion.verdict == Word::Pass, summary: opinion.summary },
                Err(why) => Outcome::never(why),
            },
            // The inventory was wrong: another upstream has the model.
            Err(error) if error.model_missing && self.parts().upstreams.has(&review.model) => {
                Outcome::Again(Duration::ZERO)
            }
            Err(error) => Outcome::Failed {
                retry: error.retry.map(|after| Retry { after, unit: rand::random() }),
                message: error.message,
            },
        })
    }

    async fn diff(&self, review: &Review) -> Result<Option<Diff>> {
        let forge = &self.parts().forge;
        let (project, head) = (&review.project_id, &review.head_sha);
        let Some(base) = forge.branch(project, &review.base).await? else { return Ok(None) };
        let (bytes, cut) = forge.diff(project, &base, head, DIFF_MAX).await?;
        Ok(Some(Diff::of(bytes, cut)))
    }

    async fn answer(&self, seat: &Seat, body: Bytes) -> Result<Value, CallError> {
        let mut stream = seat.chat(body, self.parts().timeout).await?;
        loop {
            match stream.next().await? {
                Some(Step::Tokens(_)) => {}
                Some(Step::Done(whole)) => return Ok(whole),
                None => return Err(CallError::broken()),
            }
        }
    }
}
