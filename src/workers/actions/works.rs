//! Calls of services that must not stop half-way: they go on to their end when the attempt that
//! made them is dropped. What they make then is noted with the attempt, or refused by the note and
//! taken back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    error::{Error, Result},
    services::sagas::Attempt,
};

/// The calls under way. Cheap to clone.
#[derive(Clone)]
pub struct Works {
    tasks: TaskTracker,
    under_way: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

/// Says that a call is over, also when it panicked.
struct Mark {
    works: Works,
    name: String,
    over: CancellationToken,
}

impl Works {
    /// An orderly stop waits for these tasks.
    pub fn new(tasks: TaskTracker) -> Self {
        Self { tasks, under_way: Arc::default() }
    }

    /// Carries a call of this attempt through.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn through<T: Send + 'static>(
        &self,
        attempt: &Attempt,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.carry(name(attempt), call).await
    }

    /// Waits until nothing goes on that this attempt began: its note is the last word then.
    pub async fn settled(&self, attempt: &Attempt) {
        self.over(&name(attempt)).await;
    }

    async fn carry<T: Send + 'static>(
        &self,
        name: String,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let over = CancellationToken::new();
        self.lock().insert(name.clone(), over.clone());
        let mark = Mark { works: self.clone(), name, over };
        let carried = self.tasks.spawn(async move {
            let _mark = mark;
            call.await
        });
        carried.await.unwrap_or_else(|error| Err(Error::internal(error)))
    }

    async fn over(&self, name: &str) {
        let under_way = self.lock().get(name).cloned();
        if let Some(over) = under_way {
            over.cancelled().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.works.lock().remove(&self.name);
        self.over.cancel();
    }
}

/// No two attempts have the same.
fn name(attempt: &Attempt) -> String {
    format!("{} {}", attempt.key(), attempt.number())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    fn works() -> Works {
        Works::new(TaskTracker::new())
    }

    #[tokio::test]
    async fn a_call_goes_on_when_its_attempt_is_dropped() {
        let works = works();
        let (begun, has_begun) = oneshot::channel();
        let (go, may_end) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let call = async move {
            begun.send(()).expect("the story listens");
            may_end.await.expect("the story says go");
            done.send(()).expect("the story listens");
            Ok(())
        };
        let mut attempt = works.carry("a".into(), call).boxed();
        tokio::select! {
            _ = &mut attempt => panic!("it waits"),
            begun = has_begun => begun.expect("it began"),
        }
        drop(attempt);
        assert!(works.over("a").now_or_never().is_none(), "it goes on");
        go.send(()).expect("it waits");
        works.over("a").await;
        is_done.await.expect("it was carried through");
        assert!(works.lock().is_empty());
    }

    #[tokio::test]
    async fn one_that_panicked_is_over() {
        let works = works();
        let call = async { if true { panic!("as arranged") } else { Ok(()) } };
        assert!(works.carry("a".into(), call).await.is_err());
        works.over("a").await;
    }

    #[tokio::test]
    async fn nothing_is_waited_for_where_nothing_goes_on() {
        works().over("a").await;
    }
}
