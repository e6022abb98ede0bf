"""The mathematics of a sweep: spaces, samplers, rungs; without a database."""

import json
import math
import random

import pytest

from dlplatform.engine.config import parse_config
from dlplatform.engine.finetune_config import FinetuneConfig, parse_finetune
from training.sweeps.rungs import Standing, last_hope, median_verdict, promotable, rung_epochs
from training.sweeps.sampling import Past, propose
from training.sweeps.space import SpaceError, counting, dimensions_of, grid_order, grid_size, parse_space, with_settings
from training.sweeps.tuning import shared_by_all, tuned

RATE = {"name": "learning_rate", "kind": "float", "low": 1e-4, "high": 1e-1, "log": True, "points": 4}
WIDTH = {"name": "params.width", "kind": "integer", "low": 8, "high": 64, "points": 3}
SCHEDULE = {"name": "schedule", "kind": "categorical", "choices": ["cosine", "linear"]}
SPACE = [RATE, WIDTH, SCHEDULE]


def parsed(*space, **config):
    return parse_space(list(space), config, "classification")


def test_a_space_comes_back_as_it_was_written():
    dimensions = parsed(*SPACE)
    assert dimensions_of([one.to_dict() for one in dimensions]) == dimensions
    assert grid_size(dimensions) == 4 * 3 * 2
    assert dimensions[0].grid() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert dimensions[1].grid() == [8, 36, 64]


