//! A temporary folder with a janitor: a small process that notices when the test ends, however it
//! ends (return, panic, kill -9), kills what the test noted under `pids/` and removes the folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use std::os::unix::process::CommandExt;

/// Where the scripts that start servers live.
const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/services");

/// A private folder and everything that runs in it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    janitor: Child,
}

impl Folder {
    /// A new folder under the system's temporary one; `name` is only for whoever looks there.
    pub(crate) fn new(name: &str) -> Self {
        let path = tempfile::Builder::new()
            .prefix(&format!("postrider-{name}-"))
            .tempdir()
            .expect("a temporary folder can be made")
            .keep();
        std::fs::create_dir(path.join("pids")).expect("a new folder is writable");
        // A group of its own: when nextest ends a test that hangs, the janitor must survive it.
        let janitor = Command::new(format!("{SERVICES}/janitor"))
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("the janitor script runs: bash is installed");
        Self { path, janitor }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The pid noted under this name, or None when that process was ended.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        let note = std::fs::read_to_string(self.path.join("pids").join(name)).ok()?;
        note.trim().parse().ok()
    }

    /// Notes a process for the janitor.
    pub(crate) fn note(&self, name: &str, pid: u32) {
        std::fs::write(self.path.join("pids").join(name), pid.to_string())
            .expect("the pids folder is writable");
    }

    /// Forgets a process that has ended, so that nobody kills a stranger with its number.
    pub(crate) fn forget(&self, name: &str) {
        let note = self.path.join("pids").join(name);
        if note.exists() {
            std::fs::remove_file(note).expect("the pids folder is writable");
        }
    }

    /// The port that a service script chose for itself.
    pub(crate) fn port(&self, name: &str) -> u16 {
        let file = self.path.join(format!("{name}.port"));
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("no {}: {error}", file.display()));
        text.trim().parse().expect("a port file holds a port")
    }

    /// Runs a script of `tests/services` on this folder until it says that its server answers.
    pub(crate) async fn start_service(&self, script: &str) {
        let mut command = Command::new(format!("{SERVICES}/{script}"));
        command.arg(&self.path).stdin(Stdio::null());
        let output = run(command).await;
        assert!(
            output.status.success(),
            "{script} did not start: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        if let Err(error) = self.janitor.wait() {
            eprintln!("the janitor of {} is gone: {error}", self.path.display());
        }
    }
}

/// Runs a command to its end without blocking the runtime.
pub(crate) async fn run(mut command: Command) -> std::process::Output {
    tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("the blocking task does not panic")
        .expect("the command can be started")
}
