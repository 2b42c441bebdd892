"""What a reader's Findings say, as findings."""

import pytest

from emrrg_core.model.finding_tokens import Finding, Presence
from emrrg_core.report.told import told

READ = (
    Finding("abnormal", Presence.PRESENT, 0.9, 0.5),
    Finding("opacity", Presence.PRESENT, 0.9, 0.5, "right", "lower", "moderate", True),
    Finding("nodule", Presence.OPEN, 0.3, 0.5),
    Finding("effusion", Presence.ABSENT, 0.01, 0.5),
)


def after(text: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in told(READ, text)[0]}


def test_what_is_stated_is_present_at_its_side_and_what_is_gone_is_open():
    found = after("There is a left pleural effusion.")
    assert (found["effusion"].presence, found["effusion"].side) == (Presence.PRESENT, "left")
    assert found["opacity"] == Finding("opacity", Presence.OPEN, 0.9, 0.5)
    assert found["nodule"].presence is Presence.OPEN
    assert found["abnormal"].presence is Presence.PRESENT


def test_place_and_doubt_stay_where_the_side_is_the_same_and_go_where_it_is_not():
    assert after("Opacity in the right lower lung.")["opacity"] == READ[1]
    moved = after("Opacity in the left lung.")["opacity"]
    assert (moved.side, moved.zone, moved.severity, moved.pneumonia) == ("left", "", "", False)
    assert after("Opacity in the left lung, suspicious for pneumonia.")["opacity"].pneumonia
    assert after("Nodules in the right lung and in the left lung.")["nodule"].side == "bilateral"


@pytest.mark.parametrize("text", ["The lungs are clear. No effusion.", "Normal chest.", "No pneumonia."])
def test_a_text_that_states_nothing_is_normal(text):
    found = after(text)
    assert found["abnormal"].presence is Presence.ABSENT
    assert not any(finding.presence is Presence.PRESENT for finding in found.values())
    assert found["effusion"].presence is Presence.ABSENT


def test_what_the_checkpoint_does_not_know_is_told():
    assert told(READ, "Left rib fracture. A pacemaker is in place.")[1] == ("Fracture", "Support Devices")
    assert told(READ, "No fracture.")[1] == ()
