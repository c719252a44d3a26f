"""Conformance kit: an independent reference, golden data, and one rule for all comparisons."""
