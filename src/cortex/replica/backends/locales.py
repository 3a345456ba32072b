"""
Locales for models that change the case of text, where the machine has none of that name, as in most containers.

The C library looks for a locale in the folders of `LOCPATH` first. There its own `C.UTF-8` can stand under any name: it
changes case by the tables of Unicode, as all languages do but a few.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

DEFAULT_NAMES: Final = ("en_US.UTF-8", "en_US")
"""Of `StringNormalizer`, and as converters write it."""

_FOLDERS: Final = ("/usr/lib/locale", "/usr/lib64/locale", "/lib/locale")
_STAND_IN: Final = ("C.utf8", "C.UTF-8")
_OWN_CASES: Final = ("tr", "az", "lt")
"""Languages whose letters have cases of their own. Source: Unicode, SpecialCasing.txt."""
_ALL_CATEGORIES: Final = 0x1FBF
"""`LC_ALL_MASK` of glibc: categories 0 to 12 without `LC_ALL` itself."""


def is_there(name: str) -> bool:
    """Whether the C library can make a locale of this name."""
    library = ctypes.CDLL(None)
    library.newlocale.restype = ctypes.c_void_p
    library.newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library.freelocale.argtypes = (ctypes.c_void_p,)
    made = library.newlocale(_ALL_CATEGORIES, name.encode("utf-8", "surrogateescape").partition(b"\0")[0], None)
    if made:
        library.freelocale(made)
    return bool(made)


def can_stand_in(name: str) -> bool:
    """Whether a locale of this name changes case as `C.UTF-8` does, and text in it is UTF-8."""
    found = re.fullmatch(r"([a-zA-Z]{2,3})(_[a-zA-Z]+)?(\.[uU][tT][fF]-?8)?", name)
    return found is not None and found[1].lower() not in _OWN_CASES


@contextlib.contextmanager
def standing_in(names: Iterable[str]) -> Iterator[None]:
    """Have locales of these names while this goes on, as far as they are missing and others can stand in for them."""
    missing = [name for name in names if can_stand_in(name) and not is_there(name)]
    source = next((path for folder in _FOLDERS for name in _STAND_IN if (path := Path(folder, name)).is_dir()), None)
    if not missing or source is None:
        yield
        return
    before = os.environ.get("LOCPATH")
    with tempfile.TemporaryDirectory(prefix="cortex-locales-") as folder:
        for name in missing:
            Path(folder, name).symlink_to(source)
        # With a LOCPATH nothing is looked for elsewhere, so that other folders have to be named again.
        os.environ["LOCPATH"] = os.pathsep.join([folder, *([before] if before else _FOLDERS)])
        try:
            yield
        finally:
            if before is None:
                del os.environ["LOCPATH"]
            else:
                os.environ["LOCPATH"] = before
