//! The fault matrix, F01 to F25: one scenario for each, under load, with a history and the checker
//! at the end. `make test` runs the short form of the quick ones, `make chaos` the long form of all.

mod broker;
mod cluster;
mod people;
mod processes;
mod world;

use crate::support::{
    checker::Bar,
    run::{Run, Size},
    world::{Kind, World},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f00_no_fault_no_duplicate() {
    let world = World::start(Kind::Rabbit).await;
    let mut run = Run::start("F00", world, Size::of(4, 60)).await.counting();
    run.load().await;
    let report = run.finish(&Bar::strict()).await;
    assert_eq!(report.duplicates, 0);
}
