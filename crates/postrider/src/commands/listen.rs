//! `postrider listen`: every matching event as the request that would be POSTed, forwarded to an
//! address that only this machine reaches.
//!
//! make a listener -> take its requests -> forward each, say how it went -> end the listener.
//!
//! A request that was forwarded is forwarded no second time, also when the server could not be told
//! and sends it again.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Client, Url, header::HeaderMap};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Failure, subscriptions, tail::Pause};
use crate::{
    api::{Api, Refused},
    cli::{CreateSubscription, Format, Listen},
    output::{try_text, visible},
    settings::Settings,
    sse::{Message, Stream},
};

/// How long the address that is forwarded to may take, as long as any endpoint.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How many forwarded requests are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// How soon a server that could not be told is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(1);
/// How many are told of at once.
const TOLD_MAX: usize = 100;
/// How long ending the listener may take.
const END_MAX: Duration = Duration::from_secs(10);

pub(super) async fn run(settings: &Settings, listen: Listen) -> Result<(), Failure> {
    let target = target(&listen.forward_to)?;
    let stop =
        service::shutdown::on_signals().map_err(|error| Failure::failed(error.to_string()))?;
    let (remote, format) = (&listen.listing.remote, listen.listing.output);
    let api = Api::new(remote, settings)?;
    let mut listener = Listener {
        client: client()?,
        wanted: wanted(&listen, settings)?,
        target,
        format,
        id: String::new(),
        forwarded: Forwarded::default(),
        untold: Vec::new(),
        api,
    };
    let made = listener.api.post("/v1/listeners", &listener.wanted).await?;
    listener.begin(&made)?;
    let ended = stop.run_until_cancelled(listener.listen()).await;
    listener.end().await;
    ended.unwrap_or(Ok(()))
}

fn target(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text)
        .map_err(|error| Failure::usage(format!("--forward-to {text}: {error}")))?;
    if matches!(url.scheme(), "http" | "https") {
        return Ok(url);
    }
    let text = format!("--forward-to {text}: must begin with http:// or https://");
    Err(Failure::usage(text))
}

