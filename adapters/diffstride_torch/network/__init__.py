"""Tools for whole networks: tracing, costs and budgets, surgery, summaries, freezing."""
