"""The peer from the JVM as a process: built by Maven at first use, into a cache outside the tree, and started.

`python -m benchmarks.kafka_streams.build` builds it, and prints where. It needs a JDK of 17 or later, Maven, and the
first time a way to Maven Central.
"""

import hashlib
import re
import shutil
import sys
from pathlib import Path

from benchmarks.stage import Committed, Job
from tests.support.kafka_server import KafkaUnavailableError, cache_dir, java, run_maven

HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
SOURCES = sorted((HERE / "src").rglob("*.java"))
STORE = "users"  # as Main.java names it


def version() -> str:
    """The version of Kafka Streams that `pom.xml` pins."""
    found: list[str] = re.findall(r"<kafka\.version>([^<]+)<", POM.read_text())
    return found[0]


def directory() -> Path:
    """Where the build of these very sources is kept: `classes/`, and the jars that they need in `lib/`."""
    digest = hashlib.sha256()
    for path in (POM, *SOURCES):
        digest.update(path.read_bytes())
    return cache_dir() / f"kafka-streams-{version()}-{digest.hexdigest()[:8]}"


def missing() -> str | None:
    """What keeps Kafka Streams from being built or run here, in one line; None where nothing does. Fetches nothing."""
    try:
        found = java()
        if directory().is_dir():
            return None
    except KafkaUnavailableError as error:
        return str(error)
    if shutil.which("javac", path=str(Path(found).resolve().parent)) is None:
        return f"Kafka Streams {version()} is built with a JDK, and there is no javac beside {found}"
    if shutil.which("mvn") is None:
        return f"Kafka Streams {version()} is built with Maven, and there is no mvn on PATH"
    return None


def build() -> Path:
    """The directory of the build, which is made if it is not there yet.

    Raises:
        KafkaUnavailableError: something is missing, or Maven failed.
    """
    if lacking := missing():
        raise KafkaUnavailableError(lacking)
    if directory().is_dir():
        return directory()
    return run_maven(
        POM, directory(), f"build Kafka Streams {version()}", lambda into: ["compile", f"-Dbuild.to={into}"]
    )


def start(job: Job, threads: int) -> None:
    """Starts it on the job's topics; its environment names the forest in BENCH_FOREST_JSON.

    What it has decided is what it has committed: its transactions' own markers stand among the decisions, so that
    the ends of those topics tell nothing.
    """
    group = job.environment["BENCH_GROUP"]
    job.count = Committed(job.bootstrap, group, job.source)
    job.internal_topics.append(f"{group}-{STORE}-changelog")
    job.environment["STREAM_THREADS"] = str(threads)
    built = build()
    options = ["-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    job.start(java(), *options, "-cp", f"{built / 'classes'}:{built / 'lib'}/*", "redflag.Main")


if __name__ == "__main__":
    try:
        print(build())
    except KafkaUnavailableError as unavailable:
        sys.exit(str(unavailable))
