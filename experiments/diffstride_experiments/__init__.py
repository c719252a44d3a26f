"""Experiments with learnable strides; the console command is ``diffstride-train``."""

import os

# OpenMP reads this once, when torch is imported. By default its threads spin while they wait for
# each other: about a tenth faster on idle cores, but eight times slower was measured where another
# program had one of two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
