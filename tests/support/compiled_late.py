"""`python -m tests.support.compiled_late MODEL`: the kernels that a flow compiles, or loads, only once it decides."""

import sys
from pathlib import Path

from bytewax.testing import TestingSink, TestingSource, run_main
from numba.core.registry import CPUDispatcher

from dataflow.detect import build
from dataflow.kernels import warm_up
from dataflow.rules import LiveRules
from dataflow.scoring.loading import load_model
from dataflow.settings import Settings
from dataflow.steps import Routed
from tests.support.builders import HOUR, NOON, message, raw


def signatures() -> dict[str, int]:
    """Of each kernel, for how many types of arguments it is there."""
    return {
        f"{module}.{name}": len(found.signatures)
        for module in sorted(sys.modules)
        if module.startswith("dataflow.")
        for name, found in vars(sys.modules[module]).items()
        if isinstance(found, CPUDispatcher)
    }


def main() -> None:
    settings = Settings()
    warm_up()
    before = signatures()
    model, rules = load_model(Path(sys.argv[1])), LiveRules(settings.rules_file, check_every=1.0)
    messages = [
        message(raw(f"u{n % 30}", at=NOON + n * HOUR, transaction_id=f"t{n}", latitude=10.0, longitude=n % 9), offset=n)
        for n in range(200)
    ]
    for size in (1, 3, 200):
        out: list[Routed] = []
        run_main(build(TestingSource(messages, size), TestingSink(out), model, rules, settings))
        assert sum(len(records) for _, records in out) == len(messages)
    after = signatures()
    print(" ".join(name for name in after if after[name] != before.get(name)))


if __name__ == "__main__":
    main()
