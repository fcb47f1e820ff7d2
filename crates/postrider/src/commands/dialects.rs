//! `postrider dialects …` and `postrider event-types …`: no server is needed.

use std::path::Path;

use dialect::{Catalogue, DeliveryInfo, Dialects as Spoken, ParameterInfo};
use event::{
    Event, EventId, Refusal, Subscription, Tenant,
    admission::{Envelope, admit},
    filter::{Filter, Stopped},
    subscription::{Rules, View, parse_new},
    target::TargetRules,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Failure, read_input};
use crate::{
    cli::{Dialects, EventTypes, Format},
    output::{self, say},
    settings::Settings,
};

/// Whose event it is where it does not say.
const TENANT: &str = "example";
/// Where a subscription points that does not say; nothing is sent there.
const TARGET: &str = "https://example.com/hooks";

pub(super) fn run(settings: &Settings, command: Dialects) -> Result<(), Failure> {
    match command {
        // A file is judged by itself, whatever the settings say.
        Dialects::Check { file } => check(&file),
        Dialects::List { output } => {
            let dialects = crate::dialects::load(settings)?;
            list(&dialects, output);
            Ok(())
        }
        Dialects::Show { name, output } => {
            let dialects = crate::dialects::load(settings)?;
            show(&dialects, &name, output)
        }
        Dialects::Render {
            dialect,
            subscription,
            event,
            output,
        } => {
            let dialects = crate::dialects::load(settings)?;
            let event = read_event(&event)?;
            let subscription = subscription.as_deref();
            let subscription = read_subscription(&dialects, dialect, subscription, &event)?;
            render(&dialects, &subscription, &event, output)
        }
    }
}

pub(super) fn event_types(settings: &Settings, command: &EventTypes) -> Result<(), Failure> {
    let EventTypes::List { output } = command;
    let types = crate::dialects::load(settings)?.event_types();
    if *output == Format::Json {
        return print(&json!({ "items": types, "cursor": null }));
    }
    let mut table = output::plain_table();
    table.set_header(["type", "said in"]);
    for one in types {
        let words = one.words.iter();
        // The canonical dialects call every type by its name.
        let words = words.filter(|said| said.word != one.kind);
        let said: Vec<_> = words
            .map(|said| format!("{} {}", said.dialect, said.word))
            .collect();
        table.add_row([one.kind.clone(), said.join(", ")]);
    }
    say!("{table}");
    Ok(())
}

fn list(dialects: &Spoken, format: Format) {
    let names = dialects.names();
    let all: Vec<_> = names
        .iter()
        .filter_map(|name| dialects.catalogue(name))
        .collect();
    if format == Format::Json {
        let brief = |one: &Catalogue| {
            let words: Vec<_> = one.events.iter().map(|word| &word.word).collect();
            let parameters: Vec<_> = one.parameters.iter().map(|own| &own.name).collect();
            json!({
                "name": one.name, "title": one.title, "source": one.source,
                "events": words, "parameters": parameters,
            })
        };
        let items: Vec<_> = all.iter().map(brief).collect();
        say!("{:#}", json!({ "items": items, "cursor": null }));
        return;
    }
    let mut table = output::plain_table();
    table.set_header(["name", "title", "events", "parameters"]);
    for one in all {
        let parameters: Vec<_> = one.parameters.iter().map(|own| own.name.as_str()).collect();
        table.add_row([
            one.name.clone(),
            one.title.clone(),
            one.events.len().to_string(),
            or_dash(parameters.join(",")),
        ]);
    }
    say!("{table}");
}

