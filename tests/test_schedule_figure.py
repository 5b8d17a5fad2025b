"""What the figure of a comparison draws where."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from lesionseg.schedule_figure import PANELS, schedules_figure

ROWS = ["baseline", "lp_ft"]


def test_dots_intervals_and_the_values_of_the_paper_stand_in_the_panel_of_their_figure() -> None:
    cells = list(product(ROWS, PANELS))
    table = pd.DataFrame(cells, columns=["schedule", "figure"]).assign(estimate=np.linspace(0.1, 0.9, len(cells)))
    table = table.assign(low=table.estimate - 0.05, high=table.estimate + 0.05)
    paper = {"baseline": {"dice1": 0.49, "accuracy_found": 0.56}}
    figure = schedules_figure(table, ROWS, {row: row for row in ROWS}, paper, "a note")
    for panel, name in zip(figure.axes, PANELS, strict=True):
        lines = {line.get_marker(): line.get_xdata() for line in panel.lines}
        own = table[table.figure == name]
        ends = [segment[:, 0].tolist() for segment in panel.collections[0].get_segments()]
        assert np.array_equal(lines["o"], own.estimate)
        assert ends == own[["low", "high"]].to_numpy().tolist()
        expected = [paper["baseline"].get(name, np.nan), np.nan]
        assert np.array_equal(lines["D"], expected, equal_nan=True)
