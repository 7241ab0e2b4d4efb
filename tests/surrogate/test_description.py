"""A rule in words: what two rules differ in is said of both."""

import pytest

import softgate as sg
from softgate.surrogate.description import caption, completed, names, sentence
from softgate.surrogate.rule import NAMED

OTHERS = {
    "activation": sg.activations.SelfGate(silu=1.0),
    "attention": sg.attentions.TwoPass(),
    "norm": "constant",
    "product": "constant",
}


@pytest.mark.parametrize("part", OTHERS)
def test_rules_that_differ_in_one_field_are_told_apart(part):
    plain, other = sg.Surrogate(), sg.Surrogate(**{part: OTHERS[part]})
    for told in (sentence, caption, lambda rule: names(rule.to_dict())):
        assert told(plain) != told(other)


def test_every_named_rule_has_a_sentence_and_only_none_is_the_true_gradient():
    said = {name: sentence(getattr(sg.Surrogate, name)()) for name in NAMED}
    assert [name for name, one in said.items() if one == "the true gradient"] == ["none"]
    assert len(set(said.values())) == len(said)


def test_a_rule_for_smooth_activations_alone_is_no_true_gradient():
    rule = sg.Surrogate.none(activation=sg.activations.SelfGate())
    assert "SelfGate" in sentence(rule)
    assert caption(rule) == "hard gates, self_gate"


def test_names_of_a_config_and_of_a_rule_agree():
    rule = sg.Surrogate.semantic()
    assert names(rule.to_dict()) == ["normal_cdf", "self_gate", "norm constant", "value_path", "product constant"]
    config = {"gate": {"name": "sigmoid"}, "activation": {"name": "own"}, "norm": "own", "attention": {"name": "own"}}
    assert names(config) == ["sigmoid"]
    assert names({"gate": {"name": "sigmoid"}}) == ["sigmoid"]  # of a run from before there were more


def test_completion_adds_what_semantic_has_and_leaves_what_was_chosen():
    rule = sg.Surrogate.excitation(temperature=0.5, attention=sg.attentions.TwoPass(2.0))
    fuller, semantic = completed(rule), sg.Surrogate.semantic()
    assert (fuller.gate, fuller.pool, fuller.attention) == (rule.gate, rule.pool, rule.attention)
    assert (fuller.activation, fuller.norm, fuller.product) == (semantic.activation, semantic.norm, semantic.product)
    assert completed(semantic) == semantic
