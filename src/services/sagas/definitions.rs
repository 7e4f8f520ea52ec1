//! Named lists of steps. Each version is kept; a saga keeps the one it began with.

use chrono::{DateTime, Utc};

use super::{Error, Key, Result, Sagas, StepSpec, create::refused, store};
use crate::{
    domain::saga::{
        check::{self, Vars},
        spec::Problem,
    },
    store::sagas::DefinitionRow,
};

/// A definition as it is shown.
pub struct Definition {
    pub row: DefinitionRow,
    pub steps: Vec<StepSpec>,
}

/// Attempts at the next number, where others define the same name.
const TRIES: usize = 8;

impl Sagas {
    /// The next version of a definition, or its first.
    ///
    /// # Errors
    /// `VALIDATION` with everything that is wrong.
    pub async fn define(
        &self,
        caller: &Key,
        name: &str,
        steps: Vec<StepSpec>,
        description: Option<&str>,
    ) -> Result<Definition> {
        let parts = &self.inner.parts;
        let (_, mut problems) = check::check(&steps, "steps", Vars::Later, &parts.actions);
        if name.is_empty() || name.chars().count() > 128 || name.chars().any(char::is_control) {
            problems.push(Problem::new("name", "must be 1 to 128 characters without control characters"));
        }
        refused(problems)?;
        let text = serde_json::to_string(&steps).map_err(Error::internal)?;
        for _ in 0..TRIES {
            let mut conn = parts.db.conn().await?;
            let now = parts.clock.now();
            match store::sagas::insert_definition(&mut conn, name, &text, description, caller.id, now).await {
                Ok(row) => return Ok(Definition { row, steps }),
                Err(error) if error.constraint() == Some("saga_definition_pkey") => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::conflict("CONFLICT", "others are changing this definition, try again"))
    }

    /// Its newest version.
    ///
    /// # Errors
    /// "saga definition not found".
    pub async fn definition(&self, name: &str) -> Result<Definition> {
        let found = store::sagas::definition(&mut self.inner.parts.db.conn().await?, name).await?;
        found.map(shown).transpose()?.ok_or_else(|| Error::not_found("saga definition not found"))
    }

    /// The newest version of each, newest first, after the one that was made then under that name; one more
    /// than `limit` where there are more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn definitions(&self, before: Option<(DateTime<Utc>, &str)>, limit: i64) -> Result<Vec<Definition>> {
        let found = store::sagas::definitions(&mut self.inner.parts.db.conn().await?, before, limit + 1).await?;
        found.into_iter().map(shown).collect()
    }
}

fn shown(row: DefinitionRow) -> Result<Definition> {
    let steps = serde_json::from_str(&row.steps).map_err(Error::internal)?;
    Ok(Definition { row, steps })
}
