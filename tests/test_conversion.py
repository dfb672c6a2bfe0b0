"""Conversions from the command line: directories made by save_pretrained, and what is refused with one line."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from asnn_goose.cli import main
from asnn_goose.config import Recipe

Distill = Callable[..., tuple[int, str]]

POSITIONS, LAYERS = 64, 3
IDS = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0}
PLAIN = {"hidden_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": POSITIONS}
GROUPED = {**PLAIN, **IDS, "intermediate_size": 40, "num_key_value_heads": 2}
GPT2 = {**IDS, "n_positions": POSITIONS, "n_embd": 24, "n_layer": LAYERS, "n_head": 4}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=True)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**PLAIN, **IDS, intermediate_size=40)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**PLAIN, **IDS, ffn_dim=40, word_embed_proj_dim=24)),
    "relu": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, activation_function="relu")),
}
# Heads, key/value heads, width of a head, and whether the head is the embedding.
SHAPES = {"gpt2": (4, 4, 6, True), "llama": (4, 2, 6, False), "qwen3": (4, 2, 8, True)}

SHIPPED = ("pocket", "smollm2")
QUICK = ["training.steps=2", "evaluation.tokens=256", "samples=0"]
WKV = [
    "student.mixer=wkv", "student.initialization=teacher", "student.width=24", f"student.layers={LAYERS}",
    f"student.max_positions={POSITIONS}",
]  # fmt: skip
LIKE = {
    "gpt2": [*WKV, "student.mlp=gelu"],
    "llama": [
        *WKV, "student.mlp=swiglu", "student.norm=rmsnorm", "student.positions=none", "student.feedforward_width=40",
    ],
}  # fmt: skip
RANDOM = [
    "student.mixer=wkv", "student.initialization=random", "student.width=16", "student.layers=1",
    "student.max_positions=1024",
]  # fmt: skip


def change_json(path: Path, **changes: object) -> None:
    """Replace keys of a JSON file; None drops one."""
    merged = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))


@pytest.fixture(scope="session")
def models(teacher_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model of each kind by name, as save_pretrained leaves it, and damaged ones."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(teacher_directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, make in MODELS.items():
            make().save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    for name, source in (("no-end", "gpt2"), ("says-tied", "llama"), ("says-untied", "qwen3")):
        shutil.copytree(folder / source, folder / name)
    change_json(folder / "no-end" / "tokenizer_config.json", eos_token=None)
    change_json(folder / "says-tied" / "config.json", tie_word_embeddings=True)
    change_json(folder / "says-untied" / "config.json", tie_word_embeddings=False)
    return folder


@pytest.fixture
def distill(
    models: Path,
    small_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Distill:
    """Distill a model, by its name, into the folder `run`, goose mixer unless told otherwise: exit code and errors."""
    monkeypatch.chdir(tmp_path)
    # JSON is YAML.
    (tmp_path / "small.yaml").write_text(
        json.dumps({**small_recipe().model_dump(mode="json"), "student": {"mixer": "goose"}})
    )

    def call(teacher: str, *changes: str) -> tuple[int, str]:
        chosen = [f"teacher.name={teacher if teacher in SHIPPED else models / teacher}", *QUICK, *changes]
        monkeypatch.setattr(sys, "argv", ["asnn-goose", "distill", "small.yaml", *chosen, "--out", "run"])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", SHAPES)
def test_a_directory_of_either_family_converts(distill: Distill, tmp_path: Path, name: str) -> None:
    assert distill(name)[0] == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert math.isfinite(results["ratio"]["to_teacher"])
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    config = student.config
    found = (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.tie_word_embeddings)
    assert (config.mixer, config.num_hidden_layers, found) == ("goose", LAYERS, SHAPES[name])
    assert (student.lm_head.weight is student.model.embed_tokens.weight) is SHAPES[name][3]


@pytest.mark.parametrize("name", ["pocket", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_the_shipped_teachers_convert(distill: Distill, tmp_path: Path, name: str) -> None:
    # Few layers and tokens: one of the two has 135 million weights.
    few = ["student.keep_layers=2", "student.calibration_tokens=64", "training.steps=1", "training.batch_size=1"]
    assert distill(name, *few)[0] == 0
    assert math.isfinite(json.loads((tmp_path / "run" / "results.json").read_text())["ratio"]["to_teacher"])
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config
    # A GPT-2 with four equal heads, and a Llama with nine heads on three.
    heads = {"pocket": (4, 4, 64), "smollm2": (9, 3, 64)}[name]
    found = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    assert (config.mixer, config.tie_word_embeddings, found) == ("goose", True, heads)


def test_kept_layers_become_the_students(distill: Distill, tmp_path: Path) -> None:
    assert distill("llama", "student.keep_layers=[0, 2]")[0] == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [("gpt2", LIKE["gpt2"]), ("neox", RANDOM), ("no-end", ["data.rows.kind=recorded"])],
    ids=["a gpt2 with the wkv mixer", "any architecture with the wkv mixer", "no end of text in recorded rows"],
)
def test_what_errors_name_as_a_way_out_works(distill: Distill, name: str, changes: list[str]) -> None:
    assert distill(name, *changes)[0] == 0


REFUSED = {
    "architecture": ("neox", [], "is a gpt_neox model: shape and weights are taken over from gpt2, llama"),
    "architecture, wkv": ("neox", WKV, "student.mixer=wkv student.initialization=random"),
    "activation": ("relu", [], "is a gpt2 model with activation relu"),
    "layer out of range": ("gpt2", ["student.keep_layers=[0, 3]"], "rising indices from 0 to 2"),
    "layer below 0": ("llama", ["student.keep_layers=[-1, 1]"], "rising indices from 0 to 2"),
    "layers not rising": ("gpt2", ["student.keep_layers=[2, 1]"], "rising indices from 0 to 2"),
    "layer twice": ("gpt2", ["student.keep_layers=[1, 1]"], "rising indices from 0 to 2"),
    "no layers": ("gpt2", ["student.keep_layers=[]"], "student.keep_layers=[]"),
    "too many layers": ("gpt2", ["student.keep_layers=4"], "the teacher has 3 blocks"),
    "too many layers, wkv": ("gpt2", [*LIKE["gpt2"], "student.layers=4"], "student.layers=3 (or fewer)"),
    "untied student of a tied teacher": ("gpt2", [*LIKE["gpt2"], "student.tie_head=false"], "student.tie_head=true"),
    "tied student of an untied teacher": ("llama", LIKE["llama"], "give student.tie_head=false"),
    "tied, with another head": ("says-tied", [], "set tie_word_embeddings to false in its config.json"),
    "tied, with another head, wkv": ("says-tied", RANDOM, "set tie_word_embeddings to false in its config.json"),
    "untied, without a head": ("says-untied", [], "set tie_word_embeddings to true in its config.json"),
    "untied, without a head, wkv": ("says-untied", RANDOM, "set tie_word_embeddings to true in its config.json"),
    "no end of text": ("no-end", [], "data.rows.kind=recorded"),
    "no end of text, wkv": ("no-end", LIKE["gpt2"], "data.rows.kind=recorded"),
}
TOO_LONG = {
    "training": ("gpt2", ["training.window=256"], "training.window=256: longer than the 64 learned positions"),
    "evaluation": ("gpt2", ["evaluation.window=65"], "give 64 or fewer tokens"),
    "training, wkv": ("gpt2", [*RANDOM, "training.window=256"], "longer than the 64 learned positions"),
    "another architecture": ("opt", [*RANDOM, "training.window=256"], "longer than the 64 learned positions"),
}


def refused_in_one_line(outcome: tuple[int, str], hint: str, folder: Path) -> None:
    """Exit code 2, one line with the hint, and no run that looks begun."""
    code, said = outcome
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1
    assert hint in said
    assert {path.name for path in folder.glob("run/*")} <= {"config.yaml", "environment.json", "metrics.jsonl"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_in_one_line(distill: Distill, tmp_path: Path, case: str) -> None:
    name, changes, hint = REFUSED[case]
    refused_in_one_line(distill(name, *changes), hint, tmp_path)


@pytest.mark.parametrize("case", TOO_LONG)
def test_windows_past_learned_positions_are_refused_in_one_line(distill: Distill, tmp_path: Path, case: str) -> None:
    name, changes, hint = TOO_LONG[case]
    refused_in_one_line(distill(name, *changes), hint, tmp_path)
