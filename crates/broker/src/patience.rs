//! Publishing that does not give up: for parcels whose loss would be the loss of an event.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::{Parcel, Publish, PublishError};

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Publishes until the broker takes it: waits out reconnects, alarms and full queues with a short
/// pause between tries. Ends with an error only when the broker is closed (the process is
/// stopping), and then the caller must not ack what the parcel was made from.
pub async fn publish_until_taken(
    publisher: &dyn Publish,
    parcel: Parcel,
) -> Result<(), PublishError> {
    publish_while(publisher, parcel, || true).await
}

/// [`publish_until_taken`] for as long as it is `wanted`: what was made from a message that the
/// broker hands out again ([`crate::Ticket::is_void`]) is made anew, and would be there twice.
pub async fn publish_while(
    publisher: &dyn Publish,
    parcel: Parcel,
    wanted: impl Fn() -> bool + Send + Sync,
) -> Result<(), PublishError> {
    let mut pause = PAUSE_FIRST;
    loop {
        match publisher.publish(parcel.clone()).await {
            Ok(()) => return Ok(()),
            Err(PublishError::Closed) => return Err(PublishError::Closed),
            Err(error) if !wanted() => return Err(error),
            Err(error) => {
                tracing::debug!(message_id = %parcel.message_id, %error, "publish not taken, trying again");
                tokio::time::sleep(jittered(pause)).await;
                if !wanted() {
                    return Err(error);
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Between half of `pause` and all of it: a hundred waiters must not come back as one.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    #[cfg(feature = "sim")]
    if let Some(drawn) = crate::sim::draw(spread) {
        return half + Duration::from_nanos(drawn);
    }
    // `RandomState` is seeded by the system; it saves a dependency on a generator of its own.
    half + Duration::from_nanos(RandomState::new().hash_one(0u8) % spread)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::Route;

    #[derive(Debug)]
    struct Answers(Mutex<Vec<Result<(), PublishError>>>);

    impl Publish for Answers {
        fn publish(&self, _: Parcel) -> BoxFuture<'_, Result<(), PublishError>> {
            let answer = self
                .0
                .lock()
                .expect("one task")
                .pop()
                .expect("asked too often");
            Box::pin(async move { answer })
        }
    }

    async fn ends_with(mut answers: Vec<Result<(), PublishError>>) -> Result<(), PublishError> {
        answers.reverse();
        let publisher = Answers(Mutex::new(answers));
        let parcel = Parcel::json(Route::Deliver, "m", "{}");
        let end = publish_until_taken(&publisher, parcel).await;
        assert!(
            publisher.0.lock().expect("one task").is_empty(),
            "gave up early"
        );
        end
    }

    #[tokio::test(start_paused = true)]
    async fn every_passing_trouble_is_waited_out() {
        let answers = vec![
            Err(PublishError::Unavailable),
            Err(PublishError::Blocked("disk".into())),
            Err(PublishError::Rejected),
            Err(PublishError::Unroutable("no queue".into())),
            Ok(()),
        ];
        assert_eq!(ends_with(answers).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_broker_is_the_only_end() {
        let answers = vec![Err(PublishError::Unavailable), Err(PublishError::Closed)];
        assert_eq!(ends_with(answers).await, Err(PublishError::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_any_more_is_not_published_again() {
        let wanted = Mutex::new([true, false].into_iter());
        let answers = vec![Err(PublishError::Unavailable), Ok(())];
        let publisher = Answers(Mutex::new(answers.into_iter().rev().collect()));
        // Wanted when the answer comes, and not any more after the pause.
        let end = publish_while(&publisher, Parcel::json(Route::Deliver, "m", "{}"), || {
            let answer = wanted.lock().expect("one task").next();
            answer.expect("asked too often")
        });
        assert_eq!(end.await, Err(PublishError::Unavailable));
        assert_eq!(publisher.0.lock().expect("one task").len(), 1);
    }

    #[test]
    fn jitter_stays_within_half_and_whole() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_millis(100));
            assert!(pause >= Duration::from_millis(50) && pause < Duration::from_millis(100));
        }
    }
}
