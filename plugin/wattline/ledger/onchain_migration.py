"""From version 1 to 2: sessions that may be paid on-chain, and the aggregates of socket and cable."""

from __future__ import annotations

from sqlalchemy import Connection

_STATEMENTS = """
ALTER TABLE sessions ADD COLUMN returned_msat BIGINT DEFAULT 0 NOT NULL;
CREATE TABLE aggregates (
    session_id VARCHAR(26) NOT NULL,
    cable_node_id TEXT NOT NULL,
    address TEXT NOT NULL,
    script TEXT NOT NULL,
    rules TEXT NOT NULL,
    status TEXT NOT NULL,
    invited_at BIGINT NOT NULL,
    first_height BIGINT NOT NULL,
    chosen_number BIGINT,
    choice_reason TEXT NOT NULL,
    chosen_at BIGINT,
    mined_txid VARCHAR(64),
    mined_value_sat BIGINT NOT NULL,
    mined_height BIGINT,
    mined_block VARCHAR(64),
    child_txid VARCHAR(64),
    lost_msat BIGINT NOT NULL,
    closed_at BIGINT,
    PRIMARY KEY (session_id),
    CONSTRAINT aggregates_status CHECK (status IN ('open', 'sent', 'settled', 'lost', 'void')),
    FOREIGN KEY(session_id) REFERENCES sessions (session_id)
);
CREATE INDEX ix_aggregates_status ON aggregates (status);
CREATE TABLE aggregate_inputs (
    session_id VARCHAR(26) NOT NULL,
    txid VARCHAR(64) NOT NULL,
    vout BIGINT NOT NULL,
    value_sat BIGINT NOT NULL,
    PRIMARY KEY (session_id, txid, vout),
    FOREIGN KEY(session_id) REFERENCES aggregates (session_id)
);
CREATE INDEX aggregate_inputs_by_outpoint ON aggregate_inputs (txid, vout);
CREATE TABLE aggregate_versions (
    session_id VARCHAR(26) NOT NULL,
    number BIGINT NOT NULL,
    value_sat BIGINT NOT NULL,
    fee_sat BIGINT NOT NULL,
    vsize BIGINT NOT NULL,
    vout BIGINT NOT NULL,
    txid VARCHAR(64) NOT NULL,
    psbt TEXT NOT NULL,
    raw TEXT NOT NULL,
    is_final BOOLEAN NOT NULL,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (session_id, number),
    CONSTRAINT aggregate_versions_value CHECK (value_sat > 0),
    FOREIGN KEY(session_id) REFERENCES aggregates (session_id)
);
CREATE UNIQUE INDEX aggregate_versions_end_once ON aggregate_versions (session_id) WHERE is_final;
CREATE UNIQUE INDEX aggregate_versions_grow ON aggregate_versions (session_id, is_final, value_sat);
CREATE TABLE refused_cables (
    cable_node_id VARCHAR(66) NOT NULL,
    reason TEXT NOT NULL,
    session_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (cable_node_id)
);
CREATE TABLE refused_inputs (
    txid VARCHAR(64) NOT NULL,
    vout BIGINT NOT NULL,
    cable_node_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    session_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (txid, vout)
);
CREATE INDEX ix_refused_inputs_cable_node_id ON refused_inputs (cable_node_id);
CREATE TABLE cable_aggregates (
    session_id VARCHAR(26) NOT NULL,
    node_id VARCHAR(66) NOT NULL,
    address TEXT NOT NULL,
    script TEXT NOT NULL,
    change_address TEXT NOT NULL,
    base_psbt TEXT NOT NULL,
    inputs_weight BIGINT NOT NULL,
    inputs TEXT NOT NULL,
    fee_sat BIGINT NOT NULL,
    floor_sat BIGINT NOT NULL,
    number BIGINT NOT NULL,
    signed_sat BIGINT NOT NULL,
    accepted_sat BIGINT NOT NULL,
    final_sat BIGINT,
    agreed_sat BIGINT,
    due_sat BIGINT,
    status TEXT NOT NULL,
    mined_txid VARCHAR(64),
    mined_sat BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    closed_at BIGINT,
    PRIMARY KEY (session_id),
    CONSTRAINT cable_aggregates_status
        CHECK (status IN ('open', 'ended', 'settled', 'unanswered', 'cheated', 'void'))
);
CREATE INDEX ix_cable_aggregates_node_id ON cable_aggregates (node_id);
CREATE INDEX ix_cable_aggregates_status ON cable_aggregates (status);
"""
"""SQLite and PostgreSQL mean the same by them."""


def add_onchain_tables(connection: Connection) -> None:
    """Within the caller's unit of work. What there is stays as it is."""
    for statement in _STATEMENTS.split(";"):
        if statement.strip():
            connection.exec_driver_sql(statement)
