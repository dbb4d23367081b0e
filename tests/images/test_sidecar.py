"""Sidecars."""

import json

from dcmtools.images.sidecar import sidecar


def test_the_engines_fields_stay_and_ours_come_in_a_block() -> None:
    made = json.loads(sidecar({"EchoTime": 0.03, "Modality": "MR"}, {}, {"engine": "dcm2niix"}))

    assert made["EchoTime"] == 0.03
    assert made["dcmtools"]["engine"] == "dcm2niix"
    assert made["dcmtools"]["version"]


def test_text_that_is_not_ascii_comes_from_the_index() -> None:
    header = {"PatientName": "M\ufffdller", "SeriesDescription": "T1", "ProtocolName": "x"}

    made = json.loads(sidecar(header, {"PatientName": "Müller^Jürgen", "SeriesDescription": "T1 other"}, {}))

    assert made["PatientName"] == "Müller^Jürgen"
    assert made["SeriesDescription"] == "T1"


def test_identity_that_the_engine_left_out_stays_out() -> None:
    assert "PatientName" not in json.loads(sidecar({}, {"PatientName": "Müller^Jürgen"}, {}))


def test_equal_input_gives_equal_bytes() -> None:
    assert sidecar({"a": 1}, {}, {"b": 2}) == sidecar({"a": 1}, {}, {"b": 2})
