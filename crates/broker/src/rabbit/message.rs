//! Parcels in AMQP's terms, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    ladder::{self, Step},
    parcel::{DUE_HEADER, Parcel, Route},
    topology,
};

/// Headers of ours.
const OURS: &str = "x-postrider-";
/// How the headers of a CloudEvent begin, in any case: the attributes of an event whose body is
/// its data alone. All other headers are forgeable noise.
const CLOUD_EVENTS: [&str; 3] = ["cloudevents:", "cloudevents_", "ce-"];
/// The last second that RFC 3339 can say.
const TIME_MAX: u64 = 253_402_300_799;
/// How long a message still has to wait when it comes back from its tier, in milliseconds.
const LEFT: &str = "x-postrider-left";
/// How often a quorum queue took the message back.
const RETURNS: &str = "x-delivery-count";
/// Why the broker itself took a message out of a queue the first time, and where it had come in.
/// Somebody may have forged them: they are words for people, and decide nothing.
const DIED: &str = "x-first-death-reason";
const DIED_IN: &str = "x-first-death-exchange";
/// What people are told of a message in quarantine.
const DETAIL: &str = "x-postrider-detail";
/// Where they are told it came from.
const SOURCE: &str = "x-postrider-source";
/// AMQP's delivery mode for messages that survive a restart.
const PERSISTENT: u8 = 2;
/// AMQP's bound for ids, keys and content types.
const SHORT_MAX: usize = 255;

/// A parcel with its address and properties.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) exchange: &'static str,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) message_id: String,
    pub(super) body: Bytes,
}

impl Outgoing {
    pub(super) fn of(parcel: Parcel, now: SystemTime) -> Self {
        let Parcel {
            route,
            message_id,
            content_type,
            content_encoding,
            headers,
            body,
        } = parcel;
        let (exchange, key, due) = address(&route, now);
        let mut table = FieldTable::default();
        for (name, value) in headers {
            if name != DUE_HEADER && name != LEFT {
                table.insert(short(&name), AMQPValue::LongString(value.into()));
            }
        }
        if let Some(due) = due {
            let left = left(due, now).as_micros().div_ceil(1000).to_string();
            table.insert(LEFT.into(), AMQPValue::LongString(left.into()));
            let due = unix_ms(due).to_string();
            table.insert(DUE_HEADER.into(), AMQPValue::LongString(due.into()));
        }
        let id = short(&message_id);
        let message_id = id.as_str().to_owned();
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(id);
        if !table.inner().is_empty() {
            properties = properties.with_headers(table);
        }
        if let Some(content_type) = content_type {
            properties = properties.with_content_type(short(&content_type));
        }
        if let Some(encoding) = content_encoding {
            properties = properties.with_content_encoding(short(&encoding));
        }
        Self {
            exchange,
            key,
            properties,
            message_id,
            body,
        }
    }
}

impl Outgoing {
    /// An event says who publishes it, where that is asked for. Nothing else does: what has come
    /// in is ours.
    pub(super) fn by(mut self, user: Option<&str>) -> Self {
        if let Some(user) = user
            && self.exchange == topology::EVENTS
        {
            self.properties = self.properties.with_user_id(short(user));
        }
        self
    }
}

/// Exchange, routing key and due time of a route.
fn address(route: &Route, now: SystemTime) -> (&'static str, ShortString, Option<SystemTime>) {
    match route {
        Route::Events { routing_key } => (topology::EVENTS, short(routing_key), None),
        Route::Deliver => (topology::DELIVER, topology::DELIVER.into(), None),
        Route::DeliverAt(due) => match ladder::step(remaining(*due, now)) {
            Step::Due => (topology::DELIVER, topology::DELIVER.into(), Some(*due)),
            Step::Wait(tier) => (topology::RETRY, tier.name.into(), Some(*due)),
        },
        Route::Dead => (topology::DEAD, "".into(), None),
        Route::Quarantine => (topology::QUARANTINE, "".into(), None),
        Route::Archive => (topology::ARCHIVE, "".into(), None),
        Route::Log => (topology::LOG, "".into(), None),
    }
}

