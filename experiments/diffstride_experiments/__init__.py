"""Experiments with learnable strides; the console command is ``diffstride-train``."""

import os

# OpenMP reads this once, when torch is imported. By default, its threads spin while they wait for
# each other. That is about a tenth faster on idle cores, but in a measurement it was eight times
# slower when another program used one of two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
