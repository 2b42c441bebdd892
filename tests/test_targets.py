"""What is known of a film: what radiologists add to the labels, what stays unknown, and what moves with the film."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from emrrg_core.data.studies import SIGHTS, FilmCache, Study
from emrrg_core.errors import DataError
from emrrg_core.films.synthetic_findings import LABEL_OF, Sign, split_lungs
from emrrg_core.text.labeler import LABELS, NO_FINDING
from tests.phantom import make_phantom
from train.targets import TAUGHT, Truth, example, lungs_of, near_copies, read_radiologists, truth_of

SIZE, GRID = 224, 14
STILL = 0.15  # of the film: as far as `augment` may move what is at its middle


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, height=SIZE, width=SIZE, lesion=None)


@pytest.fixture(scope="module")
def film(phantom) -> np.ndarray:
    return np.rint(phantom.pixels * 255).astype(np.uint8)


@pytest.fixture
def study(tmp_path, phantom) -> Study:
    """A film of 448 × 224 pixels of which nothing is known."""
    make_phantom(3, height=448, width=224, lesion=None).save_png(tmp_path / "one.png")
    return Study("one", "ours", "train", "somebody", (tmp_path / "one.png",), {}, None, "", "")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def middle(plane: np.ndarray) -> tuple[float, float]:
    """Row and column of a plane's centre, as shares of its size."""
    rows, columns = np.mgrid[: plane.shape[0], : plane.shape[1]] + 0.5
    return float((plane * rows).sum() / plane.sum() / len(plane)), float(
        (plane * columns).sum() / plane.sum() / len(plane)
    )


# ------------------------------------------------------------------------------------------------------ what is known


def test_what_nobody_said_is_unknown(study):
    known = truth_of(replace(study, labels={"Edema": 0, "Pleural Effusion": 1}), None)
    assert known.labels == {"Edema": 0.0, "Pleural Effusion": 1.0}
    assert known.boxes is known.zones is known.agree is known.rsna is None


@pytest.mark.parametrize(
    ("labels", "said", "opacity", "normal"),
    [
        ({"Lung Opacity": 1, NO_FINDING: 0}, "Lung Opacity", 1.0, 0.0),  # they agree
        ({"Lung Opacity": 1, NO_FINDING: 0}, "No Lung Opacity / Not Normal", 0.5, 0.0),
        ({"Lung Opacity": 1, NO_FINDING: 0}, "Normal", 0.5, 0.5),
        ({NO_FINDING: 1}, "Lung Opacity", 1.0, 0.5),  # of the opacity only the radiologist speaks
        ({}, "Normal", 0.0, 1.0),
    ],
)
def test_where_text_mining_and_a_radiologist_disagree_a_label_lies_between(study, labels, said, opacity, normal):
    box = [[56, 112, 28, 56]] if said == "Lung Opacity" else []
    known = truth_of(replace(study, labels=labels), {"rsna": {"class": said, "boxes": box}})
    assert (known.labels["Lung Opacity"], known.labels[NO_FINDING]) == (opacity, normal)
    assert known.rsna == said
    # pixels of the film (448 high, 224 wide) as shares of it; no box of a radiologist who saw none: it lies nowhere
    assert known.boxes == (((0.25, 0.25, 0.125, 0.125),) if box else ())


def test_a_pneumonia_is_seen_as_an_opacity_unless_somebody_says_otherwise(study):
    assert truth_of(replace(study, labels={"Pneumonia": 1}), None).labels["Lung Opacity"] == 1
    assert truth_of(replace(study, labels={"Pneumonia": 1, "Lung Opacity": 0}), None).labels["Lung Opacity"] == 0
    assert "Lung Opacity" not in truth_of(replace(study, labels={"Pneumonia": 0}), None).labels


def test_adjudicated_labels_replace_mined_ones_and_what_was_not_judged_stays(study):
    read = {"google": {"Nodule or mass": 1, "Pneumothorax": 0, "Airspace opacity": None, "Fracture": 0}}
    known = truth_of(replace(study, labels={"Lung Lesion": 0, "Lung Opacity": 1}), read)
    assert known.labels == {"Lung Lesion": 1.0, "Lung Opacity": 1.0, "Pneumothorax": 0.0, "Fracture": 0.0}


def test_zones_are_known_where_both_readers_agree_whether_anything_is_there(study):
    one = {f"{side} {zone}": 0 for side in ("right", "left") for zone in ("upper", "middle", "lower")}
    first, second = one | {"right lower": 3, "left upper": 1}, one | {"right lower": 1}
    known = truth_of(study, {"brixia": {"a": first, "b": second}})
    assert known.zones.tolist() == [[0, 0, 2], [0.5, 0, 0]]  # the patient's right lung first, upper zone first
    assert known.agree.tolist() == [[True, True, True], [False, True, True]]
    made = example(np.zeros((SIZE, SIZE), np.uint8), study, known, None, rng())
    np.testing.assert_array_equal(made.zones, [[0, 0, 1], [np.nan, 0, 0]])


