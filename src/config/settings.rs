//! The table of settings and the overlay of their four sources. Values are texts here.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use clap::{Arg, ArgAction, ArgMatches};

/// One row of the table in the README.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable. The flag and the key of the file follow from it.
    pub variable: &'static str,
    /// `None`: unset unless given.
    pub default: Option<&'static str>,
    pub secret: bool,
    pub help: &'static str,
}

const fn plain(variable: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { variable, default: Some(default), secret: false, help }
}

const fn unset(variable: &'static str, help: &'static str) -> Setting {
    Setting { variable, default: None, secret: false, help }
}

const fn secret(variable: &'static str, help: &'static str) -> Setting {
    Setting { variable, default: None, secret: true, help }
}

pub static SETTINGS: &[Setting] = &[
    secret("DATABASE_URL", "PostgreSQL 15 or newer; unset: an embedded server under the data directory"),
    unset("RDEV_POSTGRES_BIN_DIR", "where initdb and postgres are, for the embedded server"),
    plain("RDEV_LISTEN", "127.0.0.1:8080", "address to serve on; port 0 picks one"),
    unset("RDEV_PUBLIC_URL", "the URL that clients use; default: from the listen address"),
    plain("RDEV_DATA_DIR", "./.rdev", "embedded database, repositories, workspaces"),
    secret("RDEV_ADMIN_KEY", "a bootstrap admin key, accepted while set"),
    plain("RDEV_RUNTIME", "local", "where commands run: local or kubernetes"),
    unset("KUBECONFIG", "the cluster, with the kubernetes runtime; unset: the pod's service account"),
    plain("RDEV_NAMESPACE", "rdev", "namespace of project pods"),
    unset("RDEV_POD_IMAGE", "image of the pods that are made for projects on a cluster"),
    unset("RDEV_POD_STORAGE", "a volume for their workspaces, such as 10Gi or class:10Gi"),
    plain("RDEV_GIT_HOST", "embedded", "git host: embedded or gitea"),
    unset("RDEV_GITEA_URL", "Gitea or Forgejo: its URL"),
    unset("RDEV_GITEA_USER", "Gitea or Forgejo: the account that is rdev's alone"),
    secret("RDEV_GITEA_PASSWORD", "Gitea or Forgejo: password"),
    unset("RDEV_GITEA_OWNER", "Gitea or Forgejo: owner of the repositories; default: the account"),
    unset("RDEV_OLLAMA_URL", "upstream for jobs and chat, or several, comma-separated"),
    plain("RDEV_JOB_TTL", "72h", "how long an ended job is kept"),
    plain("RDEV_JOB_TIMEOUT", "30m", "deadline of one attempt of a job"),
    plain("RDEV_JOB_MAX_ATTEMPTS", "3", "failures after which a job has failed for good"),
    secret("RDEV_WEBHOOK_SECRET", "HMAC key for webhooks, or two, comma-separated"),
    plain("RDEV_WEBHOOK_BACKOFF", "1s", "delay before the first retry of a webhook"),
    plain("RDEV_EGRESS_ALLOW", "", "CIDRs that webhooks and saga steps may reach although private"),
    plain("RDEV_WORKERS", "4", "jobs run at once by this process"),
    plain("RDEV_RATE_LIMIT", "100", "requests a minute a key; 0: off"),
    plain("RDEV_AUTH_FAILURE_LIMIT", "20", "failed authentications a minute an address; 0: off"),
    plain("RDEV_TRUSTED_PROXIES", "", "CIDRs whose X-Forwarded-For and -Proto are believed"),
    plain("RDEV_COMMANDS_PER_PROJECT", "16", "commands running at once in a project; 0: no quota"),
    plain("RDEV_COMMANDS_PER_SESSION", "8", "commands running at once in a session; 0: no quota"),
    plain("RDEV_STREAMS_PER_KEY", "64", "streams open at once by a key; 0: no quota"),
    plain("RDEV_OUTPUT_LIMIT", "64MiB", "stored output of a command; 0: no limit"),
    plain("RDEV_OUTPUT_RETENTION", "7d", "how long output is kept"),
    plain("RDEV_KILL_GRACE", "5s", "time from TERM to KILL"),
    plain("RDEV_DRAIN", "30s", "time for requests under way at an orderly stop"),
    plain("RDEV_STOP_COMMANDS", "keep", "keep or end commands at an orderly stop"),
    plain("RDEV_MIN_EXPIRES_IN", "1m", "shortest life of a checkout or session"),
    unset(
        "RDEV_PREVIEW_DOMAIN",
        "previews at <session>.<domain>; default: localhost when the public URL is on loopback",
    ),
    unset("RDEV_REVIEW_MODEL", "model that reviews where a project has no review_command"),
    unset("RDEV_IMPORT_ROOT", "folder under which file:// imports are allowed"),
    plain(
        "RDEV_COMMAND_ENV",
        "RUSTUP_HOME,RUSTUP_TOOLCHAIN,JAVA_HOME,GOROOT",
        "variables of the server's that local commands get",
    ),
    plain("RDEV_CORS_ORIGINS", "", "origins whose pages may call the API"),
    plain("RDEV_LOCAL_SANDBOX", "auto", "auto, bwrap, landlock or none"),
    unset("RDEV_METRICS_LISTEN", "a listener of its own for /metrics"),
    plain("RDEV_AUTO_MIGRATE", "true", "migrate at the start"),
    plain("RDEV_PREVIEW_INGRESS", "false", "on a cluster: a Service and an Ingress for each preview"),
    unset("RDEV_WOODPECKER_URL", "CI server for pipeline retry"),
    secret("RDEV_WOODPECKER_TOKEN", "CI server: token"),
    plain("RDEV_LOG", "info", "tracing filter"),
    unset("RDEV_LOG_FORMAT", "pretty or json; default: json when stdout is no terminal"),
    unset("OTEL_EXPORTER_OTLP_ENDPOINT", "traces are exported there when set"),
];

