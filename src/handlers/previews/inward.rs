//! What of a program's answer comes back: all but what is between rdev and the program, and
//! what would reach beyond the preview. By path the preview shares the API's origin, so more
//! is kept away there, and a page may do less.

use http::{HeaderMap, HeaderValue, Version, header, response::Parts};
use url::Url;

use super::{address::Asked, cookies, onward::strip_hop_by_hop};

const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox allow-scripts allow-forms");

/// They speak for more than one preview: for a whole site, or for another server.
const BEYOND: [&str; 2] = ["clear-site-data", "alt-svc"];
/// They speak for the whole origin, which by path is the API's too.
const ORIGIN_WIDE: [&str; 9] = [
    "refresh",
    "strict-transport-security",
    "public-key-pins",
    "service-worker-allowed",
    "nel",
    "report-to",
    "origin-agent-cluster",
    "accept-ch",
    "use-as-dictionary",
];

/// Turns a program's answer into the client's.
pub fn rewrite(parts: &mut Parts, asked: &Asked, port: u16, upgrade: bool) {
    let protocol = parts.headers.get(header::UPGRADE).cloned().filter(|_| upgrade);
    // A body in chunks is as long as its chunks, whatever else is said.
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    let headers = &mut parts.headers;
    for name in BEYOND {
        headers.remove(name);
    }
    cookies::confine(headers, asked.prefix.as_deref());
    redirect(headers, asked, port);
    if asked.prefix.is_some() {
        sandbox(headers);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// rdev's policy comes first; the program's own can only take away more.
fn sandbox(headers: &mut HeaderMap) {
    for name in ORIGIN_WIDE {
        headers.remove(name);
    }
    let own: Vec<HeaderValue> = headers.get_all(header::CONTENT_SECURITY_POLICY).iter().cloned().collect();
    headers.insert(header::CONTENT_SECURITY_POLICY, SANDBOX);
    for value in own {
        headers.append(header::CONTENT_SECURITY_POLICY, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// A redirect to what the program takes for its own address leads to the preview. By path one
/// within the origin stays below the prefix: a client would bring its key along to the API.
fn redirect(headers: &mut HeaderMap, asked: &Asked, port: u16) {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let Some(value) = headers.get(&name) else { continue };
        let led = value.to_str().ok().and_then(|to| led(to, asked, port));
        match led.and_then(|to| HeaderValue::from_str(&to).ok()) {
            Some(to) => drop(headers.insert(name, to)),
            // What cannot be looked at leads nowhere where it could lead to the API.
            None if asked.prefix.is_some() => drop(headers.remove(name)),
            None => {}
        }
    }
}

/// Where it leads instead, in words that all clients read alike; `None`: it is not looked at.
fn led(to: &str, asked: &Asked, port: u16) -> Option<String> {
    let prefix = asked.prefix.as_deref().unwrap_or_default();
    let base = Url::parse(&format!("http://{}{prefix}{}", asked.host, asked.target)).ok()?;
    let url = base.join(to).ok()?;
    let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let is_own = is_local && is_web(&url) && url.port_or_known_default() == Some(port);
    let is_here = url.host_str() == base.host_str() && is_web(&url);
    if asked.prefix.is_none() {
        return is_own.then(|| local(url.path(), url.query(), url.fragment()));
    }
    if !is_own && !is_here {
        return Some(url.into());
    }
    let is_below = url.path().strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let path = if is_here && is_below { url.path().to_owned() } else { format!("{prefix}{}", url.path()) };
    Some(local(&path, url.query(), url.fragment()))
}

fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// A reference to a path of this host, whatever the path begins with.
pub fn local(path: &str, query: Option<&str>, fragment: Option<&str>) -> String {
    let names_a_host = path.len() > 1 && matches!(path.as_bytes()[1], b'/' | b'\\');
    let mut whole = if names_a_host { format!("/.{path}") } else { path.to_owned() };
    for (mark, part) in [('?', query), ('#', fragment)] {
        if let Some(part) = part {
            whole.push(mark);
            whole.push_str(part);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Response};
    use uuid::Uuid;

    use super::*;

    fn asked(prefix: Option<&str>) -> Asked {
        Asked {
            session: Uuid::nil(),
            host: "e.org:8080".into(),
            prefix: prefix.map(str::to_owned),
            target: "/a/b?c".into(),
            lacks_slash: false,
        }
    }

    fn answered(pairs: &[(&str, &str)], prefix: Option<&str>) -> HeaderMap {
        let mut parts = Response::new(()).into_parts().0;
        for (name, value) in pairs {
            parts.headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        rewrite(&mut parts, &asked(prefix), 3000, false);
        parts.headers
    }

    fn location(to: &str, prefix: Option<&str>) -> String {
        answered(&[("location", to)], prefix)["location"].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_redirect_to_the_programs_own_address_leads_to_the_preview() {
        for (to, led) in [
            ("http://localhost:3000/x?y#z", "/x?y#z"),
            ("http://127.0.0.1:3000", "/"),
            ("http://localhost:3000//evil.org/", "/.//evil.org/"),
            ("/x", "/x"),
            ("../x", "../x"),
            ("https://example.com/", "https://example.com/"),
            ("http://localhost:3001/", "http://localhost:3001/"),
        ] {
            assert_eq!(location(to, None), led, "{to}");
        }
    }

    #[test]
    fn by_path_no_redirect_leads_to_the_api() {
        for (to, led) in [
            ("/keys", "/preview/s/keys"),
            ("x", "/preview/s/a/x"),
            ("../../../keys", "/preview/s/keys"),
            ("/preview/s/../../keys", "/preview/s/keys"),
            ("/preview/s/%2e%2e/%2E%2E/keys", "/preview/s/keys"),
            ("/\\keys", "http://keys/"),
            ("/\\x/../keys", "http://x/keys"),
            ("//e.org:8080/keys", "/preview/s/keys"),
            ("http://e.org:8080/keys?a", "/preview/s/keys?a"),
            ("https://E.ORG/keys", "/preview/s/keys"),
            ("http://localhost:3000/x", "/preview/s/x"),
            ("/preview/s/x", "/preview/s/x"),
            ("/preview/so", "/preview/s/preview/so"),
            ("https://example.com/", "https://example.com/"),
        ] {
            assert_eq!(location(to, Some("/preview/s")), led, "{to}");
        }
    }

    #[test]
    fn by_path_a_page_is_in_a_sandbox_whatever_it_says() {
        let got =
            answered(&[("content-security-policy", "sandbox allow-same-origin"), ("nel", "{}")], Some("/preview/s"));
        let policies: Vec<_> = got.get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["sandbox allow-scripts allow-forms", "sandbox allow-same-origin"]);
        assert!(!got.contains_key("nel"));
        assert!(!answered(&[], None).contains_key("content-security-policy"));
    }

    #[test]
    fn nothing_between_rdev_and_the_program_comes_through() {
        let got = answered(
            &[
                ("connection", "close, x-own"),
                ("x-own", "1"),
                ("transfer-encoding", "chunked"),
                ("content-length", "5"),
                ("clear-site-data", "\"*\""),
                ("www-authenticate", "Basic realm=x"),
            ],
            None,
        );
        assert_eq!(got.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["www-authenticate"]);
    }
}
