from io import StringIO

from rich.console import Console

from asnn_goose.training.progress import ProgressLine

FIGURES = {"loss_nats": 2.5, "perplexity": 30.0, "gradient_norm": 1.0}


def test_away_from_a_terminal_each_interval_is_one_plain_line() -> None:
    console = Console(file=StringIO(), width=200)
    with ProgressLine(console, total_steps=20, finished_steps=0) as progress:
        progress.step(5)
        progress.figures(5, FIGURES, tokens_per_second=1234.0, density=0.4)
    assert console.file.getvalue() == "step 5/20 · loss 2.500 nats · ppl 30.0 · 1,234 tok/s · density 0.40\n"


def test_on_a_terminal_the_line_shows_the_figures_and_the_time_left() -> None:
    console = Console(file=StringIO(), width=200, force_terminal=True)
    with ProgressLine(console, total_steps=20, finished_steps=5) as progress:
        progress.figures(6, FIGURES, tokens_per_second=1234.0, density=0.4)
    shown = console.file.getvalue()
    assert "loss 2.500 nats" in shown
    assert "ETA" in shown