/// Names that are not settings of the server and no mistake either.
const FOREIGN: &[&str] = &[
    "RDEV_CONFIG",
    "RDEV_URL",
    "RDEV_TOKEN",
    "RDEV_PROJECT_ID",
    "RDEV_COMMAND_ID",
    "RDEV_SESSION_ID",
    "RDEV_BRANCH",
    "RDEV_BASE",
    "RDEV_HEAD_SHA",
    "RDEV_FEATURE_SLUG",
];
const FOREIGN_PREFIXES: &[&str] = &["RDEV_TEST_", "RDEV_BENCH_", "RDEV_CLUSTER_", "RDEV_SERVICE_", "RDEV_PORT"];

impl Setting {
    /// `rate_limit` of `RDEV_RATE_LIMIT`.
    pub fn key(&self) -> String {
        self.variable.strip_prefix("RDEV_").unwrap_or(self.variable).to_ascii_lowercase()
    }

    /// What is in force while it is unset.
    fn otherwise(&self) -> &'static str {
        match self.variable {
            "DATABASE_URL" => "unset: an embedded server",
            "KUBECONFIG" => "unset: the service account",
            "RDEV_PUBLIC_URL" => "unset: from the listen address",
            "RDEV_PREVIEW_DOMAIN" => "unset: localhost when the public URL is on loopback",
            "RDEV_LOG_FORMAT" => "unset: json when stdout is no terminal",
            "RDEV_POSTGRES_BIN_DIR" => "unset: found",
            "RDEV_GITEA_OWNER" => "unset: the account",
            _ => "unset",
        }
    }

    /// `rate-limit` of `RDEV_RATE_LIMIT`.
    pub fn flag(&self) -> String {
        self.key().replace('_', "-")
    }
}

/// A password in a URL is a secret, whichever setting it is in.
fn without_user_info(value: &str) -> String {
    let masked = value.split(',').map(|part| match part.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit_once('@').map_or(authority.to_owned(), |(_, host)| format!("********@{host}"));
            format!("{scheme}://{host}{path}")
        }
        None => part.to_owned(),
    });
    masked.collect::<Vec<_>>().join(",")
}

/// Texts in force, and where each came from.
pub struct Settings {
    values: BTreeMap<&'static str, (String, String)>,
}

impl Settings {
    /// The flags, one for each setting, plus `--config`.
    pub fn flags() -> Vec<Arg> {
        let file =
            Arg::new("config").long("config").value_name("FILE").help("TOML file with settings [env: RDEV_CONFIG]");
        let settings = SETTINGS.iter().map(|setting| {
            let default = setting.default.filter(|d| !d.is_empty());
            let shown = default.map(|d| format!(" [default: {d}]")).unwrap_or_default();
            Arg::new(setting.variable)
                .long(setting.flag())
                .value_name("VALUE")
                .action(ArgAction::Set)
                .help(format!("{} [env: {}]{shown}", setting.help, setting.variable))
        });
        std::iter::once(file).chain(settings).collect()
    }

    /// Overlays flags, the process environment, the file and the defaults.
    ///
    /// # Errors
    /// One line that names the setting at fault.
    pub fn load(flags: &ArgMatches) -> Result<Self, String> {
        #[expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
        let environment: Vec<_> = std::env::vars_os().collect();
        let environment = readable(environment)?;
        let given = SETTINGS
            .iter()
            .filter_map(|s| Some((s.variable, flags.try_get_one::<String>(s.variable).ok()??.clone())))
            .collect();
        let config = flags.try_get_one::<String>("config").ok().flatten();
        Self::overlay(&given, &environment, config.or(environment.get("RDEV_CONFIG")).map(Path::new))
    }

