//! A dialect made ready: its words with what they mean, its bodies, its templates compiled.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use event::{
    Event,
    selector::Selector,
    subscription::{DeliverySpec, View},
};
use minijinja::Value;

use crate::{
    Policy,
    example::Example,
    file::{Of, Parameter},
    template::Engine,
};

/// All views, in the order of their size.
pub(crate) const VIEWS: [View; 3] = [View::Basic, View::Full, View::Extended];

/// One dialect.
pub(crate) struct Dialect {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) source: String,
    pub(crate) notes: String,
    /// Its words are the canonical types: it has one word, which means every event.
    pub(crate) canonical: bool,
    /// An event is always said by the first word that has a meaning for it, whatever a
    /// subscription listens to.
    pub(crate) one_word_per_event: bool,
    /// What the words have in common that an entry such as `Bookings/*` stands for: here `/`.
    pub(crate) wildcard: Option<String>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) parameters: BTreeMap<String, Parameter>,
    pub(crate) words: Vec<Word>,
    pub(crate) refused: Vec<Refused>,
    pub(crate) bodies: Vec<Body>,
    /// Sent with every delivery, besides those of the body.
    pub(crate) headers: Vec<Header>,
    pub(crate) engine: Engine,
    pub(crate) delivery: DeliverySpec,
    pub(crate) https: bool,
    pub(crate) policy: Policy,
    pub(crate) examples: Vec<Example>,
}

/// One of a dialect's words.
#[derive(Debug)]
pub(crate) struct Word {
    /// As it is documented; `custom:{event}` where it stands for many.
    pub(crate) word: String,
    /// What stands before `{event}`.
    pub(crate) pattern: Option<String>,
    pub(crate) also: Vec<String>,
    pub(crate) note: String,
    pub(crate) meanings: Vec<Meaning>,
    pub(crate) parameters: Vec<String>,
    pub(crate) views: Vec<View>,
    /// Its place in the dialect's bodies.
    pub(crate) body: usize,
    pub(crate) says: Value,
}

/// What a word stands for.
#[derive(Debug)]
pub(crate) struct Meaning {
    pub(crate) selectors: Vec<Selector>,
    pub(crate) except: Vec<Selector>,
    pub(crate) status: Vec<String>,
    pub(crate) action: Option<String>,
}

/// What the platform documents and we cannot say.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) word: String,
    pub(crate) selectors: Vec<Selector>,
    pub(crate) reason: String,
}

/// A header of a dialect's own.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) name: String,
    /// The name of the template of its value.
    pub(crate) template: String,
    /// Whether what a subscriber gave us goes into it: that is theirs to know, whatever its name.
    pub(crate) of_subscriber: bool,
}

/// How a body is written.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) name: String,
    pub(crate) content: Content,
    pub(crate) content_type: Cow<'static, str>,
    pub(crate) headers: Vec<Header>,
}

/// Where a body comes from.
#[derive(Debug)]
pub(crate) enum Content {
    Of(Of),
    /// The name of a template.
    Template(String),
}

impl fmt::Debug for Dialect {
    /// Only the name: the whole is as long as its file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialect")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Dialect {
    /// The words that an entry such as `Bookings/*` stands for; none where it is no such entry.
    pub(crate) fn words_below(&self, entry: &str) -> Vec<usize> {
        let Some(joint) = &self.wildcard else {
            return Vec::new();
        };
        let Some(prefix) = entry
            .strip_suffix('*')
            .filter(|prefix| prefix.ends_with(joint.as_str()) && prefix.len() > joint.len())
        else {
            return Vec::new();
        };
        let below = |word: &Word| word.word.starts_with(prefix);
        self.places(below)
    }

    /// The words that can be said of events that a selector matches.
    pub(crate) fn words_for(&self, selector: &Selector) -> Vec<usize> {
        self.places(|word| {
            word.meanings
                .iter()
                .flat_map(|meaning| &meaning.selectors)
                .any(|own| may_meet(own, selector))
        })
    }

