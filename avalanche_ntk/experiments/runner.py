"""One configuration, one run, one run folder."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from avalanche.core import SupervisedPlugin
from avalanche.logging import TensorboardLogger

from avalanche_ntk.adapters.checkpoints import load_checkpoint, save_checkpoint
from avalanche_ntk.adapters.plugin import NTKPlugin
from avalanche_ntk.adapters.tensorboard import add_dashboard
from avalanche_ntk.errors import NTKError, RunFolderError
from avalanche_ntk.experiments import checkpoint
from avalanche_ntk.experiments.assemble import Setup, make_setup
from avalanche_ntk.experiments.config import RunConfig, content_hash, default_folder, load_config
from avalanche_ntk.experiments.schema import ConfigError
from avalanche_ntk.files import write_whole
from avalanche_ntk.randomness import preserved_rng_state
from avalanche_ntk.recorder.resume import is_run
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.strategies.recipes import RECIPES

CONFIG = "config.yaml"
COMPLETE, RUNNING, FAILED = "complete", "running", "failed"


def run(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    tags: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train and measure one configuration, and write everything to one run folder.

    A complete run of the same configuration in that folder is left unchanged. An interrupted one continues after its
    last complete experience, or from its start if the strategy has more state than a checkpoint holds. Either way its
    numbers are those of an uninterrupted run. The same configuration gives the same numbers on the same machine; random
    states and the number of threads of the calling process are restored.

    Args:
        config: A configuration, its keys as a mapping, a YAML file, the name of a ready one, or None for the defaults.
        out: The run folder; None for `runs/STRATEGY-BENCHMARK-HASH`.
        values: Values by dotted key that replace those of the configuration.
        overwrite: Whether to replace a run in that folder, of this or another configuration.
        tags: Further entries for `run.json`, under `tags`.
        on_progress: Called with the numbers of finished and of all experiences.

    Returns:
        The run folder.

    Raises:
        ConfigError: The configuration cannot be used.
        RunFolderError: The folder holds another run or other files, or is in use.
    """
    config = load_config(config, values)
    path = default_folder(config) if out is None else Path(out)
    known = _look(path, config, overwrite)
    replace = overwrite and is_run(path)
    if known is not None and known.get("status") == COMPLETE:
        on_progress(known["experiences_done"], known["n_experiences"])
        return path
    with preserved_rng_state(), _machine(config), warnings.catch_warnings():
        _train(config, path, known, dict(tags or {}), replace, on_progress)
    return path


def _look(path: Path, config: RunConfig, overwrite: bool) -> dict[str, Any] | None:
    """Return the content of `run.json` for a run of this configuration in that folder; None for a new run."""
    if not is_run(path):
        return None
    # A writer holds the lock: refuse here, before any change.
    RunFolder.resume(path).close()
    if overwrite:
        return None
    meta = RunFolder.open(path).meta
    there = meta["config"] if isinstance(meta.get("config"), Mapping) else _recorded(path)
    if there is None:
        what = "a run that was not made of a configuration"
    elif content_hash(there) != config.hash:
        what = f"a run of another configuration: {_differences(there, config.as_dict())}"
    else:
        return meta
    raise RunFolderError(
        f"run folder {path} holds {what}. Choose another folder, or replace it with overwrite=True (--overwrite)."
    )


def _recorded(path: Path) -> dict[str, Any] | None:
    """Read the configuration file of the run, which is written before the plugin begins the run."""
    try:
        return load_config(path / CONFIG).as_dict()
    except ConfigError:
        return None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    a, b = flat(there), flat(here)
    # A key missing in another version differs from a key with the value None.
    different = [key for key in dict.fromkeys([*b, *a]) if (key in a, a.get(key)) != (key in b, b.get(key))]
    told = [{key: repr(side[key]) if key in side else "absent" for key in different} for side in (a, b)]
    shown = [f"{key} is {told[0][key]} there and {told[1][key]} here" for key in different[:3]]
    return "; ".join(shown) + (f"; and {len(different) - 3} more" if len(different) > 3 else "")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


class _Diary(SupervisedPlugin, supports_distributed=True):
    """Writes the run's description to its folder as soon as it exists, and starts TensorBoard's curves there."""

    def __init__(self, path: Path, meta: dict[str, Any], tensorboard: bool) -> None:
        super().__init__()
        self.path, self.meta, self.tensorboard = path, meta, tensorboard
        self.written = False
        self.ntk: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Write the description, once the plugin has made the folder."""
        if self.written or not is_run(self.path):
            return
        self.note(self.meta)
        self.written = True
        if self.tensorboard and not any(isinstance(e, TensorboardLogger) for e in strategy.evaluator.loggers):
            # Made only now, since the plugin refuses a non-empty folder.
            logger = TensorboardLogger(self.path / "tensorboard")
            logger.writer.purge_step = strategy.clock.train_iterations + 1
            strategy.evaluator.loggers.append(logger)

    def note(self, changes: Mapping[str, Any]) -> None:
        """Change `run.json` through the plugin's open folder, which keeps its lock."""
        self.ntk.update_meta(changes)


