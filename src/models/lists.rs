//! What upstreams tell of themselves and their models, passed on: as it came where there is one
//! upstream, put together where there are several.

use std::collections::HashSet;

use bytes::Bytes;
use futures::future::join_all;
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Passed, Upstreams,
    upstream::{Unanswered, Whole},
};
use crate::{
    domain::chat::{asks, model_name},
    error::{Error, Result},
};

impl Upstreams {
    /// The models of all.
    ///
    /// # Errors
    /// No upstream answered; and so are those that follow.
    pub async fn tags(&self) -> Result<Passed> {
        self.list("/api/tags").await
    }

    /// Those that are loaded somewhere.
    ///
    /// # Errors
    /// As [`Upstreams::tags`].
    pub async fn ps(&self) -> Result<Passed> {
        self.list("/api/ps").await
    }

    /// The version of the first that answers.
    ///
    /// # Errors
    /// As [`Upstreams::tags`].
    pub async fn version(&self) -> Result<Passed> {
        let mut why = None;
        for upstream in &self.inner.upstreams {
            match upstream.ask("/api/version", None, self.inner.timeouts.list).await {
                Ok(whole) => return Ok(whole.into()),
                Err(error) => why = Some(error),
            }
        }
        Err(unavailable(why))
    }

    /// What an upstream that has the model knows of it.
    ///
    /// # Errors
    /// As [`Upstreams::tags`].
    pub async fn show(&self, body: Bytes) -> Result<Passed> {
        let model = asks(&body).0;
        let mut why = None;
        for at in self.candidates(&model_name(&model)).await {
            match self.inner.upstreams[at].ask("/api/show", Some(body.clone()), self.inner.timeouts.show).await {
                Ok(whole) => return Ok(whole.into()),
                Err(error) => why = Some(error),
            }
        }
        Err(unavailable(why))
    }

    async fn list(&self, path: &str) -> Result<Passed> {
        let timeout = self.inner.timeouts.list;
        let answers = join_all(self.inner.upstreams.iter().map(|upstream| upstream.ask(path, None, timeout))).await;
        let (mut answered, mut why) = (Vec::new(), None);
        for answer in answers {
            match answer {
                Ok(whole) => answered.push(whole),
                Err(error) => why = Some(error),
            }
        }
        let bodies = answered.iter().filter(|whole| whole.status == 200).map(|whole| &whole.body);
        if let Some(merged) = merge(bodies).filter(|_| self.inner.upstreams.len() > 1) {
            let content_type = Some(HeaderValue::from_static("application/json; charset=utf-8"));
            return Ok(Whole { status: 200, content_type, retry_after: None, body: merged }.into());
        }
        answered.into_iter().next().map(Passed::from).ok_or_else(|| unavailable(why))
    }
}

fn unavailable(why: Option<Unanswered>) -> Error {
    Error::unavailable("the model upstream", why.map_or_else(String::new, |error| error.why))
}

#[derive(Deserialize, Serialize)]
struct List<'a> {
    #[serde(borrow)]
    models: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Entry {
    name: Option<String>,
    model: Option<String>,
}

/// One list of all models, each once, in the first one's words. What is no list is left out;
/// `None` where nothing is one.
fn merge<'a>(bodies: impl Iterator<Item = &'a Bytes>) -> Option<Bytes> {
    let lists: Vec<List<'_>> = bodies.filter_map(|body| serde_json::from_slice(body).ok()).collect();
    if lists.is_empty() {
        return None;
    }
    let mut seen = HashSet::new();
    let is_new = |entry: &&RawValue| {
        let entry: Option<Entry> = serde_json::from_str(entry.get()).ok();
        entry.and_then(|entry| entry.name.or(entry.model)).is_none_or(|name| seen.insert(name))
    };
    let models = lists.into_iter().flat_map(|list| list.models.unwrap_or_default()).filter(is_new).collect();
    serde_json::to_vec(&List { models: Some(models) }).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(bodies: &[&'static str]) -> Option<String> {
        let bodies: Vec<Bytes> = bodies.iter().map(|body| Bytes::from_static(body.as_bytes())).collect();
        merge(bodies.iter()).map(|merged| String::from_utf8(merged.to_vec()).unwrap())
    }

    #[test]
    fn models_of_several_are_listed_once_and_as_they_came() {
        let bodies = [
            r#"{"models":[{"name":"a:1", "size":12345678901234567890123},{"model":"b"}]}"#,
            r#"{"models":[{"size":2,"name":"a:1"},{"name":"c"},{}],"more":1}"#,
            r#"{"models":null}"#,
            "<html>",
        ];
        let whole = r#"{"models":[{"name":"a:1", "size":12345678901234567890123},{"model":"b"},{"name":"c"},{}]}"#;
        assert_eq!(merged(&bodies).as_deref(), Some(whole));
        assert_eq!(merged(&["<html>", "[]x"]), None);
    }
}
