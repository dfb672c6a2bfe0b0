import pytest

from asnn_goose.config import Recipe
from asnn_goose.config_text import LocalText, PydocText
from asnn_goose.config_training import TrainingBySteps
from asnn_goose.errors import ConfigError
from asnn_goose.presets import load_recipe
from asnn_goose.recipe_errors import locate, recipe_paths, section_choices, show

DATA_WAYS = (
    "data needs `name` (a hub data set, `pydoc` or `pocket`), `path` (a file or folder) or `source` (`mixture` or "
    "`teacher_samples`)"
)
SITES = (
    "spikes.sites: expected recorded, all, all+head or a list of k, v, mixer_in, gate_mid, mixer_out, ffn_in, ffn_mid, "
    "head_in"
)
REFUSALS = {
    "training.tokens=1M": 'training.tokens: expected a whole number such as 1000000, got "1M"',
    "training.steps=0": "training.steps: expected a value greater than or equal to 1, got 0",
    "training.batch_size=many": (
        "training.batch_size: expected a whole number such as 1000000 or 'auto', got \"many\""
    ),
    "training.batch_size=0": "training.batch_size: expected a value greater than or equal to 1 or 'auto', got 0",
    "training.learning_rate=fast": 'training.learning_rate: expected a number, got "fast"',
    "training.compile=yes": 'training.compile: expected true or false, got "yes"',
    "training.betas=[0.9]": "training.betas[1] is missing: the list is too short",
    "training.betas=[1, 2, 3]": "training.betas: expected a list of 2, got [1, 2, 3]",
    "training.early_stopping=5": "training.early_stopping: expected a section with keys, got 5",
    "teacher.name=3": "teacher.name: expected text (quote a value that reads as a number, a date or null), got 3",
    "teacher.sha256=x": 'teacher.sha256: expected text that matches ^[0-9a-f]{64}$, got "x"',
    "teacher=null": "teacher: expected a section with keys, got null",
    "spikes.sites=k": f'{SITES}, got "k"',
    "spikes.sites=[k, q]": f'{SITES}, got "q"',
    "spikes.levels=0": "spikes.levels: expected a value greater than or equal to 1, got 0",
    "spikes.threshold.kind=x": 'spikes.threshold.kind: expected one of fixed, learned, progressive, mixed, got "x"',
    "spikes.threshold={}": "spikes.threshold.kind: expected one of fixed, learned, progressive, mixed, got null",
    "objective.activity={events: 1.5}": "objective.activity.events: expected a value less than 1, got 1.5",
    "objective.activity={events: 0}": "objective.activity.events: expected a value greater than 0, got 0",
    "objective.activity={events: 0.2, sites: {k: 2}}": "objective.activity.sites: expected a value less than 1, got 2",
    "objective.hidden_alignment.projector.kind=matrix": (
        'objective.hidden_alignment.projector.kind: expected one of none, linear, mlp, factorized, got "matrix"'
    ),
    "objective.hidden_alignment.layer_map.kind=given": (
        "objective.hidden_alignment.layer_map.states is missing and has no default"
    ),
    "objective.hidden_alignment={layer_map: {kind: uniform, every: 2}}": (
        "objective.hidden_alignment.layer_map.every does not apply to the chosen objective.hidden_alignment.layer_map, "
        "which takes kind"
    ),
    "objective.feature_dynamics.kind=fdd": (
        'objective.feature_dynamics.kind: expected one of cka, prediction, got "fdd"'
    ),
    "objective.feature_dynamics={kind: cka, pairs: [[1]]}": (
        "objective.feature_dynamics.pairs[0][1] is missing: the list is too short"
    ),
    "objective.feature_dynamics={kind: prediction, weight: 1}": (
        "objective.feature_dynamics.weight does not apply to the chosen objective.feature_dynamics, which takes "
        "warmup_steps, kill_ratio, kind, layers, trajectory_weight, dynamics_weight"
    ),
    "objective.semantic={full_step: 1}": ("objective.semantic.full_step=1 is not behind begin_step=400: raise it"),
    "objective.kl_weight=-1": "objective.kl_weight: expected a value greater than or equal to 0, got -1",
    "objective.kl_weight={kind: ramp}": ('objective.kl_weight.kind: expected one of linear, cosine, step, got "ramp"'),
    "objective.kl_weight={initial: 1}": "objective.kl_weight.kind: expected one of linear, cosine, step, got null",
    "objective.kl_weight={kind: linear, initial: 1}": "objective.kl_weight.final is missing and has no default",
    "objective.cross_entropy_weight={kind: linear, initial: 0, final: 1, begin: 0.5, end: 0.2}": (
        "a schedule with begin=0.5 and end=0.2: give 0 <= begin < end <= 1, in shares of the budget (or unit=steps)"
    ),
    "objective.cross_entropy_weight={kind: step, values: [0, 1, 2], at: [0.5]}": (
        "a step schedule of 3 values with at=[0.5]: give 2 ascending places in shares of the budget, 0 to 1"
    ),
    "objective.divergence.kind=kl": (
        'objective.divergence.kind: expected one of forward_kl, reverse_kl, jsd, skew_kl, total_variation, got "kl"'
    ),
    "objective.divergence={kind: forward_kl, share: 0.5}": (
        "objective.divergence.share does not apply to the chosen objective.divergence, which takes kind"
    ),
    "objective.temperature.kind=warm": (
        'objective.temperature.kind: expected one of fixed, scheduled, learned, ctkd, got "warm"'
    ),
    "objective.temperature={kind: learned, lower: 3, upper: 2}": (
        "objective.temperature has lower=3 and upper=2: give lower < upper"
    ),
    "objective.temperature={kind: ctkd, start: 5}": (
        "objective.temperature.start=5 is outside its bounds: give one between 1 and 5"
    ),
    "objective.temperature={kind: learned, anchor: {target: 20}}": (
        "objective.temperature.anchor.target=20 is outside its bounds: give one between 1 and 10"
    ),
    "objective.temperature={kind: ctkd, warmup_share: 1}": (
        "objective.temperature.warmup_share: expected a value less than 1, got 1"
    ),
    "spikes.membrane=lif": 'spikes.membrane: expected a section with keys, got "lif"',
    "spikes.membrane.kind=alif": "spikes.membrane.kind: expected 'lif', got \"alif\"",
    "spikes.membrane.beta=1": "spikes.membrane.beta: expected a value less than 1, got 1",
    "spikes.membrane.beta=-0.5": "spikes.membrane.beta: expected a value greater than or equal to 0, got -0.5",
    "spikes.membrane.sites=[q]": (
        "spikes.membrane.sites[0]: expected 'k', 'v', 'mixer_in', 'gate_mid', 'mixer_out', 'ffn_in', 'ffn_mid' or "
        "'head_in', got \"q\""
    ),
    "spikes.membrane.sites=[ffn_in]": (
        "spikes.membrane.sites names 'ffn_in', but what is encoded is k, v: give some of these, or add it to "
        "spikes.sites"
    ),
    "student.mixer=wkx": 'student.mixer: expected one of wkv, goose, got "wkx"',
    "spikes.level=2": "spikes.level: unknown key; did you mean spikes.levels?",
    "training.lr=1": "training.lr: unknown key; did you mean training.learning_rate?",
    "batch_size=4": "batch_size: unknown key; did you mean training.batch_size or stages.batch_size?",
    "trainig.steps=3": "trainig: unknown key; did you mean training?",
    "teacher.x=1": "teacher.x: unknown key; teacher takes name, dtype, compile, hidden_cache, sha256",
    "data.subset=x": (
        "data.subset does not apply to the chosen data, which takes documents, rows, held_out_fraction, name"
    ),
    "data.rows.max_line_tokens=5": "data.rows.max_line_tokens does not apply to the chosen data.rows, which takes kind",
    "student.max_positions=9": "student.max_positions does not apply to the chosen student, which takes mixer, "
    "initialization, keep_layers, positions, convolution, gate_rank, output_norm, calibration_tokens, backend",
    "training=3": "training needs exactly one budget, `steps` or `tokens`",
    "data={}": DATA_WAYS,
    "data.source=mixtures": DATA_WAYS,
    "data={source: mixture, parts: [{weight: 0, text: {name: pydoc}}]}": (
        "data.parts[0].weight: expected a value greater than 0, got 0"
    ),
    "data={source: mixture, parts: []}": (
        "data.parts is empty; a mixture needs at least one part, with `weight` and `text`"
    ),
    "data={source: mixture, parts: [{weight: 1, text: {source: mixture}}]}": (
        "the text of a mixture's part needs `name` (a hub data set, `pydoc` or `pocket`), `path` (a file or folder) or "
        "`source` (`teacher_samples`); parts of a mixture inside a mixture go into the outer one, with their weights"
    ),
    "data={source: mixture, parts: [{weight: 1, text: {path: a, fields: b}}]}": (
        "data.parts[0].text.fields: unknown key; did you mean data.parts[0].text.text_field?"
    ),
    "data.source=teacher_samples": "data.prompts is missing and has no default",
}


