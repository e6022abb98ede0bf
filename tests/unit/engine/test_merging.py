"""Merging weights: what only one side changed is taken to the bit, every method does what its paper says."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlplatform.engine.grams import collect_grams
from dlplatform.engine.layers import EnsembleLinear, GroupedLinear, MemberLinear
from dlplatform.engine.merging import MergeConflict, Recipe, merge_weights


@pytest.fixture
def merge(tmp_path):
    """``merge(recipe, parents, ancestor)`` → ({name: tensor}, {name: how}, bytes of the file)."""

    numbers = itertools.count()

    def work(recipe, parents, ancestor=None, grams=()):
        paths = []
        for index, tensors in enumerate([*parents, *([ancestor] if ancestor is not None else [])]):
            paths.append(tmp_path / f"{index}.safetensors")
            save_file(tensors, paths[-1], metadata={"format": "pt"})
        target = tmp_path / f"merged-{next(numbers)}.safetensors"  # earlier ones may still be mapped
        base = paths[len(parents)] if ancestor is not None else None
        report = merge_weights(target, paths[: len(parents)], base, recipe, grams)
        return load_file(target), {row["name"]: row["how"] for row in report}, target.read_bytes()

    return work


def some(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_average_and_its_proportions(merge):
    left, right = {"w": some(1, 3, 2)}, {"w": some(2, 3, 2)}
    merged, how, _ = merge(Recipe(), [left, right])
    assert torch.allclose(merged["w"], (left["w"] + right["w"]) / 2) and how == {"w": "merged"}
    weighted, _, _ = merge(Recipe(shares=(3.0, 1.0)), [left, right])
    assert torch.allclose(weighted["w"], 0.75 * left["w"] + 0.25 * right["w"])


def test_what_only_one_side_changed_is_taken_to_the_bit(merge):
    base = {"a": some(1, 4), "b": some(2, 4), "n": torch.tensor([1, 2]), "z": torch.tensor([0.0, math.nan])}
    left = base | {"a": some(3, 4), "z": torch.tensor([-0.0, math.nan])}
    right = base | {"b": some(4, 4), "n": torch.tensor([5, 6])}
    merged, how, _ = merge(Recipe(), [left, right], base)
    assert set(how.values()) == {"taken"}
    assert torch.equal(merged["a"], left["a"]) and torch.equal(merged["b"], right["b"])
    assert torch.equal(merged["n"], right["n"]) and math.copysign(1, merged["z"][0]) == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_task_arithmetic_of_one_branch_with_factor_one_is_that_branch_to_the_bit(merge, tmp_path, dtype):
    base = {"w": (some(1, 64, 64) * 1e3).to(dtype), "e": torch.zeros(3, dtype=dtype)}
    branch = {"w": (some(2, 64, 64) * 1e-3).to(dtype), "e": torch.tensor([-0.0, 1.0, 2.0], dtype=dtype)}
    _, how, written = merge(Recipe("task-arithmetic", shares=(1.0, 1.0)), [base, branch], base)
    assert written == (tmp_path / "1.safetensors").read_bytes() and set(how.values()) == {"taken"}


def test_task_arithmetic_adds_the_changes_with_their_factors(merge):
    base, left, right = ({"w": some(seed, 5)} for seed in (1, 2, 3))
    merged, _, _ = merge(Recipe("task-arithmetic", shares=(0.5, -0.25)), [left, right], base)
    wanted = base["w"] + 0.5 * (left["w"] - base["w"]) - 0.25 * (right["w"] - base["w"])
    assert torch.allclose(merged["w"], wanted, atol=1e-6)
    none, _, _ = merge(Recipe("task-arithmetic", shares=(0.0, 0.0)), [left, right], base)
    assert torch.equal(none["w"], base["w"])


def test_slerp_keeps_the_length_and_halves_the_angle(merge):
    left, right = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    merged, _, _ = merge(Recipe("slerp"), [left, right])
    assert torch.allclose(merged["w"], torch.full((2,), math.sqrt(0.5)))
    straight, _, _ = merge(Recipe("slerp", shares=(3.0, 1.0)), [left, {"w": torch.tensor([2.0, 0.0])}])
    assert torch.allclose(straight["w"], torch.tensor([1.25, 0.0]))


def test_ties_keeps_the_greatest_changes_that_agree_in_sign(merge):
    base = {"w": torch.zeros(4)}
    left, right = {"w": torch.tensor([4.0, 1.0, -3.0, 0.1])}, {"w": torch.tensor([2.0, -5.0, -1.0, 0.2])}
    merged, _, _ = merge(Recipe("ties", density=0.75), [left, right], base)
    assert torch.equal(merged["w"], torch.tensor([3.0, -5.0, -2.0, 0.0]))


def test_regmean_weighs_each_parent_by_its_inputs(merge):
    """Each parent saw inputs along one axis only: the merged weights answer both as their own parent did."""
    left, right = {"w": some(1, 2, 3)}, {"w": some(2, 2, 3)}
    grams = [{"w": torch.diag(torch.tensor([9.0, 0.0]))}, {"w": torch.diag(torch.tensor([0.0, 4.0]))}]
    merged, _, _ = merge(Recipe("regmean", shrink=1.0), [left, right], grams=grams)
    assert torch.allclose(merged["w"][0], left["w"][0], atol=1e-4)
    assert torch.allclose(merged["w"][1], right["w"][1], atol=1e-4)


def test_regmean_beats_the_average_on_the_parents_own_inputs(merge):
    inputs = [some(seed, 256, 8) * torch.rand(8, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (5, 6)]
    parents = [{"w": some(1, 8, 4), "b": some(3, 4)}, {"w": some(2, 8, 4), "b": some(4, 4)}]
    grams = [{"w": rows.T @ rows} for rows in inputs]
    merged, how, _ = merge(Recipe("regmean"), parents, grams=grams)
    mean, _, _ = merge(Recipe(), parents)

    def error(weights):
        return sum(
            float((rows @ (weights - one["w"])).square().sum()) for rows, one in zip(inputs, parents, strict=True)
        )

    assert error(merged["w"]) < error(mean["w"]) and how == {"w": "merged", "b": "merged"}
    assert torch.allclose(merged["b"], mean["b"])


def test_conflicts_are_named(merge):
    one = {"a": some(1, 2), "b": some(2, 3), "n": torch.tensor([1])}
    with pytest.raises(MergeConflict) as caught:
        merge(Recipe(), [one, {"a": some(1, 4), "c": some(1, 1), "n": torch.tensor([1])}])
    assert caught.value.problems == [
        "a is F32 2 in one version and F32 4 in another", "b is not in all versions", "c is not in all versions",
    ]  # fmt: skip
    with pytest.raises(MergeConflict, match="n holds whole numbers"):
        merge(Recipe(), [one, one | {"n": torch.tensor([2])}])
    for recipe, sentence in (
        (Recipe("magic"), "the method is one of"),
        (Recipe(shares=(1.0,)), "1 shares for 2 versions"),
        (Recipe(shares=(1.0, -1.0)), "add up to more than zero"),
        (Recipe("ties", density=0.0), "needs a common ancestor; the density"),
        (Recipe("regmean"), "needs inputs of every version"),
    ):
        with pytest.raises(MergeConflict, match=sentence):
            merge(recipe, [one, one])
    with pytest.raises(MergeConflict, match="needs two versions"):
        merge(Recipe(), [one])


def test_grams_are_those_of_what_meets_each_weight():
    torch.manual_seed(0)
    grouped, ensemble, member = GroupedLinear(2, 3, 4), EnsembleLinear(2, 5, 4, 6, first=True), MemberLinear(2, 5, 6, 1)
    for layer in (grouped, ensemble, member):
        with torch.no_grad():
            layer.initialise(torch.Generator().manual_seed(1))
    network = torch.nn.ModuleDict({"grouped": grouped, "ensemble": ensemble, "member": member})
    rows = torch.randn(2, 7, 3)

    def run():
        member(ensemble(grouped(rows).unsqueeze(1)))

    found = collect_grams(network, run)
    assert {name: tuple(gram.shape) for name, gram in found.items()} == {
        "grouped.weight": (2, 3, 3), "ensemble.weight": (2, 4, 4), "member.weight": (10, 6, 6),
    }  # fmt: skip
    assert torch.allclose(found["grouped.weight"].float(), rows.transpose(1, 2) @ rows, atol=1e-4)
    scaled = (grouped(rows).unsqueeze(1) * ensemble.before)[0].reshape(-1, 4)
    assert torch.allclose(found["ensemble.weight"][0].float(), scaled.T @ scaled, atol=1e-3)
    assert collect_grams(network, lambda: None) == {} and not grouped._forward_pre_hooks
