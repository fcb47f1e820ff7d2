//! From what a person wrote to a [`Subscription`], or a [`Refusal`] that names all faults at once.
//!
//! Creating and patching go through the same gate: a patch is merged into what the person could
//! have written, and the whole is read again. So no patch can make a subscription that could not
//! have been created.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    DeliverySpec, DisableAfter, FilterSpec, Ordering, RateLimit, Rules, SigningChoice,
    Subscription, SubscriptionState, View, headers, words::Words,
};
use crate::{
    event::EVENT_BYTES_MAX,
    fault::{Fault, Refusal, did_you_mean, kind_of, nearest, sentence, shown},
    filter::Filter,
    id::{SubscriptionId, Tenant},
    redact,
    retry::RetryPolicy,
    scan,
    secret::{SigningKey, SigningKind},
    target,
};

/// What a person may write.
pub(super) const FIELDS: [&str; 13] = [
    "tenant",
    "name",
    "target_url",
    "dialect",
    "events",
    "filter",
    "view",
    "headers",
    "attributes",
    "redact",
    "delivery",
    "signing",
    "secret",
];
const FILTER_FIELDS: [&str; 4] = ["actions", "statuses", "changed_fields", "where"];
const DELIVERY_FIELDS: [&str; 6] = [
    "timeout",
    "retry",
    "max_in_flight",
    "rate_limit",
    "ordering",
    "disable_after",
];
/// What only we write.
pub(super) const OURS: [&str; 6] = [
    "id",
    "matches",
    "created_at",
    "updated_at",
    "revision",
    "disabled_reason",
];

/// The dialect of a subscription that names none.
const STANDARD: &str = "standard";
const VIEWS: [(&str, View); 3] = [
    ("basic", View::Basic),
    ("full", View::Full),
    ("extended", View::Extended),
];

const NAME_CHARS_MAX: usize = 200;
const ATTRIBUTES_MAX: usize = 50;
const ATTRIBUTE_BYTES_MAX: usize = 1024;
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
const IN_FLIGHT_MAX: u32 = 256;
/// What we show in place of a header's value.
const HIDDEN: &str = "***";

/// Reads what a person wrote to create a subscription. All faults are named at once. `id`, `state`,
/// `revision` and the times are not theirs to give. The caller supplies `now`; the revision is the
/// store's to set and begins as 0. The standard keys are those of contract section 4, and
/// `signing`, see [`SigningChoice`], and `secret`: a `v1` key that the receiver has already. A key
/// that is null is like one left out, as it is in a patch.
pub fn parse_new(
    body: &[u8],
    rules: &Rules<'_>,
    now: Timestamp,
) -> Result<(Subscription, SigningChoice, Option<SigningKey>), Refusal> {
    let (given, faults) = read(body)?;
    let mut form = Form {
        rules,
        faults,
        leaves: None,
    };
    form.names(&given, &Map::from_iter([("state".into(), "active".into())]));
    let mut written = Map::new();
    merge(&mut written, given);
    if written
        .get("headers")
        .and_then(Value::as_object)
        .is_some_and(|h| !h.is_empty())
    {
        form.hidden_headers(&written, |_| false);
    }
    let tenant = form.tenant(written.get("tenant"));
    let signing = form.signing(written.get("signing"));
    let secret = form.secret(written.get("secret"), signing);
    let draft = form.draft(&written);
    match (tenant, signing, draft) {
        (Some(tenant), Some(signing), Some(draft)) if form.faults.is_empty() => {
            let subscription = Subscription {
                id: SubscriptionId::fresh(),
                tenant,
                name: draft.name,
                target_url: draft.target_url,
                dialect: draft.dialect,
                events: draft.words.events,
                matches: draft.words.matches,
                parameters: draft.words.parameters,
                filter: draft.filter,
                view: draft.view,
                headers: draft.headers,
                attributes: draft.attributes,
                redact: draft.redact,
                delivery: draft.delivery,
                state: SubscriptionState::Active,
                disabled_reason: None,
                created_at: now,
                updated_at: now,
                revision: 0,
            };
            Ok((subscription, signing, secret))
        }
        _ => Err(form.refusal()),
    }
}

