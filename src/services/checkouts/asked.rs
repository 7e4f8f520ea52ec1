//! A checkout in a client's words, and what is wrong with them.

use std::time::Duration;

use super::{NewCheckout, Wanted};
use crate::{
    domain::{
        branch::{BranchName, FromRef},
        durations::ExpiresIn,
    },
    error::{Error, Result},
};

/// What is empty counts as left out.
#[derive(Debug, Default)]
pub struct Asked {
    pub branch: Option<String>,
    pub new_branch: Option<String>,
    pub from_ref: Option<String>,
    pub feature_slug: Option<String>,
    pub expires_in: Option<String>,
}

impl Asked {
    /// # Errors
    /// 400, in the contract's order.
    pub fn parse(self, min_expires_in: Duration) -> Result<NewCheckout> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let name = |field: &str, text: &str| {
            BranchName::parse(text).map_err(|error| Error::invalid(format!("{field}: {error}")))
        };
        let from = given(self.from_ref);
        let wanted = match (given(self.branch), given(self.new_branch)) {
            (None, None) => return Err(Error::invalid("branch or new_branch is required")),
            (Some(_), Some(_)) => return Err(Error::invalid("specify either branch or new_branch, not both")),
            (Some(branch), None) => Wanted::Existing(name("branch", &branch)?),
            (None, Some(branch)) => {
                let name = name("new_branch", &branch)?;
                let from = from.as_deref().map(FromRef::parse).transpose();
                Wanted::New { name, from: from.map_err(|error| Error::invalid(format!("from_ref: {error}")))? }
            }
        };
        Ok(NewCheckout {
            wanted,
            feature_slug: given(self.feature_slug),
            expires_in: expires_in(self.expires_in.as_deref(), min_expires_in)?,
        })
    }
}

/// # Errors
/// The contract's sentences about `expires_in`.
pub fn expires_in(text: Option<&str>, min: Duration) -> Result<Duration> {
    let parsed = ExpiresIn::parse_optional(text, min).map_err(|error| Error::invalid(error.to_string()))?;
    Ok(parsed.unwrap_or(ExpiresIn::DEFAULT))
}
