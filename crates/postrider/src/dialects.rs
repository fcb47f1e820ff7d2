//! The dialects of this process: those that are built in, and the files of `dialects.path`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use dialect::Dialects;

use crate::{commands::Failure, settings::Settings};

/// How large a file may be: far more than any platform has words.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// `[dialects]`: what is spoken besides what is built in.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Folder {
    /// A folder of `NAME.toml` files.
    pub(crate) path: Option<PathBuf>,
}

/// Reads them all, or says what is wrong with which file in which line (exit code 64).
pub(crate) fn load(settings: &Settings) -> Result<Arc<Dialects>, Failure> {
    let files = match &settings.dialects.path {
        Some(folder) => files(folder)?,
        None => Vec::new(),
    };
    let dialects = Dialects::load(files).map_err(|faults| {
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        Failure::settings(lines.join("\n"))
    })?;
    Ok(Arc::new(dialects))
}

/// The name and the text of each file in the folder, by name. What begins with a dot or has
/// another ending is not looked at: a folder mounted by an orchestrator has such things in it.
fn files(folder: &Path) -> Result<Vec<(String, String)>, Failure> {
    let failed = |path: &Path, reason: &dyn std::fmt::Display| {
        Failure::settings(format!("dialects.path: {}: {reason}", path.display()))
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
        let path = entry.map_err(|error| failed(folder, &error))?.path();
        let name = path.file_name().unwrap_or_default();
        let Some(name) = name.to_str().map(str::to_owned) else {
            continue;
        };
        if name.starts_with('.') || path.extension() != Some("toml".as_ref()) {
            continue;
        }
        files.push((name, text(&path).map_err(|error| failed(&path, &error))?));
    }
    files.sort();
    Ok(files)
}

/// A file's text, within its bound.
pub(crate) fn text(path: &Path) -> Result<String, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}
