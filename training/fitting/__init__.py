"""From a history to a fitted model."""
