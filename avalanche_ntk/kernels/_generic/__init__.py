"""Private: ways that need no knowledge of the graph, and the oracle."""
