//! The git host: where repositories live and what a credential opens in them.

pub mod embedded;
pub mod git;
mod process_group;

pub use embedded::{
    Branch, BranchError, EmbeddedHost, GitPath, GitPathError, Grant, Import, ImportError, Move, PushContext,
    PushRequest, hook_main,
};
pub use git::GitError;
