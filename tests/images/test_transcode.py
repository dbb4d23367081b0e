"""Transcoding: pixels come back as they were, whatever the syntax; what cannot be is said, and the next file goes."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from dcmtools.images.transcode import Transcoder
from dcmtools.model.errors import BadData
from tests.builders import make_instance, write_instance

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
RLE, JPEG_2000_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
ODD = (
    "693_J2KR.dcm", "JPEG-LL.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "HTJ2K_08_RGB.dcm", "SC_rgb_expb_16bit.dcm",
    "emri_small_RLE.dcm", "emri_small_jpeg_ls_lossless.dcm",
)  # fmt: skip


@pytest.mark.parametrize("target", [IMPLICIT, RLE, JPEG_2000_LOSSLESS])
def test_pixels_and_attributes_are_the_same_in_every_lossless_syntax(tmp_path: Path, target: str) -> None:
    source, copy = write_instance(tmp_path / "a.dcm", side=64), tmp_path / "b.dcm"
    before = source.read_bytes()

    with Transcoder() as transcode:
        transcode(source, copy, [target])

    one, other = dcmread(source), dcmread(copy)
    assert other.file_meta.TransferSyntaxUID == target
    assert np.array_equal(one.pixel_array, other.pixel_array)
    assert one.SOPInstanceUID == other.SOPInstanceUID == other.file_meta.MediaStorageSOPInstanceUID
    assert one.PatientName == other.PatientName
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ODD)
def test_real_files_decompress_to_the_pixels_that_they_stand_for(tmp_path: Path, data: Path, name: str) -> None:
    source = data / "odd" / name

    with Transcoder() as transcode:
        transcode(source, tmp_path / "b.dcm", [IMPLICIT, EXPLICIT])

    other = dcmread(tmp_path / "b.dcm")
    assert other.file_meta.TransferSyntaxUID == EXPLICIT
    assert np.array_equal(dcmread(source).pixel_array, other.pixel_array)


def test_words_of_big_endian_are_turned_round(tmp_path: Path) -> None:
    values = np.arange(64 * 64, dtype="<u2")
    made = make_instance(side=64, PixelData=values.astype(">u2").tobytes())
    made.file_meta.TransferSyntaxUID = UID(BIG)
    made.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True)

    with Transcoder() as transcode:
        transcode(tmp_path / "a.dcm", tmp_path / "b.dcm", [EXPLICIT])

    assert np.array_equal(dcmread(tmp_path / "b.dcm").pixel_array.ravel(), values)


def test_a_loss_is_only_made_where_it_is_allowed_and_is_told_in_a_new_instance(tmp_path: Path) -> None:
    source, copy = write_instance(tmp_path / "a.dcm", side=64), tmp_path / "b.dcm"

    with Transcoder() as transcode, pytest.raises(BadData, match="JPEG 2000") as caught:
        transcode(source, copy, [JPEG_2000])
    with Transcoder(lossy=True) as transcode:
        transcode(source, copy, [JPEG_2000])

    made = dcmread(copy)
    assert caught.value.cause == "not-transcoded"
    assert made.file_meta.TransferSyntaxUID == JPEG_2000
    assert made.SOPInstanceUID != dcmread(source).SOPInstanceUID
    assert made.LossyImageCompression == "01"
    assert made.ImageType[0] == "DERIVED"


def test_a_file_that_cannot_be_decoded_does_not_keep_the_next_from_it(tmp_path: Path) -> None:
    good = write_instance(tmp_path / "good.dcm", side=16)
    with Transcoder() as transcode:
        transcode(good, tmp_path / "rle.dcm", [RLE])
        broken = dcmread(tmp_path / "rle.dcm")
        broken.PixelData = broken.PixelData[:40] + bytes(len(broken.PixelData) - 40)
        broken.save_as(tmp_path / "broken.dcm")

        with pytest.raises(BadData) as caught:
            transcode(tmp_path / "broken.dcm", tmp_path / "x.dcm", [EXPLICIT])
        transcode(tmp_path / "rle.dcm", tmp_path / "y.dcm", [EXPLICIT])

    assert caught.value.cause == "not-transcoded"
    assert np.array_equal(dcmread(tmp_path / "y.dcm").pixel_array, dcmread(good).pixel_array)


def test_a_decoder_that_crashes_takes_only_its_own_process_with_it(tmp_path: Path) -> None:
    source = write_instance(tmp_path / "a.dcm", side=16)
    with Transcoder() as transcode:
        transcode(source, tmp_path / "b.dcm", [IMPLICIT])
        (child,) = transcode._idle
        child.kill()
        child.wait()

        with pytest.raises(BadData) as caught:
            transcode(source, tmp_path / "b.dcm", [IMPLICIT])
        transcode(source, tmp_path / "b.dcm", [IMPLICIT])

    assert caught.value.cause == "decoder-crashed"
    assert all(child.poll() is not None for child in transcode._idle)
