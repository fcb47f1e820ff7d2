//! One subscription's way of saying things: whether it wants an event, and the request that says
//! it.

use std::{borrow::Cow, sync::Arc};

use event::{Event, Subscription, filter::Stopped, redact::Redaction, subscription::View};
use minijinja::Value;

use crate::{
    Loaded, Policy, RenderError, Rendered,
    example::{ExampleEvent, Expected},
    file::{Of, Parameter},
    spoken::{Body, Content, Dialect, Meaning, Word},
    template::{BODY_BYTES_MAX, EventScope, Raw, Scope},
    words::Listen,
};

/// One subscription's way of saying things: made once per revision of a subscription, used for
/// each of its deliveries.
#[derive(Debug, Clone)]
pub struct Speaker {
    dialect: Arc<Dialect>,
    wanted: View,
    asked: Vec<Listen>,
    checks: Vec<Check>,
    /// The body that a parameter chose.
    body: Option<usize>,
    /// What templates see of the subscription.
    subscription: Value,
    attributes: Value,
    parameters: Value,
    /// What the subscriber does not want to get.
    redaction: Option<Arc<Redaction>>,
    /// Events that other dialects have as examples, one of each type.
    pool: Arc<[Event]>,
}

/// What a parameter asks of an event, of the words that take it.
#[derive(Debug, Clone)]
struct Check {
    parameter: String,
    wants: Wants,
}

#[derive(Debug, Clone)]
enum Wants {
    /// The action that the event is said with must be one of these.
    Action(Vec<String>),
    /// The new status must be one of these.
    Status(Vec<String>),
}

/// An event in the dialect's words.
struct Said<'d> {
    place: usize,
    word: &'d Word,
    meaning: &'d Meaning,
}

impl Said<'_> {
    fn action<'e>(&'e self, event: &'e Event) -> &'e str {
        let own = self.meaning.action.as_deref();
        own.unwrap_or_else(|| event.kind.action())
    }
}

impl Speaker {
    pub(crate) fn new(
        dialect: Arc<Dialect>,
        pool: Arc<[Event]>,
        subscription: &Subscription,
    ) -> Self {
        let mut checks = Vec::new();
        let mut body = None;
        let mut instead = None;
        let mut texts = Vec::new();
        for (name, parameter) in &dialect.parameters {
            let given = subscription.parameters.get(name);
            let text = given.and_then(serde_json::Value::as_str);
            let list = || -> Vec<String> {
                let entries = given.and_then(serde_json::Value::as_array);
                let entries = entries.into_iter().flatten();
                entries
                    .filter_map(|entry| entry.as_str().map(str::to_owned))
                    .collect()
            };
            let wants = match parameter {
                Parameter::Action {
                    values, default, ..
                } => text
                    .or(default.as_deref())
                    .and_then(|choice| values.get(choice))
                    .map(|actions| Wants::Action(actions.clone())),
                Parameter::Actions { .. } => Some(Wants::Action(list())),
                Parameter::Status { .. } => Some(Wants::Status(list())),
                Parameter::Body {
                    values, default, ..
                } => {
                    let name = text
                        .or(default.as_deref())
                        .and_then(|choice| values.get(choice));
                    body = name.and_then(|name| {
                        let bodies = dialect.bodies.iter();
                        bodies.clone().position(|body| body.name == *name)
                    });
                    None
                }
                Parameter::Events { .. } => {
                    instead = text;
                    None
                }
                Parameter::View { .. } => None,
                Parameter::Text { default, .. } => {
                    if let Some(text) = text.or(default.as_deref()) {
                        texts.push((name.clone(), Value::from(text)));
                    }
                    None
                }
            };
            checks.extend(wants.map(|wants| Check {
                parameter: name.clone(),
                wants,
            }));
        }
        let events = subscription.events.iter().map(String::as_str);
        // A word that the dialect no longer has listens to nothing.
        let asked = events
            .chain(instead)
            .filter_map(|text| dialect.resolve(text).ok())
            .map(|(_, listen)| listen)
            .collect();
        let named = [
            ("id", Value::from(subscription.id.as_str())),
            ("name", Value::from(subscription.name.as_str())),
        ];
        let attributes = subscription.attributes.iter();
        Self {
            wanted: subscription.view,
            asked,
            checks,
            body,
            subscription: Value::from_pairs(named),
            attributes: Value::from_pairs(
                attributes.map(|(name, value)| (name.clone(), Value::from(value.as_str()))),
            ),
            parameters: Value::from_pairs(texts),
            redaction: Redaction::of(&subscription.redact).map(Arc::new),
            pool,
            dialect,
        }
    }

    /// Whether the subscription's own words, with their parameters, want this event and the
    /// dialect has a name for it. The filter of the subscription is judged apart from this.
    pub fn judge(&self, event: &Event) -> Result<(), Stopped> {
        self.say(event).map(|_| ())
    }

