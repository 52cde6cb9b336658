"""Which modules of a kernel are needed, and in which order they load: text in, paths out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from images.errors import KernelModuleError


def name_of(path: str) -> str:
    """Return the name by which a module file is known: no folder, no suffix, underscores."""
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


def read_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """Return, by path, what each module of a `modules.dep` needs, in depmod's order."""
    lines = (line.partition(":") for line in text.splitlines() if line)
    return {path: tuple(needs.split()) for path, _, needs in lines}


def load_order(
    wanted: Iterable[str], dependencies: Mapping[str, tuple[str, ...]], *, builtin: str
) -> list[str]:
    """Return the paths of `wanted` and of all they need, each after what it needs.

    Args:
        wanted: module names; what is built in needs no file.
        dependencies: what `read_dependencies` returned.
        builtin: the text of `modules.builtin`.

    Raises:
        KernelModuleError: the kernel has no such module.
    """
    inside = {name_of(line) for line in builtin.splitlines()}
    paths = {name_of(path): path for path in dependencies}
    order: list[str] = []
    for name in (name.replace("-", "_") for name in wanted):
        if name in inside:
            continue
        if name not in paths:
            raise KernelModuleError(f"the kernel has no module {name}")
        path = paths[name]
        # modules.dep lists the direct needs first and the deepest last.
        order += [each for each in (*reversed(dependencies[path]), path) if each not in order]
    return order
