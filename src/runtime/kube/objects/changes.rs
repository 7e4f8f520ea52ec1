//! What changes objects that somebody wants otherwise: an apply that is only rehearsed, and the
//! way back to what was there.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{MANAGER, Object, Objects, is_replaced, resource_of};
use crate::{
    error::Result,
    runtime::kube::cluster::{Right, away},
};

impl Objects {
    /// What would become of the object if it were applied now.
    ///
    /// # Errors
    /// As [`Objects::apply`].
    pub async fn rehearse(&self, object: Value, force: bool) -> Result<Value> {
        let would_be = self.patched(object, force, true).await?.1;
        serde_json::to_value(would_be).map_err(crate::error::Error::internal)
    }

    /// Changes the fields of a JSON merge patch, and gives the fields back to those who held them before
    /// (`metadata.managedFields` of that time). False: it is not there any more, or another has its name.
    ///
    /// # Errors
    /// Those of the cluster; `OBJECT_REFUSED`.
    pub async fn put_back(&self, object: &Object, back: &Value, fields: Option<&Value>) -> Result<bool> {
        // Two patches: who changes a field becomes its holder, unless nothing but the holders changes.
        let holders = fields.map(|fields| json!({"metadata": {"managedFields": fields}}));
        for patch in std::iter::once(back).chain(&holders) {
            if !self.merge(object, patch.clone()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn merge(&self, object: &Object, mut patch: Value) -> Result<bool> {
        let resource = resource_of(&object.api_version, &object.kind);
        let right = Right { verb: "patch", resource: &resource.plural };
        patch["metadata"]["uid"] = object.uid.clone().into();
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let told = self.cluster.told(self.api(&resource).patch(&object.name, &params, &Patch::Merge(patch))).await?;
        match told {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(kube::Error::Api(status)) if is_replaced(&status.message) => Ok(false),
            // Somebody changes it all the time.
            Err(kube::Error::Api(status)) if status.code == 409 => Err(away(status.message)),
            Err(error) => Err(self.refused(&error, right, &resource.api_version)),
        }
    }
}
