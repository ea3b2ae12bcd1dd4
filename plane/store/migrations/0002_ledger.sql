-- Commands, generations and events (package plane/ledger). Times are Unix nanoseconds, durations nanoseconds.

-- A command is open until its outcome is stored or its time is over. Its data may hold credentials and is erased when it is closed.
CREATE TABLE commands (
  id              TEXT PRIMARY KEY,
  cluster_id      TEXT NOT NULL,
  agent_id        TEXT NOT NULL,            -- empty: for the cluster
  topic           TEXT NOT NULL,
  record_key      TEXT NOT NULL,
  type            TEXT NOT NULL,
  subject         TEXT NOT NULL,
  stack           TEXT NOT NULL,            -- what the generation counts for
  generation      BIGINT NOT NULL,
  idempotency_key TEXT,                     -- NULL: none was given
  correlation_id  TEXT NOT NULL,
  headers         TEXT NOT NULL,            -- JSON, as they are sent
  data            BYTEA,                    -- NULL once closed
  created_at      BIGINT NOT NULL,
  deadline        BIGINT NOT NULL,
  run_time        BIGINT NOT NULL,          -- how long it may take once begun
  begun           BOOLEAN NOT NULL,         -- an agent has said that it took it
  closed_at       BIGINT,                   -- NULL while open
  outcome         INTEGER NOT NULL,         -- OutcomeStatus; 0 while open
  sends           BIGINT NOT NULL,
  last_sent_at    BIGINT NOT NULL,          -- 0: never
  next_send_at    BIGINT NOT NULL
);
CREATE UNIQUE INDEX commands_idempotency ON commands (cluster_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX commands_due ON commands (next_send_at, created_at) WHERE closed_at IS NULL;
CREATE INDEX commands_closed ON commands (closed_at) WHERE closed_at IS NOT NULL;

-- The newest generation of a stack that was assigned or that an agent has reported.
CREATE TABLE generations (
  cluster_id TEXT NOT NULL,
  stack      TEXT NOT NULL,
  generation BIGINT NOT NULL,
  PRIMARY KEY (cluster_id, stack)
);

-- Positions come from a row of their own, so that they follow the order of commits in every database and are never used twice.
CREATE TABLE event_position (
  singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
  last      BIGINT NOT NULL
);
INSERT INTO event_position (singleton, last) VALUES (1, 0);

CREATE TABLE events (
  position       BIGINT PRIMARY KEY,
  id             TEXT NOT NULL,
  type           TEXT NOT NULL,
  cluster_id     TEXT NOT NULL,
  agent_id       TEXT NOT NULL,             -- empty: the plane's own
  subject        TEXT NOT NULL,
  causation_id   TEXT NOT NULL,
  correlation_id TEXT NOT NULL,
  made_at        BIGINT NOT NULL,           -- 0: unknown
  stored_at      BIGINT NOT NULL,
  data           BYTEA NOT NULL,            -- protobuf
  duplicates     BIGINT NOT NULL,           -- later events of the same id
  conflicts      BIGINT NOT NULL            -- those among them that said something else
);
CREATE UNIQUE INDEX events_id ON events (cluster_id, id);
CREATE INDEX events_causation ON events (causation_id, position);
CREATE INDEX events_cluster ON events (cluster_id, position);
CREATE INDEX events_stored ON events (stored_at);

-- How far the topic of events was read, in the transaction that stored the events. Another topic id means that the topic was made anew.
CREATE TABLE event_offsets (
  topic       TEXT NOT NULL,
  partition   INTEGER NOT NULL,
  topic_id    TEXT NOT NULL,
  next_offset BIGINT NOT NULL,
  PRIMARY KEY (topic, partition)
);
