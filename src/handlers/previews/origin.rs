//! Whose page asks. Previews may share a site, and browsers bring cookies along within one: a
//! page elsewhere neither acts in a preview nor shows what is there. Browsers say whose page it
//! is; clients that say nothing are none. The preview's own origin the program knows by the
//! name that `Host` tells it.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use url::Url;

use super::address::{Addresses, Asked};

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Whether a request comes from a page that a cookie of this preview is not for.
pub fn is_foreign(addresses: &Addresses, asked: &Asked, method: &Method, headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter().filter(|origin| *origin != "null");
    if origins.any(|origin| !parsed(origin).is_some_and(|origin| addresses.is_own(asked, &origin))) {
        return true;
    }
    match headers.get(SITE).map(HeaderValue::as_bytes) {
        // A page that sends no referrer says `null` to itself as well.
        Some(b"same-origin" | b"none") => false,
        Some(_) => !is_visit(method, headers),
        None => headers.get(header::ORIGIN).is_some_and(|origin| origin == "null"),
    }
}

/// Somebody goes there, in a window of its own, and the other page sees nothing of it.
fn is_visit(method: &Method, headers: &HeaderMap) -> bool {
    let says = |name: &HeaderName, what: &str| headers.get(name).is_some_and(|value| value == what);
    matches!(*method, Method::GET | Method::HEAD) && says(&MODE, "navigate") && says(&DEST, "document")
}

/// Programs that take `WebSockets` compare `Origin` with `Host` and nothing else: the preview's own, and
/// its `Referer`, become what `Host` is. Those that take forms look at `X-Forwarded-Host`, too.
pub fn localize(headers: &mut HeaderMap, addresses: &Addresses, asked: &Asked, host: &str) {
    for name in [header::ORIGIN, header::REFERER] {
        let local = headers.get(&name).and_then(|value| {
            let url = parsed(value).filter(|url| addresses.is_own(asked, url))?;
            let rest = if name == header::ORIGIN { "" } else { &url[url::Position::BeforePath..] };
            HeaderValue::from_str(&format!("http://{host}{rest}")).ok()
        });
        if let Some(local) = local {
            headers.insert(name, local);
        }
    }
}

fn parsed(value: &HeaderValue) -> Option<Url> {
    value.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const OTHER: &str = "https://01890000-0000-7000-8000-000000000000.p.example.com";

    fn own() -> String {
        format!("https://{}.p.example.com", Uuid::nil())
    }

    fn asked(host: &str) -> Asked {
        Asked { session: Uuid::nil(), host: host.to_owned(), prefix: None, target: "/".into(), lacks_slash: false }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    /// On a server behind `https://rdev.example.com`, whose proxy calls it by `host`.
    fn is_foreign_to(host: &str, method: &Method, pairs: &[(&str, &str)]) -> bool {
        let addresses = Addresses::new("https://rdev.example.com", Some("p.example.com".to_owned()));
        is_foreign(&addresses, &asked(host), method, &headers(pairs))
    }

    #[test]
    fn an_origin_is_the_previews_own_or_foreign() {
        let (bare, own) = (own().replace("https://", ""), own());
        for (host, origin, foreign) in [
            (bare.clone(), own.clone(), false),
            (bare.to_uppercase(), own.clone(), false),
            (format!("{bare}:443"), own.clone(), false),
            (format!("{bare}:8443"), format!("{own}:8443"), false),
            // A proxy that asks by another port than browsers do.
            (format!("{bare}:8080"), own.clone(), false),
            (bare.clone(), format!("{own}:8443"), true),
            (bare.clone(), own.replace("https", "http"), true),
            (bare.clone(), OTHER.to_owned(), true),
            (bare.clone(), "https://rdev.example.com".to_owned(), true),
            (bare.clone(), "https://example.org".to_owned(), true),
            (bare.clone(), "null".to_owned(), true),
            (bare.clone(), String::new(), true),
            (bare.clone(), format!("data:{own}"), true),
        ] {
            for method in [Method::GET, Method::POST] {
                assert_eq!(is_foreign_to(&host, &method, &[("origin", &origin)]), foreign, "{origin} at {host}");
            }
        }
    }

    #[test]
    fn what_browsers_say_of_the_page_counts() {
        let (own, host) = (own(), own().replace("https://", ""));
        for (site, is_near) in [("same-site", false), ("cross-site", false), ("same-origin", true), ("none", true)] {
            let site = ("sec-fetch-site", site);
            let foreign = |method, more: &[(&str, &str)]| is_foreign_to(&host, method, &[&[site], more].concat());
            let part = [("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "script")];
            let frame = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
            let visit = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
            let form = [visit[0], visit[1], ("origin", "null")];
            assert_eq!(foreign(&Method::GET, &part), !is_near, "{site:?}");
            assert_eq!(foreign(&Method::GET, &frame), !is_near, "{site:?}");
            assert_eq!(foreign(&Method::POST, &form), !is_near, "{site:?}");
            assert!(!foreign(&Method::GET, &visit), "{site:?}");
            assert!(foreign(&Method::POST, &[("origin", OTHER)]), "{site:?}");
            assert_eq!(foreign(&Method::POST, &[("origin", &own)]), !is_near, "{site:?}");
        }
        assert!(!is_foreign_to(&host, &Method::POST, &[]), "no browser");
    }

    #[test]
    fn a_port_beside_it_is_another_origin() {
        let addresses = Addresses::new("http://127.0.0.1:8080", Some("localhost".to_owned()));
        let name = format!("{}.localhost", Uuid::nil());
        let foreign = |port: u16| {
            let origin = format!("http://{name}:{port}");
            is_foreign(&addresses, &asked(&format!("{name}:8080")), &Method::POST, &headers(&[("origin", &origin)]))
        };
        assert!(!foreign(8080));
        assert!(foreign(3000));
    }

    #[test]
    fn the_previews_own_origin_is_told_as_its_host_is() {
        let addresses = Addresses::new("https://rdev.example.com", Some("p.example.com".to_owned()));
        let own = own();
        let told = |name: &str, value: &str| {
            let mut headers = headers(&[(name, value)]);
            localize(&mut headers, &addresses, &asked(own.trim_start_matches("https://")), "localhost:3000");
            headers[name].to_str().unwrap().to_owned()
        };
        assert_eq!(told("origin", &own), "http://localhost:3000");
        assert_eq!(told("referer", &format!("{own}/a/b?c=d")), "http://localhost:3000/a/b?c=d");
        assert_eq!(told("referer", &own), "http://localhost:3000/");
        for foreign in [OTHER, "null", "https://example.org/x", &own.replace("https", "http")] {
            assert_eq!(told("origin", foreign), foreign);
            assert_eq!(told("referer", foreign), foreign);
        }
    }
}
