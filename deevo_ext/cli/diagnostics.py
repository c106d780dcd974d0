"""What `deevo info` reports: the facts of this package, then torch's own report of the machine.

Nothing here fails for something that is absent: the report says what is missing, and why. No memory
is taken on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import warnings
from typing import Any

import torch
from torch.utils import collect_env

from deevo_ext import _extension, backends
from deevo_ext.extras import import_extra
from deevo_ext.files import cache_folder
from deevo_ext.text import text_table

IMPORTED = {
    **{name: name for name in ("matplotlib", "torchvision", "timm", "tensorboard", "torchmetrics")},
    **{"pillow": "PIL", "scikit-learn": "sklearn", "transformers": "transformers"},
}
"""Packages of the extras that deevo's commands import, and under which name."""


def collect() -> dict[str, Any]:
    """Collects the report as JSON values."""
    required, extras = _requirements()
    gpus, problem = _gpus()
    return {
        "packages": {name: _installed(name) for name in ("deevo_ext", *required, "triton")},
        "extras": {extra: {n: _installed(n) for n in names} for extra, names in extras.items()},
        "why_no_import": _import_problems(),
        "extension": _extension_facts(),
        "processor": {
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "torch_threads": torch.get_num_threads(),
        },
        "gpus": gpus,
        "why_no_gpu": problem,
        "backends": {name: why_unusable(name, problem) for name in backends.DEVICES},
        "caches": {
            "folder": str(cache_folder()),
            "engine_tables": sorted(path.name for path in cache_folder().glob("engines-*.json")),
        },
        "torch": collect_env.get_env_info()._asdict(),
    }


def format_report(report: dict[str, Any]) -> str:
    """Returns a report of `collect` as text for people."""
    processor = report["processor"]
    sections: dict[str, dict[str, str]] = {
        "packages": {name: v or "not installed" for name, v in report["packages"].items()},
        "extras": {
            name: _extra_text(name, versions, report["why_no_import"])
            for name, versions in report["extras"].items()
        },
        "extension": {
            name.replace("_", " "): " ".join(value) if isinstance(value, list) else value
            for name, value in report["extension"].items()
            if value
        },
        "processor": {
            "cores": f"{processor['usable_cores']} usable of {processor['cores']}",
            "torch threads": str(processor["torch_threads"]),
        },
        "GPUs": {f"cuda:{i}": text for i, text in enumerate(report["gpus"])}
        or {"none": report["why_no_gpu"]},
        "backends": {
            name: f"not usable: {reason}" if reason else "usable"
            for name, reason in report["backends"].items()
        },
        "caches": {
            "folder": report["caches"]["folder"],
            "engine tables": ", ".join(report["caches"]["engine_tables"]) or "none yet",
        },
    }
    lines = [
        line
        for title, facts in sections.items()
        for line in (("", ""), (title, ""), *((f"  {name}", text) for name, text in facts.items()))
    ]
    machine = collect_env.pretty_str(collect_env.SystemEnv(**report["torch"]))
    return f"{text_table((), lines[1:], '<')}\n\ntorch.utils.collect_env\n{machine.strip()}"


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Returns the packages that this one requires, and those of each extra."""
    listed: dict[str, list[re.Match[str]]] = {"": []}
    for line in importlib.metadata.requires("deevo_ext") or []:
        requirement = re.match(r"([\w.-]+)\s*(?:\[([^\]]*)\])?", line)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)""", line)
        if requirement is not None:
            listed.setdefault(extra[1] if extra else "", []).append(requirement)

    def packages(extra: str) -> list[str]:
        names: list[str] = []
        for requirement in listed[extra]:
            if re.sub(r"[-_.]+", "-", requirement[1]).lower() != "deevo-ext":
                names.append(requirement[1])
                continue
            for included in requirement[2].split(","):
                names += packages(included.strip())
        return list(dict.fromkeys(names))

    return packages(""), {extra: packages(extra) for extra in listed if extra}


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_problems() -> dict[str, str]:
    """Imports the extras' packages that are installed and says why one cannot be had."""
    problems = {}
    for package, module in IMPORTED.items():
        if _installed(package) is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_extra(module)
        except Exception as error:  # whatever a package does when it is imported
            problems[package] = " ".join(str(error).split())
    return problems


def _extra_text(extra: str, versions: dict[str, str | None], problems: dict[str, str]) -> str:
    present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if version is None)
    remedy = f'missing: {missing}; pip install "deevo_ext[{extra}]" brings them' if missing else ""
    broken = (f"not usable: {problems[name]}" for name in versions if name in problems)
    return "; ".join(filter(None, (present, remedy, *broken)))


def _extension_facts() -> dict[str, Any]:
    """Says how the compiled extension was built, or why it is missing."""
    reason = _extension.why_missing()
    if reason is not None:
        return {"missing": reason}
    extension = _extension.load()
    facts = {"file": extension.__file__, "instruction_set": extension.instruction_set()}
    try:
        build: Any = importlib.import_module("deevo_ext._build_info")
    except ImportError:
        return facts
    return {
        **facts,
        "compiler": build.compiler_version,
        "flags": build.flags,
        "CUDA": build.cuda_version or "none: the extension was built for the CPU only",
        "GPU_architectures": list(build.cuda_architectures),
        "git_commit": build.git_commit,
    }


def _gpus() -> tuple[list[str], str | None]:
    """Describes the GPUs that torch sees, or says why there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = []
    for device in map(torch.cuda.get_device_properties, range(count)):
        capability = f"compute capability {device.major}.{device.minor}"
        gpus.append(f"{device.name}, {capability}, {device.total_memory / 2**30:.1f} GiB")
    if gpus:
        return gpus, None
    if torch.version.cuda is None:
        return gpus, "this torch is built without CUDA"
    # torch explains an unusable driver in a warning.
    words = "; ".join(" ".join(str(warning.message).split()) for warning in caught)
    return gpus, words or "torch.cuda.is_available() is False"


def why_unusable(backend: str, gpu_problem: str | None) -> str | None:
    """Says what stands between this machine and a backend; None if nothing does."""
    reasons = [backends.why_unavailable(backend)]
    if backend in ("cuda", "triton") and gpu_problem is not None:
        reasons.append(f"torch sees no GPU ({gpu_problem})")
    return "; ".join(filter(None, reasons)) or None
