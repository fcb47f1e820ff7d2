//! Who is let in: the bootstrap token, the store's tokens, or anybody on loopback while there is
//! neither.

use std::time::Duration;

use event::access::{Principal, Scope};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use store::{
    Store,
    access::{Access, Denied},
};

use super::{Place, promises};

promises!(
    without_any_token_loopback_is_open_until_the_first_is_made,
    without_any_token_other_addresses_are_closed,
    a_configured_admin_token_is_always_needed,
    a_revoked_token_is_soon_refused,
);

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

async fn make(store: &Store, scope: Scope) -> (event::TokenId, String) {
    let (token, text) = store
        .create_token("t", None, vec![scope], None, now())
        .await
        .unwrap();
    (token.id, text.expose_secret().to_owned())
}

/// Asks until the answer is as wanted; the test's time limit ends a wait in vain.
async fn until(access: &Access, bearer: Option<&str>, wanted: Result<Principal, Denied>) {
    while access.authenticate(bearer, now()).await != wanted {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn without_any_token_loopback_is_open_until_the_first_is_made(place: Place) {
    let store = place.open().await;
    let access = Access::new(None, store.clone(), true);
    for bearer in [None, Some("anything")] {
        assert_eq!(
            access.authenticate(bearer, now()).await,
            Ok(Principal::administrator())
        );
    }
    assert_eq!(access.is_open().await, Ok(true));
    let (id, text) = make(&place.open().await, Scope::Read).await;
    until(&access, None, Err(Denied::Missing)).await;
    until(&access, Some("anything"), Err(Denied::Invalid)).await;
    let principal = access.authenticate(Some(&text), now()).await.unwrap();
    assert_eq!(
        (principal.token, principal.scopes),
        (Some(id.clone()), vec![Scope::Read])
    );
    // When the last one goes, it is open again.
    store.delete_token(&id).await.unwrap();
    until(&access, None, Ok(Principal::administrator())).await;
}

async fn without_any_token_other_addresses_are_closed(place: Place) {
    let access = Access::new(None, place.open().await, false);
    assert_eq!(access.authenticate(None, now()).await, Err(Denied::Missing));
    assert_eq!(
        access.authenticate(Some("x"), now()).await,
        Err(Denied::Invalid)
    );
    assert_eq!(access.is_open().await, Ok(false));
}

async fn a_configured_admin_token_is_always_needed(place: Place) {
    let store = place.open().await;
    let access = Access::new(Some("bootstrap".into()), store.clone(), true);
    assert_eq!(access.authenticate(None, now()).await, Err(Denied::Missing));
    for wrong in ["", "bootstra", "bootstrap ", "Bootstrap"] {
        assert_eq!(
            access.authenticate(Some(wrong), now()).await,
            Err(Denied::Invalid),
            "{wrong}"
        );
    }
    let admitted = access.authenticate(Some("bootstrap"), now()).await;
    assert_eq!(admitted, Ok(Principal::administrator()));
    let (id, text) = make(&store, Scope::Publish).await;
    let principal = access.authenticate(Some(&text), now()).await.unwrap();
    assert_eq!(principal.token, Some(id));
    // An empty setting is none, not a token that an empty bearer matches.
    let access = Access::new(Some(String::new().into()), store, false);
    assert_eq!(
        access.authenticate(Some(""), now()).await,
        Err(Denied::Invalid)
    );
}

async fn a_revoked_token_is_soon_refused(place: Place) {
    let store = place.open().await;
    let access = Access::new(Some("bootstrap".into()), store.clone(), true);
    let (id, text) = make(&place.open().await, Scope::Read).await;
    for _ in 0..3 {
        assert!(access.authenticate(Some(&text), now()).await.is_ok());
    }
    place.open().await.delete_token(&id).await.unwrap();
    until(&access, Some(&text), Err(Denied::Invalid)).await;
}
