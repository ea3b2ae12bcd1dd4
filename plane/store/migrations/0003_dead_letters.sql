-- Dead letters (package plane/deadletter) and how far their topic was read (package plane/offset). Times are Unix nanoseconds; 0 means never.

-- The offsets of all topics that the plane reads.
ALTER TABLE event_offsets RENAME TO topic_offsets;

-- Ids come from a row of their own, so that they grow in every database and none is ever used twice.
CREATE TABLE dead_letter_id (
  singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
  last      BIGINT NOT NULL
);
INSERT INTO dead_letter_id (singleton, last) VALUES (1, 0);

-- What agents could not read. A value may hold credentials and secret files; the row is deleted, and so erased, when it is dropped or too old.
CREATE TABLE dead_letters (
  id              BIGINT PRIMARY KEY,
  digest          TEXT NOT NULL UNIQUE,       -- SHA-256 of where the message was and what it is, hexadecimal: a copy of it is the same letter
  agent_id        TEXT NOT NULL,              -- as it was claimed; may be empty
  cluster_id      TEXT NOT NULL,              -- of that agent; empty if there is none
  verified        BOOLEAN NOT NULL,           -- the topic is that agent's or its cluster's
  topic           TEXT NOT NULL,
  topic_partition INTEGER NOT NULL,
  topic_offset    BIGINT NOT NULL,
  size            BIGINT NOT NULL,            -- bytes of key, headers and value
  value_size      BIGINT NOT NULL,
  type            TEXT NOT NULL,              -- what the headers say, as far as it can be printed
  command_id      TEXT NOT NULL,
  class           TEXT NOT NULL,              -- why, in the agent's words
  code            TEXT NOT NULL,
  reason          TEXT NOT NULL,
  attempts        BIGINT NOT NULL,            -- how often it was given up
  first_at        BIGINT NOT NULL,
  last_at         BIGINT NOT NULL,
  replayed_at     BIGINT NOT NULL,            -- 0: not yet
  -- Large columns last, so that the others are read without them.
  record_key      BYTEA,                      -- NULL: it had none
  headers         BYTEA NOT NULL,             -- JSON, the original ones
  value           BYTEA                       -- NULL: it had none
);
CREATE INDEX dead_letters_agent ON dead_letters (agent_id, id);
CREATE INDEX dead_letters_cluster ON dead_letters (cluster_id, id);
CREATE INDEX dead_letters_last ON dead_letters (last_at);
