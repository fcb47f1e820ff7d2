//! Processes by pid: the product's binary as a child, and the signals that tests send.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child process with its output in files, killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    // Last, so that the child is dead before its folder goes.
    _folder: tempfile::TempDir,
}

impl Process {
    /// Starts a command; its standard output and error go to files of its own.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("postrider-process-")
            .tempdir()
            .expect("a temporary folder can be made");
        let stdout = folder.path().join("stdout");
        let stderr = folder.path().join("stderr");
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("a new folder is writable"))
            .stderr(File::create(&stderr).expect("a new folder is writable"))
            .spawn()
            .unwrap_or_else(|error| panic!("{name} can be started: {error}"));
        Self {
            child,
            name,
            stdout,
            stderr,
            _folder: folder,
        }
    }

    /// The product itself, with these arguments.
    pub(crate) fn postrider<I, A>(arguments: I) -> Self
    where
        I: IntoIterator<Item = A>,
        A: AsRef<std::ffi::OsStr>,
    {
        let mut command = Command::new(postrider());
        command.args(arguments);
        Self::spawn(command)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`, …).
    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Ends it as a power cut would, and returns when it is gone.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child can be waited for");
    }

    /// Its exit status, once it has ended.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits until it ends by itself; panics with its output when it does not within `limit`.
    pub(crate) async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(
                start.elapsed() < limit,
                "{} still runs after {limit:?}; it wrote:\n{}\n{}",
                self.name,
                self.stdout(),
                self.stderr()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("{} could not be ended: {error}", self.name);
        }
    }
}

fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The folder of this build's artifacts: `target/debug` for a plain `cargo test`.
pub(crate) fn profile_folder() -> PathBuf {
    // …/target/debug/deps/promises-<hash>
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("a test runs from PROFILE/deps");
    folder.to_path_buf()
}

/// The binary that this same target folder holds; `make test` builds it before the tests.
pub(crate) fn postrider() -> PathBuf {
    let binary = profile_folder().join("postrider");
    assert!(
        binary.exists(),
        "{} is missing: run cargo build -p postrider, or make test",
        binary.display()
    );
    binary
}

/// A program on the PATH, or a failure that says how to install it.
pub(crate) fn program(name: &str, part: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run deploy/install {part}"))
}

/// Sends a signal to a process that this test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("bash")
        .args(["-c", r#"kill -s "$1" "$2""#, "kill", name, &pid.to_string()])
        .stdin(Stdio::null())
        .status()
        .expect("bash is installed");
    assert!(status.success(), "no process {pid} to send {name} to");
}

/// Does this process run? One that has ended and was not reaped yet does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state is the first field after the name, which may itself hold spaces and brackets.
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !state.starts_with(['Z', 'X'])
}

/// Waits until a process that was told to end has ended.
pub(crate) async fn gone(pid: u32) {
    let start = Instant::now();
    while is_alive(pid) {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "process {pid} does not end"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A free loopback port, below the ephemeral range: nothing takes it by accident as the source of
/// an outgoing connection while a server that uses it is down between two starts.
pub(crate) fn free_port() -> u16 {
    loop {
        // The standard library's seed of a hash map is the randomness at hand.
        let random = RandomState::new().build_hasher().finish();
        let port = 10_240 + u16::try_from(random % 22_000).expect("smaller than 22 000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
