//! `/v1/dialects` and `/v1/event-types`: what can be listened to, and how it is said.
//!
//! It is the same for every caller and as long as the process lives, so it is written down once.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::State,
    http::Uri,
    response::{IntoResponse, Response},
    routing::get,
};
use dialect::Dialects;
use event::access::Scope;
use serde::Serialize;
use serde_json::value::RawValue;
use service::http::Problem;

use crate::{
    App,
    answer::{Answer, List},
    caller::{Caller, Id},
    form::Form,
};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/dialects", get(dialects))
        .route("/v1/dialects/{name}", get(dialect))
        .route("/v1/event-types", get(event_types))
}

/// The whole of it, written once it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Catalogue(OnceLock<Written>);

/// Each entry by its name, in alphabetical order.
#[derive(Debug)]
struct Written {
    dialects: Vec<(String, Box<RawValue>)>,
    in_brief: Vec<(String, Box<RawValue>)>,
    event_types: Vec<(String, Box<RawValue>)>,
}

/// A dialect in a list.
#[derive(Serialize)]
struct Brief<'a> {
    name: &'a str,
    title: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source: &'a str,
    /// The words of its events.
    events: Vec<&'a str>,
    /// The names of its parameters.
    parameters: Vec<&'a str>,
}

impl Catalogue {
    fn of(&self, dialects: &Dialects) -> &Written {
        self.0.get_or_init(|| {
            let names = dialects.names();
            let all: Vec<_> = names
                .iter()
                .filter_map(|name| dialects.catalogue(name))
                .collect();
            let whole = all.iter().map(|one| (one.name.clone(), one));
            let brief = all.iter().map(|one| {
                let brief = Brief {
                    name: &one.name,
                    title: &one.title,
                    source: &one.source,
                    events: one.events.iter().map(|word| word.word.as_str()).collect(),
                    parameters: one.parameters.iter().map(|own| own.name.as_str()).collect(),
                };
                (one.name.clone(), brief)
            });
            let types = dialects.event_types();
            let types = types.iter().map(|one| (one.kind.clone(), one));
            Written {
                dialects: written(whole),
                in_brief: written(brief),
                event_types: written(types),
            }
        })
    }
}

fn written<T: Serialize>(
    entries: impl Iterator<Item = (String, T)>,
) -> Vec<(String, Box<RawValue>)> {
    let mut written: Vec<_> = entries
        .filter_map(
            |(name, entry)| match serde_json::value::to_raw_value(&entry) {
                Ok(text) => Some((name, text)),
                Err(error) => {
                    tracing::error!(name, %error, "an entry of the catalogue cannot be written");
                    None
                }
            },
        )
        .collect();
    written.sort_by(|(a, _), (b, _)| a.cmp(b));
    written
}

async fn dialects(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    page(&app.catalogue.of(&app.dialects).in_brief, &uri)
}

async fn dialect(caller: Caller, State(app): State<Arc<App>>, name: Id) -> Answer {
    caller.must(Scope::Read)?;
    let known = &app.catalogue.of(&app.dialects).dialects;
    let found = known.iter().find(|(known, _)| known == name.as_str());
    let (_, text) = found.ok_or_else(Problem::not_found)?;
    Ok(Json(text).into_response())
}

async fn event_types(caller: Caller, State(app): State<Arc<App>>, uri: Uri) -> Answer {
    caller.must(Scope::Read)?;
    page(&app.catalogue.of(&app.dialects).event_types, &uri)
}

/// The entries after the cursor, which is the name of the last one that was shown; all of them
/// where nobody says how many.
fn page(all: &[(String, Box<RawValue>)], uri: &Uri) -> Answer<Response> {
    let mut query = Form::of_query(uri)?;
    let paging = query.paging();
    query.finish()?;
    let after = paging.cursor.unwrap_or_default();
    let begin = all.partition_point(|(name, _)| *name <= after);
    let rest = all.get(begin..).unwrap_or_default();
    let limit = usize::try_from(paging.limit).unwrap_or(usize::MAX);
    let shown = match limit {
        0 => rest,
        limit => rest.get(..limit).unwrap_or(rest),
    };
    let more = shown.len() < rest.len();
    let cursor = shown.last().filter(|_| more).map(|(name, _)| name.as_str());
    let items = shown.iter().map(|(_, text)| text).collect();
    Ok(Json(List { items, cursor }).into_response())
}
