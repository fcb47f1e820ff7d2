-- What is remembered of every event and every delivery. A day is the number of whole days from
-- 1970 to the acceptance of the event, UTC. It is part of every key, because PostgreSQL keeps each
-- day in a partition of its own, which is what makes forgetting cheap: the same id accepted on
-- another day is another event. Times are nanoseconds since 1970.
CREATE TABLE events (
    id TEXT COLLATE "C" NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    accepted_at BIGINT NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    -- Of the subscriptions it was matched against.
    revision BIGINT NOT NULL,
    -- As published.
    bytes BIGINT NOT NULL,
    -- A JSON array of subscription ids.
    matched TEXT NOT NULL,
    -- JSON, without payloads.
    document TEXT NOT NULL,
    -- The same with payloads; NULL where there are none, none were archived, or they were expunged.
    payload TEXT,
    PRIMARY KEY (id, tenant, day)
) PARTITION BY RANGE (day);
CREATE INDEX events_by_time ON events (accepted_at, id, tenant);
CREATE INDEX events_of_tenant ON events (tenant, accepted_at, id);
CREATE INDEX events_of_kind ON events (kind, accepted_at, id, tenant);

-- One row for each resource that an event names as its subject.
CREATE TABLE event_subjects (
    subject TEXT COLLATE "C" NOT NULL,
    accepted_at BIGINT NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    PRIMARY KEY (subject, accepted_at, id, tenant, day)
) PARTITION BY RANGE (day);

CREATE TABLE deliveries (
    id TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    event_id TEXT COLLATE "C" NOT NULL,
    subscription_id TEXT COLLATE "C" NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL,
    reason TEXT COLLATE "C",
    -- Of this run.
    attempts BIGINT NOT NULL,
    run BIGINT NOT NULL,
    -- How far it has come, as one number: a row is only ever replaced by one that has come further.
    progress BIGINT NOT NULL,
    purpose TEXT COLLATE "C" NOT NULL,
    detail TEXT,
    clause TEXT,
    due BIGINT,
    accepted_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    -- Of the last attempt that was answered.
    last_status BIGINT,
    PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE INDEX deliveries_of_event ON deliveries (event_id, tenant, accepted_at, id);
CREATE INDEX deliveries_by_time ON deliveries (accepted_at, id);
CREATE INDEX deliveries_of_tenant ON deliveries (tenant, accepted_at, id);
CREATE INDEX deliveries_of_subscription ON deliveries (subscription_id, accepted_at, id);
CREATE INDEX deliveries_of_kind ON deliveries (kind, accepted_at, id);
-- Most deliveries are delivered and cost these nothing.
CREATE INDEX deliveries_in_state ON deliveries (state, accepted_at, id) WHERE state <> 'delivered';
CREATE INDEX deliveries_in_state_of_tenant ON deliveries (tenant, state, accepted_at, id) WHERE state <> 'delivered';
CREATE INDEX deliveries_in_state_of_subscription ON deliveries (subscription_id, state, accepted_at, id) WHERE state <> 'delivered';

CREATE TABLE attempts (
    delivery_id TEXT COLLATE "C" NOT NULL,
    run BIGINT NOT NULL,
    number BIGINT NOT NULL,
    -- When it began. Part of the key, because after a fault an attempt may really be made twice.
    at BIGINT NOT NULL,
    -- Of the delivery.
    day BIGINT NOT NULL,
    -- JSON.
    document TEXT NOT NULL,
    PRIMARY KEY (delivery_id, run, number, at, day)
) PARTITION BY RANGE (day);

-- How each endpoint's attempts have gone, from attempts in the order in which they were made.
CREATE TABLE subscription_health (
    subscription_id TEXT COLLATE "C" PRIMARY KEY,
    -- Failures in a row.
    failures BIGINT NOT NULL,
    -- The first and the last of them.
    failing_since BIGINT,
    last_failure_at BIGINT,
    last_success_at BIGINT,
    -- The last change of the subscription: attempts before it no longer count.
    reset_at BIGINT,
    -- Whether the warning of this run was given.
    warned BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX subscription_health_failing ON subscription_health (subscription_id) WHERE failures > 0;

-- What is to be published, written in the transaction that gave the occasion and deleted once the
-- broker has it. The id is made of the occasion, so that one published twice is one event.
CREATE TABLE notices (
    id TEXT COLLATE "C" PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    -- A JSON event.
    document TEXT NOT NULL
);
CREATE INDEX notices_by_time ON notices (created_at, id);

-- Tombstones are forgotten too, in their time.
CREATE INDEX dead_letters_buried ON dead_letters (died_at, id) WHERE document IS NULL;
