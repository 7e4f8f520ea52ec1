//! The settings as the program uses them. Parsing happens once, here; an error names the variable.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use url::Url;

use super::settings::Settings;
use crate::domain::{
    api_key::ApiKey, durations, ids::ProjectId, project::is_image, signing::Secrets, sizes, storage::Storage,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddedOrUrl {
    Embedded { bin_dir: Option<PathBuf> },
    Url(String),
}

/// Where repositories live.
#[derive(Clone, PartialEq, Eq)]
pub enum GitHost {
    Embedded,
    /// Gitea or Forgejo.
    Gitea {
        url: Url,
        user: String,
        password: String,
        /// Whose the repositories are.
        owner: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCommands {
    Keep,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxChoice {
    Auto,
    Bwrap,
    Landlock,
    None,
}

/// The CI server, and a token of an account there.
#[derive(Clone, PartialEq, Eq)]
pub struct CiServer {
    pub url: Url,
    pub token: String,
}

/// Where commands run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeChoice {
    Local,
    /// Files that say where the cluster is, none for the service account of this pod; and the namespace.
    Kubernetes {
        kubeconfig: Vec<PathBuf>,
        namespace: String,
    },
}

/// Everything that the parts of the program that exist need to know.
#[derive(Clone)]
pub struct Config {
    pub database: EmbeddedOrUrl,
    pub listen: String,
    pub public_url: Option<String>,
    pub data_dir: PathBuf,
    pub runtime: RuntimeChoice,
    pub admin_key: Option<ApiKey>,
    pub rate_limit: u32,
    pub auth_failure_limit: u32,
    pub trusted_proxies: Vec<IpNet>,
    pub commands_per_project: i64,
    pub commands_per_session: i64,
    pub streams_per_key: i64,
    pub output_limit: u64,
    pub output_retention: Duration,
    pub kill_grace: Duration,
    pub drain: Duration,
    pub stop_commands: StopCommands,
    pub min_expires_in: Duration,
    pub preview_domain: Option<String>,
    /// A Service and an Ingress for each preview.
    pub preview_ingress: bool,
    /// Of projects made on a cluster that name none.
    pub pod_image: Option<String>,
    pub pod_storage: Option<Storage>,
    pub import_root: Option<PathBuf>,
    pub git_host: GitHost,
    pub ci: Option<CiServer>,
    pub command_env: Vec<(String, String)>,
    pub cors_origins: Vec<String>,
    pub sandbox: SandboxChoice,
    pub metrics_listen: Option<SocketAddr>,
    pub auto_migrate: bool,
    /// Base URLs of Ollama-compatible servers.
    pub upstreams: Vec<Url>,
    pub job_ttl: Duration,
    pub job_timeout: Duration,
    pub job_max_attempts: u32,
    /// Reviews where a project has no command for that.
    pub review_model: Option<String>,
    pub webhook_secrets: Option<Secrets>,
    pub webhook_backoff: Duration,
    pub egress_allow: Vec<IpNet>,
    /// Jobs that this process runs at once.
    pub workers: u32,
    pub log: String,
    pub log_json: Option<bool>,
    /// Where the server's programs are found, and the home that toolchains may lie under.
    pub path: String,
    pub home: Option<PathBuf>,
}

impl Config {
    /// # Errors
    /// One line that names the variable and says what would do.
    pub fn parse(settings: &Settings) -> Result<Self, String> {
        let s = Source(settings);
        check_later_parts(&s)?;
        Ok(Self {
            database: database(&s)?,
            listen: s.parsed("RDEV_LISTEN", "an address such as 127.0.0.1:8080", listen_address)?,
            public_url: s.optional("RDEV_PUBLIC_URL", "an http:// or https:// URL", base_url)?,
            data_dir: PathBuf::from(s.text("RDEV_DATA_DIR")),
            runtime: runtime(&s)?,
            admin_key: s.optional("RDEV_ADMIN_KEY", "a key as `rdev keys create` makes them", ApiKey::parse)?,
            rate_limit: s.number("RDEV_RATE_LIMIT")?,
            auth_failure_limit: s.number("RDEV_AUTH_FAILURE_LIMIT")?,
            trusted_proxies: s.list("RDEV_TRUSTED_PROXIES", "CIDRs such as 10.0.0.0/8, comma-separated", cidr)?,
            commands_per_project: s.number::<u32>("RDEV_COMMANDS_PER_PROJECT")?.into(),
            commands_per_session: s.number::<u32>("RDEV_COMMANDS_PER_SESSION")?.into(),
            streams_per_key: s.number::<u32>("RDEV_STREAMS_PER_KEY")?.into(),
            output_limit: s.parsed("RDEV_OUTPUT_LIMIT", "a size such as 64MiB", |t| sizes::parse_bytes(t).ok())?,
            output_retention: s.duration("RDEV_OUTPUT_RETENTION")?,
            kill_grace: s.duration("RDEV_KILL_GRACE")?,
            drain: s.duration("RDEV_DRAIN")?,
            stop_commands: s.parsed("RDEV_STOP_COMMANDS", "keep or end", |t| match t {
                "keep" => Some(StopCommands::Keep),
                "end" => Some(StopCommands::End),
                _ => None,
            })?,
            min_expires_in: s.duration("RDEV_MIN_EXPIRES_IN")?,
            preview_domain: s.optional("RDEV_PREVIEW_DOMAIN", "a domain such as preview.example.com", domain_name)?,
            preview_ingress: s.boolean("RDEV_PREVIEW_INGRESS")?,
            pod_image: s.optional(
                "RDEV_POD_IMAGE",
                "the name of an image, such as registry.example.com/tools:1",
                |t| is_image(t).then(|| t.to_owned()),
            )?,
            pod_storage: s.optional("RDEV_POD_STORAGE", "a size such as 10Gi, or class:10Gi", Storage::parse)?,
            import_root: s.optional("RDEV_IMPORT_ROOT", "a folder that exists", existing_folder)?,
            git_host: git_host(&s)?,
            ci: ci_server(&s)?,
            command_env: command_env(&s)?,
            cors_origins: s.list(
                "RDEV_CORS_ORIGINS",
                "origins such as https://app.example.com, comma-separated",
                origin,
            )?,
            sandbox: s.parsed("RDEV_LOCAL_SANDBOX", "auto, bwrap, landlock or none", |t| match t {
                "auto" => Some(SandboxChoice::Auto),
                "bwrap" => Some(SandboxChoice::Bwrap),
                "landlock" => Some(SandboxChoice::Landlock),
                "none" => Some(SandboxChoice::None),
                _ => None,
            })?,
            metrics_listen: s
                .optional("RDEV_METRICS_LISTEN", "an address such as 127.0.0.1:9090", |t| t.parse().ok())?,
            auto_migrate: s.boolean("RDEV_AUTO_MIGRATE")?,
            upstreams: s.list("RDEV_OLLAMA_URL", "http:// or https:// URLs, comma-separated", |t| {
                base_url(t).and_then(|url| Url::parse(&url).ok())
            })?,
            job_ttl: s.duration("RDEV_JOB_TTL")?,
            job_timeout: s.duration("RDEV_JOB_TIMEOUT")?,
            job_max_attempts: s
                .parsed("RDEV_JOB_MAX_ATTEMPTS", "a number from 1 on", |t| t.parse().ok().filter(|n| *n > 0))?,
            review_model: s.optional("RDEV_REVIEW_MODEL", "the name of a model, such as llama3:8b", |t| {
                let is_name = t.chars().all(|c| !c.is_whitespace() && !c.is_control());
                is_name.then(|| t.to_owned())
            })?,
            webhook_secrets: s.get("RDEV_WEBHOOK_SECRET").map(Secrets::parse).transpose()?,
            webhook_backoff: s.duration("RDEV_WEBHOOK_BACKOFF")?,
            egress_allow: s.list("RDEV_EGRESS_ALLOW", "CIDRs such as 10.0.0.0/8, comma-separated", cidr)?,
            workers: s.parsed("RDEV_WORKERS", "a whole number from 0 to 10000", |t| {
                t.parse().ok().filter(|n| *n <= 10_000)
            })?,
            log: s.parsed("RDEV_LOG", "a tracing filter such as info or rdev=debug", |t| {
                tracing_subscriber::EnvFilter::try_new(t).ok().map(|_| t.to_owned())
            })?,
            log_json: s.optional("RDEV_LOG_FORMAT", "pretty or json", |t| match t {
                "pretty" => Some(false),
                "json" => Some(true),
                _ => None,
            })?,
            path: server_variable("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned()),
            home: server_variable("HOME").map(PathBuf::from),
        })
    }
}

/// Settings of parts that are not in this program are parsed all the same: a typo is found at once.
fn check_later_parts(s: &Source) -> Result<(), String> {
    s.optional("OTEL_EXPORTER_OTLP_ENDPOINT", "an http:// or https:// URL", base_url)?;
    Ok(())
}

/// What a pod's service account is read from.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

fn runtime(s: &Source) -> Result<RuntimeChoice, String> {
    let namespace = s.parsed("RDEV_NAMESPACE", "a name of lower-case letters, digits and -", |t| {
        ProjectId::parse(t).ok().map(|_| t.to_owned())
    })?;
    let is_kubernetes = s.parsed("RDEV_RUNTIME", "local or kubernetes", |t| match t {
        "local" => Some(false),
        "kubernetes" => Some(true),
        _ => None,
    })?;
    if !is_kubernetes {
        return Ok(RuntimeChoice::Local);
    }
    let files = s.get("KUBECONFIG").unwrap_or_default().split(':').filter(|path| !path.is_empty());
    let kubeconfig: Vec<PathBuf> = files.map(PathBuf::from).collect();
    if let Some(missing) = kubeconfig.iter().find(|path| !path.is_file()) {
        return Err(format!("KUBECONFIG: not usable; there is no file {}", missing.display()));
    }
    let in_cluster = server_variable("KUBERNETES_SERVICE_HOST").is_some() && Path::new(SERVICE_ACCOUNT).is_file();
    if kubeconfig.is_empty() && !in_cluster {
        return Err("RDEV_RUNTIME: kubernetes needs KUBECONFIG, or to run in a pod with a service account".into());
    }
    Ok(RuntimeChoice::Kubernetes { kubeconfig, namespace })
}

fn database(s: &Source) -> Result<EmbeddedOrUrl, String> {
    let url = s.optional("DATABASE_URL", "a postgres:// URL", |t| {
        sqlx::postgres::PgConnectOptions::from_str(t).ok().filter(|_| t.starts_with("postgres")).map(|_| t.to_owned())
    })?;
    let bin_dir = s.optional("RDEV_POSTGRES_BIN_DIR", "a folder that exists", existing_folder)?;
    Ok(match url {
        Some(url) => EmbeddedOrUrl::Url(url),
        None => EmbeddedOrUrl::Embedded { bin_dir },
    })
}

/// What belongs to the other host is looked at all the same: a typo is found at once.
fn git_host(s: &Source) -> Result<GitHost, String> {
    let url = s.optional("RDEV_GITEA_URL", "an http:// or https:// URL", url_without_login)?;
    let name = |variable| s.optional(variable, "a name as the git host has them", account_name);
    let (user, owner) = (name("RDEV_GITEA_USER")?, name("RDEV_GITEA_OWNER")?);
    let is_gitea = s.parsed("RDEV_GIT_HOST", "embedded or gitea", |t| match t {
        "embedded" => Some(false),
        "gitea" => Some(true),
        _ => None,
    })?;
    if !is_gitea {
        return Ok(GitHost::Embedded);
    }
    let missing = |variable| move || format!("{variable}: needed with RDEV_GIT_HOST=gitea");
    let user = user.ok_or_else(missing("RDEV_GITEA_USER"))?;
    Ok(GitHost::Gitea {
        url: url.ok_or_else(missing("RDEV_GITEA_URL"))?,
        password: s.get("RDEV_GITEA_PASSWORD").map(str::to_owned).ok_or_else(missing("RDEV_GITEA_PASSWORD"))?,
        owner: owner.unwrap_or_else(|| user.clone()),
        user,
    })
}

/// With one of both alone there is none.
fn ci_server(s: &Source) -> Result<Option<CiServer>, String> {
    let url = s.optional("RDEV_WOODPECKER_URL", "an http:// or https:// URL without a login", url_without_login)?;
    let token = s.optional("RDEV_WOODPECKER_TOKEN", "a token as Woodpecker shows it", |t| {
        t.bytes().all(|b| b.is_ascii_graphic()).then(|| t.to_owned())
    })?;
    Ok(url.zip(token).map(|(url, token)| CiServer { url, token }))
}

fn url_without_login(text: &str) -> Option<Url> {
    let url = Url::parse(&base_url(text)?).ok()?;
    (url.username().is_empty() && url.password().is_none()).then_some(url)
}

/// Of a user or an organisation.
fn account_name(text: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let sound = text.bytes().all(plain) && !text.starts_with('.') && !text.is_empty();
    sound.then(|| text.to_owned())
}

fn command_env(s: &Source) -> Result<Vec<(String, String)>, String> {
    let names = s.list("RDEV_COMMAND_ENV", "names of variables, comma-separated", |name| {
        is_variable_name(name).then(|| name.to_owned())
    })?;
    Ok(names.into_iter().filter_map(|name| server_variable(&name).map(|value| (name, value))).collect())
}

fn server_variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn existing_folder(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_dir())
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.as_bytes()[0].is_ascii_digit()
}

fn listen_address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let is_host =
        host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'[' | b']' | b':' | b'_'));
    if !is_host {
        return None;
    }
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    Some(format!("{host}:{port}"))
}

