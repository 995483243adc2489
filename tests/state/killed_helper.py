"""The helper, which at a point kills itself, or the flow first, or hangs: DIRECTORY POINT all|helper|hang TIMES."""

import os
import signal
import sys
import time
from pathlib import Path

from dataflow.state import crash_points
from dataflow.state.compaction import serve
from dataflow.state.crash_points import Point


def main(directory: str, point: str, whole: str, times: str) -> None:
    left = int(times)

    def passed(reached: Point) -> None:
        nonlocal left
        if reached == int(point):
            left -= 1
            if left == 0:
                if whole == "hang":
                    time.sleep(1000)
                if whole == "all":
                    os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    crash_points.hook = passed
    serve(Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
