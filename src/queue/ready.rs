//! Which queues have something in them, as far as this process knows: it put something in
//! itself, another process told it, or it looked. What it wrongly believes costs one claim.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    database::news::{Ear, PAYLOAD_MAX},
    domain::task::Lane,
};

pub const CHANNEL: &str = "rdev_tasks";

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Ready {
    lanes: Arc<Mutex<BTreeMap<Lane, Waiting>>>,
    bells: Arc<[Notify; Lane::ALL.len()]>,
    to_tell: Arc<Mutex<HashSet<(Lane, String)>>>,
    pub some_to_tell: Arc<Notify>,
    /// Others had too much to tell: everything is to be looked for.
    pub search: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    /// With the number of the last mark, so that one that comes during a claim is not lost.
    queues: BTreeMap<String, u64>,
    marks: u64,
    /// Where the last look left off: everybody has a turn.
    turn: String,
}

impl Ready {
    /// Something was put in by this process: others may have room for it too.
    pub fn mark_and_tell(&self, lane: Lane, queue: &str) {
        self.mark(lane, queue);
        let mut to_tell = self.to_tell.lock().unwrap_or_else(PoisonError::into_inner);
        if !to_tell.contains(&(lane, queue.to_owned())) {
            to_tell.insert((lane, queue.to_owned()));
        }
        drop(to_tell);
        self.some_to_tell.notify_one();
    }

    pub fn mark(&self, lane: Lane, queue: &str) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = lanes.entry(lane).or_default();
        waiting.marks += 1;
        let mark = waiting.marks;
        match waiting.queues.get_mut(queue) {
            Some(known) => *known = mark,
            None => drop(waiting.queues.insert(queue.to_owned(), mark)),
        }
        drop(lanes);
        self.bell(lane).notify_one();
    }

    /// Rings for every mark of the lane.
    pub fn bell(&self, lane: Lane) -> &Notify {
        &self.bells[lane as usize]
    }

    /// Up to `most` queues and their marks, going on where the last call ended, and how many there are in all.
    pub fn some(&self, lane: Lane, most: usize) -> (Vec<(String, u64)>, usize) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = lanes.entry(lane).or_default();
        let turn = (std::ops::Bound::Excluded(waiting.turn.clone()), std::ops::Bound::Unbounded);
        let behind = waiting.queues.range::<String, _>(turn);
        let before = waiting.queues.range::<String, _>(..=waiting.turn.clone());
        let found: Vec<_> = behind.chain(before).take(most).map(|(queue, mark)| (queue.clone(), *mark)).collect();
        if found.len() == most {
            waiting.turn = found.last().map(|(queue, _)| queue.clone()).unwrap_or_default();
        }
        (found, waiting.queues.len())
    }

    /// The queue was found to hold no more, unless it was marked meanwhile.
    pub fn exhausted(&self, lane: Lane, queue: &str, mark: u64) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = lanes.entry(lane).or_default();
        if waiting.queues.get(queue) == Some(&mark) {
            waiting.queues.remove(queue);
        }
    }

    /// What there is to tell others; an empty list stands for more than fits.
    pub fn news(&self) -> Option<String> {
        let told = std::mem::take(&mut *self.to_tell.lock().unwrap_or_else(PoisonError::into_inner));
        if told.is_empty() {
            return None;
        }
        let list: Vec<(i16, &str)> = told.iter().map(|(lane, queue)| (lane.number(), queue.as_str())).collect();
        let text = serde_json::to_string(&list).unwrap_or_default();
        Some(if text.len() > PAYLOAD_MAX - 64 { "[]".to_owned() } else { text })
    }

    /// What is done with the news of others.
    pub fn ear(&self) -> Ear {
        let ready = self.clone();
        Arc::new(move |text| {
            let list: Vec<(i16, String)> = serde_json::from_str(text).unwrap_or_default();
            if list.is_empty() {
                ready.search.notify_one();
            }
            for (lane, queue) in list {
                if let Some(lane) = Lane::of(lane) {
                    ready.mark(lane, &queue);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_comes_during_a_claim_is_kept() {
        let ready = Ready::default();
        ready.mark(Lane::Work, "a");
        let (queue, mark) = ready.some(Lane::Work, 8).0.remove(0);
        ready.mark(Lane::Work, "a");
        ready.exhausted(Lane::Work, &queue, mark);
        let (queue, mark) = ready.some(Lane::Work, 8).0.remove(0);
        ready.exhausted(Lane::Work, &queue, mark);
        assert_eq!(ready.some(Lane::Work, 8), (Vec::new(), 0));
    }

    #[test]
    fn every_queue_has_its_turn() {
        let ready = Ready::default();
        for queue in ["a", "b", "c", "d", "e"] {
            ready.mark(Lane::Webhooks, queue);
        }
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..3 {
            seen.extend(ready.some(Lane::Webhooks, 2).0.into_iter().map(|(queue, _)| queue));
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e", "a"]);
    }

    #[test]
    fn others_are_told_what_was_put_in_here() {
        let (here, there) = (Ready::default(), Ready::default());
        here.mark_and_tell(Lane::Jobs, "llama3:latest");
        let text = here.news().expect("something to tell");
        assert_eq!(here.news(), None);
        there.ear()(&text);
        assert_eq!(there.some(Lane::Jobs, 8).1, 1);
        assert_eq!(there.news(), None, "what was heard is not told on");
    }
}
