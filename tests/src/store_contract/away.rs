//! The store away: calls say so soon, nobody hangs, and all goes on by itself when it is back.

use std::{sync::Arc, time::Duration};

use event::access::Principal;
use jiff::Timestamp;
use store::{
    Error, Settings, Sight, Store,
    access::{Access, Denied},
    feed::Feed,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{Place, feed::until, insert, subscription};
use crate::support::postgres::Postgres;

/// Far above what a call may take, far below for ever.
const HANGS: Duration = Duration::from_secs(20);

async fn must_be_away<T: std::fmt::Debug>(call: impl Future<Output = Result<T, Error>>) {
    let answer = tokio::time::timeout(HANGS, call)
        .await
        .expect("a call does not hang");
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_outlives_its_server_and_goes_on_when_it_is_back() {
    let postgres = Postgres::start().await;
    let settings = Settings {
        url: postgres.url(),
        encryption_key: None,
    };
    let store = Store::open(&settings).await.unwrap();
    let stored = insert(&store, "a", "first").await;
    let every = Duration::from_millis(50);
    let feed = Feed::follow(store.clone(), every, CancellationToken::new());
    let before = until(&feed, |s| s.revision == 1).await;
    let access = Access::new(Some("bootstrap".into()), store.clone(), true);

    postgres.stop().await;
    must_be_away(store.ping()).await;
    must_be_away(store.subscription(&Sight::All, &stored.subscription.id)).await;
    must_be_away(store.insert_subscription(subscription("a", "lost"))).await;
    must_be_away(Store::open(&settings)).await;
    let now = Timestamp::UNIX_EPOCH;
    let token = format!("pr_{}_{}", "0".repeat(32), "0".repeat(64));
    assert_eq!(
        access.authenticate(Some(&token), now).await,
        Err(Denied::StoreAway)
    );
    let admitted = access.authenticate(Some("bootstrap"), now).await;
    assert_eq!(admitted, Ok(Principal::administrator()));
    let age = feed.age();
    assert!(age > every);
    assert!(
        Arc::ptr_eq(&feed.snapshot().unwrap(), &before),
        "the last snapshot stands"
    );

    postgres.start_again().await;
    insert(&store, "a", "second").await;
    let after = until(&feed, |s| s.revision == 2).await;
    assert_eq!(after.subscriptions.len(), 2);
    assert!(feed.age() < age);
    assert_eq!(
        access.authenticate(Some(&token), now).await,
        Err(Denied::Invalid)
    );
}

/// Passes bytes on, or holds every one back while frozen, as a network that swallows packets.
async fn freezable(upstream: String) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (freeze, frozen) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&upstream).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(pass(from_client, to_server, frozen.clone()));
            tokio::spawn(pass(from_server, to_client, frozen.clone()));
        }
    });
    (port, freeze)
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_each_call_seconds_and_nothing_after() {
    let place = Place::postgres().await;
    let direct: url::Url = place.settings.url.parse().unwrap();
    let upstream = format!("127.0.0.1:{}", direct.port().unwrap());
    let (port, freeze) = freezable(upstream).await;
    let mut through = direct;
    through.set_port(Some(port)).unwrap();
    let settings = Settings {
        url: through.into(),
        encryption_key: None,
    };
    let store = Store::open(&settings).await.unwrap();
    insert(&store, "a", "first").await;
    let feed = Feed::follow(
        store.clone(),
        Duration::from_millis(20),
        CancellationToken::new(),
    );
    until(&feed, |s| s.revision == 1).await;

    freeze.send_replace(true);
    // More calls at once than there are connections.
    let calls = (0..12).map(|_| must_be_away(store.ping()));
    futures_util::future::join_all(calls).await;
    must_be_away(store.insert_subscription(subscription("a", "lost"))).await;

    // Meanwhile the server fails over to a replica that lost the last change and has counted as
    // far again. The feed has noticed that it is away by the time its age is above a call's.
    while feed.age() < Duration::from_secs(6) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    place
        .execute("UPDATE subscriptions SET state = 'deleted', document = ''")
        .await;

    freeze.send_replace(false);
    until(&feed, |s| s.revision == 1 && s.subscriptions.is_empty()).await;
    let mut tries = 0;
    while store.ping().await.is_err() {
        tries += 1;
        assert!(tries < 20, "the store never came back");
    }
    // No connection stayed behind with a transaction open: writing is free at once.
    let next = insert(&place.open().await, "a", "second").await;
    assert!(next.subscription.revision >= 2);
    insert(&store, "a", "third").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_that_another_process_holds_is_away_and_then_back() {
    let place = Place::sqlite();
    let store = place.open().await;
    insert(&store, "a", "first").await;
    let mut other = place.raw().await;
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    must_be_away(store.insert_subscription(subscription("a", "lost"))).await;
    // Readers are not held up.
    assert_eq!(store.changes(0).await.unwrap().revision, 1);
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(insert(&store, "a", "second").await.subscription.revision, 2);
}
