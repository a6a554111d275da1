"""Builds the C engine as a cffi extension; everything else is in pyproject.toml."""

import os
import subprocess
import sys
import sysconfig

from setuptools import setup
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


# cffi keeps to the limited API, so one wheel serves every Python from 3.10 on; free-threaded Python
# has no limited API, and gets a wheel of its own.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["pyllama2c/_build.py:ffibuilder"],
    cmdclass={"build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
