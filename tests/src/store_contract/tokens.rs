//! Tokens: shown once, known by their hash, gone at once.

use event::access::Scope;
use jiff::{Timestamp, ToSpan};
use secrecy::ExposeSecret;
use store::Paging;

use super::{Place, insert, promises, read_pages, tenant};

promises!(
    a_token_is_known_by_its_whole_text_only,
    a_token_ends_by_itself,
    a_revoked_token_is_refused_at_once_everywhere,
    tokens_are_listed_by_age,
    no_secret_lies_readable_in_the_database,
);

fn now() -> Timestamp {
    "2025-06-01T00:00:00.000000001Z".parse().unwrap()
}

async fn a_token_is_known_by_its_whole_text_only(place: Place) {
    let store = place.open().await;
    let scopes = vec![Scope::Publish, Scope::Read];
    let (bound, text) = store
        .create_token("ci", Some(tenant("a")), scopes.clone(), None, now())
        .await
        .unwrap();
    let (all, other) = store
        .create_token("ops", None, vec![Scope::Admin], None, now())
        .await
        .unwrap();
    let (text, other) = (text.expose_secret(), other.expose_secret());

    let principal = place
        .open()
        .await
        .authenticate(text, now())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(principal.token.as_ref(), Some(&bound.id));
    assert_eq!(
        (principal.tenant, principal.scopes),
        (Some(tenant("a")), scopes)
    );
    let principal = store.authenticate(other, now()).await.unwrap().unwrap();
    assert_eq!((principal.token, principal.tenant), (Some(all.id), None));

    let (head, secret) = text.rsplit_once('_').unwrap();
    let (other_head, other_secret) = other.rsplit_once('_').unwrap();
    let bent = secret.replace(
        &secret[..1],
        if secret.starts_with('0') { "1" } else { "0" },
    );
    for wrong in [
        String::new(),
        head.into(),
        secret.into(),
        format!("{head}_"),
        format!("{head}_{bent}"),
        format!("{head}_{other_secret}"),
        format!("{other_head}_{secret}"),
        format!("{text}0"),
        format!(" {text}"),
        text.to_uppercase(),
        "pr_\u{0}_' OR 1=1".into(),
    ] {
        assert_eq!(
            store.authenticate(&wrong, now()).await.unwrap(),
            None,
            "{wrong}"
        );
    }
}

async fn a_token_ends_by_itself(place: Place) {
    let store = place.open().await;
    let end = now() + 1.hour();
    let (token, text) = store
        .create_token("short", None, vec![Scope::Read], Some(end), now())
        .await
        .unwrap();
    assert_eq!(token.expires_at, Some(end));
    let known = async |at| {
        store
            .authenticate(text.expose_secret(), at)
            .await
            .unwrap()
            .is_some()
    };
    assert!(known(end - 1.nanosecond()).await);
    assert!(!known(end).await);
}

async fn a_revoked_token_is_refused_at_once_everywhere(place: Place) {
    let (store, elsewhere) = (place.open().await, place.open().await);
    assert!(!elsewhere.has_tokens().await.unwrap());
    let (token, text) = store
        .create_token("t", None, vec![Scope::Read], None, now())
        .await
        .unwrap();
    assert!(elsewhere.has_tokens().await.unwrap());
    assert!(
        elsewhere
            .authenticate(text.expose_secret(), now())
            .await
            .unwrap()
            .is_some()
    );
    assert!(store.delete_token(&token.id).await.unwrap());
    assert!(!store.delete_token(&token.id).await.unwrap());
    assert!(
        elsewhere
            .authenticate(text.expose_secret(), now())
            .await
            .unwrap()
            .is_none()
    );
    assert!(!elsewhere.has_tokens().await.unwrap());
}

async fn tokens_are_listed_by_age(place: Place) {
    let store = place.open().await;
    for n in 0..7 {
        let at = now() + i64::from(n).seconds();
        let name = format!("{n}\u{0}");
        store
            .create_token(&name, None, vec![Scope::Read], Some(at), at)
            .await
            .unwrap();
    }
    let list = async |paging: Paging| store.tokens(&paging).await;
    let tokens = read_pages(2, list, async |_| {}).await;
    for (n, token) in tokens.iter().enumerate() {
        let at = now() + i64::try_from(n).unwrap().seconds();
        assert_eq!((token.created_at, token.expires_at), (at, Some(at)));
        assert_eq!(token.name, format!("{n}\u{fffd}"));
        assert_eq!(token.scopes, [Scope::Read]);
    }
    assert_eq!(tokens.len(), 7);
}

async fn no_secret_lies_readable_in_the_database(place: Place) {
    let store = place.open().await;
    let stored = insert(&store, "a", "findable-name").await;
    let (_, text) = store
        .create_token("t", None, vec![Scope::Admin], None, now())
        .await
        .unwrap();
    let loot = place.loot().await;
    // The search itself works: what is not secret is found.
    assert!(loot.contains(b"findable-name") && loot.contains(b"https://example.com/hooks"));

    let (_, secret) = text.expose_secret().rsplit_once('_').unwrap();
    let mut secrets = vec![secret.as_bytes().to_vec(), b"value-of-the-header".to_vec()];
    for live in &stored.keys.0 {
        secrets.push(live.key.expose_bytes().to_vec());
        let key_text = live.key.expose_text();
        secrets.push(key_text.split_once('_').unwrap().1.as_bytes().to_vec());
    }
    for secret in secrets {
        assert!(
            !loot.contains(&secret),
            "{}",
            String::from_utf8_lossy(&secret)
        );
    }
}
