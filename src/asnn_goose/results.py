"""results.json: what a run measured, typed, with units, and null wherever nothing was measured."""

from typing import Literal

from pydantic import Field

from asnn_goose.checks import Check
from asnn_goose.health import Health
from asnn_goose.measurements import Count, Curve, Curves, Measured, Record, read_record
from asnn_goose.recorded import Comparison

SCHEMA_VERSION: Literal[1] = 1


class ModelResult(Record):
    """One of the two models under the run's protocol."""

    name: str | None = None
    """Hub id, file or recipe name."""
    parameters: Count | None = None
    """Parameters, a tied one counted once."""
    perplexity: Measured = None
    """exp(mean negative log likelihood in nats per scored token); the student's is of the saved model."""


class Perplexities(Record):
    """The student's perplexity at the moments that the recorded line mixed up."""

    best: Measured = None
    """Lowest of the periodic evaluations."""
    best_step: Count | None = None
    """Optimizer step of that evaluation."""
    last: Measured = None
    """After the last step."""
    after_adaptation: Measured = None
    """After test-time training; null where there was none."""


class Ratio(Record):
    """The student's perplexity over another's, on the same windows."""

    to_teacher: Measured = None
    """Student over teacher; 1 is as good as the teacher."""
    to_dense_twin: Measured = None
    """Student over the same student trained without spikes: the price of spiking alone."""


class SiteSpikes(Record):
    """Spikes of one site of one layer on the run's probe text."""

    layer: Count
    """Index of the block, from 0."""
    site: str
    """Encoded tensor, such as `k`."""
    density: Measured = None
    """Fraction of spikes that are not 0."""
    events_per_activation: Measured = None
    """Mean |value|: unit spikes that one value expands into."""
    silent_channel_fraction: Measured = None
    """Fraction of channels that never spiked."""
    saturated_channel_fraction: Measured = None
    """Fraction of channels that spiked at every token."""
    sign_balance: Measured = None
    """(positive - negative) / non-zero spikes, from -1 to 1."""
    mean_value: Measured = None
    """Mean of the integer values."""
    value_deviation: Measured = None
    """Their standard deviation."""
    channel_rate_deviation: Measured = None
    """Standard deviation over channels of the fraction of tokens at which one spiked."""
    alpha: Measured = None
    """Threshold as a multiple of a token's mean magnitude."""
    amplitude: Measured = None
    """Mean of the site's amplitudes; 1 where it has none."""
    amplitude_deviation: Measured = None
    """Their standard deviation."""
    history: Curve = Curve()
    """Density during training; metrics.jsonl has every other figure too, by logging interval."""


class SpikeResult(Record):
    """How much the student spikes, and what that reaches."""

    density: Measured = None
    """Fraction of spikes that are not 0, averaged over layers and sites."""
    events_per_activation: Measured = None
    """Mean |value| of a spike, averaged over layers and sites."""
    spike_fed_mac_share: Measured = None
    """Share of the student's multiply-accumulates whose input is a spike, 0 to 1, as its configuration plans it."""
    measured_spike_fed_mac_share: Measured = None
    """The same share of the values that entered the linear layers on the probe text, amplitudes folded into weights."""
    additions_per_token: Measured = None
    """Additions of event-driven products in place of those multiply-accumulates: |value| times the columns it meets."""
    silent_layers: tuple[str, ...] = Field(default=(), strict=False)
    """Linear layers that were given nothing but 0 on the probe text; the measured share leaves them out."""
    amplitudes: dict[str, dict[str, Measured]] | None = None
    """Learned amplitude by `layer_<index>` and site; a channel-wise one as its mean."""
    layers: tuple[SiteSpikes, ...] = Field(default=(), strict=False)
    """Statistics of every site, with their history."""


class Temperature(Record):
    """The distillation temperature."""

    final: Measured = None
    """At the last step."""


class Throughput(Record):
    """How fast the run trained."""

    tokens_per_second: Measured = None
    """Tokens trained on per second of training, evaluations left out."""
    mfu: Measured = None
    """Share of the device's peak arithmetic that the run used, 0 to 1."""


class Memory(Record):
    """Memory of the training device, or of the process on a CPU."""

    peak_bytes: Count | None = None
    """Most bytes in use at one time."""


