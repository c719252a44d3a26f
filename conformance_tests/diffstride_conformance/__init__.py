"""Conformance kit: an independent reference, golden data, and the one rule that compares."""
