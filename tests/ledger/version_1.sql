-- A ledger as schema version 1 had it, for SQLite and PostgreSQL: {row_number}, {one} and {bytes} stand for what
-- they call differently. Never changed: such databases exist.
CREATE TABLE cable_sessions (
    token VARCHAR(64) NOT NULL,
    address TEXT NOT NULL,
    node_id VARCHAR(66) NOT NULL,
    outlet_id TEXT NOT NULL,
    tariff_id TEXT NOT NULL,
    energy_msat_per_kwh BIGINT NOT NULL,
    time_msat_per_hour BIGINT NOT NULL,
    session_fee_msat BIGINT NOT NULL,
    rated_power_mw BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    session_id TEXT,
    opened_at BIGINT,
    base_uwh BIGINT NOT NULL,
    extra_uwh BIGINT NOT NULL,
    energy_uwh BIGINT NOT NULL,
    saved_at BIGINT NOT NULL,
    stop_reason TEXT NOT NULL,
    closed_at BIGINT,
    receipt {bytes} NOT NULL,
    receipt_signature TEXT NOT NULL,
    PRIMARY KEY (token)
);
CREATE INDEX ix_cable_sessions_session_id ON cable_sessions (session_id);
CREATE TABLE events (
    number {row_number} NOT NULL,
    at BIGINT NOT NULL,
    session_id TEXT,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (number)
);
CREATE INDEX ix_events_session_id ON events (session_id);
CREATE TABLE intents (
    payment_hash VARCHAR(64) NOT NULL,
    preimage VARCHAR(64) NOT NULL,
    purpose TEXT NOT NULL,
    session_id TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    destination VARCHAR(66) NOT NULL,
    amount_msat BIGINT NOT NULL,
    maxfee_msat BIGINT NOT NULL,
    record TEXT NOT NULL,
    label TEXT NOT NULL,
    status TEXT NOT NULL,
    amount_sent_msat BIGINT NOT NULL,
    failure TEXT,
    created_at BIGINT NOT NULL,
    resolved_at BIGINT,
    PRIMARY KEY (payment_hash),
    CONSTRAINT intents_status CHECK (status IN ('pending', 'complete', 'failed'))
);
CREATE INDEX intents_by_session ON intents (session_id);
CREATE INDEX intents_by_status ON intents (status, created_at);
CREATE UNIQUE INDEX intents_pay_once ON intents (purpose, session_id, sequence) WHERE status <> 'failed';
CREATE TABLE journal_cursor (
    id {one} NOT NULL CONSTRAINT journal_cursor_is_one CHECK (id = 1),
    updated_index BIGINT NOT NULL,
    pay_index BIGINT NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE payments (
    payment_hash VARCHAR(64) NOT NULL,
    kind TEXT NOT NULL,
    session_id TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    amount_msat BIGINT NOT NULL,
    pay_index BIGINT NOT NULL,
    updated_index BIGINT NOT NULL,
    paid_at BIGINT NOT NULL,
    PRIMARY KEY (payment_hash),
    CONSTRAINT payments_kind CHECK (kind IN ('credit', 'orphan')),
    CONSTRAINT payments_amount CHECK (amount_msat > 0)
);
CREATE INDEX payments_by_session ON payments (session_id, kind);
CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE sessions (
    session_id VARCHAR(26) NOT NULL,
    outlet_id TEXT NOT NULL,
    method TEXT NOT NULL,
    state TEXT NOT NULL,
    stop_reason TEXT,
    tariff_id TEXT NOT NULL,
    energy_msat_per_kwh BIGINT NOT NULL,
    time_msat_per_hour BIGINT NOT NULL,
    session_fee_msat BIGINT NOT NULL,
    rated_power_mw BIGINT NOT NULL,
    meter_interval_ms BIGINT NOT NULL,
    pause_max_s BIGINT NOT NULL,
    open_timeout_s BIGINT NOT NULL,
    cable_lost_s BIGINT NOT NULL,
    credit_cap_msat BIGINT NOT NULL,
    min_refund_msat BIGINT NOT NULL,
    charged_msat BIGINT NOT NULL,
    refunded_msat BIGINT NOT NULL,
    energy_uwh BIGINT NOT NULL,
    delivered_ms BIGINT NOT NULL,
    started BOOLEAN NOT NULL,
    refund_status TEXT NOT NULL,
    refund_budget_msat BIGINT NOT NULL,
    refund_fee_msat BIGINT NOT NULL,
    token_sha256 VARCHAR(64) NOT NULL,
    cable_node_id TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT,
    meter_base_uwh BIGINT NOT NULL,
    chip_uwh BIGINT NOT NULL,
    statement_sequence BIGINT NOT NULL,
    PRIMARY KEY (session_id),
    UNIQUE (token_sha256)
);
CREATE INDEX ix_sessions_opened_at ON sessions (opened_at);
CREATE INDEX ix_sessions_state ON sessions (state);
CREATE TABLE tariffs (
    number {row_number} NOT NULL,
    tariff_id TEXT NOT NULL,
    energy_msat_per_kwh BIGINT NOT NULL,
    time_msat_per_hour BIGINT NOT NULL,
    session_fee_msat BIGINT NOT NULL,
    effective_at BIGINT NOT NULL,
    PRIMARY KEY (number)
);
CREATE TABLE receipts (
    number {row_number} NOT NULL,
    session_id VARCHAR(26) NOT NULL,
    receipt {bytes} NOT NULL,
    signature TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (number),
    FOREIGN KEY(session_id) REFERENCES sessions (session_id)
);
CREATE INDEX ix_receipts_session_id ON receipts (session_id);
CREATE TABLE statements (
    session_id VARCHAR(26) NOT NULL,
    sequence BIGINT NOT NULL,
    at BIGINT NOT NULL,
    statement {bytes} NOT NULL,
    PRIMARY KEY (session_id, sequence),
    FOREIGN KEY(session_id) REFERENCES sessions (session_id)
);
INSERT INTO schema_version VALUES (1);
-- Delivering; open; closed with a refund owed; closed and given back.
INSERT INTO sessions VALUES ('00000000000000000000000001', 'A1', 'keysend', 'delivering', NULL, 'c212d5f2a9488cb1', 300000, 1000, 10,
    1000000, 100, 30, 20, 10, 100000, 1000, 4321, 0, 14000000, 52000, TRUE, 'none', 0, 0,
    '0000000000000000000000000000000000000000000000000000000000000001',
    '02abababababababababababababababababababababababababababababababab', 1001, NULL, -5, 13999995, 12);
INSERT INTO sessions VALUES ('00000000000000000000000002', 'A2', 'keysend', 'open', NULL, 'c212d5f2a9488cb1', 300000, 1000, 10,
    1000000, 100, 30, 20, 10, 100000, 1000, 0, 0, 0, 0, FALSE, 'none', 0, 0,
    '0000000000000000000000000000000000000000000000000000000000000002',
    '', 1002, NULL, 0, 0, 1);
INSERT INTO sessions VALUES ('00000000000000000000000003', 'A1', 'keysend', 'closed', 'cable_closed', 'c212d5f2a9488cb1', 300000, 1000, 10,
    1000000, 100, 30, 20, 10, 100000, 1000, 700, 0, 2300000, 900, TRUE, 'owed', 4300, 0,
    '0000000000000000000000000000000000000000000000000000000000000003',
    '02abababababababababababababababababababababababababababababababab', 900, 950, 0, 2300000, 7);
INSERT INTO sessions VALUES ('00000000000000000000000004', 'A1', 'keysend', 'closed', 'cable_lost', 'c212d5f2a9488cb1', 300000, 1000, 10,
    1000000, 100, 30, 20, 10, 100000, 1000, 3, 1990, 7000, 40, TRUE, 'sent', 1997, 7,
    '0000000000000000000000000000000000000000000000000000000000000004',
    '02abababababababababababababababababababababababababababababababab', 800, 850, 0, 7000, 3);
INSERT INTO payments VALUES ('1111111111111111111111111111111111111111111111111111111111111111',
    'credit', '00000000000000000000000001', 1, 5000, 11, 21, 1003);
INSERT INTO payments VALUES ('2222222222222222222222222222222222222222222222222222222222222222',
    'credit', '00000000000000000000000001', 2, 2500, 12, 23, 1004);
INSERT INTO payments VALUES ('3333333333333333333333333333333333333333333333333333333333333333',
    'credit', '00000000000000000000000003', 1, 5000, 8, 15, 901);
INSERT INTO payments VALUES ('4444444444444444444444444444444444444444444444444444444444444444',
    'credit', '00000000000000000000000004', 1, 2000, 7, 13, 801);
INSERT INTO payments VALUES ('5555555555555555555555555555555555555555555555555555555555555555',
    'orphan', '00000000000000000000000004', 2, 777, 9, 17, 951);
INSERT INTO journal_cursor VALUES (1, 23, 12);
INSERT INTO tariffs (tariff_id, energy_msat_per_kwh, time_msat_per_hour, session_fee_msat, effective_at)
    VALUES ('c212d5f2a9488cb1', 300000, 1000, 10, 700);
INSERT INTO statements VALUES ('00000000000000000000000001', 12, 1055, CAST('a statement' AS {bytes}));
INSERT INTO receipts (session_id, receipt, signature, at)
    VALUES ('00000000000000000000000003', CAST('a receipt' AS {bytes}), 'zbase32', 951);
INSERT INTO receipts (session_id, receipt, signature, at)
    VALUES ('00000000000000000000000004', CAST('another' AS {bytes}), 'zbase32', 851);
INSERT INTO events (at, session_id, kind, detail)
    VALUES (1001, '00000000000000000000000001', 'opened', '{"outlet_id": "A1"}');
-- The refund that was sent, one whose fate is not known, and an increment that failed.
INSERT INTO intents VALUES ('e0e8cc45061075e88ff143ddd3a001ae1ba3e3a2e3d790e28aec626201c273a7',
    'f4edc318ad067a686176d19c92b558d716ae6b151317419efd9e3471943381f7', 'refund', '00000000000000000000000004',
    0, '02abababababababababababababababababababababababababababababababab', 1990, 7, 'a record',
    'a label', 'complete', 1997, NULL, 851, 852);
INSERT INTO intents VALUES ('53bfb4d81de4015f66b36cc49fdf88a2a95338a69b8a4874ce54c1a8379d2fff',
    '0c9e537d31ac63a4f3c09543688b333e7e3ebd85a34bb8229d77e94c63d5ced1', 'refund', '00000000000000000000000003',
    0, '02abababababababababababababababababababababababababababababababab', 4290, 10, 'a record',
    'a label', 'pending', 0, NULL, 951, NULL);
INSERT INTO intents VALUES ('e0cc511a2f955c31b907955ab51af41ecefa911a3f9b6e7cfeffcafa6e794c0e',
    '78198d286665515b4ae806318a9f317bb1fade5665643c3e259cc9ada3b0c686', 'increment', '00000000000000000000000001',
    3, '02abababababababababababababababababababababababababababababababab', 1000, 50, 'a record',
    'a label', 'failed', 0, 'no route', 1005, 1006);
INSERT INTO cable_sessions VALUES ('abababababababababababababababababababababababababababababababab',
    '127.0.0.1:9750', '02abababababababababababababababababababababababababababababababab', 'A1',
    'c212d5f2a9488cb1', 300000, 1000, 10, 1000000, 1000, '00000000000000000000000001', 1001, 5, 6, 13900000, 1054, '', NULL,
    CAST('' AS {bytes}), '');
