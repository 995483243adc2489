"""A program that starts another and waits for it, as a backtest does: the other's number goes to the first argument."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part = Path(f"{sys.argv[1]}.part")
    part.write_text(str(other.pid))
    part.rename(sys.argv[1])
    other.wait()
