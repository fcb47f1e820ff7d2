//! All endpoints: each behaves as the plan says for this moment.

use std::time::Duration;

use deliverer::sim::{Answer, Receivers};
use event::reason::AttemptError;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use tokio::time::sleep;
use url::Url;

use crate::{
    content::{Key, number},
    plan::Behaviour,
    world::World,
};

#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) world: World,
    /// The process whose attempts these are.
    pub(crate) link: usize,
}

impl Receivers for Endpoints {
    fn attempt(&self, url: Url, headers: HeaderMap) -> BoxFuture<'_, Answer> {
        let id = headers.get("webhook-id").and_then(|id| id.to_str().ok());
        let event = number(id.expect("each webhook has an id"));
        let subscription = number(url.host_str().expect("each endpoint has a name"));
        Box::pin(self.take((event, subscription)))
    }
}

impl Endpoints {
    async fn take(&self, key: Key) -> Answer {
        let (behaviour, travels) = self.world.with(|state| {
            state.book.attempted(self.link, key);
            let behaviour = state.behaviour(key.1);
            state.tell(|| format!("attempt e{}>s{}: {behaviour:?}", key.0, key.1));
            (behaviour, state.chance.ms(0, 20))
        });
        sleep(travels).await;
        match behaviour {
            Behaviour::Well(ms) => {
                sleep(Duration::from_millis(ms)).await;
                self.answer(key, 200, None)
            }
            Behaviour::Status(status) => self.answer(key, status, None),
            Behaviour::Later(status, seconds) => self.answer(key, status, Some(seconds)),
            Behaviour::Refuses => Answer::Failed(AttemptError::Connect),
            Behaviour::Swallows => Answer::Failed(AttemptError::Reset),
            Behaviour::Hangs => std::future::pending().await,
        }
    }

    fn answer(&self, key: Key, status: u16, seconds: Option<u64>) -> Answer {
        self.world.with(|state| {
            state.book.answered(self.link, key, status, seconds);
            state.tell(|| format!("answer  e{}>s{}: {status}", key.0, key.1));
        });
        Answer::Status {
            status,
            retry_after: seconds.map(|seconds| seconds.to_string()),
        }
    }
}
