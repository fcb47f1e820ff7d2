//! The bugs that are planted, one in a run, to see whether the law finds them. Some are between
//! the stages and the broker, where a stage could have made them; the others are in the stages
//! themselves, behind the feature `sim`, and are named to them.

use std::time::{Duration, SystemTime};

use broker::{Parcel, PublishError, Route, Settle};
use event::{delivery::Bundle, log::LogBatch};
use futures_util::future::BoxFuture;

use crate::link::Paper;

/// A bug between a stage and the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    AckBeforeConfirm,
    ReturnTakenForConfirm,
    NackTakenForConfirm,
    LossTakenForConfirm,
    NackGivesBackAtOnce,
    DeadLetterAfterAck,
    LogEntryDropped,
    ArchiveParcelDropped,
    ParkedDeliveryLost,
    HeldDeliveryTwice,
    SettledTwice,
    GivenBackForAcked,
    RetryTooEarly,
    RecipientForgotten,
    ChangesNotFollowed,
    HeldNotRecorded,
    StoreErrorTakenForCommit,
    /// One in the stages, by its name there.
    Inside(&'static str),
}

/// All of them.
pub(crate) const ALL: [Plant; 22] = [
    Plant::AckBeforeConfirm,
    Plant::ReturnTakenForConfirm,
    Plant::NackTakenForConfirm,
    Plant::LossTakenForConfirm,
    Plant::NackGivesBackAtOnce,
    Plant::DeadLetterAfterAck,
    Plant::LogEntryDropped,
    Plant::ArchiveParcelDropped,
    Plant::ParkedDeliveryLost,
    Plant::HeldDeliveryTwice,
    Plant::SettledTwice,
    Plant::GivenBackForAcked,
    Plant::RetryTooEarly,
    Plant::RecipientForgotten,
    Plant::ChangesNotFollowed,
    Plant::HeldNotRecorded,
    Plant::StoreErrorTakenForCommit,
    Plant::Inside("clock of the machine"),
    Plant::Inside("bundle acked with its first share"),
    Plant::Inside("breaker never closes"),
    Plant::Inside("retry-after instead of the schedule"),
    Plant::Inside("unknown subscription taken for deleted"),
];

type Honest<'a> =
    &'a (dyn Fn(Parcel) -> BoxFuture<'static, Result<(), PublishError>> + Send + Sync);

impl Plant {
    /// The bug's name for the stages, where it is theirs.
    pub(crate) fn inside(self) -> Option<&'static str> {
        match self {
            Self::Inside(name) => Some(name),
            _ => None,
        }
    }

    /// Publishes as a stage with this bug would.
    pub(crate) async fn publish(
        self,
        parcel: Parcel,
        honest: Honest<'_>,
    ) -> Result<(), PublishError> {
        let route = parcel.route.clone();
        match (self, &route) {
            (Self::AckBeforeConfirm, Route::Deliver) | (Self::DeadLetterAfterAck, Route::Dead) => {
                tokio::spawn(honest(parcel));
                Ok(())
            }
            (Self::LogEntryDropped, Route::Log) if held(&parcel).is_none() => Ok(()),
            (Self::ArchiveParcelDropped, Route::Archive) => Ok(()),
            (Self::ParkedDeliveryLost, Route::DeliverAt(_)) if is_parked(&parcel) => Ok(()),
            (Self::HeldDeliveryTwice, Route::Log) => {
                let again = held(&parcel);
                honest(parcel).await?;
                match again {
                    Some(again) => honest(again).await,
                    None => Ok(()),
                }
            }
            (Self::RetryTooEarly, Route::DeliverAt(due)) if !is_parked(&parcel) => {
                let early = *due - Duration::from_millis(900);
                let route = Route::DeliverAt(early);
                honest(Parcel { route, ..parcel }).await
            }
            (Self::RecipientForgotten, Route::Deliver) => honest(without_one(parcel)).await,
            _ => self.read(honest(parcel).await),
        }
    }

    /// Reads the broker's answer as a stage with this bug would.
    fn read(self, answer: Result<(), PublishError>) -> Result<(), PublishError> {
        match (self, answer) {
            (Self::ReturnTakenForConfirm, Err(PublishError::Unroutable(_)))
            | (Self::NackTakenForConfirm, Err(PublishError::Rejected))
            | (Self::LossTakenForConfirm, Err(PublishError::Unavailable)) => Ok(()),
            (Self::NackGivesBackAtOnce, Err(_)) => Err(PublishError::Closed),
            (_, answer) => answer,
        }
    }

    /// Settles as a stage with this bug would.
    pub(crate) fn settle(self, paper: Paper) -> Box<dyn Settle> {
        match self {
            Self::SettledTwice => Box::new(Crooked { paper, twice: true }),
            Self::GivenBackForAcked => Box::new(Crooked {
                paper,
                twice: false,
            }),
            _ => Box::new(paper),
        }
    }
}

#[derive(Debug)]
struct Crooked {
    paper: Paper,
    twice: bool,
}

impl Settle for Crooked {
    fn ack(self: Box<Self>) {
        if self.twice {
            Box::new(self.paper.clone()).ack();
            Box::new(self.paper).ack();
        } else {
            Box::new(self.paper).give_back();
        }
    }

    fn give_back(self: Box<Self>) {
        Box::new(self.paper).give_back();
    }

    fn is_void(&self) -> bool {
        self.paper.is_void()
    }
}

fn bundle(parcel: &Parcel) -> Bundle {
    serde_json::from_slice(&parcel.body).expect("a bundle")
}

fn is_parked(parcel: &Parcel) -> bool {
    let mut items = bundle(parcel).items.into_iter();
    items.any(|item| item.to.iter().any(|to| to.parked > 0))
}

/// The first delivery that is handed over, on its way to the ladder as well.
fn held(parcel: &Parcel) -> Option<Parcel> {
    let batch: LogBatch = serde_json::from_slice(&parcel.body).expect("a log batch");
    let mut item = batch.held.into_iter().next()?.item;
    item.to.iter_mut().for_each(|to| to.parked += 1);
    let body = serde_json::to_vec(&Bundle { items: vec![item] }).expect("JSON");
    let due = SystemTime::from(broker::clock::now()) + Duration::from_secs(1);
    Some(Parcel::json(Route::DeliverAt(due), "again", body))
}

/// The same bundle without its last recipient, where it has more than one.
fn without_one(parcel: Parcel) -> Parcel {
    let mut bundle = bundle(&parcel);
    for item in &mut bundle.items {
        if item.to.len() > 1 {
            item.to.pop();
        }
    }
    let body = serde_json::to_vec(&bundle).expect("JSON");
    Parcel::json(parcel.route, parcel.message_id, body)
}
