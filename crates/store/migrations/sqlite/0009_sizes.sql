-- How large a message was of which only the beginning is kept; null where all of it is.
ALTER TABLE quarantine ADD COLUMN size BIGINT;