/// Applies a JSON merge patch (RFC 7396) that a person wrote to a subscription. A header whose
/// value is `***` (as we show it) keeps its value; a change of the target's host drops all custom
/// headers that the patch does not send again (their values would otherwise leak to another host).
/// A retry policy is replaced whole, never merged.
///
/// Another dialect takes the old one's parameters away, and what `delivery` has by the old one's
/// default goes by the new one's. A `view` that a parameter chose goes on following the parameter.
pub fn parse_patch(
    body: &[u8],
    current: &Subscription,
    rules: &Rules<'_>,
    now: Timestamp,
) -> Result<Subscription, Refusal> {
    let (mut patch, faults) = read(body)?;
    let mut form = Form {
        rules,
        faults,
        leaves: None,
    };
    // Shown beside the subscription, and follows its key: whoever sends it back changes nothing.
    patch.remove("public_key");
    patch.remove("warnings");
    form.names(&patch, &fields_of(current));
    if patch.remove("secret").is_some() {
        form.find("/secret", "is changed by rotate-secret");
    }
    if patch.remove("signing").is_some() {
        form.find(
            "/signing",
            "is chosen at creation; rotate-secret makes new keys",
        );
    }
    if patch
        .remove("tenant")
        .is_some_and(|tenant| tenant != current.tenant.as_str())
    {
        form.find("/tenant", "cannot be changed");
    }
    let moved = moves(&patch, &current.target_url);
    form.hidden_headers(&patch, |name| {
        !moved
            && current
                .headers
                .keys()
                .any(|known| known.eq_ignore_ascii_case(name))
    });
    let mut written = writable(current);
    form.follow(&mut written, &mut patch, current);
    let headers = patched_headers(current, patch.remove("headers"), moved);
    if let Some(delivery) = written.get_mut("delivery").and_then(Value::as_object_mut)
        && patch
            .get("delivery")
            .is_some_and(|delivery| delivery.get("retry").is_some())
    {
        // A policy is one value in one of three forms: merging two forms would make neither.
        delivery.remove("retry");
    }
    merge(&mut written, patch);
    written.insert("headers".into(), headers);
    match form.draft(&written) {
        Some(draft) if form.faults.is_empty() => Ok(Subscription {
            name: draft.name,
            target_url: draft.target_url,
            dialect: draft.dialect,
            events: draft.words.events,
            matches: draft.words.matches,
            parameters: draft.words.parameters,
            filter: draft.filter,
            view: draft.view,
            headers: draft.headers,
            attributes: draft.attributes,
            redact: draft.redact,
            delivery: draft.delivery,
            updated_at: now,
            ..current.clone()
        }),
        _ => Err(form.refusal()),
    }
}

/// The body as fields, and what the scanner has against it.
fn read(body: &[u8]) -> Result<(Map<String, Value>, Vec<Fault>), Refusal> {
    if body.len() > EVENT_BYTES_MAX {
        let got = body.len();
        let detail = format!("a subscription is at most {EVENT_BYTES_MAX} bytes, got {got}");
        return Err(Refusal {
            status: 413,
            ..Refusal::invalid("too_large", detail, Vec::new())
        });
    }
    let document = scan::object(body)?;
    let faults: Vec<Fault> = document
        .findings
        .into_iter()
        .map(|found| found.fault)
        .collect();
    match serde_json::from_slice(body) {
        Ok(written) => Ok((written, faults)),
        // A lone surrogate or an endless number has no value that could be judged further.
        Err(_) if !faults.is_empty() => Err(Refusal::invalid(
            "invalid_subscription",
            sentence("the body", &faults),
            faults,
        )),
        Err(error) => Err(Refusal::unreadable(
            "bad_json",
            format!("the body is not JSON: {error}"),
        )),
    }
}

/// RFC 7396.
fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(inner) => {
                let slot = target.entry(key).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(slot) = slot {
                    merge(slot, inner);
                }
            }
            other => {
                target.insert(key, other);
            }
        }
    }
}

/// A subscription as a person could have written it.
fn writable(current: &Subscription) -> Map<String, Value> {
    let mut fields = fields_of(current);
    fields.retain(|key, _| {
        let theirs = FIELDS.contains(&key.as_str()) || current.parameters.contains_key(key);
        theirs && key != "tenant"
    });
    if current.events.is_empty() {
        // A parameter stands in its place.
        fields.remove("events");
    }
    fields
}

fn left_words(left: &Subscription, dialect: &str) -> Fault {
    let left = &left.dialect;
    let message = format!("is in the words of `{left}`; send it along in those of `{dialect}`");
    Fault::at("/events", message)
}

