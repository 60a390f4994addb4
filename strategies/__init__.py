"""NTK-aware continual-learning strategies, imported as `avalanche_ntk.strategies`."""

if __name__ != "avalanche_ntk.strategies":
    raise ImportError(
        f"this folder was imported as {__name__!r}; it is the package avalanche_ntk.strategies. "
        "Install the project (pip install -e .) and write `import avalanche_ntk.strategies`."
    )

__all__: list[str] = []
