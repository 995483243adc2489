"""Where transactions of the past come from, and how they go through the profiles."""
