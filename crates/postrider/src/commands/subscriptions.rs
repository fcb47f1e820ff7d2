//! `postrider subscriptions …`

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
            let body = body(&create)?;
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

fn body(create: &CreateSubscription) -> Result<Value, Failure> {
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
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            body.insert(name.into(), json!(text));
        }
    }
    body.insert("events".into(), json!(create.events));
    body.insert("filter".into(), Value::Object(filter));
    Ok(Value::Object(body))
}
