//! `postrider jobs …` and `postrider subscriptions replay`

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use serde_json::{Value, json};

use super::Failure;
use crate::{
    api::Api,
    cli::{Format, Jobs, Replay},
    output,
    settings::Settings,
};

const COLUMNS: &[output::Column] = &[
    ("id", "/id"),
    ("created_at", "/created_at"),
    ("tenant", "/tenant"),
    ("kind", "/kind"),
    ("state", "/state"),
    ("total", "/total"),
    ("done", "/done"),
    ("skipped", "/skipped"),
    ("rate", "/rate"),
    ("subscription", "/subscription_id"),
    ("detail", "/detail"),
];

/// How often a job that is waited for is asked for.
const EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(settings: &Settings, command: Jobs) -> Result<(), Failure> {
    match command {
        Jobs::List {
            tenant,
            state,
            kind,
            subscription,
            paging,
            listing,
        } => {
            let query = [
                ("tenant", tenant),
                ("state", state),
                ("kind", kind),
                ("subscription_id", subscription),
                ("limit", Some(paging.limit.to_string())),
                ("cursor", paging.cursor),
            ];
            let api = Api::new(&listing.remote, settings)?;
            let answer = api.get("/v1/jobs", &query).await?;
            output::list(&answer, COLUMNS, listing.output);
            Ok(())
        }
        Jobs::Show { id, wait, listing } => {
            let api = Api::new(&listing.remote, settings)?;
            let job = api.get(&format!("/v1/jobs/{id}"), &[]).await?;
            show(&api, job, wait, listing.output).await
        }
        Jobs::Cancel { id, listing } => {
            let api = Api::new(&listing.remote, settings)?;
            let job = api
                .post(&format!("/v1/jobs/{id}/cancel"), &json!({}))
                .await?;
            output::one(&job, listing.output);
            Ok(())
        }
    }
}

pub(super) async fn replay(settings: &Settings, replay: Replay) -> Result<(), Failure> {
    let mut body = json!({ "since": replay.since, "only": replay.only });
    if let Some(until) = replay.until {
        body["until"] = json!(until);
    }
    if !replay.types.is_empty() {
        body["types"] = json!(replay.types);
    }
    if let Some(rate) = replay.rate {
        body["rate"] = json!(rate);
    }
    if replay.dry_run {
        body["dry_run"] = json!(true);
    }
    let api = Api::new(&replay.listing.remote, settings)?;
    let path = format!("/v1/subscriptions/{}/replay", replay.id);
    let job = api.post(&path, &body).await?;
    show(&api, job, replay.wait, replay.listing.output).await
}

/// Prints a job, as it is or as it ended.
async fn show(api: &Api, mut job: Value, wait: bool, format: Format) -> Result<(), Failure> {
    if wait {
        let id = job["id"].as_str().unwrap_or_default().to_owned();
        let path = format!("/v1/jobs/{id}");
        let line = Line::new();
        while job["state"] == "running" {
            line.show(&job);
            tokio::time::sleep(EVERY).await;
            job = api.get(&path, &[]).await?;
        }
        line.end();
    }
    output::one(&job, format);
    match job["state"].as_str() {
        Some("failed") if wait => {
            let why = job["detail"].as_str().unwrap_or("it failed");
            Err(Failure::failed(output::visible(why)))
        }
        _ => Ok(()),
    }
}

/// One line on a terminal that is written again and again; nothing anywhere else.
struct Line {
    on: bool,
}

impl Line {
    fn new() -> Self {
        Self {
            on: std::io::stderr().is_terminal(),
        }
    }

    fn show(&self, job: &Value) {
        if self.on {
            let detail = output::visible(job["detail"].as_str().unwrap_or_default());
            let (done, skipped) = (&job["done"], &job["skipped"]);
            let text = format!(
                "\r\x1b[K{done} sent, {skipped} skipped, of {}  {detail}",
                job["total"]
            );
            write(&text);
        }
    }

    fn end(&self) {
        if self.on {
            write("\r\x1b[K");
        }
    }
}

/// A terminal that is gone is no reason to stop waiting.
fn write(text: &str) {
    let mut terminal = std::io::stderr().lock();
    if terminal.write_all(text.as_bytes()).is_ok() {
        terminal.flush().ok();
    }
}
