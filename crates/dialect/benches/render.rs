//! What a delivery costs to write: `cargo bench -p postrider-dialect`. The samples are the seeds'
//! own, as they stand in the dialects' examples.

use divan::{AllocProfiler, Bencher};
use event::{Event, Subscription};
use postrider_dialect::{Dialects, Speaker};
use serde_json::{Value, json};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// An appointment of 1 KiB, such as services publish.
fn record() -> Value {
    json!({
        "id": 10, "start_date": "2018-09-20 16:15:00", "end_date": "2018-09-20 18:15:00",
        "notes": "x".repeat(900), "price": 45.5,
    })
}

fn event(fields: Value) -> Event {
    let mut whole = json!({
        "id": "evt_0197f1c2", "tenant": "salon-17", "type": "appointment.created",
        "time": "2026-03-01T10:00:00.125Z", "status": "confirmed",
    });
    if let (Some(whole), Value::Object(fields)) = (whole.as_object_mut(), fields) {
        whole.extend(fields);
    }
    serde_json::from_str(&whole.to_string()).expect("an event")
}

fn subscription(fields: Value) -> Subscription {
    let mut whole = json!({
        "id": "sub_1", "tenant": "salon-17", "name": "CRM sync", "dialect": "standard",
        "target_url": "https://example.com/", "events": ["*"], "filter": {}, "view": "full",
        "headers": {}, "attributes": {}, "delivery": {}, "state": "active",
        "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z", "revision": 1,
    });
    if let (Some(whole), Value::Object(fields)) = (whole.as_object_mut(), fields) {
        whole.extend(fields);
    }
    serde_json::from_value(whole).expect("a subscription")
}

/// One of a dialect's own examples: its event and its subscription.
fn sample(dialects: &Dialects, dialect: &str, word: &str) -> (Event, Subscription) {
    let catalogue = dialects.catalogue(dialect).expect("a dialect");
    let found = catalogue.events.into_iter().find(|one| one.word == word);
    let example = found.and_then(|word| word.example).expect("an example");
    let mut fields = example.subscription;
    fields.entry("events").or_insert_with(|| json!([]));
    let shell = event(json!({"data": null}));
    let event = example.event.into_event(shell.id, shell.tenant, shell.time);
    (event, subscription(Value::Object(fields)))
}

fn run(bencher: Bencher<'_, '_>, dialects: &Dialects, event: &Event, to: &Subscription) {
    let speaker: Speaker = dialects.speaker(to).expect("a speaker");
    speaker.judge(event).expect("it is wanted");
    speaker.render(event, None, to).expect("it renders");
    bencher.bench_local(|| {
        let judged = divan::black_box(&speaker).judge(divan::black_box(event));
        (judged, speaker.render(event, None, to))
    });
}

#[divan::bench(sample_count = 5000, args = [
    "standard", "vikappointments", "vcita", "vagaro", "ssa", "cloudevents", "cloudevents, binary",
])]
fn a_record_of_1_kib(bencher: Bencher<'_, '_>, dialect: &str) {
    let dialects = Dialects::builtin();
    let fields = match dialect.split_once(", ") {
        Some((name, mode)) => json!({"dialect": name, "mode": mode}),
        None => json!({"dialect": dialect}),
    };
    let event = event(json!({"data": record()}));
    run(bencher, &dialects, &event, &subscription(fields));
}

#[divan::bench(sample_count = 5000, args = [
    ("vikappointments", "appointments.save"), ("vikappointments", "appointments.delete"),
    ("vikappointments", "custom:{event}"), ("vcita", "client/created"), ("vagaro", "appointment"),
    ("vagaro", "formResponse"), ("zaui", "Bookings/Creation"), ("ssa", "appointment_booked"),
])]
fn the_seeds_own_samples(bencher: Bencher<'_, '_>, (dialect, word): (&str, &str)) {
    let dialects = Dialects::builtin();
    let (event, to) = sample(&dialects, dialect, word);
    run(bencher, &dialects, &event, &to);
}

/// The view is copied, never parsed: its size costs a copy.
#[divan::bench(sample_count = 5000, args = ["standard", "vikappointments"])]
fn a_record_of_200_kib(bencher: Bencher<'_, '_>, dialect: &str) {
    let dialects = Dialects::builtin();
    let rows: Vec<Value> = (0..200).map(|_| record()).collect();
    let event = event(json!({"data": {"rows": rows}}));
    run(
        bencher,
        &dialects,
        &event,
        &subscription(json!({"dialect": dialect})),
    );
}