fn base_url(text: &str) -> Option<String> {
    let uri: http::Uri = text.parse().ok()?;
    let usable = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none();
    usable.then(|| text.trim_end_matches('/').to_owned())
}

fn origin(text: &str) -> Option<String> {
    base_url(text).filter(|url| url.matches('/').count() == 2)
}

fn domain_name(text: &str) -> Option<String> {
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    text.split('.').all(label).then(|| text.to_ascii_lowercase())
}

fn cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

struct Source<'a>(&'a Settings);

impl Source<'_> {
    fn text(&self, variable: &str) -> &str {
        self.get(variable).unwrap_or("")
    }

    /// `None` where it is unset.
    fn get(&self, variable: &str) -> Option<&str> {
        self.0.get(variable).filter(|text| !text.is_empty())
    }

    fn parsed<T>(&self, variable: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        parse(self.text(variable).trim()).ok_or_else(|| format!("{variable}: not usable; it must be {wanted}"))
    }

    fn optional<T>(
        &self,
        variable: &str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.0.get(variable) {
            None | Some("") => Ok(None),
            Some(_) => self.parsed(variable, wanted, parse).map(Some),
        }
    }

    fn list<T>(&self, variable: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
        let items = self.text(variable).split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(|item| parse(item).ok_or_else(|| format!("{variable}: not usable; it must be {wanted}"))).collect()
    }

    fn number<T: FromStr>(&self, variable: &str) -> Result<T, String> {
        self.parsed(variable, "a whole number, 0 or more", |t| t.parse().ok())
    }

    fn boolean(&self, variable: &str) -> Result<bool, String> {
        self.parsed(variable, "true or false", |t| match t {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        })
    }

    fn duration(&self, variable: &str) -> Result<Duration, String> {
        self.parsed(variable, "a duration such as 30s, 2h45m or 7d", |t| durations::parse_positive(t).ok())
    }
}