def test_readings_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "radiologists.jsonl"
    path.write_text(json.dumps({"id": "a", "rsna": {}}) + "\n" + json.dumps({"id": "b"}))
    assert list(read_radiologists(path)) == ["a", "b"]
    assert read_radiologists(None) == {}
    for text in ("{", json.dumps({"name": "a"}), "[1]"):
        path.write_text(text)
        with pytest.raises(DataError, match="radiologists"):
            read_radiologists(path)


# ---------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    ("labels", "nowhere", "somewhere"),
    [
        ({NO_FINDING: 1.0}, set(LABELS) - {NO_FINDING}, set()),
        ({"Pleural Effusion": 0.0, "Edema": 1.0}, {"Pleural Effusion"}, set()),
        ({"Lung Opacity": 0.5}, set(), set()),
        ({}, set(), set()),
    ],
)
def test_a_finding_is_nowhere_in_a_film_that_does_not_have_it_and_unknown_else(film, study, labels, nowhere, somewhere):
    made = example(film, study, Truth(labels), None, rng())
    assert {name for name in LABELS if made.is_nowhere(name)} == nowhere
    assert made.labels == labels
    assert made.lungs is made.boxes is made.zones is made.taught is made.drawn is None


def test_a_radiologists_box_moves_with_its_film_and_an_opacity_that_was_looked_for_in_vain_is_nowhere(film, study):
    boxed = example(film, study, Truth({}, boxes=((0.1, 0.3, 0.2, 0.2),)), None, rng())
    row, column = middle(boxed.boxes)
    assert abs(row - 0.4) < STILL
    assert abs(column - 0.2) < STILL
    assert boxed.places == {"Lung Opacity": None}
    none = example(film, study, Truth({}, boxes=()), None, rng())
    assert none.is_nowhere("Lung Opacity")
    assert none.boxes is None


def test_normal_films_with_lungs_get_findings_of_every_kind_with_label_and_place(phantom, film, study):
    normal, seen = replace(study, labels={NO_FINDING: 1}), set()
    draw = rng()
    for _ in range(40):
        known = Truth({NO_FINDING: 1.0, "Edema": 0.0, "Consolidation": 0.0}, boxes=((0.1, 0.3, 0.2, 0.2),))
        made = example(film, normal, known, phantom.lungs, draw, simulate=1.0, true_mask=True)
        label = LABEL_OF[made.drawn.sign]
        seen.add(made.drawn.sign)
        assert made.labels == {"Edema": 0.0, label: 1.0}  # whether it can be seen is not known
        assert not {NO_FINDING, *SIGHTS} & made.labels.keys() - {label}
        assert made.boxes is None
        np.testing.assert_array_equal(made.places[label], made.drawn_mask)
        assert made.drawn_mask.max() > 0.3
        for name in ("Lung Lesion", "Lung Opacity", "Pleural Effusion"):
            assert made.is_nowhere(name) is (name != label)
        if made.drawn.side:
            own, other = made.lungs if made.drawn.side == "right" else made.lungs[::-1]
            assert (made.drawn_mask * (own > 0.5)).sum() > 4 * (made.drawn_mask * (other > 0.5)).sum()
    assert seen == set(Sign)


def test_only_normal_films_with_two_lungs_get_a_finding(phantom, film, study):
    right, _ = split_lungs(phantom.lungs)
    normal, ill = Truth({NO_FINDING: 1.0}), Truth({"Edema": 1.0})
    for labels, known, mask in (
        ({"Edema": 1}, ill, phantom.lungs),
        ({NO_FINDING: 1}, normal, None),
        ({NO_FINDING: 1}, normal, right),
    ):
        made = example(film, replace(study, labels=labels), known, mask, rng(), simulate=1.0)
        assert made.drawn is made.drawn_mask is None
        assert made.labels == known.labels
    one = replace(study, labels={NO_FINDING: 1})
    draw = rng()
    for share in (0.0, 0.3):
        drawn = [example(film, one, normal, phantom.lungs, draw, simulate=share).drawn is not None for _ in range(60)]
        assert abs(np.mean(drawn) - share) < 0.17


def test_lungs_that_nobody_outlined_are_drawn_in_but_not_taught(phantom, film, study):
    one = replace(study, labels={NO_FINDING: 1})
    made = example(film, one, Truth({NO_FINDING: 1.0}), phantom.lungs, rng(), simulate=1.0)
    assert made.drawn is not None
    assert made.lungs is None


