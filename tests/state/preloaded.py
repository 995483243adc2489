"""What the processes of killed flows begin with: all modules, and the kernels as machine code."""

from dataflow.profiles.warm_up import warm_up
from tests.state import killed_detection, killed_flow

__all__ = ["killed_detection", "killed_flow"]

warm_up()