/// What `delivery` says in other words than the dialect would have.
fn own_delivery(written: &mut Map<String, Value>, usual: &DeliverySpec) {
    let Some(Value::Object(delivery)) = written.get_mut("delivery") else {
        return;
    };
    if let Ok(Value::Object(usual)) = serde_json::to_value(usual) {
        delivery.retain(|key, value| usual.get(key) != Some(value));
    }
}

/// A subscription as it is shown.
fn fields_of(current: &Subscription) -> Map<String, Value> {
    match serde_json::to_value(current) {
        Ok(Value::Object(fields)) => fields,
        // It was read from JSON; without its fields the gate refuses the patch.
        _ => Map::new(),
    }
}

/// Whether a patch sends deliveries to another host.
fn moves(patch: &Map<String, Value>, current: &str) -> bool {
    patch
        .get("target_url")
        .and_then(Value::as_str)
        .is_some_and(|new| super::host_of(new) != super::host_of(current))
}

/// The headers after a patch. Their names are compared without case, as HTTP does.
fn patched_headers(current: &Subscription, patch: Option<Value>, moved: bool) -> Value {
    let mut headers = Map::new();
    if !moved {
        headers.extend(
            current
                .headers
                .iter()
                .map(|(k, v)| (k.clone(), v.as_str().into())),
        );
    }
    match patch {
        None => {}
        Some(Value::Object(patch)) => {
            for (name, value) in patch {
                if value == HIDDEN {
                    continue;
                }
                headers.retain(|known, _| !known.eq_ignore_ascii_case(&name));
                if !value.is_null() {
                    headers.insert(name, value);
                }
            }
        }
        Some(Value::Null) => headers.clear(),
        Some(other) => return other,
    }
    Value::Object(headers)
}

/// What a person decides about a subscription, checked.
struct Draft {
    name: String,
    target_url: String,
    dialect: String,
    words: Words,
    filter: FilterSpec,
    view: View,
    headers: BTreeMap<String, String>,
    attributes: BTreeMap<String, String>,
    redact: Vec<String>,
    delivery: DeliverySpec,
}

/// Reads fields one by one and keeps what is wrong with them.
struct Form<'r> {
    rules: &'r Rules<'r>,
    faults: Vec<Fault>,
    /// The subscription whose dialect a patch leaves without sending `events` in the new one's
    /// words.
    leaves: Option<&'r Subscription>,
}

