-- One row: which database this is, how far it has changed, and which key its secrets need.
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- Drawn when the database was made; another one means that the database was replaced.
    identity TEXT NOT NULL,
    -- Grows by one with each change of a subscription, under this row's lock.
    revision BIGINT NOT NULL,
    -- The fingerprint of the encryption key.
    key_id TEXT NOT NULL,
    -- The encryption key itself, where no other place was given. Only PostgreSQL uses it.
    kept_key TEXT,
    -- The key of the token hashes, encrypted.
    token_key BYTEA NOT NULL
);

CREATE TABLE subscriptions (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    -- active, paused, disabled; or deleted: a tombstone that tells the feed.
    state TEXT NOT NULL,
    -- Of the last change. Unique, because it is the feed's place.
    revision BIGINT NOT NULL UNIQUE,
    -- The revision it was made at: the order of lists.
    created BIGINT NOT NULL UNIQUE,
    -- JSON, header values left out.
    document TEXT NOT NULL,
    -- Header values and signing keys, encrypted.
    secrets BYTEA NOT NULL,
    key_id TEXT NOT NULL
);
CREATE INDEX subscriptions_of_tenant ON subscriptions (tenant, created);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    tenant TEXT,
    scopes TEXT NOT NULL,
    hash BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE TABLE dead_letters (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    subscription_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    died_at BIGINT NOT NULL,
    -- JSON with history and event; NULL once deleted: a tombstone that keeps it from coming back.
    document TEXT
);
CREATE INDEX dead_letters_by_time ON dead_letters (died_at, id) WHERE document IS NOT NULL;
CREATE INDEX dead_letters_of_tenant ON dead_letters (tenant, died_at, id) WHERE document IS NOT NULL;
CREATE INDEX dead_letters_of_subscription ON dead_letters (subscription_id, died_at, id) WHERE document IS NOT NULL;

CREATE TABLE quarantine (
    id TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    source TEXT NOT NULL,
    message_id TEXT,
    content_type TEXT,
    body BYTEA NOT NULL
);
CREATE INDEX quarantine_by_time ON quarantine (first_seen, id);
