//! Where the database is: `store.url` read, checked and made absolute. Messages name the setting
//! and never show a password.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::Error;

/// The file that is made in a folder.
const FILE_NAME: &str = "postrider.db";

/// A database that can be opened.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(url::Url),
}

impl fmt::Debug for Location {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "Sqlite({})", path.display()),
            Self::Postgres(_) => f.write_str("Postgres(***)"),
        }
    }
}

impl Location {
    /// Reads `store.url`. Looks at the file system only to tell a folder from a file.
    pub(crate) fn parse(written: &str) -> Result<Self, Error> {
        let written = written.trim();
        if written.is_empty() {
            return Err(refuse("is empty"));
        }
        if let Some(rest) = written.strip_prefix("sqlite:") {
            return sqlite(rest.strip_prefix("//").unwrap_or(rest));
        }
        let scheme = written.split_once("://").map_or("", |(scheme, _)| scheme);
        if !matches!(scheme, "postgres" | "postgresql") {
            return Err(refuse("begins with neither"));
        }
        let url =
            url::Url::parse(written).map_err(|error| refuse(&format!("is no URL: {error}")))?;
        Ok(Self::Postgres(url))
    }

    /// Says in an error which server it was that is away; a file's name is there already, or of no
    /// use.
    pub(crate) fn name_in(&self, error: Error) -> Error {
        match (self, error) {
            (Self::Postgres(url), Error::Unavailable(why)) => {
                let host = url.host_str().unwrap_or("localhost");
                let port = url.port().unwrap_or(5432);
                Error::Unavailable(format!("{why} (store.url names {host}:{port})"))
            }
            (_, error) => error,
        }
    }

    /// The file beside a SQLite database that keeps its encryption key when none is set.
    pub(crate) fn key_file(&self) -> Option<PathBuf> {
        match self {
            Self::Sqlite(path) => {
                let mut name = path.clone().into_os_string();
                name.push(".key");
                Some(name.into())
            }
            Self::Postgres(_) => None,
        }
    }

    /// Makes the file and the folders above it, readable by nobody else, where they are missing;
    /// then gives the URL that the driver understands.
    pub(crate) fn prepare(&self) -> Result<String, Error> {
        match self {
            Self::Postgres(url) => Ok(url.to_string()),
            Self::Sqlite(path) => {
                let path = make_private(path).map_err(|error| {
                    Error::Fatal(format!(
                        "store.url: cannot make {}: {error}",
                        path.display()
                    ))
                })?;
                let path = path
                    .to_str()
                    .ok_or_else(|| refuse("is a path that is not UTF-8"))?;
                // The driver decodes the path; these four are what decoding would trip over.
                let mut encoded = String::from("sqlite://");
                for character in path.chars() {
                    match character {
                        '%' => encoded.push_str("%25"),
                        '?' => encoded.push_str("%3F"),
                        '#' => encoded.push_str("%23"),
                        '\\' => encoded.push_str("%5C"),
                        other => encoded.push(other),
                    }
                }
                Ok(encoded)
            }
        }
    }
}

fn sqlite(path: &str) -> Result<Location, Error> {
    if path.is_empty() || path.contains(":memory:") {
        return Err(refuse("names no file"));
    }
    let folder = path.ends_with('/')
        || Path::new(path).is_dir()
        || (Path::new(path).extension().is_none() && !Path::new(path).is_file());
    let path = Path::new(path);
    Ok(Location::Sqlite(if folder {
        path.join(FILE_NAME)
    } else {
        path.to_owned()
    }))
}

fn refuse(why: &str) -> Error {
    Error::Fatal(format!(
        "store.url {why}; it is `sqlite://PATH` (a file, or a folder for {FILE_NAME}) or \
         `postgres://USER:PASSWORD@HOST:PORT/DATABASE`"
    ))
}

/// The file's absolute path, without links in the folders above it.
fn make_private(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is not a file's name",
        ));
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let file = folder.canonicalize()?.join(name);
    // SQLite gives its side files the mode of the database, so this one decides for all.
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(written: &str, expected: &str) {
        let message = Location::parse(written).unwrap_err().to_string();
        assert!(message.starts_with("store.url"), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn unusable_urls_name_the_setting_and_hide_the_password() {
        refused("", "is empty");
        refused("mysql://root:hunter2@localhost/x", "begins with neither");
        refused(
            "postgres://me:hunter2@localhost:99999/x",
            "invalid port number",
        );
        refused("postgres://me:hunter2@[::1/x", "invalid IPv6 address");
        refused("sqlite://", "names no file");
        refused("sqlite://:memory:", "names no file");
        refused("data/postrider.db", "begins with neither");
    }

    #[test]
    fn a_folder_gets_the_usual_file_and_a_file_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |tail: &str| {
            let written = format!("sqlite://{}{tail}", folder.path().display());
            match Location::parse(&written).unwrap() {
                Location::Sqlite(path) => path
                    .strip_prefix(folder.path())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                Location::Postgres(_) => unreachable!("a sqlite url"),
            }
        };
        std::fs::write(folder.path().join("plain"), "").unwrap();
        std::fs::create_dir(folder.path().join("dotted.d")).unwrap();
        assert_eq!(at(""), "postrider.db");
        assert_eq!(at("/new"), "new/postrider.db");
        assert_eq!(at("/new.dir/"), "new.dir/postrider.db");
        assert_eq!(at("/dotted.d"), "dotted.d/postrider.db");
        assert_eq!(at("/plain"), "plain");
        assert_eq!(at("/my.db"), "my.db");
    }

    #[test]
    fn both_names_of_postgres_are_known() {
        for written in [
            "postgres://u@h/d",
            "postgresql://u:p@h:5433/d?sslmode=require",
        ] {
            let location = Location::parse(written).unwrap();
            assert_eq!(format!("{location:?}"), "Postgres(***)");
        }
    }
}
