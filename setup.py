"""Builds the C engine as a cffi extension; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# cffi keeps to the limited API, so one wheel serves every Python from 3.10 on; free-threaded Python
# has no limited API, and gets a wheel of its own.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["pyllama2c/_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
