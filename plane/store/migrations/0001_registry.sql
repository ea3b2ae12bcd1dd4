-- Clusters, join tokens, agents and the certificates issued to them (package plane/registry). Times are Unix nanoseconds; 0 means never.

CREATE TABLE clusters (
    id         TEXT PRIMARY KEY,
    swarm_id   TEXT   NOT NULL DEFAULT '', -- the Swarm's own id, once a manager has told it
    created_at BIGINT NOT NULL,
    nodes_at   BIGINT NOT NULL DEFAULT 0   -- when a confirmed manager last told the nodes
);

CREATE TABLE join_tokens (
    id          TEXT PRIMARY KEY,
    cluster_id  TEXT    NOT NULL REFERENCES clusters (id),
    secret_hash TEXT    NOT NULL UNIQUE, -- SHA-256, hexadecimal; the secret itself is nowhere
    created_at  BIGINT  NOT NULL,
    expires_at  BIGINT  NOT NULL,
    uses        INTEGER NOT NULL,
    used        INTEGER NOT NULL DEFAULT 0,
    revoked_at  BIGINT  NOT NULL DEFAULT 0
);

CREATE INDEX join_tokens_cluster ON join_tokens (cluster_id);

-- The nodes of each cluster's Swarm as a confirmed manager last told them.
CREATE TABLE swarm_nodes (
    cluster_id TEXT    NOT NULL REFERENCES clusters (id),
    node_id    TEXT    NOT NULL,
    manager    INTEGER NOT NULL, -- 0 or 1
    PRIMARY KEY (cluster_id, node_id)
);

CREATE TABLE agents (
    id                TEXT PRIMARY KEY,
    cluster_id        TEXT    NOT NULL REFERENCES clusters (id),
    node_id           TEXT    NOT NULL,
    key_hash          TEXT    NOT NULL, -- SHA-256 of the newest key's SubjectPublicKeyInfo, hexadecimal
    encryption_key    TEXT    NOT NULL, -- X25519, base64
    version           TEXT    NOT NULL,
    facts             TEXT    NOT NULL, -- axion.runner.v1.NodeFacts as protojson
    enrolled_at       BIGINT  NOT NULL,
    last_seen         BIGINT  NOT NULL,
    manager_confirmed INTEGER NOT NULL DEFAULT 0, -- 0 or 1
    removed_at        BIGINT  NOT NULL DEFAULT 0,
    UNIQUE (cluster_id, node_id)
);

CREATE INDEX agents_key ON agents (key_hash);

CREATE TABLE certificates (
    serial     TEXT PRIMARY KEY, -- hexadecimal
    agent_id   TEXT   NOT NULL REFERENCES agents (id),
    spki       TEXT   NOT NULL, -- SubjectPublicKeyInfo, base64
    key_hash   TEXT   NOT NULL, -- its SHA-256, hexadecimal
    not_before BIGINT NOT NULL,
    not_after  BIGINT NOT NULL,
    revoked_at BIGINT NOT NULL DEFAULT 0
);

CREATE INDEX certificates_agent ON certificates (agent_id);
CREATE INDEX certificates_key ON certificates (key_hash);
