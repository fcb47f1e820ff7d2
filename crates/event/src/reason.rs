//! The closed sets: the same words in the API, the metrics, the logs and the message headers.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every member, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word users see.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The member with this word.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words!(
    /// Where a delivery stands.
    DeliveryState {
        /// Routed, not yet tried.
        Pending = "pending",
        /// Answered with success.
        Delivered = "delivered",
        /// Failed at least once and waiting for its next attempt.
        Retrying = "retrying",
        /// Kept because its subscription is paused or disabled.
        Held = "held",
        /// Stopped by a clause of the subscription's filter.
        Filtered = "filtered",
        /// Overtaken by a newer version of the same subject.
        Superseded = "superseded",
        /// Will not be tried again; a dead letter exists.
        Dead = "dead",
        /// Given up because a person asked for it.
        Canceled = "canceled",
    }
);

words!(
    /// Why a delivery became a dead letter.
    DeadReason {
        /// Every attempt of the policy failed.
        Exhausted = "exhausted",
        /// The endpoint answered 410.
        Gone = "gone",
        /// A status that the policy does not retry.
        Refused = "refused",
        /// The event's `expires_at` passed.
        Expired = "expired",
        /// The body or its headers could not be written.
        RenderError = "render_error",
        /// The target's address is not one we may dial.
        TargetNotAllowed = "target_not_allowed",
        /// The subscription no longer exists.
        SubscriptionDeleted = "subscription_deleted",
    }
);

words!(
    /// What went wrong with one attempt.
    AttemptError {
        /// The name did not resolve.
        Dns = "dns",
        /// No connection was made.
        Connect = "connect",
        /// The TLS handshake failed.
        Tls = "tls",
        /// The deadline passed.
        Timeout = "timeout",
        /// The connection broke before a status came.
        Reset = "reset",
        /// The answer was not HTTP.
        NotHttp = "not_http",
        /// The answer's header block was too large.
        HeadersTooLarge = "headers_too_large",
        /// A 3xx, which is never followed.
        RedirectNotFollowed = "redirect_not_followed",
        /// Any other status that is not success.
        Status = "status",
        /// An address that is not one we may dial; no socket was opened.
        TargetNotAllowed = "target_not_allowed",
    }
);

words!(
    /// Why a message could not be processed at all.
    QuarantineReason {
        /// Not JSON, or not UTF-8.
        Malformed = "malformed",
        /// Larger than an event may be.
        TooLarge = "too_large",
        /// JSON that is not an event.
        InvalidEvent = "invalid_event",
        /// A known id with another body.
        IdConflict = "id_conflict",
        /// A content encoding or type that is not accepted.
        UnsupportedEncoding = "unsupported_encoding",
        /// Our own handling failed again and again.
        HandlerFailed = "handler_failed",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    /// The words are a promise: they stand in the contract, in dashboards and in stores.
    #[test]
    fn the_words_are_those_of_the_contract() {
        fn check<T: Copy>(all: &[T], word: impl Fn(T) -> &'static str, wanted: &str) {
            let words: Vec<&str> = all.iter().map(|member| word(*member)).collect();
            assert_eq!(words.join(" "), wanted);
        }
        check(
            DeliveryState::ALL,
            DeliveryState::word,
            "pending delivered retrying held filtered superseded dead canceled",
        );
        check(
            DeadReason::ALL,
            DeadReason::word,
            "exhausted gone refused expired render_error target_not_allowed subscription_deleted",
        );
        check(
            AttemptError::ALL,
            AttemptError::word,
            "dns connect tls timeout reset not_http headers_too_large redirect_not_followed status target_not_allowed",
        );
        check(
            QuarantineReason::ALL,
            QuarantineReason::word,
            "malformed too_large invalid_event id_conflict unsupported_encoding handler_failed",
        );
    }

    #[test]
    fn a_word_reads_back_as_its_member_everywhere() {
        for reason in DeadReason::ALL {
            assert_eq!(DeadReason::from_word(reason.word()), Some(*reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.word());
            assert_eq!(reason.to_string(), reason.word());
        }
        assert_eq!(DeadReason::from_word("other"), None);
    }
}
