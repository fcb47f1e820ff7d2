//! The gate of a process's deliveries to subscriptions whose `ordering` is `latest`.
//!
//! What wants through at once is one statement of `versions`. No answer is waited for longer than
//! a bound, and while the store does not answer nothing is asked of it: whoever wants through then
//! is told that nobody knows, and has to wait elsewhere.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    Error, Store,
    outage::{self, Outage, Patient},
    versions::{Newer, Sending},
};

/// How long the store may take; whoever asks holds a place at its endpoint.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How many deliveries one statement is about.
const GROUP_MAX: usize = 256;
/// How many wait for the statement under way.
const WAITING_MAX: usize = 1024;

/// What a delivery at the gate is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// It may be sent now.
    Go,
    /// It must never be sent: a newer version was let go before.
    Overtaken(Newer),
    /// The store does not answer.
    Unknown,
}

/// The gate of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    state: Arc<State>,
    asking: mpsc::Sender<Question>,
}

#[derive(Debug)]
struct State {
    store: Store,
    outage: Outage,
}

#[derive(Debug)]
struct Question {
    sending: Sending,
    answer: oneshot::Sender<Pass>,
}

impl Gate {
    /// Begins to answer. Ends with its last handle.
    pub fn start(store: Store) -> Self {
        let state = Arc::new(State {
            store,
            outage: Outage::default(),
        });
        let (asking, asked) = mpsc::channel(WAITING_MAX);
        tokio::spawn(answer(state.clone(), asked));
        Self { state, asking }
    }

    /// Asks to send. Whoever is told to go is remembered as let go, and begins at once.
    pub async fn pass(&self, sending: Sending) -> Pass {
        if self.state.outage.is_on() {
            return Pass::Unknown;
        }
        let (answer, answered) = oneshot::channel();
        match self.asking.send(Question { sending, answer }).await {
            Ok(()) => answered.await.unwrap_or(Pass::Unknown),
            Err(_gone) => Pass::Unknown,
        }
    }

    /// Whether deliveries wait just now because the store does not answer.
    pub fn is_off(&self) -> bool {
        self.state.outage.is_on()
    }
}

impl Patient for State {
    const ANSWER_MAX: Duration = ANSWER_MAX;
    const BEGINS: &str = "the store does not answer: what is ordered by `latest` waits for it";
    const ENDS: &str = "the store answers again: what is ordered by `latest` is sent";

    fn outage(&self) -> &Outage {
        &self.outage
    }

    async fn probe(&self) -> Result<(), Error> {
        self.store.can_let_go().await
    }
}

/// Answers those that wait at once with one statement. While one is under way the next ones
/// gather.
async fn answer(state: Arc<State>, mut questions: mpsc::Receiver<Question>) {
    let mut group = Vec::new();
    while questions.recv_many(&mut group, GROUP_MAX).await > 0 {
        // Who asked may have gone: what is never sent must not be remembered as sent.
        group.retain(|question| !question.answer.is_closed());
        let (sendings, answers): (Vec<_>, Vec<_>) = group
            .drain(..)
            .map(|question| (question.sending, question.answer))
            .unzip();
        let passes = ask(&state, &sendings).await;
        let mut passes = passes.into_iter().flatten();
        for answer in answers {
            drop(answer.send(passes.next().unwrap_or(Pass::Unknown)));
        }
    }
}

async fn ask(state: &Arc<State>, sendings: &[Sending]) -> Option<Vec<Pass>> {
    // It may have gone away while these were waiting.
    if sendings.is_empty() || state.outage.is_on() {
        return None;
    }
    let asked = timeout(ANSWER_MAX, state.store.let_go(sendings, Timestamp::now())).await;
    match asked.unwrap_or_else(|_| {
        Err(Error::Unavailable(format!(
            "no answer within {ANSWER_MAX:?}"
        )))
    }) {
        Ok(found) => {
            let pass = |newer: Option<Newer>| newer.map_or(Pass::Go, Pass::Overtaken);
            Some(found.into_iter().map(pass).collect())
        }
        Err(error) => {
            outage::begin(state, &error);
            None
        }
    }
}
