//! A webhook: the body that tells of a job's change of state, and what becomes of an attempt to
//! deliver it. Delivery is at least once, so a receiver may see a body twice, but with the same
//! id; what cannot succeed is given up, and kept, so that it can be sent again by hand.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap as _};
use serde_json::Value;
use uuid::Uuid;

use super::{backoff, job::JobState};

/// Attempts after the first.
pub const RETRIES_MAX: u32 = 5;

/// How an attempt went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver answered.
    Status { code: u16, retry_after: Option<Duration> },
    /// The egress guard did not let it out, and why.
    Refused(String),
    /// No answer: a name that does not resolve, a connection that fails, a deadline.
    Failed(String),
}

/// What becomes of the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    RetryAfter(Duration),
    /// It has failed, the job's later ones go on.
    GivenUp {
        error: String,
    },
    /// It has failed, and the job's later ones are not sent.
    Gone,
}

/// Decides after `retries_used` retries (0 after the first attempt). `backoff` is the first
/// retry's delay, `unit` chance in `0.0..1.0`.
pub fn decide(outcome: &Outcome, retries_used: u32, backoff: Duration, unit: f64) -> Fate {
    let Some(error) = outcome.error() else { return Fate::Delivered };
    let asked = match outcome {
        Outcome::Status { code: 410, .. } => return Fate::Gone,
        Outcome::Refused(_) => return Fate::GivenUp { error },
        Outcome::Status { retry_after, .. } => retry_after.unwrap_or_default(),
        Outcome::Failed(_) => Duration::ZERO,
    };
    if retries_used >= RETRIES_MAX {
        return Fate::GivenUp { error };
    }
    let pause = backoff::webhook(backoff, retries_used + 1, unit);
    Fate::RetryAfter(pause.max(asked.min(backoff::RETRY_AFTER_MAX)))
}

impl Outcome {
    /// What went wrong, in words for whoever reads the delivery; `None` where nothing did.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Status { code: 200..=299, .. } => None,
            Self::Status { code: code @ 300..=399, .. } => {
                Some(format!("the receiver answered {code}; redirects are not followed"))
            }
            Self::Status { code: 410, .. } => {
                Some("the receiver answered 410: it wants no more of this job".to_owned())
            }
            Self::Status { code, .. } => Some(format!("the receiver answered {code}")),
            // Attempts are kept as jsonb, which cannot hold a NUL.
            Self::Refused(why) | Self::Failed(why) => Some(why.replace('\0', "\u{fffd}")),
        }
    }
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    Pending,
    Delivered,
    Failed,
}

impl DeliveryStatus {
    pub fn text(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Failed].into_iter().find(|status| status.text() == text)
    }
}

/// One attempt, as it is kept and shown. It failed where it has an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it began.
    pub at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub duration_ms: u64,
}

impl Attempt {
    pub fn new(at: DateTime<Utc>, outcome: &Outcome, took: Duration) -> Self {
        let status_code = match outcome {
            Outcome::Status { code, .. } => Some(*code),
            Outcome::Refused(_) | Outcome::Failed(_) => None,
        };
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Self { at, status_code, error: outcome.error(), duration_ms }
    }
}

/// What a webhook's body tells. The last three are told with the terminal state alone.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The delivery's, which is the `webhook-id`.
    pub id: Uuid,
    pub job_id: &'a str,
    pub state: JobState,
    /// `None`, told as `""`, in a job's first event.
    pub previous_state: Option<JobState>,
    pub timestamp: DateTime<Utc>,
    pub model: &'a str,
    pub attempt: i32,
    /// From 0.
    pub sequence: i32,
    pub result: Option<&'a Value>,
    pub error: Option<&'a str>,
    /// As `artifact::view` shows them, with absolute URLs.
    pub artifacts: &'a [Value],
}

impl Event<'_> {
    /// The bytes that are stored, signed and sent, at every attempt the same.
    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers can be written as JSON")
    }
}

