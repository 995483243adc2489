"""A console without pages, in a process of its own, which kills itself at a named point of the sender."""

import os
import signal
import sys
import time

from console.feedback_sender import FeedbackSender
from console.reader import Reader
from console.store import Store
from dataflow.settings import Settings


def main() -> None:
    """Usage: killed_console DATABASE POINT; runs until it is killed, there or from outside."""
    path, point = sys.argv[1:]

    def kill_there(where: str) -> None:
        if where == point:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(path)
    reader = Reader(Settings.load(), store)
    sender = FeedbackSender(Settings.load(), store, reader, kill_there)
    reader.start()
    sender.start()
    print("ready", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
