//! `ResourceGC`: objects of the cluster whose project or session has no record any more are removed, an hour
//! after they were first seen so. Looking is harmless and every process may do it at once; what is to go is
//! taken in the database first, in the step that looks at the record once more, and a project whose objects
//! are being removed is not made meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    database::Db,
    domain::{
        clock::Clock,
        gc::{self, Decision, GRACE, Labelled, Records},
    },
    error::{Error, Result},
    runtime::{
        Place,
        objects::{Object, Objects, Removal},
    },
    store::{
        self,
        gc::{OrphanRow, RemovedRow},
    },
};

/// An object is taken for so long: more than the longest call of the cluster.
const TAKEN: Duration = Duration::from_secs(30);
/// After this it is not begun any more: the process was held up.
const BEGIN: Duration = Duration::from_secs(10);
/// What was removed is told for so long, and of so much.
const TOLD: TimeDelta = TimeDelta::days(30);
const TOLD_MAX: i64 = 500;

#[derive(Clone)]
pub struct Gc {
    db: Db,
    clock: Clock,
    runtime: Place,
}

/// What there is to remove, and what was removed.
#[derive(Debug, Default)]
pub struct Report {
    pub orphans: Vec<OrphanRow>,
    /// Why nothing is removed that could be.
    pub blocked_by: Option<String>,
    pub removed: Vec<RemovedRow>,
}

/// The orphans of one moment.
struct Look {
    /// Beside their rows.
    orphans: Vec<(Object, OrphanRow)>,
    /// UIDs of those whose time is up, unless something is in the way.
    due: Vec<String>,
    blocked: Option<gc::Blocked>,
}

impl Gc {
    pub fn new(db: Db, clock: Clock, runtime: Place) -> Self {
        Self { db, clock, runtime }
    }

