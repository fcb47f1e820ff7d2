-- What people asked to be sent again, and how far each has come. A job is worked on by one recorder
-- at a time: the one whose name is on it, until its lease is over. Times are nanoseconds since 1970.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    -- Whose deliveries are sent; NULL: everybody's.
    tenant TEXT,
    -- replay, redrive, resume.
    kind TEXT NOT NULL,
    -- To whom; NULL: to whomever the dead letters were for.
    subscription_id TEXT,
    -- JSON.
    filter TEXT NOT NULL,
    -- running, done, canceled, failed.
    state TEXT NOT NULL,
    -- What was found before it began; of a finished one, what there was.
    total BIGINT NOT NULL,
    done BIGINT NOT NULL,
    skipped BIGINT NOT NULL,
    -- Deliveries per second.
    rate BIGINT NOT NULL,
    detail TEXT,
    -- Behind this place nothing has been sent; NULL: the beginning.
    place TEXT,
    -- JSON: the step that was about to be sent. NULL: none, every step is either settled or not begun.
    intent TEXT,
    -- What no two running jobs may have in common.
    slot TEXT NOT NULL,
    owner TEXT,
    lease_until BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX jobs_slot ON jobs (slot) WHERE state = 'running';
CREATE INDEX jobs_by_time ON jobs (created_at, id);
CREATE INDEX jobs_of_tenant ON jobs (tenant, created_at, id);
-- Few at any time.
CREATE INDEX jobs_to_do ON jobs (lease_until) WHERE state = 'running' OR intent IS NOT NULL;
