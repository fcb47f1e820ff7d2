//! `postrider deliveries …`

use serde_json::{Value, json};

use super::Failure;
use crate::{
    api::Api,
    cli::{Deliveries, DeliveryFilter, Format},
    output::{self, say},
    settings::Settings,
};

const COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("accepted_at", "/accepted_at"),
    ("tenant", "/tenant"),
    ("type", "/type"),
    ("state", "/state"),
    ("reason", "/reason"),
    ("attempts", "/attempts"),
    ("status", "/last_status"),
    ("event", "/event_id"),
    ("subscription", "/subscription_id"),
];

const ATTEMPTS: &[output::Column] = &[
    ("run", "/run"),
    ("attempt", "/number"),
    ("at", "/at"),
    ("status", "/status"),
    ("error", "/error"),
    ("microseconds", "/timing/total"),
    ("detail", "/detail"),
];

const PERIODS: &[output::Column] = &[
    ("start", "/start"),
    ("total", "/total"),
    ("delivered", "/states/delivered"),
    ("pending", "/states/pending"),
    ("retrying", "/states/retrying"),
    ("held", "/states/held"),
    ("filtered", "/states/filtered"),
    ("superseded", "/states/superseded"),
    ("dead", "/states/dead"),
    ("canceled", "/states/canceled"),
];

pub(super) async fn run(settings: &Settings, command: Deliveries) -> Result<(), Failure> {
    match command {
        Deliveries::List {
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
            let answer = api.get("/v1/deliveries", &query).await?;
            output::list(&answer, COLUMNS, listing.output);
        }
        Deliveries::Periods {
            by,
            filter,
            listing,
        } => {
            let mut query = query(filter);
            query.push(("by", Some(by)));
            let api = Api::new(&listing.remote, settings)?;
            let answer = api.get("/v1/deliveries/periods", &query).await?;
            output::list(&answer, PERIODS, listing.output);
        }
        Deliveries::Show { id, listing } => {
            let api = Api::new(&listing.remote, settings)?;
            let answer = api.get(&format!("/v1/deliveries/{id}"), &[]).await?;
            match listing.output {
                Format::Json => output::one(&answer, Format::Json),
                Format::Table => show(answer),
            }
        }
        Deliveries::Retry { id, remote } => {
            let api = Api::new(&remote, settings)?;
            api.post(&format!("/v1/deliveries/{id}/retry"), &json!({}))
                .await?;
            say!("sent again {id}");
        }
    }
    Ok(())
}

fn query(filter: DeliveryFilter) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("tenant", filter.tenant),
        ("subscription_id", filter.subscription),
        ("event_id", filter.event),
        ("state", filter.state),
        ("reason", filter.reason),
        ("type", filter.kind),
        ("since", filter.since),
        ("until", filter.until),
    ]
}

/// What it is, then a line for each attempt.
fn show(mut answer: Value) {
    let mut history = Value::Null;
    if let Some(fields) = answer.as_object_mut() {
        history = fields.remove("history").unwrap_or_default();
        fields.remove("event");
    }
    output::one(&answer, Format::Table);
    say!("");
    let list = json!({ "items": history, "cursor": null });
    output::list(&list, ATTEMPTS, Format::Table);
}
