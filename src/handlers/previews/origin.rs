//! Whose page asks. Previews may share a site, and browsers bring cookies along within one: a
//! page of one preview neither acts in another nor reads what is there. Browsers say whose page
//! it is; clients that say nothing are none.

use http::{HeaderMap, HeaderName, Method, header};

use super::address::{Addresses, Asked, origin_host};

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Whether a request comes from a page that a cookie of this preview is not for.
pub fn is_foreign(addresses: &Addresses, asked: &Asked, method: &Method, headers: &HeaderMap) -> bool {
    match headers.get(header::ORIGIN).and_then(|value| origin_host(value.to_str().ok()?)) {
        Some(origin) if origin != "null" => {
            addresses.is_preview_host(&origin) && Some(origin) != origin_host(&format!("http://{}", asked.host))
        }
        // Not told, or taken away by a redirect: it may be another preview's.
        _ => is_of_another_origin(headers) && !is_visit(method, headers),
    }
}

fn is_of_another_origin(headers: &HeaderMap) -> bool {
    headers.get(SITE).is_some_and(|site| site == "same-site" || site == "cross-site")
}

/// Somebody goes there, and the other page sees nothing of it.
fn is_visit(method: &Method, headers: &HeaderMap) -> bool {
    headers.get(MODE).is_some_and(|mode| mode == "navigate") && matches!(*method, Method::GET | Method::HEAD)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn is_foreign_to_a(method: &Method, pairs: &[(&str, &str)]) -> bool {
        let addresses = Addresses::new("https://rdev.example.com", Some("p.example.com".to_owned()));
        let asked = Asked {
            session: Uuid::nil(),
            host: "A.p.example.com:8443".into(),
            prefix: None,
            target: "/".into(),
            lacks_slash: false,
        };
        let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        is_foreign(&addresses, &asked, method, &pairs.iter().map(pair).collect())
    }

    #[test]
    fn an_origin_says_whose_page_it_is() {
        for (origin, foreign) in [
            ("https://a.p.example.com:8443", false),
            ("https://b.p.example.com", true),
            ("https://b.p.example.com.", true),
            ("https://rdev.example.com", false),
            ("https://example.org", false),
        ] {
            assert_eq!(is_foreign_to_a(&Method::POST, &[("origin", origin)]), foreign, "{origin}");
        }
    }

    #[test]
    fn where_it_is_not_told_browsers_say_how_far_it_is() {
        for (site, foreign) in [("same-site", true), ("cross-site", true), ("same-origin", false), ("none", false)] {
            let (site, part) = (("sec-fetch-site", site), ("sec-fetch-mode", "no-cors"));
            assert_eq!(is_foreign_to_a(&Method::GET, &[site, part]), foreign, "{site:?}");
            assert_eq!(is_foreign_to_a(&Method::POST, &[site, part, ("origin", "null")]), foreign, "{site:?}");
            let visit = ("sec-fetch-mode", "navigate");
            assert!(!is_foreign_to_a(&Method::GET, &[site, visit]), "{site:?}");
            assert_eq!(is_foreign_to_a(&Method::POST, &[site, visit, ("origin", "null")]), foreign, "{site:?}");
        }
        assert!(!is_foreign_to_a(&Method::POST, &[]), "no browser");
    }
}
