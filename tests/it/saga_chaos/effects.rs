//! What steps make in rdev itself, and a server that dies at some moment around it, again and again:
//! each thing is there once, and none is left of what was undone.
//!
//! `RDEV_TEST_CHAOS_ROUNDS` makes the stories longer.

mod place;
mod things;

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use self::{
    place::{Mortal, Place},
    things::{KINDS, Kind},
};
use super::{from_environment, seed};

/// Things of each kind in a round, each in a project of its own: a project has one session at a time.
const OF_EACH: usize = 3;

/// Rounds that are added, at most, until something was cut off.
const MORE: usize = 30;

/// A saga of one step.
#[derive(Clone, Debug)]
pub struct One {
    kind: Kind,
    /// What it makes is called so.
    tag: String,
    project: String,
    saga: String,
}

/// When the server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dies {
    Never,
    Making,
    Undoing,
}

/// How long things take.
#[derive(Clone, Copy, Debug, Default)]
struct Spans {
    making: Duration,
    undoing: Duration,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_step_makes_is_there_once_whenever_its_process_dies() {
    rounds(Dies::Making).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_undone_is_gone_whenever_its_process_dies() {
    rounds(Dies::Undoing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_has_undone_by_hand_is_undone_once_more_without_harm() {
    let (place, _server) = place::open(seed(), OF_EACH).await;
    let all = make(&place, 0, Duration::ZERO).await;
    for (one, saga) in all.iter().zip(at_rest(&place, &all).await) {
        one.kind.undo_by_hand(&place, one, &saga["steps"][0]["output"]).await;
    }
    roll_back(&place, &all, Duration::ZERO).await;
    let shown = at_rest(&place, &all).await;
    place.is_quiet().await;
    let mut wrong = Vec::new();
    for (one, saga) in all.iter().zip(&shown) {
        one.kind.is_undone(&place, one, saga, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The first round tells how long it takes without a death; every other has one. They go on until some
/// death has met an attempt: on a busy machine, one by one, none of them may.
async fn rounds(dies: Dies) {
    let (place, mut server) = place::open(seed(), OF_EACH).await;
    let (mut spans, _) = round(&place, &mut server, 0, Dies::Never, Spans::default()).await;
    let enough = from_environment("RDEV_TEST_CHAOS_ROUNDS").unwrap_or(6);
    let enough = usize::try_from(enough).expect("not so many");
    let (mut cut_off, mut n) = (0, 0);
    while n < enough || (cut_off == 0 && n < enough + MORE) {
        n += 1;
        let (took, met) = round(&place, &mut server, n, dies, spans).await;
        spans = Spans { making: spans.making.min(took.making), undoing: spans.undoing.min(took.undoing) };
        cut_off += met;
    }
    eprintln!("{spans:?}, {} deaths, {cut_off} attempts cut off", server.deaths);
    assert!(cut_off > 0, "nothing was cut off");
}

/// Makes things of every kind and undoes them. Answers how long that took, and how many attempts were cut off.
async fn round(place: &Place, server: &mut Mortal, n: usize, dies: Dies, spans: Spans) -> (Spans, usize) {
    let mut wrong = Vec::new();
    let began = Instant::now();
    let (all, ()) = tokio::join!(make(place, n, spans.making), async {
        if dies == Dies::Making {
            server.die(spans.making).await;
        }
    });
    let made = at_rest(place, &all).await;
    let making = began.elapsed();
    place.is_quiet().await;
    for (one, saga) in all.iter().zip(&made) {
        one.kind.is_made_once(place, one, saga, &mut wrong).await;
    }
    let began = Instant::now();
    tokio::join!(roll_back(place, &all, spans.undoing), async {
        if dies == Dies::Undoing {
            server.die(spans.undoing).await;
        }
    });
    let undone = at_rest(place, &all).await;
    let undoing = began.elapsed();
    place.is_quiet().await;
    let mut cut_off = 0;
    for (one, saga) in all.iter().zip(&undone) {
        one.kind.is_undone(place, one, saga, &mut wrong).await;
        cut_off += logged(place, one, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "round {n}, dies {dies:?}:\n{}\n{}", wrong.join("\n"), server.said());
    (Spans { making, undoing }, cut_off)
}

/// Sagas of one step each, begun within the first half of a time.
async fn make(place: &Place, round: usize, within: Duration) -> Vec<One> {
    let all = KINDS.into_iter().flat_map(|kind| (0..OF_EACH).map(move |n| (kind, n)));
    let making = all.map(async |(kind, n)| {
        let (tag, project) = (format!("{kind:?}-{round}-{n}").to_lowercase(), place::project(n));
        place.pause(within / 2).await;
        let body = json!({"name": tag, "steps": [kind.step(&tag, &project, &place.out)]});
        let (status, answer) = place.knocking.post(0, "/sagas", &tag, &body).await;
        assert_eq!(status, 201, "{answer}");
        One { kind, tag, project, saga: answer["data"]["id"].as_str().expect("an id").to_owned() }
    });
    join_all(making).await
}

async fn roll_back(place: &Place, all: &[One], within: Duration) {
    let asking = all.iter().map(async |one| {
        place.pause(within / 2).await;
        let path = format!("/sagas/{}/rollback", one.saga);
        let (status, answer) = place.knocking.post(0, &path, "once", &json!({})).await;
        assert_eq!(status, 200, "{one:?}: {answer}");
    });
    join_all(asking).await;
}

/// The sagas, when nothing goes on any more.
async fn at_rest(place: &Place, all: &[One]) -> Vec<Value> {
    join_all(all.iter().map(|one| place.at_rest(&one.saga))).await
}

/// What was done was done once, and undone once. Answers how many attempts were cut off.
async fn logged(place: &Place, one: &One, wrong: &mut Vec<String>) -> usize {
    let log = place.knocking.get(0, &format!("/sagas/{}/log", one.saga)).await["data"]["entries"].clone();
    let log = log.as_array().expect("a list");
    let count = |outcome: &str| log.iter().filter(|entry| entry["outcome"] == outcome).count();
    if count("completed") > 1 || count("compensated") != 1 {
        wrong.push(format!("{one:?}: {log:#?}"));
    }
    count("cut_off")
}
