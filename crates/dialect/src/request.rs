//! The request that a delivery is: its body in the dialect, its headers, its signature. Whoever
//! sends it, or hands it to somebody who does, gets it from here.

use event::{Event, Subscription, delivery::Purpose};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;

use crate::{Loaded, Rendered, Signer, Speaker};

/// Says that a person asked for the delivery: `test` or `replay`.
const PURPOSE: HeaderName = HeaderName::from_static("x-postrider-purpose");
/// The three headers of Standard Webhooks.
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Handed on by whoever publishes because of a webhook, so that circles end.
const WEBHOOK_DEPTH: HeaderName = HeaderName::from_static(event::event::DEPTH_HEADER);

/// What a request is made of.
#[derive(Debug, Clone, Copy)]
pub struct Writing<'a> {
    /// Whom it is for.
    pub subscription: &'a Subscription,
    /// How they are spoken to.
    pub speaker: &'a Speaker,
    /// With which keys.
    pub signer: &'a Signer,
    /// The subscription's own headers, see [`own_headers`].
    pub headers: &'a HeaderMap,
    /// Of what it tells.
    pub event: &'a Event,
    /// The view that was fetched because the event lacks it.
    pub loaded: Loaded<'a>,
    /// Why it is made.
    pub purpose: Purpose,
}

impl Writing<'_> {
    /// The request's headers and its body, signed as of `now`; or, in words, why it cannot be
    /// written. Values that are secret are marked so.
    pub fn sign(&self, now: Timestamp) -> Result<(HeaderMap, Rendered), String> {
        let rendered = self
            .speaker
            .render(self.event, self.loaded, self.subscription)
            .map_err(|error| error.to_string())?;
        let id = self.event.id.as_str();
        let signature = self.signer.sign(id, now, &rendered.body);
        // The subscription's own headers first: ours take the place of any of the same name.
        let mut headers = self.headers.clone();
        let mut set = |name: HeaderName, value: &str| {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of header {name} cannot be sent"))?;
            value.set_sensitive(rendered.is_secret(name.as_str()));
            headers.insert(name, value);
            Ok::<_, String>(())
        };
        for (name, value) in &rendered.headers {
            let name = HeaderName::try_from(name).map_err(|_| format!("{name:?} is no header"))?;
            set(name, value)?;
        }
        set(header::CONTENT_TYPE, &rendered.content_type)?;
        if self.speaker.policy().signature_headers {
            set(WEBHOOK_ID, id)?;
            set(WEBHOOK_TIMESTAMP, &now.as_second().to_string())?;
            let depth = self.event.depth.saturating_add(1);
            set(WEBHOOK_DEPTH, &depth.to_string())?;
            if !signature.is_empty() {
                set(WEBHOOK_SIGNATURE, &signature)?;
            }
        }
        if !self.purpose.is_live() {
            set(PURPOSE, self.purpose.word())?;
        }
        Ok((headers, rendered))
    }
}

/// The subscription's own headers, all of them secret; or, in words, which of them cannot be sent.
pub fn own_headers(subscription: &Subscription) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::with_capacity(subscription.headers.len() + 8);
    for (name, value) in &subscription.headers {
        let parsed = HeaderName::try_from(name)
            .ok()
            .zip(HeaderValue::try_from(value).ok());
        let Some((name, mut value)) = parsed else {
            return Err(format!("the subscription's header {name:?} cannot be sent"));
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}
