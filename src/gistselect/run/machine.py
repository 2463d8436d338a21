"""What the machine and its packages can do, as checks with remedies; loads no model."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gistselect.errors import ModelError
from gistselect.model.config import ModelSettings
from gistselect.run.threads import usable_cores

Status = Literal["ok", "note", "bad"]
"""`note`: it works, but there is something to know."""
NAME = "gistselect"
CONSTRAINTS = "constraints.txt"
FOR_DEVELOPERS = ("dev", "test")
LITTLE_ROOM, TOO_LITTLE_ROOM = 5e9, 100e6
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    group: str
    name: str
    status: Status
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


_package, _device = partial(Check, group="packages"), partial(Check, group="device")


def machine_checks(settings: ModelSettings, output: Path) -> Iterator[Check]:
    """Python and packages, device, room on the disk, and the hub."""
    yield from _python()
    yield from package_checks(_requirements(), versions_tested())
    yield from device_checks(settings)
    yield room_check(output)
    yield from _hub()


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    try:
        wanted = str(importlib.metadata.metadata(NAME)["Requires-Python"] or "")
    except importlib.metadata.PackageNotFoundError:
        yield _package(
            name="python",
            status="note",
            found=f"{found}; gistselect is not installed",
            remedy="pip install . in its folder, so that what it needs is known.",
        )
        return
    fits = platform.python_version() in SpecifierSet(wanted, prereleases=True)
    remedy = "" if fits else f"make a virtual environment with Python {wanted}."
    yield _package(name="python", status="ok" if fits else "bad", found=found, remedy=remedy)


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(one) for one in importlib.metadata.requires(NAME) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def versions_tested() -> dict[str, str]:
    """Versions that the tests were run with, from the constraints that came with the package; empty without them."""
    places = [Path(__file__).parents[3] / CONSTRAINTS]
    with suppress(importlib.metadata.PackageNotFoundError):
        places += [Path(str(one.locate())) for one in importlib.metadata.files(NAME) or [] if one.name == CONSTRAINTS]
    for path in places:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            lines = (line.partition("#")[0].strip().partition("==") for line in text.splitlines())
            return {canonicalize_name(name): version for name, _, version in lines if version}
    return {}


def package_checks(requirements: Iterable[Requirement], tested: dict[str, str]) -> Iterator[Check]:
    """Each package that is needed, and each extra, against what gistselect asks for and was tested with."""
    other: list[str] = []
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        version = _version(one.name)
        if version is None or not one.specifier.contains(version, prereleases=True):
            yield _package(
                name=one.name,
                status="bad",
                found=version or "missing",
                remedy=f"pip install '{one.name}{one.specifier}'.",
            )
        elif (known := tested.get(canonicalize_name(one.name))) and version.partition("+")[0] != known:
            other.append(f"{one.name} {version} ({known})")
    if other:
        yield _package(
            name="tested versions",
            status="note",
            found=", ".join(other),
            remedy=f"they fit what is asked for; {CONSTRAINTS} has the versions in brackets.",
        )
    elif needed:
        yield _package(name="needed packages", status="ok", found=f"all {len(needed)}{', as tested' if tested else ''}")
    yield from _extras(requirements)


def _extras(requirements: Iterable[Requirement]) -> Iterator[Check]:
    extras: dict[str, list[Requirement]] = {}
    for one in requirements:
        for name in _extras_of(one):
            extras.setdefault(name, []).append(one)
    for name, wanted in extras.items():
        missing = [one for one in wanted if not _fits(one)]
        found = ", ".join(f"{one.name} {_version(one.name) or 'not installed'}" for one in wanted)
        remedy = f"if you need it: pip install '{NAME}[{name}]'." if missing else ""
        yield _package(name=f"extra {name}", status="note" if missing else "ok", found=found, remedy=remedy)


def _extras_of(one: Requirement) -> list[str]:
    names = (importlib.metadata.metadata(NAME).get_all("Provides-Extra") or []) if one.marker is not None else []
    return [
        name
        for name in names
        if name not in FOR_DEVELOPERS
        and canonicalize_name(one.name) != NAME
        and one.marker is not None
        and one.marker.evaluate({"extra": name})
        and not one.marker.evaluate({"extra": ""})
    ]


def _fits(one: Requirement) -> bool:
    version = _version(one.name)
    return version is not None and one.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_checks(settings: ModelSettings) -> Iterator[Check]:
    """The device that would be used, its memory, its number format, and how it attends."""
    import torch

    from gistselect.model.config import ModelConfig
    from gistselect.model.loading import resolve_device, resolve_dtype
    from gistselect.model.spread import cards_of

    try:
        device = resolve_device(settings.device)
        cards_of(ModelConfig(path="", **settings.model_dump(include=set(ModelSettings.model_fields))), device)
    except ModelError as error:
        yield _device(name="device", status="bad", found=settings.device, remedy=str(error))
        return
    dtype = resolve_dtype(settings.dtype, device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found = f"{torch.cuda.get_device_name(device)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, "
        found += f"{torch.cuda.device_count()} in all, CUDA {torch.version.cuda}"
        yield _device(name="device", status="ok", found=found)
    else:
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if sys.platform == "linux" else 0
        room = f", {memory / 1e9:.1f} GB of memory free" if memory else ""
        found = f"{device.type}, {torch.get_num_threads()} threads on {usable_cores()} cores{room}"
        built = torch.version.cuda is not None and settings.device == "auto"
        remedy = (
            "torch is built for CUDA and sees no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES." if built else ""
        )
        yield _device(name="device", status="note" if built else "ok", found=found, remedy=remedy)
    yield _number_format(device, dtype)
    yield _attention(device, dtype)


def _number_format(device: Any, dtype: Any) -> Check:
    import torch

    name = str(dtype).removeprefix("torch.")
    one = torch.linspace(-1, 1, 64, device=device).reshape(8, 8).to(dtype).requires_grad_(True)
    try:
        (one @ one.T).float().square().sum().backward()
        works = one.grad is not None and bool(torch.isfinite(one.grad).all())
    except RuntimeError:
        works = False
    slow = device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False)
    remedy = "" if works else "choose another --dtype."
    if works and slow:
        remedy = "this GPU computes bfloat16 in software; --dtype float32 is exact and no slower."
    status: Status = "bad" if not works else "note" if slow else "ok"
    found = f"{name} {'multiplies and differentiates' if works else 'does not work here'}"
    return _device(name="number format", status=status, found=found, remedy=remedy)


def _attention(device: Any, dtype: Any) -> Check:
    import torch

    if device.type != "cuda":
        return _device(name="attention", status="ok", found="torch's scaled_dot_product_attention")
    if dtype not in (torch.bfloat16, torch.float16):
        return _device(
            name="attention",
            status="note",
            found="one call an example in 32 bits",
            remedy="--dtype bfloat16 lets all examples of a batch share one kernel.",
        )
    usable = torch.cuda.get_device_capability(device) >= (8, 0)
    own = "flash_attn is installed" if find_spec("flash_attn") else "flash_attn is not needed"
    found = f"torch's kernel for packed rows {'runs' if usable else 'needs compute capability 8.0'}; {own}"
    remedy = "" if usable else "use --engine.packing padded if the check of a model fails."
    return _device(name="attention", status="ok" if usable else "note", found=found, remedy=remedy)


def room_check(output: Path) -> Check:
    """Room where the run folder will stand."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK | os.X_OK)
    status: Status = "bad" if not writable or free < TOO_LITTLE_ROOM else "note" if free < LITTLE_ROOM else "ok"
    remedy = (
        "" if status == "ok" else "make room or choose another --output; 'gistselect clean' empties old run folders."
    )
    if not writable:
        remedy = "it cannot be written to; choose another --output or change its permissions."
    return Check(group="disk", name=str(output), status=status, found=f"{free / 1e9:.1f} GB free", remedy=remedy)


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants

    said = [f"{name}={os.environ[name]}" for name in OFFLINE if name in os.environ]
    cache = Path(constants.HF_HUB_CACHE)
    held = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    models = f"{len(held)} models in {cache}" + (
        f" ({', '.join(held[:4])}{', …' if len(held) > 4 else ''})" if held else ""
    )
    if constants.HF_HUB_OFFLINE:
        yield Check(
            group="hub",
            name="offline",
            status="note",
            found=f"{', '.join(said)}; {models}",
            remedy="only models in folders or in that cache can be used; unset it to fetch others.",
        )
    else:
        yield Check(group="hub", name="online", status="ok", found=models)
