"""The options of `evaluate.py`: one refusal of each kind for every group, and nothing that is read and then ignored."""

import pytest

from configs import container
from softgate import SoftgateError
from softgate.evaluation.config import EvaluationConfig

ALL = ("runs=x", "alignment=full", "paths=full")


def options(*words, change=None):
    plain = container(*words, name="evaluate")
    if change is not None:
        change(plain)
    return EvaluationConfig.read(plain)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        # a key that there is not
        ("+grid.row=2", r"grid\.row: there is no such option; allowed under grid: .*\. Did you mean grid\.rows\?"),
        ("+alignment.image=2", r"alignment\.image: there is no such option.* Did you mean alignment\.images\?"),
        ("+paths.moment=2", r"paths\.moment: there is no such option.* Did you mean paths\.moments\?"),
        ("+compare.attack.l3=1", r"compare\.attack\.l3: there is no such option; allowed under compare\.attack: auto"),
        ("+compare.sharpness.image=1", r"compare\.sharpness\.image: .* Did you mean compare\.sharpness\.images\?"),
        ("+compare.corruptions.family=[]", r"compare\.corruptions\.family: .*mean compare\.corruptions\.families\?"),
        ("+data.batchsize=2", r"data\.batchsize: there is no such option; .* Did you mean data\.batch_size\?"),
        ("+measur=true", r"option=measur: there is no such name; .* Did you mean 'measure'\?"),
        # a key that is not there
        ("~grid.seed", r"grid\.seed is not set; give it on the command line as grid\.seed=\.\.\."),
        ("~compare.attack.steps", r"compare\.attack\.steps is not set"),
        # a value of another type: nothing is converted
        ("grid.rows=true", r"grid\.rows=True: a whole number >= 1, or null is needed"),
        ("grid.figures=1", r"grid\.figures=1: true or false is needed"),
        ("measure=yes please", r"measure=yes please: true or false is needed"),
        ("grid.steps=1.5", r"grid\.steps=1\.5: a whole number >= 1 is needed"),
        ("grid.kinds=raw", r"grid\.kinds=raw: a list of raw, ascent and accentuation is needed"),
        ("compare.grids=3", r"compare\.grids=3: true or false is needed"),
        ("compare.attack.auto=1", r"compare\.attack\.auto=1: true or false is needed"),
        ("plugins=json", r"plugins=json: a list of names is needed"),
        ("runs=5", r"runs=5: a run's directory, a checkpoint file, or a list or a glob of them is needed"),
        ("grid=3", r"grid=3: it has options under it, such as grid\.rows=2"),
        ("alignment=3", r"alignment=3: there is no such choice; allowed: full, null"),
        # a value out of range
        ("grid.kinds=[]", r"grid\.kinds=\[\]: a list of raw, ascent and accentuation is needed"),
        ("grid.accentuation=3", r"grid\.accentuation=3: it has options under it, such as grid\.accentuation\.steps=20"),
        ("grid.accentuation.weight=-1", r"grid\.accentuation\.weight=-1: a number >= 0 is needed"),
        ("grid.accentuation.steps=0", r"grid\.accentuation\.steps=0: a whole number >= 1 is needed"),
        (
            "grid.accentuation.crop=[0,1]",
            r"grid\.accentuation\.crop=\[0, 1\]: two numbers above 0 and up to 1 are needed",
        ),
        ("grid.accentuation.crop=[0.9,0.1]", r"grid\.accentuation\.crop=\[0\.9, 0\.1\]: the least side comes first"),
        ("+grid.accentuation.radius=1", r"grid\.accentuation\.radius: there is no such option"),
        (
            "grid.accentuation={weight: 0, layer: conv}",
            r"grid\.accentuation\.layer=conv: with weight=0 no distance is measured",
        ),
        ("grid.step_size=0", r"grid\.step_size=0: a number > 0 is needed"),
        ("alignment.images=1", r"alignment\.images=1: a whole number >= 2 is needed"),
        ("paths.threshold=1", r"paths\.threshold=1: a number between 0 and 1 is needed"),
        ("paths.moments=1", r"paths\.moments=1: a whole number >= 2, or null is needed"),
        ("compare.level=1.0", r"compare\.level=1\.0: a number from 0\.5 to below 1 is needed"),
        ("compare.train_images=0", r"compare\.train_images=0: a whole number >= 1 is needed, or null for all"),
        ("compare.attack.l2=-1", r"compare\.attack\.l2=-1: a number > 0 is needed, or null for none"),
        ("compare.sharpness.images=-1", r"compare\.sharpness\.images=-1: a whole number >= 0 is needed, or null"),
        ("compare.corruptions.severities=[0]", r"severities=\[0\]: a list of whole numbers from 1 to 5 is needed"),
        ("compare.price=-1", r"compare\.price=-1: a number >= 0, or null is needed"),
        # a name that there is not
        ("grid.explainers=[smothgrad]", r"grid\.explainers=smothgrad: .*Did you mean 'smoothgrad'"),
        ("compare.corruptions.families=[fogg]", r"compare\.corruptions\.families=fogg: .*Did you mean 'fog'"),
        ("checkpoint=lst", r"checkpoint=lst: .*allowed: best, last\. Did you mean 'last'"),
        # what nobody would read
        ("models=[resnet18]", r"models=\['resnet18'\]: model is not chosen"),
    ],
)
def test_a_wrong_option_is_one_sentence_of_our_own(word, message):
    def change(plain):
        """Hydra takes no value for a group: a config file may bring one all the same."""
        if word in ("grid=3", "alignment=3"):
            plain[word[:-2]] = 3

    words = () if word in ("grid=3", "alignment=3") else (word,)
    with pytest.raises(SoftgateError, match=message) as caught:
        options(*(each for each in ALL if each.partition("=")[0] != word.partition("=")[0]), *words, change=change)
    said = str(caught.value)
    assert "\n" not in said
    assert "pydantic" not in said
    assert "validation error" not in said


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.new_head=true", r"model\.new_head=True: an evaluation trains no new last layer; false is needed"),
        ("models=resnet18", r"models=resnet18: a list of networks is needed, or null"),
        ("models=[resnet81]", r"model\.name=resnet81.*Did you mean 'resnet18'"),
        ("+model.stm=small", r"model\.stm: there is no such option; .* Did you mean model\.stem\?"),
        ("paths=full", r"paths=full: it looks at recorded runs"),
        ("runs=x", r"runs and model: only one of them"),
    ],
)
def test_a_wrong_network_is_one_sentence_of_our_own(word, message):
    with pytest.raises(SoftgateError, match=message):
        assert options("model=resnet18", "data=digits", word).networks


