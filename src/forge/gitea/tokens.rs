//! Tokens: one a checkout, under its id, and one a project, with which its place reads. The host
//! knows no end of theirs, so each is removed by its name. Where the host binds tokens to
//! repositories (Forgejo) they open theirs alone; one that does not passes over that wish.

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    super::{Credential, Kept, git::GitError},
    GiteaHost,
};
use crate::domain::api_key::GitToken;

const MARK: &str = "rdev-";
const READER_MARK: &str = "rdev-read-";
const PAGE: usize = 50;
/// Far beyond what there is of either; the bound of a host that never ends.
pub const PAGES_MAX: usize = 1000;

/// A token that the host knows, by whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Checkout(Uuid),
    Reader(String),
}

impl Known {
    fn name(&self) -> String {
        match self {
            Self::Checkout(id) => format!("{MARK}{id}"),
            Self::Reader(project) => format!("{READER_MARK}{project}"),
        }
    }

    /// `None` for a token that is not ours.
    fn parse(name: &str) -> Option<Self> {
        if let Some(project) = name.strip_prefix(READER_MARK) {
            return Some(Self::Reader(project.to_owned()));
        }
        let id = name.strip_prefix(MARK)?;
        // As we write them, and in no other of the forms that an id may have.
        Uuid::parse_str(id).ok().filter(|parsed| parsed.to_string() == id).map(Self::Checkout)
    }
}

impl GiteaHost {
    /// A new token for the checkout. One that has its name, from before, is dead then.
    pub async fn issue(&self, project: &str, checkout: Uuid) -> Result<Credential, GitError> {
        let token = self.make(project, &Known::Checkout(checkout), "write:repository").await?;
        let kept = Kept::Sealed(self.seal().close(checkout, &token));
        Ok(Credential { token, kept })
    }

    /// A new token with which the project's place reads; likewise.
    pub async fn reader(&self, project: &str) -> Result<Credential, GitError> {
        let token = self.make(project, &Known::Reader(project.to_owned()), "read:repository").await?;
        Ok(Credential { token, kept: Kept::Elsewhere })
    }

    /// The checkout's token opens nothing after this.
    pub async fn revoke(&self, project: &str, checkout: Uuid, sealed: Option<&[u8]>) -> Result<(), GitError> {
        let known = Known::Checkout(checkout);
        let answer = self.api().remove(&self.named(&known.name())).await?;
        match answer.status {
            204 | 404 => Ok(()),
            // Somebody is not let in: the token, which then is dead, or we are not.
            401 if self.is_dead(project, checkout, sealed).await? => Ok(()),
            _ => Err(answer.unfit("revoking a token")),
        }
    }

    /// Forgets one of those that [`GiteaHost::tokens`] has shown.
    pub async fn forget(&self, known: &Known) -> Result<(), GitError> {
        let answer = self.api().remove(&self.named(&known.name())).await?;
        if matches!(answer.status, 204 | 404) { Ok(()) } else { Err(answer.unfit("removing a token")) }
    }

    /// Those of rdev's that are alive.
    pub async fn tokens(&self) -> Result<Vec<Known>, GitError> {
        let found = self.pages(&["users", self.user(), "tokens"]).await?;
        Ok(found.iter().filter_map(|token| Known::parse(token["name"].as_str()?)).collect())
    }

    /// What the host lists, over all pages.
    pub(super) async fn pages(&self, path: &[&str]) -> Result<Vec<Value>, GitError> {
        let mut all = Vec::new();
        for page in 1..=PAGES_MAX {
            let (number, limit) = (page.to_string(), PAGE.to_string());
            let answer = self.api().read(path, &[("page", &number), ("limit", &limit)]).await?;
            let Ok(Value::Array(items)) = answer.json() else { return Err(answer.unfit("a list")) };
            // A host may give fewer at once than it was asked for.
            let (is_empty, is_short) = (items.is_empty(), items.len() < PAGE);
            all.extend(items);
            let is_all = answer.total.map_or(is_short, |total| all.len() >= total);
            if is_empty || (is_all && !answer.has_next) {
                return Ok(all);
            }
        }
        Err(GitError::Refused("its list does not end".into()))
    }

    async fn make(&self, project: &str, known: &Known, scope: &str) -> Result<GitToken, GitError> {
        let body = json!({
            "name": known.name(),
            "scopes": [scope],
            "repositories": [{"owner": self.owner(), "name": project}],
        });
        let path = ["users", self.user(), "tokens"];
        let mut answer = self.api().send(Method::POST, &path, &body).await?;
        if answer.status == 400 && answer.says("name has been used already") {
            self.forget(known).await?;
            answer = self.api().send(Method::POST, &path, &body).await?;
        }
        if answer.status != 201 {
            return Err(answer.unfit("making a token"));
        }
        let made = answer.json()?;
        let token = made["sha1"].as_str().and_then(GitToken::of_host);
        token.ok_or_else(|| GitError::Refused("making a token: the answer holds none".into()))
    }

    /// Whether the token itself is not let in any more. Not known without it.
    async fn is_dead(&self, project: &str, checkout: Uuid, sealed: Option<&[u8]>) -> Result<bool, GitError> {
        let Some(token) = sealed.and_then(|sealed| self.seal().open(checkout, sealed)) else { return Ok(false) };
        let answer = self.api().read_as(token.expose(), &["repos", self.owner(), project]).await?;
        Ok(answer.status == 401)
    }

    fn named<'a>(&'a self, name: &'a str) -> [&'a str; 4] {
        ["users", self.user(), "tokens", name]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_name_says_whose_it_is() {
        let checkout = Known::Checkout(Uuid::now_v7());
        let reader = Known::Reader("p".into());
        assert_eq!(Known::parse(&checkout.name()), Some(checkout.clone()));
        assert_eq!(Known::parse(&reader.name()), Some(reader));
        for name in ["", "rdev-", "rdev-x", "ci", &checkout.name().to_uppercase(), &checkout.name()[1..]] {
            assert_eq!(Known::parse(name), None, "{name}");
        }
    }
}