    /// The view that has to be fetched before the event can be written as the subscription wants
    /// it; `None` where the event carries it, or the event has no views (a deletion, or a word that
    /// says only which record it was).
    pub fn missing_view(&self, event: &Event) -> Option<View> {
        let said = self.say(event).ok()?;
        let body = self.body(said.word)?;
        if event.kind.action() == "deleted" || matches!(body.content, Content::Of(Of::Subject)) {
            return None;
        }
        let wanted = said.word.view(self.wanted);
        view_of(event, wanted).is_none().then_some(wanted)
    }

    /// Writes `event` for `subscription` (the one that this speaker was made for), with the view
    /// that was fetched where one was.
    pub fn render(
        &self,
        event: &Event,
        loaded: Loaded<'_>,
        _subscription: &Subscription,
    ) -> Result<Rendered, RenderError> {
        let said = self
            .say(event)
            .map_err(|stopped| RenderError::NotSaid(stopped.detail))?;
        // From here on nobody sees what goes, whatever a template asks for. What the event is
        // called was judged on all of it.
        let Some(redaction) = &self.redaction else {
            return self.write(&said, event, loaded);
        };
        let loaded = loaded.map(|(view, raw)| (view, redaction.view(view, raw)));
        let loaded = loaded.as_ref().map(|(view, raw)| (*view, &**raw));
        self.write(&said, &redaction.event(event), loaded)
    }

    fn write(
        &self,
        said: &Said<'_>,
        event: &Event,
        loaded: Loaded<'_>,
    ) -> Result<Rendered, RenderError> {
        let body = self.body(said.word).ok_or(RenderError::NothingToSend)?;
        let (view, view_sent) = match (&body.content, loaded) {
            (Content::Of(Of::Subject), _) => (by_subject(event)?.into(), View::Full),
            (_, Some((view, text))) => (text.get().into(), view),
            _ => view_or_less(event, said.word.view(self.wanted))?,
        };
        let scope = || self.scope(said, event, &view);
        let engine = &self.dialect.engine;
        let (bytes, scope) = match &body.content {
            Content::Of(_) => {
                if view.len() > BODY_BYTES_MAX {
                    return Err(failed(&body.name, "the view is larger than 1 MiB".into()));
                }
                (view.as_bytes().to_vec(), None)
            }
            Content::Template(template) => {
                let scope = scope();
                let bytes = engine
                    .body(template, scope.clone(), &view)
                    .map_err(|detail| failed(&body.name, detail))?;
                (bytes, Some(scope))
            }
        };
        let mut headers = Vec::new();
        let templates = self.dialect.headers.iter().chain(&body.headers);
        let mut seen = scope;
        let mut of_subscriber = Vec::new();
        for header in templates {
            let (name, template) = (&header.name, &header.template);
            let scope = seen
                .get_or_insert_with(|| self.scope(said, event, &view))
                .clone();
            let value = engine
                .header(template, scope)
                .map_err(|detail| failed(&format!("header {name}"), detail))?;
            if !value.is_empty() {
                headers.push((name.clone(), value));
                of_subscriber.extend(header.of_subscriber.then(|| name.clone()));
            }
        }
        Ok(Rendered {
            body: bytes.into(),
            content_type: body.content_type.clone(),
            headers,
            of_subscriber,
            view_sent,
        })
    }

    /// What the dialect's platform promises about deliveries.
    pub fn policy(&self) -> &Policy {
        &self.dialect.policy
    }

    /// An event for each of the subscription's words, out of the dialect's examples: what a test
    /// delivery sends. For `*` there is one of each documented type.
    pub fn examples(&self) -> Vec<ExampleEvent> {
        let mut chosen: Vec<Event> = Vec::new();
        for listen in &self.asked {
            for event in self.events_for(listen) {
                if !chosen.iter().any(|known| known.kind == event.kind) {
                    chosen.push(event);
                }
            }
        }
        chosen.iter().map(ExampleEvent::from).collect()
    }

    fn events_for(&self, listen: &Listen) -> Vec<Event> {
        let own = self.dialect.examples.iter();
        let own = own.filter_map(|example| match example.expected {
            Expected::Request { .. } => example.event.as_ref(),
            _ => None,
        });
        let mut fitting = Vec::new();
        for event in own.chain(self.pool.iter()) {
            let mut event = event.clone();
            self.suit(&mut event);
            let fits = self
                .say(&event)
                .is_ok_and(|said| covers(listen, said.place, &event));
            if fits && !fitting.iter().any(|known: &Event| known.kind == event.kind) {
                fitting.push(event);
            }
        }
        if matches!(listen, Listen::Word(_) | Listen::Pattern(..)) {
            fitting.truncate(1);
        }
        fitting
    }

