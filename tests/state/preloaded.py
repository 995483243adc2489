"""What the processes of killed flows begin with: all modules, and the kernels as machine code."""

from dataflow.kernels import warm_up
from tests.state import killed_detection, killed_flow

__all__ = ["killed_detection", "killed_flow"]

warm_up()
