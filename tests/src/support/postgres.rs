//! Real PostgreSQL. Most tests need only a database of their own in the cluster that
//! `tests/with-services` started; a test that stops one starts a private one.

use sqlx::{Connection, PgConnection};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::OnceCell;

use super::folder::Folder;
use super::process::{gone, signal};

/// A private cluster, without protection from power cuts, ended when dropped.
#[derive(Debug)]
pub(crate) struct Postgres {
    folder: Folder,
}

impl Postgres {
    /// A new empty cluster that answers.
    pub(crate) async fn start() -> Self {
        let folder = Folder::new("postgres");
        folder.start_service("postgres").await;
        Self { folder }
    }

    /// `postgres://…` of its default database.
    pub(crate) fn url(&self) -> String {
        url(self.folder.port("postgres"), "postgres")
    }

    /// Stops the cluster at once, cutting every connection.
    pub(crate) async fn stop(&self) {
        let pid = self.folder.pid("postgres").expect("the cluster runs");
        signal(pid, "QUIT");
        gone(pid).await;
        self.folder.forget("postgres");
    }

    /// Starts it again after [`Self::stop`], with its data and on its port.
    pub(crate) async fn start_again(&self) {
        assert!(
            self.folder.pid("postgres").is_none(),
            "the cluster still runs"
        );
        self.folder.start_service("postgres").await;
    }

    /// The URL of a new empty database in this cluster.
    pub(crate) async fn fresh_database_url(&self) -> String {
        create_database(self.folder.port("postgres")).await
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postrider@127.0.0.1:{port}/{database}")
}

async fn create_database(port: u16) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "t_{}_{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let mut connection = PgConnection::connect(&url(port, "postgres"))
        .await
        .expect("the cluster accepts a connection");
    let sql = sqlx::AssertSqlSafe(format!("create database {name}"));
    sqlx::raw_sql(sql)
        .execute(&mut connection)
        .await
        .expect("a database can be created");
    url(port, &name)
}

/// The URL of an empty database that nobody has used: in the shared cluster that `with-services`
/// started, or, for who runs a test by hand, in one that this process starts for itself.
pub(crate) async fn fresh_database_url() -> String {
    static OWN: OnceCell<Postgres> = OnceCell::const_new();
    match std::env::var("POSTRIDER_TEST_POSTGRES_PORT") {
        Ok(port) => {
            create_database(port.parse().expect("with-services exports port numbers")).await
        }
        Err(_) => {
            OWN.get_or_init(Postgres::start)
                .await
                .fresh_database_url()
                .await
        }
    }
}

#[tokio::test]
async fn a_stopped_cluster_comes_back_with_its_data() {
    let postgres = Postgres::start().await;
    let url = postgres.fresh_database_url().await;
    postgres.stop().await;
    PgConnection::connect(&url)
        .await
        .expect_err("a stopped cluster answers nobody");
    postgres.start_again().await;
    PgConnection::connect(&url)
        .await
        .expect("the database is still there");
}

#[tokio::test]
async fn fresh_databases_are_different() {
    let (first, second) = (fresh_database_url().await, fresh_database_url().await);
    assert_ne!(first, second);
    for url in [first, second] {
        PgConnection::connect(&url)
            .await
            .expect("a fresh database accepts its user");
    }
}
