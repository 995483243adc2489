"""The model at serving: its metadata, its trees, its tiers, where it raises an alert."""
