//! A table of endpoints, one line each: verb, path, name, rule, handler. From it come the
//! router, the guard at each door and the OpenAPI document. There is no other way to make
//! an endpoint, so none is without a rule.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    handler::Handler,
    routing::{MethodFilter, MethodRouter, on},
};
use http::Method;
use serde_json::{Map, Value, json};

use super::{
    describe::{Described, Operation, Schemas},
    guard::{Door, Rule, guarded},
};

/// Deadlines by kind of work.
pub const FAST_LOOKUP: Duration = Duration::from_secs(5);
pub const LOOKUP: Duration = Duration::from_secs(10);
pub const STANDARD: Duration = Duration::from_secs(30);
pub const ORCHESTRATION: Duration = Duration::from_mins(2);

/// Endpoints over one service (or a few) as their state.
pub struct Routes<S> {
    tag: &'static str,
    state: S,
    router: Vec<(&'static str, Rule, MethodFilter, MethodRouter<S>)>,
    pub document: Document,
}

/// What the endpoints say of themselves.
#[derive(Default)]
pub struct Document {
    paths: BTreeMap<&'static str, Map<String, Value>>,
    schemas: Schemas,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    pub fn new(tag: &'static str, state: S) -> Self {
        Self { tag, state, router: Vec::new(), document: Document::default() }
    }

    /// One endpoint. `name` is its operation id and says in words what it does.
    #[must_use]
    pub fn on<H, T, D>(
        mut self,
        method: &Method,
        path: &'static str,
        name: &'static str,
        rule: Rule,
        handler: H,
    ) -> Self
    where
        H: Handler<T, S> + Described<D>,
        T: 'static,
    {
        let mut operation = Operation::default();
        <H as Described<D>>::describe(&mut operation);
        self.document.add(self.tag, method, path, name, &rule, operation);
        let filter = MethodFilter::try_from(method.clone()).expect("a method that routes know");
        self.router.push((path, rule, filter, on(filter, handler)));
        self
    }

    /// The router, each endpoint behind its guard.
    pub fn build(self, door: &Arc<Door>) -> (Router, Document) {
        let mut router = Router::new();
        for (path, rule, _, endpoint) in self.router {
            router = router.route(path, guarded(endpoint, path, rule, door.clone()));
        }
        (router.with_state(self.state), self.document)
    }
}

impl Document {
    fn add(&mut self, tag: &str, method: &Method, path: &'static str, name: &str, rule: &Rule, operation: Operation) {
        let mut parameters: Vec<Value> = path_parameters(path).collect();
        parameters.extend(operation.parameters);
        let mut responses = operation.responses;
        if responses.is_empty() {
            responses.insert("200".into(), json!({"description": rule.answers}));
        }
        responses.insert("default".into(), json!({"description": "an error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}}));
        let mut entry = json!({
            "tags": [tag],
            "operationId": name,
            "summary": name.replace('_', " "),
            "parameters": parameters,
            "responses": responses,
        });
        if let Some(body) = operation.body {
            entry["requestBody"] = body;
        }
        if !rule.public {
            let scopes: Vec<&str> = rule.scopes.iter().map(|scope| scope.name()).collect();
            entry["security"] = json!([{"key": []}]);
            entry["x-scopes-any"] = json!(scopes);
        }
        self.schemas.extend(operation.schemas);
        self.paths.entry(path).or_default().insert(method.as_str().to_ascii_lowercase(), entry);
    }

    pub fn merge(&mut self, other: Self) {
        for (path, operations) in other.paths {
            self.paths.entry(path).or_default().extend(operations);
        }
        self.schemas.extend(other.schemas);
    }

    /// The OpenAPI 3.1 document.
    pub fn render(mut self) -> Value {
        self.schemas.insert("Failure".into(), failure_schema());
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "rdev",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "A REST control plane between people, pipelines and agents on one side and their project pods on the other.",
            },
            "paths": self.paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "rdev_sk_…"}},
            },
        })
    }
}

fn path_parameters(path: &str) -> impl Iterator<Item = Value> + '_ {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).map(|name| {
        json!({"name": name.trim_start_matches('*'), "in": "path", "required": true, "schema": {"type": "string"}})
    })
}

fn failure_schema() -> Value {
    json!({"type": "object", "required": ["error", "meta"], "properties": {
        "error": {"type": "object", "required": ["code", "message"], "properties": {
            "code": {"type": "string"}, "message": {"type": "string"}, "details": {"type": "object"}}},
        "meta": {"type": "object", "properties": {
            "request_id": {"type": "string"}, "timestamp": {"type": "string", "format": "date-time"}}}}})
}