class Hardware(Record):
    """What the run ran on and what it took."""

    device: str | None = None
    """Name of the device."""
    peak_memory_bytes: Count | None = None
    """Most bytes in use at one time."""
    mean_memory_bytes: Count | None = None
    """Bytes in use, averaged over the samples."""
    seconds: Measured = None
    """Wall-clock time of the run, resumed parts included."""
    tokens: Count | None = None
    """Tokens trained on."""


class Stage(Record):
    """One stage of the recipe."""

    name: str
    """The stage's name in the recipe."""
    perplexity: Measured = None
    """Of the student after the stage."""
    ratio_to_teacher: Measured = None
    """That perplexity over the teacher's."""
    steps: Count | None = None
    """Optimizer steps the stage took."""
    tokens: Count | None = None
    """Tokens the stage trained on."""
    stop_reason: Literal["budget", "early_stopping", "exit"] | None = None
    """Why it ended."""


class Controls(Record):
    """Perplexities that nothing was trained for, on the same windows: what the training itself is worth."""

    random_weights: Measured = None
    """The student's shape with random weights."""
    untrained_conversion: Measured = None
    """The student as the teacher's weights were copied, before anything was fitted or trained."""


class Protocol(Record):
    """How perplexity was measured; figures under different protocols do not compare."""

    kind: str
    """`standard` or `recorded`."""
    tokenizer: str
    """Name of the tokenizer."""
    window: Count
    """Tokens a window holds."""
    stride: Count
    """Tokens from one window's start to the next; less than the window scores tokens twice."""
    tokens: Count
    """Tokens of the text that was read."""
    scored_tokens: Count | None = None
    """Predictions the mean is taken over."""


class Counters(Record):
    """What happened to the optimizer's steps."""

    steps_done: Count = 0
    """Optimizer steps counted against the budget."""
    steps_skipped: Count = 0
    """Steps that were not taken because loss or gradient was not finite."""
    rolled_back: Count = 0
    """Returns to the last good checkpoint."""
    stopped_early: bool = False
    """Whether early stopping ended the run."""


class Figure(Record):
    """A picture inside the results, as the notebooks had it."""

    filename: str
    """Its name in the run folder's `figures`."""
    base64: str
    """The PNG file."""


class Sample(Record):
    """A beginning of held-out text, and how both models go on."""

    prompt: str
    """The beginning."""
    teacher: str
    """The teacher's continuation."""
    student: str
    """The student's, drawn with the same seed."""


class Results(Record):
    """A whole results.json."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Changes when a key changes its meaning or place."""
    version: str
    """Version of asnn-goose."""
    recipe: str
    """Name of the recipe."""
    recipe_hash: str
    """SHA-256 of the resolved recipe."""
    seed: Count
    """Seed of the weights and the order of the data."""
    platform: str
    """`kaggle`, `colab` or `local`."""
    stop_reason: Literal["budget", "early_stopping", "exit"]
    """Why the last stage ended: its budget was used, early stopping ended it, or it had reached its goal."""
    protocol: Protocol
    teacher: ModelResult
    student: ModelResult
    perplexities: Perplexities = Perplexities()
    ratio: Ratio = Ratio()
    compression_ratio: Measured = None
    """Teacher's parameters over the student's."""
    spikes: SpikeResult = SpikeResult()
    temperature: Temperature = Temperature()
    throughput: Throughput = Throughput()
    memory: Memory = Memory()
    hardware: Hardware = Hardware()
    counters: Counters = Counters()
    stages: tuple[Stage, ...] = Field(default=(), strict=False)
    """In the order of the recipe; a recipe without stages has one."""
    controls: Controls = Controls()
    checks: tuple[Check, ...] = Field(default=(), strict=False)
    health: Health = Health()
    curves: Curves = Curves()
    ttt: None = None
    """Test-time training; null as long as a run does none."""
    comparison: Comparison = Field(default_factory=Comparison)
    samples: tuple[Sample, ...] = Field(default=(), strict=False)
    """Continuations of teacher and student side by side; empty where none were asked for."""
    figures: dict[str, Figure] = Field(default_factory=dict)
    """Pictures by name."""

    def to_json(self) -> str:
        """The text of results.json."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "results.json") -> "Results":
        """The results in a JSON text.

        Raises:
            RunFolderError: The text is no JSON, has another schema version, or lacks or adds a key.
        """
        return read_record(cls, SCHEMA_VERSION, text, source, "asnn-goose evaluate")
