//! Pipelines of a CI server, as far as rdev looks at them: where one stands, which repository of the
//! server's a project is, and by what a restart is known again.

use serde::Serialize;
use utoipa::ToSchema;

/// Where a pipeline stands, in the CI server's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PipelineStatus {
    Created,
    Pending,
    Started,
    Running,
    /// It waits for somebody to approve it.
    Blocked,
    Success,
    Failure,
    Error,
    Killed,
    Canceled,
    Declined,
    Skipped,
    /// A word that this version does not know.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipeline {
    pub number: i64,
    /// The one that it is a restart of; 0 where it is none.
    pub parent: i64,
    pub status: PipelineStatus,
    pub is_over: bool,
}

impl PipelineStatus {
    const ALL: [Self; 12] = [
        Self::Created,
        Self::Pending,
        Self::Started,
        Self::Running,
        Self::Blocked,
        Self::Success,
        Self::Failure,
        Self::Error,
        Self::Killed,
        Self::Canceled,
        Self::Declined,
        Self::Skipped,
    ];

    pub fn parse(text: &str) -> Self {
        Self::ALL.into_iter().find(|status| status.text() == text).unwrap_or(Self::Unknown)
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Pending => "pending",
            Self::Started => "started",
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Killed => "killed",
            Self::Canceled => "canceled",
            Self::Declined => "declined",
            Self::Skipped => "skipped",
            Self::Unknown => "unknown",
        }
    }

    /// `finished`: the server names a time at which it ended.
    pub fn is_over(self, finished: bool) -> bool {
        match self {
            Self::Created | Self::Pending | Self::Started | Self::Running | Self::Blocked => false,
            Self::Unknown => finished,
            _ => true,
        }
    }
}

/// The restart of `parent` among these: the first one after the pipeline `after`.
pub fn restart_of(parent: i64, after: i64, among: &[Pipeline]) -> Option<Pipeline> {
    among.iter().filter(|one| one.parent == parent && one.number > after).min_by_key(|one| one.number).copied()
}

/// `owner/name` of the repository that an import came from, or more where groups nest: the path of its
/// URL. Nothing of the user info, the server or the query is in it.
pub fn imported_from(import_url: &str) -> Option<String> {
    let (scheme, rest) = import_url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let (_, path) = rest.split(['?', '#']).next()?.split_once('/')?;
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let sound = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'+');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
    };
    (path.contains('/') && path.split('/').all(sound)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pipeline(number: i64, parent: i64) -> Pipeline {
        Pipeline { number, parent, status: PipelineStatus::Pending, is_over: false }
    }

    #[test]
    fn every_word_is_known_again() {
        for status in PipelineStatus::ALL {
            assert_eq!(PipelineStatus::parse(status.text()), status);
            assert_eq!(serde_json::json!(status), status.text());
        }
        for text in ["", "SUCCESS", "paused", "unknown"] {
            assert_eq!(PipelineStatus::parse(text), PipelineStatus::Unknown);
        }
    }

    #[test]
    fn a_word_that_is_not_known_is_an_end_where_the_server_names_its_time() {
        assert!(PipelineStatus::Unknown.is_over(true) && !PipelineStatus::Unknown.is_over(false));
        assert!(PipelineStatus::Success.is_over(false) && !PipelineStatus::Running.is_over(true));
        assert!(!PipelineStatus::Blocked.is_over(false), "somebody may approve it yet");
    }

    #[test]
    fn a_restart_is_known_by_its_parent_and_by_when_it_came() {
        let all = [pipeline(12, 7), pipeline(11, 7), pipeline(10, 3), pipeline(9, 7), pipeline(7, 0)];
        assert_eq!(restart_of(7, 9, &all), Some(pipeline(11, 7)));
        assert_eq!(restart_of(7, 12, &all), None);
        assert_eq!(restart_of(10, 9, &all), None);
    }

    #[test]
    fn a_repository_is_named_by_the_path_of_its_url() {
        for (url, name) in [
            ("https://github.com/octo/cat.git", Some("octo/cat")),
            ("HTTPS://me:s3cret@git.example.com:8443/octo/cat/", Some("octo/cat")),
            ("https://gitlab.com/group/sub/cat.git?x=1#y", Some("group/sub/cat")),
            ("https://example.com/cat", None),
            ("https://example.com", None),
            ("https://example.com/a/../b", None),
            ("https://example.com/a/b%2Fc", None),
            ("file:///srv/octo/cat.git", None),
            ("octo/cat", None),
        ] {
            assert_eq!(imported_from(url).as_deref(), name, "{url}");
        }
    }

    proptest! {
        #[test]
        fn no_secret_of_a_url_is_in_the_name(user in "[a-z]{8}", secret in "[A-Z]{12}", path in "[a-z/.]{0,30}") {
            let name = imported_from(&format!("https://{user}:{secret}@example.com/{path}")).unwrap_or_default();
            prop_assert!(!name.contains(&secret) && !name.contains('@') && !name.contains("//"));
        }
    }
}
