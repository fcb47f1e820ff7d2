//! F19 and F20: the clock jumps, the store goes away.

use std::{path::PathBuf, time::Duration};

use serde_json::json;
use sqlx::{Connection, SqliteConnection};

use crate::support::{
    checker::Bar,
    postgres::Postgres,
    rabbit,
    receiver::Answer,
    run::{Run, Size, is_long},
    world::{Kind, World},
};

/// Debian's libfaketime, or a failure that says how to install it.
fn faketime() -> PathBuf {
    let architectures = std::fs::read_dir("/usr/lib").expect("every system has it");
    let found = architectures
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|file| file.exists());
    found.expect("libfaketime is not installed: run deploy/install faketime")
}

/// The clock of all our processes goes a day forward, back, a day further back, and ten minutes
/// forward, while every delivery fails once. The broker's and the endpoints' clocks stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs libfaketime: make chaos"]
async fn f19_the_clock_jumps() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let clock = folder.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, offset).expect("a private folder is writable");
    set("+0");
    let environment = [
        ("env:LD_PRELOAD", faketime().display().to_string()),
        ("env:FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("env:FAKETIME_NO_CACHE", "1".into()),
        // Clocks that jump are wall clocks.
        ("env:FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let world = World::with(Kind::Rabbit, 1, &environment).await;
    let retry = json!({"delivery": {"retry": {"delays": ["2s", "2s", "2s", "2s"]}}});
    let mut run = Run::with("F19", world, Size::of(20, 60), retry).await;
    for wanting in &run.wanting {
        // Every second request fails, so that a retry waits at each jump.
        let answers = (0..run.size.events())
            .map(|n| Answer::status(if n % 2 == 0 { 503 } else { 200 }))
            .chain([Answer::status(200)]);
        run.world.receiver.plan(&wanting.path, answers);
    }
    run.load().await;
    let jumps = ["+86400", "+0", "-86400", "+0", "+600", "+0"];
    for (n, offset) in jumps.into_iter().enumerate() {
        run.reaches((n + 1) as f64 / (jumps.len() + 1) as f64).await;
        set(offset);
        run.mark(&format!("the clock stands at {offset} s"));
    }
    run.finish(&Bar {
        timestamp_off_max_ms: None,
        ..Bar::strict()
    })
    .await;
}

/// The database is killed and comes back. Without it nobody can say who may publish, so that intake
/// answers 503; what was accepted is delivered meanwhile, and recorded afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_the_database_goes_away() {
    let postgres = Postgres::start().await;
    let settings = vec![
        ("broker.url", rabbit::fresh_vhost_url().await),
        ("store.url", postgres.fresh_database_url().await),
    ];
    let world = World::around(Kind::Rabbit, settings).await;
    let mut run = Run::start("F20", world, Size::of(6, 60)).await;
    run.load().await;
    run.reaches(0.3).await;
    let gone = run.mark("the database is killed");
    postgres.stop().await;
    let told = run.answered(503, gone).await;
    run.figure("503 without the database", told - gone, None);
    let long = if is_long() { 15 } else { 3 };
    tokio::time::sleep(Duration::from_secs(long)).await;
    postgres.start_again().await;
    let back = run.mark("the database is back");
    let accepted = run.accepted_after(back).await;
    run.figure("accepted again", accepted - back, Some(10_000));
    run.finish(&Bar::strict()).await;
}

/// Somebody holds the SQLite file locked for longer than anybody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_the_file_of_the_store_is_locked() {
    let world = World::start(Kind::Embedded).await;
    let folder = world.setting("broker.url").replace("embedded://", "");
    let mut run = Run::start("F20-locked", world, Size::of(8, 40)).await;
    run.load().await;
    run.reaches(0.3).await;
    let url = format!("sqlite://{folder}/postrider.db");
    let mut connection = SqliteConnection::connect(&url)
        .await
        .expect("the store's file is there");
    run.mark("the file is locked");
    sqlx::raw_sql("begin exclusive")
        .execute(&mut connection)
        .await
        .expect("locked");
    tokio::time::sleep(Duration::from_secs(if is_long() { 20 } else { 7 })).await;
    sqlx::raw_sql("rollback")
        .execute(&mut connection)
        .await
        .expect("unlocked");
    run.mark("the file is free");
    run.finish(&Bar::strict()).await;
}
