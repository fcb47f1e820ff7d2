//! A subscription in a dialect's own words: what follows from them, and what a patch leaves of it.

use serde_json::Map;

use super::*;
use crate::{
    Fault,
    selector::Selector,
    subscription::words::{Vocabulary, Words, entries},
};

/// `standard` in canonical words; `shop` in its own, with `size` for the view and `kind` in the
/// place of `events`; `till` with a `kind` of its own.
#[derive(Debug)]
struct Toy;

impl Vocabulary for Toy {
    fn names(&self) -> Vec<&str> {
        vec!["shop", "standard", "till"]
    }

    fn parameters(&self, dialect: &str) -> Vec<&str> {
        match dialect {
            "shop" => vec!["kind", "size"],
            "till" => vec!["kind"],
            _ => Vec::new(),
        }
    }

    fn read(&self, dialect: &str, written: &Map<String, Value>) -> Result<Words, Vec<Fault>> {
        if dialect == "standard" {
            return Canonical(&[]).read(dialect, written);
        }
        let mut words = Words {
            https: dialect == "shop",
            ..Words::default()
        };
        words.delivery.timeout = Duration::from_secs(5);
        words.delivery.retry = RetryPolicy::try_from(json!("none")).unwrap();
        let mut faults = Vec::new();
        let selector = |word: &str| match word {
            "Sale" => Some(Selector::parse("payment.paid").unwrap()),
            "Visit" if dialect == "till" => Some(Selector::parse("check_in.*").unwrap()),
            "Visit" => Some(Selector::parse("appointment.*").unwrap()),
            _ => None,
        };
        match (
            written.get("kind").and_then(Value::as_str),
            written.get("events"),
        ) {
            (Some(kind), None) => match selector(kind) {
                Some(selector) => words.matches.push(selector),
                None => faults.push(Fault::at("/kind", "is no kind")),
            },
            (Some(_), Some(_)) => faults.push(Fault::at("/kind", "stands in the place of events")),
            (None, events) => {
                for (pointer, word) in entries(events, &mut faults) {
                    match selector(word) {
                        Some(selector) => {
                            words.matches.push(selector);
                            words.events.push(word.into());
                        }
                        None => faults.push(Fault::at(pointer, "is no word of the shop")),
                    }
                }
            }
        }
        for name in self.parameters(dialect) {
            if let Some(value) = written.get(name) {
                words.parameters.insert(name.into(), value.clone());
            }
        }
        words.view = match written.get("size").and_then(Value::as_str) {
            Some("basic") => Some(View::Basic),
            Some("extended") => Some(View::Extended),
            _ => None,
        };
        if faults.is_empty() {
            Ok(words)
        } else {
            Err(faults)
        }
    }
}

fn rules(target: &TargetRules) -> Rules<'_> {
    Rules {
        target,
        dialects: &Toy,
        tenant: None,
    }
}

/// Plain http may go anywhere, and to every address of the two networks.
fn lenient() -> TargetRules {
    TargetRules {
        allow: vec![
            "127.0.0.0/8".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ],
        require_https: false,
        ..TargetRules::default()
    }
}

fn create(fields: Value) -> Result<Subscription, Refusal> {
    let body = with(fields).to_string();
    parse_new(body.as_bytes(), &rules(&lenient()), now()).map(|(subscription, _, _)| subscription)
}

#[track_caller]
fn made(fields: Value) -> Subscription {
    create(fields.clone()).unwrap_or_else(|refusal| panic!("{fields}: {refusal:?}"))
}

fn change(current: &Subscription, patch: Value) -> Result<Subscription, Refusal> {
    let patch = patch.to_string();
    parse_patch(patch.as_bytes(), current, &rules(&lenient()), later())
}

#[track_caller]
fn changed(current: &Subscription, patch: Value) -> Subscription {
    change(current, patch.clone()).unwrap_or_else(|refusal| panic!("{patch}: {refusal:?}"))
}

#[track_caller]
fn told(outcome: Result<Subscription, Refusal>) -> Vec<String> {
    faults(outcome.expect_err("must be refused"))
}

fn shop() -> Value {
    json!({"dialect": "shop", "events": ["Visit", "Sale"], "size": "extended"})
}

fn shown(subscription: &Subscription) -> Value {
    serde_json::to_value(subscription).unwrap()
}

#[test]
fn the_words_are_kept_and_their_meaning_stands_beside_them() {
    let shown = shown(&made(shop()));
    assert_eq!(shown["events"], json!(["Visit", "Sale"]));
    assert_eq!(shown["matches"], json!(["appointment.*", "payment.paid"]));
    assert_eq!(shown["size"], "extended");
    assert_eq!(shown["view"], "extended", "chosen by the parameter");
    let delivery = json!({"timeout": "5s", "retry": "none", "max_in_flight": 16, "ordering": "none",
            "disable_after": {"for": "5d"}});
    assert_eq!(shown["delivery"], delivery, "by the dialect's default");
    let back: Subscription = serde_json::from_value(shown).unwrap();
    assert_eq!(back, made_again(&back));
}

