//! `rdev keys create|list|revoke`: for operators on the machine, straight on the database,
//! beside a running server too.

use clap::{Arg, ArgAction, ArgMatches, Command};
use uuid::Uuid;

use super::{block_on, serve};
use crate::{
    app::{self, Why},
    config::{Config, EmbeddedOrUrl, Settings},
    database::{Db, Embedded},
    domain::{clock::Clock, durations::ExpiresIn, key::Key, scopes::ScopeSet},
    error::{Error, Kind},
    metrics::Metrics,
    queue::{Lease, Queue},
    services::{
        keys::{Keys, NewKey},
        receipts::Answer,
    },
};

pub fn command() -> Command {
    let settings = |name: &'static str, about: &'static str| {
        let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON");
        Command::new(name).about(about).arg(json).args(Settings::flags().into_iter().map(|arg| arg.hide(true)))
    };
    let list = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_delimiter(',').help(help);
    let create = settings("create", "Make a key and print its secret, this once")
        .arg(Arg::new("name").long("name").required(true).help("What it is for"))
        .arg(list("scopes", "Scopes, comma-separated").required(true))
        .arg(list("projects", "Projects it is bound to, comma-separated; none: all"))
        .arg(Arg::new("expires-in").long("expires-in").help("How long it lives, such as 7d; default: for ever"));
    Command::new("keys")
        .about("Make, list and revoke API keys, on this machine's database")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(create)
        .subcommand(settings("list", "List keys"))
        .subcommand(settings("revoke", "Revoke a key").arg(Arg::new("id").required(true).help("The key's id")))
}

pub fn run(matches: &ArgMatches) -> Result<(), Why> {
    let (name, flags) = matches.subcommand().expect("clap asks for a subcommand");
    let settings = Settings::load(flags).map_err(Why::Setting)?;
    let config = Config::parse(&settings).map_err(Why::Setting)?;
    let json = flags.get_flag("json");
    block_on(async move {
        let opened = Opened::open(&config).await?;
        let done = match name {
            "create" => create(&opened.keys, flags, json).await,
            "list" => list(&opened.keys, json).await,
            _ => revoke(&opened.keys, flags, json).await,
        };
        opened.close().await;
        done
    })
}

async fn create(keys: &Keys, flags: &ArgMatches, json: bool) -> Result<(), Why> {
    let words = |name: &str| flags.get_many::<String>(name).map(|words| words.cloned().collect::<Vec<_>>());
    let scopes = words("scopes").unwrap_or_default();
    let scopes =
        ScopeSet::from_names(scopes.iter().map(String::as_str)).map_err(|error| Why::Setting(error.to_string()))?;
    let expires_in =
        flags.get_one::<String>("expires-in").map(|text| ExpiresIn::parse(text, std::time::Duration::ZERO));
    let new = NewKey {
        name: flags.get_one::<String>("name").cloned().unwrap_or_default(),
        scopes,
        project_ids: words("projects"),
        allowed_cidrs: None,
        rate_limit: None,
        expires_in: expires_in.transpose().map_err(|error| Why::Setting(error.to_string()))?,
    };
    let minted = keys.create(&operator(), new, &Answer::none()).await.map_err(refused)?;
    if json {
        println!(
            "{}",
            serde_json::json!({"id": minted.key.id, "name": minted.key.name, "key": minted.secret.expose()})
        );
    } else {
        println!("{}", minted.secret.expose());
    }
    Ok(())
}

async fn list(keys: &Keys, json: bool) -> Result<(), Why> {
    let mut before = None;
    loop {
        let page = keys.page(&operator(), before, 200).await.map_err(failed)?;
        for key in &page {
            let state = if key.is_live(Clock::System.now()) { "live" } else { "ended" };
            if json {
                println!(
                    "{}",
                    serde_json::json!({"id": key.id, "name": key.name, "prefix": key.prefix, "scopes": key.scopes.names(), "status": state})
                );
            } else {
                println!("{}  {}  {state:5}  {:30}  {}", key.id, key.prefix, key.scopes.names().join(","), key.name);
            }
        }
        before = page.last().map(|key| key.id);
        if page.len() < 200 {
            return Ok(());
        }
    }
}

async fn revoke(keys: &Keys, flags: &ArgMatches, json: bool) -> Result<(), Why> {
    let text = flags.get_one::<String>("id").map_or("", String::as_str);
    let id: Uuid =
        text.parse().map_err(|_| Why::Setting(format!("{text} is no id of a key; `rdev keys list` shows them")))?;
    keys.revoke(&operator(), id).await.map_err(failed)?;
    if json {
        println!("{}", serde_json::json!({"status": "revoked", "id": id}));
    } else {
        println!("revoked {id}");
    }
    Ok(())
}

/// Whoever can reach the database may do anything.
fn operator() -> Key {
    Key {
        id: Uuid::nil(),
        name: "operator".into(),
        prefix: String::new(),
        scopes: ScopeSet::from_iter([crate::domain::scopes::Scope::Admin]),
        project_ids: None,
        allowed_cidrs: None,
        rate_limit: None,
        created_at: Clock::System.now(),
        expires_at: None,
        previous_expires_at: None,
        last_used_at: None,
        revoked_at: None,
    }
}

/// What was asked for cannot be: wrong use.
fn refused(error: Error) -> Why {
    match error.kind() {
        Kind::Invalid => Why::Setting(error.message().to_owned()),
        _ => failed(error),
    }
}

fn failed(error: Error) -> Why {
    Why::Failed(error.to_string())
}

/// The keys of a server that runs, or of its database while it does not.
struct Opened {
    keys: Keys,
    started: Option<app::Attached>,
}

impl Opened {
    async fn open(config: &Config) -> Result<Self, Why> {
        let (db, started) = match Self::beside_a_server(config)? {
            Some(db) => (db, None),
            None => {
                let attached = serve::attach(config).await?;
                (attached.db.clone(), Some(attached))
            }
        };
        let (queue, _nothing_ends_here) = Queue::new(db.clone(), Lease::new(0), Metrics::new());
        Ok(Self { keys: Keys::new(db, Clock::System, queue, config.admin_key.clone()), started })
    }

    /// The embedded database of a server that runs on the data directory.
    fn beside_a_server(config: &Config) -> Result<Option<Db>, Why> {
        let EmbeddedOrUrl::Embedded { .. } = config.database else { return Ok(None) };
        let data_dir = app::open_data_dir(config)?;
        let info = Embedded::join(&data_dir.postgres()).map_err(Why::Failed)?;
        Ok(info.map(|info| Db::new(app::options_of(&info), 2)))
    }

    async fn close(self) {
        if let Some(attached) = self.started {
            attached.stop().await;
        }
    }
}
