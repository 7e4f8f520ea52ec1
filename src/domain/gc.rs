//! What of a cluster's objects belongs to nobody any more, and whether it may go. Decided from
//! what was listed and what the database holds; whoever cannot read one of the two decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use chrono::{DateTime, TimeDelta, Utc};

/// An orphan stays for so long after it was first seen as one.
pub const GRACE: TimeDelta = TimeDelta::hours(1);
/// So many may go at once, however few there are in all.
const FEW: usize = 5;
/// Else no more than one in so many.
const ONE_IN: usize = 5;

/// An object that says it was made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labelled<'a> {
    pub uid: &'a str,
    pub project: Option<&'a str>,
    pub session: Option<&'a str>,
}

/// What the database knows.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub projects: BTreeSet<String>,
    /// Those that are not over.
    pub sessions: BTreeSet<String>,
}

/// One that belongs to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orphan {
    /// Its position among the objects.
    pub at: usize,
    pub first_seen_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub orphans: Vec<Orphan>,
    /// Positions of those whose time is up. Nothing of them goes where there is a block.
    pub due: Vec<usize>,
    pub blocked: Option<Blocked>,
}

/// Why nothing is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// A database without a project is rather the wrong one than the truth.
    NoProjects,
    TooMany {
        due: usize,
        managed: usize,
        most: usize,
    },
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProjects => f.write_str("the database holds no projects at all"),
            Self::TooMany { due, managed, most } => {
                write!(f, "{due} of {managed} managed objects would go at once, at most {most} may")
            }
        }
    }
}

impl Orphan {
    pub fn deletable_at(&self) -> DateTime<Utc> {
        deletable_at(self.first_seen_at)
    }
}

pub fn deletable_at(first_seen_at: DateTime<Utc>) -> DateTime<Utc> {
    first_seen_at + GRACE
}

impl Records {
    /// Its project has no record; or its session, where it is of one, has none or is over. What names no project
    /// never had an owner that could be gone.
    pub fn lack(&self, object: &Labelled<'_>) -> bool {
        let Some(project) = object.project else { return false };
        !self.projects.contains(project) || object.session.is_some_and(|session| !self.sessions.contains(session))
    }
}

/// `seen`: since when those are known, by UID, that were orphans before.
pub fn decide(
    objects: &[Labelled<'_>],
    records: &Records,
    seen: &BTreeMap<String, DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Decision {
    let orphaned = objects.iter().enumerate().filter(|(_, object)| records.lack(object));
    let since = |uid: &str| seen.get(uid).copied().unwrap_or(now).min(now);
    let orphans: Vec<_> = orphaned.map(|(at, object)| Orphan { at, first_seen_at: since(object.uid) }).collect();
    let due: Vec<_> = orphans.iter().filter(|orphan| orphan.deletable_at() <= now).map(|orphan| orphan.at).collect();
    let most = most_at_once(objects.len());
    let blocked = if records.projects.is_empty() && !orphans.is_empty() {
        Some(Blocked::NoProjects)
    } else if due.len() > most {
        Some(Blocked::TooMany { due: due.len(), managed: objects.len(), most })
    } else {
        None
    };
    Decision { orphans, due, blocked }
}

/// Five, or a fifth of all, whichever is more. Of a fifth that is no whole number the rest does not count: of 29
/// five may go, of 30 six.
pub fn most_at_once(managed: usize) -> usize {
    FEW.max(managed / ONE_IN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
    }

    fn records(projects: &[&str], sessions: &[&str]) -> Records {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Records { projects: set(projects), sessions: set(sessions) }
    }

    fn of<'a>(uid: &'a str, project: Option<&'a str>, session: Option<&'a str>) -> Labelled<'a> {
        Labelled { uid, project, session }
    }

    #[test]
    fn whose_owner_is_gone_is_an_orphan() {
        let records = records(&["p"], &["s"]);
        for (project, session, orphan) in [
            (Some("p"), None, false),
            (Some("q"), None, true),
            (Some("p"), Some("s"), false),
            (Some("p"), Some("t"), true),
            (Some("q"), Some("s"), true),
            (None, None, false),
            (None, Some("t"), false),
        ] {
            assert_eq!(records.lack(&of("u", project, session)), orphan, "{project:?} {session:?}");
        }
    }

    #[test]
    fn an_hour_passes_first_to_the_second() {
        let objects = [of("u", Some("gone"), None)];
        for (seconds, due) in [(0, 0), (3_599, 0), (3_600, 1), (9_999, 1)] {
            let seen = [("u".to_owned(), now() - TimeDelta::seconds(seconds))].into();
            let decided = decide(&objects, &records(&["p"], &[]), &seen, now());
            assert_eq!((decided.orphans.len(), decided.due.len(), decided.blocked), (1, due, None), "{seconds}");
        }
        let unknown = decide(&objects, &records(&["p"], &[]), &BTreeMap::new(), now());
        assert_eq!(unknown.orphans[0].deletable_at(), now() + TimeDelta::hours(1));
    }

    #[test]
    fn no_projects_is_no_truth_to_act_on() {
        let seen = [("u".to_owned(), now() - GRACE)].into();
        let decided = decide(&[of("u", Some("gone"), None)], &Records::default(), &seen, now());
        assert_eq!(decided.blocked, Some(Blocked::NoProjects));
        assert_eq!(decide(&[], &Records::default(), &seen, now()).blocked, None);
    }

    #[test]
    fn five_or_a_fifth_in_whole_numbers() {
        for (managed, most) in [(0, 5), (5, 5), (24, 5), (25, 5), (29, 5), (30, 6), (34, 6), (35, 7), (1_000, 200)] {
            assert_eq!(most_at_once(managed), most, "{managed}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_is_old_and_nobodys_and_not_too_much(
            owners in prop::collection::vec((prop::option::of(0..4_u8), prop::option::of(0..4_u8), prop::option::of(0..7_200_i64)), 0..60),
            projects in prop::collection::btree_set(0..4_u8, 0..4),
            sessions in prop::collection::btree_set(0..4_u8, 0..4),
        ) {
            let name = |n: &u8| n.to_string();
            let records = Records { projects: projects.iter().map(name).collect(), sessions: sessions.iter().map(name).collect() };
            let named: Vec<_> = owners.iter().enumerate()
                .map(|(n, (project, session, age))| (n.to_string(), project.as_ref().map(name), session.as_ref().map(name), *age))
                .collect();
            let objects: Vec<_> = named.iter()
                .map(|(uid, project, session, _)| of(uid, project.as_deref(), session.as_deref()))
                .collect();
            let seen: BTreeMap<_, _> = named.iter()
                .filter_map(|(uid, .., age)| Some((uid.clone(), now() - TimeDelta::seconds((*age)?))))
                .collect();
            let decided = decide(&objects, &records, &seen, now());
            for (at, object) in objects.iter().enumerate() {
                prop_assert_eq!(decided.orphans.iter().any(|orphan| orphan.at == at), records.lack(object));
                let old = seen.get(object.uid).is_some_and(|since| now() - since >= GRACE);
                prop_assert_eq!(decided.due.contains(&at), records.lack(object) && old);
            }
            if decided.blocked.is_none() && !decided.due.is_empty() {
                prop_assert!(!projects.is_empty());
                prop_assert!(decided.due.len() <= 5 || decided.due.len() * 5 <= objects.len());
            }
            if decided.blocked.is_some() {
                prop_assert!(projects.is_empty() || (decided.due.len() > 5 && decided.due.len() * 5 > objects.len()));
            }
        }
    }
}
