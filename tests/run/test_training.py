"""Training: exact resuming, whole checkpoints, and right bits per byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from math import cos, log2, pi
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.fixtures.packages import tiny_package
from tokdsl.commands.compressors import order0_bits
from tokdsl.commands.generate import Sampling, generate
from tokdsl.commands.train import TrainingError, TrainResult, TrainSettings, train
from tokdsl.tokenizers import vocabulary_size
from tokdsl.training import checkpoint, corpus, loop
from tokdsl.training.evaluation import bits_per_byte, held_out
from tokdsl.training.metrics import read_rows
from tokdsl.training.package import load_package

TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}; \u00e9\n" for n in range(400))
SETTINGS = TrainSettings(
    steps=20,
    batch=4,
    length=16,
    warmup=4,
    lr=3e-3,
    eval_every=10,
    save_every=5,
    threads=1,
    seed=7,
)


Output = namedtuple("Output", ["aux", "text"])


class Place:
    """A package and a text in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = tiny_package(folder)
        self.text = folder / "text.txt"
        self.text.write_text(TEXT, "utf-8")

    def train(self, out: str, is_resumed: bool = False, **changes: Any) -> TrainResult:
        return train(
            self.package,
            self.text,
            self.folder / out,
            replace(SETTINGS, **changes),
            is_resumed=is_resumed,
            is_silent=True,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests look at numbers: drawing takes longer than training them."""
    if "plots" not in request.node.name:
        monkeypatch.setattr(loop, "draw", lambda *_: ())


def tensors(folder: Path) -> dict[str, bytes]:
    """Return the exact bytes of parameters and moments of a checkpoint."""
    found = load_file(folder / checkpoint.MODEL)
    found |= load_file(folder / checkpoint.OPTIMIZER)
    assert len(found) > 40
    return {name: tensor.numpy().tobytes() for name, tensor in found.items()}


def test_a_resumed_run_ends_bit_for_bit_where_a_straight_one_does(place: Place) -> None:
    straight = place.train("straight")
    parts = place.train("parts", stop_at=10)
    assert (parts.steps, parts.is_interrupted) == (10, True)
    parts = place.train("parts", is_resumed=True)
    assert (parts.steps, parts.is_interrupted) == (20, False)
    assert tensors(parts.checkpoint) == tensors(straight.checkpoint)
    assert parts.bits_per_byte == straight.bits_per_byte
    assert parts.metrics.read_text() == straight.metrics.read_text()
    # and it did train
    rows = read_rows(parts.metrics)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3  # type: ignore[operator]
    assert [row["step"] for row in rows if row["held_out_bits_per_byte"]] == [10, 20]
    assert {"loss", "next_token", "z", "lr", "gradient_norm"} <= rows[0].keys()


def test_an_interrupted_run_saves_and_resumes_exactly(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = place.train("straight")
    take_step = loop._Run._take_step

    def interrupted(run: Any) -> Any:
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(run)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_take_step", interrupted)
        stopped = place.train("stopped")
    assert signal.getsignal(signal.SIGINT) is before
    assert (stopped.steps, stopped.is_interrupted) == (7, True)
    assert stopped.checkpoint.name == "step-00000007"
    resumed = place.train("stopped", is_resumed=True)
    assert tensors(resumed.checkpoint) == tensors(straight.checkpoint)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_broken_save_leaves_the_checkpoint_before_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save_file = checkpoint.save_file

    def broken(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        if "00000010" in str(path):
            Path(path).write_bytes(b"half")
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", broken)
        with pytest.raises(type(error)):
            place.train("run")
    kept = sorted((place.folder / "run" / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step-00000005"]
    straight = place.train("straight")
    assert tensors(place.train("run", is_resumed=True).checkpoint) == tensors(straight.checkpoint)


def test_a_loss_that_is_not_finite_stops_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = loop.Objective.forward
    calls = []

    def poisoned(self: Any, ids: torch.Tensor, is_measured: bool = False) -> Any:
        found = forward(self, ids, is_measured)
        calls.append(is_measured)
        if calls.count(False) == 8:
            found[1]["z"] = found[1]["z"] * float("nan")
        return found

    monkeypatch.setattr(loop.Objective, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"not a finite number at step 8: z; .* is intact"):
        place.train("run")
    kept = checkpoint.newest(place.folder / "run")
    assert kept is not None and kept.name == "step-00000005"
    assert len(tensors(kept)) > 40
    assert len(read_rows(place.folder / "run" / "metrics.csv")) == 7


def test_only_the_newest_checkpoints_stay(place: Place) -> None:
    result = place.train("run", keep=2)
    kept = sorted(folder.name for folder in result.checkpoint.parent.iterdir())
    assert kept == ["step-00000015", "step-00000020"]
    assert json.loads((result.out / "result.json").read_text())["steps"] == 20


def test_parts_of_a_batch_add_up_to_the_batch(place: Place) -> None:
    whole, parts = place.train("whole", steps=4), place.train("parts", steps=4, accumulate=2)
    first, second = read_rows(whole.metrics), read_rows(parts.metrics)
    for a, b in zip(first, second, strict=True):
        assert {k: v for k, v in a.items() if v} == pytest.approx(
            {k: v for k, v in b.items() if v}, rel=1e-4
        )


@pytest.mark.slow
def test_two_ranks_train_as_one(place: Place) -> None:
    one = place.train("one", steps=6)
    program = (
        "import sys; from pathlib import Path; from dataclasses import replace;"
        "from tests.run.test_training import SETTINGS, train;"
        "train(*map(Path, sys.argv[1:4]), replace(SETTINGS, steps=6))"
    )
    script = place.folder / "program.py"
    script.write_text(program)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    paths = [place.package, place.text, place.folder / "two"]
    found = subprocess.run(
        [sys.executable, *launch, "--num_machines", "1", script, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("bits per byte") == 1
    for a, b in zip(read_rows(one.metrics), read_rows(paths[2] / "metrics.csv"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)
    result = json.loads((paths[2] / "result.json").read_text("utf-8"))
    assert result["bits_per_byte"] == pytest.approx(one.bits_per_byte, rel=1e-4)


def test_the_learning_rate_rises_and_falls_along_a_cosine() -> None:
    settings = TrainSettings(steps=12, warmup=2, lr=1.0, final_lr=0.1)
    assert [settings.learning_rate(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert settings.learning_rate(7) == pytest.approx(0.1 + 0.9 * 0.5)
    assert settings.learning_rate(11) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + cos(pi * 0.9)))
    assert settings.learning_rate(12) == pytest.approx(0.1)


def test_only_matrices_decay(place: Place) -> None:
    model = load_package(place.package).module.Model()
    optimizer = loop.adamw(model, SETTINGS, is_fused=True)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        name: 0.1 if p.dim() >= 2 else 0.0 for name, p in model.named_parameters()
    }


class Unigram(torch.nn.Module):
    """Predicts every byte by how often it occurs, whatever came before."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        counts = numpy.bincount(numpy.frombuffer(text, dtype=numpy.uint8), minlength=256)
        self.logits = torch.tensor((counts + 1) / (len(text) + 256)).log()

    def forward(self, ids: torch.Tensor, is_measured: bool) -> Any:
        return Output(torch.zeros(2), self.logits.expand(*ids.shape, 256))


class Counting(torch.nn.Module):
    """Is sure of the byte that follows in the alphabet, if it has seen enough bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed

    def forward(self, ids: torch.Tensor, is_measured: bool) -> Any:
        sure = torch.nn.functional.one_hot((ids + 1) % 256, 256) * 100.0
        place = torch.arange(ids.shape[1])[:, None]
        return Output(torch.zeros(2), torch.where(place >= self.needed, sure, 0.0))


def measure(model: torch.nn.Module, training: bytes, held: bytes, **options: int) -> float:
    arrays = [numpy.frombuffer(part, dtype=numpy.uint8) for part in (training, held)]
    text = held_out(*arrays, options["length"], len(held))
    found = bits_per_byte(Accelerator(), model, text, **options, batch=3, vocabulary=256)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("length", "stride"), [(16, 15), (16, 8), (7, 3), (5000, 2500), (2, 1), (64, 64)]
)
def test_bits_per_byte_are_those_of_the_order_0_model(length: int, stride: int) -> None:
    training, held = TEXT.encode()[:3000], TEXT.encode()[3000:3777]
    found = measure(Unigram(training), training, held, length=length, stride=stride)
    assert found == pytest.approx(order0_bits(training, held) / len(held), rel=1e-6)


def test_every_held_out_byte_has_the_context_that_was_promised() -> None:
    text = bytes(n % 256 for n in range(1000))
    # windows of 16 of which 8 count: at least 8 bytes come before each
    assert measure(Counting(7), text[:700], text[700:], length=16, stride=8) < 1e-6
    # the first that count have exactly 8: one of each 8 bytes has one too few
    found = measure(Counting(8), text[:700], text[700:], length=16, stride=8)
    # the last window is full of context: 300 = 37 * 8 + 4
    assert found == pytest.approx(37 * log2(256) / 300, rel=1e-6)


def test_a_first_byte_without_context_costs_a_blind_guess() -> None:
    text = bytes(range(50))
    found = measure(Counting(0), b"", text, length=10, stride=5)
    assert found == pytest.approx(8 / 50, rel=1e-6)


def test_any_tokenizer_is_measured_in_bytes_of_text(tmp_path: Path) -> None:
    alphabet = "".join(sorted(set(TEXT)))
    file = json.dumps({"kind": "characters", "alphabet": alphabet, "specials": []})
    package = load_package(tiny_package(tmp_path, "characters", file))
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    found = corpus.prepare(tmp_path / "text.txt", package, tmp_path / "tokens", 0.1)
    # the accented letter is one token and two bytes
    assert found.held_out_bytes > len(found.held_out)
    assert found.training_bytes + found.held_out_bytes == len(TEXT.encode())
    both = [*map(int, found.training), *map(int, found.held_out)]
    assert package.tokenizer.decode(both) == TEXT
    assert package.tokenizer.byte_length(map(int, found.held_out)) == found.held_out_bytes


def test_described_byte_pairs_are_learned_from_the_training_part(tmp_path: Path) -> None:
    file = '{"kind": "byte_bpe", "vocab": 259, "specials": ["eos"]}'
    assert vocabulary_size(json.loads(file)) == 259
    package = tiny_package(tmp_path, "library", file)
    (tmp_path / "text.txt").write_text("ab" * 2000 + "xy" * 1000, "utf-8")
    settings = replace(SETTINGS, steps=2, held_out=1 / 3)
    result = train(package, tmp_path / "text.txt", tmp_path / "run", settings, is_silent=True)
    learned = load_package(package).tokenizer
    assert learned.vocab_size == vocabulary_size(package) == 259
    assert learned.encode("ababx") == learned.encode("abab") + learned.encode("x")
    assert len(learned.encode("abab" * 2)) == 2
    # the held-out part was not read: its pairs are not known
    assert len(learned.encode("xyxy")) == 4
    # about nine bits for each of its bytes, and the end of the text
    assert result.held_out_bytes == 2000
    assert result.bits_per_byte == pytest.approx(9, abs=1.5)


def test_a_text_is_never_split_inside_a_character(place: Place) -> None:
    place.text.write_text("a" + "\U0001f408" * 25, "utf-8")
    package = load_package(place.package)
    for share in (0.01, 0.02, 0.03, 0.04, 0.05):
        found = corpus.prepare(place.text, package, place.folder / "tokens", share)
        assert found.training_bytes % 4 == 1
        bytes(found.held_out).decode("utf-8")


def test_long_texts_are_encoded_piece_by_piece(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE", 7)
    package = load_package(place.package)
    place.text.write_text("\u00e9" * 40 + "\nline\n" * 3, "utf-8")
    # the tokenizer's own path, which must never see half a character
    monkeypatch.delattr(type(package.tokenizer), "encode_bytes")
    found = corpus.prepare(place.text, package, place.folder / "tokens", 0.2)
    assert bytes(found.training) + bytes(found.held_out) == place.text.read_bytes()


def test_a_folder_is_read_in_order_and_documents_end(tmp_path: Path) -> None:
    package = load_package(tiny_package(tmp_path, file='{"kind": "bytes", "specials": ["eos"]}'))
    texts = tmp_path / "texts"
    (texts / "sub").mkdir(parents=True)
    for name, content in (("b.txt", "two"), ("a.txt", "one"), ("sub/c", "six"), (".x", "no")):
        (texts / name).write_text(content)
    (texts / "empty").touch()
    found = corpus.prepare(texts, package, tmp_path / "tokens", 1 / 9)
    assert found.training.tolist() == [*b"one", 256, *b"two", 256, *b"si"]
    assert found.held_out.tolist() == [*b"x", 256]
    assert (found.training_bytes, found.held_out_bytes) == (8, 1)


def test_bytes_need_not_be_text(place: Place) -> None:
    content = bytes(range(256)) * 8
    place.text.write_bytes(content)
    found = corpus.prepare(place.text, load_package(place.package), place.folder / "tokens", 0.0)
    assert bytes(found.training) == content
    assert place.train("run", held_out=0.0, steps=2).bits_per_byte is None


def test_tokens_are_kept_until_the_text_changes(place: Place) -> None:
    package, folder = load_package(place.package), place.folder / "tokens"
    first = corpus.prepare(place.text, package, folder, 0.1)
    written = (folder / "training.bin").stat().st_mtime_ns
    corpus.prepare(place.text, package, folder, 0.1)
    assert (folder / "training.bin").stat().st_mtime_ns == written
    place.text.write_text(TEXT + "more", "utf-8")
    assert corpus.prepare(place.text, package, folder, 0.1).digest != first.digest


def test_windows_follow_from_seed_and_step() -> None:
    starts = corpus.window_starts(3, 5, 100, 8)
    assert starts.tolist() == corpus.window_starts(3, 5, 100, 8).tolist()
    assert starts.tolist() != corpus.window_starts(3, 6, 100, 8).tolist()
    every = corpus.window_starts(0, 0, 4, 1000)
    assert set(every.tolist()) == {0, 1, 2, 3}
    tokens = numpy.arange(10, dtype=numpy.uint8)
    assert corpus.windows(tokens, numpy.array([0, 7]), 3).tolist() == [[0, 1, 2], [7, 8, 9]]


def test_a_run_is_not_overwritten_and_not_resumed_by_another(place: Place) -> None:
    place.train("run", steps=2)
    with pytest.raises(TrainingError, match="already holds a run"):
        place.train("run")
    with pytest.raises(TrainingError, match=r"batch was 4, now 8; seed was 7, now 1"):
        place.train("run", is_resumed=True, batch=8, seed=1)
    with pytest.raises(TrainingError, match="2 steps were taken, more than 1"):
        place.train("run", is_resumed=True, steps=1)
    place.text.write_text(TEXT * 2, "utf-8")
    with pytest.raises(TrainingError, match="the text, the tokenizer or the split"):
        place.train("run", is_resumed=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0, "lr": -1.0}, "steps must be at least 1, not 0; lr must be above 0"),
        ({"held_out": 1.0}, "held_out must be from 0 to below 1"),
        ({"batch": 4, "accumulate": 3}, "a batch of 4 cannot be shared evenly"),
        ({"length": 100_000}, "fewer than a window of 100000"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    place: Place, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        place.train("run", **changes)


def test_what_cannot_be_read_is_named(place: Place) -> None:
    with pytest.raises(TrainingError, match="is not a built package"):
        train(place.folder, place.text, place.folder / "run", SETTINGS)
    with pytest.raises(TrainingError, match="there is no text at"):
        train(place.package, place.folder / "none", place.folder / "run", SETTINGS)
    place.text.write_text("")
    with pytest.raises(TrainingError, match="is empty"):
        place.train("run")


def test_a_tokenizer_that_is_too_large_is_found_before_training(tmp_path: Path) -> None:
    alphabet = "".join(map(chr, range(32, 332)))
    file = json.dumps({"kind": "characters", "alphabet": alphabet, "specials": []})
    package = tiny_package(tmp_path, "characters", file)
    (tmp_path / "text.txt").write_text(alphabet * 4, "utf-8")
    with pytest.raises(TrainingError, match="300 tokens, more than the model's embedding"):
        train(package, tmp_path / "text.txt", tmp_path / "run", SETTINGS, is_silent=True)


def test_foreign_parameters_are_refused_with_every_difference(place: Place) -> None:
    result = place.train("run", steps=1)
    model = load_package(place.package).module.Model()
    model.norm = torch.nn.Identity()
    model.extra = torch.nn.Linear(2, 2, bias=False)
    model.embed = torch.nn.Embedding(3, 32)
    with pytest.raises(TrainingError) as found:
        checkpoint.load_parameters(model, result.checkpoint / checkpoint.MODEL)
    for part in ("missing extra.weight", "unknown norm.weight", "embed.weight is (259, 32)"):
        assert part in str(found.value)


def test_a_tensor_with_two_names_is_saved_once(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    checkpoint.save_parameters(model, tmp_path / "model.safetensors")
    assert len(load_file(tmp_path / "model.safetensors")) == 3
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    checkpoint.load_parameters(model, tmp_path / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


def test_the_plots_and_plain_lines_of_a_run(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(place.package, place.text, place.folder / "run", SETTINGS)
    assert [path.name for path in result.plots] == ["loss.svg", "loss.png"]
    assert result.plots[0].read_text().count("held-out bits per byte") >= 1
    assert result.plots[1].read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "step 20/20  loss" in shown
    assert "bits per held-out byte" in shown


def test_a_trained_model_continues_what_it_learned(place: Place) -> None:
    place.text.write_text("abcd" * 800)
    result = place.train("run", steps=60, lr=1e-2, batch=8)
    assert result.bits_per_byte is not None and result.bits_per_byte < 0.3
    pieces: list[str] = []
    sampling = Sampling(max_new_tokens=9, temperature=0)
    for source in (result.out, result.checkpoint, result.checkpoint / checkpoint.MODEL):
        pieces.clear()
        text = generate(place.package, source, "abcdab", pieces.append, sampling)
        assert text == "".join(pieces) == "cdabcdabc"
        assert len(pieces) == 10
    stopped = replace(sampling, stop=("d",))
    assert generate(place.package, result.out, "ab", pieces.append, stopped) == "c"
    with pytest.raises(TrainingError, match="'dd' is 2 tokens"):
        generate(place.package, result.out, "ab", pieces.append, replace(sampling, stop=("dd",)))
    with pytest.raises(TrainingError, match="top_k must be at least 1"):
        generate(place.package, result.out, "ab", pieces.append, replace(sampling, top_k=0))
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        generate(place.package, place.folder / "no", "ab", pieces.append, sampling)


def test_settings_and_results_need_no_torch() -> None:
    program = "import tokdsl.commands.train, tokdsl.commands.generate, sys; print(sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0
    assert "'torch'" not in found.stdout
