//! `postrider dead-letters …` and `postrider quarantine …`

use serde_json::{Value, json};

use super::Failure;
use crate::{
    api::Api,
    cli::{DeadFilter, DeadLetters, Quarantine},
    output::{self, say},
    settings::Settings,
};

const COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("died_at", "/died_at"),
    ("tenant", "/tenant"),
    ("type", "/type"),
    ("reason", "/reason"),
    ("attempts", "/attempts"),
    ("event", "/event_id"),
    ("subscription", "/subscription_id"),
];

const QUARANTINE_COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("first_seen", "/first_seen"),
    ("reason", "/reason"),
    ("source", "/source"),
    ("detail", "/detail"),
];

pub(super) async fn run(settings: &Settings, command: DeadLetters) -> Result<(), Failure> {
    match command {
        DeadLetters::List {
            filter,
            paging,
            listing,
        } => {
            let mut query = query(&filter);
            query.extend([
                ("limit", Some(paging.limit.to_string())),
                ("cursor", paging.cursor),
            ]);
            let api = Api::new(&listing.remote, settings)?;
            output::list(
                &api.get("/v1/dead-letters", &query).await?,
                COLUMNS,
                listing.output,
            );
        }
        DeadLetters::Show { id, listing } => {
            let api = Api::new(&listing.remote, settings)?;
            output::one(
                &api.get(&format!("/v1/dead-letters/{id}"), &[]).await?,
                listing.output,
            );
        }
        DeadLetters::Redrive {
            id: Some(id),
            remote,
            ..
        } => {
            let api = Api::new(&remote, settings)?;
            api.post(&format!("/v1/dead-letters/{id}/redrive"), &json!({}))
                .await?;
            say!("redriven {id}");
        }
        DeadLetters::Redrive {
            id: None,
            filter,
            remote,
            ..
        } => {
            let api = Api::new(&remote, settings)?;
            say!("redriven {}", redrive_all(&api, &filter).await?);
        }
    }
    Ok(())
}

/// Redrives page after page until the filter finds no more. A letter that dies again meanwhile is
/// newer than the start and is left alone, so that a broken endpoint does not make this endless.
async fn redrive_all(api: &Api, filter: &DeadFilter) -> Result<u64, Failure> {
    let started = jiff::Timestamp::now().to_string();
    let mut body = serde_json::Map::new();
    for (name, value) in query(filter) {
        if let Some(value) = value {
            body.insert(name.into(), Value::String(value));
        }
    }
    body.entry("until").or_insert(Value::String(started));
    let mut redriven = 0;
    loop {
        let answer = api
            .post("/v1/dead-letters/redrive", &Value::Object(body.clone()))
            .await?;
        redriven += answer["redriven"].as_u64().unwrap_or(0);
        if answer["more"] != true {
            return Ok(redriven);
        }
    }
}

fn query(filter: &DeadFilter) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("reason", filter.reason.clone()),
        ("subscription_id", filter.subscription.clone()),
        ("type", filter.kind.clone()),
        ("since", filter.since.clone()),
        ("until", filter.until.clone()),
    ]
}

pub(super) async fn quarantine(settings: &Settings, command: Quarantine) -> Result<(), Failure> {
    match command {
        Quarantine::List { paging, listing } => {
            let query = [
                ("limit", Some(paging.limit.to_string())),
                ("cursor", paging.cursor),
            ];
            let api = Api::new(&listing.remote, settings)?;
            let answer = api.get("/v1/quarantine", &query).await?;
            output::list(&answer, QUARANTINE_COLUMNS, listing.output);
        }
        Quarantine::Show { id, listing } => {
            let api = Api::new(&listing.remote, settings)?;
            output::one(
                &api.get(&format!("/v1/quarantine/{id}"), &[]).await?,
                listing.output,
            );
        }
        Quarantine::Release { id, remote } => {
            let api = Api::new(&remote, settings)?;
            api.post(&format!("/v1/quarantine/{id}/release"), &json!({}))
                .await?;
            say!("released {id}");
        }
    }
    Ok(())
}
