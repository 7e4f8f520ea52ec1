//! The scripts themselves, under shells of this machine and without a cluster: what a container's
//! `sh` would be told is told to dash, to busybox with its own programs, and to bash.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    frames::{End, Frame, Frames},
    orders::Orders,
    payload::{self, Payload},
};
use crate::{
    domain::{
        clock::Clock,
        command::{EndAsked, Launch},
    },
    runtime::Handle,
};

/// Longest that anything is waited for. Reached only by a test that fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// A container as far as scripts see one: a shell, its programs, a folder of ours.
struct Container {
    shell: Vec<String>,
    path: Option<String>,
    dir: TempDir,
    orders: Orders,
}

/// Each kind of container that scripts have to work in.
fn containers() -> Vec<Container> {
    let dir = || tempfile::tempdir().expect("a temporary directory");
    let new = |shell: &[&str], path, dir: TempDir| Container {
        shell: shell.iter().map(|&word| word.to_owned()).collect(),
        path,
        orders: Orders {
            root: dir.path().join("rdev").to_str().expect("letters").to_owned(),
            kill_grace: Duration::from_millis(300),
            output_limit: 100_000,
        },
        dir,
    };
    let boxed = dir();
    let programs = boxed.path().join("bin");
    fs::create_dir(&programs).expect("our own folder");
    let installed = Command::new("busybox").arg("--install").arg("-s").arg(&programs).status().expect("busybox");
    assert!(installed.success(), "busybox makes its links");
    let path = programs.to_str().expect("letters").to_owned();
    vec![
        new(&["dash"], None, dir()),
        new(&[&format!("{path}/sh")], Some(path.clone()), boxed),
        new(&["bash"], None, dir()),
    ]
}

