-- Whether anybody follows what is recorded, and up to which step it was told. One row.
CREATE TABLE tail (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- Grows by one with each step, under this row's lock: steps become visible in their order.
    seq BIGINT NOT NULL,
    -- Until when recorders write steps, in nanoseconds since 1970: whoever follows extends it.
    followed_until BIGINT NOT NULL
);
INSERT INTO tail (one, seq, followed_until) VALUES (1, 0, 0);

-- What was recorded while somebody followed: the keys of rows, some hundred a step. Kept for
-- minutes.
CREATE TABLE recorded (
    seq BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    -- JSON.
    document TEXT NOT NULL
);
CREATE INDEX recorded_by_time ON recorded (at);

-- Subscriptions for the time being. Their listener extends them; what it leaves behind ends by
-- itself.
CREATE TABLE listeners (
    subscription_id TEXT PRIMARY KEY,
    -- How long it lasts without a sign of life, in nanoseconds.
    lease BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX listeners_by_end ON listeners (expires_at);
