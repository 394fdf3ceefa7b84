"""Build the extension: CMake makes the native archive and tools, setuptools links the archive."""

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# As in CMakeLists.txt.
PROTECTION = [
    "-fstack-clash-protection",
    *{"x86_64": ["-fcf-protection=return"], "aarch64": ["-mbranch-protection=standard"]}.get(platform.machine(), []),
]

# Listed as dependencies so that setuptools puts them into the source distribution.
FOLDERS = ("native", "bench/native", "bindings")
NATIVE = [str(path) for folder in FOLDERS for path in sorted(Path(folder).rglob("*")) if path.is_file()]


class NativeBuildExt(build_ext):
    def run(self) -> None:
        inplace = self.inplace
        if inplace:
            # pip gives an editable build a temporary folder; a fixed one keeps the next build incremental.
            self.build_temp = self.build_lib = str(Path("build", "inplace"))
        package = Path("core" if inplace else self.build_lib, "hsmcore")
        native = Path(self.build_temp, "native").resolve()
        self.build_native(native)
        for ext in self.extensions:
            archive = str(native / "libhsmcore.a")
            # The archive is newer than every C source by now, so it alone decides whether to link again.
            ext.extra_objects, ext.depends = [archive], [archive]
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
        if shutil.which("cmake") is None:
            raise SystemExit("hsmcore: CMake 3.25 or newer must be installed to build from source")
        # A compiler newer than ours may warn about more; that must not stop somebody's installation.
        options = ["-DBUILD_TESTING=OFF", "-DHSMC_WERROR=OFF", *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
        subprocess.run(["cmake", "-S", ".", "-B", str(build), *options], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", str(build), "--parallel"], check=True)

    def translate(self, ext: Extension) -> Extension:
        [translated] = cythonize(
            [ext], build_dir="build/cython", include_path=["bindings"], compiler_directives={"language_level": "3"}
        )
        return translated


class WheelWithBill(bdist_wheel):
    """Packs the software bill of materials that `make sbom` has written, if it has (PEP 770)."""

    def write_wheelfile(self, wheelfile_base: str, *arguments: str) -> None:
        super().write_wheelfile(wheelfile_base, *arguments)
        bill = Path("dist", "hsmcore.cdx.json")
        if bill.is_file():
            folder = Path(wheelfile_base, "sboms")
            folder.mkdir(exist_ok=True)
            shutil.copy(bill, folder)


setup(
    cmdclass={"build_ext": NativeBuildExt, "bdist_wheel": WheelWithBill},
    ext_modules=[
        Extension(
            "hsmcore._native",
            ["bindings/_native.pyx"],
            include_dirs=["native/include"],
            libraries=["crypto", "sodium"],
            extra_compile_args=["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3", "-fstack-protector-strong", *PROTECTION],
            extra_link_args=["-Wl,-z,relro,-z,now"],
            depends=["CMakeLists.txt", *NATIVE],
        )
    ],
)
