"""Images from a folder or a zip file, decoded into memory as bytes.

A zip is not unpacked: its entries are read one at a time, after checking their names and sizes, so that no entry can
write outside a folder or exhaust memory.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_ntk.errors import ArgumentError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm")
MAX_FILE_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 4 * 2**30

Parts = dict[str, tuple[Tensor, Tensor]]


def read_folder(path: Path, image_size: int | None = None) -> tuple[Parts, list[str]]:
    """Read `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…`, of a folder.

    Args:
        path: The folder.
        image_size: Side to resize to, or None to keep the images, which must then have equal sizes.

    Returns:
        Images `(n, channels, H, W)` as bytes and labels `(n,)` for "train" (and "test" if present), and the class names
        by label.

    Raises:
        ArgumentError: The layout differs, or an image cannot be read or is too large.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file())
    entries = {p.relative_to(path).as_posix(): p for p in files}
    return _read(str(path), list(entries), lambda name: _bounded(entries[name], name), image_size)


def read_zip(path: Path, image_size: int | None = None) -> tuple[Parts, list[str]]:
    """Read a zip of such a folder, possibly nested in one folder.

    Args:
        path: The zip.
        image_size: As in `read_folder`.

    Returns:
        As `read_folder`.

    Raises:
        ArgumentError: The file is not a zip, an entry is not safe to read, the layout differs, or an image cannot be
            read or is too large.
    """
    with _opened(path) as archive:
        infos = [i for i in archive.infolist() if not i.is_dir()]
        _check_entries(path, infos)
        entries = {i.filename: i for i in infos}

        def load(name: str) -> bytes:
            try:
                return archive.read(entries[name])
            except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, ValueError) as exc:
                raise ArgumentError(
                    f"entry {name!r} of {path} cannot be read ({exc}). Check that the zip was copied completely."
                ) from exc

        return _read(str(path), list(entries), load, image_size)


def has_test_part(path: Path) -> bool:
    """Return whether a zip has images below `test/`, so that no seed chooses its test part.

    Args:
        path: The zip.

    Returns:
        True if it does; False also for a file that cannot be read, as reading it tells.
    """
    try:
        with _opened(path) as archive:
            return "test" in _layout(str(path), archive.namelist())
    except ArgumentError:
        return False


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as exc:
        raise ArgumentError(f"no zip at {path}: expected a file. Check the path.") from exc
    except (zipfile.BadZipFile, OSError) as exc:
        raise ArgumentError(f"{path} cannot be read as a zip ({exc}). Check that it was copied completely.") from exc


def _check_entries(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    total = 0
    for info in infos:
        name = info.filename
        parts = PurePosixPath(name).parts
        problem = None
        if name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0]:
            problem = "leads outside the folder"
        elif stat.S_ISLNK(info.external_attr >> 16):
            problem = "is a symbolic link"
        elif info.flag_bits & 1:
            problem = "is encrypted"
        elif name in seen:
            problem = "occurs twice"
        elif info.file_size > MAX_FILE_BYTES:
            problem = f"unpacks to {info.file_size} bytes, more than {MAX_FILE_BYTES}"
        if problem:
            raise ArgumentError(
                f"entry {name!r} of {path} {problem}: expected plain image files below CLASS/, train/CLASS/ or"
                " test/CLASS/. Do not use this zip, or pack it again."
            )
        seen.add(name)
        total += info.file_size
    if total > MAX_TOTAL_BYTES:
        raise ArgumentError(
            f"{path} unpacks to {total} bytes, more than {MAX_TOTAL_BYTES}: expected a zip whose images fit into"
            " memory. Use fewer images."
        )


def _bounded(file: Path, name: str) -> bytes:
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ArgumentError(
            f"image {name!r} has {size} bytes, more than {MAX_FILE_BYTES}: expected small images. Leave it out."
        )
    return file.read_bytes()


