//! Graphs by hand, and any graph against the slow way to know it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Steps `a`, `b`, … with what each depends on, by first letters.
fn graph(steps: &[&str]) -> Result<Graph, Cyclic> {
    let names: Vec<String> = ('a'..='z').take(steps.len()).map(String::from).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let depends_on: Vec<Vec<String>> = steps.iter().map(|s| s.chars().map(String::from).collect()).collect();
    let depends_on: Vec<_> = depends_on.iter().map(|one| (!one.is_empty()).then_some(one.as_slice())).collect();
    Graph::new(&names, &depends_on)
}

fn numbered(needs: &[Vec<usize>]) -> Result<Graph, Cyclic> {
    let names: Vec<String> = (0..needs.len()).map(|at| format!("s{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let entries = |needs: &Vec<usize>| needs.iter().map(|need| format!("s{need}")).collect::<Vec<_>>();
    let depends_on: Vec<Vec<String>> = needs.iter().map(entries).collect();
    let depends_on: Vec<_> = depends_on.iter().map(|one| (!one.is_empty()).then_some(one.as_slice())).collect();
    Graph::new(&names, &depends_on)
}

#[test]
fn with_no_dependency_anywhere_steps_run_in_a_row() {
    let graph = graph(&["", "", ""]).unwrap();
    assert_eq!(graph.groups(), [[0], [1], [2]]);
    assert_eq!((graph.needs(2), graph.needed_by(0)), (&[1][..], &[1][..]));
    assert!(graph.ancestors().contains(2, 0) && !graph.ancestors().contains(0, 2));
    assert_eq!(graph.compensation_order(|_| true), [[2], [1], [0]]);
    assert_eq!(numbered(&[]).unwrap().groups(), Vec::<Vec<usize>>::new());
}

#[test]
fn with_one_dependency_the_others_need_nobody() {
    let graph = graph(&["", "", "a", ""]).unwrap();
    assert_eq!(graph.groups(), [vec![0, 1, 3], vec![2]]);
    assert_eq!(graph.compensation_order(|_| true), [vec![1, 2, 3], vec![0]]);
}

#[test]
fn the_order_is_as_given_where_it_can_be() {
    assert_eq!(graph(&["c", "", "b", ""]).unwrap().order(), [1, 2, 0, 3]);
    assert_eq!(graph(&["", "a", "a", "bc"]).unwrap().order(), [0, 1, 2, 3]);
}

#[test]
fn a_step_with_nothing_to_undo_still_keeps_the_order() {
    // d needs b and c, which need a; b and c leave nothing behind.
    let graph = graph(&["", "a", "a", "bc"]).unwrap();
    assert_eq!(graph.compensation_order(|step| step == 0 || step == 3), [[3], [0]]);
    assert_eq!(graph.compensation_order(|step| step != 3), [vec![1, 2], vec![0]]);
    assert!(graph.compensation_order(|_| false).is_empty());
}

#[test]
fn entries_count_once_and_faults_are_told() {
    assert_eq!(graph(&["", "aaa", "abab"]).unwrap().needs(2), [0, 1]);
    let entries = [vec!["x".to_owned(), "a".to_owned()], vec!["a".to_owned()]];
    let mut told = Vec::new();
    let depends_on: Vec<_> = entries.iter().map(|one| (!one.is_empty()).then_some(one.as_slice())).collect();
    let names = ["a", "b"];
    let tell = |step, entry, fault| told.push((step, entry, fault));
    let graph = Graph::telling(&names, &positions(&names), &depends_on, tell).unwrap();
    assert_eq!(graph.needs(1), [0]);
    assert_eq!(told, [(0, 0, Fault::Unknown), (0, 1, Fault::Own)]);
}

#[test]
fn entries_that_name_nobody_make_no_row() {
    let graph = graph(&["x", ""]).unwrap();
    assert_eq!((graph.needs(0), graph.needs(1)), (&[][..], &[][..]));
}

#[test]
fn a_cycle_is_told_by_its_steps() {
    let told = |steps: &[&str]| graph(steps).unwrap_err().to_string();
    assert_eq!(told(&["b", "a"]), "a -> b -> a");
    assert_eq!(told(&["", "ad", "b", "c"]), "b -> d -> c -> b");
    assert_eq!(told(&["bc", "c", "a"]), "a -> c -> a");
    let cyclic = graph(&["b", "a", "a", ""]).unwrap_err();
    assert!(cyclic.ancestors.contains(2, 1) && !cyclic.ancestors.contains(3, 1));
}

#[test]
fn a_long_cycle_is_told_in_short() {
    let ring: Vec<Vec<usize>> = (0..1_000).map(|step| vec![(step + 1) % 1_000]).collect();
    let cyclic = numbered(&ring).unwrap_err();
    assert_eq!(
        (cyclic.cycle.len(), &cyclic.cycle[..2], &*cyclic.cycle[1_000]),
        (1_001, &["s0".to_owned(), "s1".to_owned()][..], "s0")
    );
    assert_eq!(
        cyclic.to_string(),
        "s0 -> s1 -> s2 -> s3 -> s4 -> s5 -> s6 -> s7 -> s8 -> s9 -> (989 more) -> s999 -> s0"
    );
}

#[test]
fn a_thousand_steps_may_name_a_thousand_each() {
    let all: Vec<Vec<usize>> = (0..1_000).map(|step| (0..1_000).map(|need| need % step.max(1)).collect()).collect();
    let mut dense = all.clone();
    dense[0].clear();
    let graph = numbered(&dense).unwrap();
    assert_eq!((graph.groups().len(), graph.needs(999).len()), (1_000, 999));
    let mut tied = all;
    tied[0] = vec![999];
    assert_eq!(numbered(&tied).unwrap_err().to_string(), "s0 -> s999 -> s0");
}

/// By looking at every way there is.
fn reach(needs: &[Vec<usize>], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = needs[from].clone();
    while let Some(step) = open.pop() {
        if found.insert(step) {
            open.extend(&needs[step]);
        }
    }
    found
}

/// Any graph, half of the time without a cycle; no step names itself, and one names another.
fn any_needs() -> impl Strategy<Value = Vec<Vec<usize>>> {
    (2..20_usize, any::<bool>()).prop_flat_map(|(count, acyclic)| {
        let needs = prop::collection::vec(prop::collection::vec(0..count, 0..4), count);
        let shuffled = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
        (needs, shuffled).prop_filter_map("no entry", move |(mut needs, rank)| {
            let may = |step: usize, need: usize| if acyclic { rank[need] < rank[step] } else { need != step };
            needs.iter_mut().enumerate().for_each(|(step, needs)| needs.retain(|need| may(step, *need)));
            needs.iter().any(|needs| !needs.is_empty()).then_some(needs)
        })
    })
}

fn position(groups: &[Vec<usize>], step: usize) -> Option<usize> {
    groups.iter().position(|group| group.contains(&step))
}

proptest! {
    #[test]
    fn ancestors_are_whom_a_way_leads_to(needs in any_needs()) {
        let graph = numbered(&needs);
        let ancestors = match &graph {
            Ok(graph) => graph.ancestors(),
            Err(cyclic) => &cyclic.ancestors,
        };
        for step in 0..needs.len() {
            let found: BTreeSet<usize> = (0..needs.len()).filter(|other| ancestors.contains(step, *other)).collect();
            prop_assert_eq!(found, reach(&needs, step));
        }
    }

    #[test]
    fn a_cycle_is_found_where_there_is_one(needs in any_needs()) {
        let is_cyclic = (0..needs.len()).any(|step| reach(&needs, step).contains(&step));
        match numbered(&needs) {
            Ok(_) => prop_assert!(!is_cyclic),
            Err(Cyclic { cycle, .. }) => {
                let at: Vec<usize> = cycle.iter().map(|name| name[1..].parse().unwrap()).collect();
                prop_assert!(at.len() > 2 && at.first() == at.last());
                prop_assert!(at.windows(2).all(|pair| needs[pair[0]].contains(&pair[1])));
                prop_assert_eq!(at.iter().collect::<BTreeSet<_>>().len(), at.len() - 1);
            }
        }
    }

    #[test]
    fn nobody_runs_before_what_it_needs(needs in any_needs()) {
        let Ok(graph) = numbered(&needs) else { return Ok(()) };
        let groups = graph.groups();
        prop_assert_eq!(groups.iter().flatten().count(), needs.len());
        let place = |step| graph.order().iter().position(|at| *at == step);
        for (step, needs) in needs.iter().enumerate() {
            let last = needs.iter().map(|need| position(&groups, *need)).max().flatten();
            prop_assert_eq!(position(&groups, step), Some(last.map_or(0, |last| last + 1)));
            for need in needs {
                prop_assert!(place(*need) < place(step) && graph.needed_by(*need).contains(&step));
            }
        }
    }

    #[test]
    fn an_order_that_can_be_kept_is_kept(needs in any_needs()) {
        let forwards: Vec<Vec<usize>> = needs
            .iter()
            .enumerate()
            .map(|(step, needs)| needs.iter().copied().filter(|need| *need < step).collect())
            .collect();
        let order: Vec<usize> = (0..needs.len()).collect();
        let kept = numbered(&forwards).unwrap().order().to_vec();
        prop_assert_eq!(kept, order);
    }

    #[test]
    fn nobody_is_undone_before_what_depended_on_it(
        needs in any_needs(),
        has_undo in prop::collection::vec(any::<bool>(), 20),
    ) {
        let Ok(graph) = numbered(&needs) else { return Ok(()) };
        let groups = graph.compensation_order(|step| has_undo[step]);
        for step in 0..needs.len() {
            let place = position(&groups, step);
            prop_assert_eq!(place.is_some(), has_undo[step]);
            let later = reach(&needs, step).into_iter().filter(|before| has_undo[*before] && has_undo[step]);
            for before in later {
                prop_assert!(place < position(&groups, before));
            }
        }
        // No group could be done earlier: each of its steps waits for one of the group before.
        for pair in groups.windows(2) {
            for step in &pair[1] {
                prop_assert!(pair[0].iter().any(|later| reach(&needs, *later).contains(step)));
            }
        }
    }
}
