"""What PostgreSQL's tables have beside those of `schema`, which are in the words of SQLite."""

from typing import Final

COVERING: Final = """
-- What filters ask of a case's alerts stands in the index: the alerts themselves lie on as many pages as a case has
-- alerts, and of 10,000 cases each of these may have to come from the disk.
-- Of a text only what an index takes: merchant and scenario have 256 characters at most.
DROP INDEX alerts_of_case;
CREATE INDEX alerts_of_case ON alerts (case_number, number) INCLUDE (amount, score, action, scenario, merchant);
-- An index alone answers for pages that a vacuum has seen; by default it comes once a fifth of the table is new.
ALTER TABLE alerts SET (autovacuum_vacuum_insert_scale_factor = 0.02);
ALTER TABLE alert_rules SET (autovacuum_vacuum_insert_scale_factor = 0.02);
"""
"""Of version 3."""

OWN: Final = f"""
-- The number of the last alert that ever came.
CREATE TABLE alert_numbers (last BIGINT NOT NULL);
INSERT INTO alert_numbers VALUES (0);

CREATE TABLE alert_text (number BIGINT PRIMARY KEY REFERENCES alerts ON DELETE CASCADE, words TSVECTOR NOT NULL);
CREATE INDEX alert_words ON alert_text USING gin (words);

-- Most have no rule in shadow, and need not be parsed; what PostgreSQL cannot parse counts as without.
CREATE FUNCTION shadow_rules_of(raw BYTEA) RETURNS TEXT LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF position('"shadow_rules":[]'::bytea IN raw) > 0 THEN RETURN NULL; END IF;
    RETURN convert_from(raw, 'UTF8')::json -> 'shadow_rules';
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
{COVERING}
"""
