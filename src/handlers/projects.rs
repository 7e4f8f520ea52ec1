//! `/projects`.

use std::collections::BTreeMap;

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{
    extract::{Body, Caller, InProject, Nothing, Once, PageQuery, Query, cut},
    guard::Rule,
    reply::{Created, Data, Paged},
    routes::{LOOKUP, ORCHESTRATION, Routes, STANDARD},
};
use crate::{
    domain::{
        branch::BranchName,
        ids::ProjectId,
        project::{Project, ProjectSettings, ProjectStatus, is_image},
        scopes::Scope,
    },
    error::{Error, Result},
    services::{
        deletion::Deletion,
        projects::{NewProject, Projects, Undeployed as TakenAway},
        receipts::Answer,
        sessions,
    },
};

const READ: &[Scope] = &[Scope::ProjectsRead];
const ADMIN: &[Scope] = &[Scope::Admin];

#[derive(Clone)]
pub struct Service {
    pub projects: Projects,
    pub deletion: Deletion,
}

pub fn routes(service: Service) -> Routes<Service> {
    Routes::new("projects", service)
        .on(&Method::GET, "/projects", "list_projects", Rule::any(READ, LOOKUP), list)
        .on(&Method::POST, "/projects", "create_a_project", Rule::any(ADMIN, ORCHESTRATION).unbound(), create)
        .on(&Method::GET, "/projects/{id}", "get_a_project", Rule::any(READ, LOOKUP), get)
        .on(&Method::PATCH, "/projects/{id}", "change_a_project", Rule::any(ADMIN, STANDARD), change)
        .on(&Method::DELETE, "/projects/{id}", "delete_a_project", Rule::any(ADMIN, ORCHESTRATION), delete)
        .on(&Method::POST, "/projects/{id}/undeploy", "undeploy_a_project", Rule::any(ADMIN, ORCHESTRATION), undeploy)
}

/// A project as clients see it.
#[derive(Serialize, ToSchema)]
pub struct ProjectView {
    id: String,
    name: String,
    description: String,
    status: ProjectStatus,
    pod_name: String,
    workspace: String,
    default_branch: String,
    clone_url: String,
    labels: BTreeMap<String, String>,
    allow_scripts: bool,
    protected_branches: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview_port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_command: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_command: Option<Vec<String>>,
    /// What its place on a cluster is made of, where rdev makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    source: String,
    /// What was found of its settings outside and could not be used, and why its pod does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    details: Option<Vec<serde_json::Value>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl ProjectView {
    fn of(project: &Project, clone_url: String) -> Self {
        let p = project.clone();
        let mut protected = p.protected_branches;
        if !p.default_branch.is_empty() && !protected.contains(&p.default_branch) {
            protected.insert(0, p.default_branch.clone());
        }
        Self {
            clone_url,
            id: p.id,
            name: p.name,
            description: p.description,
            status: p.status,
            pod_name: p.pod_name,
            workspace: p.workspace,
            default_branch: p.default_branch,
            labels: p.labels.0,
            allow_scripts: p.allow_scripts,
            protected_branches: protected,
            preview_port: p.preview_port,
            review_command: p.review_command,
            agent_command: p.agent_command,
            image: p.image,
            source: p.source,
            details: None,
            created_at: p.created_at,
            updated_at: p.updated_at,
        }
    }
}

#[derive(Deserialize, ToSchema)]
#[expect(clippy::option_option, reason = "left out, null and a value are three things in a PATCH")]
struct ProjectFields {
    name: Option<String>,
    description: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    allow_scripts: Option<bool>,
    /// Names or globs; the default branch always is one.
    protected_branches: Option<Vec<String>>,
    /// `null` unsets it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i64>)]
    preview_port: Option<Option<i64>>,
    /// argv; exit 0 passes. `null` unsets it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    review_command: Option<Option<Vec<String>>>,
    /// argv; `{prompt}` is replaced. `null` unsets it.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    agent_command: Option<Option<Vec<String>>>,
    /// With the Kubernetes runtime: what its pod is made of, by rdev.
    image: Option<String>,
}

/// Tells `null` from what was left out.
#[expect(clippy::option_option, reason = "left out, null and a value are three things in a PATCH")]
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl ProjectFields {
    fn parse(self) -> Result<ProjectSettings> {
        if self.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
            return Err(Error::invalid("name must not be empty"));
        }
        for (field, argv) in [("review_command", &self.review_command), ("agent_command", &self.agent_command)] {
            if argv.iter().flatten().any(|argv| argv.first().is_none_or(String::is_empty)) {
                return Err(Error::invalid(format!("{field} must be a list of words, the program first")));
            }
        }
        let image = self.image.filter(|image| !image.is_empty());
        if image.as_deref().is_some_and(|image| !is_image(image)) {
            return Err(Error::invalid("image must be the name of an image, such as registry.example.com/tools:1"));
        }
        let unset = [
            ("preview_port", self.preview_port == Some(None)),
            ("review_command", self.review_command == Some(None)),
            ("agent_command", self.agent_command == Some(None)),
        ];
        let port = |number| sessions::port("preview_port", number).map(i32::from);
        Ok(ProjectSettings {
            name: self.name,
            description: self.description,
            labels: self.labels,
            allow_scripts: self.allow_scripts,
            protected_branches: self.protected_branches,
            preview_port: self.preview_port.flatten().map(port).transpose()?,
            review_command: self.review_command.flatten(),
            agent_command: self.agent_command.flatten(),
            image,
            unset: unset.into_iter().filter(|(_, is_unset)| *is_unset).map(|(name, _)| name).collect(),
        })
    }
}

