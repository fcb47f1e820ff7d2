//! `postrider tail`: what happens, as it happens.

use std::time::Duration;

use serde_json::{Value, json};

use super::Failure;
use crate::{
    api::{Api, Refused},
    cli::{Format, Tail},
    output::{try_text, visible},
    settings::Settings,
    sse::Message,
};

pub(super) async fn run(settings: &Settings, tail: Tail) -> Result<(), Failure> {
    let stop =
        service::shutdown::on_signals().map_err(|error| Failure::failed(error.to_string()))?;
    let api = Api::new(&tail.listing.remote, settings)?;
    // Ctrl-C is how it ends.
    stop.run_until_cancelled(follow(&api, &tail))
        .await
        .unwrap_or(Ok(()))
}

async fn follow(api: &Api, tail: &Tail) -> Result<(), Failure> {
    let types = (!tail.types.is_empty()).then(|| tail.types.join(","));
    let query = [
        ("tenant", tail.tenant.clone()),
        ("type", types),
        ("subscription_id", tail.subscription.clone()),
    ];
    let mut place: Option<String> = None;
    let mut pause = Pause::default();
    loop {
        let mut stream = match api.stream("/v1/tail", &query, place.as_deref()).await {
            Ok(stream) => stream,
            Err(Refused::Again(why)) => {
                pause.wait(&why).await;
                continue;
            }
            Err(Refused::Gone(failure) | Refused::For(failure)) => return Err(failure),
        };
        pause.over();
        let why = loop {
            match stream.next().await {
                Ok(message) => {
                    if !print(&message, stream.last_id(), tail.listing.output) {
                        return Ok(());
                    }
                }
                Err(why) => break why,
            }
        };
        place = stream.last_id().map(str::to_owned).or(place);
        pause.wait(&why).await;
    }
}

/// How long a reader that lost its server waits before it looks for it again.
#[derive(Debug, Default)]
pub(super) struct Pause {
    tries: u32,
}

impl Pause {
    const LONGEST: Duration = Duration::from_secs(5);

    /// Waits, longer each time, and says once why.
    pub(super) async fn wait(&mut self, why: &str) {
        if self.tries == 0 {
            eprintln!("postrider: the connection is lost ({why}), trying again");
        }
        let pause = Duration::from_millis(250) * 2_u32.saturating_pow(self.tries.min(10));
        self.tries += 1;
        tokio::time::sleep(pause.min(Self::LONGEST)).await;
    }

    pub(super) fn over(&mut self) {
        if std::mem::take(&mut self.tries) > 1 {
            eprintln!("postrider: connected again");
        }
    }
}

/// Prints a line; false where nobody reads on.
fn print(message: &Message, id: Option<&str>, format: Format) -> bool {
    let data: Value = serde_json::from_str(&message.data).unwrap_or(Value::Null);
    let line = match format {
        Format::Json => json!({ "id": id, "event": message.event, "data": data }).to_string(),
        Format::Table => line(&message.event, &data),
    };
    try_text(format!("{line}\n").as_bytes()).is_ok()
}

fn line(event: &str, data: &Value) -> String {
    let text = |key: &str| visible(data[key].as_str().unwrap_or("-"));
    match event {
        "event" => {
            let matched = data["matched"].as_array().map_or(0, Vec::len);
            format!(
                "{}  event     {}  {}  {}  for {matched}",
                text("accepted_at"),
                text("type"),
                text("id"),
                text("tenant"),
            )
        }
        "delivery" => {
            let mut line = format!(
                "{}  {:<9} {}  {}  {}",
                text("updated_at"),
                text("state"),
                text("type"),
                text("event_id"),
                text("subscription_id"),
            );
            if let Some(status) = data["last_status"].as_u64() {
                line.push_str(&format!("  {status}"));
            }
            for key in ["reason", "clause", "detail"] {
                if data[key].is_string() {
                    line.push_str("  ");
                    line.push_str(&text(key));
                }
            }
            line
        }
        _ => format!("{}: {}", visible(event), text("detail")),
    }
}
