//! A client in the API's words.

use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

use super::{Events, soon};

/// Requests to one server with one credential, or none.
#[derive(Clone)]
pub struct Api {
    url: String,
    credential: Option<String>,
    client: reqwest::Client,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Api {
    pub fn new(url: &str, credential: Option<&str>) -> Self {
        rdev::app::choose_tls();
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        Self {
            url: url.to_owned(),
            credential: credential.map(str::to_owned),
            client: client.expect("a client with no special wishes"),
        }
    }

    pub fn credential(&self) -> &str {
        self.credential.as_deref().expect("this client has a credential")
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None, &[]).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body.to_string()), &[]).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PATCH, path, Some(body.to_string()), &[]).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None, &[]).await
    }

    /// A POST that may be repeated.
    pub async fn once(&self, key: &str, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body.to_string()), &[("idempotency-key", key)]).await
    }

    /// Any request at all.
    pub async fn send(&self, method: Method, path: &str, body: Option<String>, headers: &[(&str, &str)]) -> Reply {
        let response = soon(path, self.request(method, path, body, headers).send()).await.expect("the server answers");
        Reply::read(response).await
    }

    pub fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
    ) -> reqwest::RequestBuilder {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(credential) = &self.credential {
            request = request.bearer_auth(credential);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
    }

    /// Opens a stream of events.
    pub async fn listen(&self, path: &str) -> Events {
        self.listen_from(path, None).await
    }

    /// Opens it after the event with this id.
    pub async fn listen_from(&self, path: &str, last_event_id: Option<&str>) -> Events {
        let headers: Vec<_> = last_event_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let request = self.request(Method::GET, path, None, &headers);
        let response = soon(path, request.send()).await.expect("the server answers");
        assert_eq!(response.status(), StatusCode::OK, "{path} is no stream");
        Events::new(response)
    }
}

impl Reply {
    pub async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = soon("the body", response.text()).await.expect("a body of text");
        Self { status, headers, text }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of letters"))
    }

    /// `data` of a success with this status.
    #[track_caller]
    pub fn data(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        assert!(body.get("error").is_none(), "data and error at once: {body}");
        body["data"].clone()
    }

    /// `error` of a refusal with this status and code.
    #[track_caller]
    pub fn refusal(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        assert!(body.get("data").is_none(), "data and error at once: {body}");
        assert_eq!(body["error"]["code"], code, "{body}");
        body["error"].clone()
    }

    /// A refusal whose message is the contract's.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str, message: &str) {
        assert_eq!(self.refusal(status, code)["message"], message);
    }

    pub fn cursor(&self) -> Option<String> {
        self.json()["meta"]["next_cursor"].as_str().map(str::to_owned)
    }
}