fn show(dialects: &Spoken, name: &str, format: Format) -> Result<(), Failure> {
    let Some(dialect) = dialects.catalogue(name) else {
        let near = event::fault::nearest(name, dialects.names())
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        return Err(Failure::failed(format!(
            "no dialect is named `{name}`{near}"
        )));
    };
    if format == Format::Json {
        return print(&dialect);
    }
    say!("{}: {}", dialect.name, dialect.title);
    for text in [&dialect.source, &dialect.notes] {
        if !text.is_empty() {
            say!("{text}");
        }
    }
    say!("{}\n", sent(&dialect.delivery));
    let mut table = output::plain_table();
    table.set_header(["event", "stands for", "takes"]);
    for word in &dialect.events {
        let takes: Vec<_> = word.parameters.iter().map(values).collect();
        table.add_row([
            word.word.clone(),
            word.types.join(", "),
            or_dash(takes.join("; ")),
        ]);
    }
    for word in &dialect.refused {
        table.add_row([
            word.word.clone(),
            word.types.join(", "),
            format!("refused: {}", word.reason),
        ]);
    }
    say!("{table}");
    described(
        "parameters",
        dialect.parameters.iter().map(|own| (&own.name, &own.note)),
    );
    described("attributes", &dialect.attributes);
    Ok(())
}

/// Names and what each is for.
fn described<'a>(title: &str, named: impl IntoIterator<Item = (&'a String, &'a String)>) {
    let mut table = output::plain_table();
    for (name, note) in named {
        table.add_row([name.as_str(), note.as_str()]);
    }
    if table.row_count() > 0 {
        say!("\n{title}\n{table}");
    }
}

/// How a dialect's deliveries are sent, in one line.
fn sent(delivery: &DeliveryInfo) -> String {
    let retry = Value::from(delivery.retry.clone());
    let retry = retry
        .as_str()
        .map_or_else(|| retry.to_string(), str::to_owned);
    let mut parts = vec![format!("timeout {}, retry {retry}", delivery.timeout)];
    if delivery.https {
        parts.push("https only".into());
    }
    if !delivery.not_retried.is_empty() {
        let statuses: Vec<_> = delivery.not_retried.iter().map(u16::to_string).collect();
        parts.push(format!("{} are not retried", statuses.join(", ")));
    }
    if let Some(failures) = delivery.disable_after.failures {
        parts.push(format!("disabled after {failures} failures in a row"));
    }
    if let Some(span) = delivery.disable_after.span {
        let span = humantime::format_duration(span);
        parts.push(format!("disabled after {span} without a success"));
    }
    if !delivery.signature_headers {
        parts.push("no Standard Webhooks headers".into());
    }
    parts.join(", ")
}

fn values(parameter: &ParameterInfo) -> String {
    let name = &parameter.name;
    let values = parameter.values.join("|");
    match (parameter.list, values.is_empty()) {
        (true, true) => format!("{name}=[…]"),
        (true, false) => format!("{name}=[{values}]"),
        (false, true) => format!("{name}=…"),
        (false, false) => format!("{name}={values}"),
    }
}

fn check(file: &Path) -> Result<(), Failure> {
    let name = file.display().to_string();
    let text = crate::dialects::text(file)
        .map_err(|reason| Failure::failed(format!("{name}: {reason}")))?;
    let report = Spoken::check_file(&name, &text).map_err(|faults| {
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        Failure::failed(lines.join("\n"))
    })?;
    for example in &report.examples {
        if example.diff.is_empty() {
            say!("ok    {}", example.name);
        } else {
            say!("DIFF  {} (- expected, + got)", example.name);
            for line in &example.diff {
                say!("      {line}");
            }
        }
    }
    for word in &report.without_example {
        say!("note  no example says `{word}`");
    }
    let all = report.examples.len();
    let differ = report
        .examples
        .iter()
        .filter(|one| !one.diff.is_empty())
        .count();
    if report.passed() {
        say!("{}: {all} examples, all as they should be", report.dialect);
        return Ok(());
    }
    let text = format!("{}: {differ} of {all} examples differ", report.dialect);
    Err(Failure::failed(text))
}

/// What would be sent.
#[derive(Serialize)]
struct Request<'a> {
    headers: Map<String, Value>,
    body: Value,
    view_sent: View,
    dialect: &'a str,
}

