"""Combinations of patterns and kernel prediction: made data are recovered, references agree."""

import pytest
import torch
from scipy.optimize import minimize
from sklearn.kernel_ridge import KernelRidge
from torch import nn

from softgate import SoftgateError
from softgate.paths.patterns import RIDGES, centred_within, combine, deep_features, halves, kernel_prediction


def test_the_weights_of_a_made_combination_are_found_again():
    torch.manual_seed(0)
    labels = torch.arange(120) % 4
    values = torch.randn(5, 120, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.0, 0.2, 0.0, 0.3], dtype=torch.float64)
    target = 7 * weights @ values + torch.tensor([3.0, -1, 0, 9])[labels]  # scale and class means do not count
    fit, test = halves(labels)
    found = combine(values, target, labels, fit, test)
    assert torch.allclose(found.weights, weights, atol=1e-10)
    assert found.within == pytest.approx(1)
    assert sorted([*fit.tolist(), *test.tolist()]) == list(range(120))
    assert all((labels[fit] == c).sum() == 15 for c in range(4))


def test_no_other_convex_combination_correlates_better_on_the_fitting_half():
    torch.manual_seed(1)
    labels = torch.arange(60) % 3
    target = torch.randn(60, dtype=torch.float64)
    values = 0.3 * target + torch.randn(4, 60, dtype=torch.float64)
    fit, test = halves(labels)
    found = combine(values, target, labels, fit, test)
    columns, aim = centred_within(values[:, fit], labels[fit]), centred_within(target[fit], labels[fit])

    def correlation(weights):
        made = torch.as_tensor(weights) @ columns
        return float(made @ aim / made.norm() / aim.norm())

    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(lambda w: -correlation(w), [0.25] * 4, bounds=[(0, 1)] * 4, constraints=simplex, method="SLSQP")
    assert correlation(found.weights) == pytest.approx(-best.fun, abs=1e-5)
    worst = combine(-target.expand(3, -1) * torch.tensor([[1.0], [2], [3]]), target, labels, fit, test)
    assert float(worst.weights.sum()) == 1
    assert worst.within == pytest.approx(-1)
    with pytest.raises(SoftgateError, match="one image"):
        halves(torch.tensor([0, 0, 1]))


def test_kernel_prediction_is_ridge_regression_with_the_leave_one_out_choice():
    torch.manual_seed(2)
    labels = torch.arange(40) % 4
    x = torch.randn(40, 6, dtype=torch.float64)
    kernel, outputs = (x @ x.T + 1).square(), torch.randn(40, 5, dtype=torch.float64) * 0.3 + x[:, :5] * x[:, 1:]
    fit, test = halves(labels)
    f = outputs - outputs.mean(1, keepdim=True)

    def centred(seen):
        middle = torch.zeros(40, 40, dtype=torch.float64)
        middle[:, seen] = 1 / len(seen)
        remove = torch.eye(40, dtype=torch.float64) - middle  # of the mean of those seen, in feature space
        return remove @ kernel @ remove.T

    def predicted(seen, at, alpha):
        k = centred(seen)
        machine = KernelRidge(alpha=alpha, kernel="precomputed")
        machine.fit(k[seen][:, seen].numpy(), (f[seen] - f[seen].mean(0)).numpy())
        return torch.from_numpy(machine.predict(k[at][:, seen].numpy())) + f[seen].mean(0)

    errors = {}
    for ridge in RIDGES:
        alpha = ridge * float(centred(fit).diagonal().mean())
        left = [predicted(torch.cat([fit[:i], fit[i + 1 :]]), fit[i : i + 1], alpha) for i in range(len(fit))]
        errors[alpha] = float((torch.cat(left) - f[fit]).square().sum())
    guess = predicted(fit, test, min(errors, key=errors.get))
    expected = 1 - (f[test] - guess).square().sum() / (f[test] - f[test].mean(0)).square().sum()
    assert kernel_prediction(kernel, outputs, labels)[0] == pytest.approx(float(expected), abs=1e-6)


def test_a_kernel_predicts_what_is_linear_in_its_features_and_no_noise():
    torch.manual_seed(3)
    labels = torch.arange(200) % 5
    x = torch.randn(200, 8, dtype=torch.float64)
    linear = x @ torch.randn(8, 5, dtype=torch.float64)
    r2, within = kernel_prediction(x @ x.T, linear, labels)
    assert r2 > 0.999
    assert within > 0.999
    assert kernel_prediction(x @ x.T + 9, linear + 5 * torch.arange(5), labels)[0] > 0.999  # the intercept is free
    r2, within = kernel_prediction(x @ x.T, torch.randn(200, 5), labels)
    assert r2 < 0.2
    assert abs(within) < 0.35


def test_deep_features_are_what_the_last_linear_layer_is_given():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    x = torch.randn(5, 3)
    assert torch.equal(deep_features(net, x), net[1](net[0](x)))
    assert net.training
    with pytest.raises(SoftgateError, match="no linear layer"):
        deep_features(nn.ReLU(), x)
