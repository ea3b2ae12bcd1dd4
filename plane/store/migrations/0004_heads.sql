-- What managers tell of their stacks' heads, and what is offered again when that goes back (package plane/ledger). Times are Unix nanoseconds.

-- The newest head of each stack that a confirmed manager has told. Another Swarm id means that the Swarm was made anew: what was told before says nothing of it.
CREATE TABLE heads (
  cluster_id  TEXT NOT NULL,
  stack       TEXT NOT NULL,
  swarm_id    TEXT NOT NULL,
  generation  BIGINT NOT NULL,              -- 0: the Swarm has lost the head, which was told as an alarm
  epoch       BIGINT NOT NULL,
  removed     BOOLEAN NOT NULL,
  alarm_at    BIGINT NOT NULL,              -- when the numbers went back; 0: never, or a newer generation has succeeded since
  alarm_above BIGINT NOT NULL,              -- a success above this generation ends the alarm
  alarm       BYTEA,                        -- protobuf of the GenerationsWentBack; NULL if there is none
  PRIMARY KEY (cluster_id, stack)
);
CREATE INDEX heads_alarm ON heads (cluster_id) WHERE alarm_at <> 0;

-- The commands that a stack is made of: the last StackDeploy or StackRemove that succeeded (service is empty) and, of each service, the last ServiceScale that
-- succeeded after it.
CREATE TABLE last_commands (
  cluster_id TEXT NOT NULL,
  stack      TEXT NOT NULL,
  service    TEXT NOT NULL,
  type       TEXT NOT NULL,
  generation BIGINT NOT NULL,
  command_id TEXT NOT NULL,
  kept_at    BIGINT NOT NULL,
  missing    TEXT NOT NULL,                 -- why it has no data; empty if it has
  data       BYTEA,                         -- protobuf; may hold credentials
  PRIMARY KEY (cluster_id, stack, service)
);
