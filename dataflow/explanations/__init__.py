"""Why a decision is an alert."""
