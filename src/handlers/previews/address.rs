//! Which session's preview a request is for: by its host, an origin for each session, or by
//! its path where there is no domain for previews. A host under that domain never reaches the
//! API, and the API's own host is never a preview.

use std::net::IpAddr;

use http::{HeaderMap, Request, Uri, header, uri::Authority};
use url::Url;
use uuid::Uuid;

use crate::{
    domain::ids,
    error::{Error, Result},
};

const ROOT: &str = "/preview/";

/// Where previews are.
#[derive(Clone)]
pub struct Addresses {
    /// `None`: previews are paths of the API's own origin.
    domain: Option<String>,
    /// The API's, in lower case.
    host: String,
    /// What a proxy takes away in front of the server's paths.
    base: String,
    /// Where the public URL names one.
    port: Option<u16>,
    is_https: bool,
}

/// A request for a preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub session: Uuid,
    /// As the client sent it.
    pub host: String,
    /// In the form by path: what clients have before the program's own paths.
    pub prefix: Option<String>,
    /// As the program is asked.
    pub target: String,
    /// The preview's root without its slash: it has relative links.
    pub lacks_slash: bool,
}

impl Addresses {
    pub fn new(public_url: &str, domain: Option<String>) -> Self {
        let uri: Uri = public_url.parse().unwrap_or_default();
        Self {
            domain,
            host: uri.host().unwrap_or_default().to_ascii_lowercase(),
            base: uri.path().trim_end_matches('/').to_owned(),
            port: uri.port_u16(),
            is_https: uri.scheme_str() == Some("https"),
        }
    }

    /// Whether each preview has an origin of its own.
    pub fn are_origins(&self) -> bool {
        self.domain.is_some()
    }

    /// As clients speak with it.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether a URL is of this preview's own origin: as the client asked for it, or as it is
    /// published, which a proxy may have made another port of.
    pub fn is_own(&self, asked: &Asked, url: &Url) -> bool {
        let Some(domain) = self.domain.as_deref().filter(|_| asked.prefix.is_none()) else { return false };
        let is_at = |authority: &str| {
            let own = Url::parse(&format!("{}://{authority}", url.scheme()));
            own.is_ok_and(|own| own.origin().is_tuple() && own.origin() == url.origin())
        };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let may_be = if self.is_https { url.scheme() == "https" } else { matches!(url.scheme(), "http" | "https") };
        may_be && (is_at(&asked.host) || is_at(&format!("{}.{domain}{port}", asked.session)))
    }

    /// `http` or `https`, as the client spoke: said by a trusted proxy, else as the public URL has
    /// it. What is in front of the server there is not known, and no client has a say in it.
    pub fn scheme(&self, peer: Option<IpAddr>, headers: &HeaderMap, trusted: &[ipnet::IpNet]) -> &'static str {
        let peer = peer.map(|address| address.to_canonical());
        if !peer.is_some_and(|peer| trusted.iter().any(|net| net.contains(&peer))) {
            return if self.is_https { "https" } else { "http" };
        }
        let said = headers.get_all("x-forwarded-proto").iter().next_back().and_then(|value| value.to_str().ok());
        let nearest = said.and_then(|said| said.rsplit(',').next()).map(str::trim);
        if nearest.is_some_and(|nearest| nearest.eq_ignore_ascii_case("https")) { "https" } else { "http" }
    }

    /// Whether this is the host of a preview.
    fn is_preview_host(&self, host: &str) -> bool {
        let Some(domain) = &self.domain else { return false };
        host != self.host && host.strip_suffix(domain.as_str()).is_some_and(|label| label.ends_with('.'))
    }

    /// `None`: the request is the API's.
    ///
    /// # Errors
    /// Not found where no session can be there; 400 where the request names two hosts.
    pub fn of<B>(&self, request: &Request<B>) -> Result<Option<Asked>> {
        match &self.domain {
            Some(domain) => self.by_host(domain, request),
            None => self.by_path(request),
        }
    }

    fn by_host<B>(&self, domain: &str, request: &Request<B>) -> Result<Option<Asked>> {
        let mut said = authorities(request);
        let Some(first) = said.next() else { return Ok(None) };
        let host = name(&first);
        let others: Vec<String> = said.map(|authority| name(&authority)).collect();
        if !self.is_preview_host(&host) && !others.iter().any(|other| self.is_preview_host(other)) {
            return Ok(None);
        }
        if others.iter().any(|other| *other != host) {
            return Err(Error::invalid("the request names two hosts"));
        }
        let label = host.strip_suffix(domain).and_then(|label| label.strip_suffix('.')).unwrap_or_default();
        Ok(Some(Asked {
            session: ids::uuid_from_path(label).ok_or_else(missing)?,
            host: spoken(&first),
            prefix: None,
            target: target(request.uri(), request.uri().path()),
            lacks_slash: false,
        }))
    }

    fn by_path<B>(&self, request: &Request<B>) -> Result<Option<Asked>> {
        let Some(below) = request.uri().path().strip_prefix(ROOT) else { return Ok(None) };
        let (session, path) = below.split_once('/').map_or((below, None), |(session, path)| (session, Some(path)));
        let id = ids::uuid_from_path(session).ok_or_else(missing)?;
        Ok(Some(Asked {
            session: id,
            host: authorities(request).next().as_ref().map(spoken).unwrap_or_default(),
            prefix: Some(format!("{}{ROOT}{session}", self.base)),
            target: target(request.uri(), &format!("/{}", path.unwrap_or_default())),
            lacks_slash: path.is_none(),
        }))
    }
}

