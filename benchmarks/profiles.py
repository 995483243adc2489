"""What users' profiles cost: bytes of each, µs of a transaction, and how much longer a start takes with Numba.

`python -m benchmarks.profiles --users 1000000`

Times are of the CPU. Bytes are what the process grew by, keys included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflow.kernels import warm_up
from dataflow.profiles.profiles import UserProfiles
from dataflow.profiles.user import EVENT
from tests.support.builders import HOUR, NOON

PAGE = 4096
START = """import time
import dataflow.scoring.loading, sklearn.ensemble, dataflow.events.feedback  # what the flow loads anyway
begin = time.process_time()
from dataflow.kernels import warm_up
warm_up()
print(time.process_time() - begin)
"""


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def transactions(rows: NDArray[np.int32], at: float, random: np.random.Generator) -> NDArray[Any]:
    """One of each of these users."""
    events = np.zeros(len(rows), EVENT)
    events["row"], events["at"], events["amount"] = rows, at, random.lognormal(3, 1, len(rows))
    events["latitude"] = events["longitude"] = 50.0
    events["id"] = events["word"] = random.integers(0, 2**62, len(rows))
    events["merchant"], events["location"] = random.integers(1, 50, len(rows)), 1
    return events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=500)
    options = parser.parse_args()
    started = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    warm_up()
    random, profiles, before = np.random.default_rng(0), UserProfiles(), resident()
    for begin in range(0, options.users, 10_000):
        keys = [f"user-{number}" for number in range(begin, min(begin + 10_000, options.users))]
        profiles.observe(transactions(profiles.table.rows_of(keys).astype(np.int32), NOON, random))
    said = {"users": options.users, "start_s": round(float(started.stdout), 2),
            "bytes_a_user": round((resident() - before) / options.users)}  # fmt: skip
    for among in (10_000, options.users):
        batches = [
            transactions(random.integers(0, among, options.batch).astype(np.int32), NOON + HOUR * number, random)
            for number in range(400)
        ]
        begin_time = time.process_time()
        for events in batches:
            profiles.observe(events)
        spent = (time.process_time() - begin_time) / 400 / options.batch
        said[f"us_a_transaction_among_{among}"] = round(spent * 1e6, 2)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
