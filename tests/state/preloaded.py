"""What the processes of killed flows begin with: all modules, and the kernels as machine code.

scikit-learn is of them, which a flow imports when it loads its model: that takes each process three quarters of its CPU
time.
"""

import joblib
import sklearn.ensemble

from dataflow.kernels import warm_up
from tests.state import killed_detection, killed_flow

__all__ = ["joblib", "killed_detection", "killed_flow", "sklearn"]

warm_up()