impl<'r> Form<'r> {
    fn find(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::at(pointer, message));
    }

    fn refusal(self) -> Refusal {
        let detail = sentence("the subscription", &self.faults);
        Refusal::invalid("invalid_subscription", detail, self.faults)
    }

    /// Refuses names that nobody knows, or that are not the caller's to write, unless they say
    /// what `is` says already: what was read may be changed in places and sent back whole.
    fn names(&mut self, written: &Map<String, Value>, is: &Map<String, Value>) {
        let dialect = written.get("dialect").or_else(|| is.get("dialect"));
        let dialect = dialect.and_then(Value::as_str).unwrap_or(STANDARD);
        let parameters = self.rules.dialects.parameters(dialect);
        let is_spoken = self.rules.dialects.names().contains(&dialect);
        for (key, value) in written {
            let pointer = format!("/{}", scan::segment(key));
            let ours = OURS.contains(&key.as_str()) || key == "state";
            if ours && is.get(key) == Some(value) {
                continue;
            }
            if OURS.contains(&key.as_str()) {
                self.find(pointer, "is read-only: it is ours to set");
            } else if key == "state" {
                self.find(pointer, "is changed by the pause and resume routes");
            } else if !FIELDS.contains(&key.as_str()) && !parameters.contains(&key.as_str()) {
                let elsewhere = self.dialects_with(key);
                if elsewhere.is_empty() {
                    let known: Vec<&str> = FIELDS.into_iter().chain(parameters.clone()).collect();
                    self.unknown(pointer, key, &known);
                } else if is_spoken && !value.is_null() {
                    let message = format!(
                        "the dialect `{dialect}` takes no parameter `{key}`; it is one of {elsewhere}"
                    );
                    self.find(pointer, message);
                }
            }
        }
        for (outer, known) in [
            ("filter", &FILTER_FIELDS[..]),
            ("delivery", &DELIVERY_FIELDS),
        ] {
            let Some(Value::Object(inner)) = written.get(outer) else {
                continue;
            };
            for key in inner.keys().filter(|key| !known.contains(&key.as_str())) {
                self.unknown(format!("/{outer}/{}", scan::segment(key)), key, known);
            }
        }
    }

    /// The dialects that take a parameter, in words; empty where none does.
    fn dialects_with(&self, parameter: &str) -> String {
        let dialects = self.rules.dialects;
        let mut names = dialects.names();
        names.retain(|name| dialects.parameters(name).contains(&parameter));
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        names.join(", ")
    }

    /// Takes out of `written` what the words of the current dialect brought along, as far as the
    /// patch says nothing of it: the new words bring their own.
    fn follow(
        &mut self,
        written: &mut Map<String, Value>,
        patch: &mut Map<String, Value>,
        current: &'r Subscription,
    ) {
        let dialect = patch.get("dialect").map(|new| match new {
            Value::Null => STANDARD,
            new => new.as_str().unwrap_or_default(),
        });
        let leaves = dialect.is_some_and(|new| new != current.dialect);
        if leaves {
            written.retain(|key, _| !current.parameters.contains_key(key));
            self.leaves = (!patch.contains_key("events")).then_some(current);
        }
        if current.events.is_empty() && patch.get("events") == Some(&Value::Array(Vec::new())) {
            // As it was shown.
            patch.remove("events");
        }
        let words = self
            .rules
            .dialects
            .read(&current.dialect, &fields_of(current));
        // A dialect that has gone or changed since has left nothing to follow.
        let Ok(words) = words else { return };
        if leaves {
            own_delivery(written, &words.delivery);
        }
        if words.view == Some(current.view) {
            let shown = written.remove("view");
            if patch.get("view") == shown.as_ref() {
                patch.remove("view");
            }
        }
    }

    fn unknown(&mut self, pointer: String, key: &str, known: &[&str]) {
        let near = did_you_mean(key, known.iter().copied());
        self.find(pointer, format!("unknown field `{}`{near}", shown(key, 64)));
    }

    /// A value that we show hidden can only stand for one that we still hold.
    fn hidden_headers(&mut self, written: &Map<String, Value>, held: impl Fn(&str) -> bool) {
        let Some(Value::Object(headers)) = written.get("headers") else {
            return;
        };
        for (name, value) in headers {
            if *value == HIDDEN && !held(name) {
                let pointer = format!("/headers/{}", scan::segment(name));
                self.find(
                    pointer,
                    "`***` is how a value is hidden; send the value itself",
                );
            }
        }
    }

    fn tenant(&mut self, value: Option<&Value>) -> Option<Tenant> {
        let Some(value) = value else {
            if self.rules.tenant.is_none() {
                self.find("/tenant", "is required");
            }
            return self.rules.tenant.cloned();
        };
        let text = self.text("/tenant", value)?;
        let tenant = Tenant::parse(text)
            .map_err(|bad| self.find("/tenant", bad.0))
            .ok()?;
        if self.rules.tenant.is_some_and(|bound| *bound != tenant) {
            self.find("/tenant", "is not the tenant that the caller may manage");
            return None;
        }
        Some(tenant)
    }

    fn draft(&mut self, written: &Map<String, Value>) -> Option<Draft> {
        let name = match written.get("name") {
            Some(value) => self.name(value),
            None => Some(String::new()),
        };
        let target_url = self.target_url(written.get("target_url"));
        let dialect = match written.get("dialect") {
            Some(value) => self.dialect(value),
            None => Some(STANDARD.into()),
        };
        let words = match &dialect {
            Some(dialect) => self.words(dialect, written),
            None => self.words_of_the_nearest(written),
        };
        if let (Some(url), Some(dialect)) = (&target_url, &dialect)
            && words.as_ref().is_some_and(|words| words.https)
            && !target::is_https_or_loopback(url)
        {
            let message =
                format!("must begin with `https://`: the dialect `{dialect}` asks for it");
            self.find("/target_url", message);
        }
        let filter = match written.get("filter") {
            Some(value) => self.filter(value),
            None => Some(FilterSpec::default()),
        };
        let view = match written.get("view") {
            Some(value) => self.view(value, words.as_ref()),
            None => Some(
                words
                    .as_ref()
                    .and_then(|words| words.view)
                    .unwrap_or_default(),
            ),
        };
        let headers = match written.get("headers") {
            Some(value) => self.headers(value),
            None => Some(BTreeMap::new()),
        };
        let attributes = match written.get("attributes") {
            Some(value) => self.attributes(value),
            None => Some(BTreeMap::new()),
        };
        let redact = match written.get("redact") {
            Some(value) => self.redact(value),
            None => Vec::new(),
        };
        let usual = words.as_ref().map(|words| words.delivery.clone());
        let usual = usual.unwrap_or_default();
        let delivery = match written.get("delivery") {
            Some(value) => self.delivery(value, usual),
            None => Some(usual),
        };
        Some(Draft {
            name: name?,
            target_url: target_url?,
            dialect: dialect?,
            words: words?,
            filter: filter?,
            view: view?,
            headers: headers?,
            attributes: attributes?,
            redact,
            delivery: delivery?,
        })
    }

    fn name(&mut self, value: &Value) -> Option<String> {
        let name = self.text("/name", value)?;
        let chars = name.chars().count();
        if chars > NAME_CHARS_MAX {
            self.find(
                "/name",
                format!("must be at most {NAME_CHARS_MAX} characters, got {chars}"),
            );
            return None;
        }
        Some(name.into())
    }

    fn target_url(&mut self, value: Option<&Value>) -> Option<String> {
        let Some(value) = value else {
            self.find("/target_url", "is required");
            return None;
        };
        // Its control characters are the URL check's to refuse.
        let Value::String(text) = value else {
            self.wrong_kind("/target_url", "a string", value);
            return None;
        };
        match self.rules.target.check_url(text) {
            Ok(url) => Some(url.into()),
            Err(faults) => {
                for fault in faults {
                    self.find(format!("/target_url{}", fault.pointer), fault.message);
                }
                None
            }
        }
    }

    fn dialect(&mut self, value: &Value) -> Option<String> {
        let name = self.text("/dialect", value)?;
        let known = self.rules.dialects.names();
        if !known.contains(&name) {
            let near = did_you_mean(name, known);
            self.find(
                "/dialect",
                format!("unknown dialect `{}`{near}", shown(name, 64)),
            );
            return None;
        }
        Some(name.into())
    }

    /// What it listens to, in the dialect's words.
    fn words(&mut self, dialect: &str, written: &Map<String, Value>) -> Option<Words> {
        match self.rules.dialects.read(dialect, written) {
            Ok(words) => {
                // A word may exist in both and mean something else, or nothing that ever happens.
                if let Some(left) = self.leaves
                    && words.selectors() != left.selectors()
                {
                    self.faults.push(left_words(left, dialect));
                }
                Some(words)
            }
            Err(mut faults) => {
                if let Some(left) = self.leaves {
                    let of_events = |fault: &Fault| fault.pointer.starts_with("/events");
                    if faults.iter().any(of_events) {
                        faults.retain(|fault| !of_events(fault));
                        faults.push(left_words(left, dialect));
                    }
                }
                self.faults.extend(faults);
                None
            }
        }
    }

    /// With a dialect that is not known the words are still looked at, as those of the one that was
    /// probably meant: all faults at once.
    fn words_of_the_nearest(&mut self, written: &Map<String, Value>) -> Option<Words> {
        let name = written.get("dialect").and_then(Value::as_str)?;
        let meant = nearest(name, self.rules.dialects.names())?.to_owned();
        self.words(&meant, written)
    }

    fn filter(&mut self, value: &Value) -> Option<FilterSpec> {
        let fields = self.object("/filter", value)?;
        let before = self.faults.len();
        let mut list = |name: &str| match fields.get(name) {
            Some(value) => self.texts(&format!("/filter/{name}"), value),
            None => Vec::new(),
        };
        let mut spec = FilterSpec {
            actions: list("actions"),
            statuses: list("statuses"),
            changed_fields: list("changed_fields"),
            expression: None,
        };
        spec.expression = match fields.get("where") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => {
                self.wrong_kind("/filter/where", "a string", other);
                None
            }
        };
        // With a list that could not be read whole the entries' numbers would be wrong.
        if self.faults.len() == before
            && let Err(faults) = Filter::compile(&spec)
        {
            for fault in faults {
                self.find(format!("/filter{}", fault.pointer), fault.message);
            }
        }
        Some(spec)
    }

    fn view(&mut self, value: &Value, words: Option<&Words>) -> Option<View> {
        let name = self.text("/view", value)?;
        let known = VIEWS.iter().find(|(known, _)| *known == name);
        let Some((_, view)) = known else {
            let near = did_you_mean(name, VIEWS.map(|(known, _)| known));
            self.find(
                "/view",
                format!("must be `basic`, `full` or `extended`{near}"),
            );
            return None;
        };
        if let Some(words) = words
            && let Some(chosen) = words.view.filter(|chosen| chosen != view)
        {
            let chosen = VIEWS.iter().find(|(_, view)| *view == chosen);
            let chosen = chosen.map_or("", |(name, _)| name);
            let parameter = words.parameters.iter().find(|(_, value)| *value == chosen);
            let parameter = parameter.map_or("a parameter", |(name, _)| name);
            let message = format!("is `{name}`, but `{parameter}` says `{chosen}`; leave one out");
            self.find("/view", message);
        }
        Some(*view)
    }

    fn headers(&mut self, value: &Value) -> Option<BTreeMap<String, String>> {
        let fields = self.object("/headers", value)?;
        let mut headers = BTreeMap::new();
        for (name, value) in fields {
            let pointer = format!("/headers/{}", scan::segment(name));
            let Value::String(value) = value else {
                self.wrong_kind(&pointer, "a string", value);
                continue;
            };
            if let Err(message) = headers::check(name, value) {
                self.find(pointer, message);
            } else if headers
                .insert(name.to_ascii_lowercase(), value.clone())
                .is_some()
            {
                self.find(pointer, "is given twice: header names have no case");
            }
        }
        if let Err(message) = headers::check_all(&headers) {
            self.find("/headers", message);
        }
        Some(headers)
    }

    fn attributes(&mut self, value: &Value) -> Option<BTreeMap<String, String>> {
        let fields = self.object("/attributes", value)?;
        if fields.len() > ATTRIBUTES_MAX {
            let got = fields.len();
            self.find(
                "/attributes",
                format!("must have at most {ATTRIBUTES_MAX} entries, got {got}"),
            );
            return None;
        }
        let mut attributes = BTreeMap::new();
        for (name, value) in fields {
            let pointer = format!("/attributes/{}", scan::segment(name));
            let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
                self.find(&pointer, "the name must be 1 to 64 of `A-Za-z0-9_-.`");
            }
            let Some(text) = self.text(&pointer, value) else {
                continue;
            };
            if text.len() > ATTRIBUTE_BYTES_MAX {
                let got = text.len();
                self.find(
                    pointer,
                    format!("must be at most {ATTRIBUTE_BYTES_MAX} bytes, got {got}"),
                );
                continue;
            }
            attributes.insert(name.clone(), text.into());
        }
        Some(attributes)
    }

    /// What is wrong with any is found, and then nobody looks at the rest.
    fn redact(&mut self, value: &Value) -> Vec<String> {
        let pointers = self.texts("/redact", value);
        if pointers.len() > redact::POINTERS_MAX {
            let (most, got) = (redact::POINTERS_MAX, pointers.len());
            self.find(
                "/redact",
                format!("must have at most {most} entries, got {got}"),
            );
            return Vec::new();
        }
        for (index, pointer) in pointers.iter().enumerate() {
            if let Err(message) = redact::check(pointer) {
                self.find(format!("/redact/{index}"), message);
            }
        }
        pointers
    }

    fn delivery(&mut self, value: &Value, usual: DeliverySpec) -> Option<DeliverySpec> {
        let fields = self.object("/delivery", value)?;
        let mut spec = usual;
        if let Some(value) = fields.get("timeout") {
            let range = TIMEOUT_MIN..=TIMEOUT_MAX;
            let parsed = value
                .as_str()
                .and_then(|text| humantime::parse_duration(text).ok());
            match parsed.filter(|timeout| range.contains(timeout)) {
                Some(timeout) => spec.timeout = timeout,
                None => {
                    self.find(
                        "/delivery/timeout",
                        "must be a duration from \"1s\" to \"30s\"",
                    );
                }
            }
        }
        if let Some(value) = fields.get("retry") {
            match RetryPolicy::try_from(value.clone()) {
                Ok(policy) => spec.retry = policy,
                Err(message) => self.find("/delivery/retry", message),
            }
        }
        if let Some(value) = fields.get("max_in_flight") {
            let parsed = value.as_u64().and_then(|n| u32::try_from(n).ok());
            match parsed.filter(|n| (1..=IN_FLIGHT_MAX).contains(n)) {
                Some(n) => spec.max_in_flight = n,
                None => self.find(
                    "/delivery/max_in_flight",
                    format!("must be a whole number from 1 to {IN_FLIGHT_MAX}"),
                ),
            }
        }
        match fields.get("rate_limit") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => match RateLimit::try_from(shown(text, 40)) {
                Ok(limit) => spec.rate_limit = Some(limit),
                Err(message) => self.find("/delivery/rate_limit", message),
            },
            Some(other) => {
                self.wrong_kind("/delivery/rate_limit", "a string such as \"50/s\"", other);
            }
        }
        if let Some(value) = fields.get("ordering") {
            spec.ordering = self.ordering(value);
        }
        if let Some(value) = fields.get("disable_after") {
            match DisableAfter::try_from(value.clone()) {
                Ok(limits) => spec.disable_after = limits,
                Err(message) => self.find("/delivery/disable_after", message),
            }
        }
        Some(spec)
    }

    fn ordering(&mut self, value: &Value) -> Ordering {
        const AT: &str = "/delivery/ordering";
        match value.as_str() {
            Some("none") => {}
            Some("strict") => self.find(AT, "strict ordering is reserved and does not exist yet"),
            Some("latest") => return Ordering::Latest,
            Some(other) => {
                let near = did_you_mean(other, ["none", "latest", "strict"]);
                self.find(AT, format!("unknown ordering `{}`{near}", shown(other, 64)));
            }
            None => self.wrong_kind(AT, "a string", value),
        }
        Ordering::None
    }

    fn signing(&mut self, value: Option<&Value>) -> Option<SigningChoice> {
        let Some(value) = value else {
            return Some(SigningChoice {
                v1: true,
                v1a: false,
            });
        };
        let Value::Array(entries) = value else {
            self.wrong_kind("/signing", "an array of `v1` and `v1a`", value);
            return None;
        };
        let mut choice = SigningChoice {
            v1: false,
            v1a: false,
        };
        for (n, entry) in entries.iter().enumerate() {
            match entry.as_str() {
                Some("v1") => choice.v1 = true,
                Some("v1a") => choice.v1a = true,
                _ => self.find(format!("/signing/{n}"), "must be `v1` or `v1a`"),
            }
        }
        if entries.is_empty() {
            self.find("/signing", "must name `v1`, `v1a`, or both");
        }
        Some(choice)
    }

    /// A key that the receiver has already. What it is is never said back.
    fn secret(
        &mut self,
        value: Option<&Value>,
        signing: Option<SigningChoice>,
    ) -> Option<SigningKey> {
        let text = self.text("/secret", value?)?;
        if signing.is_some_and(|signing| !signing.v1) {
            self.find("/secret", "is a key of `v1`, which `signing` leaves out");
        }
        match SigningKey::parse(text) {
            Ok(key) if key.kind() == SigningKind::Hmac => Some(key),
            Ok(_) | Err(_) => {
                self.find(
                    "/secret",
                    "must be `whsec_` and base64 of 24 to 64 bytes; leave it out and one is made",
                );
                None
            }
        }
    }

    fn text<'v>(&mut self, pointer: &str, value: &'v Value) -> Option<&'v str> {
        let Value::String(text) = value else {
            self.wrong_kind(pointer, "a string", value);
            return None;
        };
        if text.chars().any(char::is_control) {
            self.find(pointer, "must not contain control characters");
            return None;
        }
        Some(text)
    }

    fn texts(&mut self, pointer: &str, value: &Value) -> Vec<String> {
        let Value::Array(entries) = value else {
            self.wrong_kind(pointer, "an array of strings", value);
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(entries.len());
        for (n, entry) in entries.iter().enumerate() {
            texts.extend(
                self.text(&format!("{pointer}/{n}"), entry)
                    .map(str::to_owned),
            );
        }
        texts
    }

    fn object<'v>(&mut self, pointer: &str, value: &'v Value) -> Option<&'v Map<String, Value>> {
        let object = value.as_object();
        if object.is_none() {
            self.wrong_kind(pointer, "an object", value);
        }
        object
    }

    fn wrong_kind(&mut self, pointer: &str, wanted: &str, got: &Value) {
        let got = kind_of(got);
        self.find(pointer, format!("must be {wanted}, got {got}"));
    }
}
