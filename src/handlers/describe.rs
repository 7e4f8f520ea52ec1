//! How a handler's signature becomes an operation of the OpenAPI document: what it takes
//! and what it gives are its parameters' and result's types, so the document cannot drift.

use std::collections::BTreeMap;

use axum::response::Response;
use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema, openapi::RefOr};

use super::reply::{Created, Data, MaybeCreated, Native, Paged};
use crate::error::Error;

/// Schemas by name, collected on the way.
pub type Schemas = BTreeMap<String, Value>;

/// One operation in the making.
#[derive(Default)]
pub struct Operation {
    pub parameters: Vec<Value>,
    pub body: Option<Value>,
    pub responses: Map<String, Value>,
    pub schemas: Schemas,
}

impl Operation {
    /// A reference to `T`, whose schema is kept with all that it needs.
    pub fn schema<T: ToSchema>(&mut self) -> Value {
        let mut needed: Vec<(String, RefOr<utoipa::openapi::schema::Schema>)> = Vec::new();
        T::schemas(&mut needed);
        needed.push((T::name().into_owned(), T::schema()));
        for (name, schema) in needed {
            self.schemas.insert(name, serde_json::to_value(schema).unwrap_or_default());
        }
        json!({"$ref": format!("#/components/schemas/{}", T::name())})
    }

    pub fn query(&mut self, name: &str, schema: Value, help: &str) {
        self.parameters
            .push(json!({"name": name, "in": "query", "required": false, "schema": schema, "description": help}));
    }

    fn enveloped<T: ToSchema>(&mut self, status: &str, paged: bool) {
        let data = self.schema::<T>();
        let mut meta =
            json!({"request_id": {"type": "string"}, "timestamp": {"type": "string", "format": "date-time"}});
        if paged {
            meta["next_cursor"] = json!({"type": "string"});
        }
        let schema = json!({"type": "object", "required": ["data", "meta"], "properties": {
            "data": data, "meta": {"type": "object", "properties": meta}}});
        let response = json!({"description": "done", "content": {"application/json": {"schema": schema}}});
        self.responses.insert(status.to_owned(), response);
    }
}

/// A parameter of a handler.
pub trait Describe {
    fn describe(operation: &mut Operation);
}

/// A result of a handler.
pub trait DescribeReply {
    fn describe(operation: &mut Operation);
}

impl<T: ToSchema> DescribeReply for Data<T> {
    fn describe(operation: &mut Operation) {
        operation.enveloped::<T>("200", false);
    }
}

impl<T: ToSchema> DescribeReply for Created<T> {
    fn describe(operation: &mut Operation) {
        operation.enveloped::<T>("201", false);
    }
}

impl<T: ToSchema> DescribeReply for MaybeCreated<T> {
    fn describe(operation: &mut Operation) {
        operation.enveloped::<T>("201", false);
        operation.enveloped::<T>("200", false);
    }
}

impl<T: ToSchema> DescribeReply for Native<T> {
    fn describe(operation: &mut Operation) {
        let schema = operation.schema::<T>();
        let content = json!({"description": "done", "content": {"application/json": {"schema": schema}}});
        operation.responses.insert("200".into(), content);
    }
}

impl<T: ToSchema> DescribeReply for Paged<T> {
    fn describe(operation: &mut Operation) {
        operation.enveloped::<T>("200", true);
    }
}

/// Something other than an envelope: its route says what.
impl DescribeReply for Response {
    fn describe(_: &mut Operation) {}
}

impl<T: DescribeReply> DescribeReply for Result<T, Error> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
    }
}

impl<S> Describe for axum::extract::State<S> {
    fn describe(_: &mut Operation) {}
}

impl Describe for axum::extract::Request {
    fn describe(_: &mut Operation) {}
}

/// A handler whose signature can be told.
pub trait Described<Arguments> {
    fn describe(operation: &mut Operation);
}

macro_rules! described {
    ($($argument:ident),*) => {
        impl<F, Fut, R, $($argument),*> Described<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Fut,
            Fut: Future<Output = R>,
            R: DescribeReply,
            $($argument: Describe,)*
        {
            fn describe(operation: &mut Operation) {
                $($argument::describe(operation);)*
                R::describe(operation);
            }
        }
    };
}

described!();
described!(A);
described!(A, B);
described!(A, B, C);
described!(A, B, C, D);
described!(A, B, C, D, E);
described!(A, B, C, D, E, G);
described!(A, B, C, D, E, G, H);

/// The schema itself, not a reference.
pub fn inline<T: PartialSchema>() -> Value {
    serde_json::to_value(T::schema()).unwrap_or_default()
}
