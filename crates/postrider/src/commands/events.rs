//! `postrider events …` and `postrider subscriptions explain`

use std::path::Path;

use serde_json::Value;

use super::{Failure, read_input};
use crate::{
    api::Api,
    cli::{EventFilter, Events, Format, Listing, OneEvent},
    output::{self, say},
    settings::Settings,
};

const COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("accepted_at", "/accepted_at"),
    ("tenant", "/tenant"),
    ("type", "/type"),
    ("subject", "/subject"),
    ("bytes", "/bytes"),
    ("matched", "/matched"),
];

const WHY: &[output::Column] = &[
    ("subscription", "/subscription_id"),
    ("name", "/name"),
    ("matched", "/matched"),
    ("state", "/state"),
    ("reason", "/reason"),
    ("clause", "/clause"),
    ("attempts", "/attempts"),
    ("status", "/last_status"),
    ("detail", "/detail"),
];

const CHECKS: &[output::Column] = &[("clause", "/clause"), ("ok", "/ok"), ("detail", "/detail")];

pub(super) async fn run(settings: &Settings, command: Events) -> Result<(), Failure> {
    match command {
        Events::List {
            filter,
            paging,
            listing,
        } => {
            let mut query = query(filter);
            query.extend([
                ("limit", Some(paging.limit.to_string())),
                ("cursor", paging.cursor),
            ]);
            let api = Api::new(&listing.remote, settings)?;
            let mut answer = api.get("/v1/events", &query).await?;
            if listing.output == Format::Table {
                count_matched(&mut answer);
            }
            output::list(&answer, COLUMNS, listing.output);
        }
        Events::Show(one) => {
            let mut answer = fetch(settings, &one).await?;
            if one.listing.output == Format::Table
                && let Some(fields) = answer.as_object_mut()
            {
                fields.remove("subscriptions");
                fields.remove("more");
            }
            output::one(&answer, one.listing.output);
        }
        Events::Explain(one) => {
            let answer = fetch(settings, &one).await?;
            match one.listing.output {
                Format::Json => output::one(&answer, Format::Json),
                Format::Table => why(&answer),
            }
        }
    }
    Ok(())
}

async fn fetch(settings: &Settings, one: &OneEvent) -> crate::api::Answer {
    let api = Api::new(&one.listing.remote, settings)?;
    let path = format!("/v1/events/{}", segment(&one.id));
    api.get(&path, &[("tenant", one.tenant.clone())]).await
}

/// An event's id may hold any visible sign, also those that end a path.
fn segment(id: &str) -> String {
    url::form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

fn query(filter: EventFilter) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("tenant", filter.tenant),
        ("type", filter.kind),
        ("subject", filter.subject),
        ("since", filter.since),
        ("until", filter.until),
    ]
}

/// A table says how many subscriptions matched, not which.
fn count_matched(answer: &mut Value) {
    let items = answer["items"].as_array_mut();
    for item in items.into_iter().flatten() {
        let matched = item["matched"].as_array().map_or(0, Vec::len);
        item["matched"] = matched.into();
    }
}

fn why(answer: &Value) {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    say!(
        "{} of {}, accepted {}",
        text("type"),
        text("tenant"),
        text("accepted_at")
    );
    table(&answer["subscriptions"], WHY);
    if answer["more"] == true {
        say!(
            "there are more: postrider deliveries list --event {}",
            text("id")
        );
    }
}

fn table(items: &Value, columns: &[output::Column]) {
    let list = serde_json::json!({ "items": items, "cursor": null });
    output::list(&list, columns, Format::Table);
}

/// Asks whether a subscription wants an event that is in a file.
pub(super) async fn explain_for(
    settings: &Settings,
    id: &str,
    file: &Path,
    listing: &Listing,
) -> Result<(), Failure> {
    let event = read_input(file)?;
    let api = Api::new(&listing.remote, settings)?;
    let path = format!("/v1/subscriptions/{id}/explain");
    let answer = api.post_bytes(&path, "application/json", event).await?;
    if listing.output == Format::Json {
        output::one(&answer, Format::Json);
        return Ok(());
    }
    table(&answer["checks"], CHECKS);
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    match (text("state"), text("clause")) {
        ("", clause) => say!("no delivery would be made: {clause}"),
        ("pending", _) => say!("it would be sent:"),
        (state, clause) => say!("it would be {state}: {clause}"),
    }
    if let Some(rendered) = answer["rendered"].as_object() {
        say!("");
        for header in rendered["headers"].as_array().into_iter().flatten() {
            let part = |n: usize| output::visible(header[n].as_str().unwrap_or_default());
            say!("{}: {}", part(0), part(1));
        }
        say!("");
        say!(
            "{}",
            output::visible(rendered["body"].as_str().unwrap_or_default())
        );
    }
    Ok(())
}
