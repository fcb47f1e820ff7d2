-- When an event's payloads were expunged on demand; what is left of it is not whole any more.
ALTER TABLE events ADD COLUMN expunged_at BIGINT;

-- To find what is held of one resource.
CREATE INDEX held_of_tenant ON held (tenant, delivery_id, accepted_at, run) WHERE document IS NOT NULL;
