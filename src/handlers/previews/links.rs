//! `/projects/{id}/sessions/{sid}/preview-links`: a way in for browsers, which send no key.

use std::time::Duration;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::{
        describe::{DescribeReply, Operation},
        extract::{Body, Caller, InProject, SessionId},
        guard::Rule,
        reply::{Created, Secrets},
        routes::{Routes, STANDARD},
    },
    Service, onward,
};
use crate::{
    domain::{durations, scopes::Scope, session::SessionStatus},
    error::{Error, Result},
};

const EXECUTE: &[Scope] = &[Scope::SessionsExecute, Scope::ProjectsExecute];
const DEFAULT: TimeDelta = TimeDelta::hours(1);
const MAX: Duration = Duration::from_hours(24);

pub fn routes(service: Service) -> Routes<Service> {
    Routes::new("sessions", service).on(
        &Method::POST,
        "/projects/{id}/sessions/{sid}/preview-links",
        "get_a_link_to_a_preview",
        Rule::any(EXECUTE, STANDARD),
        create,
    )
}

#[derive(Deserialize, ToSchema)]
struct CreatePreviewLink {
    /// `1h` when left out, at most `24h`.
    expires_in: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct PreviewLinkView {
    /// Opens the preview in a browser until it expires, the session ends, or its key does.
    url: String,
    expires_at: DateTime<Utc>,
}

struct Reply(PreviewLinkView);

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Created(self.0).into_response();
        response.extensions_mut().insert(Secrets(&["url"]));
        response
    }
}

impl DescribeReply for Reply {
    fn describe(operation: &mut Operation) {
        <Created<PreviewLinkView> as DescribeReply>::describe(operation);
    }
}

async fn create(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    SessionId(id): SessionId,
    body: Body<CreatePreviewLink>,
) -> Result<Reply> {
    let life = life(body.value.expires_in.as_deref())?;
    let session = service.sessions.get(&project.id, id).await?;
    if !service.addresses.are_origins() {
        return Err(Error::conflict(
            "PREVIEW_DOMAIN_REQUIRED",
            "preview links need RDEV_PREVIEW_DOMAIN: by path a browser's page sends no cookie; send a key instead",
        ));
    }
    if session.status != SessionStatus::Active {
        return Err(Error::invalid("session is not active").reason("SESSION_NOT_ACTIVE"));
    }
    let (link, expires_at) = service.previews.issue(&caller, id, life);
    Ok(Reply(PreviewLinkView { url: format!("{}?{}={link}", session.preview_url, onward::LINK), expires_at }))
}

fn life(text: Option<&str>) -> Result<TimeDelta> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(DEFAULT) };
    let life = durations::parse_positive(text)
        .map_err(|_| Error::invalid("expires_in must be a valid duration (e.g., 24h, 7d)"))?;
    if life > MAX {
        return Err(Error::invalid("expires_in cannot exceed 24h"));
    }
    TimeDelta::from_std(life).map_err(Error::internal)
}
