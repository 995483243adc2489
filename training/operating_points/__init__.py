"""Where a model raises an alert: which thresholds promise what."""
