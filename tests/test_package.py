"""The package as it is built and imported."""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from environment import run_python

import pyllama2c
from pyllama2c import _llama2c

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
TESTS = ROOT / "tests"


def test_nothing_leaks_from_the_extension() -> None:
    """Loaded beside other engines, ours must not offer or take a symbol by accident."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", _llama2c.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    names -= {"_init", "_fini", "_edata", "_end", "__bss_start"}
    assert {name for name in names if "asan" not in name} == {"PyInit__llama2c"}


Symbols = dict[str, tuple[set[str], set[str]]]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of csrc, compiled as for a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("a C compiler and nm are needed")
    folder, made = tmp_path_factory.mktemp("objects"), {}
    for number, source in enumerate(CSRC.rglob("*.c")):
        made[source.relative_to(CSRC).as_posix()] = target = folder / f"{number}.o"
        flags = ["-std=c11", "-O0", "-fPIC", "-fvisibility=hidden", "-DL2C_SHARED", f"-I{CSRC}"]
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
    return made


@pytest.fixture(scope="module")
def c_symbols(objects: dict[str, Path]) -> Symbols:
    """The global names that each file defines, and those that it takes from elsewhere."""
    symbols = {}
    for source, target in objects.items():
        listing = subprocess.run(
            ["nm", "-g", str(target)], capture_output=True, text=True, check=True
        )
        defined, taken = set(), set()
        for line in listing.stdout.splitlines():
            *_, kind, name = line.split()
            (taken if kind in "Uw" else defined).add(name.lstrip("_"))
        symbols[source] = defined, taken
    return symbols


def test_every_global_c_name_is_prefixed(c_symbols: Symbols) -> None:
    for source, (defined, _) in c_symbols.items():
        assert all(name.startswith("l2c_") for name in defined), (source, defined)


def test_c_files_call_downwards(c_symbols: Symbols) -> None:
    """No file calls back into one that calls it, not even by way of others."""
    home = {name: source for source, (defined, _) in c_symbols.items() for name in defined}
    calls = {
        source: {home[name] for name in taken & home.keys()}
        for source, (_, taken) in c_symbols.items()
    }
    assert calls["model.c"] >= {"files/checkpoint.c", "files/gguf_model.c"}
    try:
        graphlib.TopologicalSorter(calls).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these call each other in a circle: {', '.join(error.args[1])}")


def test_sessions_and_batches_know_no_kernel_and_no_thread(c_symbols: Symbols) -> None:
    """Whatever computes is behind backend.h; all they name is the CPU's table."""
    parts = "pool|kernels?|logprob|rope|matrix|forward|attention|sampler_pick"
    behind = re.compile(rf"l2c_({parts})\w*")
    for source in ("session.c", "logits.c", "decode.c", "speculate.c", "batch.c", "sweep.c"):
        taken = c_symbols[source][1]
        assert not [name for name in taken if behind.fullmatch(name)], source
    assert "l2c_sampler_pick" in c_symbols["draws.c"][1]


def test_a_shared_library_offers_what_the_header_declares(
    objects: dict[str, Path], tmp_path: Path
) -> None:
    library = tmp_path / "libllama2c.so"
    command = ["cc", "-shared", *map(str, objects.values()), "-o", str(library), "-lm", "-pthread"]
    subprocess.run(command, check=True)
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    header = re.sub(r"/\*.*?\*/", "", (CSRC / "llama2c.h").read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"^\w[\w *]*?\b(l2c_\w+)\(", header, re.MULTILINE))
    offered = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert {name for name in offered if name.startswith("l2c_")} == declared
    assert len(declared) > 50


def test_the_engine_never_prints_or_exits() -> None:
    forbidden = re.compile(r"\b(printf|fprintf|puts|exit|abort|assert|perror)\s*\(")
    for source in CSRC.rglob("*.[ch]"):
        code = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL)
        assert not forbidden.findall(code), source.name


def test_size_budgets() -> None:
    for source in [*CSRC.rglob("*.c"), *(ROOT / "pyllama2c").rglob("*.py")]:
        limit = 400 if source.suffix == ".c" else 300
        assert len(source.read_text().splitlines()) <= limit, source.name


def test_imports_are_light() -> None:
    """Neither NumPy nor anything of the download path, until somebody asks for arrays or models."""
    code = "import sys, pyllama2c, pyllama2c.cli.main; print(*sys.modules)"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    heavy = {"numpy", "pooch", "requests", "tqdm", "platformdirs", "dataclasses", "cffi", "gguf"}
    assert not heavy & set(done.stdout.split())


