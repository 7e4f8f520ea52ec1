//! What steps make: how it is asked for, how many there are, and what is left of it.

use http::Method;
use serde_json::{Value, json};

use super::{
    One,
    place::{MODEL, Place},
};
use crate::{
    jobs::{and, chat_with},
    sagas::step,
    support::counter::Counter,
};

pub const KINDS: [Kind; 6] = [Kind::Checkout, Kind::Session, Kind::Job, Kind::Child, Kind::Alone, Kind::Command];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Checkout,
    Session,
    Job,
    /// A saga that is waited for.
    Child,
    /// One that goes its own way.
    Alone,
    Command,
}

impl Kind {
    pub fn step(self, tag: &str, project: &str, out: &Counter) -> Value {
        match self {
            Self::Checkout => step("it", "checkout.create", json!({"project_id": project, "new_branch": tag})),
            Self::Session => step("it", "session.create", json!({"project_id": project, "new_branch": tag})),
            Self::Job => step("it", "job.submit", chat_with(MODEL, &format!("<{tag}>"))),
            Self::Child | Self::Alone => {
                let call = json!({"method": "POST", "url": out.at(&format!("/{tag}"))});
                let undo = json!({"method": "DELETE", "url": out.at(&format!("/undo/{tag}"))});
                let call = and(
                    step("call", "http.request", call),
                    json!({"compensate": "http.request", "compensate_config": undo}),
                );
                step("it", "saga.start", json!({"steps": [call], "wait": self == Self::Child}))
            }
            Self::Command => {
                let script = |text: &str| json!({"project_id": project, "script": text.replace("TAG", tag)});
                and(
                    step("it", "command.run", script("echo x >> made-TAG; sleep 0.1")),
                    json!({"compensate": "command.run",
                        "compensate_config": script("rm -f made-TAG; sleep 0.1; echo x >> undone-TAG")}),
                )
            }
        }
    }

    /// The things of this tag, and how they stand.
    async fn things(self, place: &Place, one: &One) -> Vec<(String, String)> {
        let One { tag, saga, .. } = one;
        let sql = match self {
            Self::Checkout => format!("select id::text, status from checkout where branch = '{tag}'"),
            // What could not be made has failed.
            Self::Session => {
                format!("select id::text, status from session where branch = '{tag}' and status <> 'failed'")
            }
            Self::Job => format!(
                "select id, state from job where state in ('queued', 'running')
                 and strpos(convert_from(payload, 'UTF8'), '<{tag}>') > 0"
            ),
            Self::Child | Self::Alone => format!("select id::text, status from saga where parent = '{saga}'"),
            Self::Command => format!("select command_id, status from command where args::text ~ '>> made-{tag};'"),
        };
        place.things(&sql).await
    }

    fn id_of(self, output: &Value) -> &str {
        let name = match self {
            Self::Checkout => "checkout_id",
            Self::Session => "session_id",
            Self::Job => "job_id",
            Self::Child | Self::Alone => "saga_id",
            Self::Command => "command_id",
        };
        output[name].as_str().unwrap_or_default()
    }

    /// There is one, it is the one that the step names, and it stands as it should.
    pub async fn is_made_once(self, place: &Place, one: &One, saga: &Value, wrong: &mut Vec<String>) {
        let step = &saga["steps"][0];
        let things = self.things(place, one).await;
        if saga["status"] != "completed" {
            return wrong.push(format!("{one:?} is made: {saga:#}, {things:?}"));
        }
        let status = match self {
            Self::Checkout | Self::Session => "active",
            Self::Job => "",
            Self::Child | Self::Alone => "completed",
            Self::Command => "exited",
        };
        let is_it = |(id, stands): &(String, String)| {
            id == self.id_of(&step["output"]) && (status.is_empty() || stands == status)
        };
        if things.len() != 1 || !is_it(&things[0]) {
            wrong.push(format!("{one:?} gave {}, and there are {things:?}", step["output"]));
        }
        let effects = match self {
            Self::Child | Self::Alone => effects(&place.out, &format!("/{}", one.tag)),
            Self::Command => place.lines(&one.project, &format!("made-{}", one.tag)),
            Self::Session => self.checkouts_of(place, one).await,
            Self::Checkout | Self::Job => 1,
        };
        if effects != 1 {
            wrong.push(format!("{one:?} had its effect {effects} times"));
        }
    }

    /// None is left.
    pub async fn is_undone(self, place: &Place, one: &One, saga: &Value, wrong: &mut Vec<String>) {
        let things = self.things(place, one).await;
        if saga["status"] != "compensated" || saga["steps"][0]["status"] != "compensated" {
            return wrong.push(format!("{one:?} is undone: {saga:#}, {things:?}"));
        }
        let over: &[&str] = match self {
            Self::Checkout => &["revoked"],
            Self::Session => &["ended", "terminated"],
            Self::Job => &[],
            Self::Child | Self::Alone => &["compensated"],
            Self::Command => &["exited"],
        };
        if !things.iter().all(|(_, stands)| over.contains(&stands.as_str())) {
            wrong.push(format!("{one:?} is undone, and there are {things:?}"));
        }
        let left = match self {
            Self::Session => self.checkouts_of(place, one).await,
            Self::Child | Self::Alone => effects(&place.out, &format!("/undo/{}", one.tag)).abs_diff(1),
            Self::Command if place.lines(&one.project, &format!("undone-{}", one.tag)) == 0 => 1,
            Self::Command => place.lines(&one.project, &format!("made-{}", one.tag)),
            Self::Checkout | Self::Job => 0,
        };
        if left != 0 {
            wrong.push(format!("{one:?} is undone, and {left} are left of it"));
        }
    }

    /// Who may end or cancel it does so.
    pub async fn undo_by_hand(self, place: &Place, one: &One, output: &Value) {
        let (id, project) = (self.id_of(output), &one.project);
        let (method, path) = match self {
            Self::Checkout => (Method::DELETE, format!("/projects/{project}/checkout/{id}")),
            Self::Session => (Method::DELETE, format!("/projects/{project}/sessions/{id}")),
            Self::Job => (Method::DELETE, format!("/jobs/{id}")),
            Self::Child | Self::Alone => (Method::POST, format!("/sagas/{id}/rollback")),
            // Its compensation is a command like another.
            Self::Command => return,
        };
        let (status, answer) = place.knocking.send(method, &path).await;
        assert_eq!(status, 200, "{one:?}: {answer}");
    }

    /// Open checkouts of this branch.
    async fn checkouts_of(self, place: &Place, one: &One) -> usize {
        let sql = format!("select id::text, status from checkout where branch = '{}' and status = 'active'", one.tag);
        place.things(&sql).await.len()
    }
}

/// How many different requests came to a path.
fn effects(out: &Counter, path: &str) -> usize {
    let mut keys = out.keys(path);
    keys.sort();
    keys.dedup();
    keys.len()
}
