//! The decisions about a review, each in its words, and what holds for all of them.

use proptest::prelude::*;

use super::*;

fn review() -> Review {
    Review {
        id: "01J00000000000000000000000".into(),
        project_id: "p".into(),
        checkout_id: Uuid::nil(),
        session_id: None,
        created_by: Uuid::nil(),
        branch: "feature".into(),
        base: "main".into(),
        head_sha: "a".repeat(40),
        feature_slug: None,
        status: ReviewStatus::Queued,
        attempt: 0,
        started: false,
        uncleared: false,
        auto_merge: false,
        merge: Merge::None,
        merge_candidate: None,
        merge_failures: 0,
        merge_error: None,
        merge_sha: None,
        model: String::new(),
        command: vec!["true".into()],
        command_id: None,
        summary: None,
        created_at: DateTime::UNIX_EPOCH,
        completed_at: None,
    }
}

#[test]
fn the_projects_command_comes_before_the_servers_model() {
    let argv = ["make".to_owned()];
    assert_eq!(Reviewer::choose(Some(&argv), Some("m")), Some(Reviewer::Command(argv.to_vec())));
    assert_eq!(Reviewer::choose(Some(&[]), Some("m")), Some(Reviewer::Model("m".into())));
    assert_eq!(Reviewer::choose(None, Some("m")), Some(Reviewer::Model("m".into())));
    assert_eq!(Reviewer::choose(None, None), None);
}

#[test]
fn only_a_real_exit_code_is_a_verdict() {
    use Termination as T;
    assert_eq!(of_command(Some(T::Exit), Some(0), None), Says::Passed);
    assert_eq!(of_command(Some(T::Exit), Some(3), None), Says::Failed(3));
    assert_eq!(of_command(Some(T::ServerStopped), Some(0), None), Says::Again);
    let nothing = |how, signal| match of_command(Some(how), Some(0), signal) {
        Says::Nothing(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(nothing(T::Signal, Some("KILL")), "the review command was ended by signal KILL");
    assert_eq!(nothing(T::StartFailed, None), "the review command could not be started");
    for lost in [T::PodLost, T::SupervisorLost] {
        assert_eq!(nothing(lost, None), "the review command was lost");
    }
    for ended in [T::Timeout, T::Cancelled, T::OutputLimit] {
        assert!(nothing(ended, None).starts_with("the review command was "));
    }
}

#[test]
fn what_was_merged_before_comes_first_and_nothing_is_forced() {
    let free = Standing { unmoved: true, has_candidate: false, has_head: false, forward: false };
    assert_eq!(merge_step(free), MergeStep::Join);
    assert_eq!(merge_step(Standing { forward: true, ..free }), MergeStep::FastForward);
    assert_eq!(merge_step(Standing { forward: true, unmoved: false, ..free }), MergeStep::Blocked);
    let merged = Standing { unmoved: false, has_candidate: true, has_head: true, forward: false };
    assert_eq!(merge_step(merged), MergeStep::IsMerged { at_candidate: true });
    assert_eq!(merge_step(Standing { has_candidate: false, ..merged }), MergeStep::IsMerged { at_candidate: false });
}

#[test]
fn a_summary_is_cut_between_characters() {
    assert_eq!(kept(" a\0b\n"), "a\u{fffd}b");
    let long = kept(&format!("a{}", "é".repeat(SUMMARY_MAX)));
    assert!(long.ends_with('…') && long.len() <= SUMMARY_MAX + 3);
}

#[test]
fn an_attempt_is_over_for_whoever_began_it_when_another_one_has_begun() {
    let first = review().begun();
    assert!(first.is_attempt(&first) && first.uncleared);
    let with_command = Review { command_id: Some("cmd".into()), ..first.clone() };
    let taken_over = with_command.clone().begun();
    assert!(!taken_over.is_attempt(&with_command), "somebody else goes on with it");
    assert_eq!(taken_over.command_id.as_deref(), Some("cmd"), "and follows its command on");
    let ended = with_command.judged(ReviewStatus::Error, None, DateTime::UNIX_EPOCH);
    assert!(!ended.is_attempt(&first));
    let again = ended.again().expect("there is no verdict");
    assert!(!again.is_attempt(&first), "asked for again is not begun");
    assert_eq!((again.command_id.as_deref(), again.own_command()), (Some("cmd"), None), "it may still run");
    let second = again.begun();
    assert!(second.is_attempt(&second) && !second.is_attempt(&first));
    assert_eq!(second.command_id, None);
}

#[test]
fn a_merge_that_may_have_been_made_is_remembered_until_it_is_told() {
    let passed = Review { auto_merge: true, merge_candidate: Some("c".into()), ..review() };
    let passed = passed.judged(ReviewStatus::Passed, Some("fine".into()), DateTime::UNIX_EPOCH);
    let blocked = Review { merge_error: Some("git failed".into()), ..passed };
    let blocked = blocked.merged(Merge::Blocked, None, DateTime::UNIX_EPOCH);
    assert_eq!(blocked.said().as_deref(), Some("fine\n\ngit failed"));
    let again = blocked.again().expect("it is not merged");
    assert_eq!((again.merge_candidate.as_deref(), again.said().as_deref()), (Some("c"), Some("fine")));
    assert_eq!(again.merged(Merge::Merged, Some("c".into()), DateTime::UNIX_EPOCH).merge_candidate, None);
}

fn statuses() -> impl Strategy<Value = ReviewStatus> {
    use ReviewStatus as S;
    prop::sample::select(vec![S::Queued, S::Running, S::Passed, S::Failed, S::Error])
}

fn merges() -> impl Strategy<Value = Merge> {
    prop::sample::select(vec![Merge::None, Merge::Merged, Merge::Blocked, Merge::Conflict])
}

proptest! {
    #[test]
    fn a_verdict_completes_all_but_what_is_to_be_merged(status in statuses(), auto_merge: bool) {
        prop_assume!(!matches!(status, ReviewStatus::Queued | ReviewStatus::Running));
        let now = DateTime::UNIX_EPOCH;
        let judged = Review { auto_merge, ..review() }.judged(status, Some("why".into()), now);
        let merges = auto_merge && status == ReviewStatus::Passed;
        prop_assert_eq!(judged.stage(), if merges { Stage::Merge } else { Stage::Over });
        prop_assert_eq!(judged.completed_at.is_none(), merges);
        let merged = judged.merged(Merge::Merged, Some("b".into()), now);
        prop_assert_eq!(merged.stage(), Stage::Over);
        prop_assert!(!merges || merged.again().is_none());
    }

    #[test]
    fn what_is_done_again_is_work_again_and_nothing_else_is(
        status in statuses(), merge in merges(), auto_merge: bool, complete: bool,
    ) {
        let completed_at = complete.then_some(DateTime::UNIX_EPOCH);
        let review = Review { status, auto_merge, merge, completed_at, ..review() };
        if let Some(again) = review.again() {
            prop_assert_eq!(review.stage(), Stage::Over);
            prop_assert!(status != ReviewStatus::Passed || matches!(merge, Merge::Blocked | Merge::Conflict));
            prop_assert!(again.completed_at.is_none() && again.merge == Merge::None);
            prop_assert_eq!(&again.head_sha, &review.head_sha);
            prop_assert_eq!(again.stage() == Stage::Review, status != ReviewStatus::Passed);
        }
    }
}