pub(super) fn remaining(due: SystemTime, now: SystemTime) -> Duration {
    // An error means that it is due already.
    due.duration_since(now).unwrap_or_default()
}

/// What will be left of the wait after the next tier.
fn left(due: SystemTime, now: SystemTime) -> Duration {
    let remaining = remaining(due, now);
    match ladder::step(remaining) {
        Step::Due => Duration::ZERO,
        Step::Wait(tier) => remaining.saturating_sub(tier.wait),
    }
}

fn unix_ms(time: SystemTime) -> u128 {
    // Rounded up: a millisecond early is early.
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros()
        .div_ceil(1000)
}

/// At most 255 bytes of a text, cut between characters.
fn short(text: &str) -> ShortString {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=text.len().min(SHORT_MAX))
        .rev()
        .find(fits)
        .unwrap_or_default();
    text[..end].into()
}

/// What a delivery says besides its body.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) message_id: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) user_id: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) source: String,
    pub(super) redelivered: bool,
    pub(super) returns: u32,
    pub(super) body: Bytes,
}

impl Incoming {
    pub(super) fn of(delivery: Delivery) -> Self {
        let text =
            |short: &Option<ShortString>| short.as_ref().map(|text| text.as_str().to_owned());
        let properties = &delivery.properties;
        let mut headers = Vec::new();
        let mut returns = 0;
        let (mut died, mut died_in) = (None, None);
        for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
            if name.as_str().starts_with(OURS) {
                if let Some(value) = header_text(value) {
                    headers.push((name.as_str().to_owned(), value));
                }
            } else if is_of_cloud_event(name.as_str()) {
                // One whose value cannot be said is kept, as a text that no attribute may be: a
                // value that is dropped would be a value that was not given.
                let value = attribute_text(value).unwrap_or_else(|| "\0".into());
                headers.push((name.as_str().to_owned(), value));
            } else if name.as_str() == RETURNS {
                returns = header_number(value);
            } else if name.as_str() == DIED {
                died = header_text(value);
            } else if name.as_str() == DIED_IN {
                died_in = header_text(value);
            }
        }
        if let Some(detail) = died.as_deref().and_then(given_up) {
            let source = died_in.map(|exchange| format!("{exchange}/{}", delivery.routing_key));
            for (name, value) in [(DETAIL, Some(detail.to_owned())), (SOURCE, source)] {
                let told = headers.iter().any(|(header, _)| header == name);
                if let Some(value) = value.filter(|_| !told) {
                    headers.push((name.to_owned(), value));
                }
            }
        }
        Self {
            message_id: text(properties.message_id()),
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            user_id: text(properties.user_id()),
            headers,
            source: format!("{}/{}", delivery.exchange, delivery.routing_key),
            redelivered: delivery.redelivered,
            returns,
            body: delivery.data.into(),
        }
    }

    /// When it is due, where it says so: no later than what was left when it was sent to its tier.
    /// The due time alone would keep it for a day after a clock was put back by one, or was put
    /// right that had been a day ahead.
    pub(super) fn due(&self, now: SystemTime) -> Option<SystemTime> {
        let number = |wanted| -> Option<u64> {
            let (_, text) = self.headers.iter().find(|(name, _)| name == wanted)?;
            text.parse().ok()
        };
        let due = UNIX_EPOCH.checked_add(Duration::from_millis(number(DUE_HEADER)?))?;
        let left = number(LEFT).and_then(|left| now.checked_add(Duration::from_millis(left)));
        Some(left.map_or(due, |latest| due.min(latest)))
    }

    /// The same message as a parcel for a later time.
    pub(super) fn again(self, due: SystemTime) -> Parcel {
        Parcel {
            route: Route::DeliverAt(due),
            message_id: self.message_id.unwrap_or_default(),
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            headers: self.headers,
            body: self.body,
        }
    }
}