def test_a_story_needs_no_numpy() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from pyllama2c.cli.main import main; sys.exit(main(['-n', '20', '-s', '1']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 0 and len(done.stdout) > 20


def test_a_base_installation_tells_stories() -> None:
    """What the README shows first needs no package of an extra: command, batch, score, tokens."""
    extras = "gguf huggingface_hub jinja2 llguidance ml_dtypes msgspec safetensors shtab starlette "
    absent = (extras + "tokenizers uvicorn").split()
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from pyllama2c.cli.main import main; assert main(['-s', '3', '-n', '9']) == 0\n"
        "from pyllama2c import Llama; llama = Llama()\n"
        "assert llama.generate('Once', seed=1, max_tokens=5, stop=['x'], logprobs=1).read()\n"
        "assert len(list(llama.generate_batch(['Once'], n=3, max_tokens=5))) == 3\n"
        "llama.score('Once upon a time'); llama.logits([1, 403, 407])"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_typed_and_complete() -> None:
    package = Path(pyllama2c.__file__).parent
    assert (package / "py.typed").is_file()
    for name in pyllama2c.__all__:
        assert getattr(pyllama2c, name).__doc__, name
    assert pyllama2c.__version__ in (ROOT / "CHANGELOG.md").read_text()
    header = (CSRC / "llama2c.h").read_text()
    assert f'#define L2C_VERSION "{pyllama2c.__version__}"' in header


def test_the_embedded_model_travels() -> None:
    from pyllama2c.files.hub import data_folder

    sizes = {p.name: p.stat().st_size for p in data_folder().iterdir() if p.suffix == ".bin"}
    assert set(sizes) >= {"storyteller.bin", "tokenizer.bin"}
    assert sizes["storyteller.bin"] + sizes["tokenizer.bin"] < 3_000_000


def in_a_clone(tmp_path: Path, header: bytes, version: str) -> subprocess.CompletedProcess[str]:
    """`import pyllama2c` where the source has another folder than the engine, as in a clone after
    `pip install .`."""
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(ROOT / "pyllama2c", clone / "pyllama2c", ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(Path(pyllama2c.__file__).parent, site / "pyllama2c")
    shutil.copy(_llama2c.__file__, site / "pyllama2c")
    shutil.copytree(ROOT / "models", site / "pyllama2c" / "models", dirs_exist_ok=True)
    (clone / "csrc").mkdir()
    (clone / "csrc" / "llama2c.h").write_bytes(header)
    code = clone / "pyllama2c" / "__init__.py"
    code.write_text(code.read_text().replace(f'"{pyllama2c.__version__}"', f'"{version}"'))
    told = (
        "import pyllama2c, pyllama2c.models, sys; print(pyllama2c.__file__)\n"
        "print(len(pyllama2c.Llama().generate(seed=1, max_tokens=9).read()) > 9)"
    )
    # No installation but that one: neither this environment's own nor an editable one.
    paths = [str(site), *(path for path in sys.path if path.endswith("-packages"))]
    command = [sys.executable, "-S", "-c", told]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


def test_import_in_the_clone(tmp_path: Path) -> None:
    header, version = (CSRC / "llama2c.h").read_bytes(), pyllama2c.__version__
    done = in_a_clone(tmp_path / "same", header, version)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "same" / "clone") in done.stdout and "True" in done.stdout
    for name, older in (("header", (header + b"/* */", version)), ("version", (header, "9.9"))):
        refused = in_a_clone(tmp_path / name, *older)
        assert refused.returncode == 1
        assert "the installed engine is older: pip install . again" in refused.stderr


def test_the_plugin_of_llm_names_its_extra() -> None:
    absent = "import sys; sys.modules['llm'] = None"
    done = run_python("-c", f"{absent}\nimport pyllama2c.integrations.llm")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("pip install 'pyllama2c[llm]'")


def test_the_harness_names_its_extra() -> None:
    """lm_eval is not there: one line for `python -m`, an ImportError for Python."""
    absent = "import runpy, sys; sys.modules['lm_eval'] = None"
    module = "pyllama2c.integrations.lm_eval"
    for code, lines in (
        (f"runpy.run_module({module!r}, run_name='__main__')", 1),
        (f"import {module}", 9),
    ):
        done = run_python("-c", f"{absent}\n{code}")
        assert done.returncode == 1
        assert done.stderr.rstrip().endswith("pip install 'pyllama2c[eval]'")
        assert done.stderr.count("\n") <= lines


def test_ray_names_its_extra() -> None:
    done = run_python(
        "-c", "import sys; sys.modules['ray'] = None\nimport pyllama2c.integrations.ray"
    )
    assert done.returncode == 1 and done.stderr.rstrip().endswith("pip install 'pyllama2c[ray]'")


@pytest.mark.parametrize("free_threaded", [0, 1])
def test_the_limited_api(free_threaded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free-threaded Python has none."""
    import runpy

    setuptools = pytest.importorskip("setuptools")
    asked: list[dict[str, object]] = []
    real = sysconfig.get_config_var
    fake = {"Py_GIL_DISABLED": free_threaded}
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: fake.get(name, real(name)))
    monkeypatch.setattr(setuptools, "setup", lambda **options: asked.append(options))
    runpy.run_path(str(ROOT / "setup.py"))
    options = {} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}}
    assert asked[0]["options"] == options


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="Python has a GIL here")
def test_the_gil_stays_off() -> None:
    done = run_python(
        "-c", "import sys, pyllama2c; pyllama2c.Llama(); print(sys._is_gil_enabled())"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="needs the source folder")
@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_can_be_imported(path: Path) -> None:
    """What they take from the package is there; packages that they measure may be missing."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyllama2c"):
            try:
                source = importlib.import_module(str(node.module))
            except ImportError as error:
                if "pip install" not in str(error):
                    raise
                pytest.skip(str(error))
            for name in node.names:
                assert hasattr(source, name.name) or importlib.import_module(
                    f"{node.module}.{name.name}"
                )


def test_no_clock_decides_a_test() -> None:
    """A machine may be as busy as it likes: what could run away is bounded by processor time. What
    on_card.sh runs is no test: it has a card for minutes, and measures."""
    clocks = re.compile(r"\b(perf_counter|monotonic|time\.time)(_ns)?\(|deadline=\d")
    on_card = set((TESTS / "cuda").glob("*card*.py")) - set(TESTS.rglob("test_*.py"))
    for path in set(TESTS.rglob("*.py")) - on_card:
        assert not clocks.findall(path.read_text(encoding="utf-8")), path
