-- What is kept for subscriptions that are paused or disabled, until they are resumed. Times are
-- nanoseconds since 1970.
CREATE TABLE held (
    delivery_id TEXT COLLATE "C" NOT NULL,
    accepted_at BIGINT NOT NULL,
    run BIGINT NOT NULL,
    subscription_id TEXT COLLATE "C" NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    held_at BIGINT NOT NULL,
    -- JSON: the event and whom it goes to. NULL once it was sent: a tombstone that keeps it from
    -- coming back.
    document TEXT,
    PRIMARY KEY (delivery_id, accepted_at, run)
);
CREATE INDEX held_of_subscription ON held (subscription_id, accepted_at, delivery_id) WHERE document IS NOT NULL;
CREATE INDEX held_tombstones ON held (held_at) WHERE document IS NULL;
