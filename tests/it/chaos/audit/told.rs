//! The whole story of one job, for whoever has to find out what went wrong.

use std::fmt::Write as _;

use sqlx::Row as _;

use super::{Fleet, Story};
use crate::support::cluster::rows;

impl Story<'_> {
    pub async fn tell(&self, fleet: &Fleet, database: &str) -> String {
        let mut told = format!("\n--- {:?}\n{}\n", self.submitted, begin(&self.job.to_string(), 600));
        self.tell_what_was_heard(&mut told).expect("a String takes everything");
        let tasks = format!(
            "select t::text from task t where subject = '{0}'
             union all select t::text from task_later t where subject = '{0}'",
            self.submitted.job
        );
        let tasks = rows(database, &tasks).await;
        told.extend(tasks.iter().map(|row| format!("  task {}\n", row.get::<String, _>(0))));
        told + &fleet.said_about(&self.submitted.job)
    }

    fn tell_what_was_heard(&self, told: &mut String) -> std::fmt::Result {
        for event in &self.events {
            let id = event.id.as_deref().unwrap_or("-");
            writeln!(told, "  {id} {} {}", event.name, begin(&event.data.to_string(), 120))?;
        }
        for delivery in &self.deliveries {
            writeln!(told, "  delivery {delivery}")?;
        }
        for arrival in &self.arrivals {
            writeln!(told, "  arrival {:?} {}", arrival.at, begin(arrival.text(), 300))?;
        }
        Ok(())
    }
}

fn begin(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
