"""Chaos: the detection flow, killed in every way we know, against an uninterrupted run of the same messages."""
