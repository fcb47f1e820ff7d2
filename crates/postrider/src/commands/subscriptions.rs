//! `postrider subscriptions …`

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Failure, read_input};
use crate::{
    api::Api,
    cli::{CreateSubscription, Subscriptions},
    output::{self, say},
    settings::Settings,
};

const COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("tenant", "/tenant"),
    ("state", "/state"),
    ("dialect", "/dialect"),
    ("events", "/events"),
    ("target", "/target_url"),
    ("name", "/name"),
];

const SENT: &[output::Column] = &[
    ("type", "/type"),
    ("event_id", "/event_id"),
    ("delivery_id", "/delivery_id"),
];

pub(super) async fn run(settings: &Settings, command: Subscriptions) -> Result<(), Failure> {
    let (answer, listing) = match command {
        Subscriptions::List {
            tenant,
            paging,
            listing,
        } => {
            let query = [
                ("tenant", tenant),
                ("limit", Some(paging.limit.to_string())),
                ("cursor", paging.cursor),
            ];
            let api = Api::new(&listing.remote, settings)?;
            output::list(
                &api.get("/v1/subscriptions", &query).await?,
                COLUMNS,
                listing.output,
            );
            return Ok(());
        }
        Subscriptions::Delete { id, remote } => {
            Api::new(&remote, settings)?.delete(&path(&id, "")).await?;
            say!("deleted {id}");
            return Ok(());
        }
        Subscriptions::Show { id, listing } => (
            Api::new(&listing.remote, settings)?
                .get(&path(&id, ""), &[])
                .await?,
            listing,
        ),
        Subscriptions::Create(create) => {
            let body = body(&create, settings)?;
            let listing = create.listing;
            (
                Api::new(&listing.remote, settings)?
                    .post("/v1/subscriptions", &body)
                    .await?,
                listing,
            )
        }
        Subscriptions::Update { id, file, listing } => {
            let patch = read_input(&file)?;
            (
                Api::new(&listing.remote, settings)?
                    .patch(&path(&id, ""), patch)
                    .await?,
                listing,
            )
        }
        Subscriptions::Pause { id, listing } => {
            (act(settings, &listing, &id, "pause").await?, listing)
        }
        Subscriptions::Resume { id, listing } => {
            (act(settings, &listing, &id, "resume").await?, listing)
        }
        Subscriptions::Test {
            id,
            events,
            listing,
        } => {
            let body = match events.as_slice() {
                [] => json!({}),
                events => json!({ "events": events }),
            };
            let api = Api::new(&listing.remote, settings)?;
            let answer = api.post(&path(&id, "test"), &body).await?;
            output::list(&answer, SENT, listing.output);
            return Ok(());
        }
        Subscriptions::Explain { id, file, listing } => {
            return super::events::explain_for(settings, &id, &file, &listing).await;
        }
        Subscriptions::Replay(replay) => return super::jobs::replay(settings, *replay).await,
        Subscriptions::RotateSecret { id, listing } => (
            act(settings, &listing, &id, "rotate-secret").await?,
            listing,
        ),
    };
    output::one(&answer, listing.output);
    Ok(())
}

async fn act(
    settings: &Settings,
    listing: &crate::cli::Listing,
    id: &str,
    action: &str,
) -> crate::api::Answer {
    Api::new(&listing.remote, settings)?
        .post(&path(id, action), &json!({}))
        .await
}

fn path(id: &str, action: &str) -> String {
    let slash = if action.is_empty() { "" } else { "/" };
    format!("/v1/subscriptions/{id}{slash}{action}")
}

/// What the flags say, as the API has it.
pub(super) fn body(create: &CreateSubscription, settings: &Settings) -> Result<Value, Failure> {
    if let Some(file) = &create.file {
        return serde_json::from_slice(&read_input(file)?)
            .map_err(|error| Failure::usage(format!("{}: {error}", file.display())));
    }
    let mut filter = Map::new();
    let lists = [
        ("actions", &create.actions),
        ("statuses", &create.statuses),
        ("changed_fields", &create.changed_fields),
    ];
    for (name, list) in lists {
        if !list.is_empty() {
            filter.insert(name.into(), json!(list));
        }
    }
    if let Some(expression) = &create.expression {
        filter.insert("where".into(), json!(expression));
    }
    let mut body = Map::new();
    let texts = [
        ("tenant", &create.tenant),
        ("target_url", &create.target_url),
        ("name", &create.name),
        ("dialect", &create.dialect),
        ("view", &create.view),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            body.insert(name.into(), json!(text));
        }
    }
    if !create.events.is_empty() {
        body.insert("events".into(), json!(create.events));
    }
    body.insert("filter".into(), Value::Object(filter));
    if !create.attributes.is_empty() {
        let attributes: BTreeMap<_, _> = create.attributes.iter().cloned().collect();
        body.insert("attributes".into(), json!(attributes));
    }
    for (name, value) in parameters(create, settings)? {
        if body.insert(name.clone(), value).is_some() {
            let text = format!("--parameter {name}: is no parameter but has a flag of its own");
            return Err(Failure::usage(text));
        }
    }
    Ok(Value::Object(body))
}

/// The dialect's parameters. One that is a list has one value for each time that it is given.
fn parameters(
    create: &CreateSubscription,
    settings: &Settings,
) -> Result<BTreeMap<String, Value>, Failure> {
    let mut texts: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (name, text) in &create.parameters {
        texts.entry(name).or_default().push(text);
    }
    let lists = lists(create, settings)?;
    let value = |name: &String, texts: Vec<&String>| match texts.as_slice() {
        [text] if text.starts_with('[') => serde_json::from_str(text)
            .map_err(|error| Failure::usage(format!("--parameter {name}: {error}"))),
        [text] if !lists.contains(name) => Ok(json!(text)),
        texts => Ok(json!(texts)),
    };
    texts
        .into_iter()
        .map(|(name, texts)| Ok((name.clone(), value(name, texts)?)))
        .collect()
}

/// The parameters of the dialect that are lists, as far as this side knows it: the server may have
/// dialects that this configuration has not.
fn lists(create: &CreateSubscription, settings: &Settings) -> Result<Vec<String>, Failure> {
    let (Some(dialect), false) = (&create.dialect, create.parameters.is_empty()) else {
        return Ok(Vec::new());
    };
    let catalogue = crate::dialects::load(settings)?.catalogue(dialect);
    let parameters = catalogue.map(|known| known.parameters).unwrap_or_default();
    let lists = parameters.into_iter().filter(|own| own.list);
    Ok(lists.map(|own| own.name).collect())
}
