//! The CI server: Woodpecker, as far as pipelines are looked at and begun again. It knows neither
//! projects nor sagas. Where it is stands in links to its pages and in no message; the token, and
//! what the server says, in the log at most, and there without the token.

mod error;
mod woodpecker;

use std::sync::Arc;

use url::Url;

pub use self::error::CiError;
use self::woodpecker::Woodpecker;
use crate::domain::{breaker::Snapshot, clock::Clock, pipeline::Pipeline};

/// How the server is reached, and as whom.
#[derive(Clone)]
pub struct Account {
    pub url: Url,
    pub token: String,
}

/// The CI server, where there is one. Cheap to clone.
#[derive(Clone)]
pub struct Ci(Option<Arc<Woodpecker>>);

/// A repository as the server knows it.
#[derive(Debug, Clone)]
pub struct Repository {
    id: i64,
    /// `owner/name`.
    name: String,
}

impl Ci {
    /// The server need not be there yet. A rustls provider must be installed.
    ///
    /// # Errors
    /// A sentence for whoever starts the program.
    pub fn open(account: Option<Account>, clock: Clock) -> Result<Self, String> {
        account.map(|account| Woodpecker::new(&account, clock).map(Arc::new)).transpose().map(Self)
    }

    pub fn is_configured(&self) -> bool {
        self.0.is_some()
    }

    /// The repository of this full name.
    ///
    /// # Errors
    /// `NoRepository` where the server has none, or shows it to others alone.
    pub async fn repository(&self, name: &str) -> Result<Repository, CiError> {
        self.server()?.repository(name).await
    }

    /// # Errors
    /// `NoPipeline` where there is none of this number.
    pub async fn pipeline(&self, repository: &Repository, number: i64) -> Result<Pipeline, CiError> {
        self.server()?.pipeline(repository, number).await
    }

    /// The number of the newest pipeline; 0 where there is none.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn newest(&self, repository: &Repository) -> Result<i64, CiError> {
        self.server()?.newest(repository).await
    }

    /// The first restart of the pipeline that came after the one numbered `after`.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn restarted(
        &self,
        repository: &Repository,
        number: i64,
        after: i64,
    ) -> Result<Option<Pipeline>, CiError> {
        self.server()?.restarted(repository, number, after).await
    }

    /// Begins the pipeline again; answers the new one.
    ///
    /// # Errors
    /// `Unsure` where nobody knows whether there is a new one.
    pub async fn restart(&self, repository: &Repository, number: i64) -> Result<Pipeline, CiError> {
        self.server()?.restart(repository, number).await
    }

    /// The page that shows a pipeline to people.
    pub fn page(&self, repository: &Repository, number: i64) -> String {
        self.0.as_ref().map(|server| server.page(repository, number)).unwrap_or_default()
    }

    /// Its circuit's name, and how that stands.
    pub fn circuit(&self) -> Option<(String, Snapshot)> {
        self.0.as_ref().map(|server| server.circuit().shown())
    }

    fn server(&self) -> Result<&Woodpecker, CiError> {
        self.0.as_deref().ok_or(CiError::NotConfigured)
    }
}
