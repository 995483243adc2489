"""Dead letters: what was rejected, a way back to where it came from, and a record of what went back.

`python -m dataflow.dead_letters` is the command.
"""