impl Serialize for Event<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_map(None)?;
        body.serialize_entry("id", &self.id)?;
        body.serialize_entry("event", "job.state")?;
        body.serialize_entry("job_id", self.job_id)?;
        body.serialize_entry("state", self.state.text())?;
        body.serialize_entry("previous_state", self.previous_state.map_or("", JobState::text))?;
        body.serialize_entry("timestamp", &self.timestamp)?;
        body.serialize_entry("model", self.model)?;
        body.serialize_entry("attempt", &self.attempt)?;
        body.serialize_entry("sequence", &self.sequence)?;
        if self.state.is_ended() {
            if let Some(result) = self.result {
                body.serialize_entry("result", result)?;
            }
            if let Some(error) = self.error {
                body.serialize_entry("error", error)?;
            }
            body.serialize_entry("artifacts", self.artifacts)?;
        }
        body.end()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn status(code: u16) -> Outcome {
        Outcome::Status { code, retry_after: None }
    }

    fn noon() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap()
    }

    #[test]
    fn any_2xx_is_delivered_even_on_the_last_attempt() {
        for code in [200, 201, 202, 204, 299] {
            assert_eq!(decide(&status(code), RETRIES_MAX, SECOND, 0.5), Fate::Delivered, "{code}");
        }
    }

    #[test]
    fn a_receiver_that_keeps_failing_is_asked_six_times() {
        for code in [101, 302, 400, 401, 404, 429, 500, 503] {
            let fates: Vec<Fate> = (0..6).map(|used| decide(&status(code), used, SECOND, 0.5)).collect();
            assert_eq!(fates[..5], [1, 2, 4, 8, 16].map(|s| Fate::RetryAfter(Duration::from_secs(s))), "{code}");
            assert!(matches!(&fates[5], Fate::GivenUp { error } if error.contains(&code.to_string())), "{code}");
        }
        let failed = Outcome::Failed("connection refused".to_owned());
        assert_eq!(decide(&failed, 4, SECOND, 0.5), Fate::RetryAfter(Duration::from_secs(16)));
        assert_eq!(decide(&failed, 5, SECOND, 0.5), Fate::GivenUp { error: "connection refused".to_owned() });
    }

    #[test]
    fn a_receiver_that_is_gone_ends_it_at_once() {
        assert_eq!(decide(&status(410), 0, SECOND, 0.5), Fate::Gone);
        let asking = Outcome::Status { code: 410, retry_after: Some(SECOND) };
        assert_eq!(decide(&asking, RETRIES_MAX, SECOND, 0.5), Fate::Gone);
    }

    #[test]
    fn what_the_guard_refuses_is_not_tried_again() {
        let refused = Outcome::Refused("the address is private".to_owned());
        assert_eq!(decide(&refused, 0, SECOND, 0.5), Fate::GivenUp { error: "the address is private".to_owned() });
    }

    #[test]
    fn what_the_receiver_asks_for_raises_the_delay_to_an_hour_at_most() {
        let wait = |after| {
            let outcome = Outcome::Status { code: 503, retry_after: Some(Duration::from_secs(after)) };
            decide(&outcome, 1, SECOND, 0.5)
        };
        assert_eq!(wait(0), Fate::RetryAfter(Duration::from_secs(2)));
        assert_eq!(wait(60), Fate::RetryAfter(Duration::from_mins(1)));
        assert_eq!(wait(1_000_000), Fate::RetryAfter(Duration::from_hours(1)));
    }

    #[test]
    fn an_attempt_leaves_out_what_it_has_not() {
        let took = Duration::from_micros(12_900);
        let shown = |outcome| serde_json::to_value(Attempt::new(noon(), &outcome, took)).unwrap();
        assert_eq!(shown(status(204)), json!({"at": "2026-01-01T12:00:00Z", "status_code": 204, "duration_ms": 12}));
        assert_eq!(
            shown(Outcome::Failed("no\0answer".to_owned())),
            json!({"at": "2026-01-01T12:00:00Z", "error": "no\u{fffd}answer", "duration_ms": 12})
        );
        let moved = shown(status(302));
        assert_eq!((&moved["status_code"], moved["error"].as_str().unwrap().contains("redirect")), (&json!(302), true));
    }

    #[test]
    fn a_status_reads_back() {
        for status in [DeliveryStatus::Pending, DeliveryStatus::Delivered, DeliveryStatus::Failed] {
            assert_eq!(DeliveryStatus::parse(status.text()), Some(status));
            assert_eq!(serde_json::to_value(status).unwrap(), json!(status.text()));
        }
        assert_eq!(DeliveryStatus::parse("Pending"), None);
    }

    fn event<'a>() -> Event<'a> {
        Event {
            id: Uuid::from_u128(7),
            job_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            state: JobState::Queued,
            previous_state: None,
            timestamp: noon(),
            model: "llama3:latest",
            attempt: 0,
            sequence: 0,
            result: None,
            error: None,
            artifacts: &[],
        }
    }

    fn text(event: &Event<'_>) -> String {
        String::from_utf8(event.body()).unwrap()
    }

    #[test]
    fn the_first_event_has_an_empty_previous_state_and_no_result() {
        let expected = concat!(
            r#"{"id":"00000000-0000-0000-0000-000000000007","event":"job.state","#,
            r#""job_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","state":"queued","#,
            r#""previous_state":"","timestamp":"2026-01-01T12:00:00Z","model":"llama3:latest","#,
            r#""attempt":0,"sequence":0}"#
        );
        assert_eq!(text(&event()), expected);
    }

    #[test]
    fn the_terminal_event_always_has_artifacts_and_the_rest_where_there_is_some() {
        let (state, previous_state) = (JobState::Completed, Some(JobState::Running));
        let (result, artifacts) = (json!({"done": true}), [json!({"name": "image-1.png"})]);
        let completed = Event { state, previous_state, result: Some(&result), artifacts: &artifacts, ..event() };
        let end = r#""sequence":0,"result":{"done":true},"artifacts":[{"name":"image-1.png"}]}"#;
        assert!(text(&completed).ends_with(end), "{}", text(&completed));

        let failed = Event { state: JobState::Failed, error: Some("no such model"), ..event() };
        assert!(
            text(&failed).ends_with(r#""sequence":0,"error":"no such model","artifacts":[]}"#),
            "{}",
            text(&failed)
        );

        let cancelled = Event { state: JobState::Cancelled, previous_state: Some(JobState::Queued), ..event() };
        assert!(text(&cancelled).ends_with(r#""sequence":0,"artifacts":[]}"#), "{}", text(&cancelled));

        let running = Event { state: JobState::Running, ..completed };
        assert!(text(&running).ends_with(r#""sequence":0}"#), "{}", text(&running));
    }

    proptest! {
        #[test]
        fn every_delivery_comes_to_an_end(
            codes in proptest::collection::vec(100..600_u16, 6), asked: Option<Duration>, unit in 0.0..1.0,
        ) {
            let mut ended = false;
            for (used, code) in (0..).zip(codes) {
                let outcome = Outcome::Status { code, retry_after: asked };
                match decide(&outcome, used, SECOND, unit) {
                    Fate::RetryAfter(pause) => {
                        prop_assert!(!(200..300).contains(&code) && code != 410);
                        prop_assert!(pause >= Duration::from_millis(800) && pause <= Duration::from_hours(1));
                    }
                    fate => {
                        prop_assert_eq!(fate == Fate::Delivered, (200..300).contains(&code));
                        prop_assert_eq!(fate == Fate::Gone, code == 410);
                        ended = true;
                        break;
                    }
                }
            }
            prop_assert!(ended);
        }

        #[test]
        fn an_attempt_reads_back(code: Option<u16>, why: String, millis: u32) {
            let outcome = code.map_or(Outcome::Failed(why), |code| Outcome::Status { code, retry_after: None });
            let attempt = Attempt::new(noon(), &outcome, Duration::from_millis(millis.into()));
            let text = serde_json::to_string(&attempt).unwrap();
            prop_assert_eq!(serde_json::from_str::<Attempt>(&text).unwrap(), attempt);
            prop_assert!(!text.contains("\\u0000"));
        }

        #[test]
        fn any_text_makes_a_body(model: String, error: String) {
            let failed = Event { state: JobState::Failed, model: &model, error: Some(&error), ..event() };
            let told: Value = serde_json::from_slice(&failed.body()).unwrap();
            prop_assert_eq!((told["model"].as_str(), told["error"].as_str()), (Some(&*model), Some(&*error)));
        }
    }
}