/// Why the broker gave a message up, for people, where it was the broker that did.
fn given_up(reason: &str) -> Option<&'static str> {
    match reason {
        "expired" => Some(
            "the message expired before a router took it: its publisher gave it an `expiration`, \
             or a policy on the broker did; publish without one (an event has `expires_at`)",
        ),
        "delivery_limit" => {
            Some("the message came back too many times: whoever took it died of it")
        }
        "maxlen" => Some("the broker dropped the message from a queue that was full"),
        "rejected" => Some("a consumer that is not of ours rejected the message"),
        _ => None,
    }
}

fn header_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(Into::into),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn is_of_cloud_event(name: &str) -> bool {
    CLOUD_EVENTS.iter().any(|prefix| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    })
}

/// An attribute of a CloudEvent in the words of its specification, whichever type its publisher
/// gave it.
fn attribute_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::Boolean(truth) => Some(truth.to_string()),
        AMQPValue::ShortShortInt(n) => Some(n.to_string()),
        AMQPValue::ShortShortUInt(n) => Some(n.to_string()),
        AMQPValue::ShortInt(n) => Some(n.to_string()),
        AMQPValue::ShortUInt(n) => Some(n.to_string()),
        AMQPValue::LongInt(n) => Some(n.to_string()),
        AMQPValue::LongUInt(n) => Some(n.to_string()),
        AMQPValue::LongLongInt(n) => Some(n.to_string()),
        AMQPValue::Timestamp(seconds) if *seconds <= TIME_MAX => {
            let time = UNIX_EPOCH + Duration::from_secs(*seconds);
            Some(humantime::format_rfc3339_seconds(time).to_string())
        }
        other => header_text(other),
    }
}