    /// The orphans of now, and what was removed lately. Whoever looks starts the hour of those that nobody saw before.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn report(&self) -> Result<Report> {
        let mut report = self.run(true).await?;
        report.removed = store::gc::removed(&mut self.db.conn().await?, TOLD_MAX).await?;
        Ok(report)
    }

    /// Removes what may go, unless it is a dry run. `removed` is what this run did.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn run(&self, dry_run: bool) -> Result<Report> {
        let Some(objects) = self.runtime.objects() else { return Ok(Report::default()) };
        let look = match self.look(&objects).await? {
            Ok(look) => look,
            // What is known of before; nothing is decided on it.
            Err(unread) => {
                let orphans = store::gc::orphans(&mut self.db.conn().await?).await?;
                let blocked_by = Some(format!("the cluster could not be read: {}", unread.message()));
                return Ok(Report { orphans, blocked_by, removed: Vec::new() });
            }
        };
        if let Some(blocked) = look.blocked {
            tracing::warn!(reason = %blocked, "objects of the cluster that belong to nobody stay");
        }
        let mut report = Report { blocked_by: look.blocked.map(|it| it.to_string()), ..Report::default() };
        for (object, row) in look.orphans {
            let goes = !dry_run && report.blocked_by.is_none() && look.due.contains(&row.uid);
            if !goes {
                report.orphans.push(row);
                continue;
            }
            match self.remove(&objects, &object).await {
                Ok(Some(at)) => report.removed.push(RemovedRow { kind: row.kind, name: row.name, at }),
                Ok(None) => {}
                Err(error) => {
                    report.blocked_by = Some(format!("{} {}: {}", row.kind, row.name, error.message()));
                    report.orphans.push(row);
                }
            }
        }
        let cutoff = self.clock.now() - TOLD;
        store::gc::delete_removed_before(&mut self.db.conn().await?, cutoff).await?;
        Ok(report)
    }

    /// A run by the clock.
    ///
    /// # Errors
    /// Those of the database; internal where something was in the way.
    pub async fn collect(&self) -> Result<()> {
        match self.run(false).await?.blocked_by {
            None => Ok(()),
            Some(why) => Err(Error::internal(why)),
        }
    }

    /// Objects first, records after: what is made meanwhile has its record before its objects.
    async fn look(&self, objects: &Objects) -> Result<Result<Look>> {
        let managed = match objects.managed().await.whole() {
            // What goes already is nobody's business here.
            Ok(managed) => managed.into_iter().filter(|one| !one.going).collect::<Vec<_>>(),
            Err(error) => {
                tracing::warn!(%error, "objects of the cluster that belong to nobody stay: not all could be listed");
                return Ok(Err(error));
            }
        };
        let mut tx = self.db.begin().await?;
        let records = Records {
            projects: store::gc::project_ids(&mut tx).await?.into_iter().collect(),
            sessions: store::gc::session_ids(&mut tx).await?.into_iter().collect(),
        };
        let seen = store::gc::orphans(&mut tx).await?;
        let seen: BTreeMap<_, _> = seen.into_iter().map(|row| (row.uid, row.first_seen_at)).collect();
        let Decision { orphans, due, blocked } = gc::decide(&labels(&managed), &records, &seen, self.clock.now());
        let due = due.iter().map(|at| managed[*at].uid.clone()).collect();
        let orphans: Vec<_> =
            orphans.iter().map(|one| (managed[one.at].clone(), row(&managed[one.at], one.first_seen_at))).collect();
        let rows: Vec<_> = orphans.iter().map(|(_, row)| row.clone()).collect();
        let uids: Vec<_> = rows.iter().map(|row| row.uid.clone()).collect();
        store::gc::see(&mut tx, &rows).await?;
        store::gc::forget_others(&mut tx, &uids).await?;
        tx.commit().await?;
        Ok(Ok(Look { orphans, due, blocked }))
    }

    /// When it was removed; `None` where it is somebody's again, or gone by itself, or another process's to remove.
    async fn remove(&self, objects: &Objects, object: &Object) -> Result<Option<DateTime<Utc>>> {
        let Some(project) = object.project.as_deref() else { return Ok(None) };
        let taken = Instant::now();
        let mut tx = self.db.begin().await?;
        store::gc::hold_project(&mut tx, project).await?;
        if !store::gc::claim(&mut tx, &object.uid, self.clock.now() - GRACE, TAKEN.as_secs_f64()).await? {
            return Ok(None);
        }
        tx.commit().await?;
        if taken.elapsed() > BEGIN {
            return Err(Error::timeout());
        }
        let removal = objects.delete(object).await;
        let mut conn = self.db.conn().await?;
        match removal {
            Ok(Removal::Removed) => {
                let at = self.clock.now();
                store::gc::mark_removed(&mut conn, &object.uid, at).await?;
                tracing::info!(
                    project.id = project,
                    session.id = object.session,
                    kind = object.kind,
                    name = object.name,
                    uid = object.uid,
                    "an object of the cluster that belonged to nobody was removed"
                );
                Ok(Some(at))
            }
            Ok(Removal::Gone | Removal::Replaced) => {
                store::gc::forget(&mut conn, &object.uid).await?;
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, kind = object.kind, name = object.name, "an object of the cluster that belongs to nobody was not removed");
                // Where nobody knows whether it goes after all, it stays taken for its time.
                if error.kind() != crate::error::Kind::Unavailable {
                    store::gc::let_be(&mut conn, &object.uid).await?;
                }
                Err(error)
            }
        }
    }
}

fn labels(objects: &[Object]) -> Vec<Labelled<'_>> {
    objects.iter().map(label).collect()
}

fn label(object: &Object) -> Labelled<'_> {
    Labelled { uid: &object.uid, project: object.project.as_deref(), session: object.session.as_deref() }
}

fn row(object: &Object, first_seen_at: DateTime<Utc>) -> OrphanRow {
    OrphanRow {
        uid: object.uid.clone(),
        api_version: object.api_version.clone(),
        kind: object.kind.clone(),
        name: object.name.clone(),
        project_id: object.project.clone().unwrap_or_default(),
        session_id: object.session.clone(),
        first_seen_at,
    }
}
