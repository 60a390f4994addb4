"""The commands of `avalanche-ntk`, a module each, which adds them by `register(app)`.

Nothing heavy is imported before a command runs, so that `--help` is instant.
"""
