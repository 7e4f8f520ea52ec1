//! Where an import comes from: which URLs are taken, and how git is led there. User
//! info reaches git through the environment, so that it is in no command line, no
//! configuration and no message.

use std::{
    ffi::OsString,
    fmt::Write as _,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{super::super::git::Run, ImportError};

pub struct Source {
    /// Without user info; safe to show.
    pub url: String,
    protocol: &'static str,
    /// What git may say to which server.
    login: Option<Login>,
}

struct Login {
    server: String,
    user: OsString,
    password: OsString,
}

impl Source {
    pub async fn parse(url: &str, import_root: Option<&Path>) -> Result<Self, ImportError> {
        let unsupported = |why: &str| ImportError::UnsupportedUrl(why.to_owned());
        if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(unsupported("import_url holds white space or control characters"));
        }
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        match scheme.to_ascii_lowercase().as_str() {
            "https" => Self::https(rest),
            "file" => Self::file(rest, import_root).await,
            _ => Err(unsupported("import_url must begin with https:// or file:///")),
        }
    }

    fn https(rest: &str) -> Result<Self, ImportError> {
        let unsupported = |why: &str| ImportError::UnsupportedUrl(why.to_owned());
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user_info, server) = match authority.rsplit_once('@') {
            Some((user_info, server)) => (Some(user_info), server),
            None => (None, authority),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
        if server.is_empty() || server.starts_with('-') || !server.chars().all(plain) {
            return Err(unsupported("import_url names no server"));
        }
        let server = format!("https://{server}");
        let login = match user_info {
            Some(user_info) => Some(Login::parse(&server, user_info)?),
            None => None,
        };
        Ok(Self { url: format!("{server}{path}"), protocol: "https", login })
    }

    /// Both ends are resolved before they are compared: a link out of the root is out.
    async fn file(rest: &str, import_root: Option<&Path>) -> Result<Self, ImportError> {
        let unsupported = |why: &str| ImportError::UnsupportedUrl(why.to_owned());
        let Some(root) = import_root else {
            return Err(unsupported("file:// imports are off: RDEV_IMPORT_ROOT is not set"));
        };
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(unsupported("a file:// import_url needs an absolute path: file:///…"));
        }
        let outside = || unsupported("import_url is not under RDEV_IMPORT_ROOT");
        let path = PathBuf::from(decode(path).ok_or_else(outside)?);
        let resolved = tokio::try_join!(tokio::fs::canonicalize(root), tokio::fs::canonicalize(path));
        // One that is not there says the same, so that nobody can look around outside.
        let (root, path) = resolved.map_err(|_| outside())?;
        if !path.starts_with(&root) {
            return Err(outside());
        }
        Ok(Self { url: format!("file://{}", encode(&path)), protocol: "file", login: None })
    }

    /// `git <subcommand>` with all that it needs to reach the source.
    pub fn connect(&self, run: Run, subcommand: &str) -> Run {
        let mut run = run
            .network(self.protocol)
            .config("http.lowSpeedLimit", "1000")
            .config("http.lowSpeedTime", "60")
            .config("fetch.showForcedUpdates", "false")
            .args([subcommand]);
        if let Some(login) = &self.login {
            run = login.hand_over(run);
        }
        if self.protocol == "file" {
            // What serves the source gets none of our settings from git, and the source
            // may be another user's.
            run = run.args(["--upload-pack=git -c safe.directory=* upload-pack"]);
        }
        run
    }
}

impl Login {
    fn parse(server: &str, user_info: &str) -> Result<Self, ImportError> {
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let part = |text| decode(text).filter(|text| !text.as_bytes().iter().any(|b| *b < b' '));
        match (part(user), part(password)) {
            (Some(user), Some(password)) => Ok(Self { server: server.to_owned(), user, password }),
            _ => Err(ImportError::UnsupportedUrl("import_url holds user info that git cannot use".into())),
        }
    }

    /// A helper for this server alone: where it redirects to, git asks in vain.
    fn hand_over(&self, run: Run) -> Run {
        let helper = "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \
                      \"$RDEV_IMPORT_USER\" \"$RDEV_IMPORT_PASSWORD\"; }; f";
        run.config(&format!("credential.{}.helper", self.server), helper)
            .env("RDEV_IMPORT_USER", &self.user)
            .env("RDEV_IMPORT_PASSWORD", &self.password)
    }
}

fn decode(text: &str) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    (!bytes.contains(&0)).then(|| OsString::from_vec(bytes))
}

fn encode(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'~' => text.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            _ => write!(text, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn user_info_leaves_the_url() {
        let source = Source::parse("https://me:p%40ss@h:8443/x.git", None).await.ok().unwrap();
        assert_eq!(source.url, "https://h:8443/x.git");
        let login = source.login.unwrap();
        assert_eq!((login.user, login.password), ("me".into(), "p@ss".into()));
        assert_eq!(login.server, "https://h:8443");
    }

    #[tokio::test]
    async fn other_kinds_of_url_are_refused() {
        for url in [
            "http://h/x",
            "ssh://h/x",
            "git@h:x.git",
            "/srv/x",
            "ext::sh -c id",
            "https://",
            "https:///x",
            "file:///srv/x",
            "https://h/x\ny",
            "https://u%0a:p@h/x",
            "https://-h/x",
        ] {
            let result = Source::parse(url, None).await;
            assert!(matches!(result, Err(ImportError::UnsupportedUrl(_))), "{url}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_path_survives_the_url(name in "[^\0/]{1,20}") {
            let path = PathBuf::from("/srv").join(name);
            assert_eq!(decode(&encode(&path)), Some(path.into_os_string()));
        }
    }
}
