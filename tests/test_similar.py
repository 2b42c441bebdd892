"""The table of precision at 5: on films and reports of which everything is known."""

import numpy as np

from train.similar import FEWEST, table


def test_precision_is_counted_over_films_with_the_label_without_it_and_over_all_reports():
    stated = [{"Edema"}] * 2 + [{"Fracture"}] * 3 + [set()] * 5
    near = np.array([[0, 1, 2, 3, 4]] * FEWEST + [[5, 6, 7, 8, 0]] * 4)
    films = [{"Edema": 1}] * FEWEST + [{"Edema": 0}] * 2 + [{}] * 2
    rows = {line.split("|")[1].strip(): line for line in table(near, stated, films).splitlines()[2:]}
    assert set(rows) == {"Edema"}
    assert f"0.40 (0.40–0.40) of {FEWEST} | 0.20 of 2 | 0.20" in rows["Edema"]


def test_a_normal_film_counts_reports_that_state_nothing():
    near = np.array([[0, 1, 2, 3, 4]] * FEWEST)
    made = table(near, [set(), set(), set(), {"Edema"}, {"Edema"}], [{"No Finding": 1}] * FEWEST)
    assert "| No Finding | 0.60 (0.60–0.60)" in made
