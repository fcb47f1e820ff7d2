//! The `standard` dialect: Standard Webhooks' body, `{"type":…,"timestamp":…,"data":…}`.
//!
//! The view leaves byte for byte as it was published: it is copied, never parsed, so that numbers,
//! key order and escapes reach the endpoint as the service wrote them.

use event::{Event, subscription::View};

use crate::{Loaded, RenderError};

/// Room for everything of the body that is not the view: three keys, a type and a time.
const FRAME_BYTES: usize = 256;

pub(crate) fn body(
    event: &Event,
    wanted: View,
    loaded: Loaded<'_>,
) -> Result<(Vec<u8>, View), RenderError> {
    let (view, view_sent) = match loaded {
        Some((view, text)) => (text.get().into(), view),
        None => view(event, wanted)?,
    };
    let mut body = Vec::with_capacity(FRAME_BYTES + view.len());
    // An event type has only letters, digits, `_` and one dot, and RFC 3339 no quote either:
    // neither needs escaping.
    body.extend_from_slice(b"{\"type\":\"");
    body.extend_from_slice(event.kind.as_str().as_bytes());
    body.extend_from_slice(b"\",\"timestamp\":\"");
    body.extend_from_slice(event.time.to_string().as_bytes());
    body.extend_from_slice(b"\",\"data\":");
    body.extend_from_slice(view.as_bytes());
    body.push(b'}');
    Ok((body, view_sent))
}

/// The wanted view, or else the full one. A deletion may have nothing but its subject, which is
/// then said as published: `{"id": …}`, one id or an array of them.
fn view(event: &Event, wanted: View) -> Result<(std::borrow::Cow<'_, str>, View), RenderError> {
    let of = |view| match view {
        View::Basic => event.changes.as_deref(),
        View::Full => event.data.as_deref(),
        View::Extended => event.details.as_deref(),
    };
    if let Some(raw) = of(wanted) {
        return Ok((raw.get().into(), wanted));
    }
    if let Some(raw) = of(View::Full) {
        return Ok((raw.get().into(), View::Full));
    }
    let subject = event.subject.as_ref().ok_or(RenderError::NothingToSend)?;
    Ok((format!("{{\"id\":{}}}", subject.0.get()).into(), View::Full))
}