def _layout(where: str, names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Split → class → sorted file names."""
    images = [n for n in names if n.lower().endswith(SUFFIXES) and not _hidden(n)]
    split = {n: PurePosixPath(n).parts for n in images}
    # A zip of a folder usually contains the folder itself.
    tops = {parts[0] for parts in split.values()}
    if len(tops) == 1 and not tops & {"train", "test"} and all(len(parts) > 2 for parts in split.values()):
        split = {n: parts[1:] for n, parts in split.items()}
    tops = {parts[0] for parts in split.values()}
    found: dict[str, dict[str, list[str]]] = {}
    for name, parts in sorted(split.items()):
        which, rest = (parts[0], parts[1:]) if tops == {"train", "test"} else ("train", parts)
        if len(rest) != 2:
            found = {}
            break
        found.setdefault(which, {}).setdefault(rest[0], []).append(name)
    if not found:
        example = f", for example {sorted(split)[0]!r}" if split else ""
        raise ArgumentError(
            f"{where} holds {len(images)} images{example}: expected train/CLASS/IMAGE and test/CLASS/IMAGE, or"
            f" CLASS/IMAGE, with images ending in {', '.join(SUFFIXES)}. Arrange the files like this."
        )
    return found


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _read(
    where: str, names: Sequence[str], load: Callable[[str], bytes], image_size: int | None
) -> tuple[Parts, list[str]]:
    layout = _layout(where, names)
    classes = sorted(layout["train"])
    if "test" in layout and sorted(layout["test"]) != classes:
        odd = sorted(set(layout["test"]) ^ set(classes))
        raise ArgumentError(
            f"train and test of {where} must hold the same classes; found {', '.join(odd[:6])} in only one of them."
            " Add what is missing, or leave those classes out."
        )
    decoded: dict[str, tuple[list[Any], list[int]]] = {which: ([], []) for which in layout}
    first: tuple[int, ...] | None = None
    total = 0
    for which, by_class in layout.items():
        images, labels = decoded[which]
        for label, name_of_class in enumerate(classes):
            for name in by_class[name_of_class]:
                pixels = _decode(name, load(name), image_size)
                first = first or pixels.shape[:2]
                if pixels.shape[:2] != first:
                    raise ArgumentError(
                        f"image {name!r} has {pixels.shape[1]}×{pixels.shape[0]} pixels, others have"
                        f" {first[1]}×{first[0]}: expected one size. Give image_size to resize all."
                    )
                total += pixels.nbytes
                if total > MAX_TOTAL_BYTES:
                    raise ArgumentError(
                        f"the images of {where} take more than {MAX_TOTAL_BYTES} bytes: expected data that fit into"
                        " memory. Give a smaller image_size, or fewer images."
                    )
                images.append(pixels)
                labels.append(label)
    channels = max(pixels.shape[2] for images, _ in decoded.values() for pixels in images)
    parts: Parts = {}
    for which, (images, labels) in decoded.items():
        # Grey images among colour images get three equal channels.
        same = [p if p.shape[2] == channels else np.repeat(p, channels, axis=2) for p in images]
        parts[which] = (
            torch.from_numpy(np.stack(same)).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(labels, device="cpu"),
        )
    return parts, classes


def _decode(name: str, data: bytes, image_size: int | None) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            # Read only the header first: a small file can claim a huge image.
            if image.width * image.height * 3 > MAX_FILE_BYTES:
                raise ArgumentError(
                    f"image {name!r} has {image.width}×{image.height} pixels, more than {MAX_FILE_BYTES // 3}:"
                    " expected small images. Leave it out."
                )
            if image.mode.startswith(("I", "F")):
                raise ArgumentError(
                    f"image {name!r} has more than 8 bits a channel (mode {image.mode}): expected 8. Convert the"
                    " images, or give tensors."
                )
            grey = image.mode in ("1", "L", "LA")
            picture = image.convert("L" if grey else "RGB")
            if image_size is not None:
                picture = _resized(picture, image_size)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        if isinstance(exc, ArgumentError):
            raise
        raise ArgumentError(f"image {name!r} cannot be read ({exc}). Replace it, or leave it out.") from exc
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _resized(picture: Any, side: int) -> Any:
    """Resize the shorter side to `side`, then crop the central square."""
    factor = side / min(picture.size)
    width, height = (max(side, round(n * factor)) for n in picture.size)
    picture = picture.resize((width, height))
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))