impl Container {
    fn begin(&self, payload: Payload) -> Child {
        let text = payload.text();
        let argv = payload::argv(&text);
        let mut command = Command::new(&self.shell[0]);
        command.args(&self.shell[1..]).args(&argv[1..]).current_dir("/");
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a shell");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it listens");
        child
    }

    /// Code, stdout, stderr.
    fn tell(&self, payload: Payload) -> (i32, Vec<u8>, String) {
        let output = self.begin(payload).wait_with_output().expect("it ends");
        (output.status.code().expect("a code"), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn launch_for(&self, key: i64, argv: &[&str], left: Duration) {
        let (code, _, said) = self.tell(self.launching(key, argv, left));
        assert_eq!(code, 0, "{:?}: {said}", self.shell);
    }

    fn launching(&self, key: i64, argv: &[&str], left: Duration) -> Payload {
        let id = format!("cmd-{}-{key}", self.dir.path().display());
        let env = [("RDEV_COMMAND_ID", id.as_str()), ("RDEV_PROJECT_ID", "p"), ("ODD", "it's\n\"odd\" $HOME")];
        let launch = Launch {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>(),
            cwd: self.dir.path().to_str().expect("letters").to_owned(),
            stdin: (argv == ["cat"]).then(|| "what it reads\n".to_owned()),
            deadline: Clock::System.now(),
            place: None,
        };
        self.orders.launch(&handle(key, &id), &launch, &[], left).expect("names that can be set")
    }

    /// Starts it and follows it to its end.
    fn run(&self, key: i64, argv: &[&str]) -> Story {
        self.launch_for(key, argv, PATIENCE);
        self.follow(key, 0, 0)
    }

    fn script(&self, key: i64, script: &str) -> Story {
        self.run(key, &["sh", "-c", script])
    }

    fn follow(&self, key: i64, stdout: u64, stderr: u64) -> Story {
        let (code, told, said) = self.tell(self.orders.follow(key, stdout, stderr));
        assert_eq!(code, 0, "{:?}: {said}", self.shell);
        Story::read(&told)
    }

    fn file(&self, key: i64, name: &str) -> std::path::PathBuf {
        Path::new(&self.orders.root).join(format!("commands/{key}/{name}"))
    }

    fn pid_in(&self, key: i64, name: &str) -> i32 {
        let text = fs::read_to_string(self.file(key, name)).expect("it was written");
        text.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a number")
    }
}

/// What a follower told.
#[derive(Debug)]
struct Story {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: End,
}

impl Story {
    fn read(told: &[u8]) -> Self {
        let mut frames = Frames::default();
        frames.buffer.extend_from_slice(told);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match frames.next().expect("words of the follower").expect("an end") {
                Frame::Stdout(bytes) => stdout.extend(bytes),
                Frame::Stderr(bytes) => stderr.extend(bytes),
                Frame::Tick => {}
                Frame::End(end) => return Self { stdout, stderr, end },
            }
        }
    }

    fn how(&self) -> (&str, Option<i32>, Option<i32>) {
        (self.end.termination.as_str(), self.end.code, self.end.signal)
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("it lives");
}

fn handle(key: i64, id: &str) -> Handle {
    Handle { project: "p".into(), command_id: id.into(), key, place: None }
}

#[test]
fn both_outputs_and_the_code_come_whole() {
    for container in containers() {
        let story = container.script(1, "printf 'a\\0b'; echo err >&2; exit 7");
        assert_eq!((story.stdout.as_slice(), story.stderr.as_slice()), (b"a\0b".as_slice(), b"err\n".as_slice()));
        assert_eq!(story.how(), ("exit", Some(7), None), "{:?}", container.shell);
        let story = container.script(2, "printf '%s|%s' \"$ODD\" \"$PWD\"");
        let expected = format!("it's\n\"odd\" $HOME|{}", container.dir.path().display());
        assert_eq!(String::from_utf8_lossy(&story.stdout), expected);
        assert_eq!(container.run(3, &["cat"]).stdout, b"what it reads\n");
        assert_eq!(container.script(4, "cat").stdout, b"", "no input is an end at once");
    }
}

#[test]
fn a_code_of_137_is_no_death_by_a_signal() {
    for container in containers() {
        let how = |key, script| container.script(key, script).end;
        let code = how(1, "exit 137");
        assert_eq!(
            (code.code, code.signal, code.termination.as_str()),
            (Some(137), None, "exit"),
            "{:?}",
            container.shell
        );
        let death = how(2, "kill -KILL $$");
        assert_eq!((death.code, death.signal, death.termination.as_str()), (None, Some(9), "signal"));
        let pipe = how(3, "kill -PIPE $$");
        assert_eq!((pipe.code, pipe.signal), (None, Some(13)));
    }
}

#[test]
fn what_cannot_be_started_says_why() {
    for container in containers() {
        let story = container.run(1, &["no such program"]);
        assert_eq!(story.how(), ("start_failed", None, None));
        let said = story.end.message.expect("a reason");
        assert!(said.contains("no such program"), "{said}");
        // What a program of its own says with the same code is its own.
        assert_eq!(container.script(2, "exit 127").how(), ("exit", Some(127), None));
    }
}

#[test]
fn asked_twice_it_runs_once_and_a_late_start_finds_that_it_is_over() {
    for container in containers() {
        let mark = container.dir.path().join("ran");
        let script = format!("echo once >> {}; sleep 0.2", mark.display());
        let argv = ["sh", "-c", script.as_str()];
        let starts: Vec<Child> = (0..4).map(|_| container.begin(container.launching(1, &argv, PATIENCE))).collect();
        for start in starts {
            assert!(start.wait_with_output().expect("it ends").status.success());
        }
        assert_eq!(container.follow(1, 0, 0).how(), ("exit", Some(0), None));
        assert_eq!(container.tell(container.orders.forget(1)).0, 0);
        container.launch_for(1, &argv, PATIENCE);
        assert_eq!(fs::read_to_string(&mark).expect("it ran"), "once\n", "{:?}", container.shell);
        assert_eq!(container.follow(1, 0, 0).how(), ("forgotten", None, None));
    }
}

#[test]
fn a_start_whose_time_is_up_does_not_begin() {
    for container in containers() {
        let (code, _, _) = container.tell(container.launching(1, &["true"], Duration::ZERO));
        assert_eq!(code, 95);
        assert_eq!(container.follow(1, 0, 0).how(), ("missing", None, None));
    }
}

#[test]
fn a_deadline_and_an_asked_end_send_term_first_and_kill_after_the_grace() {
    for container in containers() {
        container.launch_for(
            1,
            &["sh", "-c", "trap 'echo bye; exit 4' TERM; while :; do sleep 0.05; done"],
            Duration::from_millis(300),
        );
        let story = container.follow(1, 0, 0);
        assert_eq!((story.how(), story.stdout.as_slice()), (("timeout", Some(4), None), b"bye\n".as_slice()));
        container.launch_for(2, &["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], PATIENCE);
        assert_eq!(container.tell(container.orders.end(2, EndAsked::SessionEnded)).0, 0);
        assert_eq!(container.tell(container.orders.end(2, EndAsked::Cancelled)).0, 0);
        assert_eq!(container.follow(2, 0, 0).how(), ("session_ended", None, None), "the first reason stands");
        assert_eq!(container.tell(container.orders.end(2, EndAsked::Cancelled)).0, 0, "it has ended");
    }
}

#[test]
fn nothing_that_it_started_outlives_it() {
    for container in containers() {
        // In its group; in a session of its own; with nothing of its environment but in its session.
        let script =
            "sleep 600 & echo $!; setsid sleep 600 & echo $!; env -i \"$(command -v sleep)\" 600 & echo $!; sleep 0.2";
        let story = container.script(1, script);
        assert_eq!(story.how(), ("exit", Some(0), None));
        for pid in String::from_utf8_lossy(&story.stdout).lines() {
            let pid: i32 = pid.parse().expect("a number");
            assert!(!lives(pid), "{pid} outlived its command under {:?}", container.shell);
        }
    }
}

#[test]
fn what_holds_the_pipes_open_does_not_hold_up_the_end() {
    for container in containers() {
        let begun = Instant::now();
        let story = container.script(1, "setsid sh -c 'echo late; exec sleep 600' & sleep 0.3; exit 3");
        assert_eq!((story.how(), story.stdout.as_slice()), (("exit", Some(3), None), b"late\n".as_slice()));
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn more_than_the_limit_is_not_kept() {
    for container in containers() {
        let story = container.script(1, "yes");
        assert_eq!(story.how().0, "output_limit", "{:?}", container.shell);
        let limit = usize::try_from(container.orders.output_limit).expect("small");
        assert!((limit..limit + 2 * 1024 + 2).contains(&story.stdout.len()), "{}", story.stdout.len());
        // So much is not too much.
        let exact = container.script(2, "head -c 60000 /dev/zero; head -c 40000 /dev/zero >&2");
        assert_eq!((exact.how(), exact.stdout.len(), exact.stderr.len()), (("exit", Some(0), None), 60_000, 40_000));
    }
}

#[test]
fn it_is_read_on_from_any_place() {
    for container in containers() {
        container.launch_for(1, &["sh", "-c", "seq 1 9000; seq 1 9 >&2"], PATIENCE);
        let whole = container.follow(1, 0, 0);
        for (out, err) in [(1, 3), (30_001, 18), (whole.stdout.len() - 1, 0), (whole.stdout.len(), whole.stderr.len())]
        {
            let rest = container.follow(1, out as u64, err as u64);
            assert_eq!((&rest.stdout[..], &rest.stderr[..]), (&whole.stdout[out..], &whole.stderr[err..]));
            assert_eq!(rest.how(), ("exit", Some(0), None));
        }
    }
}

#[test]
fn a_supervisor_that_was_killed_is_told_and_takes_nothing_with_it_into_the_dark() {
    for container in containers() {
        container.launch_for(1, &["sh", "-c", "echo said; setsid sleep 600 & exec sleep 600"], PATIENCE);
        until("its output", || fs::read(container.file(1, "out")).is_ok_and(|out| !out.is_empty()));
        let (main, parent) = (container.pid_in(1, "main"), container.pid_in(1, "parent"));
        kill(container.pid_in(1, "supervisor"));
        let story = container.follow(1, 0, 0);
        assert_eq!((story.how(), story.stdout.as_slice()), (("lost", None, None), b"said\n".as_slice()));
        until("the end of what it had started", || !lives(main) && !lives(parent));
    }
}

#[test]
fn what_is_kept_is_listed_and_what_is_over_is_swept() {
    for container in containers() {
        assert_eq!(container.tell(container.orders.kept()).1, b"");
        container.launch_for(1, &["sleep", "600"], PATIENCE);
        container.run(22, &["true"]);
        let kept = || String::from_utf8_lossy(&container.tell(container.orders.kept()).1).into_owned();
        assert_eq!(kept(), "1\n22\n");
        assert_eq!(container.tell(container.orders.sweep(&[1, 22, 333])).0, 0);
        assert_eq!(kept(), "1\n", "what runs stays");
        assert_eq!(container.tell(container.orders.end(1, EndAsked::Cancelled)).0, 0);
        assert_eq!(container.follow(1, 0, 0).how().0, "cancelled");
    }
}

#[test]
fn a_program_that_is_missing_is_named() {
    let container = containers().remove(1);
    let programs = container.path.clone().expect("busybox has its own");
    fs::remove_file(Path::new(&programs).join("setsid")).expect("it is there");
    let (code, _, said) = container.tell(container.launching(1, &["true"], PATIENCE));
    assert_eq!((code, said.trim()), (96, "the program setsid"));
    let workspace = container.dir.path().join("w");
    let (code, _, said) = container.tell(Orders::prepare(workspace.to_str().expect("letters")));
    assert_eq!((code, said.trim()), (96, "the program setsid"));
}
