"""Faults that are real: processes killed between any two system calls, full disks, refused writes, two writers."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

from avalanche_ntk.errors import NTKWarning, RunFolderError
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.runfolder import RunFolder


def measurement(number, kernel=None, **changes):
    clock = TrainingClock("iteration", number, 0, number, 0, 0, number, 0)
    record = {"kind": "measurement", "probe": "Exp000", "index": number, "clock": clock.as_dict(), "segment": 0}
    record |= {"values": {"NTK_Norm": 0.5 * number}, "reasons": {}, "notes": [], "trust": {}, "kernel": kernel}
    return {**record, "failure": None, **changes}


# What the children run: `work` writes a run of three measurements and reports on stdout each promise that was kept.
PRELUDE = """
import json, os, signal, sys, time, warnings
import numpy as np
import avalanche_ntk.recorder.runfolder
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.errors import NTKError, RunFolderError
from avalanche_ntk.recorder.runfolder import RunFolder

def measurement(number, kernel=None):
    clock = TrainingClock("iteration", number, 0, number, 0, 0, number, 0)
    record = {"kind": "measurement", "probe": "Exp000", "index": number, "clock": clock.as_dict(), "segment": 0}
    record |= {"values": {"NTK_Norm": 0.5 * number}, "reasons": {}, "notes": [], "trust": {}, "kernel": kernel}
    return {**record, "failure": None}

def write(folder, numbers):
    for number in numbers:
        kernel = folder.save_kernel("Exp000", number, {"kernel": np.full((4, 4), number)})
        folder.append(measurement(number, kernel))
"""


def start(code, *arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def run(code, *arguments, **options):
    child = start(code, *arguments, start_new_session=True, **options)
    try:
        output, errors = child.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        # With what it has forked, or that would go on waiting.
        os.killpg(child.pid, signal.SIGKILL)
        raise
    assert child.returncode == 0, errors
    return output


def resume_quietly(path):
    with warnings.catch_warnings():
        # A torn line is what these tests make; that it is announced is tested on its own.
        warnings.simplefilter("ignore", NTKWarning)
        return RunFolder.resume(path)


def check_consistent(folder):
    """Every record is whole and its kernel loads; returns the indices."""
    indices = []
    for record in folder.records():
        number = record["index"]
        assert record == measurement(number, f"kernels/Exp000/{number:06d}.safetensors")
        np.testing.assert_array_equal(folder.load_kernel(record["kernel"])["kernel"], np.full((4, 4), number))
        indices.append(number)
    return indices


# --- SIGKILL between any two system calls ---

# For each n, a forked child does the work and kills itself at its n-th system call that changes the disk: before it,
# after it or, for a write, in the middle of it. It reports each append that has returned.
KILLED = """
CALLS = ("write", "fsync", "replace", "unlink", "mkdir", "ftruncate", "rmdir", "link")

def arm(n, when):
    left = [n]
    def guard(name, real):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] == 0 and when == "within" and name == "write":
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*arguments, **keywords)
            finally:  # A call that fails, such as the removal of a file that is not there, is a point too.
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return call
    for name in CALLS:
        setattr(os, name, guard(name, getattr(os, name)))

