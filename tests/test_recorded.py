from asnn_goose.recorded import Comparison

RATIOS = {"v6": 14.07, "v8": 12.53, "v9": 12.15, "v12.1": 9.99, "v13.1": 9.74, "v14": 9.52, "v14.1": 7.21, "v14.3": 6.9}


def test_recorded_ratios_are_over_the_recorded_teacher():
    assert {run.version: run.ratio_to_teacher for run in Comparison().recorded} == RATIOS


def test_each_recorded_version_beat_the_one_before():
    perplexities = [run.perplexity for run in Comparison().recorded]
    assert perplexities == sorted(perplexities, reverse=True)
