-- The newest version of each subject that was let go to a subscription whose `ordering` is `latest`,
-- so that none older is sent after it. Every deliverer asks and writes here before it sends.
CREATE TABLE versions (
    subscription_id TEXT COLLATE "C" NOT NULL,
    -- A hash of entity and id: of one length, and nobody's name.
    subject TEXT COLLATE "C" NOT NULL,
    -- Less 2^63, so that all of 64 bits fit and keep their order.
    version BIGINT NOT NULL,
    -- The event that said so.
    event_id TEXT NOT NULL,
    -- The day on which it was last asked about, in nanoseconds since 1970.
    at BIGINT NOT NULL,
    PRIMARY KEY (subscription_id, subject)
);
CREATE INDEX versions_by_time ON versions (at);
