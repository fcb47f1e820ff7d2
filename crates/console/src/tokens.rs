//! `/v1/tokens`: who may call. For administrators who are bound to no tenant.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::IntoResponse,
    routing::{delete, post},
};
use event::{Tenant, TokenId, access::Scope};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::Value;
use service::http::Problem;
use store::Token;

use crate::{
    App,
    answer::{Answer, conflict, list, store_failed},
    caller::{Caller, Id},
    form::{self, Form, one_of},
};

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 200;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/tokens", post(create).get(index))
        .route("/v1/tokens/{id}", delete(remove))
}

/// A new token: its whole text is shown only here.
#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    about: &'a Token,
    token: &'a str,
}

/// What a person asks for.
struct Wanted {
    name: String,
    tenant: Option<Tenant>,
    scopes: Vec<Scope>,
    expires_at: Option<Timestamp>,
}

async fn create(
    caller: Caller,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    caller.must_for_all(Scope::Admin)?;
    let now = Timestamp::now();
    let wanted = wanted(&form::body(&headers, body).await?, now)?;
    keep_a_way_in(&app, &wanted).await?;
    let Wanted {
        name,
        tenant,
        scopes,
        expires_at,
    } = wanted;
    let (about, secret) = app
        .store
        .create_token(&name, tenant, scopes, expires_at, now)
        .await
        .map_err(store_failed)?;
    app.access.forget();
    tracing::info!(token_id = %about.id, "token created");
    let created = Created {
        about: &about,
        token: secret.expose_secret(),
    };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// The first token closes an API that was open: it must be one that can make the next.
async fn keep_a_way_in(app: &App, wanted: &Wanted) -> Answer<()> {
    let open = app
        .access
        .is_open()
        .await
        .map_err(|denied| Problem::unavailable("store_unavailable", denied.to_string()))?;
    let lasting = wanted.tenant.is_none() && wanted.expires_at.is_none();
    if open && !(lasting && wanted.scopes.contains(&Scope::Admin)) {
        let detail = "the first token must have the scope `admin`, no tenant and no end: with any \
                      other, nobody could make or revoke tokens (or set auth.admin_token first)";
        return Err(conflict("first_token_must_be_admin", detail));
    }
    Ok(())
}

fn wanted(body: &[u8], now: Timestamp) -> Answer<Wanted> {
    let mut form = Form::of_body(body)?;
    let name = form.text("name").unwrap_or_default();
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        let message = format!("must be at most {NAME_CHARS_MAX} characters, none of them controls");
        form.find("name", message);
    }
    let tenant = form.parsed("tenant", Tenant::parse);
    let given = form.take("scopes");
    let scopes = scopes(&mut form, given);
    let expires_at = form.time("expires_at");
    if expires_at.is_some_and(|end| end <= now) {
        form.find("expires_at", "must be in the future");
    }
    form.finish()?;
    Ok(Wanted {
        name,
        tenant,
        scopes,
        expires_at,
    })
}

fn scopes(form: &mut Form, given: Option<Value>) -> Vec<Scope> {
    let mut scopes = Vec::new();
    let given = match given {
        Some(Value::Array(given)) if !given.is_empty() => given,
        _ => {
            let words: Vec<_> = Scope::ALL.iter().map(|scope| scope.word()).collect();
            form.find("scopes", format!("must be a list of {}", words.join(", ")));
            return scopes;
        }
    };
    for (index, word) in given.iter().enumerate().take(Scope::ALL.len() * 2) {
        match one_of(word.as_str().unwrap_or_default(), Scope::ALL, Scope::word) {
            Ok(scope) if scopes.contains(&scope) => {}
            Ok(scope) => scopes.push(scope),
            Err(message) => form.find(&format!("scopes/{index}"), message),
        }
    }
    scopes
}

async fn index(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must_for_all(Scope::Admin)?;
    let mut query = Form::of_query(&uri)?;
    let paging = query.paging();
    query.finish()?;
    let page = app.store.tokens(&paging).await.map_err(store_failed)?;
    Ok(list(&page, Token::clone))
}

async fn remove(caller: Caller, State(app): State<Arc<App>>, id: Id) -> Answer<StatusCode> {
    caller.must_for_all(Scope::Admin)?;
    let id = id.parse(TokenId::parse)?;
    if !app.store.delete_token(&id).await.map_err(store_failed)? {
        return Err(Problem::not_found());
    }
    app.access.forget();
    tracing::info!(token_id = %id, "token revoked");
    Ok(StatusCode::NO_CONTENT)
}
