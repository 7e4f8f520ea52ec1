//! Conversations that are passed on while the client waits: nothing is kept of them.

use bytes::Bytes;

use crate::{
    domain::chat,
    error::{Error, Result},
    models::Upstreams,
};

pub use crate::models::Passed;

use super::jobs::no_upstream;

#[derive(Clone)]
pub struct Chats {
    upstreams: Upstreams,
}

impl Chats {
    pub fn new(upstreams: Upstreams) -> Self {
        Self { upstreams }
    }

    /// Upstream's own answer, whatever it is.
    ///
    /// # Errors
    /// 503 without an upstream or with none that can be reached; 400 for what is no JSON object.
    pub async fn converse(&self, body: Bytes) -> Result<Passed> {
        self.configured()?;
        let body = chat::for_passing(body).map_err(|_| Error::invalid("invalid JSON body"))?;
        self.upstreams.pass_chat(body).await
    }

    /// The models of all upstreams.
    ///
    /// # Errors
    /// As [`Chats::converse`], and so are those that follow.
    pub async fn tags(&self) -> Result<Passed> {
        self.configured()?;
        self.upstreams.tags().await
    }

    /// Those that are loaded somewhere.
    ///
    /// # Errors
    /// As [`Chats::converse`].
    pub async fn loaded(&self) -> Result<Passed> {
        self.configured()?;
        self.upstreams.ps().await
    }

    /// # Errors
    /// As [`Chats::converse`].
    pub async fn version(&self) -> Result<Passed> {
        self.configured()?;
        self.upstreams.version().await
    }

    /// # Errors
    /// As [`Chats::converse`].
    pub async fn show(&self, body: Bytes) -> Result<Passed> {
        self.configured()?;
        self.upstreams.show(body).await
    }

    fn configured(&self) -> Result<()> {
        if self.upstreams.is_configured() { Ok(()) } else { Err(no_upstream()) }
    }
}