fn render(
    dialects: &Spoken,
    subscription: &Subscription,
    event: &Event,
    format: Format,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
    let speaker = dialects
        .speaker(subscription)
        .map_err(|error| failed(&error))?;
    let selectors = subscription.selectors();
    if !selectors.iter().any(|selector| selector.matches(event)) {
        let text = format!(
            "nothing would be sent: `{}` does not match its events",
            event.kind
        );
        return Err(Failure::failed(text));
    }
    let filter = Filter::compile(&subscription.filter).map_err(|faults| {
        let faults: Vec<_> = faults.into_iter().map(|fault| fault.message).collect();
        Failure::failed(faults.join("; "))
    })?;
    let stopped = |Stopped { clause, detail }| {
        Failure::failed(format!(
            "nothing would be sent: {clause} stops it, {detail}"
        ))
    };
    speaker
        .judge(event)
        .and_then(|()| filter.judge(event))
        .map_err(stopped)?;
    let missing = speaker.missing_view(event);
    let rendered = speaker
        .render(event, None, subscription)
        .map_err(|error| failed(&error))?;
    if let Some(missing) = missing {
        eprintln!(
            "the event has no view `{}`; without a loader `{}` is sent",
            word(missing),
            word(rendered.view_sent)
        );
    }
    let mut headers = vec![("content-type", &*rendered.content_type)];
    let own = rendered.headers.iter();
    headers.extend(own.map(|(name, value)| (name.as_str(), value.as_str())));
    let body = String::from_utf8_lossy(&rendered.body);
    if format == Format::Json {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| ((*name).to_owned(), (*value).into()));
        return print(&Request {
            headers: headers.collect(),
            body: serde_json::from_str(&body).unwrap_or_else(|_| json!(body)),
            view_sent: rendered.view_sent,
            dialect: &subscription.dialect,
        });
    }
    for (name, value) in headers {
        say!("{name}: {value}");
    }
    say!("\n{body}");
    Ok(())
}

/// One event, as it is published; who leaves out `id` and `tenant` gets some.
fn read_event(file: &Path) -> Result<Event, Failure> {
    let body = read_input(file)?;
    let tenant = Tenant::parse(TENANT).map_err(|bad| Failure::failed(bad.to_string()))?;
    let says_its_tenant = serde_json::from_slice::<Value>(&body)
        .is_ok_and(|event| event.get("tenant").is_some_and(|tenant| !tenant.is_null()));
    let envelope = Envelope {
        now: Timestamp::now(),
        message_id: None,
        tenant: (!says_its_tenant).then_some(&tenant),
        fresh_id: Some(EventId::fresh),
    };
    admit(&body, &envelope).map_err(|refusal| refused(file, &refusal))
}

/// The subscription of a file, or one to all events in the dialect.
fn read_subscription(
    dialects: &Spoken,
    dialect: Option<String>,
    file: Option<&Path>,
    event: &Event,
) -> Result<Subscription, Failure> {
    let name = file.unwrap_or(Path::new("the subscription"));
    let mut written = match file {
        None => Map::from_iter([("events".to_owned(), json!(["*"]))]),
        Some(file) => serde_json::from_slice(&read_input(file)?)
            .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?,
    };
    if let Some(dialect) = dialect {
        written.insert("dialect".into(), dialect.into());
    }
    for (field, value) in [("target_url", TARGET), ("tenant", event.tenant.as_str())] {
        written.entry(field).or_insert_with(|| value.into());
    }
    // Where it would go is not the question.
    let target = TargetRules {
        allow: vec![
            ipnet::Ipv4Net::default().into(),
            ipnet::Ipv6Net::default().into(),
        ],
        require_https: false,
        ..TargetRules::default()
    };
    let rules = Rules {
        target: &target,
        dialects,
        tenant: None,
    };
    let body = Value::Object(written).to_string();
    parse_new(body.as_bytes(), &rules, Timestamp::now())
        .map(|(subscription, _, _)| subscription)
        .map_err(|refusal| refused(name, &refusal))
}

/// Everything wrong with an input, a line each.
fn refused(file: &Path, refusal: &Refusal) -> Failure {
    let file = file.display();
    if refusal.faults.is_empty() {
        return Failure::failed(format!("{file}: {}", refusal.detail));
    }
    let faults = refusal.faults.iter();
    let lines: Vec<_> = faults
        .map(|fault| format!("{file}: {} {}", fault.pointer, fault.message))
        .collect();
    Failure::failed(lines.join("\n"))
}

fn print(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    say!("{text}");
    Ok(())
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

const fn word(view: View) -> &'static str {
    match view {
        View::Basic => "basic",
        View::Full => "full",
        View::Extended => "extended",
    }
}
