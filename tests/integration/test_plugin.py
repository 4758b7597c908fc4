"""A loss and an engine from another package, installed as a stranger's would be."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dump_tools import WORDS
from engine_conformance import EngineConformance
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache import engines

pytestmark = pytest.mark.integration
SOURCE = Path(__file__).resolve().parents[1] / "plugin"
PACKAGE = "logitcache-plugin-example"

Run = Any


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in a directory of its own, with its entry points."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, place / "source")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", place / "site", place / "source"], check=True, timeout=120)
    return place / "site"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, its cache, a student and a text."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = save_tokenizer(place / "tokenizer", TEXT)
    teacher = AutoModelForCausalLM.from_pretrained(save_llama(place / "teacher", tokenizer, seed=0)).eval()
    save_llama(place / "student", tokenizer, seed=1)
    cache_of_model(place / "cache", teacher, text_sequences(tokenizer, TEXT, 32, 8), tokenizer, k=32)
    (place / "words.txt").write_text(WORDS)
    return place


@pytest.fixture
def run(installed: Path) -> Run:
    """Run Python, or `logitcache`, with the package installed."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    return call


COMMAND = ("-c", "from logitcache.cli.main import run; run()")


def train(place: Path, out: Path, loss: str) -> list[str]:
    files = ["--cache", str(place / "cache"), "--student", str(place / "student"), "--out", str(out)]
    return [*COMMAND, "train", *files, "--loss", loss, "--max-steps", "2", "--batch-size", "4"]


def test_train_takes_the_loss(place: Path, tmp_path: Path, run: Run) -> None:
    done = run(*train(place, tmp_path / "out", "huber(delta=0.5)=1.0,cross_entropy=0.1"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_its_settings_are_checked(place: Path, tmp_path: Path, run: Run) -> None:
    done = run(*train(place, tmp_path / "out", "huber(delta=-1)"))
    assert done.returncode == 1
    assert "error: huber: delta = -1 is not allowed; it must be a number above 0" in done.stderr
    assert not (tmp_path / "out").exists()


SEEN = """
import json, warnings
import logitcache as lc
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = lc.losses.names()
told = [str(warning.message) for warning in caught if "package" in str(warning.message)]
faults = []
for spec in ("absent", "misnamed", "hubber", "huber(size=1)"):
    try:
        lc.losses.parse(spec)
    except lc.LogitCacheError as error:
        faults.append(str(error))
print(json.dumps([names, lc.losses.parameters("huber"), lc.losses.get("bild").name, told, faults]))
"""


def test_names_and_messages_know_it(run: Run) -> None:
    done = run("-c", SEEN)
    assert done.returncode == 0, done.stderr
    names, parameters, own, told, (absent, misnamed, unknown, setting) = json.loads(done.stdout)
    assert names == [*lc.losses.names(), "absent", "huber", "misnamed"]
    assert parameters == {"delta": 1.0}
    assert own == "bild"  # a package can't replace a loss of logitcache
    assert told == [f"the package {PACKAGE} offers the loss 'bild', a name that is taken: it is not used"]
    for message in (absent, misnamed):
        assert f"of the package {PACKAGE} can't be" in message
        assert len(message.splitlines()) == 1
    assert "No module named 'logitcache_plugin_example.missing'" in absent
    assert "did you mean huber" in unknown
    assert setting == "loss huber has no setting 'size'; it has: delta"


def test_help_names_it(run: Run) -> None:
    for command, name in (("train", "huber"), ("dump", "uniform")):
        done = run(*COMMAND, command, "--help")
        assert done.returncode == 0, done.stderr
        assert name in done.stdout


def dump(place: Path, out: Path, *more: str) -> list[str]:
    files = ["--teacher", str(place / "teacher"), "--data", str(place / "words.txt"), "--out", str(out)]
    return [*COMMAND, "dump", *files, "--top-k", "8", "--max-length", "64", "--min-mass", "0.5", *more]


def test_dump_takes_the_engine(place: Path, tmp_path: Path, run: Run) -> None:
    done = run(*dump(place, tmp_path / "out", "--engine", "uniform"))
    assert done.returncode == 0, done.stderr
    assert "50% need a larger --top-k" in done.stderr.replace("\n", " ")
    cache = lc.open(tmp_path / "out")
    assert cache.manifest.provenance.teacher.engine == "uniform"
    words = cache.manifest.provenance.vocab_size
    for sequence in cache:
        assert (sequence.targets.logprobs + math.log(words)).abs().max() <= cache.manifest.encoding.bound + 1e-6


def test_what_the_engine_lacks_is_refused(place: Path, tmp_path: Path, run: Run) -> None:
    done = run(*dump(place, tmp_path / "out", "--engine", "uniform", "--statistics"))
    assert done.returncode == 1
    assert (
        "error: the engine uniform doesn't support --statistics: leave it out, or use another --engine" in done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_unknown_engine_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(lc.LogitCacheError, match=r"no engine 'transformer'; did you mean transformers\? choose from"):
        lc.dump(teacher=place / "teacher", data=place / "words.txt", out=tmp_path / "out", engine="transformer")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def registered() -> None:
    """The package's engine in this process, by a call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SOURCE)
        from logitcache_plugin_example import UNIFORM
    engines.register("uniform", UNIFORM)


@pytest.mark.usefixtures("registered")
class TestUniform(EngineConformance):
    """The package's engine is held to what every engine must hold to."""

    engine = "uniform"

    @pytest.fixture
    def teacher_dir(self, place: Path) -> Path:
        return place / "teacher"


@pytest.mark.usefixtures("registered")
def test_a_name_is_registered_once() -> None:
    with pytest.raises(lc.LogitCacheError, match="another engine 'uniform' already"):
        engines.register("uniform", engines.get("uniform"))
    with pytest.raises(lc.LogitCacheError, match="another loss 'bild' already"):
        lc.losses.register(type(lc.losses.get("bild")))
    with pytest.raises(lc.LogitCacheError, match="dataclass that inherits"):
        lc.losses.register(dict)  # type: ignore[type-var]
