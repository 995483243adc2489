"""What comes in and goes out: transactions, labels, decisions, records."""
