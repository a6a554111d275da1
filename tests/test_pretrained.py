"""Models by name from the Hugging Face hub: a server on loopback speaks its API, and a fresh
interpreter opens them, since huggingface_hub reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environment import DATA, run_python
from folders import Model, write_hugging_face, write_meta
from hub_server import TOKEN, Hub, running_hub
from tiny import Shape, TinyLlama, tokenizer_file
from tokenizer_files import byte_level, sentencepiece
from tokenizer_keys import chat_model, sentencepiece_keys

from pyllama2c import DownloadError, Llama, UnknownModelError
from pyllama2c.errors import CheckpointNotFoundError
from pyllama2c.files.repository import HubName, parse_name
from pyllama2c.pretrained import hub_name

pytest.importorskip("huggingface_hub", reason="huggingface_hub (the extra `hub`) is not installed")

GGUF = chat_model(sentencepiece_keys()).build()
OTHER = chat_model(sentencepiece_keys(), seed=1).build()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


class Machine:
    """A user's: caches of its own, and the hub for a network."""

    def __init__(self, hub: Hub, folder: Path):
        self.hub_cache, self.cache = folder / "hf", folder / "cache"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        self.environment = kept | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(self.hub_cache),
            "PYLLAMA2C_CACHE": str(self.cache),
            "NO_PROXY": "127.0.0.1",
        }

    def command(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "pyllama2c", *words, env=self.environment | variables)

    def paths(self, *names: str, **variables: str) -> list[Path]:
        """The files that these models are opened from."""
        code = "import sys; from pyllama2c.pretrained import find_model as find\n"
        code += "for name in sys.argv[1:]: print(find(name).checkpoint)"
        return [Path(line) for line in self.python(code, *names, **variables).splitlines()]

    def path(self, name: str, **variables: str) -> Path:
        return self.paths(name, **variables)[0]

    def error(self, name: str, command: str = "info", **variables: str) -> str:
        done = self.command(command, name, **variables)
        assert done.returncode == 1 and done.stdout == "", done
        last = done.stderr.splitlines()[-1]
        assert last.startswith("pyllama2c: error: ")
        assert not any(word in done.stderr for word in ("Traceback", "httpx", "errno", "Errno"))
        return last.removeprefix("pyllama2c: error: ")

    def python(self, code: str, *words: str, **variables: str) -> str:
        done = run_python("-c", code, *words, env=self.environment | variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def partial_files(self) -> list[Path]:
        return [*self.cache.rglob("*.part")]


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


OFFLINE = {"HF_HUB_OFFLINE": "1"}
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:1"}


# ---- One file ----


def test_one_file_is_downloaded_once(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    files = {"README.md": b"# Owls", "q/owl.gguf": GGUF, "other.gguf": OTHER}
    hub.repo("ann/owls", files)
    path = machine.path("hf://ann/owls/q/owl.gguf")
    assert path.read_bytes() == GGUF
    assert hub.downloads() == ["q/owl.gguf"]
    hub.requests.clear()
    for variables in ({}, OFFLINE, NO_NETWORK):
        assert machine.path("hf://ann/owls/q/owl.gguf", **variables) == path
    assert hub.requests == []


def test_from_pretrained_is_the_same(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    hub.repo("ann/owls", {"a.gguf": GGUF, "b.gguf": OTHER})
    here = tmp_path / "model.gguf"
    here.write_bytes(GGUF)
    with Llama(here) as llama:
        told = llama.generate("ab", seed=1, max_tokens=9).read()
    code = """if True:
        import sys
        from pathlib import Path
        from pyllama2c import Llama
        a = Llama.from_pretrained("ann/owls", "a.gguf", revision="main", threads=1)
        b = Llama.from_pretrained(repo_id="ann/owls", filename="a*")
        c = Llama(Path("hf://ann/owls/a.gguf"))
        assert a.path == b.path == c.path and a.threads == 1
        sys.stdout.write(a.generate("ab", seed=1, max_tokens=9).read())
    """
    assert machine.python(code) == told.strip()
    assert hub.downloads() == ["a.gguf"]


def test_a_llama2c_checkpoint_and_its_tokenizer(hub: Hub, machine: Machine) -> None:
    files = {"t/model.bin": TinyLlama.random(Shape()).v0(), "t/tokenizer.bin": tokenizer_file()}
    hub.repo("ann/tiny", files)
    machine.path("hf://ann/tiny/t/model.bin")
    assert hub.downloads() == ["t/model.bin"]
    done = machine.command("hf://ann/tiny/t/model.bin", "-s", "1", "-n", "5")
    assert done.returncode == 0 and done.stdout
    assert hub.downloads() == ["t/model.bin", "t/tokenizer.bin"]


def test_a_name_that_leaves_a_choice(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/one", {"README.md": b"", "config.json": b"{}", "only.gguf": GGUF})
    assert machine.path("hf://ann/one").name == "only.gguf"
    hub.repo("ann/owls", {"a-q4.gguf": GGUF, "a-q8.gguf": OTHER, "x.safetensors": b""})
    assert machine.path("hf://ann/owls/*q8.gguf").name == "a-q8.gguf"
    both = "a-q4.gguf, a-q8.gguf"
    assert machine.error("hf://ann/owls").endswith(f"matches several files; name one: {both}")
    wrong = "hf://ann/owls/b.gguf"
    assert machine.error(wrong) == f"{wrong} matches no file; the repository has {both}"
    assert sorted({*hub.downloads()}) == ["a-q8.gguf", "only.gguf"]


def test_what_cannot_be_opened_is_not_downloaded(hub: Hub, machine: Machine) -> None:
    part = "model-00001-of-00002.gguf"
    hub.repo("ann/text", {"README.md": b"", part: GGUF, "rng.bin": b""})
    assert "neither a GGUF file nor a llama2.c checkpoint" in machine.error(
        "hf://ann/text/README.md"
    )
    assert "merge the parts" in machine.error(f"hf://ann/text/{part}")
    assert machine.error("hf://ann/text/config.json").endswith(
        f"the repository has {part}, rng.bin"
    )
    hub.repo("ann/empty", {"README.md": b""})
    assert machine.error("hf://ann/empty").endswith("checkpoint or folder to convert")
    assert hub.downloads() == []


# ---- Folders, which are converted ----


def folder_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")}


def small(vocab_size: int, **options: Any) -> Model:
    return Model(vocab_size=vocab_size, dim=32, head_size=8, n_layers=1, hidden_dim=64, **options)


BYTE_LEVEL = {
    "tokenizer.json": byte_level(),
    "tokenizer_config.json": {"eos_token": "<|im_end|>", "chat_template": "unused"},
    "special_tokens_map.json": {"pad_token": "<|im_start|>"},
    "generation_config.json": {"eos_token_id": [261, 262]},
}


def hugging_face_folder(folder: Path, shards: int = 1) -> Path:
    write_hugging_face(folder, small(263), shards=shards)
    for name, value in BYTE_LEVEL.items():
        (folder / name).write_text(json.dumps(value))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def meta_folder(folder: Path) -> Path:
    write_meta(folder, small(266), shards=2)
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    return folder


NOT_NEEDED = {
    "README.md": b"# A model",
    "onnx/model.onnx": b"?",
    "original/consolidated.00.pth": b"?",
    "pytorch_model.bin": b"?",
    "consolidated.safetensors": b"?",
    "vocab.json": b"{}",
}


@pytest.mark.parametrize("kind", ["whole", "sharded", "meta"])
def test_a_folder_is_converted_once(hub: Hub, machine: Machine, tmp_path: Path, kind: str) -> None:
    convert = pytest.importorskip("pyllama2c.convert")
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    source = tmp_path / "m"
    if kind == "meta":
        meta_folder(source)
    else:
        hugging_face_folder(source, shards=1 if kind == "whole" else 3)
    needed = folder_files(source)
    commit = hub.repo("ann/owls", NOT_NEEDED | needed).revisions["main"]
    convert.convert(source, tmp_path / "m.gguf", name="owls")

    done = machine.command("info", "hf://ann/owls", "--json")
    assert done.returncode == 0, done.stderr
    path = machine.cache / "hub" / "ann--owls" / f"{commit}-float16.gguf"
    assert json.loads(done.stdout)["model"] == str(path)
    assert path.read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert sorted(hub.downloads()) == sorted(needed)
    said = done.stderr.splitlines()
    assert len(said) == 3 and all(line.startswith("pyllama2c: hf://ann/owls: ") for line in said)
    assert "downloading" in said[0] and f"converting once to {path}" in said[2]

    hub.requests.clear()
    shutil.rmtree(machine.hub_cache)
    again = machine.command("info", "hf://ann/owls", "--json", **OFFLINE)
    assert json.loads(again.stdout)["model"] == str(path) and again.stderr == ""
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("config.json", {"architectures": ["OwlForCausalLM"]}, "architecture OwlForCausalLM"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "tokenizer.json"),
        ("tokenizer.json", None, "neither tokenizer.model nor tokenizer.json"),
        ("model.safetensors", None, "no GGUF file"),
    ],
)
def test_a_folder_is_refused_before_its_weights_come(
    hub: Hub, machine: Machine, tmp_path: Path, name: str, value: Any, reason: str
) -> None:
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    files = folder_files(hugging_face_folder(tmp_path / "m")) | {name: json.dumps(value).encode()}
    if value is None:
        del files[name]
    hub.repo("ann/owls", files)
    assert reason in machine.error("hf://ann/owls")
    assert "model.safetensors" not in hub.downloads()


def test_weights_that_do_not_convert(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    files = folder_files(hugging_face_folder(tmp_path / "m"))
    files["model.safetensors"] = files["model.safetensors"][:-4] + b"\0\0\xc0\x7f"
    hub.repo("ann/owls", files)
    assert "a weight is NaN or infinite" in machine.error("hf://ann/owls")
    assert [p.suffix for p in machine.cache.rglob("*") if p.is_file()] == [".json"]


# ---- list and rm ----


def test_list_and_rm(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    """Records and converted files are ours; downloads are huggingface_hub's, and stay."""
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    files = folder_files(hugging_face_folder(tmp_path / "m"))
    repo = hub.repo("ann/owls", files | {"a.gguf": GGUF})
    repo.revisions["v1.0"] = repo.revisions["main"]
    hub.repo("bob/cats", {"a.gguf": OTHER})
    converted = machine.path("hf://ann/owls")
    assert machine.path("hf://ann/owls@v1.0") == converted
    cat = machine.path("hf://bob/cats/a.gguf")

    def listed() -> dict[str, Any]:
        facts = json.loads(machine.command("list", "--json").stdout)["hub"]
        return {model["name"]: model for model in facts}

    commit = repo.revisions["main"]
    assert listed().keys() == {"hf://ann/owls", "hf://ann/owls@v1.0", "hf://bob/cats"}
    owls, cats = listed()["hf://ann/owls"], listed()["hf://bob/cats"]
    assert owls["converted"] == str(converted) and owls["commit"] == commit
    assert "model.safetensors" in owls["downloaded"] and "a.gguf" not in owls["downloaded"]
    assert cats["converted"] is None and cats["downloaded"] == {"a.gguf": str(cat)}
    assert cats["size"] == len(OTHER)
    lines = machine.command("list", **NO_NETWORK).stdout.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert "converted" in rows["hf://ann/owls"] and rows["hf://ann/owls"].endswith(commit)
    assert "hub cache" in rows["hf://bob/cats"]

    folder = machine.cache / "hub" / "ann--owls"
    (folder / "notes.txt").write_text("mine")
    done = machine.command("rm", "hf://ann/owls")
    assert done.returncode == 0 and "hf cache rm model/ann/owls" in done.stderr
    assert converted.is_file()  # v1.0's
    done = machine.command("rm", "hf://ann/owls@v1.0", "hf://bob/cats")
    assert done.returncode == 0 and f"{converted}: removed" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert not folder.with_name("bob--cats").exists() and cat.read_bytes() == OTHER
    assert listed() == {}
    assert "is not in the cache" in machine.error("hf://ann/owls", "rm")
    assert "hf://ann/owls names all" in machine.error("hf://ann/owls/a.gguf", "rm")


def test_a_damaged_record_is_named_and_can_go(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"a.gguf": GGUF})
    machine.path("hf://ann/owls")
    record = machine.cache / "hub" / "ann--owls" / "main.json"
    record.write_text("{")
    done = machine.command("list")
    assert done.returncode == 0 and f"{record} is damaged" in done.stderr
    assert machine.command("rm", "hf://ann/owls").returncode == 0
    assert not record.exists() and machine.command("list").stderr.count("is damaged") == 0


# ---- Revisions ----


def test_a_revision_stays_what_it_was(hub: Hub, machine: Machine) -> None:
    repo = hub.repo("ann/owls", {"owl.gguf": GGUF})
    first = repo.revisions["main"]
    assert machine.path("hf://ann/owls").read_bytes() == GGUF
    second = repo.commit({"owl.gguf": OTHER, "README.md": b""})
    for variables in ({}, OFFLINE):
        assert machine.path("hf://ann/owls", **variables).read_bytes() == GGUF
    # Whoever else uses the cache may have seen the revision move.
    machine.python("from huggingface_hub import hf_hub_download as d; d('ann/owls', 'owl.gguf')")
    assert machine.path("hf://ann/owls").read_bytes() == GGUF
    done = machine.command("download", "hf://ann/owls")
    assert Path(done.stdout.strip()).read_bytes() == OTHER
    assert f"hf://ann/owls moved from commit {first} to {second}" in done.stderr
    assert machine.path("hf://ann/owls", **OFFLINE).read_bytes() == OTHER
    assert machine.path(f"hf://ann/owls@{first}").read_bytes() == GGUF


def test_revisions_by_name(hub: Hub, machine: Machine) -> None:
    repo = hub.repo("ann/owls", {"owl.gguf": GGUF})
    repo.commit({"owl.gguf": OTHER}, "refs/pr/1")
    repo.commit({"owl.gguf": OTHER}, "a/b")
    names = [f"hf://ann/owls@{name}/owl.gguf" for name in ("refs%2Fpr%2F1", "refs/pr/1", "a%2Fb")]
    *others, main = machine.paths(*names, "hf://ann/owls@main")
    assert all(path.read_bytes() == OTHER for path in others) and main.read_bytes() == GGUF
    code = (
        "from pyllama2c import Llama; print(Llama.from_pretrained('ann/owls', revision='a/b').path)"
    )
    assert Path(machine.python(code)).read_bytes() == OTHER
    assert "ann/owls has no revision 'v2'" in machine.error("hf://ann/owls@v2")


def test_a_commit_that_is_gone(hub: Hub, machine: Machine) -> None:
    repo = hub.repo("ann/owls", {"owl.gguf": GGUF})
    machine.path("hf://ann/owls")
    repo.commits.clear()
    repo.commit({"owl.gguf": OTHER})
    shutil.rmtree(machine.hub_cache)
    assert "`pyllama2c download hf://ann/owls` gets the current one" in machine.error(
        "hf://ann/owls"
    )
    assert machine.command("download", "hf://ann/owls").returncode == 0
    assert machine.path("hf://ann/owls").read_bytes() == OTHER


# ---- Who may read what ----


def test_repositories_that_are_not_shown(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/secret", {"owl.gguf": GGUF}, private=True)
    for name, token in (("ann/nothing", None), ("ann/nothing", TOKEN), ("ann/secret", None)):
        variables = {} if token is None else {"HF_TOKEN": token}
        message = machine.error(f"hf://{name}", **variables)
        assert message.startswith(f"127.0.0.1 has no repository {name}, or it is private")
        assert "log in with `hf auth login` or set HF_TOKEN" in message
    assert machine.path("hf://ann/secret", HF_TOKEN=TOKEN).read_bytes() == GGUF


def test_logins_that_do_not_help(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/secret", {"owl.gguf": GGUF}, private=True)
    message = machine.error("hf://ann/secret", HF_TOKEN="hf_old")
    assert message.endswith("answered 401 Unauthorized: the token of HF_TOKEN or `hf auth login` "
                            "is not valid")  # fmt: skip
    hub.repo("ann/gated", {"owl.gguf": GGUF}, gated=True)
    message = machine.error("hf://ann/gated")
    assert f"access is restricted; request it at {hub.url}/ann/gated, then log in" in message
    hub.status = {"/api/": 403}
    assert "answered 403 Forbidden: the token" in machine.error("hf://ann/secret")


# ---- Downloads that go wrong ----


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    hub.cuts = 1
    first = machine.command("info", "hf://ann/owls")  # before 1.0, huggingface_hub gives up
    assert first.returncode == 0 or "the connection to 127.0.0.1 broke off" in first.stderr
    assert machine.path("hf://ann/owls").read_bytes() == GGUF
    assert hub.downloads() == ["owl.gguf"] * 2


def test_a_download_that_was_killed_starts_again(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    hub.stopped.clear()
    command = [sys.executable, "-m", "pyllama2c", "info", "hf://ann/owls"]
    killed = subprocess.Popen(command, env=machine.environment, cwd=DATA)
    assert hub.waiting.wait(600)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    hub.stopped.set()
    assert machine.path("hf://ann/owls").read_bytes() == GGUF


def test_content_that_is_not_what_the_hub_says(hub: Hub, machine: Machine) -> None:
    text = b'{"a": 1}'
    hub.repo("ann/owls", {"owl.gguf": GGUF, "config.json": text, "model.safetensors": b""})
    hub.garbled = 1
    assert machine.path("hf://ann/owls/owl.gguf").read_bytes() == GGUF
    assert hub.downloads() == ["owl.gguf"] * 2
    shutil.rmtree(machine.hub_cache)
    hub.garbled = 100
    message = machine.error("hf://ann/owls/owl.gguf")
    assert message.endswith("the hub sent a file with the wrong SHA-256")
    assert not list(machine.hub_cache.rglob("owl.gguf"))
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    message = machine.error("hf://ann/owls")
    assert (
        "cannot download config.json of hf://ann/owls: the hub sent a file with the wrong git"
        in (message)
    )


def test_a_size_that_is_not_what_the_hub_says(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    hub.sizes["owl.gguf"] = len(GGUF) + 1
    message = machine.error("hf://ann/owls")
    assert message.endswith(f"the hub sent {len(GGUF):,} bytes instead of {len(GGUF) + 1:,}")


def test_a_damaged_copy_is_fetched_again(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    path = machine.path("hf://ann/owls")
    path.write_bytes(GGUF[:100])  # another size is noticed at every use
    assert "of hf://ann/owls: HF_HUB_OFFLINE is set" in machine.error("hf://ann/owls", **OFFLINE)
    assert machine.path("hf://ann/owls").read_bytes() == GGUF
    path.write_bytes(bytes(len(GGUF)))  # the same size, by `download`
    assert machine.command("download", "hf://ann/owls").returncode == 0
    assert path.read_bytes() == GGUF


def test_two_processes_at_once(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    hub.repo("ann/owls", folder_files(hugging_face_folder(tmp_path / "m")))
    command = [sys.executable, "-m", "pyllama2c", "info", "hf://ann/owls", "--json"]
    options = {"env": machine.environment, "cwd": DATA, "stdout": subprocess.PIPE}
    running = [subprocess.Popen(command, **options) for _ in range(3)]  # type: ignore[call-overload]
    answers = {json.loads(process.communicate(timeout=600)[0])["model"] for process in running}
    assert len(answers) == 1 and {process.returncode for process in running} == {0}
    assert not machine.partial_files()


# ---- No network ----


def test_without_a_network(hub: Hub, machine: Machine) -> None:
    name = "hf://ann/owls/owl.gguf"
    message = machine.error(name, **NO_NETWORK)
    assert message == f"cannot look up {name}: no connection to 127.0.0.1 (is there a network?)"
    assert "HF_HUB_OFFLINE is set" in machine.error(name, **OFFLINE)
    assert "HF_HUB_OFFLINE is set" in machine.error(name, "download", **OFFLINE)
    hub.status = {"/api/": 503}
    assert "127.0.0.1 answered 503 Service Unavailable" in machine.error(name)
    assert not machine.cache.exists()


def test_what_others_downloaded_serves_without_a_network(hub: Hub, machine: Machine) -> None:
    repo = hub.repo("ann/owls", {"owl.gguf": GGUF})
    machine.python("from huggingface_hub import hf_hub_download as d; d('ann/owls', 'owl.gguf')")
    hub.requests.clear()
    done = machine.command("info", "hf://ann/owls/owl.gguf", "--json", **OFFLINE)
    assert Path(json.loads(done.stdout)["model"]).read_bytes() == GGUF
    assert f"using the cached commit {repo.revisions['main']}" in done.stderr
    assert "matches no file; the repository has" in machine.error(
        "hf://ann/owls/other.gguf", **OFFLINE
    )
    assert hub.requests == [] and not machine.cache.exists()  # with a network, it is asked
    assert machine.path("hf://ann/owls/owl.gguf").read_bytes() == GGUF
    assert hub.downloads() == []


# ---- No room ----


def test_a_disk_without_room(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    hub.sizes["owl.gguf"] = 1 << 60
    message = machine.error("hf://ann/owls")
    assert "1,152,921,504,606,846,976 bytes; " in message and "HF_HOME names" in message
    assert hub.downloads() == []


def test_a_disk_that_becomes_full(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
    files = folder_files(hugging_face_folder(tmp_path / "m"))
    hub.repo("ann/owls", files | {"owl.gguf": GGUF})
    code = """if True:
        import resource, sys
        from pyllama2c import DownloadError, Llama
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
        try:
            Llama(sys.argv[1])
        except DownloadError as error:
            print(error)
    """

    def message(name: str, room: int) -> str:
        done = run_python("-c", code, name, str(room), env=machine.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cut = message("hf://ann/owls/owl.gguf", len(GGUF) - 1)
    assert "cannot download owl.gguf of hf://ann/owls/owl.gguf: " in cut and "HF_HOME names" in cut
    assert not list(machine.hub_cache.rglob("owl.gguf"))
    assert machine.path("hf://ann/owls/owl.gguf").read_bytes() == GGUF

    machine.path("hf://ann/owls").unlink()
    cut = message("hf://ann/owls", 20000)
    assert "cannot convert hf://ann/owls: " in cut and "PYLLAMA2C_CACHE names" in cut
    assert machine.path("hf://ann/owls").is_file() and not machine.partial_files()


def test_caches_that_cannot_be_written(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    (tmp_path / "file").write_text("in the way")
    there = str(tmp_path / "file" / "cache")
    message = machine.error("hf://ann/owls", PYLLAMA2C_CACHE=there)
    assert f"{there}/hub/ann--owls: Not a directory (PYLLAMA2C_CACHE names another" in message
    message = machine.error("hf://ann/owls", HF_HOME=there)
    assert "Not a directory (HF_HOME names another folder" in message
    assert machine.path("hf://ann/owls").read_bytes() == GGUF


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"commit": "abc", "files": {}}', '{"commit": 1, "files": []}', "[" * 99999]
    + [f'{{"commit": "{"0" * 40}", "files": {{"a": {entry}}}}}'
       for entry in ("1", '{"size": -1, "hash": null}', '{"size": 1, "hash": "../x"}')],
)  # fmt: skip
def test_a_damaged_record(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path))
    record = tmp_path / "hub" / "ann--owls" / "main.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with pytest.raises(
        DownloadError, match=r"main\.json is damaged; `pyllama2c download hf://ann/owl"
    ):
        Llama("hf://ann/owls")


def test_download_writes_a_damaged_record_anew(hub: Hub, machine: Machine) -> None:
    hub.repo("ann/owls", {"owl.gguf": GGUF})
    machine.path("hf://ann/owls")
    (machine.cache / "hub" / "ann--owls" / "main.json").write_text("{")
    assert machine.command("download", "hf://ann/owls").returncode == 0
    assert machine.path("hf://ann/owls", **OFFLINE).read_bytes() == GGUF


# ---- Names and packages ----


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://ann/owls", ("ann/owls", "main", "")),
        ("hf:/ann/owls/", ("ann/owls", "main", "")),
        ("hf://ann/o.w-l_s/q/a b.gguf", ("ann/o.w-l_s", "main", "q/a b.gguf")),
        ("hf://ann/owls@v1.0/a@b.gguf", ("ann/owls", "v1.0", "a@b.gguf")),
        ("hf://ann/owls@refs/pr/7/a.gguf", ("ann/owls", "refs/pr/7", "a.gguf")),
        ("hf://ann/owls@a%2Fb", ("ann/owls", "a/b", "")),
        ("https://huggingface.co/ann/owls", ("ann/owls", "main", "")),
        ("https:/hf.co/ann/owls/tree/v1/", ("ann/owls", "v1", "")),
        ("https://huggingface.co/ann/owls/blob/main/q/a.gguf", ("ann/owls", "main", "q/a.gguf")),
        (
            "https://huggingface.co/ann/owls/resolve/refs%2Fpr%2F7/a.gguf?download=true",
            ("ann/owls", "refs/pr/7", "a.gguf"),
        ),
    ],
)
def test_names(name: str, parts: tuple[str, str, str]) -> None:
    assert parse_name(name) == HubName(*parts)
    assert parse_name(str(parse_name(name))) == HubName(*parts)


@pytest.mark.parametrize(
    "name",
    (
        "hf:// hf://owls hf://ann//a.gguf hf://ann/ow\tls hf://änn/owls hf://ann/owls@ "
        f"hf://ann/owls@/a hf://ann/owls@a@b hf://ann/owls@{'v' * 100} "
        "https://example.org/a/b.gguf https://huggingface.co/ann/owls/raw/main/a.gguf"
    ).split(" "),
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UnknownModelError, match="use hf://owner/name, hf://owner/name/file"):
        Llama(name)


def test_a_name_without_its_scheme() -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no such file; hf://ann/ow\.ls would"):
        Llama("ann/ow.ls")
    for path in ("ann/owls.gguf", "./ann/owls", "a/b/c"):
        with pytest.raises(CheckpointNotFoundError, match="No such file or directory"):
            Llama(path)


@pytest.mark.parametrize("arguments", [(1,), (None,), ("a/b", 1), ("a/b", None, 1)])
def test_parts_of_a_name_are_text(arguments: tuple[Any, ...]) -> None:
    padded: Any = (*arguments, None, None)[:3]
    with pytest.raises(TypeError, match="it must be a string"):
        Llama.from_pretrained(*padded[:2], revision=padded[2])


def test_parts_of_a_name_make_one() -> None:
    assert hub_name("a/b", None, None) == hub_name("hf://a/b", None, None) == "hf://a/b"
    assert hub_name("a/b", "c.gguf", "x/y") == "hf://a/b@x%2Fy/c.gguf"


MISSING = """if True:
    import sys
    sys.modules |= dict.fromkeys(sys.argv[2:])  # as if they were not installed
    from pyllama2c import Llama, UnsupportedError
    try:
        print(Llama(sys.argv[1]).path)
    except UnsupportedError as error:
        print(error)
"""


def test_packages_that_are_missing(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors (the extra `convert`) is not installed")
    hub.repo("ann/owls", folder_files(hugging_face_folder(tmp_path / "m")) | {"owl.gguf": GGUF})

    def printed(*words: str) -> str:
        done = run_python("-c", MISSING, *words, env=machine.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    name = "hf://ann/owls"
    needed = f"{name} needs huggingface_hub: pip install 'pyllama2c[hub]'"
    assert printed(name, "huggingface_hub") == needed
    extra = ("gguf", "safetensors", "ml_dtypes", "tokenizers", "jinja2")
    assert "pip install 'pyllama2c[convert]'" in printed(name, *extra)
    assert printed(f"{name}/owl.gguf", *extra).endswith("/owl.gguf")
    hub.repo("ann/one", {"only.gguf": GGUF})
    assert printed("hf://ann/one", *extra).endswith("/only.gguf")
    assert hub.downloads() == ["owl.gguf", "only.gguf"]
