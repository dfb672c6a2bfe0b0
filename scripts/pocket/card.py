"""The texts that go with the shipped files: the model's card and the license note, from measured figures."""

from typing import Any

from pocket.judge import LEAST_POSITION_GAIN_NATS, Judgment

LICENSE_NOTE = """# License of the pocket text

The documents in `pocket_train.jsonl.xz` and `pocket_held_out.jsonl.xz` were written by the language model
SmolLM2-135M-Instruct (Hugging Face, Apache License 2.0) and cleaned by rule; no person's text is among them. They are
released under the Apache License 2.0, as is this package. What they say is a small model's and is often wrong.
"""

CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# Pocket teacher

A GPT-2 of {parameters:,} parameters ({layers} layers, width {width}, {heads} heads, {window} positions, tied head) with
a byte-level BPE vocabulary of {vocabulary:,}. It writes very simple stories and explanations, and exists to be
distilled from where there is neither time nor a network for a larger teacher. What it says is often wrong.

## Data
{texts:,} texts ({generated_tokens:,} tokens) were sampled by {source} from {prompts:,} prompts at temperature
{temperature}, top-p {top_p} of the {candidates} likeliest tokens, in {sampling_seconds:,.0f} s on {sampling_device}
({sampling_speed:,} tokens/s). Cleaning kept {documents:,}. Texts that begin with the same given words stand on one
side of the split; {near_duplicates:,} documents that share too many runs of eight words with held-out ones were left
out. The corpus has {corpus_tokens:,} tokens of this model's vocabulary; the part of it that ships has
{train_documents:,} documents, and {held_out_documents:,} held-out ones ship beside it.

## Training
{steps:,} steps of {rows} windows of {window} tokens ({epochs} epochs, {training_seconds:,.0f} s on {training_device}),
AdamW, peak rate {learning_rate}, weight decay {weight_decay}, dropout {dropout}, warm-up and cosine, seed {seed}. The
weights are those of step {best_step:,}, the best of {evaluations} evaluations on held-out text, stored in float16.

## Log of the run
All phases with what they load and write: {log}.
{trained_tokens:,} tokens were trained on, {training_speed:,} a second.

## Held-out figures
{held_out_tokens:,} tokens, which no training document holds; both models predict the same ones.

| | |
| --- | --- |
| perplexity of the teacher (float16 weights, computed in float32) | {teacher_perplexity:.3f} |
| perplexity of an interpolated Kneser-Ney trigram of {trigram_tokens:,} training tokens | {trigram_perplexity:.3f} |
| the same teacher by `asnn-goose evaluate pocket --data pocket --window {window}` (see below) | {evaluated_long:.3f} |
| and with `--window {half_window}` | {evaluated_short:.3f} |
| ratio of the first two (at most 1/3 wanted) | {ratio:.3f} |
| loss at positions 1 to 8 of a window | {early_loss_nats:.3f} nats |
| loss from position {late_position} on | {late_loss_nats:.3f} nats |
| difference (at least {least_gain} wanted) | {gain:.3f} nats |

`asnn-goose evaluate` joins the documents by blank lines, a form that the teacher was not trained on, and scores the
whole text; the other figures separate documents by the end-of-text token, as in training.

{verdict}

## Samples (seed {seed}, temperature 0.8, top-p 0.95, not chosen)

{samples}

## License
Apache License 2.0, as the model it learned from.
"""


def model_card(phases: dict[str, dict[str, Any]], judgment: Judgment, shape: dict[str, int], seed: int) -> str:
    """The card of a trained teacher.

    Args:
        phases: Summaries of the phases `sample`, `clean`, `select`, `tokenizer` and `train`.
        judgment: The teacher's figures on held-out text.
        shape: Its size.
        seed: Seed of all phases.
    """
    sample, select, train = phases["sample"], phases["select"], phases["train"]
    fields = {
        **shape, **sample["nucleus"], **judgment.__dict__, **select, **train["plan"],
        "parameters": train["parameters"], "texts": sample["texts"], "generated_tokens": sample["generated_tokens"],
        "source": sample["model"], "prompts": sample["prompts"], "sampling_seconds": sample["seconds"],
        "sampling_device": sample["device"], "sampling_speed": sample["tokens_per_second"],
        "documents": phases["clean"]["documents"],
        "log": ", ".join(f"{name} {summary['phase_seconds']:,} s" for name, summary in phases.items()),
        "trained_tokens": train["trained_tokens"], "training_speed": train["tokens_per_second"],
        "corpus_tokens": train["corpus_tokens"], "steps": train["steps"], "epochs": train["epochs"],
        "training_seconds": train["seconds"], "training_device": train["device"], "best_step": train["best"]["step"],
        "evaluations": len(train["evaluations"]), "ratio": judgment.teacher_perplexity / judgment.trigram_perplexity,
        "half_window": shape["window"] // 2, "evaluated_short": judgment.evaluated[shape["window"] // 2],
        "evaluated_long": judgment.evaluated[shape["window"]],
        "late_position": shape["window"] // 4, "gain": judgment.early_loss_nats - judgment.late_loss_nats,
        "least_gain": LEAST_POSITION_GAIN_NATS, "seed": seed,
        "verdict": "Both conditions hold." if judgment.passes else "**Not both conditions hold.**",
        "samples": "\n\n".join("> " + sample.replace("\n", "\n> ") for sample in judgment.samples),
    }  # fmt: skip
    return CARD.format(**fields)