fn client() -> Result<Client, Failure> {
    Client::builder()
        .no_proxy()
        .timeout(ANSWER_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(crate::serve::tls_client_config()?)
        .build()
        .map_err(|error| Failure::failed(format!("no HTTP client: {error}")))
}

/// The listener's subscription, as it is asked for.
fn wanted(listen: &Listen, settings: &Settings) -> Result<Value, Failure> {
    let mut events = listen.events.clone();
    if events.is_empty() && listen.parameters.is_empty() {
        events.push("*".into());
    }
    let create = CreateSubscription {
        file: None,
        tenant: listen.tenant.clone(),
        target_url: None,
        events,
        dialect: listen.dialect.clone(),
        parameters: listen.parameters.clone(),
        attributes: listen.attributes.clone(),
        view: listen.view.clone(),
        name: Some("postrider listen".into()),
        actions: listen.actions.clone(),
        statuses: listen.statuses.clone(),
        changed_fields: listen.changed_fields.clone(),
        expression: listen.expression.clone(),
        listing: listen.listing.clone(),
    };
    let mut body = subscriptions::body(&create, settings)?;
    if let Some(keep) = &listen.keep_for {
        body["lease"] = json!(keep);
    }
    Ok(body)
}

/// What became of a request, in the words of `/v1/listeners/{id}/taken`.
#[derive(Debug, Clone)]
struct Outcome {
    status: Option<u16>,
    error: Option<&'static str>,
    detail: Option<String>,
    took: Duration,
}

impl Outcome {
    fn report(&self, id: &str) -> Value {
        json!({
            "id": id, "status": self.status, "error": self.error, "detail": self.detail,
            "duration_ms": self.took.as_secs_f64() * 1000.0,
        })
    }
}

/// The latest requests that were forwarded, by their ids.
#[derive(Debug, Default)]
struct Forwarded {
    outcomes: HashMap<String, Outcome>,
    order: VecDeque<String>,
}

impl Forwarded {
    fn remember(&mut self, id: &str, outcome: &Outcome) {
        if self.order.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
        self.order.push_back(id.to_owned());
        self.outcomes.insert(id.to_owned(), outcome.clone());
    }
}

struct Listener {
    api: Api,
    client: Client,
    wanted: Value,
    target: Url,
    format: Format,
    id: String,
    forwarded: Forwarded,
    /// What the server does not know yet.
    untold: Vec<Value>,
}

impl Listener {
    /// Says what a developer needs to verify what comes.
    fn begin(&mut self, made: &Value) -> Result<(), Failure> {
        let text = |key: &str| made[key].as_str().map(visible);
        self.id = text("id").unwrap_or_default();
        match self.format {
            Format::Json => {
                let mut made = made.clone();
                made["forward_to"] = json!(self.target.as_str());
                self.print(&json!({ "listening": made }).to_string())
            }
            Format::Table => {
                let secret = text("secret").map(|secret| format!("\nsigning secret  {secret}"));
                let public = text("public_key").map(|key| format!("\npublic key      {key}"));
                self.print(&format!(
                    "listening as    {}{}{}\nforwarding to   {}\nCtrl-C ends it",
                    self.id,
                    secret.unwrap_or_default(),
                    public.unwrap_or_default(),
                    self.target,
                ))
            }
        }
    }

    fn print(&self, line: &str) -> Result<(), Failure> {
        try_text(format!("{line}\n").as_bytes())
            .map_err(|error| Failure::failed(format!("cannot write to standard output: {error}")))
    }

    async fn listen(&mut self) -> Result<(), Failure> {
        let mut pause = Pause::default();
        loop {
            let path = format!("/v1/listeners/{}/requests", self.id);
            let why = match self.api.stream(&path, &[], None).await {
                Ok(mut stream) => {
                    pause.over();
                    self.take(&mut stream).await?
                }
                Err(Refused::Again(why)) => why,
                Err(Refused::Gone(_)) => {
                    eprintln!(
                        "postrider: the listener has ended meanwhile, beginning anew: what came \
                         in between is lost, and the secret is another one"
                    );
                    self.untold.clear();
                    let made = self.api.post("/v1/listeners", &self.wanted).await?;
                    self.begin(&made)?;
                    continue;
                }
                Err(Refused::For(failure)) => return Err(failure),
            };
            pause.wait(&why).await;
        }
    }

    /// Takes requests until the stream ends; why it did.
    async fn take(&mut self, stream: &mut Stream) -> Result<String, Failure> {
        loop {
            let message = if self.untold.is_empty() {
                stream.next().await
            } else {
                match timeout(TOLD_AGAIN, stream.next()).await {
                    Ok(message) => message,
                    Err(_) => {
                        self.tell().await;
                        continue;
                    }
                }
            };
            match message {
                Ok(message) if message.event == "request" => self.handle(&message).await?,
                Ok(_) => {}
                Err(why) => return Ok(why),
            }
        }
    }

    async fn handle(&mut self, message: &Message) -> Result<(), Failure> {
        let request: Value = serde_json::from_str(&message.data).map_err(|error| {
            Failure::failed(format!("the API's answer cannot be read: {error}"))
        })?;
        let id = request["id"].as_str().unwrap_or_default().to_owned();
        let outcome = match self.forwarded.outcomes.get(&id) {
            // The server did not hear of it: it was forwarded all the same.
            Some(known) => known.clone(),
            None => {
                let outcome = self.forward(&request).await;
                self.forwarded.remember(&id, &outcome);
                self.show(&request, &outcome)?;
                outcome
            }
        };
        self.untold.push(outcome.report(&id));
        self.tell().await;
        Ok(())
    }

    async fn forward(&self, request: &Value) -> Outcome {
        let begun = Instant::now();
        let failed = |error, detail: String| Outcome {
            status: None,
            error: Some(error),
            detail: Some(detail),
            took: begun.elapsed(),
        };
        let (headers, body) = match read(request) {
            Ok(read) => read,
            Err(detail) => return failed("not_http", detail),
        };
        let call = self.client.post(self.target.clone());
        match call.headers(headers).body(body).send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                // The connection is used again only once its answer was read.
                let read = response.bytes().await;
                Outcome {
                    status: Some(status),
                    error: None,
                    detail: read.err().map(|error| error.to_string()),
                    took: begun.elapsed(),
                }
            }
            Err(error) if error.is_timeout() => {
                failed("timeout", format!("no answer within {ANSWER_MAX:?}"))
            }
            Err(error) if error.is_connect() => failed("connect", causes(&error)),
            Err(error) => failed("reset", causes(&error)),
        }
    }

    fn show(&self, request: &Value, outcome: &Outcome) -> Result<(), Failure> {
        let text = |key: &str| visible(request[key].as_str().unwrap_or("-"));
        let ms = outcome.took.as_secs_f64() * 1000.0;
        let line = match self.format {
            Format::Json => {
                let mut line = outcome.report(&text("id"));
                for key in [
                    "event_id",
                    "delivery_id",
                    "type",
                    "tenant",
                    "purpose",
                    "run",
                ] {
                    line[key] = request[key].clone();
                }
                line.to_string()
            }
            Format::Table => {
                let answer = match (outcome.status, outcome.error, &outcome.detail) {
                    (Some(status), ..) => status.to_string(),
                    (_, Some(error), Some(detail)) => format!("{error} ({})", visible(detail)),
                    (_, error, _) => error.unwrap_or("-").to_owned(),
                };
                format!(
                    "{}  {}  {answer}  {ms:.0} ms",
                    text("type"),
                    text("event_id")
                )
            }
        };
        self.print(&line)
    }

    /// Tells the server what was forwarded. What it did not hear is told again.
    async fn tell(&mut self) {
        while !self.untold.is_empty() {
            let some = &self.untold[..self.untold.len().min(TOLD_MAX)];
            let path = format!("/v1/listeners/{}/taken", self.id);
            if self
                .api
                .post(&path, &json!({ "items": some }))
                .await
                .is_err()
            {
                return;
            }
            self.untold.drain(..some.len());
        }
    }

    /// Ends the listener, and what is held for it.
    async fn end(&mut self) {
        let path = format!("/v1/listeners/{}", self.id);
        let end = async {
            self.tell().await;
            self.api.delete(&path).await
        };
        match timeout(END_MAX, end).await {
            Ok(Ok(_)) => {}
            _ => eprintln!(
                "postrider: the server could not be told; the listener {} ends by itself",
                self.id
            ),
        }
    }
}

/// The headers and the body to forward.
fn read(request: &Value) -> Result<(HeaderMap, Vec<u8>), String> {
    let mut headers = HeaderMap::new();
    for header in request["headers"].as_array().into_iter().flatten() {
        let part = |n: usize| header[n].as_str().unwrap_or_default();
        let name = reqwest::header::HeaderName::try_from(part(0));
        let value = reqwest::header::HeaderValue::try_from(part(1));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(format!("the header {:?} cannot be sent", part(0)));
        };
        headers.append(name, value);
    }
    headers
        .entry(reqwest::header::USER_AGENT)
        .or_insert(reqwest::header::HeaderValue::from_static(USER_AGENT));
    let body = match (request["body"].as_str(), request["body_base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(|error| error.to_string())?,
        (None, None) => return Err("it has no body".to_owned()),
    };
    Ok((headers, body))
}

/// As every delivery has it.
const USER_AGENT: &str = concat!("postrider/", env!("CARGO_PKG_VERSION"));

/// An error with what caused it, without the address that the reader knows.
fn causes(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut last = "the connection failed".to_owned();
    while let Some(cause) = source {
        last = cause.to_string();
        source = cause.source();
    }
    last
}
