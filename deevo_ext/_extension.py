"""Finds the compiled extension `deevo_ext._C`, once, and explains in words when it cannot.

Everything that calls compiled code takes the module from `load()`, so `import deevo_ext` works on
every machine and the explanation comes only when compiled code is needed.
"""

import functools
import importlib
import importlib.machinery
from pathlib import Path
from types import ModuleType

from deevo_ext.errors import DeevoError

_PACKAGE = Path(__file__).resolve().parent


def load() -> ModuleType:
    """Returns the module `deevo_ext._C`; raises DeevoError that says why there is none."""
    module, reason = _attempt()
    if module is None:
        raise DeevoError(f"the compiled extension deevo_ext._C is not available: {reason}")
    return module


def why_missing() -> str | None:
    """Says why `load()` would fail, with the remedy; None when the extension is there."""
    return _attempt()[1]


@functools.cache
def _attempt() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("deevo_ext._C"), None
    except ImportError as error:
        return None, explain(_PACKAGE, str(error))


def explain(package: Path, error: str) -> str:
    """Says why `package` (a directory deevo_ext/) has no loadable `_C`, with the remedy."""
    loadable = importlib.machinery.EXTENSION_SUFFIXES
    files = sorted(path.name for path in package.glob("_C.*so"))
    if any(name == f"_C{suffix}" for name in files for suffix in loadable):
        return (
            f"{package / files[0]} exists but does not load ({error}). It was built for another "
            'system or damaged; rebuild it with "pip install --force-reinstall --no-deps ." in the '
            "source checkout."
        )
    if files:
        return (
            f"{package} holds {', '.join(files)}, built for another Python than this one "
            f'(which loads _C{loadable[0]}). Run "pip install ." in the source checkout with this '
            "Python."
        )
    if (package.parent / "setup.py").is_file():
        return (
            f"this is the source tree {package.parent}, where it has not been built. Run "
            '"pip install ." there and start Python from another directory, or build in place '
            'with "pip install -e ." and stay.'
        )
    return (
        f"{package} was installed without it. Reinstall from a source checkout with "
        '"pip install --force-reinstall --no-deps .".'
    )
