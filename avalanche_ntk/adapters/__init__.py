"""Adapters of the recorder to Avalanche: the plugin, its metrics, loggers and checkpoints."""
