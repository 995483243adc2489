"""A ruleset or model against what happened."""