fn header_number(value: &AMQPValue) -> u32 {
    let number = match value {
        AMQPValue::ShortShortInt(n) => i64::from(*n),
        AMQPValue::ShortShortUInt(n) => i64::from(*n),
        AMQPValue::ShortInt(n) => i64::from(*n),
        AMQPValue::ShortUInt(n) => i64::from(*n),
        AMQPValue::LongInt(n) => i64::from(*n),
        AMQPValue::LongUInt(n) => i64::from(*n),
        AMQPValue::LongLongInt(n) => *n,
        _ => 0,
    };
    u32::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(route: Route, now: SystemTime) -> Outgoing {
        let mut parcel = Parcel::json(route, "m", "{}");
        parcel.headers = vec![
            (DUE_HEADER.into(), "1".into()),
            ("x-postrider-reason".into(), "why".into()),
        ];
        Outgoing::of(parcel, now)
    }

    fn delivered(outgoing: Outgoing) -> Incoming {
        let mut delivery = Delivery::mock(
            1,
            outgoing.exchange.into(),
            outgoing.key,
            false,
            outgoing.body.to_vec(),
        );
        delivery.properties = outgoing.properties;
        Incoming::of(delivery)
    }

    #[test]
    fn a_delayed_parcel_waits_in_its_tier_and_says_when_it_is_due() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let due = now + Duration::from_secs(31);
        let outgoing = sent(Route::DeliverAt(due), now);
        assert_eq!(
            (outgoing.exchange, outgoing.key.as_str()),
            (topology::RETRY, "30s")
        );
        let back = now + Duration::from_secs(30);
        assert_eq!(delivered(outgoing).due(back), Some(due));
    }

    #[test]
    fn a_clock_that_was_put_back_makes_no_wait_longer() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let due = now + Duration::from_secs(31);
        let back = now - Duration::from_secs(86_400);
        let incoming = delivered(sent(Route::DeliverAt(due), now));
        assert_eq!(incoming.due(back), Some(back + Duration::from_secs(1)));
        let ahead = now + Duration::from_secs(86_400);
        assert_eq!(incoming.due(ahead), Some(due), "it is due at once");
    }

    #[test]
    fn a_stale_due_time_does_not_travel() {
        let incoming = delivered(sent(Route::Deliver, UNIX_EPOCH));
        assert_eq!(incoming.due(UNIX_EPOCH), None);
        assert_eq!(
            incoming.headers,
            [("x-postrider-reason".into(), "why".into())]
        );
    }

    #[test]
    fn headers_of_others_are_left_behind() {
        let mut outgoing = sent(Route::Dead, UNIX_EPOCH);
        let mut table = FieldTable::default();
        table.insert("x-postrider-a".into(), AMQPValue::LongString("1".into()));
        table.insert("x-postrider-n".into(), AMQPValue::LongInt(1));
        table.insert("x-death".into(), AMQPValue::LongString("1".into()));
        table.insert(RETURNS.into(), AMQPValue::LongLongInt(3));
        outgoing.properties = outgoing.properties.with_headers(table);
        let incoming = delivered(outgoing);
        assert_eq!(incoming.headers, [("x-postrider-a".into(), "1".into())]);
        assert_eq!(incoming.returns, 3);
    }

    #[test]
    fn what_the_broker_gave_up_says_why_and_where_it_came_in() {
        let mut outgoing = sent(Route::Quarantine, UNIX_EPOCH);
        let died = |reason: &str| {
            let mut table = FieldTable::default();
            table.insert(DIED.into(), AMQPValue::LongString(reason.into()));
            table.insert(
                DIED_IN.into(),
                AMQPValue::LongString(topology::EVENTS.into()),
            );
            table
        };
        outgoing.key = "a.b".into();
        outgoing.properties = outgoing.properties.with_headers(died("expired"));
        let [detail, source] = delivered(outgoing).headers.try_into().expect("two headers");
        assert!(detail.1.contains("`expiration`"), "{detail:?}");
        assert_eq!(source, (SOURCE.into(), "postrider.events/a.b".into()));
        // What a router said of a message stays, whatever the message says of itself.
        let mut outgoing = sent(Route::Quarantine, UNIX_EPOCH);
        let mut table = died("delivery_limit");
        table.insert(DETAIL.into(), AMQPValue::LongString("ours".into()));
        table.insert(SOURCE.into(), AMQPValue::LongString("ours".into()));
        outgoing.properties = outgoing.properties.with_headers(table);
        let ours = |(_, value): &(String, String)| value == "ours";
        assert!(delivered(outgoing).headers.iter().all(ours));
    }

    #[test]
    fn the_attributes_of_a_cloud_event_come_in_as_text() {
        let mut outgoing = sent(Route::Dead, UNIX_EPOCH);
        let mut table = FieldTable::default();
        for (name, value) in [
            ("CE-type", AMQPValue::LongString("e-1".into())),
            ("cell", AMQPValue::LongString("e-1".into())),
            ("cloudEvents:time", AMQPValue::Timestamp(1_767_225_600)),
            ("cloudEvents:trace", AMQPValue::Timestamp(u64::MAX)),
            ("cloudEvents_version", AMQPValue::LongInt(7)),
            ("cloudEvents_y", AMQPValue::Boolean(true)),
            ("cloudEvents_z", AMQPValue::Void),
        ] {
            table.insert(name.into(), value);
        }
        outgoing.properties = outgoing.properties.with_headers(table);
        let wanted = [
            ("CE-type", "e-1"),
            ("cloudEvents:time", "2026-01-01T00:00:00Z"),
            ("cloudEvents:trace", "\0"),
            ("cloudEvents_version", "7"),
            ("cloudEvents_y", "true"),
            ("cloudEvents_z", "\0"),
        ];
        let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(delivered(outgoing).headers, wanted);
    }

    #[test]
    fn a_text_too_long_for_amqp_is_cut_between_characters() {
        assert_eq!(short(&"é".repeat(200)).as_str().len(), 254);
        assert_eq!(short("abc").as_str(), "abc");
    }
}
