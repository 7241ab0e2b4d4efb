"""The last screen: what one does next is the same run, through the other gates."""

import pytest

from configs import configured
from softgate.training import screens

FOUND = {"best/val/acc": 0.9, "best/epoch": 1, "val/acc": 0.8, "seconds": 3.0}


@pytest.mark.parametrize(
    ("words", "other", "said"),
    [
        (["model=resnet20", "surrogate=excitation"], "model=resnet20 surrogate=none", "the true gradient"),
        (["surrogate=sugar", "surrogate.gate.alpha=0.5", "seed=3"], "seed=3 surrogate=none", "the true gradient"),
        (["surrogate=none", "data.size=16"], "data.size=16 surrogate=excitation", "through soft gates"),
        (["name=my run", "optim.lr=0.1"], "optim.lr=0.1 surrogate=none", "the true gradient"),
    ],
)
def test_the_run_to_compare_with_has_the_runs_own_words(words, other, said, tmp_path):
    config = configured(*[word.replace("my run", "mine") for word in words])
    plain = config.plain | {"sweep": config.sweep.plain | {"overrides": words}}
    screen = screens.last("finished", FOUND, tmp_path, type(config).read(plain))
    assert f"train.py {other}  # {said}, to compare with" in screen.replace("\\[", "["), screen


def test_a_word_that_a_shell_would_split_is_quoted(tmp_path):
    config = configured()
    plain = config.plain | {"sweep": config.sweep.plain | {"overrides": ["data.classes=[3,5]"]}}
    screen = screens.last("finished", FOUND, tmp_path, type(config).read(plain))
    assert "'data.classes=[3,5]' surrogate=none" in screen.replace("\\[", "[")


def test_a_run_that_did_not_finish_has_nothing_to_compare_with(tmp_path):
    assert "to compare with" not in screens.last("interrupted", FOUND, tmp_path, configured())
