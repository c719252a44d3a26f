"""Backends for array frameworks: namespaces, devices, and how gradients are attached."""