    /// The overlay itself, its sources handed in.
    ///
    /// # Errors
    /// One line that names the setting at fault.
    pub fn overlay(
        flags: &BTreeMap<&'static str, String>,
        environment: &BTreeMap<String, String>,
        file: Option<&Path>,
    ) -> Result<Self, String> {
        refuse_unknown_variables(environment)?;
        let from_file = file.map(read_file).transpose()?.unwrap_or_default();
        let mut values = BTreeMap::new();
        for setting in SETTINGS {
            let found = match flags.get(setting.variable) {
                Some(value) => Some((value.clone(), format!("flag --{}", setting.flag()))),
                None => from_environment(setting, environment)?,
            };
            let found = found.or_else(|| from_file.get(&setting.key()).map(|v| (v.clone(), "file".to_owned())));
            let found = found.or_else(|| setting.default.map(|d| (d.to_owned(), "default".to_owned())));
            values.extend(found.map(|entry| (setting.variable, entry)));
        }
        Ok(Self { values })
    }

    /// The text in force; `None` for unset.
    pub fn get(&self, variable: &str) -> Option<&str> {
        self.values.get(variable).map(|(value, _)| value.as_str())
    }

    /// Lines of `variable = value  # source`, secrets masked.
    pub fn describe(&self) -> Vec<(&'static str, String, String)> {
        SETTINGS
            .iter()
            .map(|setting| match self.values.get(setting.variable) {
                None => (setting.variable, String::new(), setting.otherwise().to_owned()),
                Some((_, source)) if setting.secret => (setting.variable, "********".to_owned(), source.clone()),
                Some((value, source)) => (setting.variable, without_user_info(value), source.clone()),
            })
            .collect()
    }
}

fn from_environment(
    setting: &Setting,
    environment: &BTreeMap<String, String>,
) -> Result<Option<(String, String)>, String> {
    if let Some(value) = environment.get(setting.variable) {
        return Ok(Some((value.clone(), format!("environment {}", setting.variable))));
    }
    let name = format!("{}_FILE", setting.variable);
    let Some(path) = environment.get(&name).filter(|_| setting.secret) else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: cannot read {path}: {error}"))?;
    let text = text.trim_end_matches(['\n', '\r']).to_owned();
    Ok(Some((text, format!("file {path}"))).filter(|(text, _)| !text.is_empty()))
}

/// What is set, as texts. An empty variable counts as unset; one of ours that is no text is an error.
fn readable(environment: Vec<(OsString, OsString)>) -> Result<BTreeMap<String, String>, String> {
    let mut texts = BTreeMap::new();
    for (name, value) in environment {
        let ours = name.to_string_lossy().starts_with("RDEV_") || name == "DATABASE_URL";
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) if !value.is_empty() => drop(texts.insert(name, value)),
            (Ok(_), Ok(_)) => {}
            (name, _) if ours => {
                let name = name.unwrap_or_else(|name| name.to_string_lossy().into_owned());
                return Err(format!("{name}: name or value is not UTF-8 text"));
            }
            _ => {}
        }
    }
    Ok(texts)
}

fn refuse_unknown_variables(environment: &BTreeMap<String, String>) -> Result<(), String> {
    let known = |name: &str| {
        SETTINGS.iter().any(|s| s.variable == name || (s.secret && name.strip_suffix("_FILE") == Some(s.variable)))
            || FOREIGN.contains(&name)
            || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    match environment.keys().find(|name| name.starts_with("RDEV_") && !known(name)) {
        Some(name) => Err(format!("{name}: unknown setting; `rdev config` lists those there are")),
        None => Ok(()),
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("RDEV_CONFIG: {shown}: {error}"))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| format!("RDEV_CONFIG: {shown}: {}", error.to_string().replace('\n', " ")))?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        if !SETTINGS.iter().any(|setting| setting.key() == key) {
            return Err(format!("RDEV_CONFIG: {shown}: {key}: unknown setting; `rdev config` lists those there are"));
        }
        let text = as_text(&value).ok_or_else(|| {
            format!("RDEV_CONFIG: {shown}: {key}: a text, number, boolean or list of these is needed")
        })?;
        if !text.is_empty() {
            values.insert(key, text);
        }
    }
    Ok(values)
}

fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => items.iter().map(as_text).collect::<Option<Vec<_>>>().map(|list| list.join(",")),
        _ => None,
    }
}
