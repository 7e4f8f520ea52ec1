//! Who may read and push over git. A checkout's token opens the repository for reading
//! and one branch for pushing, for as long as the checkout lives; a workspace's token
//! reads; an API key reads or, as admin, pushes anywhere. Each ref of a push is asked
//! about again at the moment it would move.

use std::{net::IpAddr, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use uuid::Uuid;

use super::{keys::Keys, workspaces::rescue_branch};
use crate::{
    database::Db,
    domain::{api_key::GitToken, checkout::Checkout, clock::Clock, key::Key, scopes::Scope, session::SessionStatus},
    error::{Error, Result},
    forge::{Forge, Grant, PushContext, PushRequest},
    store,
};

#[derive(Clone)]
pub struct GitAccess {
    db: Db,
    clock: Clock,
    keys: Keys,
}

impl GitAccess {
    /// Also makes the git host ask here about every ref of a push, where it is the embedded one.
    pub fn new(db: Db, clock: Clock, keys: Keys, forge: &Forge) -> Self {
        let access = Self { db, clock, keys };
        let Some(host) = forge.embedded() else { return access };
        let asked = access.clone();
        host.on_push(Arc::new(move |request| -> BoxFuture<'static, Result<(), String>> {
            let access = asked.clone();
            async move { access.may_move(request).await }.boxed()
        }));
        access
    }

    /// What this credential opens in the project.
    ///
    /// # Errors
    /// Unauthenticated; forbidden without the scope; not found where the credential is another project's.
    pub async fn open(&self, project: &str, credential: &str, from: Option<IpAddr>, push: bool) -> Result<Grant> {
        match GitToken::parse(credential) {
            Some(token) => self.by_token(project, &token, push).await,
            None => {
                let key = self.keys.authenticate(credential, from).await?;
                self.by_key(project, &key, push).await
            }
        }
    }

    async fn by_token(&self, project: &str, token: &GitToken, push: bool) -> Result<Grant> {
        let hash = token.hash();
        let mut conn = self.db.conn().await?;
        if let Some(checkout) = store::checkouts::find_by_token(&mut conn, &hash, self.clock.now()).await? {
            same_project(&checkout.project_id, project)?;
            if self.is_late(&checkout) && !push {
                return Err(Error::unauthenticated());
            }
            let context = PushContext { checkout_id: Some(checkout.id), key_id: None, credential: hash.to_vec() };
            return Ok(if push { Grant::Push(context) } else { Grant::Read });
        }
        let reader = store::projects::find_by_read_token(&mut conn, &hash).await?;
        let reader = reader.ok_or_else(Error::unauthenticated)?;
        same_project(&reader.id, project)?;
        if push {
            Err(Error::forbidden("this credential reads; push from a session or a checkout"))
        } else {
            Ok(Grant::Read)
        }
    }

    async fn by_key(&self, project: &str, key: &Key, push: bool) -> Result<Grant> {
        let needed: &[Scope] = if push { &[Scope::Admin] } else { &[Scope::ProjectsRead] };
        if !key.may(needed) {
            let name = needed[0].name();
            return Err(Error::forbidden(format!("this key lacks the scope {name}")).detail("required_any", vec![name]));
        }
        if !key.sees(project) || store::projects::find(&mut self.db.conn().await?, project).await?.is_none() {
            return Err(Error::not_found("project not found"));
        }
        let context = PushContext { checkout_id: None, key_id: Some(key.id), credential: Vec::new() };
        Ok(if push { Grant::Push(context) } else { Grant::Read })
    }

    /// The answer to git, ref by ref, at the moment it would move; a line for the person who pushes.
    async fn may_move(&self, request: PushRequest) -> Result<(), String> {
        let away = |error: Error| {
            tracing::warn!(%error, project.id = request.project, "a push could not be checked");
            "the server cannot check this push now, try again shortly".to_owned()
        };
        match (request.context.checkout_id, request.context.key_id) {
            (Some(_), _) => {
                let checkout = self.live_checkout(&request.context.credential).await.map_err(away)?;
                let checkout = checkout.ok_or("this checkout has ended, its credential is dead")?;
                self.may_move_with(&checkout, &request).await
            }
            (None, Some(key)) => {
                let key = self.keys.live(key).await.map_err(away)?;
                let may = key.is_some_and(|key| key.may(&[Scope::Admin]) && key.sees(&request.project));
                match may {
                    true if request.deletes => self.may_delete(&request).await.map_err(away)?,
                    true => Ok(()),
                    false => Err("this key was revoked or lacks the scope admin".into()),
                }
            }
            (None, None) => Err("this push carries no credential".into()),
        }
    }

    /// Everything but the default branch, which clones begin from.
    async fn may_delete(&self, request: &PushRequest) -> Result<Result<(), String>> {
        let project = store::projects::find(&mut self.db.conn().await?, &request.project).await?;
        let default = project.is_some_and(|p| request.ref_name == format!("refs/heads/{}", p.default_branch));
        Ok(if default { Err("the default branch cannot be deleted".into()) } else { Ok(()) })
    }

    async fn live_checkout(&self, hash: &[u8]) -> Result<Option<Checkout>> {
        let mut conn = self.db.conn().await?;
        Ok(store::checkouts::find_by_token(&mut conn, hash, self.clock.now()).await?)
    }

    /// Its time is up, and its session has not ended yet: all that is left is the rescue.
    fn is_late(&self, checkout: &Checkout) -> bool {
        checkout.expires_at <= self.clock.now()
    }

    async fn may_move_with(&self, checkout: &Checkout, request: &PushRequest) -> Result<(), String> {
        let own = format!("refs/heads/{}", checkout.branch);
        if checkout.project_id == request.project && request.ref_name == own && !self.is_late(checkout) {
            let gone = "a checkout's branch cannot be deleted with its own credential";
            return if request.deletes { Err(gone.into()) } else { Ok(()) };
        }
        if let Some(session) = checkout.session_id
            && request.ref_name == format!("refs/heads/{}", rescue_branch(&session.to_string()))
            && self.is_ending(session).await
        {
            return Ok(());
        }
        Err(format!("this credential may push to {own} only"))
    }

    /// The rescue of a session's work is the one push beside its branch.
    async fn is_ending(&self, session: Uuid) -> bool {
        let Ok(mut conn) = self.db.conn().await else { return false };
        let found = store::sessions::find_any(&mut conn, session).await;
        matches!(found, Ok(Some(session)) if session.status == SessionStatus::Ending)
    }
}

fn same_project(own: &str, asked: &str) -> Result<()> {
    if own == asked { Ok(()) } else { Err(Error::not_found("project not found")) }
}