    fn places(&self, fits: impl Fn(&Word) -> bool) -> Vec<usize> {
        let fitting = self.words.iter().enumerate().filter(|(_, word)| fits(word));
        fitting.map(|(place, _)| place).collect()
    }
}

impl Word {
    /// What the word means by an event.
    pub(crate) fn meaning_of(&self, event: &Event) -> Option<&Meaning> {
        self.meanings.iter().find(|meaning| meaning.fits(event))
    }

    /// What a word is called for an event: a pattern has the event's own name in it.
    pub(crate) fn called(&self, event: &Event) -> String {
        match &self.pattern {
            Some(prefix) => format!("{prefix}{}", event.kind.action()),
            None => self.word.clone(),
        }
    }

    /// The view that is sent where `wanted` is asked for: one that the word does not offer is not
    /// sent, whatever else the subscription listens to.
    pub(crate) fn view(&self, wanted: View) -> View {
        if self.views.contains(&wanted) || self.views.is_empty() {
            return wanted;
        }
        let full = self.views.contains(&View::Full);
        let first = self.views.first().copied();
        if full {
            View::Full
        } else {
            first.unwrap_or(wanted)
        }
    }

    pub(crate) fn takes(&self, parameter: &str) -> bool {
        self.parameters.iter().any(|own| own == parameter)
    }

    /// The actions that events are said with.
    pub(crate) fn actions(&self) -> Vec<&str> {
        let mut actions: Vec<&str> = Vec::new();
        for meaning in &self.meanings {
            let own = meaning.action.as_deref();
            let canonical = meaning
                .selectors
                .iter()
                .filter_map(|selector| match selector {
                    Selector::Exact(kind) if own.is_none() => Some(kind.action()),
                    Selector::StatusChanged(_) if own.is_none() => Some("status_changed"),
                    _ => None,
                });
            for action in own.into_iter().chain(canonical) {
                if !actions.contains(&action) {
                    actions.push(action);
                }
            }
        }
        actions
    }
}

impl Meaning {
    fn fits(&self, event: &Event) -> bool {
        let any = |selectors: &[Selector]| selectors.iter().any(|own| own.matches(event));
        let status = event.status.as_deref();
        any(&self.selectors)
            && (self.status.is_empty()
                || status.is_some_and(|status| self.status.iter().any(|own| own == status)))
            && !any(&self.except)
    }
}

/// The actions that the canonical vocabulary names.
const ACTIONS: [&str; 13] = [
    "created",
    "updated",
    "deleted",
    "canceled",
    "status_changed",
    "paid",
    "changed",
    "checked_in",
    "attached",
    "removed",
    "promotional_muted",
    "marked_as_spammer",
    "details_updated",
];

/// Whether some event matches both.
pub(crate) fn may_meet(a: &Selector, b: &Selector) -> bool {
    use Selector::{All, Entity, Exact, Saved, StatusChanged};
    let entity = |selector: &Selector| match selector {
        All => None,
        Entity(entity) | Saved(entity) | StatusChanged(entity) => Some(entity.clone()),
        Exact(kind) => Some(kind.entity().to_owned()),
    };
    let (Some(left), Some(right)) = (entity(a), entity(b)) else {
        return true;
    };
    let saves = |action: &str| matches!(action, "created" | "updated" | "saved");
    left == right
        && match (a, b) {
            (Exact(a), Exact(b)) => a == b,
            // Of the actions that only a change of status could bring here, those that services
            // publish: any other is more likely a slip of the pen.
            (Exact(kind), StatusChanged(_)) | (StatusChanged(_), Exact(kind)) => {
                ACTIONS.contains(&kind.action())
            }
            (Exact(kind), Saved(_)) | (Saved(_), Exact(kind)) => saves(kind.action()),
            // An event of any action may have changed the status too.
            _ => true,
        }
}