scenario, base, when = sys.argv[1:]
n, done = 0, False
while not done:
    n += 1
    path = f"{base}/{scenario}-{when}-{n:03d}"
    if scenario != "create":
        with RunFolder.create(path, {"first": True}) as folder:
            write(folder, range(2))
    if scenario == "torn":
        with open(path + "/measurements.jsonl", "a") as file:
            file.write('{"kind": "measure')
    progress = os.open(path + ".progress", os.O_CREAT | os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        real_write = os.write
        arm(n, when)
        warnings.simplefilter("ignore")
        if scenario == "create":
            folder, numbers = RunFolder.create(path, {"first": False}), range(2)
        elif scenario == "overwrite":
            folder, numbers = RunFolder.create(path, {"first": False}, overwrite=True), range(2)
        else:
            folder, numbers = RunFolder.resume(path), range(2, 4)
            if scenario == "rewind":
                folder.rewind(1)
                numbers = range(1, 3)
        real_write(progress, b"o")
        for number in numbers:
            write(folder, [number])
            real_write(progress, b"a")
        folder.update_meta({"changed": number})
        real_write(progress, b"m")
        folder.close()
        os._exit(0)
    os.close(progress)
    status = os.waitpid(pid, 0)[1]
    done = status == 0
    if not done and not os.WIFSIGNALED(status):
        sys.exit(f"the child failed at {n} with status {status}")
print(n)
"""


@pytest.mark.parametrize("when", ["before", "within", "after"])
@pytest.mark.parametrize("scenario", ["create", "resume", "torn", "overwrite", "rewind"])
def test_a_kill_at_any_point_loses_at_most_the_measurement_being_written(tmp_path, scenario, when):
    points = int(run(KILLED, scenario, tmp_path, when))
    # The last child ran to its end; before it, one was killed at each point. Two measurements, each with a kernel and a
    # line, and a change of run.json are more than 20 changes of the disk.
    assert points > 20
    before = 2 if scenario in ("resume", "torn") else 0
    for n in range(1, points + 1):
        path = tmp_path / f"{scenario}-{when}-{n:03d}"
        progress = (tmp_path / f"{path.name}.progress").read_text()
        if scenario == "create" and "o" not in progress and not (path / "run.json").exists():
            RunFolder.create(path).close()
            continue
        reader = RunFolder.open(path)
        kept = check_consistent(reader)
        if scenario == "overwrite" and "o" not in progress:
            # Either the old run, whole or with its lines gone, or the new one: never a mixture.
            assert kept in ([0, 1], []) and (reader.meta == {"first": True} or kept == [])
            RunFolder.create(path, overwrite=True).close()
            continue
        if scenario == "rewind":
            aside = [json.loads(line) for p in path.glob("*.rewound001.jsonl") for line in p.read_text().splitlines()]
            if kept == [0] or "o" in progress:
                assert [record["index"] for record in aside] == [1]
                np.testing.assert_array_equal(reader.load_kernel(aside[0]["kernel"])["kernel"], np.full((4, 4), 1))
            if "o" not in progress:
                assert kept in ([0, 1], [0])
                before = len(kept)
            else:
                before = 1
        confirmed = before + progress.count("a")
        assert kept in (list(range(confirmed)), list(range(confirmed + 1)))
        assert "m" not in progress or reader.meta["changed"] == kept[-1]
        with resume_quietly(path) as writer:
            assert check_consistent(writer) == kept
            number = len(kept)
            where = writer.save_kernel("Exp000", number, {"kernel": np.full((4, 4), number)})
            writer.append(measurement(number, where))
            assert check_consistent(writer) == [*kept, number]
        torn = path / "measurements.torn"
        if scenario == "torn":
            # A kill in the midst of the copying leaves half a copy before the whole one.
            assert b'{"kind": "measure\n' in torn.read_bytes()
        shutil.rmtree(path)


def test_a_process_killed_from_outside_at_random_moments_leaves_a_run_that_goes_on(tmp_path):
    path = tmp_path / "run"
    rng = np.random.default_rng(0)
    code = """
        folder = RunFolder.resume(sys.argv[1])
        print("open", flush=True)
        first = int(sys.argv[2])
        for number in range(first, first + 100_000):
            write(folder, [number])
            print(number, flush=True)
    """
    RunFolder.create(path).close()
    kept = []
    for _ in range(5):
        with start("warnings.simplefilter('ignore')\n" + textwrap.dedent(code), path, len(kept)) as child:
            assert child.stdout.readline() == "open\n"
            for _ in range(int(rng.integers(1, 20))):
                child.stdout.readline()
            child.kill()
            rest = child.stdout.read().split()
        assert child.returncode == -signal.SIGKILL
        with resume_quietly(path) as folder:
            found = check_consistent(folder)
        assert found == list(range(len(found))) and len(found) > len(kept)
        assert not rest or len(found) > int(rest[-1])
        kept = found


# --- interrupts ---


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_interrupt_while_writing_leaves_no_half_line(tmp_path, monkeypatch, call):
    real = getattr(os, call)

    def interrupted(fd, *arguments):
        if call == "write":
            real(fd, bytes(arguments[0])[:10])
        raise KeyboardInterrupt

    with RunFolder.create(tmp_path / "run") as folder:
        folder.append(measurement(0))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, call, interrupted)
            folder.append(measurement(1))
        assert folder.records() == [measurement(0)]
        folder.append(measurement(1))
        assert folder.records() == [measurement(0), measurement(1)]


def test_a_cut_that_fails_is_made_up_for_by_the_next_write(tmp_path, monkeypatch):
    real_write = os.write

    def half(fd, content):
        real_write(fd, bytes(content)[:10])
        raise OSError(errno.EIO, "Input/output error")

    def refused(fd, length):
        raise OSError(errno.EIO, "Input/output error")

    with RunFolder.create(tmp_path / "run") as folder:
        folder.append(measurement(0))
        size = (tmp_path / "run/measurements.jsonl").stat().st_size
        with monkeypatch.context() as patch, pytest.raises(RunFolderError):
            patch.setattr(os, "write", half)
            patch.setattr(os, "ftruncate", refused)
            folder.append(measurement(1))
        assert (tmp_path / "run/measurements.jsonl").stat().st_size == size + 10
        assert folder.records() == [measurement(0)]
        folder.append(measurement(1))
        assert folder.records() == [measurement(0), measurement(1)]


# --- full disks and refused writes ---

INTACT = (
    "What was recorded before is intact. Make room or allow writing there, then write again or continue with "
    "RunFolder.resume."
)

# The work is tried until the system refuses a write; then room is made, and it goes on.
FULL = """
def fill(path, make_room):
    folder = RunFolder.create(path, {"seed": 0})
    messages, number = [], 0
    for number in range(10_000):
        try:
            write(folder, [number])
        except RunFolderError as error:
            messages.append(str(error))
            break
    kept = len(folder.records())
    size = os.stat(path + "/measurements.jsonl").st_size
    try:
        folder.append({**measurement(kept), "notes": ["x" * 100_000]})
    except RunFolderError as error:
        messages.append(str(error))
    try:
        folder.update_meta({"big": "x" * 100_000})
    except RunFolderError as error:
        messages.append(str(error))
    unchanged = os.stat(path + "/measurements.jsonl").st_size == size and len(folder.records()) == kept
    temporary = [name for _, _, names in os.walk(path) for name in names if name.endswith(".tmp")]
    make_room()
    write(folder, [kept])
    result = {"messages": messages, "kept": kept, "unchanged": unchanged, "temporary": temporary, "meta": folder.meta}
    print(json.dumps(result))
    sys.stdout.flush()
"""


def check_filled(path, output, reason):
    found = json.loads(output)
    kept = found["kept"]
    assert kept > 0
    first, *others = found["messages"]
    assert first in (
        f"run folder {path}: could not write a record to measurements.jsonl: {reason}. {INTACT}",
        f"run folder {path}: could not write kernels/Exp000/{kept:06d}.safetensors: {reason}. {INTACT}",
    )
    assert others == [
        f"run folder {path}: could not write a record to measurements.jsonl: {reason}. {INTACT}",
        f"run folder {path}: could not write run.json: {reason}. {INTACT}",
    ]
    assert found["unchanged"] and found["temporary"] == [] and found["meta"] == {"seed": 0}
    return kept


def test_a_file_that_may_grow_no_further(tmp_path):
    # The system's own limit on a file's size: a real, partial write, then a real error.
    code = FULL + textwrap.dedent("""
        import resource
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        fill(sys.argv[1], lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    """)
    path = tmp_path / "run"
    kept = check_filled(path, run(code, path), "File too large")
    assert check_consistent(RunFolder.open(path)) == list(range(kept + 1))


def test_a_full_disk(tmp_path):
    # A disk of 256 KiB in a mount namespace of the child's own, so that nothing is left behind.
    mount = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
    disk = tmp_path / "disk"
    disk.mkdir()
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(disk)]
    try:
        possible = subprocess.run([*isolated, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("this system lets no user mount a small tmpfs; the limit on a file's size is tested above")
    code = FULL + textwrap.dedent("""
        ballast = sys.argv[1] + ".ballast"
        with open(ballast, "wb") as file:
            file.write(b"x" * 150_000)
        path = sys.argv[1]
        fill(path, lambda: os.unlink(ballast))
        with RunFolder.open(path) as folder:
            for record in folder.records():
                assert (folder.load_kernel(record["kernel"])["kernel"] == record["index"]).all()
            print(len(folder.records()))
    """)
    path = disk / "run"
    found = subprocess.run(
        [*isolated, sys.executable, "-c", PRELUDE + code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    report, count = found.stdout.splitlines()
    assert check_filled(path, report, "No space left on device") + 1 == int(count)


def test_a_folder_that_must_not_be_written(tmp_path):
    # Root may write anywhere: the child takes another user's rights when it has root's.
    code = """
        path, parent = sys.argv[1:]
        # Modules that are imported on first use: another user may not read where this one keeps its Python.
        import importlib.metadata
        importlib.metadata.version("numpy")
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        messages = []
        for call in (lambda: RunFolder.resume(path), lambda: RunFolder.create(parent + "/new"),
                     lambda: RunFolder.create(path, overwrite=True), lambda: RunFolder.open(path).export_csv()):
            try:
                call()
            except RunFolderError as error:
                messages.append(str(error))
        print(json.dumps([messages, len(RunFolder.open(path).records())]))
    """
    path = tmp_path / "run"
    with RunFolder.create(path) as folder:
        folder.append(measurement(0))
    for file in path.iterdir():
        file.chmod(0o444)
    path.chmod(0o555)
    tmp_path.chmod(0o555)
    # Others must be able to come here at all; pytest makes its folders private.
    private = [p for p in tmp_path.parents if p.stat().st_uid == os.getuid() and not p.stat().st_mode & 0o001]
    modes = {p: p.stat().st_mode for p in private}
    try:
        for p in private:
            p.chmod(modes[p] | 0o001)
        messages, count = json.loads(run(code, path, tmp_path))
    finally:
        for p, mode in modes.items():
            p.chmod(mode)
        for p in (tmp_path, path):
            p.chmod(0o755)
    assert count == 1
    assert messages == [
        f"run folder {where}: could not write {what}: Permission denied. {INTACT}"
        for where, what in [
            (path, "its lock"),
            (tmp_path / "new", "the folder itself"),
            (path, "its lock"),
            (path, "measurements.csv"),
        ]
    ]
    assert RunFolder.open(path).records() == [measurement(0)]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_every_failing_call_is_named_and_costs_nothing(tmp_path, monkeypatch, call):
    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "run"
    with RunFolder.create(path) as folder:
        where = folder.save_kernel("Exp000", 0, {"kernel": np.full((4, 4), 0)})
        folder.append(measurement(0, where))
        for attempt, what in [
            (lambda: folder.append(measurement(1)), "a record to measurements.jsonl"),
            (lambda: folder.save_kernel("Exp000", 1, {"kernel": np.eye(2)}), "kernels/Exp000/000001.safetensors"),
            (lambda: folder.update_meta({"a": 1}), "run.json"),
            (folder.export_csv, "measurements.csv"),
        ]:
            with monkeypatch.context() as patch, pytest.raises(RunFolderError) as error:
                patch.setattr(os, call, broken)
                attempt()
            assert str(error.value) == f"run folder {path}: could not write {what}: Input/output error. {INTACT}"
            assert isinstance(error.value.__cause__, OSError)
        assert check_consistent(folder) == [0]
        assert folder.meta == {}
        assert sorted(p.name for p in (path / "kernels/Exp000").iterdir()) == ["000000.safetensors"]


# --- two processes ---

HOLD = """
folder = RunFolder.resume(sys.argv[1])
print("open", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path).close()
    with start(HOLD, path) as child:
        assert child.stdout.readline() == "open\n"
        since = json.loads((path / "lock").read_text())["since"]
        expected = (
            f"run folder {path} is being written by process {child.pid} on host {socket.gethostname()} since {since}: "
            "two writers would mix their measurements. Wait until it has ended or close it there "
            "(NTKPlugin.close), or choose another folder. Reading with RunFolder.open is possible meanwhile."
        )
        for call in (RunFolder.resume, lambda p: RunFolder.create(p, overwrite=True)):
            with pytest.raises(RunFolderError) as error:
                call(path)
            assert str(error.value) == expected
        assert RunFolder.open(path).records() == []
        child.kill()
    # The killed process's lock is no obstacle, though its text is still there.
    assert json.loads((path / "lock").read_text())["pid"] == child.pid
    with RunFolder.resume(path) as folder:
        folder.append(measurement(0))


def test_a_forked_child_neither_holds_nor_breaks_its_parents_lock(tmp_path):
    # A process of one thread forks, as a data loader's workers do; the child outlives the parent's folder.
    code = """
        path = sys.argv[1]
        folder = RunFolder.create(path)
        folder.append(measurement(0))
        ready, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                folder.append(measurement(1))
            except RunFolderError as error:
                os.write(ready[1], str(error).encode())
            os.read(go[0], 1)
            os._exit(0)
        refused = os.read(ready[0], 4096).decode()
        assert f"is being written by process {os.getpid()} on host" in refused, refused
        folder.append(measurement(1))
        try:
            RunFolder.resume(path)
        except RunFolderError:
            print("still locked")
        folder.close()
        RunFolder.resume(path).close()
        os.write(go[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0
        print(len(RunFolder.open(path).records()))
    """
    assert run(code, tmp_path / "run") == "still locked\n2\n"


def test_a_forked_child_that_outlives_a_killed_parent_does_not_keep_the_lock(tmp_path):
    code = """
        folder = RunFolder.create(sys.argv[1])
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(600)
        os.wait()
    """
    with start(code, tmp_path / "run") as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            RunFolder.resume(tmp_path / "run").close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def unsupported(fd):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("avalanche_ntk.recorder.runfolder.lock._take", unsupported)
    with pytest.warns(NTKWarning) as caught:
        folder = RunFolder.create(tmp_path / "run")
    assert [str(w.message) for w in caught] == [
        f"run folder {tmp_path / 'run'} is on a file system without locks (Function not implemented): nothing keeps a "
        "second process from writing it too. Make sure that only one does."
    ]
    folder.append(measurement(0))
    folder.close()
