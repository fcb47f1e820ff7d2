//! The encryption key: found again, refused when it is another, replaced when one is set.

use event::access::Scope;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use store::{Error, Settings, Sight, Store};

use super::{Place, insert, promises, read_pages, shown, subscription};

promises!(
    a_store_opens_again_with_the_key_it_keeps,
    another_key_is_refused,
    a_key_that_is_set_later_encrypts_everything_anew,
    stores_opened_at_the_same_moment_agree,
    a_store_of_a_newer_version_is_refused,
    a_damaged_secret_is_an_error_and_not_a_panic,
);

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER: &str = "//////////////////////////////////////////8=";

async fn a_store_opens_again_with_the_key_it_keeps(place: Place) {
    let stored = insert(&place.open().await, "a", "first").await;
    let read = place
        .open()
        .await
        .subscription(&Sight::All, &stored.subscription.id)
        .await;
    assert_eq!(shown(&read.unwrap().unwrap()), shown(&stored));
}

async fn another_key_is_refused(place: Place) {
    for wrong in ["", "short", "not base64 at all!"] {
        let message = place.refuses(Some(wrong)).await;
        assert_eq!(
            message,
            "store.encryption_key must be 32 bytes written in base64"
        );
    }
    let store = Store::open(&place.with_key(Some(KEY))).await.unwrap();
    insert(&store, "a", "first").await;
    let message = place.refuses(Some(OTHER)).await;
    assert!(
        message.contains("store.encryption_key is not the key"),
        "{message}"
    );
    assert!(
        !message.contains(OTHER) && !message.contains(KEY),
        "{message}"
    );
    let message = place.refuses(None).await;
    assert!(
        message.contains("set store.encryption_key") || message.contains("; set it"),
        "{message}"
    );
    // The right one still opens, padded or not.
    Store::open(&place.with_key(Some(KEY.trim_end_matches('='))))
        .await
        .unwrap();
}

async fn a_key_that_is_set_later_encrypts_everything_anew(place: Place) {
    let before = place.open().await;
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(insert(&before, "a", &format!("{n}")).await);
    }
    before
        .delete_subscription(&Sight::All, &all.remove(0).subscription.id)
        .await
        .unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let (_, token) = before
        .create_token("t", None, vec![Scope::Read], None, now)
        .await
        .unwrap();
    let kept = match &place.folder {
        Some(_) => std::fs::read_to_string(place.path("postrider.db.key")).unwrap(),
        None => {
            let row: (String,) = sqlx::query_as("SELECT kept_key FROM head")
                .fetch_one(&mut place.raw().await)
                .await
                .unwrap();
            row.0
        }
    };

    let settings = place.with_key(Some(KEY));
    let after = Store::open(&settings).await.unwrap();
    let list = async |paging: store::Paging| after.subscriptions(&Sight::All, None, &paging).await;
    let read = read_pages(2, list, async |_| {}).await;
    assert_eq!(
        read.iter().map(shown).collect::<Vec<_>>(),
        all.iter().map(shown).collect::<Vec<_>>()
    );
    assert!(
        after
            .authenticate(token.expose_secret(), now)
            .await
            .unwrap()
            .is_some()
    );

    // The old key is nowhere and opens nothing.
    assert!(
        !place
            .loot_after_checkpoint()
            .await
            .contains(kept.trim().as_bytes())
    );
    if place.folder.is_some() {
        assert!(!place.path("postrider.db.key").exists());
    }
    let message = place.refuses(None).await;
    assert!(
        message.contains("store.encryption_key") || message.contains("encryption_key; set it"),
        "{message}"
    );
    assert!(
        place
            .refuses(Some(kept.trim()))
            .await
            .contains("is not the key")
    );

    // Who still runs with it can neither read the rows nor add one that nobody else could read.
    for refused in [
        before
            .insert_subscription(subscription("a", "late"))
            .await
            .map(drop),
        before.changes(0).await.map(drop),
    ] {
        let Err(Error::Fatal(message)) = refused else {
            panic!("{refused:?}")
        };
        assert!(message.contains("restart"), "{message}");
    }
    insert(&after, "a", "next").await;
    Store::open(&settings).await.unwrap();
}

async fn stores_opened_at_the_same_moment_agree(place: Place) {
    let opening = (0..4).map(|_| place.open());
    let stores = futures_util::future::join_all(opening).await;
    let mut all = Vec::new();
    for store in &stores {
        all.push(insert(store, "a", "x").await);
    }
    for store in &stores {
        for stored in &all {
            let read = store
                .subscription(&Sight::All, &stored.subscription.id)
                .await;
            assert_eq!(shown(&read.unwrap().unwrap()), shown(stored));
        }
    }
}

async fn a_store_of_a_newer_version_is_refused(place: Place) {
    place.open().await;
    place
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             SELECT 999, 'later', success, checksum, 0 FROM _sqlx_migrations LIMIT 1",
        )
        .await;
    let message = place.refuses(None).await;
    assert!(message.contains("newer version of Postrider"), "{message}");
}

async fn a_damaged_secret_is_an_error_and_not_a_panic(place: Place) {
    let store = place.open().await;
    let (one, two) = (
        insert(&store, "a", "1").await,
        insert(&store, "a", "2").await,
    );
    // The secrets of one row copied to the other: right key, wrong owner.
    place
        .execute(
            "UPDATE subscriptions SET secrets = \
             (SELECT secrets FROM subscriptions WHERE revision = 2) WHERE revision = 1",
        )
        .await;
    let refused = store.subscription(&Sight::All, &one.subscription.id).await;
    assert!(matches!(refused, Err(Error::Fatal(_))), "{refused:?}");
    assert!(
        store
            .subscription(&Sight::All, &two.subscription.id)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn sqlite_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    // Everything that a URL would read otherwise.
    let place = folder.path().join("new/odd %41 ?mode=ro #name");
    let url = format!("sqlite://{}", place.display());
    let store = Store::open(&Settings {
        url,
        encryption_key: None,
    })
    .await
    .unwrap();
    insert(&store, "a", "first").await;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&place), mode(&folder.path().join("new"))),
        (0o700, 0o700)
    );
    let mut names = Vec::new();
    for file in std::fs::read_dir(&place).unwrap() {
        let file = file.unwrap();
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    let expected = [
        "postrider.db",
        "postrider.db-shm",
        "postrider.db-wal",
        "postrider.db.key",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn an_unusable_url_is_named_without_its_password() {
    for (url, expected) in [
        ("mysql://root:hunter2@localhost/x", "store.url"),
        (
            "postgres://me:hunter2@127.0.0.1:1/x",
            "store.url names 127.0.0.1:1",
        ),
        (
            "sqlite:///dev/null/x.db",
            "store.url: cannot make /dev/null/x.db",
        ),
    ] {
        let settings = Settings {
            url: url.into(),
            encryption_key: None,
        };
        let message = Store::open(&settings).await.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("hunter2") && !format!("{settings:?}").contains("hunter2"));
    }
}
