"""Array frameworks: namespace, device, and how a gradient is attached."""
