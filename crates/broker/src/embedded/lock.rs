//! One process per folder: a lock that dies with its process, however that dies.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use crate::settings::OpenError;

/// A process that is just ending may still hold the lock: a restart waits for it this long.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(25);

/// Held for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

pub(super) fn take(folder: &Path) -> Result<Lock, OpenError> {
    let path = folder.join("broker.lock");
    let refuse = |error: &dyn std::fmt::Display| {
        OpenError::Other(format!("embedded broker lock {}: {error}", path.display()))
    };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| refuse(&error))?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                let path = folder.display().to_string();
                return Err(OpenError::InUse {
                    path,
                    by: holder(&mut file),
                });
            }
            Err(TryLockError::Error(error)) => return Err(refuse(&error)),
        }
    }
    // The pid is for people: the lock is what counts.
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
    written.map_err(|error| refuse(&error))?;
    Ok(Lock { _file: file })
}

fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut pid)) {
        Ok(_) if pid.parse::<u32>().is_ok() => format!(" (process {pid})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = take(folder.path()).expect("free");
        let error = take(folder.path()).expect_err("taken").to_string();
        assert!(
            error.contains(&format!("(process {})", std::process::id())),
            "{error}"
        );
        drop(first);
        take(folder.path()).expect("free again");
    }
}
