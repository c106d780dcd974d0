"""The environment report behind `deevo info`.

Nothing here fails for something that is absent: the report says what is missing, and why. Nothing
is imported just to read its version, and no memory is taken on a GPU.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

from deevo_ext import _extension
from deevo_ext._version import __version__

BACKENDS = ("reference", "cpu", "cuda", "triton")

# Instruction sets that matter to the CPU kernels: name in the report -> flag in /proc/cpuinfo.
_ISA_FLAGS = {
    "SSE4.2": "sse4_2",
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "AVX-512F": "avx512f",
    "AVX-512BW": "avx512bw",
    "AVX-512DQ": "avx512dq",
    "AVX-512VL": "avx512vl",
    "NEON": "asimd",
    "SVE": "sve",
}
_SMI_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def collect() -> dict[str, Any]:
    """The report as plain data (JSON-serialisable).

    Its parts: versions, extras, cpu, extension, gpu, backends.
    """
    extension, gpu = _extension_facts(), _gpu_facts()
    return {
        "versions": _versions(),
        "extras": _extras(),
        "cpu": _cpu_facts(),
        "extension": extension,
        "gpu": gpu,
        "backends": {name: _backend(name, extension, gpu) for name in BACKENDS},
    }


def format_report(report: dict[str, Any]) -> str:
    """`collect()`'s report as aligned text for people."""
    versions, cpu, extension, gpu = (report[k] for k in ("versions", "cpu", "extension", "gpu"))
    sections: dict[str, list[tuple[str, str]]] = {
        "versions": [(name, value or "not installed") for name, value in versions.items()],
        "extras": _extras_lines(report["extras"]),
        "cpu": [
            ("model", cpu["model"]),
            ("instructions", " ".join(cpu["instructions"]) or "none of those looked for"),
            ("cores", f"{cpu['cores_usable']} usable of {cpu['cores']}"),
            ("torch threads", str(cpu["torch_threads"])),
        ],
        "extension": _extension_lines(extension),
        "gpu": [
            ("driver", gpu["driver"] or "none found"),
            ("torch built for", f"CUDA {gpu['torch_cuda']}" if gpu["torch_cuda"] else "CPU only"),
            *((f"torch cuda:{i}", _device_words(d)) for i, d in enumerate(gpu["torch_devices"])),
            *((f"nvidia-smi {i}", _smi_words(d)) for i, d in enumerate(gpu["smi_devices"])),
        ],
        "backends": [
            (name, "available" if fact["available"] else f"not available: {fact['reason']}")
            for name, fact in report["backends"].items()
        ],
    }
    if gpu["torch_problem"]:
        sections["gpu"].append(("torch sees no GPU", gpu["torch_problem"]))
    width = max(len(label) for lines in sections.values() for label, _ in lines)
    blocks = (
        "\n".join([title, *(f"  {label:<{width}}  {value}" for label, value in lines)])
        for title, lines in sections.items()
    )
    return "\n\n".join(blocks)


def _versions() -> dict[str, str | None]:
    return {
        "deevo_ext": __version__,
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "numpy": _installed("numpy"),
        "triton": _installed("triton"),
        "platform": platform.platform(),
    }


def _extras() -> dict[str, dict[str, str | None]]:
    """Each extra's packages, those of the extras it includes too, and their versions or None."""
    own: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("deevo_ext") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker)
        if extra is not None:
            own.setdefault(extra[1], []).append(requirement.strip())

    def packages(extra: str, within: tuple[str, ...] = ()) -> list[str]:
        found: list[str] = []
        for requirement in own.get(extra, []):
            parts = re.fullmatch(r"([\w.-]+)\s*(?:\[([^\]]*)\])?.*", requirement)
            if parts is None:
                continue
            if re.sub(r"[-_.]+", "-", parts[1]).lower() != "deevo-ext":
                found.append(parts[1])
                continue
            for other in (parts[2] or "").split(","):
                if other.strip() not in (extra, *within):
                    found += packages(other.strip(), (extra, *within))
        return list(dict.fromkeys(found))

    return {extra: {name: _installed(name) for name in packages(extra)} for extra in own}


def _extras_lines(extras: dict[str, dict[str, str | None]]) -> list[tuple[str, str]]:
    lines = []
    for extra, packages in extras.items():
        words = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        missing = ", ".join(name for name, version in packages.items() if version is None)
        how = f'missing: {missing}: pip install "deevo_ext[{extra}]"' if missing else ""
        lines.append((extra, "; ".join(filter(None, (words, how)))))
    return lines


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_facts() -> dict[str, Any]:
    import torch

    model, instructions = read_cpuinfo(_read("/proc/cpuinfo"))
    return {
        "model": model or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "instructions": instructions,
        "cores": os.cpu_count() or 1,
        "cores_usable": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
    }


