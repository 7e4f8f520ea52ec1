//! Every setting: variable, default, help. The one place that reads the environment.
//!
//! A setting comes from a flag, else the environment (or the file that
//! `<VARIABLE>_FILE` names, for secrets), else the TOML file, else its default.
//! [`Settings`] is what was found and where; [`Config`] is that, parsed. A value that
//! cannot be used and a name that nobody knows are errors of one line.

mod settings;
mod typed;

pub use settings::{SETTINGS, Setting, Settings};
pub use typed::{Config, EmbeddedOrUrl, GitHost, RuntimeChoice, SandboxChoice, StopCommands};