fn missing() -> Error {
    Error::not_found("session not found")
}

/// Every place in which a request says whom it is for.
fn authorities<B>(request: &Request<B>) -> impl Iterator<Item = Authority> + '_ {
    let said = request.headers().get_all(header::HOST).iter();
    let said = said.filter_map(|value| value.to_str().ok()?.parse().ok());
    request.uri().authority().cloned().into_iter().chain(said)
}

/// Without port and final dots.
fn name(authority: &Authority) -> String {
    authority.host().trim_end_matches('.').to_ascii_lowercase()
}

/// As it was said, without a user.
fn spoken(authority: &Authority) -> String {
    authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
}

fn target(uri: &Uri, path: &str) -> String {
    let path = if path.starts_with('/') || path == "*" { path } else { "/" };
    match uri.query() {
        None => path.to_owned(),
        Some(query) => format!("{path}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SID: &str = "01890000-0000-7000-8000-000000000000";

    fn asked(public: &str, domain: Option<&str>, host: &str, uri: &str) -> Result<Option<Asked>> {
        let request = Request::builder().uri(uri).header("host", host).body(()).unwrap();
        Addresses::new(public, domain.map(str::to_owned)).of(&request)
    }

    fn local(host: &str, uri: &str) -> Result<Option<Asked>> {
        asked("http://127.0.0.1:8080", Some("localhost"), host, uri)
    }

    #[test]
    fn a_session_is_named_by_its_host() {
        for host in [
            format!("{SID}.localhost:8080"),
            format!("{SID}.LOCALHOST"),
            format!("{SID}.localhost.:1"),
            format!("{SID}.localhost.."),
        ] {
            let asked = local(&host, "/a//b?c").unwrap().unwrap();
            assert_eq!((asked.session.to_string().as_str(), asked.target.as_str()), (SID, "/a//b?c"));
            assert_eq!((asked.host, asked.prefix), (host, None));
        }
    }

    #[test]
    fn a_host_under_the_domain_never_reaches_the_api() {
        let nested = format!("x.{SID}.localhost");
        let two_dots = format!("{SID}..localhost");
        for host in
            ["x.localhost", "a.b.localhost:80", &nested, &two_dots, ".localhost", "x.localhost..", "x.localhost..:1"]
        {
            let refused = local(host, "/projects").map(|asked| asked.is_some());
            assert!(refused.is_err(), "{host}");
        }
        assert!(local("127.0.0.1:8080", &format!("http://{SID}.localhost/")).is_err(), "two hosts");
    }

    #[test]
    fn the_apis_hosts_are_never_a_preview() {
        for host in ["127.0.0.1:8080", "localhost:8080", "notlocalhost", &format!("{SID}.localhost.example.com")] {
            assert_eq!(local(host, &format!("/preview/{SID}/")).unwrap(), None, "{host}");
        }
        let own = asked("https://rdev.example.com", Some("example.com"), "rdev.example.com", "/projects").unwrap();
        assert_eq!(own, None, "the public host is the API's also where it lies under the domain");
    }

    #[test]
    fn without_a_domain_a_session_is_named_by_its_path() {
        let by = |uri: &str| asked("https://e.org/rdev", None, "e.org", uri);
        let prefix = Some(format!("/rdev/preview/{SID}"));
        let whole = by(&format!("/preview/{SID}//a/../b?c")).unwrap().unwrap();
        assert_eq!((whole.target.as_str(), whole.prefix, whole.lacks_slash), ("//a/../b?c", prefix, false));
        assert!(by(&format!("/preview/{SID}")).unwrap().unwrap().lacks_slash);
        assert!(by("/preview/x/").is_err());
        assert_eq!(by("/previews").unwrap(), None);
    }

    #[test]
    fn only_a_trusted_proxy_says_how_the_client_spoke() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for (public, otherwise) in [("http://e.org", "http"), ("https://e.org", "https")] {
            let addresses = Addresses::new(public, Some("e.org".to_owned()));
            for said in ["http", "https"] {
                let mut headers = HeaderMap::new();
                headers.append("x-forwarded-proto", format!("gopher, {said}").parse().unwrap());
                assert_eq!(addresses.scheme("10.1.1.1".parse().ok(), &headers, &trusted), said);
                assert_eq!(addresses.scheme("192.0.2.1".parse().ok(), &headers, &trusted), otherwise);
                assert_eq!(addresses.scheme(None, &headers, &trusted), otherwise);
            }
        }
    }
}