@pytest.mark.parametrize("override", REFUSALS)
def test_each_bad_value_is_one_line_with_path_expectation_and_value(override):
    with pytest.raises(ConfigError) as caught:
        load_recipe("quickstart", [override])
    assert str(caught.value) == REFUSALS[override]


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {steps: 1}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^data is missing and has no default$"):
        load_recipe(str(tmp_path / "mine.yaml"), [])


def test_several_errors_print_the_first_and_count_the_others():
    with pytest.raises(ConfigError, match=r"^teacher\.dtype: .* \(and 2 more\)$"):
        load_recipe("quickstart", ["training.seed=x", "teacher.dtype=int4", "data.z=3"])


@pytest.mark.parametrize(
    ("location", "path", "section"),
    [
        ((), "", Recipe),
        (("training", "steps", "steps"), "training.steps", TrainingBySteps),
        (("data", "path", "path"), "data.path", LocalText),
        (("data", "pydoc", "rows", "recorded", "max_line_tokens"), "data.rows.max_line_tokens", None),
        (("data", "pydoc", "subset"), "data.subset", PydocText),
    ],
)
def test_union_tags_do_not_appear_in_paths(location, path, section):
    place = locate(location)
    assert place.path == path
    assert section in (None, place.section)


def test_choices_go_by_the_tags_that_recipes_use():
    fields = Recipe.model_fields
    assert list(section_choices(fields["training"].annotation)) == ["steps", "tokens"]
    assert list(section_choices(fields["data"].annotation)) == [
        "name", "path", "pydoc", "pocket", "mixture", "teacher_samples",
    ]  # fmt: skip
    assert list(section_choices(fields["evaluation"].annotation)) == ["standard", "recorded"]
    assert section_choices(fields["description"].annotation) == {}


def test_recipe_paths_reach_into_every_choice():
    assert {"training.tokens", "data.path", "data.subset", "objective.temperature.value"} <= set(recipe_paths())


def test_a_long_value_is_cut():
    assert len(show("x" * 1000)) == 60


def test_windows_that_do_not_fit_the_positions_are_one_line():
    with pytest.raises(ConfigError) as caught:
        load_recipe("smollm2-pydoc", ["student.max_positions=9"])
    assert str(caught.value) == "windows of 256 tokens need student.max_positions >= 256, got 9"
