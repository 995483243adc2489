"""The layouts of all that the flow keeps in lanes, by step."""

from typing import Final

from dataflow.alert_steps import LAYOUT
from dataflow.profiles.profiles import LAYOUTS as OF_PROFILES

LAYOUTS: Final = {**OF_PROFILES, "suppress_repeats": LAYOUT}
