"""Private: generic methods that do not use the graph, and the reference implementation."""
