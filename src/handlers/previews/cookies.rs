//! Cookies of a preview: rdev's own, which no program sees or sets, and the program's, which
//! stay with its preview.

use chrono::TimeDelta;
use http::{HeaderMap, HeaderValue, header};

/// The cookie that a link is exchanged for; over https it is the latter, which browsers let nobody else set.
const NAMES: [&str; 2] = ["rdev_preview", "__Host-rdev_preview"];

/// The cookie that lets a browser in for as long as its link would.
pub fn pass(token: &str, life: TimeDelta, is_https: bool) -> Option<HeaderValue> {
    let (name, secure) = (NAMES[usize::from(is_https)], if is_https { "; Secure" } else { "" });
    // Rounded down: never beyond the link.
    let seconds = life.num_seconds().max(0);
    HeaderValue::from_str(&format!("{name}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")).ok()
}

/// What a client shows as rdev's cookie. Others may have put more of that name beside it.
pub fn shown(headers: &HeaderMap, is_https: bool) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let ours = all.flat_map(|value| value.split(';')).filter_map(move |pair| {
        let (name, value) = pair.split_once('=')?;
        (name.trim() == NAMES[usize::from(is_https)]).then(|| value.trim())
    });
    ours.take(32)
}

/// Takes rdev's cookies away from what the program gets.
pub fn hide(headers: &mut HeaderMap) {
    if !headers.contains_key(header::COOKIE) {
        return;
    }
    let mut kept: Vec<u8> = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
            let pair = pair.trim_ascii();
            if pair.is_empty() || is_ours(&String::from_utf8_lossy(name)) {
                continue;
            }
            if !kept.is_empty() {
                kept.extend_from_slice(b"; ");
            }
            kept.extend_from_slice(pair);
        }
    }
    headers.remove(header::COOKIE);
    if let Some(value) = HeaderValue::from_bytes(&kept).ok().filter(|value| !value.is_empty()) {
        headers.insert(header::COOKIE, value);
    }
}

/// Keeps the cookies that a program sets with its own preview: no other host's, not under
/// rdev's name, and below the prefix where there is one.
pub fn confine(headers: &mut HeaderMap, prefix: Option<&str>) {
    if !headers.contains_key(header::SET_COOKIE) {
        return;
    }
    let set: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for value in set.iter().filter_map(|value| confined(value, prefix)) {
        headers.append(header::SET_COOKIE, value);
    }
}

fn confined(value: &HeaderValue, prefix: Option<&str>) -> Option<HeaderValue> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let mut parts = text.split(';');
    let pair = parts.next()?.trim();
    // A cookie without a name is sent back as its value alone.
    let (name, _) = pair.trim_start_matches(['=', ' ', '\t']).split_once('=').unwrap_or((pair, ""));
    if is_ours(name) || is_ours(pair.trim_start_matches(['=', ' ', '\t'])) {
        return None;
    }
    let mut whole = pair.to_owned();
    let mut path = None;
    for attribute in parts {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "domain" => {}
            "path" => path = Some(value.trim()),
            _ => {
                whole.push_str("; ");
                whole.push_str(attribute.trim());
            }
        }
    }
    let path = match prefix {
        None => path.map(str::to_owned),
        Some(prefix) => Some(below(prefix, path.unwrap_or("/"))),
    };
    if let Some(path) = path {
        whole.push_str("; Path=");
        whole.push_str(&path);
    }
    HeaderValue::from_str(&whole).ok()
}

fn below(prefix: &str, path: &str) -> String {
    match path.strip_prefix(prefix) {
        Some(rest) if rest.starts_with('/') => path.to_owned(),
        _ if path.starts_with('/') => format!("{prefix}{path}"),
        _ => format!("{prefix}/"),
    }
}

/// Browsers are strict about case; programs that read cookies may not be.
fn is_ours(name: &str) -> bool {
    let name = name.trim();
    NAMES.iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(text: &str, prefix: Option<&str>) -> Option<String> {
        let value = confined(&HeaderValue::from_str(text).unwrap(), prefix)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_cookie_stays_with_its_host() {
        for (text, kept) in [
            ("a=b", "a=b"),
            ("a=b; Domain=example.com; HttpOnly", "a=b; HttpOnly"),
            ("a=b;domain=.localhost;Path=/x;Secure", "a=b; Secure; Path=/x"),
            ("a=b; DOMAIN =x; SameSite=None", "a=b; SameSite=None"),
        ] {
            assert_eq!(set(text, None).as_deref(), Some(kept), "{text}");
        }
    }

    #[test]
    fn rdevs_cookie_cannot_be_set() {
        for text in [
            "rdev_preview=x",
            "RDEV_preview = x; Path=/a",
            "__Host-rdev_preview=x",
            "=rdev_preview=x",
            " = rdev_preview=x",
            "rdev_preview",
        ] {
            assert_eq!(set(text, None), None, "{text}");
        }
        assert!(set("rdev_previews=x", None).is_some());
    }

    #[test]
    fn by_path_a_cookie_stays_below_the_prefix() {
        for (text, kept) in [
            ("a=b", "a=b; Path=/preview/s/"),
            ("a=b; Path=/", "a=b; Path=/preview/s/"),
            ("a=b; path=/app; Path=/other", "a=b; Path=/preview/s/other"),
            ("a=b; Path=/preview/s/app", "a=b; Path=/preview/s/app"),
            ("a=b; Path=/preview/t/", "a=b; Path=/preview/s/preview/t/"),
            ("a=b; Path=", "a=b; Path=/preview/s/"),
        ] {
            assert_eq!(set(text, Some("/preview/s")).as_deref(), Some(kept), "{text}");
        }
    }

    #[test]
    fn rdevs_cookie_is_read_wherever_it_stands_and_is_hidden() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", "a=1; rdev_preview=one;b=2".parse().unwrap());
        headers.append("cookie", "__Host-rdev_preview=two; c=3".parse().unwrap());
        assert_eq!(shown(&headers, false).collect::<Vec<_>>(), ["one"]);
        assert_eq!(shown(&headers, true).collect::<Vec<_>>(), ["two"]);
        hide(&mut headers);
        assert_eq!(headers["cookie"], "a=1; b=2; c=3");
        headers.insert("cookie", "rdev_preview=x".parse().unwrap());
        hide(&mut headers);
        assert!(!headers.contains_key("cookie"));
    }

    proptest! {
        #[test]
        fn nothing_of_ours_gets_through(text in "[ ;=a]{0,4}(rdev_preview|__host-RDEV_preview)[ ;=b]{0,6}") {
            let mut headers = HeaderMap::new();
            headers.insert("cookie", HeaderValue::from_str(&text).unwrap());
            hide(&mut headers);
            let left = headers.get("cookie").map_or("", |value| value.to_str().unwrap()).to_owned();
            headers.insert("cookie", HeaderValue::from_str(&left).unwrap());
            prop_assert_eq!(shown(&headers, false).count() + shown(&headers, true).count(), 0);
        }
    }
}
