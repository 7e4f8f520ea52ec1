//! A session in a client's words, and what is wrong with them.

use std::time::Duration;

use super::{super::checkouts, NewSession};
use crate::{
    domain::durations,
    error::{Error, Result},
};

#[derive(Debug, Default)]
pub struct Asked {
    pub checkout: checkouts::Asked,
    pub preview_port: Option<i64>,
    /// Empty counts as left out.
    pub idle_timeout: Option<String>,
}

impl Asked {
    /// # Errors
    /// 400, in the contract's order.
    pub fn parse(self, min: Duration) -> Result<NewSession> {
        let idle = self.idle_timeout.as_deref().filter(|text| !text.is_empty());
        let at_least =
            || Error::invalid(format!("idle_timeout must be a duration of at least {}", durations::format_short(min)));
        Ok(NewSession {
            checkout: self.checkout.parse(min)?,
            preview_port: self.preview_port.map(|number| port("preview_port", number)).transpose()?,
            idle_timeout: idle
                .map(|text| durations::parse_positive(text).ok().filter(|idle| *idle >= min).ok_or_else(at_least))
                .transpose()?,
        })
    }
}

/// A port that a program can listen on.
///
/// # Errors
/// 400 that names the field.
pub fn port(field: &str, number: i64) -> Result<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| Error::invalid(format!("{field} must be a port from 1 to 65535")))
}
