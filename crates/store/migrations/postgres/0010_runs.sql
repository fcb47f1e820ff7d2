-- Who is about to send which run of a delivery again, so that two who were asked at once do not both.
-- A row is of no use once its time is over: by then the log knows of the run.
CREATE TABLE runs (
    delivery_id TEXT COLLATE "C" NOT NULL,
    accepted_at BIGINT NOT NULL,
    run BIGINT NOT NULL,
    -- A call, or a job: that may begin the same run again, because it finds out first.
    owner TEXT COLLATE "C" NOT NULL,
    -- Nanoseconds since 1970.
    until BIGINT NOT NULL,
    PRIMARY KEY (delivery_id, accepted_at, run)
);
CREATE INDEX runs_by_time ON runs (until);