    /// Gives an example a status that the subscription listens to.
    fn suit(&self, event: &mut Event) {
        for check in &self.checks {
            if let Wants::Status(wanted) = &check.wants
                && let Some(first) = wanted.first()
                && !wanted.iter().any(|own| Some(own) == event.status.as_ref())
            {
                event.status = Some(first.clone());
            }
        }
    }

    /// What the event is called, or the clause that stops it.
    fn say(&self, event: &Event) -> Result<Said<'_>, Stopped> {
        let mut stopped = None;
        for (place, word) in self.dialect.words.iter().enumerate() {
            let Some(meaning) = word.meaning_of(event) else {
                continue;
            };
            let said = Said {
                place,
                word,
                meaning,
            };
            if self.asks(place, event) {
                match self.allows(&said, event) {
                    Ok(()) => return Ok(said),
                    Err(why) => stopped = stopped.or(Some(why)),
                }
            } else if self.dialect.one_word_per_event {
                stopped = Some(Stopped {
                    clause: "dialect".into(),
                    detail: format!(
                        "`{}` calls it `{}`, which is not listened to",
                        self.dialect.name,
                        word.called(event)
                    ),
                });
            }
            if self.dialect.one_word_per_event {
                break;
            }
        }
        Err(stopped.unwrap_or_else(|| Stopped {
            clause: "dialect".into(),
            detail: format!(
                "the subscription has no word of `{}` for `{}`",
                self.dialect.name, event.kind
            ),
        }))
    }

    fn asks(&self, place: usize, event: &Event) -> bool {
        self.asked.iter().any(|listen| covers(listen, place, event))
    }

    /// What the parameters that the word takes have against the event.
    fn allows(&self, said: &Said<'_>, event: &Event) -> Result<(), Stopped> {
        for check in &self.checks {
            if !said.word.takes(&check.parameter) {
                continue;
            }
            let (wanted, got) = match &check.wants {
                Wants::Action(wanted) => (wanted, Some(said.action(event))),
                Wants::Status(wanted) => (wanted, event.status.as_deref()),
            };
            if wanted.is_empty() || got.is_some_and(|got| wanted.iter().any(|own| own == got)) {
                continue;
            }
            let wanted: Vec<String> = wanted
                .iter()
                .take(5)
                .map(|own| format!("`{own}`"))
                .collect();
            let got = got.map_or("none".into(), |got| format!("`{got}`"));
            return Err(Stopped {
                clause: check.parameter.clone().into(),
                detail: format!("wanted {}, got {got}", wanted.join(" or ")),
            });
        }
        Ok(())
    }

    fn body(&self, word: &Word) -> Option<&Body> {
        self.dialect.bodies.get(self.body.unwrap_or(word.body))
    }

    fn scope(&self, said: &Said<'_>, event: &Event, view: &str) -> Scope {
        let word = match self.dialect.canonical {
            true => event.kind.as_str().into(),
            false => Value::from(said.word.called(event)),
        };
        Scope {
            word,
            action: said.action(event).into(),
            says: said.word.says.clone(),
            event: EventScope::value(event),
            view: Raw::view(view),
            subscription: self.subscription.clone(),
            attributes: self.attributes.clone(),
            parameters: self.parameters.clone(),
        }
    }
}

/// Whether an entry listens to an event that is said with the word at `place`.
fn covers(listen: &Listen, place: usize, event: &Event) -> bool {
    match listen {
        Listen::Word(own) => *own == place,
        Listen::Pattern(own, selector) => *own == place && selector.matches(event),
        Listen::Below(places) => places.contains(&place),
        Listen::Canonical(selector) => selector.matches(event),
    }
}

fn failed(part: &str, detail: String) -> RenderError {
    RenderError::Template {
        part: part.into(),
        detail,
    }
}

fn view_of(event: &Event, view: View) -> Option<&str> {
    let raw = match view {
        View::Basic => event.changes.as_deref(),
        View::Full => event.data.as_deref(),
        View::Extended => event.details.as_deref(),
    };
    raw.map(|raw| raw.get())
}

/// The wanted view, or else the full one. A deletion may have nothing but its subject.
fn view_or_less(event: &Event, wanted: View) -> Result<(Cow<'_, str>, View), RenderError> {
    if let Some(text) = view_of(event, wanted) {
        return Ok((text.into(), wanted));
    }
    match view_of(event, View::Full) {
        Some(text) => Ok((text.into(), View::Full)),
        None => Ok((by_subject(event)?.into(), View::Full)),
    }
}

/// `{"id": 10}` or `{"id": [10, 11, 12]}`: the subject as it was published.
fn by_subject(event: &Event) -> Result<String, RenderError> {
    let subject = event.subject.as_ref().ok_or(RenderError::NothingToSend)?;
    Ok(format!("{{\"id\":{}}}", subject.0.get()))
}