def _train(
    config: RunConfig,
    path: Path,
    known: dict[str, Any] | None,
    tags: dict[str, Any],
    overwrite: bool,
    on_progress: Callable[[int, int], None],
) -> None:
    begin = time.perf_counter()
    earlier = float((known or {}).get("wall_seconds", 0.0))
    meta = {
        "config": config.as_dict(),
        "config_hash": config.hash,
        "status": RUNNING,
        "tags": tags,
        "started": (known or {}).get("started", _now()),
        "git": git_state(),
        "machine": _describe_machine(config),
        "error": None,
    }
    diary = _Diary(path, meta, config.tensorboard)
    setup, diary, done, reason = _set_up(config, path, known, diary)
    meta |= {
        **setup.facts,
        "n_experiences": len(setup.streams),
        "experiences_done": done,
        "resumes": "after its last complete experience"
        if reason is None or config.checkpoint == "whole"
        else f"from its start: {reason}",
    }
    if not done:
        _begin(path, config, meta, replace=known is not None or overwrite)

    def spent() -> float:
        return earlier + time.perf_counter() - begin

    on_progress(done, len(setup.streams))
    try:
        for number in range(done, len(setup.streams)):
            setup.strategy.train(setup.streams[number])
            setup.strategy.eval(setup.benchmark.test_stream)
            if reason is None:
                checkpoint.save(path / checkpoint.NAME, setup.strategy, config, number + 1)
            elif config.checkpoint == "whole":
                save_checkpoint(setup.strategy, path / checkpoint.WHOLE)
            diary.note({"experiences_done": number + 1, "wall_seconds": spent()})
            on_progress(number + 1, len(setup.streams))
        for logger in setup.strategy.evaluator.loggers:
            if isinstance(logger, TensorboardLogger):
                regime = "none" if config.regime is None else config.regime.name
                add_dashboard(logger, setup.strategy, benchmark=config.benchmark.name, regime=regime)
    except Exception as error:
        if is_run(path) and diary.written:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}"
            place = f"{Path(where.filename).name}:{where.lineno}"
            diary.note({"status": FAILED, "error": text, "error_at": place, "wall_seconds": spent()})
        broken = RECIPES[config.strategy.name].broken_because
        if broken is not None and not isinstance(error, NTKError):
            raise NTKError(
                f"{config.strategy.name} cannot be trained with the installed libraries: {broken}"
                f" ({type(error).__name__}: {error}). Choose another strategy, or an older torch."
            ) from error
        raise
    else:
        diary.note({"status": COMPLETE, "finished": _now(), "wall_seconds": spent()})
    finally:
        setup.ntk.close()
        for logger in setup.strategy.evaluator.loggers:
            if isinstance(logger, TensorboardLogger):
                logger.writer.close()
    _remove_checkpoints(path)


def _set_up(
    config: RunConfig, path: Path, known: dict[str, Any] | None, diary: _Diary
) -> tuple[Setup, _Diary, int, str | None]:
    """Make the set-up, or restore it from an earlier attempt.

    Args:
        config: The configuration.
        path: The run folder.
        known: Record of an earlier attempt; None if there was none.
        diary: Records the run's progress.

    Returns:
        The set-up, its diary, the number of trained experiences, and why a later attempt would start again; None if it
        would not.
    """
    state = checkpoint.load(path / checkpoint.NAME, config) if known else None
    whole = bool(known) and state is None and config.checkpoint == "whole" and (path / checkpoint.WHOLE).is_file()
    done = int(state["experiences"]) if state else 0
    setup = make_setup(config, path, done=done, further=[diary])
    diary.ntk = setup.ntk
    reason = checkpoint.why_not(config, setup.strategy.model)
    if state:
        checkpoint.restore(state, setup.strategy)
    elif whole:
        try:
            done = _load_whole(setup, diary, path)
            diary = next(plugin for plugin in setup.strategy.plugins if isinstance(plugin, _Diary))
        except Exception:  # noqa: BLE001  (whatever is wrong with the file, training anew is right)
            setup = make_setup(config, path, done=0, further=[diary])
            diary.ntk = setup.ntk
    return setup, diary, done, reason


def _load_whole(setup: Setup, diary: _Diary, path: Path) -> int:
    """Replace the strategy by a pickled one, including its plugins; return its number of trained experiences."""
    with contextlib.redirect_stdout(io.StringIO()):  # Avalanche prints a line for each tensor
        setup.strategy, done = load_checkpoint(setup.strategy, path / checkpoint.WHOLE)
    setup.ntk = NTKPlugin.of(setup.strategy)
    for plugin in setup.strategy.plugins:
        if isinstance(plugin, _Diary):
            plugin.path, plugin.meta, plugin.ntk, plugin.written = path, diary.meta, setup.ntk, False
    return done


def _remove_checkpoints(path: Path) -> None:
    for name in (checkpoint.NAME, checkpoint.WHOLE):
        (path / name).unlink(missing_ok=True)


def _begin(path: Path, config: RunConfig, meta: dict[str, Any], replace: bool) -> None:
    """Create the folder with its configuration, so that a run killed at any later moment can be identified.

    The plugin replaces the run made here, and `_Diary` records the configuration again. In between, `config.yaml`
    suffices to repeat the run.
    """
    RunFolder.create(path, meta, overwrite=replace).close()
    _remove_checkpoints(path)
    write_whole(path / CONFIG, yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True))


@contextmanager
def _machine(config: RunConfig) -> Generator[None]:
    """Fix the settings that floating-point sums depend on; restore them on exit."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(config.threads)
    if not config.device.startswith("cpu"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _describe_machine(config: RunConfig) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if config.device.startswith("cuda") and torch.cuda.is_available():
        name = torch.cuda.get_device_name(torch.device(config.device))
    return {
        "device": name,
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "threads": config.threads,
    }


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return commit and cleanness of a folder's repository; None if there is none."""
    where = str(folder or Path.cwd())

    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", where, *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
