"""Builds deevo_ext._C from csrc/; everything else about the package is in pyproject.toml.

The build needs g++ (or CXX / CC) and pybind11, never torch, and never looks at the machine's GPUs,
so what is built depends on the sources and the compilers alone. With nvcc it has CUDA kernels
(build_cuda.py), without it is for the CPU only and says so.

Environment: CXX, CC    compiler; the first that is set, otherwise g++
             MAX_JOBS   compilations at a time, by default min(cores, RAM in GB / 2)
             DEBUG=1    -O0 -g in place of -O3 -g0
             VERBOSE=1  print every command
             CUDACXX, CUDA_HOME, CUDA_PATH    where nvcc is, looked for before PATH
             FORCE_CUDA=1 makes it an error if there can be no CUDA kernels; =0 leaves them out
             TORCH_CUDA_ARCH_LIST    GPUs to compile for, by default "8.0 9.0 10.0+PTX"
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip builds with another directory there
import build_cuda  # noqa: E402

PACKAGE = "deevo_ext"
SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.cpp"))
CUDA_SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.cu"))
CUDA_BINDINGS = "csrc/python/cuda.cpp"

# The results are promised bit for bit on every machine and backend. So no -march=native, no
# -ffast-math, and no contraction of a*b+c into one rounding: each would let the compiler or the CPU
# at hand change the last bit. Code for newer CPUs is chosen at run time, function by function. For
# the same reason CXXFLAGS and CFLAGS are not read. -fno-math-errno changes no value: it lets sqrt
# be one instruction.
BIT_CONTRACT = ["-ffp-contract=off", "-fno-math-errno"]


def switch(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "off", "false", "no")


def fail(message: str) -> NoReturn:
    sys.exit(f"deevo_ext: error: {message}")


def compiler() -> list[str]:
    """The command of the C++ compiler; CXX may hold a launcher too, as in "ccache g++"."""
    command = shlex.split(os.environ.get("CXX") or os.environ.get("CC") or "g++")
    if shutil.which(command[0]) is None:
        fail(f"C++ compiler {command[0]!r} not found. Install g++ or point CXX to a compiler.")
    return command


def compiler_version(command: list[str]) -> str:
    out = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    return (out.splitlines() or ["unknown"])[0].strip()


def compile_flags() -> list[str]:
    optimisation = ["-O0", "-g"] if switch("DEBUG") else ["-O3", "-g0"]
    return ["-std=c++17", *optimisation, "-fPIC", "-fvisibility=hidden", *BIT_CONTRACT,
            "-Wall", "-Wextra"]  # fmt: skip


def include_flags(work: Path) -> list[str]:
    try:
        import pybind11
    except ImportError:
        fail('pybind11 not found: pip install "pybind11>=2.13", or build through pip, which does.')
    # pip's isolated build puts pybind11 into a new directory each time. Seen through a link, named
    # by its version, the commands stay the same and ninja compiles only what has changed.
    link = work / f"pybind11-{pybind11.__version__}" / "pybind11"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(pybind11.get_include()) / "pybind11")
    # -isystem: warnings are for this package's own code.
    system = [link.parent, sysconfig.get_path("include")]
    sources = [ROOT / "csrc" / "include", ROOT / "csrc"]
    return [*(f"-I{path}" for path in sources), *(f"-isystem{path}" for path in system)]


def jobs() -> int:
    limit = os.environ.get("MAX_JOBS", "").strip()
    if limit:
        if not re.fullmatch(r"[1-9]\d*", limit):
            fail(f"MAX_JOBS={limit!r}, expected a positive whole number.")
        return int(limit)
    ram_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(ram_gb / 2)))


def find_ninja() -> str | None:
    try:
        import ninja  # the PyPI package: its program need not be on PATH
    except ImportError:
        return shutil.which("ninja")
    program = Path(ninja.BIN_DIR) / "ninja"
    return str(program) if program.exists() else shutil.which("ninja")


def git_commit() -> str | None:
    """The commit of this checkout, with "-dirty" after local changes; None outside of git."""
    if not (ROOT / ".git").exists():  # do not report a repository that merely surrounds us
        return None
    describe = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--dirty",
                "--exclude=*"]  # fmt: skip
    try:
        result = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() or None


def run(command: list[str]) -> None:
    if switch("VERBOSE"):
        print(shlex.join(command), flush=True)
    if (status := subprocess.run(command, cwd=ROOT).returncode) != 0:
        fail(f"command failed with status {status}: {shlex.join(command)}")


def compile_and_link(
    compilers: dict[str, list[str]],
    link: list[str],
    libraries: list[str],
    objects: dict[str, Path],
    out: Path,
) -> None:
    """Makes `out` from `objects` (source -> object file), with ninja or else one by one.

    compilers: the command for each suffix of sources; libraries: what follows the objects.
    """
    ninja = find_ninja()
    if ninja is None:
        for source, obj in objects.items():
            obj.parent.mkdir(parents=True, exist_ok=True)
            run([*compilers[Path(source).suffix], "-c", source, "-o", str(obj)])
        run([*link, *map(str, objects.values()), *libraries, "-o", str(out)])
        return

    def path(p: object) -> str:
        return re.sub(r"([$ :])", r"$\1", str(p))

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    lines = [
        f"builddir = {path(out.parent)}",  # for ninja's own log
        *(
            line
            for suffix, compiler_ in compilers.items()
            for line in (
                f"rule compile{suffix}",
                f"  command = {command(compiler_)} -MMD -MF $out.d -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
                "  description = compile $in",
            )
        ),
        "rule link",
        f"  command = {command(link)} $in {command(libraries)} -o $out",
        "  description = link $out",
        *(
            f"build {path(obj)}: compile{Path(source).suffix} {path(source)}"
            for source, obj in objects.items()
        ),
        f"build {path(out)}: link {' '.join(map(path, objects.values()))}",
    ]
    build_file = out.parent / "build.ninja"
    build_file.write_text("\n".join(lines) + "\n")
    run([ninja, "-f", str(build_file), f"-j{jobs()}", *(["-v"] if switch("VERBOSE") else [])])


CudaPlan = tuple[build_cuda.Toolkit, build_cuda.Architectures]


def plan_cuda() -> CudaPlan | None:
    """What to build the CUDA kernels with; None, said in one line, for a CPU-only build."""
    forced = build_cuda.forced()
    reason = None
    if forced is False:
        reason = "FORCE_CUDA=0"
    elif not CUDA_SOURCES:
        reason = "no CUDA sources under csrc"
    else:
        try:
            toolkit = build_cuda.find_toolkit()
            targets = build_cuda.architectures(toolkit)
        except build_cuda.CudaError as error:
            # What was asked for by name is no matter of what happens to be installed.
            if os.environ.get("CUDACXX") or os.environ.get("TORCH_CUDA_ARCH_LIST"):
                fail(f"{error}.")
            reason = str(error)
    if reason is not None:
        if forced:
            fail(f"FORCE_CUDA is set, but there can be no CUDA kernels: {reason}.")
        print(f"deevo_ext: CPU-only build: {reason}", flush=True)
        return None
    names = " ".join(targets.names)
    print(f"deevo_ext: build with CUDA {toolkit.version} for GPUs {names}", flush=True)
    return toolkit, targets


def cuda_compiler(
    toolkit: build_cuda.Toolkit, targets: build_cuda.Architectures, cxx: list[str]
) -> list[str]:
    includes = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}", f"-I{toolkit.include}"]
    names = " ".join(targets.names)
    # A launcher such as ccache stands before the compiler's own name, options behind it.
    host = [word for word in cxx if not word.startswith("-")][-1]
    flags = toolkit.flags(host, includes, switch("DEBUG"))
    return [*toolkit.nvcc, *flags, *targets.flags, f'-DDEEVO_CUDA_ARCHITECTURES="{names}"']


class BuildExtension(build_ext):
    def run(self) -> None:
        if not sys.platform.startswith("linux"):
            fail(f"only Linux is supported, this is {sys.platform!r}.")
        if not SOURCES:
            fail(f"no C++ sources under {ROOT / 'csrc'}: incomplete source tree?")
        cxx, flags = compiler(), compile_flags()
        cuda = plan_cuda()
        link, libraries = [*cxx, "-shared", "-pthread", "-Wl,--exclude-libs,ALL"], list[str]()
        if not os.environ.get("CXX") and os.environ.get("CC"):
            # A C driver compiles C++ by file name but does not link it.
            libraries.append("-lstdc++")
        # Not setuptools' build_temp, which an editable install throws away: this one is kept for
        # the next, incremental build.
        work = ROOT / "build" / f"{PACKAGE}-{sysconfig.get_config_var('SOABI')}"
        library = work / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        sources = [s for s in SOURCES if cuda or s != CUDA_BINDINGS]
        objects = {s: work / f"{s}.o" for s in (*sources, *(CUDA_SOURCES if cuda else ()))}
        # Hidden visibility leaves the standard library's templates exported, which could then be
        # taken from, or lent to, another library in the process that was compiled differently.
        work.mkdir(parents=True, exist_ok=True)
        exports = work / "exports.map"
        exports.write_text("{ global: PyInit__C; local: *; };\n")
        link.append(f"-Wl,--version-script={exports}")
        compilers = {".cpp": [*cxx, *flags, *include_flags(work)]}
        if cuda:
            toolkit, targets = cuda
            compilers[".cpp"].append("-DDEEVO_WITH_CUDA")
            compilers[".cu"] = cuda_compiler(toolkit, targets, cxx)
            libraries += toolkit.link()
        compile_and_link(compilers, link, libraries, objects, library)

        in_place = self.inplace or self.editable_mode
        target = (ROOT if in_place else Path(self.build_lib)) / PACKAGE
        target.mkdir(parents=True, exist_ok=True)
        # Copy, then rename: a process that has the old library loaded keeps it intact.
        shutil.copyfile(library, target / f"{library.name}.new")
        os.replace(target / f"{library.name}.new", target / library.name)
        self.write_build_info(target / "_build_info.py", cxx, flags, cuda)

    def write_build_info(
        self, path: Path, cxx: list[str], flags: list[str], cuda: "CudaPlan | None"
    ) -> None:
        facts = {
            "compiler": shlex.join(cxx),
            "compiler_version": compiler_version(cxx),
            "flags": " ".join(flags),
            "cuda_version": cuda[0].version if cuda else None,
            "cuda_architectures": cuda[1].names if cuda else (),
            "git_commit": git_commit(),
        }
        body = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        path.write_text(f'"""How deevo_ext._C was built; written by setup.py."""\n\n{body}')


class BuildPython(build_py):
    def run(self) -> None:
        # build/lib outlives a build, and all it holds goes into the wheel: without this, modules
        # deleted since the last build would be installed again.
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension(f"{PACKAGE}._C", SOURCES, language="c++")],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
