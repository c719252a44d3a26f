"""Experiments with learnable strides; the console command is ``diffstride-train``."""
