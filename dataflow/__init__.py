"""Redflag: real-time fraud detection on Kafka, as a Bytewax dataflow."""

import sys

# Bytewax 0.21.1 has wheels for Python 3.8 to 3.12; scikit-learn 1.9 and tomllib set the lower end.
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(
        f"redflag: Python {sys.version_info[0]}.{sys.version_info[1]} is not supported: "
        "Bytewax 0.21.1 and the pinned packages need 3.11 or 3.12; make a virtual environment with one of these"
    )
