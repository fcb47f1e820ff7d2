-- Which ids have been taken within `dedup.window`, so that none is routed twice. The primary key
-- alone decides between several routers and producers.
CREATE TABLE claims (
    tenant TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- Of what the publisher said, to tell a repetition from another event with the same id.
    hash TEXT NOT NULL,
    -- Which message claimed it, where the message says; else empty.
    token TEXT NOT NULL,
    -- When, in nanoseconds since 1970.
    at BIGINT NOT NULL,
    PRIMARY KEY (tenant, event_id)
);
CREATE INDEX claims_by_time ON claims (at);
