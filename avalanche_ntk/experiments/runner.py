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
    """Train and measure one configuration, and leave everything in one run folder.

    A run of the same configuration that is complete in that folder is left as it is; one that was interrupted goes on
    behind its last complete experience, or from its start where the strategy remembers more than a checkpoint holds.
    Either way its numbers are those of a run that was never interrupted. The same configuration gives the same numbers
    on the same machine; random states and the number of threads of the calling process are as before afterwards.

    Args:
        config: A configuration, its keys as a mapping, a YAML file, the name of a ready one, or None for the defaults.
        out: The run folder; `runs/STRATEGY-BENCHMARK-HASH` when None.
        values: Values by dotted key that replace those of the configuration.
        overwrite: Whether a run of another configuration in that folder may be replaced, and one of the same
            configuration be made anew.
        tags: What else to record in `run.json`, under `tags`.
        on_progress: Called with the number of finished experiences and of all.

    Returns:
        The run folder.

    Raises:
        ConfigError: The configuration says what cannot be used.
        RunFolderError: The folder holds another run, or something else, or is in use.
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
    """Return what `run.json` says of a run of this configuration in that folder; None when a new one begins."""
    if not is_run(path):
        return None
    # Whoever writes it holds the lock: refused here, before anything of it is touched.
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
    """Read the configuration beside the run, which is there before the plugin begins the run."""
    try:
        return load_config(path / CONFIG).as_dict()
    except ConfigError:
        return None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    a, b = flat(there), flat(here)
    # A key that an earlier version did not have, or a later one dropped, is no key with the value None.
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
    """Writes what the run is into its folder as soon as there is one, and begins TensorBoard's curves in it."""

    def __init__(self, path: Path, meta: dict[str, Any], tensorboard: bool) -> None:
        super().__init__()
        self.path, self.meta, self.tensorboard = path, meta, tensorboard
        self.written = False
        self.ntk: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Write, once the plugin that measures has made the folder."""
        if self.written or not is_run(self.path):
            return
        self.note(self.meta)
        self.written = True
        if self.tensorboard and not any(isinstance(e, TensorboardLogger) for e in strategy.evaluator.loggers):
            # Made only now: a folder that is not empty would have been refused.
            logger = TensorboardLogger(self.path / "tensorboard")
            logger.writer.purge_step = strategy.clock.train_iterations + 1
            strategy.evaluator.loggers.append(logger)

    def note(self, changes: Mapping[str, Any]) -> None:
        """Change what `run.json` says, through the folder that the plugin holds: its lock is never given up between."""
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
        "resumes": "behind its last complete experience"
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
                f"{config.strategy.name} cannot be trained with the libraries that are installed: {broken}"
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
    """Make what is trained, or take it up where an earlier attempt left it.

    Args:
        config: The configuration.
        path: The run folder.
        known: What is known of an earlier attempt; None where there was none.
        diary: Writes down how far the run is.

    Returns:
        What is trained, its diary, the experiences that it has behind it, and why a later attempt would begin anew;
        None where it would not.
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
    """Put the strategy of a pickle, its plugins included, in the place of the one made; return how far it was."""
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
    """Make the folder, so that one killed at any moment from now on is known by its configuration.

    The plugin replaces the run that is made here, and `_Diary` records the configuration again; in between stands
    `config.yaml`, from which the run can be made again, too.
    """
    RunFolder.create(path, meta, overwrite=replace).close()
    _remove_checkpoints(path)
    write_whole(path / CONFIG, yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True))


@contextmanager
def _machine(config: RunConfig) -> Generator[None]:
    """Set what sums depend on, and put it back on exit."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(config.threads)
    if not config.device.startswith("cpu"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
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
    """Return commit and cleanness of the repository that a folder lies in; None where there is none."""
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
