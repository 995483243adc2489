"""What `python -m dataflow.detect` does before the flow: makes the recovery directory, and goes on as `bytewax.run`.

It imports next to nothing, as the flow, in the same process, begins anew: neither Bytewax, nor Numba, nor a client.
"""

import os
import sys

from dataflow.errors import UserError
from dataflow.process import lifecycle
from dataflow.settings import Settings
from dataflow.state import recovery

ACCEPT_GAP = "REDFLAG_ACCEPT_GAP"
"""Says to the flow that --accept-gap was given: `bytewax.run` takes no options but its own."""
ACCEPT_GAP_OPTION = "--accept-gap"


def main() -> None:
    """Runs the flow with recovery on; further options are those of `bytewax.run`, such as -w, -i and -a.

    With `--accept-gap` it goes on where records are gone that were not read yet, or a topic was made anew.
    """
    lifecycle.report_mistakes()
    arguments = sys.argv[1:]
    if ACCEPT_GAP_OPTION in arguments:
        arguments = [each for each in arguments if each != ACCEPT_GAP_OPTION]
        os.environ[ACCEPT_GAP] = "1"
    try:
        settings = Settings.load()
        recovery.prepare(settings.recovery_dir, settings.recovery_partitions)
    except UserError as error:
        lifecycle.fail(error)
    # The same process goes on as bytewax.run, so that signals and exit status are the flow's own.
    options = ["-r", str(settings.recovery_dir), "-s", str(settings.recovery_interval), "-b", "0", *arguments]
    os.execv(sys.executable, [sys.executable, "-m", "bytewax.run", "dataflow.detect:flow", *options])  # noqa: S606
