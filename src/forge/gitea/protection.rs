//! Protected branches, told to the host: its tokens open whole repositories, so it is the host
//! that keeps them from the branches which are not theirs to push to. Rules of others are left
//! as they are.

use http::Method;
use serde_json::json;

use super::{super::git::GitError, GiteaHost};

impl GiteaHost {
    /// Nobody pushes to branches of these names or patterns; to those that are `free` again, as the host sees fit.
    pub async fn protect(&self, project: &str, patterns: &[&str], free: &[&str]) -> Result<(), GitError> {
        let path = ["repos", self.owner(), project, "branch_protections"];
        let rules = self.api().read(&path, &[]).await?.json()?;
        let name = |rule: &serde_json::Value| {
            let named = rule["rule_name"].as_str().or(rule["branch_name"].as_str());
            named.map(str::to_owned)
        };
        let known: Vec<String> = rules.as_array().into_iter().flatten().filter_map(name).collect();
        for pattern in patterns.iter().filter(|pattern| !known.iter().any(|name| name == *pattern)) {
            let rule = json!({"rule_name": pattern, "branch_name": pattern, "enable_push": false});
            let answer = self.api().send(Method::POST, &path, &rule).await?;
            // Another process may have been quicker.
            if answer.status != 201 && !answer.says("already exist") {
                return Err(answer.unfit("protecting a branch"));
            }
        }
        for pattern in free.iter().filter(|pattern| known.iter().any(|name| name == *pattern)) {
            let one: Vec<&str> = path.into_iter().chain([*pattern]).collect();
            let answer = self.api().remove(&one).await?;
            if !matches!(answer.status, 204 | 404) {
                return Err(answer.unfit("freeing a branch"));
            }
        }
        Ok(())
    }
}