/// What would come of it if it was written down and read anew.
fn made_again(subscription: &Subscription) -> Subscription {
    let whole = shown(subscription);
    Subscription {
        updated_at: subscription.updated_at,
        ..changed(subscription, whole)
    }
}

#[test]
fn what_was_shown_can_be_sent_back_whole() {
    let by_kind = json!({"dialect": "shop", "events": null, "kind": "Sale"});
    let own = json!({"dialect": "shop", "events": ["Sale"], "view": "basic",
        "delivery": {"timeout": "9s"}});
    for fields in [shop(), by_kind, own, json!({})] {
        let current = made(fields);
        assert_eq!(made_again(&current), current);
        let mut whole = shown(&current);
        whole["name"] = "renamed".into();
        assert_eq!(changed(&current, whole).name, "renamed");
    }
    let current = made(shop());
    let mut whole = shown(&current);
    whole["size"] = "basic".into();
    assert_eq!(
        changed(&current, whole).view,
        View::Basic,
        "it follows the parameter"
    );
}

#[test]
fn a_view_beside_the_parameter_must_agree() {
    let mut fields = shop();
    fields["view"] = "extended".into();
    made(fields.clone());
    fields["view"] = "full".into();
    let says = "/view is `full`, but `size` says `extended`; leave one out";
    assert_eq!(told(create(fields)), [says]);
    let current = made(shop());
    assert_eq!(told(change(&current, json!({"view": "full"}))), [says]);
    assert_eq!(
        changed(&current, json!({"size": "basic"})).view,
        View::Basic
    );
    let without = changed(&current, json!({"size": null}));
    assert_eq!((without.view, without.parameters.len()), (View::Full, 0));
    assert_eq!(
        changed(&without, json!({"view": "basic"})).view,
        View::Basic
    );
}

#[test]
fn a_parameter_of_another_dialect_is_named_with_its_own() {
    assert_eq!(
        told(create(json!({"size": "basic"}))),
        ["/size the dialect `standard` takes no parameter `size`; it is one of `shop`"]
    );
    assert_eq!(
        told(create(json!({"kind": "Sale"}))),
        ["/kind the dialect `standard` takes no parameter `kind`; it is one of `shop`, `till`"]
    );
    assert_eq!(
        told(create(
            json!({"dialect": "shop", "events": ["Sale"], "sise": "basic"})
        )),
        ["/sise unknown field `sise`; did you mean `size`?"]
    );
    // One that is null says nothing, whosever it is.
    made(json!({"size": null}));
}

#[test]
fn with_a_misspelled_dialect_the_words_are_read_as_those_of_the_nearest() {
    let fields = json!({"dialect": "shopp", "events": ["Sale", "Sales"], "size": "basic"});
    assert_eq!(
        told(create(fields)),
        [
            "/dialect unknown dialect `shopp`; did you mean `shop`?",
            "/events/1 is no word of the shop"
        ]
    );
    let fields = json!({"dialect": "zzz", "events": ["Sale"], "size": "basic"});
    assert_eq!(told(create(fields)), ["/dialect unknown dialect `zzz`"]);
}

#[test]
fn another_dialect_takes_the_old_ones_words_and_defaults_away() {
    let current = made(shop());
    assert_eq!(
        told(change(&current, json!({"dialect": "standard"}))),
        ["/events is in the words of `shop`; send it along in those of `standard`"]
    );
    assert_eq!(
        told(change(
            &current,
            json!({"dialect": "standard", "events": ["*"], "size": "basic"})
        )),
        ["/size the dialect `standard` takes no parameter `size`; it is one of `shop`"]
    );
    assert_eq!(
        told(change(
            &current,
            json!({"dialect": "standard", "events": ["Sale"]})
        ))
        .len(),
        1
    );
    // `till` has all the words of `shop`, and one of them means something else there.
    let says = ["/events is in the words of `shop`; send it along in those of `till`"];
    assert_eq!(told(change(&current, json!({"dialect": "till"}))), says);
    let sales = made(json!({"dialect": "shop", "events": ["Sale"]}));
    assert_eq!(
        changed(&sales, json!({"dialect": "till"})).events,
        ["Sale"],
        "both mean the same by it"
    );
    let plain = changed(
        &current,
        json!({"dialect": "standard", "events": ["*"], "size": null}),
    );
    let fresh = made(json!({}));
    assert_eq!(
        (
            &plain.events,
            &plain.matches,
            &plain.parameters,
            plain.view,
            &plain.delivery
        ),
        (
            &fresh.events,
            &fresh.matches,
            &fresh.parameters,
            fresh.view,
            &fresh.delivery
        )
    );
    // And null is the standard one, as at creation.
    assert_eq!(
        changed(&current, json!({"dialect": null, "events": ["*"]})).dialect,
        "standard"
    );

    let back = changed(&plain, json!({"dialect": "shop", "events": ["Sale"]}));
    assert_eq!(back.delivery.timeout, Duration::from_secs(5));
    let own = made(json!({"delivery": {"timeout": "9s"}}));
    let own = changed(&own, json!({"dialect": "shop", "events": ["Sale"]}));
    assert_eq!(
        own.delivery.timeout,
        Duration::from_secs(9),
        "somebody chose it"
    );
    assert_eq!(own.delivery.retry.attempts(), 1, "nobody chose it");
    let told_so = json!({"dialect": "shop", "events": ["Sale"], "delivery": {"timeout": "20s"}});
    assert_eq!(
        changed(&fresh, told_so).delivery.timeout,
        Duration::from_secs(20)
    );
    let reset = changed(&own, json!({"delivery": null}));
    assert_eq!(reset.delivery.timeout, Duration::from_secs(5));
    // The same name in another dialect is another parameter.
    let kind = made(json!({"dialect": "shop", "events": null, "kind": "Sale"}));
    let till = changed(&kind, json!({"dialect": "till", "events": ["Visit"]}));
    assert_eq!(till.parameters, BTreeMap::new());
}

