"""A page of the console's queue that is open, without a browser: what the console does for one, it does for this.

It asks for the page, opens its socket and shakes hands as NiceGUI's script does, answers pings, acknowledges what came
every three seconds, and counts the rows it is sent. What a browser takes to draw them is not among what it takes: that
is another machine's.
"""

import http.client
import json
import re
import threading
import time
import uuid
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ACKNOWLEDGE_SECONDS: Final = 3.0
SECONDS: Final = 30.0
# Engine.IO's and Socket.IO's packets, by how they begin: https://socket.io/docs/v4/socket-io-protocol.
OPEN, PING, PONG, CONNECT, EVENT = "0", "2", "3", "40", "42"
_QUERY = re.compile(r"""\bquery: \{.*?client_id['"]: ['"]([\w-]+)['"].*?next_message_id['"]: (\d+)""")
_NUMBER = re.compile(r'"_id":(\d+)\}\]$')
_ROWS = "applyTransaction"
_ROW = re.compile(r'"order":')


def names_of(page: str) -> tuple[str, int]:
    """What a page's script calls the page as it opens the socket, and the number of the first message it awaits.

    Raises:
        RuntimeError: the page does not say so.
    """
    found = _QUERY.search(page)
    if found is None:
        msg = "the console's page does not tell how its socket is opened: this NiceGUI does so otherwise"
        raise RuntimeError(msg)
    return found[1], int(found[2])


def rows_of(packet: str) -> int:
    """How many rows of the queue a packet adds or changes."""
    return len(_ROW.findall(packet.replace('\\"', '"'))) if _ROWS in packet else 0


class QueueWatcher:
    """The queue of a console, looked at for as long as the `with` lasts."""

    def __init__(self, url: str):
        """`url`: of a console that asks for no password."""
        self.rows = 0
        """Rows that were added or changed so far."""
        self._address = urlsplit(url).netloc
        self._open = ExitStack()
        self._failed: Exception | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._read, name="queue-watcher", daemon=True)

    def __enter__(self) -> Self:
        page, cookie = self._page()
        self._client, self._next = names_of(page)
        values = urlencode(
            {
                "client_id": self._client, "next_message_id": self._next, "implicit_handshake": "true",
                "tab_id": uuid.uuid4(), "document_id": uuid.uuid4(), "EIO": 4, "transport": "websocket",
            }
        )  # fmt: skip
        with ExitStack() as opening:
            self._socket = opening.enter_context(
                connect(
                    f"ws://{self._address}/_nicegui_ws/socket.io/?{values}",
                    additional_headers={"Origin": f"http://{self._address}", "Cookie": cookie}, max_size=None,
                )
            )  # fmt: skip
            self._expect(OPEN)
            self._socket.send(CONNECT)
            self._expect(CONNECT)
            self._thread.start()
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, found: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._ending = True
        self._open.close()
        self._thread.join(SECONDS)
        if self._failed is not None and found is None:
            msg = f"the console ended the socket of its queue: {self._failed}"
            raise RuntimeError(msg) from self._failed

    def _page(self) -> tuple[str, str]:
        connection = http.client.HTTPConnection(self._address, timeout=SECONDS)
        connection.request("GET", "/", headers={"Accept": "text/html"})
        answer = connection.getresponse()
        page, cookie = answer.read().decode(), (answer.headers["Set-Cookie"] or "").partition(";")[0]
        connection.close()
        return page, cookie

    def _expect(self, packet: str) -> None:
        came = str(self._socket.recv(SECONDS))
        if not came.startswith(packet):
            msg = f"the console's socket answers {came[:200]!r}"
            raise RuntimeError(msg)

    def _read(self) -> None:
        due = time.monotonic() + ACKNOWLEDGE_SECONDS
        try:
            for packet in self._socket:
                text = str(packet)
                if text == PING:
                    self._socket.send(PONG)
                elif text.startswith(EVENT):
                    self.rows += rows_of(text)
                    if found := _NUMBER.search(text):
                        self._next = int(found[1]) + 1
                if time.monotonic() > due:
                    due = time.monotonic() + ACKNOWLEDGE_SECONDS
                    said = ["ack", {"client_id": self._client, "next_message_id": self._next}]
                    self._socket.send(EVENT + json.dumps(said))
        except ConnectionClosed as error:
            self._failed = None if self._ending else error
            return
        if not self._ending:
            self._failed = RuntimeError("it was closed")
