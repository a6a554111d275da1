"""Builds the C engine as a cffi extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["pyllama2c/_build.py:ffibuilder"],
    # cffi keeps to the limited API, so one wheel serves every Python from 3.10 on.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