def read_cpuinfo(text: str) -> tuple[str | None, list[str]]:
    """Model name and relevant instruction sets from the text of /proc/cpuinfo (x86 or Arm)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())  # the first processor speaks for all
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name"), [name for name, f in _ISA_FLAGS.items() if f in flags]


def _extension_facts() -> dict[str, Any]:
    reason = _extension.why_missing()
    facts: dict[str, Any] = {"present": reason is None, "reason": reason, "path": None}
    if reason is None:
        facts["path"] = _extension.load().__file__
    try:
        build: Any = importlib.import_module("deevo_ext._build_info")
    except ImportError:
        build = None
    for name in ("compiler", "compiler_version", "flags", "cuda_version", "git_commit"):
        facts[name] = getattr(build, name, None)
    facts["cuda_architectures"] = list(getattr(build, "cuda_architectures", ()))
    return facts


def _extension_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not facts["present"]:
        return [("compiled", f"no: {facts['reason']}")]
    return [
        ("compiled", facts["path"]),
        ("compiler", facts["compiler_version"] or "unknown"),
        ("flags", facts["flags"] or "unknown"),
        ("CUDA", facts["cuda_version"] or "none: a CPU-only build"),
        ("GPU architectures", " ".join(facts["cuda_architectures"]) or "none"),
        ("git commit", facts["git_commit"] or "unknown"),
    ]


def _gpu_facts() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices = _torch_devices() if torch.cuda.is_available() else []
    problem = None
    if not devices:
        # torch explains an unusable driver in a warning, and a CPU-only build not at all.
        problem = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "; ".join(" ".join(str(w.message).split()) for w in caught)
            or "torch.cuda.is_available() is False"
        )
    smi = _smi_devices()
    return {
        "driver": read_driver(_read("/proc/driver/nvidia/version"))
        or (smi[0]["driver_version"] if smi else None),
        "torch_cuda": torch.version.cuda,
        "torch_devices": devices,
        "torch_problem": problem,
        "smi_devices": smi,
    }


def _torch_devices() -> list[dict[str, Any]]:
    import torch

    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "memory_bytes": p.total_memory,
            "multiprocessors": p.multi_processor_count,
        }
        for p in properties
    ]


def read_driver(text: str) -> str | None:
    """The driver's version out of /proc/driver/nvidia/version: "NVRM version: ... 580.65.06 ...".

    It is the first word of the first line that starts with a digit and has a dot.
    """
    words = text.partition("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _smi_devices() -> list[dict[str, str]]:
    query = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode != 0:
        return []
    rows = (line.split(", ") for line in result.stdout.splitlines())
    return [dict(zip(_SMI_FIELDS, row, strict=True)) for row in rows if len(row) == 4]


def _device_words(device: dict[str, Any]) -> str:
    memory = device["memory_bytes"] / 2**30
    return f"{device['name']}, compute capability {device['capability']}, {memory:.1f} GiB"


def _smi_words(device: dict[str, str]) -> str:
    return f"{device['name']}, driver {device['driver_version']}, {device['memory.total']}"


def _backend(name: str, extension: dict[str, Any], gpu: dict[str, Any]) -> dict[str, Any]:
    reasons = _missing_for(name, extension, gpu)
    return {"available": not reasons, "reason": "; ".join(reasons) or None}


def _missing_for(name: str, extension: dict[str, Any], gpu: dict[str, Any]) -> list[str]:
    """Everything that stands between this machine and backend `name`, in words."""
    reasons = []
    if not _has_module(f"deevo_ext.backends.{name}"):
        reasons.append(f"deevo_ext {__version__} does not have this backend")
    if name != "reference" and not extension["present"]:
        reasons.append(f"the compiled extension is missing: {extension['reason']}")
    elif name == "cuda" and extension["cuda_version"] is None:
        reasons.append("the extension was built without CUDA kernels")
    if name == "triton" and _installed("triton") is None:
        reasons.append("triton is not installed")
    if name in ("cuda", "triton") and not gpu["torch_devices"]:
        reasons.append(f"torch sees no GPU ({gpu['torch_problem']})")
    return reasons


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package does not exist
        return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
