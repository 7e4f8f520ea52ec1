//! What the program counts. Labels have values from fixed sets, or projects; none that a
//! client can grow without bound.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use prometheus::{Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// Values of labels, so that a project's can be forgotten with it.
const COMMAND_KINDS: [&str; 3] = ["shell", "git", "claude"];
const COMMAND_ENDS: [&str; 9] = [
    "exit",
    "signal",
    "timeout",
    "cancelled",
    "session_ended",
    "output_limit",
    "start_failed",
    "server_stopped",
    "lost",
];

/// All metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    commands: IntCounterVec,
    command_duration: HistogramVec,
    streams: IntGaugeVec,
    auth_failures: IntCounterVec,
    requests: HistogramVec,
    worker_runs: IntCounterVec,
    worker_success: IntGaugeVec,
    stale_writes: IntCounterVec,
    rescues: IntCounterVec,
    claims: IntCounterVec,
    pick_up: HistogramVec,
    queue_depth: IntGaugeVec,
    flush: HistogramVec,
    jobs: IntCounterVec,
    webhooks: IntCounterVec,
    sagas: IntCounterVec,
    saga_steps: HistogramVec,
    saga_retries: IntCounterVec,
    circuits: IntGaugeVec,
    transitions: IntCounterVec,
    pool: IntGaugeVec,
    revocations: IntCounterVec,
    irrevocable: IntGaugeVec,
}

