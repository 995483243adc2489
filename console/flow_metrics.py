"""What the flow says of itself on its metrics' addresses: lag and latency, which no topic tells."""

import http.client
import math
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

READ_EVERY_SECONDS: Final = 5.0
TIMEOUT_SECONDS: Final = 2.0
WINDOW_SECONDS: Final = 60.0
"""Over which latency is told, once it has been looked at for so long; before that, since the flow's start."""
LARGEST: Final = 10_000_000
"""Bytes of an answer that are read at most."""

LAG: Final = "redflag_consumer_lag_messages"
LATENCY: Final = "redflag_end_to_end_latency_seconds"

_DIRECTLY: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Sample(NamedTuple):
    """One reading of all processes of the flow."""

    lag: float  # messages; NaN while no broker answers
    latency: dict[float, float]  # by upper bound, s: decisions within it, since the start


class FlowFigures(NamedTuple):
    """What is known of the flow now."""

    missing: str  # why nothing is known, in a few words; "" where all is
    lag: float = math.nan  # messages behind the end of the topics
    p50: float = math.nan  # s, from a message's record to the broker's acknowledgement of what became of it
    p99: float = math.nan
    most: float = math.inf  # s, that is told apart: one of these two that is as much may be anything more
    since_start: bool = True  # whether these two are of all since the flow's start


class FlowMetrics:
    """Reads them while somebody looks, every few seconds at most."""

    def __init__(self, addresses: str, clock: Callable[[], float] = time.monotonic):
        """`addresses`: host:port of each process, with commas between."""
        self._addresses = addresses.split(",")
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: list[tuple[float, Sample]] = []
        self._read_at = -math.inf
        self._found = FlowFigures("it was not asked yet")

    def figures(self) -> FlowFigures:
        """What is known; takes as long as the flow takes to answer."""
        with self._lock:
            if self._clock() - self._read_at >= READ_EVERY_SECONDS:
                try:
                    sample = sample_of([_read(address) for address in self._addresses])
                except (OSError, ValueError, http.client.HTTPException) as error:
                    self._samples.clear()
                    reason = getattr(error, "reason", error)
                    self._found = FlowFigures(" ".join(str(getattr(reason, "strerror", None) or reason).split())[:200])
                else:
                    self._take(self._clock(), sample)
                self._read_at = self._clock()
            return self._found

    def _take(self, now: float, sample: Sample) -> None:
        if self._samples and _count(sample) < _count(self._samples[-1][1]):
            self._samples.clear()  # it was started anew
        self._samples.append((now, sample))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_SECONDS:
            del self._samples[0]
        begin, earliest = self._samples[0]
        latency = {bound: count - earliest.latency.get(bound, 0.0) for bound, count in sample.latency.items()}
        since_start = begin > now - WINDOW_SECONDS or latency.get(math.inf, 0.0) <= 0
        chosen = sample.latency if since_start else latency
        most = max((bound for bound in chosen if not math.isinf(bound)), default=math.inf)
        self._found = FlowFigures("", sample.lag, quantile(chosen, 0.5), quantile(chosen, 0.99), most, since_start)


def _count(sample: Sample) -> float:
    return sample.latency.get(math.inf, 0.0)


def _read(address: str) -> str:
    """What a process answers.

    Raises:
        OSError, HTTPException: nobody answers, or not as HTTP has it.
    """
    request = urllib.request.Request(f"http://{address}/metrics")
    with _DIRECTLY.open(request, timeout=TIMEOUT_SECONDS) as answer:
        found: bytes = answer.read(LARGEST)
    return found.decode(errors="replace")


def sample_of(texts: list[str]) -> Sample:
    """Sums over the processes.

    Raises:
        ValueError: a text is not Prometheus', or not a flow's.
    """
    lag, latency = 0.0, dict[float, float]()
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name == LAG:
                lag += sum(each.value for each in family.samples)
            elif family.name == LATENCY:
                for each in family.samples:
                    if each.name.endswith("_bucket"):
                        bound = float(each.labels["le"])
                        latency[bound] = latency.get(bound, 0.0) + each.value
    if not latency:
        msg = "what answers there is no flow of Redflag"
        raise ValueError(msg)
    return Sample(lag, latency)


def quantile(buckets: dict[float, float], share: float) -> float:
    """Within how much a share of all values lies, from counts up to each bound, as Prometheus estimates it.

    NaN without values; where it lies beyond the last bound but infinity, that bound.
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return math.nan
    below, lower = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= share * total:
            if math.isinf(bound):
                return lower
            within = count - below
            return lower + (bound - lower) * ((share * total - below) / within if within > 0 else 1.0)
        below, lower = count, bound
    return lower
