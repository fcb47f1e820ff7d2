//! Who is calling, and what of it they may do.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path},
    http::{StatusCode, request::Parts},
};
use event::{
    Tenant,
    access::{Principal, Scope},
};
use jiff::Timestamp;
use service::http::{Problem, bearer};
use store::{Sight, access::Denied};

use crate::App;

/// The authenticated caller. Comes first among a handler's arguments: a stranger learns nothing
/// from what else is wrong with a request.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let token = bearer(&parts.headers);
        app.access
            .authenticate(token, Timestamp::now())
            .await
            .map(Self)
            .map_err(|denied| {
                match denied {
                    // One answer for both, so that a guess learns nothing from it.
                    Denied::Missing | Denied::Invalid => Problem::unauthorized(),
                    Denied::StoreAway => Problem::unavailable(
                        "store_unavailable",
                        "tokens cannot be checked just now",
                    ),
                }
            })
    }
}

impl Caller {
    /// Refuses who does not have the scope.
    pub(crate) fn must(&self, scope: Scope) -> Result<(), Problem> {
        if self.0.may(scope) {
            Ok(())
        } else {
            Err(Problem::missing_scope(scope.word()))
        }
    }

    /// Refuses who does not have the scope, or has it for one tenant only: what is asked for
    /// belongs to none.
    pub(crate) fn must_for_all(&self, scope: Scope) -> Result<(), Problem> {
        self.must(scope)?;
        if self.0.tenant.is_none() {
            return Ok(());
        }
        let detail = "this belongs to no tenant, and the token is bound to one";
        Err(Problem::new(StatusCode::FORBIDDEN, "tenant_bound", detail))
    }

    /// Whose rows the caller may see of this tenant's alone, where it asks so; `None` when that is
    /// another tenant, which has nothing that this caller can see.
    pub(crate) fn sight_of(&self, tenant: Option<Tenant>) -> Option<Sight> {
        match (self.sight(), tenant) {
            (Sight::All, Some(tenant)) => Some(Sight::Only(tenant)),
            (Sight::Only(own), Some(tenant)) if own != tenant => None,
            (sight, _) => Some(sight),
        }
    }

    /// Whose rows the caller may see.
    pub(crate) fn sight(&self) -> Sight {
        Sight::from(&self.0)
    }
}

/// The id in a route. Whatever cannot be one is empty, and like any other that does not exist.
#[derive(Debug)]
pub(crate) struct Id(String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(path.map(|Path(id)| id).unwrap_or_default()))
    }
}

impl Id {
    /// The id as its own type, or the 404 of one that does not exist.
    pub(crate) fn parse<T, E>(&self, parse: fn(&str) -> Result<T, E>) -> Result<T, Problem> {
        parse(&self.0).map_err(|_| Problem::not_found())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
