//! What containers are told: which script with which words. Nothing here is sent.

use std::time::Duration;

use super::payload::{self, Payload};
use crate::{
    domain::command::{EndAsked, Launch},
    error::{Error, Result},
    runtime::{Handle, Run},
};

/// Longer scripts are put into a file: they are one argument, which has a greatest length.
const SCRIPT_INLINE: usize = 100_000;

/// What all orders of an installation have in common.
pub struct Orders {
    /// The folder of this installation in every container.
    pub root: String,
    pub kill_grace: Duration,
    pub output_limit: u64,
}

impl Orders {
    fn about(&self, key: i64) -> Payload {
        Payload::new().set("rdev_root", &self.root).set("rdev_key", &key.to_string()).script(payload::OURS)
    }

    pub fn prepare(workspace: &str) -> Payload {
        Payload::new().set("rdev_workspace", workspace).script(payload::PREPARE)
    }

    /// Removes what is ours of the workspace.
    pub fn remove(workspace: &str) -> Payload {
        Payload::new().words([format!("{workspace}/.rdev").as_str()]).script("rm -rf -- \"$1\"\n")
    }

    pub fn outside(root: &str, below: &str) -> Payload {
        Payload::new().set("rdev_whole", root).set("rdev_below", below).script(payload::OUTSIDE)
    }

    pub fn run(run: &Run, common: &[(String, String)]) -> Payload {
        let mut payload = Payload::new()
            .set("rdev_limit", &run.timeout.as_secs().max(1).to_string())
            .set("rdev_cwd", &run.cwd)
            .set("rdev_in", &String::from_utf8_lossy(&run.stdin));
        for (name, value) in common.iter().chain(&run.env) {
            payload = payload.export(name, value);
        }
        payload.words(run.argv.iter().map(String::as_str)).script(payload::RUN)
    }

    /// `left`: how long it may still run; nothing: it may not begin any more.
    ///
    /// # Errors
    /// A variable that no shell can set.
    pub fn launch(
        &self,
        handle: &Handle,
        launch: &Launch,
        common: &[(String, String)],
        left: Duration,
    ) -> Result<Payload> {
        if let Some(name) = launch.env.keys().find(|name| !payload::is_variable_name(name)) {
            return Err(Error::invalid(format!("the variable {name} cannot be set in a pod")));
        }
        let mut payload = self.about(handle.key);
        let mut argv = launch.argv.clone();
        if let [shell, flag, script] = &launch.argv[..]
            && shell == "sh"
            && flag == "-c"
            && script.len() >= SCRIPT_INLINE
        {
            payload = payload.set("rdev_script", script);
            argv = vec!["sh".into(), format!("{}/commands/{}/script", self.root, handle.key)];
        }
        let common = common.iter().filter(|(name, _)| !launch.env.contains_key(name));
        let env = common.map(|(name, value)| (name.as_str(), value.as_str()));
        let own = launch.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let words = argv.iter().map(|word| payload::quote(word)).collect::<Vec<_>>().join(" ");
        let argv = format!("cd -- {} || exit 127\nset -- {words}", payload::quote(&launch.cwd));
        Ok(payload
            .set("rdev_env", &payload::exports(env.chain(own)))
            .set("rdev_argv", &argv)
            .set("rdev_vars", &self.variables(launch, left))
            .set("rdev_in", launch.stdin.as_deref().unwrap_or_default())
            .set("rdev_in_time", if left.is_zero() { "no" } else { "yes" })
            .set("rdev_ours", payload::OURS)
            .set("rdev_supervise", payload::SUPERVISE)
            .set("rdev_child", payload::CHILD)
            .script(payload::LAUNCH))
    }

    /// What the supervisor has to know; times in hundredths of a second.
    fn variables(&self, launch: &Launch, left: Duration) -> String {
        let mark = |name: &str| payload::quote(&format!("{name}={}", launch.env.get(name).map_or("", String::as_str)));
        [
            format!("rdev_limit={}", self.output_limit),
            format!("rdev_grace={}", self.kill_grace.as_millis() / 10),
            format!("rdev_timeout={}", left.as_millis() / 10),
            format!("rdev_stdin={}", if launch.stdin.is_some() { "in" } else { "/dev/null" }),
            format!("rdev_mark_command={}", mark("RDEV_COMMAND_ID")),
            format!("rdev_mark_project={}", mark("RDEV_PROJECT_ID")),
        ]
        .join("\n")
    }

    pub fn follow(&self, key: i64, stdout: u64, stderr: u64) -> Payload {
        self.about(key)
            .set("rdev_out", &stdout.to_string())
            .set("rdev_err", &stderr.to_string())
            .script(payload::FOLLOW)
    }

    pub fn end(&self, key: i64, why: EndAsked) -> Payload {
        self.about(key).set("rdev_why", why.text()).script(payload::END)
    }

    pub fn forget(&self, key: i64) -> Payload {
        self.about(key).script(payload::FORGET)
    }

    pub fn kept(&self) -> Payload {
        self.about(0).script(payload::KEPT)
    }

    pub fn sweep(&self, over: &[i64]) -> Payload {
        let keys: Vec<String> = over.iter().map(i64::to_string).collect();
        self.about(0).words(keys.iter().map(String::as_str)).script(payload::SWEEP)
    }
}