def test_a_mirrored_film_is_known_by_where_things_are_now(phantom, film, study):
    """Right stays the left half of the film: boxes, zones, lungs, drawings and the teacher's places all change sides."""
    where = np.full((GRID, GRID, len(TAUGHT)), -8.0)
    where[4:8, 2:5, [TAUGHT.index("right lung"), TAUGHT.index("Lung Lesion")]] = 8
    where[6:12, 9:12, TAUGHT.index("left lung")] = 8  # larger, and lower
    teacher = (np.zeros(len(LABELS)), where.reshape(GRID**2, -1))
    zones = np.array([[0.0, 0, 1], [0, 0, 0]])
    known = Truth({}, boxes=((0.1, 0.3, 0.2, 0.2),), zones=zones, agree=np.ones((2, 3), bool))
    plain, turned = (
        example(film, study, known, phantom.lungs, rng(4), mirror=mirror, true_mask=True, teacher=teacher)
        for mirror in (1e-9, 1.0)
    )
    np.testing.assert_array_equal(turned.film, plain.film[:, ::-1])
    np.testing.assert_array_equal(turned.boxes, plain.boxes[:, ::-1])
    np.testing.assert_array_equal(turned.lungs, plain.lungs[::-1, :, ::-1])
    for made in (plain, turned):
        right, left = (middle(lung)[1] for lung in made.lungs)
        assert right < 0.5 < left
    np.testing.assert_array_equal(plain.zones, zones)
    np.testing.assert_array_equal(turned.zones, zones[::-1])
    by_name = {name: (plain.taught[i], turned.taught[i]) for i, name in enumerate(TAUGHT)}
    np.testing.assert_allclose(by_name["Lung Lesion"][1], by_name["Lung Lesion"][0][:, ::-1], atol=1e-6)
    np.testing.assert_allclose(by_name["right lung"][1], by_name["left lung"][0][:, ::-1], atol=1e-6)
    np.testing.assert_allclose(by_name["left lung"][1], by_name["right lung"][0][:, ::-1], atol=1e-6)


def test_a_drawing_on_a_mirrored_film_lies_in_the_lung_in_which_it_is_seen(phantom, film, study):
    normal = replace(study, labels={NO_FINDING: 1})
    plain, turned = (
        example(
            film,
            normal,
            Truth({}),
            phantom.lungs,
            rng(2),
            simulate=1.0,
            mirror=mirror,
            true_mask=True,
            signs=[Sign.NODULE],
        )
        for mirror in (1e-9, 1.0)
    )
    np.testing.assert_array_equal(turned.drawn_mask, plain.drawn_mask[:, ::-1])
    np.testing.assert_array_equal(turned.places["Lung Lesion"], turned.drawn_mask)
    shares = [[(made.drawn_mask * lung).sum() for lung in made.lungs] for made in (plain, turned)]
    assert np.argmax(shares[0]) != np.argmax(shares[1])


def test_the_teacher_says_what_it_had_learned_well_and_nothing_of_a_film_that_was_drawn_on(phantom, film, study):
    said = np.linspace(-3, 3, len(LABELS))
    said[[0, 5]] = np.nan  # had not learned these
    teacher = (said, np.full((GRID**2, len(TAUGHT)), -8.0))
    made = example(film, study, Truth({}), None, rng(), teacher=teacher)
    assert made.distilled.keys() == set(LABELS) - {LABELS[0], LABELS[5]}
    for name, value in made.distilled.items():
        assert value == pytest.approx(1 / (1 + np.exp(-said[LABELS.index(name)])), abs=1e-6)
    assert made.taught.shape == (len(TAUGHT), GRID, GRID)
    normal = replace(study, labels={NO_FINDING: 1})
    drawn = example(film, normal, Truth({}), phantom.lungs, rng(), simulate=1.0, teacher=teacher)
    assert drawn.drawn is not None
    assert not drawn.distilled
    assert drawn.taught is None


def test_the_teachers_lungs_count_only_where_there_are_two():
    places = np.zeros((GRID, GRID, 2))
    places[3:11, 2:5, 0] = 1
    assert lungs_of(places.reshape(-1, 2), SIZE) is None
    places[3:11, 9:12, 1] = 1
    lungs = lungs_of(places.reshape(-1, 2), SIZE)
    assert lungs.shape == (SIZE, SIZE)
    right, left = split_lungs(lungs)
    assert abs(middle(right)[1] - 0.25) < 0.02
    assert abs(middle(left)[1] - 0.75) < 0.02


# ------------------------------------------------------------------------------------------------------- near copies


def test_the_same_film_saved_otherwise_is_found_and_another_chest_is_not(tmp_path):
    def saved(name: str, seed: int, change) -> Study:
        # phantoms alone are more alike than people: each gets clouds of its own
        clouds = np.random.default_rng(seed).normal(0, 30, (24, 24)).astype(np.float32)
        pixels = make_phantom(seed, height=256, width=256, lesion=None).pixels * 255
        pixels = np.clip(pixels + cv2.resize(clouds, (256, 256), interpolation=cv2.INTER_CUBIC), 0, 255)
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.clip(change(pixels), 0, 255).astype(np.uint8))
        return Study(name, "ours", "train", name, (tmp_path / f"{name}.png",), {}, None, "", "")

    held = [saved(f"held {seed}", seed, lambda x: x) for seed in range(3)]
    films = [
        saved("brighter", 0, lambda x: 0.8 * x + 40),
        saved("darker", 1, lambda x: 255 * (x / 255) ** 1.4),
        saved("cropped", 2, lambda x: cv2.resize(x[4:-4, 4:-4], (256, 256))),
        *(saved(f"other {seed}", seed, lambda x: x) for seed in range(10, 20)),
    ]
    cache = FilmCache([*held, *films], tmp_path)
    assert near_copies(films, held, cache) == {"brighter", "darker", "cropped"}
    assert near_copies(films, [], cache) == near_copies([], held, cache) == set()
