"""Build the extension: CMake makes the native archive and tools, setuptools links the archive."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Of the machine that is built for, which is another one if the build is crossed.
MACHINE = sysconfig.get_platform().rpartition("-")[2] or platform.machine()
# As in CMakeLists.txt.
PROTECTION = [
    "-fstack-clash-protection",
    *{"x86_64": ["-fcf-protection=return"], "aarch64": ["-mbranch-protection=standard"]}.get(MACHINE, []),
]

# What the build looks for, as Debian and Fedora name it. From the fifth on: names of pkg-config.
PACKAGES = {
    "cmake": ("cmake", "cmake"),
    "compiler": ("gcc libc6-dev make", "gcc make"),
    "python": ("python3-dev", "python3-devel"),
    "pkg-config": ("pkg-config", "pkgconf-pkg-config"),
    "libcrypto": ("libssl-dev", "openssl-devel"),
    "libsodium": ("libsodium-dev", "libsodium-devel"),
    "p11-kit-1": ("libp11-kit-dev", "p11-kit-devel"),
    "jansson": ("libjansson-dev", "jansson-devel"),
}

# Listed as dependencies so that setuptools puts them into the source distribution.
FOLDERS = ("native", "bench/native", "bindings")
NATIVE = [str(path) for folder in FOLDERS for path in sorted(Path(folder).rglob("*")) if path.is_file()]


# Without an address of the repository, which [project.urls] would name as Source.
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")


def description(readme: str, address: str | None) -> str:
    """README.md for a package index, which has no file beside it: pictures and links get the repository's address.

    Without one, pictures are left out, and links are their words.
    """

    def whole(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if address is None:
            return "" if picture else words
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/main/{target})"

    return LINK.sub(whole, readme)


class NativeBuildExt(build_ext):
    def run(self) -> None:
        inplace = self.inplace
        # pip gives an editable build a temporary folder; a fixed one keeps the next build incremental, of a wheel also.
        self.build_temp = str(Path("build", f"extension-{sys.implementation.cache_tag}{sys.abiflags}"))
        if inplace:
            self.build_lib = self.build_temp
        package = Path("core" if inplace else self.build_lib, "hsmcore")
        # One for all interpreters: nothing in it knows Python.
        native = Path("build", "native").resolve()
        self.build_native(native)
        for ext in self.extensions:
            archive = str(native / "libhsmcore.a")
            # The archive is newer than every C source by now, so it alone decides whether to link again.
            ext.extra_objects, ext.depends = [archive], [archive, "bindings/native.map"]
            ext.sources = self.translate(ext).sources
            for stale in package.glob(ext.name.rpartition(".")[2] + ".*.so"):
                # An extension with another suffix would be imported instead of the new one.
                if stale.name != Path(self.get_ext_filename(ext.name)).name:
                    stale.unlink()
        super().run()
        shutil.rmtree(package / "_bin", ignore_errors=True)
        if (native / "bin").is_dir():
            shutil.copytree(native / "bin", package / "_bin")

    def build_native(self, build: Path) -> None:
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise SystemExit("hsmcore is not tested on free-threaded CPython: use the ordinary build of this version")
        if sys.platform != "linux":
            raise SystemExit(f"hsmcore runs on Linux only, and this is {sys.platform}: on macOS use a Linux container")
        if shutil.which("cmake") is None:
            raise SystemExit(absent("CMake 3.25 or newer", ["cmake"]))
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise SystemExit(absent(f"Python.h of Python {version}", ["python"]))
        # A compiler newer than ours may warn about more; that must not stop somebody's installation.
        options = [
            "-DBUILD_TESTING=OFF",
            "-DHSMC_WERROR=OFF",
            "-DHSMC_LTO=ON",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        line = ["cmake", "-S", ".", "-B", str(build), *options]
        configured = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if configured.returncode:
            raise SystemExit(explanation(configured.stdout))
        subprocess.run(["cmake", "--build", str(build), "--parallel"], check=True)

    def build_extension(self, ext: Extension) -> None:
        """As usual, but compile again only if the translation, a header or the way to compile has changed."""
        [source] = ext.sources
        object_file = Path(self.build_temp, source).with_suffix(".o")
        stamp = object_file.with_suffix(".how")
        how = repr((self.get_ext_filename(ext.name), self.compiler.compiler_so, ext.extra_compile_args, Path.cwd()))
        newest = max(path.stat().st_mtime_ns for path in (Path(source), *Path("native", "include").rglob("*.h")))
        known = object_file.is_file() and stamp.is_file() and stamp.read_text() == how
        if known and object_file.stat().st_mtime_ns > newest:
            ext.sources, ext.extra_objects = [], [str(object_file), *ext.extra_objects]
        super().build_extension(ext)
        stamp.write_text(how)

    def translate(self, ext: Extension) -> Extension:
        [translated] = cythonize(
            [ext], build_dir="build/cython", include_path=["bindings"], compiler_directives={"language_level": "3"}
        )
        return translated


def absent(what: str, keys: list[str]) -> str:
    """One sentence: what is missing, and what to install for it."""
    debian, fedora = (" ".join(PACKAGES[key][column] for key in keys) for column in range(2))
    return (
        f"hsmcore: {what} is missing to build from source: "
        f"apt-get install {debian} (Debian, Ubuntu), or dnf install {fedora} (Fedora)"
    )


def explanation(said: str) -> str:
    """What CMake's complaint means, or the complaint itself."""
    if re.search(r"CMake [\d.]+ or higher is required", said):
        return absent("CMake 3.25 or newer", ["cmake"])
    if re.search("CMAKE_C_COMPILER|CMAKE_MAKE_PROGRAM|is not able to compile", said):
        return absent("a C compiler, or make,", ["compiler"])
    if shutil.which("pkg-config") is None:
        return absent("pkg-config", ["pkg-config"])
    # CMake stops at the first; all at once spare the user a round for each.
    missing = [name for name in list(PACKAGES)[4:] if subprocess.run(["pkg-config", name], check=False).returncode]
    if missing:
        return absent(f"the development package of {', '.join(missing)}", missing)
    return f"hsmcore: CMake cannot configure the native half:\n{said}"


class WheelWithBill(bdist_wheel):
    """Packs the software bill of materials that `make sbom` has written, if it has (PEP 770). HSMCORE_BILL names
    another place: scripts/wheels.py builds in a folder that has only what git knows."""

    def write_wheelfile(self, wheelfile_base: str, *arguments: str) -> None:
        super().write_wheelfile(wheelfile_base, *arguments)
        bill = Path(os.environ.get("HSMCORE_BILL", "dist/hsmcore.cdx.json"))
        if bill.is_file():
            folder = Path(wheelfile_base, "sboms")
            folder.mkdir(exist_ok=True)
            shutil.copy(bill, folder)


PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]

setup(
    long_description=description(Path("README.md").read_text(), PROJECT.get("urls", {}).get("Source")),
    long_description_content_type="text/markdown",
    cmdclass={"build_ext": NativeBuildExt, "bdist_wheel": WheelWithBill},
    ext_modules=[
        Extension(
            "hsmcore._native",
            ["bindings/_native.pyx"],
            include_dirs=["native/include"],
            libraries=["crypto", "sodium"],
            extra_compile_args=["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3", "-fstack-protector-strong", *PROTECTION],
            extra_link_args=["-Wl,-z,relro,-z,now", "-Wl,--version-script=bindings/native.map"],
            depends=["CMakeLists.txt", *NATIVE],
        )
    ],
)
