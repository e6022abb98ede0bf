"""In a real browser: what figures draw where there is more of it than usual."""

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("platform")]
DRAW = """async (count) => {
  const { Chart } = await import("/static/js/chart.js");
  const host = document.createElement("div");
  document.querySelector("main").append(host);
  const series = Array.from({ length: count }, (_, at) => ({ name: `v${at}`, points: [[at, at]], dots: true }));
  new Chart(host, { kind: "line", title: "many", x: "x", y: "y", series });
  await new Promise((done) => setTimeout(done, 300));
  const looks = (what) => [...host.querySelectorAll(what)].map((one) => one.getAttribute("class").replace("dots ", "").replace("swatch ", ""));
  return { dots: looks("path.dots"), swatches: looks(".swatch"), crosses: host.querySelectorAll("path.again[d*=v7]").length };
}"""


@pytest.mark.parametrize(("count", "crosses"), [(2, 0), (10, 0), (14, 4)])
def test_no_two_series_of_a_figure_look_alike(page: Any, complaints: list[str], count: int, crosses: int) -> None:
    drawn = page.evaluate(DRAW, count)
    assert len(set(drawn["dots"])) == count and drawn["dots"] == drawn["swatches"]
    assert drawn["crosses"] == crosses
    assert complaints == []
