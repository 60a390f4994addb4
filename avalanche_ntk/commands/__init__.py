"""The commands of `avalanche-ntk`, one module per command, added by `register(app)`.

Heavy imports happen only when a command runs, so `--help` is instant.
"""
