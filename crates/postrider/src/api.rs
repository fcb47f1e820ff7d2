//! A small client of our own HTTP API, for the commands.

use std::time::Duration;

use reqwest::{Client, Method, header};
use serde_json::Value;

use crate::{cli::Remote, commands::Failure, settings::Settings, sse::Stream};

/// A running Postrider.
pub(crate) struct Api {
    base: String,
    token: Option<String>,
    client: Client,
}

impl Api {
    /// The API that the flags name, or the one the settings would serve.
    pub(crate) fn new(remote: &Remote, settings: &Settings) -> Result<Self, Failure> {
        let base = remote
            .api
            .clone()
            .unwrap_or_else(|| format!("http://{}", settings.api.listen));
        let token = remote
            .token
            .clone()
            .or_else(|| settings.admin_token().map(str::to_owned));
        let client = Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(crate::serve::tls_client_config()?)
            .build()
            .map_err(|error| Failure::failed(format!("no HTTP client: {error}")))?;
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            token,
            client,
        })
    }

    pub(crate) async fn get(&self, path: &str, query: &[(&str, Option<String>)]) -> Answer {
        let mut url = url::Url::parse(&format!("{}{path}", self.base))
            .map_err(|error| Failure::usage(format!("--api {}: {error}", self.base)))?;
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.call(Method::GET, url.as_str(), None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let body = ("application/json", body.to_string().into_bytes());
        self.call(Method::POST, &format!("{}{path}", self.base), Some(body))
            .await
    }

    pub(crate) async fn post_bytes(&self, path: &str, kind: &'static str, body: Vec<u8>) -> Answer {
        self.call(
            Method::POST,
            &format!("{}{path}", self.base),
            Some((kind, body)),
        )
        .await
    }

    pub(crate) async fn patch(&self, path: &str, body: Vec<u8>) -> Answer {
        let body = ("application/merge-patch+json", body);
        self.call(Method::PATCH, &format!("{}{path}", self.base), Some(body))
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, &format!("{}{path}", self.base), None)
            .await
    }

    /// An answer that has no end, from a place that an earlier one left off at.
    pub(crate) async fn stream(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
        last_event_id: Option<&str>,
    ) -> Result<Stream, Refused> {
        let mut url = url::Url::parse(&format!("{}{path}", self.base)).map_err(|error| {
            Refused::For(Failure::usage(format!("--api {}: {error}", self.base)))
        })?;
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        let mut request = self
            .client
            .get(url)
            .header(header::ACCEPT, "text/event-stream")
            .timeout(NO_END);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(place) = last_event_id {
            request = request.header("last-event-id", place);
        }
        let begun = tokio::time::timeout(BEGUN_WITHIN, request.send());
        let response = match begun.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Refused::Again(error.to_string())),
            Err(_) => return Err(Refused::Again(format!("no answer within {BEGUN_WITHIN:?}"))),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(Stream::new(response));
        }
        let body = response.bytes().await.unwrap_or_default();
        let text = problem(status.as_u16(), &body);
        Err(match status.as_u16() {
            404 => Refused::Gone(Failure::failed(text)),
            408 | 429 | 500.. => Refused::Again(text),
            _ => Refused::For(Failure::failed(text)),
        })
    }

    async fn call(
        &self,
        method: Method,
        url: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Answer {
        let mut request = self.client.request(method, url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some((kind, body)) = body {
            request = request.header(header::CONTENT_TYPE, kind).body(body);
        }
        let response = request.send().await.map_err(|error| {
            Failure::failed(format!(
                "cannot reach the API at {}: {error}; is `postrider serve` running there? (--api URL, api.listen)",
                self.base
            ))
        })?;
        let status = response.status();
        let body = response
            .bytes()
            .await
            .map_err(|error| Failure::failed(format!("the API's answer broke off: {error}")))?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap_or(Value::Null));
        }
        Err(Failure::failed(problem(status.as_u16(), &body)))
    }
}

/// Longer than anybody follows anything.
const NO_END: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long an answer without an end may take to begin.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);

/// Why a stream did not begin.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It may well, the next time.
    Again(String),
    /// What was asked for is no more.
    Gone(Failure),
    /// It never will.
    For(Failure),
}

/// What the API answered, or why the command failed.
pub(crate) type Answer = Result<Value, Failure>;

/// A problem document as lines for people.
fn problem(status: u16, body: &[u8]) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let word = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    let detail = match word("detail") {
        empty if empty.is_empty() => word("title"),
        detail => detail,
    };
    let mut text = format!("the API answered {status} {}: {detail}", word("code"));
    for fault in problem["errors"].as_array().into_iter().flatten() {
        let part = |key: &str| fault[key].as_str().unwrap_or_default();
        text.push_str(&format!("\n  {} {}", part("pointer"), part("message")));
    }
    text
}
