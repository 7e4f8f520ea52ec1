//! `/saga-definitions`: named lists of steps, in JSON or in YAML.

use axum::extract::State;
use chrono::{DateTime, SecondsFormat, Utc};
use http::{HeaderMap, Method, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    describe::{Describe, Operation},
    extract::{self, BodyLimit, Caller, DefinitionName, PageQuery, Query, cut},
    guard::Rule,
    reply::{Data, MaybeCreated, Paged},
    routes::{LOOKUP, Routes, STANDARD},
};
use crate::{
    domain::{saga::spec::StepSpec, scopes::Scope, yaml},
    error::{Error, Result},
    services::sagas::{Definition, Sagas},
};

const READ: &[Scope] = &[Scope::ProjectsRead];
const ADMIN: &[Scope] = &[Scope::Admin];

pub fn routes(sagas: Sagas) -> Routes<Sagas> {
    Routes::new("sagas", sagas)
        .on(&Method::PUT, "/saga-definitions/{name}", "define_a_saga", Rule::any(ADMIN, STANDARD).unbound(), put)
        .on(&Method::GET, "/saga-definitions", "list_saga_definitions", Rule::any(READ, LOOKUP), list)
        .on(&Method::GET, "/saga-definitions/{name}", "get_a_saga_definition", Rule::any(READ, LOOKUP), get)
}

/// Steps under a name.
#[derive(Deserialize, ToSchema)]
struct Define {
    #[serde(default)]
    steps: Vec<StepSpec>,
    description: Option<String>,
}

/// A body in JSON, or in YAML where its content type says so.
struct Either(Define);

impl<S: Send + Sync> axum::extract::FromRequest<S> for Either {
    type Rejection = Error;

    async fn from_request(request: axum::extract::Request, _: &S) -> Result<Self> {
        let is_yaml = is_yaml(request.headers());
        let bytes = extract::read(request).await?;
        if !is_yaml {
            return extract::decode(&bytes).map(Self);
        }
        let refuse = |error: String| Error::invalid("invalid request body").reason(error);
        let value = yaml::read(&bytes, BodyLimit::DEFAULT).map_err(refuse)?;
        // From here on it is the JSON that it stands for.
        let text = serde_json::to_vec(&value).map_err(|error| refuse(error.to_string()))?;
        extract::decode(&text).map(Self)
    }
}

fn is_yaml(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(kind.as_str(), "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml")
}

impl Describe for Either {
    fn describe(operation: &mut Operation) {
        let schema = operation.schema::<Define>();
        operation.body = Some(serde_json::json!({"content": {
            "application/json": {"schema": schema}, "application/yaml": {"schema": schema}}}));
    }
}

#[derive(Serialize, ToSchema)]
struct DefinitionView {
    name: String,
    /// 1, 2, …
    version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// As given; values of `secret_headers` are masked.
    steps: Vec<StepSpec>,
    created_at: DateTime<Utc>,
    created_by: Uuid,
}

impl DefinitionView {
    fn of(definition: Definition) -> Self {
        let Definition { row, steps } = definition;
        Self {
            name: row.name,
            version: row.version,
            description: row.description,
            steps: steps.iter().map(StepSpec::masked).collect(),
            created_at: row.created_at,
            created_by: row.created_by,
        }
    }
}

async fn put(
    State(sagas): State<Sagas>,
    Caller(caller): Caller,
    DefinitionName(name): DefinitionName,
    Either(body): Either,
) -> Result<MaybeCreated<DefinitionView>> {
    let description = body.description.filter(|text| !text.is_empty());
    let made = sagas.define(&caller, &name, body.steps, description.as_deref()).await?;
    let first = made.row.version == 1;
    let view = DefinitionView::of(made);
    Ok(if first { MaybeCreated::Created(view) } else { MaybeCreated::Found(view) })
}

#[derive(Serialize, ToSchema)]
struct DefinitionList {
    saga_definitions: Vec<DefinitionView>,
}

/// Where a page of the list ended.
struct Place {
    at: DateTime<Utc>,
    name: String,
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (at, name) = text.split_once(' ').ok_or(())?;
        Ok(Self { at: at.parse().map_err(drop)?, name: name.to_owned() })
    }
}

async fn list(State(sagas): State<Sagas>, Query(page): Query<PageQuery>) -> Result<Paged<DefinitionList>> {
    let (before, limit) = page.parse::<Place>()?;
    let found = sagas.definitions(before.as_ref().map(|place| (place.at, place.name.as_str())), limit).await?;
    let (found, next) = cut(found, limit, |one: &Definition| {
        format!("{} {}", one.row.created_at.to_rfc3339_opts(SecondsFormat::Micros, true), one.row.name)
    });
    Ok(Paged { data: DefinitionList { saga_definitions: found.into_iter().map(DefinitionView::of).collect() }, next })
}

async fn get(State(sagas): State<Sagas>, DefinitionName(name): DefinitionName) -> Result<Data<DefinitionView>> {
    Ok(Data(DefinitionView::of(sagas.definition(&name).await?)))
}
