//! Names from outside become arguments here, and only as full ref names that git
//! cannot take for an option or a revision expression.

/// `refs/heads/<name>`, or none where git would refuse the name.
pub fn branch_ref(name: &str) -> Option<String> {
    checked_ref("refs/heads/", name)
}

/// `refs/tags/<name>`, likewise.
pub fn tag_ref(name: &str) -> Option<String> {
    checked_ref("refs/tags/", name)
}

/// A full object id (SHA-1 or SHA-256, lower case), not an abbreviation.
pub fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The rules of `git check-ref-format`, and no leading dash.
#[expect(clippy::case_sensitive_file_extension_comparisons, reason = "git's rule is exact")]
fn checked_ref(prefix: &str, name: &str) -> Option<String> {
    let bad_character = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    let refused = name.starts_with('-')
        || name.ends_with('.')
        || name.contains("..")
        || name.contains("@{")
        || name.contains(bad_character)
        || name.split('/').any(bad_part);
    (!refused).then(|| format!("{prefix}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_expressions_are_refused() {
        for name in [
            "", "-d", "a..b", "a^", "a~1", "a:b", "@{u}", "a b", "a/", "/a", "a//b", ".a", "a/.b", "a.lock",
            "a.lock/b", "a.", "a\\b", "a*", "a?", "a[", "a\u{7f}", "a\nb",
        ] {
            assert_eq!(branch_ref(name), None, "{name:?}");
        }
        assert_eq!(branch_ref("feature/ü-1").as_deref(), Some("refs/heads/feature/ü-1"));
        assert_eq!(tag_ref("v1.0").as_deref(), Some("refs/tags/v1.0"));
    }
}
