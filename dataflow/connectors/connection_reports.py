"""What librdkafka reports of its connections, told apart: what waiting may mend, and what only a setting can."""

import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dataflow.settings import Settings

# A broker that stops or starts can look like a wrong setting for a moment; one that does so for longer is one.
MISTAKE_SECONDS = 2.0

_INFO = 6  # librdkafka's level at which a broker that closes a connection is reported; it is no error to its callback
_SHOWN_FROM = (50, 50, 50, 40, 30, 20, 20, 10)  # librdkafka's levels 0 to 7 as Python's
_FAILURE = re.compile(
    r"(?:\[thrd:.*?\]: )?(?:\w+://)?(?P<broker>\S+)/(?:bootstrap|\d+): "
    r"(?P<text>.*) \(after \d+ms in state (?P<state>\w+)",
    re.DOTALL,
)
_MECHANISMS = re.compile(r"SASL (\S+) mechanism handshake failed.*supported mechanisms:\s*(\S*)")


class Problem(NamedTuple):
    """What is wrong between us and one broker."""

    what: str  # goes on from "the broker at <address>"; free of secrets
    see: str = ""  # the settings to look at; "" where waiting may mend it

    def __str__(self) -> str:
        """What is wrong, and where to look."""
        return f"{self.what}: see {self.see}" if self.see else self.what


class ConnectionReports:
    """Listens to one client, and knows what is wrong with its connections.

    The client gets `options`; its `poll()` serves what it reports. What the user asked to see of librdkafka's log
    (`KAFKA_CONFIG_LOG_LEVEL`, `KAFKA_CONFIG_DEBUG`) goes on to standard error as from any other client.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic):
        config = settings.kafka_config
        self._clock = clock
        self._protocol = config.get("security.protocol", "plaintext").upper()
        self._ca = config.get("ssl.ca.location")
        asked = 7 if config.get("debug") else _level(config)
        self._shown_from = _SHOWN_FROM[asked]
        self._problems: dict[str, tuple[Problem, float]] = {}  # broker: what is wrong, since when
        self._ever_answered = False
        self.options: dict[str, Any] = {"logger": self, "log_level": max(_INFO, asked)}

    def log(self, level: int, _form: str, facility: str, client: str, text: str) -> None:
        """What librdkafka would have written to standard error; a `logging.Logger` is what the client expects here."""
        if level >= self._shown_from:
            print(f"{facility} [{client}] {text}", file=sys.stderr, flush=True)
        if facility == "FAIL" and (failure := _FAILURE.match(text)):
            broker, problem = failure["broker"], self._problem(failure["text"], failure["state"])
            known, since = self._problems.get(broker, (None, 0.0))
            goes_on = known is not None and (problem == known or (problem.see and known.see))
            self._problems[broker] = problem, since if goes_on else self._clock()

    def answered(self) -> None:
        """A broker has answered: whatever was reported is over."""
        self._ever_answered = True
        self._problems.clear()

    def lasting_mistake(self) -> str | None:
        """One line on what only a setting can mend, once it has been so for `MISTAKE_SECONDS` without an answer."""
        for broker, (problem, since) in self._problems.items():
            if problem.see and self._clock() - since >= MISTAKE_SECONDS:
                return f"the broker at {broker} {problem}"
        return None

    def suspects_a_mistake(self) -> bool:
        """Whether what was reported last, of any broker, is what only a setting can mend, for however short a time."""
        return any(problem.see for problem, _ in self._problems.values())

    def reason(self) -> str | None:
        """Why no broker answers, as far as it is known: rather what a setting can mend than what may pass."""
        problems = sorted((problem for problem, _ in self._problems.values()), key=lambda each: not each.see)
        return str(problems[0]) if problems else None

    def _problem(self, text: str, state: str) -> Problem:
        """Tells apart what librdkafka says, and the state in which the connection then was."""
        protocol = f"KAFKA_CONFIG_SECURITY_PROTOCOL (it is {self._protocol})"
        port = f"{protocol} and the port in KAFKA_BROKERS"
        if state.startswith("AUTH"):
            if mechanisms := _MECHANISMS.search(text):
                mine, takes = mechanisms.groups()
                if not takes:
                    return Problem("does not take SASL at this port", port)
                return Problem(f"takes {takes}, not {mine}", "KAFKA_CONFIG_SASL_MECHANISM")
            user = "KAFKA_CONFIG_SASL_USERNAME, KAFKA_CONFIG_SASL_PASSWORD and KAFKA_CONFIG_SASL_MECHANISM"
            return Problem(f"refuses this user or password ({text.removeprefix('SASL authentication error: ')})", user)
        if state == "SSL_HANDSHAKE":
            if "certificate verify failed" in text:
                trusted = f"it is {self._ca}" if self._ca else "unset: the authorities of the system are trusted"
                return Problem(
                    "shows a certificate that cannot be verified",
                    f"KAFKA_CONFIG_SSL_CA_LOCATION ({trusted}), and whether it is issued to the name in KAFKA_BROKERS",
                )
            if "Disconnected" in text or "wrong version number" in text:
                return Problem("does not speak TLS at this port", port)
        if "SSL routines" in text:
            # It is the client that speaks first: what the broker thinks of its certificate comes after the handshake.
            if "certificate" in text:
                mine = "KAFKA_CONFIG_SSL_CERTIFICATE_LOCATION and KAFKA_CONFIG_SSL_KEY_LOCATION"
                return Problem(f"wants a certificate of the client ({text})", mine)
            return Problem(f"does not agree on TLS ({text})", "KAFKA_CONFIG_SSL_*")
        if "Failed to resolve" in text and "Temporary failure" not in text:
            return Problem("has a name that is not known", "KAFKA_BROKERS")
        # Who is writing when the broker closes hears of a broken pipe, or of a reset, rather than of a disconnection.
        if "Disconnected" in text or "Broken pipe" in text or "Connection reset" in text:
            # A broker with TLS closes at the first bytes that are none; one that wants SASL, at the first real request.
            if state == "APIVERSION_QUERY" and "SSL" not in self._protocol:
                return Problem("closes the connection at once, as if it expected TLS", port)
            if state == "UP" and "SASL" not in self._protocol and not self._ever_answered:
                return Problem(
                    "closes the connection at the first request, as if it expected a user and a password",
                    f"{protocol}, KAFKA_CONFIG_SASL_MECHANISM, KAFKA_CONFIG_SASL_USERNAME, KAFKA_CONFIG_SASL_PASSWORD",
                )
            return Problem("closed the connection")
        return Problem(text)


def _level(config: dict[str, str]) -> int:
    """The `log_level` that the user asked for; 0 without one, or where librdkafka will say what is wrong with it."""
    text = config.get("log_level", "0")
    return min(int(text), 7) if text.isdecimal() else 0
