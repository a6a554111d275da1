"""Builds the C engine as a cffi extension; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    def run(self):
        """With PYLLAMA2C_CUDA=1, the kernels for graphics cards are compiled anew by nvcc."""
        if os.environ.get("PYLLAMA2C_CUDA", "0") != "0":
            status = subprocess.call([sys.executable, "csrc/cuda/build_ptx.py"])
            if status != 0:
                sys.exit("PYLLAMA2C_CUDA=1: the kernels for graphics cards were not compiled.")
        status = subprocess.call([sys.executable, "csrc/cut_excerpts.py"])
        if status != 0:
            sys.exit("the page's excerpts of csrc were not cut.")
        super().run()


# Of what MSVC's tools find, only the compiler is another: MSVC's own has neither target regions
# nor the inline assembly of GCC and clang.
TARGETS = {"win-amd64": "x86_64-pc-windows-msvc", "win-arm64": "aarch64-pc-windows-msvc"}


class BuildExt(build_ext):
    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            if self.plat_name not in TARGETS:
                sys.exit(f"pyllama2c needs a 64-bit Python, not one for {self.plat_name}")
            if not self.compiler.initialized:
                self.compiler.initialize(self.plat_name)
            tools = Path(self.compiler.cc).parents[5]  # of Tools/MSVC/VERSION/bin/HOST/TARGET
            beside = [str(tools / "Llvm" / host / "bin") for host in ("x64", "ARM64")]
            path = os.pathsep.join([os.environ["PATH"], *beside])
            clang = shutil.which("clang-cl", path=path)
            if clang is None:
                sys.exit("pyllama2c needs clang-cl: install LLVM, or Visual Studio's clang tools")
            self.compiler.cc = clang
            self.compiler.compile_options.append(f"--target={TARGETS[self.plat_name]}")
        super().build_extensions()


# cffi keeps to the limited API, so one wheel serves every Python from 3.10 on; free-threaded Python
# has no limited API, and gets a wheel of its own.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["pyllama2c/_build.py:ffibuilder"],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
