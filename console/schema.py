"""The tables of the console's database, in the words of SQLite; `postgres_sql` says them in those of PostgreSQL.

The full-text search over alerts is each database's own, and stands beside it.
"""

from typing import Final

VERSION: Final = 3
"""Of the schema; a database of another version is refused, unless it can be changed to this one (`upgrade`)."""
OLDEST_VERSION: Final = 1
"""That can be changed."""

SEARCHED: Final = (
    "transaction_id", "user", "merchant", "device", "ip", "location", "txn_type", "scenario", "reasons", "why",
)  # fmt: skip
"""Columns of an alert whose words the search finds; of card numbers what `masked` leaves, since version 3."""

ALERT_RULES: Final = """
-- By rule its cases, and in each its alerts: whether a case has one is asked of one place.
CREATE TABLE alert_rules (
    rule TEXT, case_number INTEGER, number INTEGER, PRIMARY KEY (rule, case_number, number)
) WITHOUT ROWID;
"""
"""As of version 3."""

BY_MERCHANT: Final = "CREATE INDEX alerts_by_merchant ON alerts (merchant, number, case_number);"
"""As of version 3."""

FOR_FILTERS: Final = """
-- For the queue's filters: by each of these its alerts, and their cases, are found without a look at the alerts.
CREATE INDEX alerts_by_scenario ON alerts (scenario, number, case_number);
CREATE INDEX alerts_by_action ON alerts (action, number, case_number);
CREATE INDEX alerts_by_amount ON alerts (amount, case_number);
CREATE INDEX alerts_by_score ON alerts (score, case_number);
CREATE INDEX cases_of_analyst ON cases (analyst, last_alert) WHERE live AND analyst IS NOT NULL;
CREATE INDEX cases_newest_past ON cases (state, last_alert) WHERE NOT live;
CREATE INDEX cases_riskiest_past ON cases (state, score, amount, last_alert) WHERE NOT live;
"""
"""Of version 2."""

SCHEMA: Final = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- Where reading goes on, by topic; `identity` tells a topic from another of its name that was made later.
CREATE TABLE offsets (
    topic TEXT, partition INTEGER, identity TEXT NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID;

CREATE TABLE cases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL,
    state TEXT NOT NULL,             -- open, taken, closed, suppressed
    live BOOLEAN NOT NULL,           -- while it is open or taken
    analyst TEXT,                    -- who has taken it, or closed it
    opened REAL NOT NULL,            -- s since 1970, by the console's clock; so are the other times but `at`
    last REAL NOT NULL,              -- when its newest alert came
    last_alert INTEGER NOT NULL,
    top_alert INTEGER NOT NULL,      -- the one of the highest score
    score REAL NOT NULL,             -- the highest
    action TEXT NOT NULL,            -- the strictest
    amount REAL NOT NULL,            -- of all its alerts
    alerts INTEGER NOT NULL,
    suppressed INTEGER NOT NULL,     -- how many of them were
    closed REAL,
    outcome TEXT                     -- of a closed case: fraud, genuine, unsure
);
CREATE INDEX cases_by_user ON cases (user, number);
CREATE INDEX cases_newest ON cases (last_alert) WHERE live;
CREATE INDEX cases_riskiest ON cases (score, amount, last_alert) WHERE live;

CREATE TABLE alerts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order in which they came
    case_number INTEGER NOT NULL,
    identity TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    arrived REAL NOT NULL,
    decided REAL NOT NULL,           -- the record's Kafka timestamp
    at REAL NOT NULL,                -- event time
    transaction_id TEXT NOT NULL, user TEXT NOT NULL, merchant TEXT NOT NULL, device TEXT NOT NULL,
    ip TEXT NOT NULL, location TEXT NOT NULL, txn_type TEXT NOT NULL, scenario TEXT NOT NULL,
    amount REAL NOT NULL, score REAL NOT NULL, action TEXT NOT NULL,
    rules TEXT NOT NULL,             -- ids, each between two blanks: " high_amount ml_anomaly "
    reasons TEXT NOT NULL,           -- of the rules, one a line
    why TEXT NOT NULL,               -- the strongest of the explanation, one a line
    suppressed BOOLEAN NOT NULL,
    label TEXT, labelled_at REAL, labelled_by TEXT,
    raw BLOB NOT NULL,               -- the record's value
    UNIQUE (identity, partition, offset)
);
CREATE INDEX alerts_of_case ON alerts (case_number, number);
CREATE INDEX alerts_by_transaction ON alerts (transaction_id);
CREATE INDEX alerts_by_user ON alerts (user, number);
CREATE INDEX alerts_by_device ON alerts (device, number);
{BY_MERCHANT}
CREATE INDEX alerts_by_ip ON alerts (ip, number) WHERE ip <> '';
{ALERT_RULES}{FOR_FILTERS}
-- Labels of transactions of which no alert has come (yet).
CREATE TABLE early_labels (
    number INTEGER PRIMARY KEY, transaction_id TEXT NOT NULL UNIQUE, user TEXT NOT NULL, label TEXT NOT NULL,
    labelled_at REAL NOT NULL
);

CREATE TABLE suppressions (
    kind TEXT, name TEXT, until REAL NOT NULL, analyst TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;

-- Messages for the feedback topic. `confirmed`: read back from it.
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, value BLOB NOT NULL, written REAL NOT NULL,
    confirmed REAL
);
CREATE INDEX outbox_unconfirmed ON outbox (number) WHERE confirmed IS NULL;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    case_number INTEGER, alert INTEGER, detail TEXT NOT NULL
);
CREATE INDEX audit_of_case ON audit (case_number, number);

-- Counts by minute of arrival (s since 1970 / 60), and minute 0 of all time.
CREATE TABLE figures (
    minute INTEGER, kind TEXT, name TEXT, count INTEGER NOT NULL, money REAL NOT NULL,
    PRIMARY KEY (minute, kind, name)
) WITHOUT ROWID;
"""

ADDED: Final = """
-- Of the rules file, see rules/versions.py; `in_place`: the file was seen to hold it.
CREATE TABLE IF NOT EXISTS rule_versions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    reason TEXT NOT NULL, digest TEXT NOT NULL, content BLOB NOT NULL, copy TEXT, base INTEGER,
    in_place BOOLEAN NOT NULL
);
CREATE TABLE IF NOT EXISTS rule_drafts (
    analyst TEXT PRIMARY KEY, text TEXT NOT NULL, base TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
"""
"""Tables that a database of this version may lack, as an earlier release made it."""


def rule_ids(rules: str) -> list[str]:
    """The ids in an alert's column `rules`, each once."""
    return [rule for rule in dict.fromkeys(rules.split(" ")) if rule]