def test_options_cannot_be_set_later_and_keep_what_was_typed():
    asked = options("runs=x", "grid.radius=100", "compare.price=2")
    with pytest.raises(ValueError, match="frozen"):
        asked.grid.rows = 3
    assert asked.compare.plain["price"] == 2
    assert isinstance(asked.compare.plain["price"], int)
    assert asked.compare.plain == container("runs=x", "compare.price=2", name="evaluate")["compare"]
    assert list(type(asked.compare).model_fields) == list(asked.compare.plain)


def test_every_option_of_the_yaml_files_is_a_field_and_the_other_way_round():
    plain = container(*ALL, name="evaluate")
    asked = EvaluationConfig.read(plain)
    for group in ("grid", "alignment", "paths", "compare"):
        assert set(plain[group]) == set(type(getattr(asked, group)).model_fields)


def test_what_takes_the_place_of_a_runs_own_data_is_what_is_not_null():
    own = {"name": "digits", "size": 16, "batch_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
    data = options("runs=x", "data.batch_size=4").data.onto(own)
    assert (data.name, data.size, data.batch_size) == ("digits", 16, 4)
    with pytest.raises(SoftgateError, match=r"data\.batch_size=0: a whole number >= 1 is needed"):
        options("runs=x", "data.batch_size=0").data.onto(own)
