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

/// What a client shows as rdev's cookie. Others may have put more of that name beside it, and
/// cookies of programs hold any bytes.
pub fn shown(headers: &HeaderMap, is_https: bool) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    all.filter_map(move |pair| {
        let (name, value) = halves(pair);
        let value = value.filter(|_| name == NAMES[usize::from(is_https)].as_bytes())?;
        std::str::from_utf8(value).ok()
    })
}

/// Takes rdev's cookies away from what the program gets.
pub fn hide(headers: &mut HeaderMap) {
    if !headers.contains_key(header::COOKIE) {
        return;
    }
    let mut kept: Vec<u8> = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            if pair.is_empty() || is_ours(halves(pair).0) {
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
    let mut parts = value.as_bytes().split(|byte| *byte == b';');
    let pair = parts.next()?.trim_ascii();
    // A cookie without a name is sent back as its value alone.
    let bare = pair.iter().position(|byte| !matches!(byte, b'=' | b' ' | b'\t')).map_or(&pair[..0], |at| &pair[at..]);
    if is_ours(halves(bare).0) {
        return None;
    }
    let mut whole = pair.to_vec();
    let mut path = None;
    for attribute in parts {
        let (name, value) = halves(attribute);
        match name.to_ascii_lowercase().as_slice() {
            b"domain" => {}
            b"path" => path = Some(value.unwrap_or_default()),
            _ => {
                whole.extend_from_slice(b"; ");
                whole.extend_from_slice(attribute.trim_ascii());
            }
        }
    }
    let path = match prefix {
        None => path.map(<[u8]>::to_vec),
        Some(prefix) => Some(below(prefix, path.unwrap_or(b"/"))),
    };
    if let Some(path) = path {
        whole.extend_from_slice(b"; Path=");
        whole.extend_from_slice(&path);
    }
    HeaderValue::from_bytes(&whole).ok()
}

fn below(prefix: &str, path: &[u8]) -> Vec<u8> {
    match path.strip_prefix(prefix.as_bytes()) {
        Some([b'/', ..]) => path.to_vec(),
        _ if path.starts_with(b"/") => [prefix.as_bytes(), path].concat(),
        _ => format!("{prefix}/").into_bytes(),
    }
}

/// What stands before and after the first `=`.
fn halves(pair: &[u8]) -> (&[u8], Option<&[u8]>) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (pair[..at].trim_ascii(), Some(pair[at + 1..].trim_ascii())),
        None => (pair.trim_ascii(), None),
    }
}

/// Browsers are strict about case; programs that read cookies may not be.
fn is_ours(name: &[u8]) -> bool {
    NAMES.iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
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

    #[test]
    fn cookies_of_any_bytes_stay_as_they_are() {
        for bytes in ["user=Jürgen; Max-Age=60".as_bytes(), b"user=J\xfcrgen", "ü=1".as_bytes()] {
            let value = HeaderValue::from_bytes(bytes).unwrap();
            assert_eq!(confined(&value, None).unwrap().as_bytes(), bytes);
        }
    }

    /// Cookies of others, as a browser may hold them.
    fn others() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![0x20..0x3b_u8, 0x3c..0x7f_u8, 0x80..=0xff_u8];
        proptest::collection::vec(proptest::collection::vec(byte, 0..12), 0..40)
    }

    proptest! {
        #[test]
        fn ours_is_found_among_any_others(before in others(), tossed in 0..200_usize, after in others()) {
            let tossed = std::iter::repeat_n(b"rdev_preview=tossed".to_vec(), tossed);
            let all: Vec<_> = before.into_iter().chain(tossed).chain([b"rdev_preview=true".to_vec()]).chain(after).collect();
            let mut headers = HeaderMap::new();
            headers.insert("cookie", HeaderValue::from_bytes(&all.join(b"; ".as_slice())).unwrap());
            prop_assert!(shown(&headers, false).any(|value| value == "true"));
        }

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
