"""Repository names: every model has one, which leads back to it and which clients accept."""

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from registry.hub.names import LONGEST, model_name, repo_name

EXAMPLES = {
    "bert-base_v1.5": "bert-base_v1.5",
    "breast cancer": "breast_u20_cancer",
    "größe": "gr_uf6__udf_e",
    "a--b": "a-_u2d_b",
    "x.git": "x_u2e_git",
    ".hidden-": "_u2e_hidden_u2d_",
    "my_uber_unet": "my_uber_unet",
    "a_u20_b": "a_u5f_u20_b",
    "4f2a0000-0000-4000-8000-000000000000": "_u34_f2a0000-0000-4000-8000-000000000000",
}


@pytest.mark.parametrize(("name", "expected"), EXAMPLES.items())
def test_safe_names_stay_and_the_rest_is_escaped(name, expected):
    assert repo_name(name) == expected
    assert model_name(expected) == name


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40))
def test_every_name_comes_back_and_is_fit_for_clients(name):
    written = repo_name(name)
    assert model_name(written) == name
    if len(written) <= LONGEST:
        validate_repo_id(f"lab/{written}")


@given(st.text("_u20af-. g", min_size=1, max_size=12))
def test_names_that_look_escaped_come_back_too(name):
    assert model_name(repo_name(name)) == name


@pytest.mark.parametrize("written", ["a b", "_u61_", "_ud800_", "_u110000_", "_u0_", "", "größe"])
def test_nothing_has_a_second_name(written):
    assert model_name(written) is None
