"""How pages put things: dates, counts, true and false, headings, what a new run starts from."""

import re

import pytest
from django.urls import reverse

from dlplatform.accounts.templatetags.platform import counted, number, setting
from dlplatform.engine.config import ConfigError, parse_config
from registry.cards import rendered
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def measured(organization, tmp_path):
    dataset = factories.DatasetFactory(organization=organization)
    rows = [
        {"when": f"2024-01-{day:02d}T08:30:00Z", "night": day % 2 == 0, "amount": day * 1.5} for day in range(1, 29)
    ]
    return factories.ready_version(dataset, rows, tmp_path, number=1)


def text_of(answer):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))


def test_columns_show_dates_quantiles_and_truth(web, viewer, measured):
    text = text_of(web(viewer).get(reverse("dataset", args=[measured.dataset_id])))
    assert "1 Jan 2024 08:30:00" in text and "28 Jan 2024" in text and "2024-01-28T" not in text
    assert "Median 25 % – 75 %" in text and "21.75 11.62 – 31.88" in text and "1.5 3.525" in text and "42 39.98" in text
    assert "false 50.0 %" in text and "False" not in text


def test_rows_show_truth_as_predictions_do(web, viewer, measured):
    text = text_of(web(viewer).get(reverse("dataset", args=[measured.dataset_id]) + "?tab=rows"))
    assert " true " in text and " false " in text and "True" not in text


@pytest.mark.parametrize(
    ("value", "told"),
    [(True, "true"), (10_120.3, "10,120"), (5_142_345.6, "5,142,346"), (0.0123, "0.0123"), (999.94, "999.9"),
     (1.5e12 + 0.5, "1.500e+12"), (0.00001, "1.000e-05"), (None, "–"), (12, "12")],
)  # fmt: skip
def test_numbers_are_written_out(value, told):
    assert number(value) == told


def test_settings_are_written_as_in_a_request():
    assert (setting(True), setting(0.00123456), setting("auto"), setting(None)) == ("true", 0.00123456, "auto", None)


def test_one_is_not_many():
    assert (counted(1, "row"), counted(1797, "row"), counted(0, "row")) == ("1 row", "1,797 rows", "0 rows")


def test_a_rejected_version_tells_no_size(web, viewer, organization):
    version = factories.DatasetVersionFactory(
        dataset__organization=organization, number=1, state="rejected", rows=0, bytes=0, columns=[]
    )
    text = text_of(web(viewer).get(reverse("dataset", args=[version.dataset_id])))
    assert "0 rows" not in text and "stored in" not in text


def test_the_headings_of_a_card_stand_below_those_of_the_page():
    html = rendered("# Model\n\n## Data\n\n###### Deep\n")
    assert html == "<h3>Model</h3>\n<h4>Data</h4>\n<h6>Deep</h6>\n"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"seed": -1}, "from 0 to 2147483647."),
        ({"devices": 65}, "from 1 to 64, or auto."),
        ({"warmup": 2}, "from 0 to 0.5."),
    ],
)
def test_limits_of_settings_are_written_out(config, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_config(config, "classification")


def test_a_new_run_starts_from_the_newest_version_with_enough_rows(web, trainer, organization):
    chosen = factories.DatasetVersionFactory(dataset__organization=organization, number=1, rows=100)
    small = factories.DatasetVersionFactory(dataset__organization=organization, number=1, rows=1)
    assert web(trainer).get(reverse("run-new")).context["version"] == chosen
    chosen.dataset.archived_at = chosen.created_at
    chosen.dataset.save()
    assert web(trainer).get(reverse("run-new")).context["version"] == small
