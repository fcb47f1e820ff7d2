//! A store that does not answer, for those who can do without its answer for a while: it is said
//! once, nobody asks meanwhile, and one asks again until it answers.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::Error;

/// How often a store that did not answer is asked again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Whether it is known not to answer.
#[derive(Debug, Default)]
pub(crate) struct Outage(AtomicBool);

impl Outage {
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who asks the store, and goes on without while it does not answer.
pub(crate) trait Patient: Send + Sync + 'static {
    /// How long an answer may take.
    const ANSWER_MAX: Duration;
    /// What is said when it begins, and when it is over.
    const BEGINS: &str;
    const ENDS: &str;

    fn outage(&self) -> &Outage;

    /// A question that only finds out whether there are answers.
    fn probe(&self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Says once that the store does not answer, and asks it again until it does or nobody is left who
/// wants to know.
pub(crate) fn begin<P: Patient>(patient: &Arc<P>, error: &Error) {
    if !patient.outage().0.swap(true, Ordering::Relaxed) {
        warn!(%error, "{}", P::BEGINS);
        tokio::spawn(until_back(Arc::downgrade(patient)));
    }
}

async fn until_back<P: Patient>(patient: Weak<P>) {
    loop {
        tokio::time::sleep(TRY_AGAIN).await;
        let Some(patient) = patient.upgrade() else {
            return;
        };
        match timeout(P::ANSWER_MAX, patient.probe()).await {
            Ok(Ok(())) => {
                patient.outage().0.store(false, Ordering::Relaxed);
                info!("{}", P::ENDS);
                return;
            }
            Ok(Err(error)) => debug!(%error, "the store does not answer yet"),
            Err(_) => debug!("the store does not answer yet"),
        }
    }
}