@pytest.mark.parametrize(
    ("entry", "field", "code"),
    [
        ({**RATE, "low": 0}, "space.0.low", "out_of_range"),
        ({**RATE, "low": 0, "log": False}, "space.0.low", "out_of_range"),
        ({**RATE, "high": 7}, "space.0.high", "out_of_range"),
        ({**RATE, "high": 1e-5}, "space.0.high", "out_of_range"),
        ({**RATE, "low": "x"}, "space.0.low", "wrong_type"),
        ({**RATE, "high": 10**400}, "space.0.high", "wrong_type"),
        ({**RATE, "low": float("nan")}, "space.0.low", "wrong_type"),
        ({**RATE, "points": 0}, "space.0.points", "out_of_range"),
        ({**RATE, "log": 1}, "space.0.log", "wrong_type"),
        ({**RATE, "more": 1}, "space.0.more", "unknown_field"),
        ({**RATE, "name": "nothing"}, "space.0.name", "unknown_field"),
        ({**RATE, "name": "seed"}, "space.0.name", "invalid"),
        ({**RATE, "kind": "odd"}, "space.0.kind", "unknown_choice"),
        ({**WIDTH, "low": 1.5}, "space.0.low", "wrong_type"),
        ({**SCHEDULE, "choices": ["cosine", "odd"]}, "space.0.choices", "unknown_choice"),
        ({**SCHEDULE, "choices": []}, "space.0.choices", "invalid"),
        ({**SCHEDULE, "choices": ["linear", "linear"]}, "space.0.choices", "unique"),
        ({**SCHEDULE, "choices": [["linear"]]}, "space.0.choices", "wrong_type"),
        ("learning_rate", "space.0", "wrong_type"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_field(entry, field, code):
    with pytest.raises(SpaceError) as refused:
        parsed(entry)
    assert refused.value.problems[0][:2] == (field, code)


def test_nothing_a_setting_twice_and_too_many_are_refused():
    for space in ([], [RATE, RATE], [RATE] * 21):
        with pytest.raises(SpaceError):
            parsed(*space)


def test_settings_go_into_the_configuration_where_they_belong():
    merged = with_settings({"epochs": 3, "params": {"layers": 2}}, {"params.width": 8, "learning_rate": 0.1})
    assert merged == {"epochs": 3, "params": {"layers": 2, "width": 8}, "learning_rate": 0.1}


def loss(params):
    return (math.log10(params["learning_rate"]) + 2) ** 2 + (params["params.width"] - 40) ** 2 / 400


def searched(sampler, count, seed=3):
    past = []
    for _ in range(count):
        params = propose(sampler, parsed(*SPACE), seed, past)
        if params is None:
            break
        past.append(Past(params, "succeeded", loss(params)))
    return past


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", "grid"])
def test_the_same_trials_lead_to_the_same_proposal_within_the_space(sampler):
    past = searched(sampler, 14)
    again = propose(sampler, parsed(*SPACE), 3, past)
    assert again == propose(sampler, parsed(*SPACE), 3, past)
    for one in past:
        assert 1e-4 <= one.params["learning_rate"] <= 1e-1 and 8 <= one.params["params.width"] <= 64
        assert isinstance(one.params["params.width"], int) and one.params["schedule"] in ("cosine", "linear")
    assert len({str(one.params) for one in past}) > 7


def test_tpe_and_cmaes_learn_from_what_they_saw():
    chance = sorted(one.value for one in searched("random", 40)[20:])[10]
    for sampler in ("tpe", "cmaes"):
        assert sorted(one.value for one in searched(sampler, 40)[20:])[10] < chance / 2, sampler


def test_a_grid_ends_after_each_of_its_points_once():
    past = searched("grid", 100)
    assert len(past) == 24 == len({str(one.params) for one in past})


def test_samplers_bear_trials_that_train_failed_or_were_pruned():
    point = searched("random", 1)[0].params
    past = [
        Past(point, "running"), Past(point, "paused", 0.4, {1: 0.4}), Past(point, "failed"), Past(point, "succeeded", math.nan),
        Past(point, "pruned", 0.5, {1: 0.6, 3: 0.5}), *searched("random", 12),
    ]  # fmt: skip
    for sampler in ("tpe", "random"):
        assert propose(sampler, parsed(*SPACE), 0, past)
    assert propose("cmaes", parsed(*SPACE), 0, past) is None  # its first generation still trains
    assert propose("cmaes", parsed(*SPACE), 0, past[1:])


def test_rungs_lie_below_the_last_epoch():
    assert rung_epochs("asha", 1, 27, 3) == [1, 3, 9]
    assert rung_epochs("asha", 2, 9, 2) == [2, 4, 8]
    assert rung_epochs("median", 5, 20, 3) == [5, 10, 15]
    assert rung_epochs("none", 1, 27, 3) == [] == rung_epochs("asha", 27, 27, 3)


def waiting(number, *values):
    return Standing(number, values, True)


def test_the_best_of_every_three_goes_on_as_soon_as_it_is_known():
    assert promotable([waiting(0, 0.5), waiting(1, 0.4)], 3, 3) is None
    three = [waiting(0, 0.5), waiting(1, 0.4), waiting(2, 0.6)]
    assert promotable(three, 3, 3).number == 1
    gone_on = [three[0], Standing(1, (0.4,), False), three[2]]
    assert promotable(gone_on, 3, 3) is None
    assert promotable([*gone_on, *(waiting(number, 0.3) for number in (3, 4, 5))], 3, 3).number == 3


def test_a_higher_rung_comes_first():
    low = [waiting(number, 0.1 + number) for number in range(6)]
    high = [Standing(number, (0.01, 0.5 - number / 100), number == 8) for number in (6, 7, 8)]
    assert promotable([*low, *high], 2, 3).number == 8


def test_asha_gives_every_rung_about_a_third_of_the_one_below():
    generator = random.Random(1)
    quality = {number: generator.random() for number in range(81)}
    standings, promoted = [], [0, 0, 0]
    for number in range(81):
        standings.append(waiting(number, quality[number]))
        while (one := promotable(standings, 3, 3)) is not None:
            rung = len(one.values)
            promoted[rung - 1] += 1
            standings[one.number] = Standing(one.number, (*one.values, quality[one.number]), rung < 3)
    assert promoted[0] >= 27 and promoted[1] >= 9 and promoted[2] >= 3
    best = min(quality, key=quality.get)
    assert len(standings[best].values) == 4


def test_at_the_end_the_farthest_and_best_of_those_that_wait_goes_on():
    assert last_hope([waiting(0, 0.2), waiting(1, 0.9, 0.5), waiting(2, 0.8, 0.4)]).number == 2
    assert last_hope([Standing(0, (0.2,), False)]) is None


def test_the_median_prunes_only_against_enough_others():
    few = [waiting(number, 0.1) for number in range(3)]
    assert median_verdict(waiting(9, 0.9), few) == "continue"
    many = [waiting(number, 0.1 * number) for number in range(5)]
    assert median_verdict(waiting(9, 0.9), many) == "prune"
    assert median_verdict(waiting(9, 0.15), many) == "continue"


# --- fine-tuning ----------------------------------------------------------------------------------------

MODE = {"name": "finetune.mode", "kind": "categorical", "choices": ["full", "head", "lora"]}
ADAPTER = {"name": "finetune.adapter", "kind": "categorical", "choices": ["lora", "ia3"]}
RANK = {"name": "finetune.rank", "kind": "integer", "low": 2, "high": 8, "points": 3}
STAGES = {"name": "finetune.unfreeze_every", "kind": "integer", "low": 1, "high": 2, "points": 2}
WHOLE = FinetuneConfig().to_dict()


def of_base(*space, **shared):
    return parse_space(list(space), {}, "classification", WHOLE | shared)


def test_a_grid_over_modes_takes_each_way_once():
    dimensions = of_base(MODE, ADAPTER, RANK, STAGES, RATE)
    points = list(grid_order(dimensions, 3))
    # full and ia3 each once, head by its stages, lora by its ranks; each with four rates
    assert len(points) == grid_size(dimensions) == 4 * (1 + 1 + 2 + 3)
    assert {json.dumps(tuned(WHOLE, point)) for point in points} == {
        json.dumps(tuned(WHOLE, {**point, "learning_rate": 1.0})) for point in points
    }
    ways = [tuned(WHOLE, point) for point in points if point["finetune.mode"] == "full"]
    assert len(ways) == 4 and all("rank" not in way and "unfreeze_every" not in way for way in ways)
    assert all(parse_finetune(tuned(WHOLE | {"unfreeze_every": 2}, point)) for point in points)
    assert grid_order(dimensions, 3).__next__() == points[0]


ENCODER = {"name": "text_encoder", "kind": "categorical", "choices": ["hashed", "transformer"]}
LENGTH = {"name": "text_length", "kind": "integer", "low": 8, "high": 64}
PIECES = {"name": "tokenizer", "kind": "categorical", "choices": ["bpe", "byte"]}
VOCABULARY = {"name": "vocabulary", "kind": "integer", "low": 300, "high": 900}


def test_what_counts_follows_from_what_decides():
    def counted(point, task="classification", finetune=None, **config):
        return set(counting(point, config, finetune, task))

    texts = {
        "text_length": 9,
        "tokenizer": "bpe",
        "vocabulary": 300,
        "params.text_width": 8,
        "params.width": 8,
        "epochs": 2,
    }
    assert counted({"text_encoder": "hashed", **texts}) == {"text_encoder", "params.width", "epochs"}
    assert counted(texts, text_encoder="hashed") == {"params.width", "epochs"}
    assert (
        counted({"text_encoder": "transformer", **texts})
        == {"text_encoder", *texts}
        == counted({"text_encoder": "auto", **texts})
    )
    assert counted(texts | {"tokenizer": "byte"}) == set(texts) - {"vocabulary"}
    assert counted(texts, "language-model", text_encoder="hashed") == set(texts)
    tuning = {"finetune.mode": "full", "finetune.rank": 2, "finetune.layer_decay": 0.5, "learning_rate": 0.1}
    assert counted(tuning, finetune=WHOLE) == set(tuning) - {"finetune.rank"}
    assert counted(tuning | {"finetune.mode": "lora"}, finetune=WHOLE | {"adapter": "ia3"}) == set(tuning) - {
        "finetune.rank"
    }


NETWORK = {"name": "architecture", "kind": "categorical", "choices": ["linear", "mlp", "tabm"]}
MEMBERS = {"name": "params.members", "kind": "integer", "low": 2, "high": 8, "points": 2}


def test_params_count_in_the_architectures_that_know_them():
    def counted(point, **config):
        return set(counting(point, config, None, "classification"))

    params = {"params.width": 8, "params.members": 4, "params.text_width": 16}
    assert counted({"architecture": "linear", **params}) == {"architecture", "params.text_width"}
    assert counted({"architecture": "mlp", **params}) == {"architecture", "params.width", "params.text_width"}
    assert (
        counted({"architecture": "tabm", **params}) == {"architecture", *params} == {"architecture"} | counted(params)
    )
    assert counted(params, architecture="linear") == {"params.text_width"}
    assert counted({"params.anything": 1}, architecture="code") == {"params.anything"}
    shared = {"architecture": "auto", "params": {"layers": 2}}
    made = {each: with_settings(shared, {"architecture": each, **params}) for each in NETWORK["choices"]}
    assert {each: set(one["params"]) for each, one in made.items()} == {
        "linear": {"text_width"}, "mlp": {"layers", "width", "text_width"},
        "tabm": {"layers", "width", "members", "text_width"},
    }  # fmt: skip
    for settings in made.values():
        parse_config(settings, "classification")


def test_a_grid_takes_each_architecture_with_what_it_knows():
    dimensions = parsed(NETWORK, WIDTH, MEMBERS, {**RATE, "points": 2})
    points = list(grid_order(dimensions, 3))
    assert len(points) == grid_size(dimensions) == 2 * (1 + 3 + 3 * 2)
    made = {json.dumps(with_settings({}, point), sort_keys=True) for point in points}
    assert len(made) == len(points), "every trial is another one"


def test_params_of_no_architecture_that_is_searched_are_refused():
    with pytest.raises(SpaceError) as refused:
        parsed({**NETWORK, "choices": ["linear", "mlp"]}, WIDTH, MEMBERS)
    assert [each[:2] for each in refused.value.problems] == [("space.2.name", "unknown_field")]
    assert parsed(NETWORK, WIDTH, MEMBERS)


def searched_by_conditions(dimensions, counted, count, change=lambda point: point):
    """Proposals, each after trials of those before; ``change``: what stands in the trials instead."""
    past, made = [], []
    for _ in range(count):
        made.append(propose("tpe", dimensions, 5, past, counted))
        told = counted(made[-1])
        worth = sum(float(value) if isinstance(value, int | float) else len(value) / 9 for value in told.values())
        past.append(Past(change(made[-1]), "succeeded", worth))
    return made


@pytest.mark.parametrize(
    ("dimensions", "shared"),
    [
        (of_base(MODE, ADAPTER, RANK, STAGES, RATE), WHOLE),
        (parse_space([ENCODER, LENGTH, PIECES, VOCABULARY, RATE], {}, "classification"), None),
        (parse_space([WIDTH, NETWORK, RATE, MEMBERS], {}, "classification"), None),
    ],
    ids=["fine-tuning", "texts", "architectures"],
)
def test_tpe_is_told_only_of_what_counted(dimensions, shared):
    def counted(point):
        return counting(point, {}, shared, "classification")

    def misled(point):
        """Other values of everything that did nothing."""
        told = counted(point)
        return {one.name: point[one.name] if one.name in told else one.grid()[-1] for one in dimensions}

    made = searched_by_conditions(dimensions, counted, 16)
    assert made == searched_by_conditions(dimensions, counted, 16), "the same trials lead to the same proposals"
    assert made == searched_by_conditions(dimensions, counted, 16, misled), "whatever did nothing in them"
    assert made != searched_by_conditions(dimensions, dict, 16)
    assert all(set(point) == {one.name for one in dimensions} for point in made)
    assert len({len(counted(point)) for point in made}) > 1, "or nothing was conditional"


def test_trials_from_before_lead_on_whatever_they_held():
    """A search under way told TPE of everything; trials without some settings, failed or waiting ones do no harm."""
    dimensions = of_base(MODE, ADAPTER, RANK, RATE)
    point = {"finetune.mode": "full", "finetune.adapter": "ia3", "finetune.rank": 8, "learning_rate": 0.01}
    past = [Past(point, state, 0.5, {1: 0.5}) for state in ("succeeded", "pruned", "failed", "running", "paused")] * 4
    made = propose("tpe", dimensions, 0, past, lambda given: counting(given, {}, WHOLE, "classification"))
    assert made is not None and set(made) == set(point) and 2 <= made["finetune.rank"] <= 8


def test_blocks_are_chosen_by_texts():
    chosen = {"name": "finetune.blocks", "kind": "categorical", "choices": ["usual", "head hidden.*"]}
    of_base(chosen, mode="lora")
    assert tuned(WHOLE | {"mode": "lora"}, {"finetune.blocks": "head hidden.*"})["blocks"] == ["head", "hidden.*"]
    assert tuned(WHOLE | {"mode": "lora", "blocks": ["a"]}, {"finetune.blocks": "usual"})["blocks"] == []


@pytest.mark.parametrize(
    ("space", "shared", "field", "code"),
    [
        ([RANK], {}, "space.0.name", "not_for_mode"),
        ([RATE, RANK], {"mode": "lora", "adapter": "ia3"}, "space.1.name", "not_for_mode"),
        ([STAGES], {"mode": "lora"}, "space.0.name", "not_for_mode"),
        ([{**RANK, "low": 0}], {"mode": "lora"}, "space.0.low", "out_of_range"),
        ([{**RANK, "kind": "float"}], {"mode": "lora"}, "space.0.low", "wrong_type"),
        ([{**MODE, "choices": ["lora", "most"]}], {}, "space.0.choices", "unknown_choice"),
        ([{"name": "finetune.format", "kind": "categorical", "choices": ["peft"]}], {}, "space.0.name", "unknown_field"),
        ([{"name": "finetune.blocks", "kind": "integer", "low": 1, "high": 2}], {"mode": "lora"}, "space.0.low",
         "wrong_type"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused_with_its_field(space, shared, field, code):
    with pytest.raises(SpaceError) as refused:
        of_base(*space, **shared)
    assert refused.value.problems[0][:2] == (field, code)


def test_fine_tuning_is_searched_from_a_base_only():
    with pytest.raises(SpaceError) as refused:
        parsed(MODE)
    assert refused.value.problems[0][:2] == ("space.0.name", "unknown_field")
    assert "base_version" in refused.value.problems[0][2]


def test_what_all_trials_share_is_told_without_what_counts_nowhere():
    told = shared_by_all(WHOLE | {"mode": "head", "blocks": ["a", "b"]}, ["finetune.layer_decay"])
    assert told == {"finetune.mode": "head", "finetune.blocks": "a b"}
    assert "finetune.rank" in shared_by_all(WHOLE, ["finetune.mode"])
