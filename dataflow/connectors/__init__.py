"""What the flows read from and write to: Kafka, with delivery that is checked and decisions that stand once."""