const REQUEST_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const COMMAND_BUCKETS: &[f64] = &[0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let inner = Inner {
            commands: counter(&registry, "rdev_commands_total", "commands that ended", &["project", "type", "status"]),
            command_duration: histogram(
                &registry,
                "rdev_command_duration_seconds",
                "how long commands ran",
                &["project", "type"],
                COMMAND_BUCKETS,
            ),
            streams: gauge(&registry, "rdev_active_streams", "event streams open", &["project"]),
            auth_failures: counter(&registry, "rdev_auth_failures_total", "requests that were not let in", &["reason"]),
            requests: histogram(
                &registry,
                "rdev_api_request_duration_seconds",
                "how long requests took",
                &["endpoint", "method", "status"],
                REQUEST_BUCKETS,
            ),
            worker_runs: counter(
                &registry,
                "rdev_worker_runs_total",
                "runs of background workers",
                &["worker", "result"],
            ),
            worker_success: gauge(
                &registry,
                "rdev_worker_last_success_timestamp_seconds",
                "when a background worker last did its work",
                &["worker"],
            ),
            stale_writes: counter(&registry, "rdev_stale_writes_refused_total", "writes under an old fence", &["kind"]),
            rescues: counter(
                &registry,
                "rdev_task_rescues_total",
                "tasks taken over from a process that died",
                &["kind"],
            ),
            claims: counter(&registry, "rdev_task_claims_total", "tasks claimed", &["kind"]),
            pick_up: histogram(
                &registry,
                "rdev_task_pick_up_seconds",
                "from due to claimed",
                &["kind"],
                REQUEST_BUCKETS,
            ),
            queue_depth: gauge(&registry, "rdev_queue_depth", "tasks that wait to be claimed", &["kind"]),
            flush: histogram(
                &registry,
                "rdev_stream_lag_seconds",
                "how long output waited to be stored",
                &[],
                REQUEST_BUCKETS,
            ),
            jobs: counter(&registry, "rdev_jobs_total", "jobs that ended", &["state"]),
            webhooks: counter(&registry, "rdev_webhook_attempts_total", "attempts to deliver a webhook", &["outcome"]),
            sagas: counter(&registry, "rdev_sagas_total", "sagas that came to rest", &["status"]),
            saga_steps: histogram(
                &registry,
                "rdev_saga_step_duration_seconds",
                "how long attempts of steps and of compensations took",
                &["action", "status"],
                COMMAND_BUCKETS,
            ),
            saga_retries: counter(&registry, "rdev_saga_step_retries_total", "retries of steps", &["action"]),
            circuits: gauge(
                &registry,
                "rdev_circuit_breaker_state",
                "0 closed, 1 half-open, 2 open; `webhooks` is the worst of all receivers'",
                &["name"],
            ),
            transitions: counter(
                &registry,
                "rdev_circuit_breaker_transitions_total",
                "changes of a breaker that were seen",
                &["name", "to"],
            ),
            pool: gauge(&registry, "rdev_database_connections", "connections to the database", &["state"]),
            revocations: counter(
                &registry,
                "rdev_git_token_revocations_total",
                "attempts to revoke a token at the git host",
                &["result"],
            ),
            irrevocable: gauge(
                &registry,
                "rdev_git_tokens_irrevocable",
                "tokens of ended checkouts that the git host did not let go of",
                &[],
            ),
            registry,
        };
        let build = gauge(&inner.registry, "rdev_build_info", "the version that runs", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self(Arc::new(inner))
    }

    pub fn request(&self, endpoint: &str, method: &Method, status: StatusCode, took: Duration) {
        let labels = [endpoint, method.as_str(), status.as_str()];
        self.0.requests.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// A request to a preview, until the head of its answer. Programs answer any method by any status.
    pub fn preview(&self, method: &Method, status: StatusCode, took: Duration) {
        let known =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"].get(usize::from(status.as_u16() / 100).saturating_sub(1));
        let labels = ["preview", method, class.copied().unwrap_or("other")];
        self.0.requests.with_label_values(&labels).observe(took.as_secs_f64());
    }

    pub fn auth_failure(&self, reason: &str) {
        self.0.auth_failures.with_label_values(&[reason]).inc();
    }

    pub fn command_ended(&self, project: &str, kind: &str, status: &str, took: Duration) {
        self.0.commands.with_label_values(&[project, kind, status]).inc();
        self.0.command_duration.with_label_values(&[project, kind]).observe(took.as_secs_f64());
    }

    /// Counts an open stream of a project until the guard is dropped.
    pub fn stream(&self, project: &str) -> CountedStream {
        let gauge = self.0.streams.with_label_values(&[project]);
        gauge.inc();
        CountedStream(gauge)
    }

    pub fn worker_ran(&self, worker: &str, result: &str, at: i64) {
        self.0.worker_runs.with_label_values(&[worker, result]).inc();
        if result == "ok" {
            self.0.worker_success.with_label_values(&[worker]).set(at);
        }
    }

    pub fn job_ended(&self, state: &str) {
        self.0.jobs.with_label_values(&[state]).inc();
    }

    /// An attempt to deliver a webhook: `delivered`, `retried` or `failed`.
    pub fn webhook(&self, outcome: &str) {
        self.0.webhooks.with_label_values(&[outcome]).inc();
    }

    /// Where breakers stand: 0 closed, 1 half-open, 2 open.
    pub fn circuits(&self, circuits: &[(String, i64)]) {
        for (name, state) in circuits {
            let gauge = self.0.circuits.with_label_values(&[name.as_str()]);
            if gauge.get() != *state {
                let to = ["closed", "half_open", "open"][usize::try_from(*state).unwrap_or(0).min(2)];
                self.0.transitions.with_label_values(&[name.as_str(), to]).inc();
            }
            gauge.set(*state);
        }
    }

    pub fn stale_write(&self, kind: &str) {
        self.0.stale_writes.with_label_values(&[kind]).inc();
    }

    pub fn rescued(&self, kind: &str) {
        self.0.rescues.with_label_values(&[kind]).inc();
    }

    pub fn claimed(&self, kind: &str, waited: f64) {
        self.0.claims.with_label_values(&[kind]).inc();
        self.0.pick_up.with_label_values(&[kind]).observe(waited.max(0.0));
    }

    /// Tasks there are, by kind; a kind of which there are none any more goes to zero.
    pub fn queue_depth(&self, depths: &[(String, i64, f64)]) {
        self.0.queue_depth.reset();
        for (kind, depth, _) in depths {
            self.0.queue_depth.with_label_values(&[kind.as_str()]).set(*depth);
        }
    }

    /// A saga came to rest.
    pub fn saga(&self, status: &str) {
        self.0.sagas.with_label_values(&[status]).inc();
    }

    /// An attempt of a step, or of its compensation, is over.
    pub fn saga_step(&self, action: &str, outcome: &str, took: Duration) {
        self.0.saga_steps.with_label_values(&[action, outcome]).observe(took.as_secs_f64());
    }

    pub fn saga_step_retried(&self, action: &str) {
        self.0.saga_retries.with_label_values(&[action]).inc();
    }

    /// An attempt to revoke a token at the git host.
    pub fn token_revoked(&self, result: &str) {
        self.0.revocations.with_label_values(&[result]).inc();
    }

    /// How many tokens the git host did not let go of.
    pub fn irrevocable_tokens(&self, count: i64) {
        let none: [&str; 0] = [];
        self.0.irrevocable.with_label_values(&none).set(count);
    }

    pub fn flushed(&self, waited: Duration) {
        let none: [&str; 0] = [];
        self.0.flush.with_label_values(&none).observe(waited.as_secs_f64());
    }

    /// Drops what is counted of a project that is gone.
    pub fn forget_project(&self, project: &str) {
        let _never_counted = self.0.streams.remove_label_values(&[project]);
        for kind in COMMAND_KINDS {
            let _never_counted = self.0.command_duration.remove_label_values(&[project, kind]);
            for status in COMMAND_ENDS {
                let _never_counted = self.0.commands.remove_label_values(&[project, kind, status]);
            }
        }
    }

    /// Prometheus text.
    pub fn render(&self, connections: u32, idle: usize) -> Vec<u8> {
        self.0.pool.with_label_values(&["open"]).set(connections.into());
        self.0.pool.with_label_values(&["idle"]).set(i64::try_from(idle).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.0.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// See [`Metrics::stream`].
pub struct CountedStream(prometheus::IntGauge);

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), labels).expect("a well-formed metric");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let metric = IntGaugeVec::new(Opts::new(name, help), labels).expect("a well-formed metric");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let metric = HistogramVec::new(options, labels).expect("a well-formed metric");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}