#[derive(Deserialize, ToSchema)]
struct CreateProject {
    id: String,
    default_branch: Option<String>,
    /// An `https://` or, under `RDEV_IMPORT_ROOT`, `file://` repository to begin from.
    import_url: Option<String>,
    #[serde(flatten)]
    fields: ProjectFields,
}

impl CreateProject {
    fn parse(self) -> Result<NewProject> {
        let id = ProjectId::parse(&self.id).map_err(|_| Error::invalid("invalid project id"))?;
        let branch =
            |text: &str| BranchName::parse(text).map_err(|error| Error::invalid(format!("default_branch: {error}")));
        let default_branch = self.default_branch.as_deref().filter(|text| !text.is_empty()).map(branch).transpose()?;
        Ok(NewProject {
            id: id.to_string(),
            settings: self.fields.parse()?,
            default_branch,
            import_url: self.import_url.filter(|url| !url.is_empty()),
            image_is_asked: false,
        })
    }
}

async fn create(
    State(service): State<Service>,
    Caller(caller): Caller,
    once: Once,
    body: Body<CreateProject>,
) -> Result<Created<ProjectView>> {
    let new = body.value.parse()?;
    let projects = service.projects.clone();
    let answer = Answer::new(once.0, 201, &[], move |project: &Project| {
        json!(ProjectView::of(project, projects.clone_url(&project.id)))
    });
    let project = service.projects.create(&caller, new, answer).await?;
    let clone_url = service.projects.clone_url(&project.id);
    Ok(Created(ProjectView::of(&project, clone_url)))
}

#[derive(Serialize, ToSchema)]
struct ProjectList {
    projects: Vec<ProjectView>,
}

async fn list(
    State(service): State<Service>,
    Caller(caller): Caller,
    Query(page): Query<PageQuery>,
) -> Result<Paged<ProjectList>> {
    let (before, limit) = page.parse()?;
    let (found, next) = cut(service.projects.page(&caller, before, limit + 1).await?, limit, |project| project.seq);
    let mut details = service.projects.details(&found).await?;
    let shown = found.iter().map(|project| ProjectView {
        details: details.remove(&project.id),
        ..ProjectView::of(project, service.projects.clone_url(&project.id))
    });
    Ok(Paged { data: ProjectList { projects: shown.collect() }, next })
}

async fn get(State(service): State<Service>, InProject(project): InProject) -> Result<Data<ProjectView>> {
    let details = service.projects.details(std::slice::from_ref(&project)).await?.remove(&project.id);
    Ok(Data(ProjectView { details, ..ProjectView::of(&project, service.projects.clone_url(&project.id)) }))
}

async fn change(
    State(service): State<Service>,
    InProject(project): InProject,
    body: Body<ProjectFields>,
) -> Result<Data<ProjectView>> {
    let updated = service.projects.update(&project, &body.value.parse()?).await?;
    let clone_url = service.projects.clone_url(&updated.id);
    Ok(Data(ProjectView::of(&updated, clone_url)))
}

/// An object of a cluster that was removed.
#[derive(Serialize, ToSchema)]
struct Removed {
    kind: String,
    name: String,
}

#[derive(Serialize, ToSchema)]
struct Deleted {
    status: &'static str,
    id: String,
    undeployed: Vec<Removed>,
    /// What carries the project's label and is of a kind that rdev does not remove.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left: Vec<Removed>,
}

#[derive(Serialize, ToSchema)]
struct Undeployed {
    status: &'static str,
    id: String,
    deleted: Vec<Removed>,
    /// What carries the project's label and is of a kind that rdev does not remove.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left: Vec<Removed>,
}

#[derive(Deserialize, ToSchema)]
struct DeleteQuery {
    /// Also where a pod that rdev does not manage carries the project's name: it makes none from then on.
    forget: Option<bool>,
}

async fn delete(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    Query(query): Query<DeleteQuery>,
) -> Result<Data<Deleted>> {
    let gone = service.deletion.delete(&caller, &project, query.forget.unwrap_or(false)).await?;
    let (undeployed, left) = removed(&gone);
    Ok(Data(Deleted { status: "deleted", id: project.id.clone(), undeployed, left }))
}

async fn undeploy(
    State(service): State<Service>,
    InProject(project): InProject,
    _: Body<Nothing>,
) -> Result<Data<Undeployed>> {
    let (deleted, left) = removed(&service.projects.undeploy(&project.id).await?);
    Ok(Data(Undeployed { status: "undeployed", id: project.id.clone(), deleted, left }))
}

/// What went, and what stays.
fn removed(taken: &TakenAway) -> (Vec<Removed>, Vec<Removed>) {
    let shown = |objects: Vec<_>| objects.into_iter().map(|(kind, name)| Removed { kind, name }).collect();
    (shown(taken.deleted_names()), shown(taken.left_names()))
}