#[test]
fn a_parameter_may_stand_in_the_place_of_events() {
    let by_kind = made(json!({"dialect": "shop", "events": null, "kind": "Sale"}));
    assert_eq!(shown(&by_kind)["events"], json!([]));
    assert_eq!(by_kind.selectors().len(), 1);
    let other = changed(&by_kind, json!({"kind": "Visit"}));
    assert_eq!(shown(&other)["matches"], json!(["appointment.*"]));
    let listed = changed(&by_kind, json!({"kind": null, "events": ["Visit"]}));
    assert_eq!((listed.events.len(), listed.parameters.len()), (1, 0));
    assert_eq!(
        told(change(&by_kind, json!({"kind": null}))),
        ["/events is required, for example [\"appointment.*\"] or [\"*\"]"]
    );
}

#[test]
fn a_dialect_may_ask_for_https_but_for_trials_on_one_machine() {
    let to = |url: &str| create(json!({"dialect": "shop", "events": ["Sale"], "target_url": url}));
    let says = ["/target_url must begin with `https://`: the dialect `shop` asks for it"];
    for plain in ["http://example.com/", "http://10.0.0.1/"] {
        assert_eq!(told(to(plain)), says, "{plain}");
        made(json!({"target_url": plain}));
    }
    for fine in [
        "https://example.com/",
        "http://127.0.0.1:9/",
        "http://localhost:9/",
    ] {
        assert!(to(fine).is_ok(), "{fine}");
    }
    let plain = made(json!({"target_url": "http://example.com/"}));
    let moved = change(&plain, json!({"dialect": "shop", "events": ["Sale"]}));
    assert_eq!(told(moved), says);
}

#[test]
fn a_field_of_every_subscription_is_no_parameter() {
    for field in [
        "id",
        "tenant",
        "state",
        "matches",
        "events",
        "delivery",
        "public_key",
    ] {
        assert!(words::is_field(field), "{field}");
    }
    let fields = shown(&made(json!({})));
    for field in fields.as_object().unwrap().keys() {
        assert!(words::is_field(field), "{field}");
    }
    for free in ["type", "status", "loading_mode", "actions"] {
        assert!(!words::is_field(free), "{free}");
    }
}

proptest! {
    #[test]
    fn no_patch_makes_what_could_not_be_created(
        dialect in prop::sample::select(vec![json!(null), json!("shop"), json!("standard"), json!("till")]),
        events in prop::sample::select(vec![json!(null), json!([]), json!(["Sale"]), json!(["*"])]),
        size in prop::sample::select(vec![json!(null), json!("basic"), json!("extended")]),
        kind in prop::sample::select(vec![json!(null), json!("Visit"), json!("x")]),
        view in prop::sample::select(vec![json!(null), json!("basic"), json!("full")]),
        sent in prop::collection::vec(any::<bool>(), 5),
    ) {
        let all = [("dialect", dialect), ("events", events), ("size", size), ("kind", kind), ("view", view)];
        let patch: Map<String, Value> = all
            .into_iter()
            .zip(sent)
            .filter(|(_, sent)| *sent)
            .map(|((name, value), _)| (name.to_owned(), value))
            .collect();
        for current in [made(shop()), made(json!({})), made(json!({"dialect": "till", "events": null, "kind": "Sale"}))] {
            if let Ok(patched) = change(&current, Value::Object(patch.clone())) {
                let mut again = shown(&patched);
                let again = again.as_object_mut().unwrap();
                again.retain(|key, _| words::is_field(key) || patched.parameters.contains_key(key));
                for ours in ["id", "state", "matches", "created_at", "updated_at", "revision"] {
                    again.remove(ours);
                }
                if patched.events.is_empty() {
                    again.insert("events".into(), Value::Null);
                }
                let remade = made(Value::Object(again.clone()));
                prop_assert_eq!(&remade.events, &patched.events);
                prop_assert_eq!(&remade.matches, &patched.matches);
                prop_assert_eq!(&remade.parameters, &patched.parameters);
                prop_assert_eq!(remade.view, patched.view);
                prop_assert_eq!(&remade.delivery, &patched.delivery);
                prop_assert_eq!(&made_again(&patched), &patched);
            }
        }
    }
}
