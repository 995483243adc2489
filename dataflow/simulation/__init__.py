"""A simulated world: people, purchases, frauds."""
