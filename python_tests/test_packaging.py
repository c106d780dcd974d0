"""What is installed, what importing it costs, and what setup.py does."""

import ast
import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import deevo_ext
from deevo_ext import _extension
from support.paths import ROOT

INSTALLED = Path(deevo_ext.__file__).parent
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
CPU_ONLY = "deevo_ext: CPU-only build: "
BUILD_CUDA = ("FORCE_CUDA", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")

# An nvcc that compiles by g++, from where every toolkit would have it.
FAKE_NVCC = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in
  *--version*) echo "Cuda compilation tools, release 12.9, V12.9.1" ;;
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_90\\n' ;;
  *--dryrun*) echo "#$ TOP=$(dirname "$0")/.." >&2 ;;
  *) while [ "$1" != "-c" ]; do shift; done; exec g++ -fPIC -x c++ "$@" ;;
esac
"""

# A module with no C++ dependency compiles in a fraction of a second.
TINY_SOURCE = """
#include <Python.h>
#include "deevo/answer.h"
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr,
                             nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() {
  PyObject* m = PyModule_Create(&module);
  PyModule_AddIntConstant(m, "answer", answer());
  return m;
}
"""


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, version in pins}


def requirement_name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def _build_info():
    from deevo_ext import _build_info

    return _build_info


# The installed package


def test_installed_files():
    templates = ("reports/templates/model_card.md.j2", "reports/templates/report.html.j2")
    for name in ("py.typed", "_build_info.py", f"_C{SUFFIX}", *templates):
        assert (INSTALLED / name).is_file(), name


def test_compiled_without_flags_that_change_results():
    flags = _build_info().flags.split()
    assert "-ffp-contract=off" in flags
    unsafe = ("-march", "-mtune", "-mcpu", "-mfma", "-mavx", "-Ofast", "-ffast-math", "-funsafe")
    assert not [flag for flag in flags if flag.startswith(unsafe)]


def test_extension_needs_no_cuda_library():
    """It loads without GPU, driver or toolkit: the runtime is linked in."""
    needed = subprocess.run(["ldd", _extension.load().__file__], capture_output=True, text=True)
    assert needed.returncode == 0, needed.stderr
    assert "libc.so" in needed.stdout
    assert not re.findall(r"libcuda|libnv", needed.stdout)


def test_import_brings_no_optional_or_slow_module(tmp_path):
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import deevo_ext\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    imported = set(result.stdout.split())
    assert "deevo_ext" in imported
    unwanted = {"matplotlib", "sklearn", "triton", "typer", "tqdm", "scipy", "rich", "pydantic"}
    assert not imported & unwanted


def test_import_works_without_the_extension(tmp_path):
    copy = tmp_path / "deevo_ext"
    shutil.copytree(INSTALLED, copy, ignore=shutil.ignore_patterns("_C.*so", "__pycache__"))
    code = (
        "import deevo_ext, deevo_ext._extension as e\n"
        "assert deevo_ext.__file__.startswith(sys.argv[1]), deevo_ext.__file__\n"
        "print(e.why_missing())\n"
        "try: e.load()\n"
        "except deevo_ext.errors.DeevoError as error: print(error)\n"
        "else: raise SystemExit('loaded')"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pip install") == 2


def test_explanations_of_a_missing_extension(tmp_path):
    package = tmp_path / "deevo_ext"
    package.mkdir()
    assert "was installed without it" in _extension.explain(package, "")
    (tmp_path / "setup.py").touch()
    assert "source tree" in _extension.explain(package, "")
    (package / "_C.cpython-27-some-os.so").touch()
    assert "another Python" in _extension.explain(package, "")
    (package / f"_C{SUFFIX}").touch()
    assert "does not load (GLIBC too old)" in _extension.explain(package, "GLIBC too old")


# The metadata


def test_every_direct_dependency_is_pinned():
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *pyproject()["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    # Which triton goes with a CUDA build of torch is torch's affair, as the next test has it.
    names = {requirement_name(r) for r in wanted} - {"deevo-ext", "triton"}
    assert names <= set(constraints())


def test_pins_leave_the_choice_of_torch_build_open():
    pins = constraints()
    assert pins["torch"] == "2.13.0"  # a local tag such as +cpu would exclude the CUDA build
    assert not [n for n in pins if n.startswith(("nvidia-", "triton", "cuda-"))]


def test_torch_is_not_needed_to_build():
    names = {requirement_name(r) for r in pyproject()["build-system"]["requires"]}
    assert names == {"setuptools", "pybind11", "ninja"}


# setup.py, on a small source tree of its own


@pytest.fixture
def tree(tmp_path) -> Path:
    tree = tmp_path / "source"
    (tree / "csrc/include/deevo").mkdir(parents=True)
    (tree / "csrc/bindings.cpp").write_text(TINY_SOURCE)
    (tree / "csrc/include/deevo/answer.h").write_text("inline long answer() { return 1; }\n")
    (tree / "deevo_ext").mkdir()
    names = ("pyproject.toml", "setup.py", "build_cuda.py", "MANIFEST.in", "LICENSE")
    for name in (*names, "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    for name in ("__init__.py", "_version.py"):
        shutil.copy(ROOT / "deevo_ext/_version.py", tree / "deevo_ext" / name)
    (tree / "deevo_ext/reports/templates").mkdir(parents=True)
    for name in ("__init__.py", "templates/page.html.j2"):
        (tree / "deevo_ext/reports" / name).touch()
    (tree / "README.md").touch()
    return tree


def setup_py(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py in an interpreter in which importing torch is an error."""
    code = """
import runpy, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise SystemExit("setup.py imported torch")
sys.meta_path.insert(0, NoTorch())
sys.argv[0] = "setup.py"
runpy.run_path("setup.py", run_name="__main__")
"""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CXX", "CC", "DEBUG", "VERBOSE", "MAX_JOBS", *BUILD_CUDA)
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tree,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def answer(package: Path) -> int:
    """The constant in the module built into `package`, read in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", "import _C; print(_C.answer)"],
        cwd=package,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


def test_build_in_place_is_incremental_and_torch_free(tree):
    first = setup_py(tree, "build_ext", "--inplace")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count(CPU_ONLY) == 1
    assert answer(tree / "deevo_ext") == 1
    assert not list(tree.glob(".ninja*"))

    again = setup_py(tree, "build_ext", "--inplace")
    assert "no work to do" in again.stdout

    (tree / "csrc/include/deevo/answer.h").write_text("inline long answer() { return 2; }\n")
    changed = setup_py(tree, "build_ext", "--inplace")
    assert changed.returncode == 0, changed.stderr
    assert answer(tree / "deevo_ext") == 2


def test_build_without_ninja(tree):
    # A module of that name that is not the real one and no ninja on PATH: only the compiler.
    tools = tree / "tools"
    tools.mkdir()
    (tree / "ninja.py").write_text("raise ImportError")
    for tool in ("g++", "as", "ld"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = setup_py(
        tree, "build_ext", "--inplace", PATH=str(tools), PYTHONPATH=str(tree), VERBOSE="1"
    )
    assert result.returncode == 0, result.stderr
    assert "build.ninja" not in result.stdout
    assert answer(tree / "deevo_ext") == 1


def test_build_info_of_a_wheel_build(tree):
    result = setup_py(tree, "build", "--build-lib", "out", DEBUG="1", CXX="g++ -DUNUSED")
    assert result.returncode == 0, result.stderr
    assert not (tree / "deevo_ext/_build_info.py").exists()
    text = (tree / "out/deevo_ext/_build_info.py").read_text()
    facts = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(text).body[1:]}
    assert (tree / "out/deevo_ext/reports/templates/page.html.j2").exists()
    assert facts["compiler"] == "g++ -DUNUSED"
    assert facts["compiler_version"]
    assert facts["flags"].startswith("-std=c++17 -O0 -g ")
    assert facts["cuda_version"] is None
    assert facts["cuda_architectures"] == ()
    assert facts["git_commit"] is None  # the small tree is no git checkout


def test_modules_deleted_from_the_source_are_not_installed(tree):
    (tree / "deevo_ext/old.py").touch()
    assert setup_py(tree, "build", "--build-lib", "out").returncode == 0
    assert (tree / "out/deevo_ext/old.py").exists()
    (tree / "deevo_ext/old.py").unlink()
    assert setup_py(tree, "build", "--build-lib", "out").returncode == 0
    assert not (tree / "out/deevo_ext/old.py").exists()
    assert (tree / f"out/deevo_ext/_C{SUFFIX}").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FORCE_CUDA": "1"}, "there can be no CUDA kernels: no CUDA sources"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS='many', expected a positive whole number"),
        ({"CXX": "no-such-compiler"}, "C++ compiler 'no-such-compiler' not found"),
    ],
    ids=["FORCE_CUDA", "MAX_JOBS", "CXX"],
)
def test_build_errors_are_one_line(tree, environment, message):
    result = setup_py(tree, "-q", "build_ext", "--inplace", **environment)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "deevo_ext" in line]
    assert message in line
    assert "Traceback" not in result.stderr


def test_sdist_holds_headers_but_no_facts_of_a_build(tree):
    assert setup_py(tree, "build_ext", "--inplace").returncode == 0
    result = setup_py(tree, "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"csrc/bindings.cpp", "csrc/include/deevo/answer.h", "constraints.txt"} <= names
    assert {"build_cuda.py", "deevo_ext/reports/templates/page.html.j2"} <= names
    assert not [n for n in names if n.endswith(".so") or n.endswith("_build_info.py")]


# setup.py and CUDA


@pytest.fixture
def toolkit(tree) -> Path:
    """A CUDA toolkit beside the tree, which has one CUDA source."""
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/kernel.cu").write_text('extern "C" int kernel() { return 1; }\n')
    root = tree / "toolkit"
    for name in ("bin", "include", "lib"):
        (root / name).mkdir(parents=True)
    nvcc = root / "bin/nvcc"
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    (root / "include/cuda_runtime.h").touch()
    subprocess.run(["ar", "rcs", root / "lib/libcudart_static.a"], check=True)
    return root


def calls(toolkit: Path) -> list[str]:
    """What nvcc was asked to compile."""
    return [c for c in (toolkit / "bin/calls").read_text().splitlines() if " -c " in c]


@pytest.mark.parametrize("given", ["CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH"])
def test_nvcc_is_found_and_told_the_contract(tree, toolkit, given):
    where = {
        "CUDACXX": str(toolkit / "bin/nvcc"),
        "PATH": f"{toolkit / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    environment = {given: where.get(given, str(toolkit)), "CXX": "env g++ -DUNUSED"}
    result = setup_py(tree, "build", "--build-lib", "out", **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("deevo_ext: build with CUDA 12.9 for GPUs 8.0 9.0+PTX") == 1
    (call,) = calls(toolkit)
    assert call.endswith("kernel.cu.o") and "csrc/cuda/kernel.cu" in call
    for flag in (
        "-fmad=false",
        "-Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off",
        "-ccbin g++ ",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ):
        assert flag in call, flag
    assert "fast" not in call and "compute_100" not in call
    text = (tree / "out/deevo_ext/_build_info.py").read_text()
    assert "cuda_version = '12.9'" in text
    assert "cuda_architectures = ('8.0', '9.0+PTX')" in text


def test_architectures_are_those_asked_for(tree, toolkit):
    environment = {"CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": "9.0a;8.0+PTX"}
    result = setup_py(tree, "build_ext", "--inplace", **environment)
    assert result.returncode == 0, result.stderr
    (call,) = calls(toolkit)
    assert re.findall("-gencode=(\\S+)", call) == [
        "arch=compute_90a,code=sm_90a",
        "arch=compute_80,code=sm_80",
        "arch=compute_80,code=compute_80",
    ]


def test_cuda_can_be_left_out(tree, toolkit):
    result = setup_py(tree, "build_ext", "--inplace", CUDA_HOME=str(toolkit), FORCE_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert f"{CPU_ONLY}FORCE_CUDA=0" in result.stdout
    assert not (toolkit / "bin/calls").exists()


def test_incomplete_toolkit_means_cpu_only_or_an_error(tree, toolkit):
    (toolkit / "lib/libcudart_static.a").unlink()
    result = setup_py(tree, "build_ext", "--inplace", CUDA_HOME=str(toolkit))
    assert result.returncode == 0, result.stderr
    assert f"{CPU_ONLY}the CUDA toolkit lacks libcudart_static.a" in result.stdout
    result = setup_py(tree, "build_ext", "--inplace", CUDA_HOME=str(toolkit), FORCE_CUDA="1")
    assert result.returncode == 1
    assert "no CUDA kernels: the CUDA toolkit lacks libcudart_static.a" in result.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CUDACXX": "/no/nvcc"}, "CUDACXX names '/no/nvcc', which does not exist"),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, "holds 'Hopper'; expected numbers such as"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0 12.0"}, "holds '12.0'; CUDA 12.9 and these kernels have"),
        ({"TORCH_CUDA_ARCH_LIST": "7.5"}, "holds '7.5'; CUDA 12.9 and these kernels have"),
    ],
    ids=["CUDACXX", "names", "unknown", "old"],
)
def test_what_cannot_be_built_for_is_one_error(tree, toolkit, environment, message):
    given = {"CUDA_HOME": str(toolkit), **environment}
    result = setup_py(tree, "-q", "build_ext", "--inplace", **given)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "deevo_ext" in line]
    assert message in line
    assert "Traceback" not in result.stderr
