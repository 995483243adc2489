"""What is known of a transaction: the catalogue of its features, and batches of them by column."""
