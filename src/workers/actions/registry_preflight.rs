//! `registry.preflight`: whether a registry answers at all, before anything depends on it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::{
    ATTEMPTS, ended,
    http_request::{put_off, target},
};
use crate::{
    domain::{
        egress::Target,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
    },
    services::{
        callouts::{self, Call, Callouts, Failure, Unanswered},
        sagas::{Action, Attempt},
    },
};

const TIMEOUT: Duration = Duration::from_secs(10);

pub struct RegistryPreflight {
    pub callouts: Callouts,
}

impl RegistryPreflight {
    async fn look(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let target = attempt.read(target)?.map(|target| endpoint(&target));
        let target = target.ok_or_else(|| Outcome::never("config.url: is required"))?;
        let server = callouts::server(&target);
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let call = Call { method: Method::GET, target, headers, body, timeout: TIMEOUT, answer_max: 0 };
        let asked = Instant::now();
        match self.callouts.call(call).await {
            Ok(answer) if answer.status < 500 => {
                Ok(json!({"ok": true, "latency_ms": u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX)}))
            }
            Ok(answer) => Err(Outcome::failed(format!("the registry answered {}", answer.status))),
            Err(Unanswered::PutOff { until }) => Err(put_off(until, &server)),
            Err(Unanswered::Failed(Failure::Refused(why))) => {
                Err(Outcome::never(format!("the URL cannot be called: {why}")))
            }
            Err(Unanswered::Failed(failure)) => {
                Err(Outcome::failed(format!("the registry does not answer: {failure}")))
            }
        }
    }
}

/// Where registries tell that they are there, unless the URL names a place of its own.
fn endpoint(target: &Target) -> Target {
    if target.url().path() != "/" {
        return target.clone();
    }
    let mut url = target.url().clone();
    url.set_path("/v2/");
    Target::parse(url.as_str()).unwrap_or_else(|_| target.clone())
}

impl Rules for RegistryPreflight {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        false
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        target(fields);
    }
}

impl Action for RegistryPreflight {
    fn name(&self) -> &'static str {
        "registry.preflight"
    }

    fn nature(&self) -> Nature {
        ATTEMPTS
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.look(attempt).await) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_asked_where_registries_answer() {
        for (url, asked) in [
            ("https://registry.example.com", "https://registry.example.com/v2/"),
            ("https://registry.example.com/", "https://registry.example.com/v2/"),
            ("http://127.0.0.1:5000/healthz", "http://127.0.0.1:5000/healthz"),
        ] {
            assert_eq!(endpoint(&Target::parse(url).expect("a target")).url().as_str(), asked);
        }
    }
}
