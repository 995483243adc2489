"""How this process was started by `bytewax.run`: its place in the cluster, its recovery directory, its epochs."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

DEFAULT_EPOCH_SECONDS = 10.0
"""What `bytewax.run` takes where no interval is given."""


class Execution(NamedTuple):
    """The options of `bytewax.run` that the flow itself needs to know."""

    directory: Path | None  # of the recovery data; None: nothing is recovered
    process: int
    processes: int
    workers: int  # of each process
    epoch_seconds: float  # between two snapshots
    addresses: str = ""  # of all processes of the cluster, as they were given

    @classmethod
    def read(cls, argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> "Execution":
        """Reads the command line of this process, and the variables that stand in for its options."""
        options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        options.add_argument("-r", "--recovery-directory", default=environ.get("BYTEWAX_RECOVERY_DIRECTORY"))
        options.add_argument("-s", "--snapshot-interval", default=environ.get("BYTEWAX_SNAPSHOT_INTERVAL"))
        options.add_argument("-w", "--workers-per-process", default=environ.get("BYTEWAX_WORKERS_PER_PROCESS"))
        options.add_argument("-i", "--process-id", default=environ.get("BYTEWAX_PROCESS_ID"))
        options.add_argument("-a", "--addresses", default=environ.get("BYTEWAX_ADDRESSES"))
        given, _ = options.parse_known_args(sys.argv[1:] if argv is None else argv)
        return cls(
            Path(given.recovery_directory) if given.recovery_directory else None,
            int(given.process_id or 0),
            len(given.addresses.split(";")) if given.addresses else 1,
            int(given.workers_per_process or 1),
            float(given.snapshot_interval or DEFAULT_EPOCH_SECONDS),
            given.addresses or "",
        )

    @property
    def alone(self) -> bool:
        """Whether one worker does everything."""
        return self.processes * self.workers == 1
