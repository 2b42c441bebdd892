"""Films: what is read must be exactly right, pixel by pixel; what is no film must be refused in words."""

import logging
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import cv2
import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID

from emrrg_core.errors import FilmError
from emrrg_core.films.film import OVERRIDABLE, Film, model_input, read_film

CR, DX, RAW_DX, SC = (f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("1", "1.1", "1.1.1", "7"))
EXPLICIT, IMPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{suffix}" for suffix in (".1", "", ".2", ".1.99"))
RLE, J2K, HTJ2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201"

TWELVE_BITS = np.arange(128 * 160, dtype=np.uint16).reshape(128, 160) % 4096  # every 12-bit value
EIGHT_BITS = (np.arange(128 * 160) % 256).astype(np.uint8).reshape(128, 160)


def header(stored: np.ndarray, **elements: Any) -> Dataset:
    """A chest film of `stored` with 12 bits used; `elements` add to the header, or take away where they are None."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    film.PatientName, film.PatientID = "Doe^Jane", "4711"
    film.SOPClassUID, film.SOPInstanceUID = CR, "1.2.3.4"
    film.Modality, film.BodyPartExamined = "CR", "CHEST"
    film.Rows, film.Columns = stored.shape[:2]
    film.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    film.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        film.PlanarConfiguration = 0
    film.BitsAllocated = 8 * stored.dtype.itemsize
    film.BitsStored = min(12, film.BitsAllocated)
    film.HighBit = film.BitsStored - 1
    film.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    film.PixelData = stored.tobytes()
    film["PixelData"].VR = "OB" if film.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(film, keyword)
        elif keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            film.add_new(keyword, "SS" if film.PixelRepresentation else "US", value)
        else:
            setattr(film, keyword, value)
    return film


def saved(film: Dataset, path: Path, syntax: str = EXPLICIT) -> Path:
    film.file_meta.TransferSyntaxUID = UID(syntax)
    film.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def read(tmp_path):
    """Builds a film from stored values and header elements, and reads it."""

    def build(stored: np.ndarray = TWELVE_BITS, **elements: Any) -> Film:
        return read_film(saved(header(stored, **elements), tmp_path / "film"))

    return build


@pytest.fixture
def picture(tmp_path):
    """Saves an array as PNG, JPEG or TIFF, and reads it."""

    def build(values: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> Film:
        image = values if isinstance(values, Image.Image) else Image.fromarray(values)
        image.save(tmp_path / "picture", format=kind, **options)
        return read_film(tmp_path / "picture")

    return build


def refusal(path: Path, anyway: Collection[str] = ()) -> FilmError:
    with pytest.raises(FilmError) as caught:
        read_film(path, anyway=anyway)
    return caught.value


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def lut(entries: list[int], first: int, bits: int, vr: str = "US", signed_first: bool = False) -> Sequence:
    item = Dataset()
    # the three values share one type, so a negative first value is written signed
    item.add_new("LUTDescriptor", "SS" if signed_first else "US", [len(entries), first, bits])
    packed = np.asarray(entries, dtype=np.uint8 if bits == 8 else "<u2").tobytes()
    item.add_new("LUTData", vr, entries if vr == "US" else packed)
    return Sequence([item])


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=2e-7, rtol=0)


# --- a real film ------------------------------------------------------------------------------------------------------


def real(name: str) -> Path:
    pytest.importorskip("data_store", reason="pydicom-data carries the real films")
    return Path(get_testdata_file(name, download=False))


def test_a_real_chest_film_has_bone_bright_air_dark_and_every_step_named():
    film = read_film(real("RG1_UNCR.dcm"), name="Film 1")
    stored = pydicom.dcmread(real("RG1_UNCR.dcm")).pixel_array.astype(float)
    close(film.pixels, 1 - np.clip((stored - 14999.5) / 29999 + 0.5, 0, 1))
    assert film.pixels.shape == (1955, 1841)
    assert film.pixels.dtype == np.float32
    lung, spine = film.pixels[700:800, 400:500], film.pixels[700:800, 870:970]
    assert lung.mean() < spine.mean() - 0.1
    assert (film.name, film.format, film.view, film.spacing) == ("Film 1", "DICOM", "PA", None)
    assert film.steps == (
        "Explicit VR Little Endian decoded",
        "stored bits 0..14 of 16 used",
        "window 15000/30000 (LINEAR)",
        "inverted (MONOCHROME1)",
        "Pixel Spacing ignored: it makes no sense",
        "view PA (View Position)",
    )


def test_a_losslessly_compressed_real_film_is_the_same_film():
    plain, compressed = read_film(real("RG1_UNCR.dcm")), read_film(real("RG1_J2KR.dcm"))
    assert plain.sha256 == compressed.sha256
    assert np.array_equal(plain.pixels, compressed.pixels)


def test_a_real_film_of_a_leg_is_refused_by_its_header():
    error = refusal(real("RG3_UNCR.dcm"))
    assert str(error) == "The header says that this film shows an EXTREMITY, not a chest."
    assert error.rule == "body-part"
    assert error.overridable


def test_test_patterns_with_real_lookup_tables_come_out_alike():
    """The same SMPTE pattern, once under a modality LUT and once under a VOI LUT, on 4096 and on 256 levels."""
    modality, voi = read_film(real("mlut_18.dcm")), read_film(real("vlut_04.dcm"))
    assert "modality LUT (4096 entries)" in modality.steps
    assert "VOI LUT (256 entries of 16 bits)" in voi.steps
    np.testing.assert_allclose(modality.pixels, voi.pixels, atol=0.01)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CT_small.dcm", "a CT image"),
        ("MR_small.dcm", "an MR image"),
        ("examples_rgb_color.dcm", "an ultrasound image"),
        ("examples_ybr_color.dcm", "an ultrasound image"),
        ("JPEG2000.dcm", "a nuclear medicine image"),
        ("reportsi.dcm", "a structured report"),
        ("rtdose.dcm", "a radiotherapy dose"),
        ("liver_1frame.dcm", "a segmentation"),
        ("waveform_ecg.dcm", "an ECG"),
        ("ExplVR_BigEndNoMeta.dcm", "a radiotherapy plan"),
    ],
)
def test_other_kinds_of_real_files_are_refused_by_name(name, words):
    error = refusal(Path(get_testdata_file(name, download=False)))
    assert str(error) == f"This file holds {words}, not a plain chest radiograph: choose a CR or DX film."
    assert error.rule == "modality"


# --- what a reader may override ---------------------------------------------------------------------------------------


def test_a_reader_who_knows_better_has_the_leg_read_and_the_film_says_so():
    film = read_film(real("RG3_UNCR.dcm"), anyway=["body-part"])
    assert film.overridden == ("body-part",)
    assert (
        "rule body-part overridden by the reader: the header says that this film shows an EXTREMITY, not a chest"
        in film.steps
    )
    assert film.pixels.shape == (1760, 1760)


def test_each_rule_is_overridden_for_itself(tmp_path):
    path = saved(header(hues(), SOPClassUID=SC, Modality="XC", BodyPartExamined="HAND"), tmp_path / "film")
    assert refusal(path).rule == "modality"
    assert refusal(path, ["modality"]).rule == "body-part"
    assert refusal(path, ["modality", "body-part"]).rule == "colour"
    assert read_film(path, anyway=OVERRIDABLE).overridden == ("modality", "body-part", "colour")


def test_an_override_that_nothing_needs_is_not_recorded(read, picture):
    for film in (read_film(real("RG1_UNCR.dcm"), anyway=OVERRIDABLE), picture(EIGHT_BITS)):
        assert film.overridden == ()
        assert not any("overridden" in step for step in film.steps)


@pytest.mark.parametrize("rule", ["undecodable", "no-image", "multi-frame", "blank", "too-small", "a rule of nobody's"])
def test_no_one_may_override_what_cannot_be_read(rule):
    with pytest.raises(ValueError, match="cannot be overridden"):
        read_film(real("RG1_UNCR.dcm"), anyway=[rule])


def test_a_file_without_an_image_or_of_many_slices_stays_refused(tmp_path):
    """Another modality may be a wrong word in a header; a report or a stack of slices is no film with a wrong word."""
    report = refusal(Path(get_testdata_file("reportsi.dcm", download=False)))
    film = header(TWELVE_BITS, Modality="CT", NumberOfFrames=3)
    film.PixelData = TWELVE_BITS.tobytes() * 3
    for error in (report, refusal(saved(film, tmp_path / "film"))):
        assert error.rule == "modality"
        assert not error.overridable
    assert refusal(tmp_path / "film", OVERRIDABLE).rule == "modality"
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "film").read_bytes()[:140])
    assert refusal(cut, OVERRIDABLE).rule == "undecodable"


def test_a_real_ct_slice_is_read_when_the_reader_insists():
    film = read_film(get_testdata_file("CT_small.dcm", download=False), anyway=["modality"])
    assert film.overridden == ("modality",)
    assert film.pixels.std() > 0.05


@pytest.mark.parametrize(("said", "known"), [("YES", True), ("NO", False), (None, None), ("MAYBE", None)])
def test_a_header_that_says_text_is_burned_in_is_heard(read, said, known):
    film = read(**({"BurnedInAnnotation": said} if said else {}))
    assert film.annotated is known
    assert any("burned in" in step for step in film.steps) is (said == "YES")


# --- DICOM by content -------------------------------------------------------------------------------------------------


def test_a_film_without_preamble_is_read_as_the_same_film(tmp_path, read):
    expected = read(WindowCenter=2048, WindowWidth=4096)
    for implicit in (True, False):
        bare = header(TWELVE_BITS, WindowCenter=2048, WindowWidth=4096)
        del bare.file_meta
        bare.save_as(tmp_path / "bare.png", implicit_vr=implicit, little_endian=True)
        film = read_film(tmp_path / "bare.png")
        assert film.format == "DICOM"
        assert film.sha256 == expected.sha256
        assert np.array_equal(film.pixels, expected.pixels)


def test_a_film_whose_meta_header_lacks_the_preamble_is_read(tmp_path, read):
    whole = saved(header(TWELVE_BITS), tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[132:])
    assert read_film(tmp_path / "cut").sha256 == read().sha256


def test_a_tiff_signature_in_the_preamble_does_not_hide_a_dicom_film(tmp_path):
    path = saved(header(TWELVE_BITS), tmp_path / "film")
    path.write_bytes(b"II*\0" + path.read_bytes()[4:])
    assert read_film(path).format == "DICOM"


def test_the_file_name_does_not_matter_and_never_becomes_the_name(tmp_path):
    Image.fromarray(EIGHT_BITS).save(tmp_path / "Doe_Jane.dcm", format="PNG")
    film = read_film(tmp_path / "Doe_Jane.dcm")
    assert (film.format, film.name) == ("PNG", "film")


# --- transfer syntaxes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT, DEFLATED, RLE, J2K])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_every_lossless_syntax_that_pydicom_writes_gives_the_same_film(tmp_path, read, syntax, dtype):
    stored = (TWELVE_BITS.astype(np.int32) - (2048 if dtype is np.int16 else 0)).astype(dtype)
    film = header(stored)
    if syntax in (RLE, J2K):
        film.compress(syntax, generate_instance_uid=False)
    found, expected = read_film(saved(film, tmp_path / "film", syntax)), read(stored)
    assert found.sha256 == expected.sha256
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.steps[0].startswith(f"{UID(syntax).name} decoded")


@pytest.mark.parametrize(
    "kind", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]
)
def test_every_lossless_syntax_that_gdcm_writes_gives_the_same_film(tmp_path, read, kind):
    reader = gdcm.ImageReader()
    reader.SetFileName(str(saved(header(TWELVE_BITS), tmp_path / "plain")))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "compressed"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "compressed").file_meta.TransferSyntaxUID.is_compressed
    found, expected = read_film(tmp_path / "compressed"), read()
    assert found.sha256 == expected.sha256
    assert np.array_equal(found.pixels, expected.pixels)


def test_big_endian_films_are_read(tmp_path, read):
    film = header(TWELVE_BITS)
    film.PixelData = TWELVE_BITS.byteswap().tobytes()
    assert read_film(saved(film, tmp_path / "film", BIG)).sha256 == read().sha256


def baseline_jpeg(tmp_path: Path) -> Path:
    smooth = np.linspace(0, 255, 128 * 160).astype(np.uint8).reshape(128, 160)
    Image.fromarray(smooth).save(tmp_path / "frame.jpg", quality=95)
    film = header(smooth, LossyImageCompression="01")
    film.PixelData = encapsulate([(tmp_path / "frame.jpg").read_bytes()])
    film["PixelData"].is_undefined_length = True
    return saved(film, tmp_path / "film", "1.2.840.10008.1.2.4.50")


def test_lossy_jpeg_films_are_read_and_say_so(tmp_path):
    film = read_film(baseline_jpeg(tmp_path))
    np.testing.assert_allclose(film.pixels, np.asarray(Image.open(tmp_path / "frame.jpg")) / 255, atol=2 / 255)
    assert "compressed with loss earlier (header)" in film.steps


def test_an_unsupported_compression_is_refused_by_its_name(tmp_path):
    film = header(TWELVE_BITS)
    film.PixelData = encapsulate([b"\0" * 100])
    film["PixelData"].is_undefined_length = True
    path = saved(film, tmp_path / "film", "1.2.840.10008.1.2.4.100")
    assert "not supported here (MPEG2" in str(refusal(path))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_dicom_film_cut_short_is_refused(tmp_path, share, compressed):
    path = baseline_jpeg(tmp_path) if compressed else saved(header(TWELVE_BITS), tmp_path / "film")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    error = refusal(path)
    assert error.rule == "undecodable"
    assert str(error) == "This file is damaged or cut short and cannot be decoded: copy or export it again."


# --- stored values ----------------------------------------------------------------------------------------------------


def test_garbage_above_the_stored_bits_is_cleared(read):
    garbage = TWELVE_BITS | np.uint16(0xA000)
    film = read(garbage, WindowCenter=2048, WindowWidth=4096)
    close(film.pixels, TWELVE_BITS / 4095)
    assert "stored bits 0..11 of 16 used" in film.steps


def test_signed_garbage_keeps_the_sign_of_the_stored_bits(read):
    signed = (TWELVE_BITS.astype(np.int32) - 2048).astype(np.int16)
    film = read(signed & np.int16(0x0FFF), WindowCenter=0, WindowWidth=4096)
    close(film.pixels, (signed + 2048) / 4095)
    assert "signed values" in film.steps


def test_the_retired_form_with_values_in_the_upper_bits_is_read(read):
    film = read(TWELVE_BITS << 4 | 0xF, HighBit=15, WindowCenter=2048, WindowWidth=4096)
    close(film.pixels, TWELVE_BITS / 4095)
    assert "stored bits 4..15 of 16 used" in film.steps


def test_thirty_two_bit_values_are_not_rounded_to_sixteen(read):
    wide = TWELVE_BITS.astype(np.uint32) * 1_000_000
    film = read(wide, BitsStored=32, HighBit=31, WindowCenter=2048e6, WindowWidth=4096e6)
    np.testing.assert_allclose(film.pixels, wide / 4096e6, atol=1e-6)


# --- modality, VOI, polarity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", lambda x: np.clip((x - 1999.5) / 999 + 0.5, 0, 1)),
        (None, lambda x: np.clip((x - 1999.5) / 999 + 0.5, 0, 1)),
        ("LINEAR_EXACT", lambda x: np.clip((x - 2000) / 1000 + 0.5, 0, 1)),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2000) / 1000))),
    ],
)
def test_each_window_function_is_the_standards(read, function, expected):
    elements = {"VOILUTFunction": function} if function else {}
    film = read(WindowCenter=2000, WindowWidth=1000, **elements)
    close(film.pixels, expected(TWELVE_BITS.astype(float)))
    assert f"window 2000/1000 ({function or 'LINEAR'})" in film.steps


def test_the_rescale_comes_before_the_window_and_may_run_downwards(read):
    film = read(RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=1000, WindowWidth=1001)
    close(film.pixels, np.clip((4095 - TWELVE_BITS.astype(float) - 999.5) / 1000 + 0.5, 0, 1))
    steps = [step for step in film.steps if step.startswith(("rescale", "window"))]
    assert steps == ["rescale slope -1 intercept 4095", "window 1000/1001 (LINEAR)"]


def test_monochrome1_is_inverted_after_the_window(read):
    film = read(PhotometricInterpretation="MONOCHROME1", WindowCenter=1000, WindowWidth=1001)
    close(film.pixels, 1 - np.clip((TWELVE_BITS.astype(float) - 999.5) / 1000 + 0.5, 0, 1))
    assert film.steps.index("inverted (MONOCHROME1)") > film.steps.index("window 1000/1001 (LINEAR)")


@pytest.mark.parametrize(
    ("photometric", "shape", "contradiction"),
    [
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_the_presentation_shape_never_inverts_a_second_time(read, photometric, shape, contradiction):
    film = read(PhotometricInterpretation=photometric, PresentationLUTShape=shape, WindowCenter=2048, WindowWidth=4096)
    plain = TWELVE_BITS / 4095
    close(film.pixels, 1 - plain if photometric == "MONOCHROME1" else plain)
    noted = f"presentation LUT shape {shape} contradicts {photometric}: ignored" in film.steps
    assert noted == contradiction


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_modality_lut_is_applied_below_within_and_past_its_entries(read, vr):
    entries = [100 + 2 * i for i in range(1000)]
    film = read(ModalityLUTSequence=lut(entries, 500, 12, vr), WindowCenter=1100, WindowWidth=2001)
    mapped = np.asarray(entries)[np.clip(TWELVE_BITS.astype(int) - 500, 0, 999)]
    close(film.pixels, np.clip((mapped - 1099.5) / 2000 + 0.5, 0, 1))
    assert "modality LUT (1000 entries)" in film.steps


@pytest.mark.parametrize(("vr", "bits"), [("US", 12), ("OW", 12), ("US", 8), ("OW", 8)])
def test_a_voi_lut_wins_over_a_window_even_with_8_bit_entries_for_12_bit_pixels(read, vr, bits):
    full = 2**bits - 1
    entries = [full * i * i // 4095**2 for i in range(4096)]
    film = read(VOILUTSequence=lut(entries, 0, bits, vr), WindowCenter=1, WindowWidth=1)
    close(film.pixels, np.asarray(entries)[TWELVE_BITS] / full)
    assert f"VOI LUT (4096 entries of {bits} bits)" in film.steps


@pytest.mark.parametrize(("first", "signed"), [(-1000, True), (2**16 - 1000, False)])
def test_a_voi_lut_may_begin_at_a_negative_value_however_it_is_written(read, first, signed):
    film = read(RescaleSlope=1, RescaleIntercept=-1000, VOILUTSequence=lut(list(range(4096)), first, 12, "US", signed))
    close(film.pixels, TWELVE_BITS / 4095)


def test_the_first_of_several_voi_luts_is_used_and_noted(read):
    tables = Sequence([*lut(list(range(4096)), 0, 12), *lut(list(range(4096))[::-1], 0, 12)])
    film = read(VOILUTSequence=tables)
    close(film.pixels, TWELVE_BITS / 4095)
    assert "VOI LUT (4096 entries of 12 bits, first of 2)" in film.steps


def test_a_voi_lut_that_names_a_depth_it_does_not_use_still_reaches_white(read):
    assert read(VOILUTSequence=lut(list(range(4096)), 0, 16)).pixels.max() == 1


def test_the_first_of_several_windows_is_used_and_noted(read):
    film = read(WindowCenter=[2048, 100], WindowWidth=[4096, 50])
    close(film.pixels, TWELVE_BITS / 4095)
    assert "window 2048/4096 (LINEAR, first usable of 2)" in film.steps


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_a_window_without_width_is_ignored_with_a_note(read, width):
    film = read(WindowCenter=2000, WindowWidth=width)
    assert f"window 2000/{width:g} ignored: the width makes no sense" in film.steps
    low, high = np.percentile(TWELVE_BITS, (0.5, 99.5))
    close(film.pixels, np.clip((TWELVE_BITS - low) / (high - low), 0, 1))


def test_a_window_that_would_blank_the_film_is_ignored_with_a_note(read):
    film = read(WindowCenter=50_000, WindowWidth=10)
    assert "window 50000/10 (LINEAR) would leave nearly one tone: ignored" in film.steps
    assert np.ptp(film.pixels) == 1


def test_without_a_window_deep_values_are_stretched_and_the_step_says_between_what(read):
    film = read(TWELVE_BITS // 2)
    low, high = np.percentile(TWELVE_BITS // 2, (0.5, 99.5))
    close(film.pixels, np.clip((TWELVE_BITS // 2 - low) / (high - low), 0, 1))
    assert f"no usable window: stretched from {low:g} to {high:g} (percentiles 0.5 and 99.5)" in film.steps


def test_without_a_window_8_bit_values_are_display_values(read):
    film = read(EIGHT_BITS // 2)
    close(film.pixels, EIGHT_BITS // 2 / 255)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_does_not_set_the_contrast_and_is_black(read, photometric):
    stored = np.where(TWELVE_BITS < 3000, TWELVE_BITS, 4095).astype(np.uint16)
    film = read(stored, PhotometricInterpretation=photometric, PixelPaddingValue=4095)
    padded = stored == 4095
    assert (film.pixels[padded] == 0).all()
    low, high = np.percentile(stored[~padded], (0.5, 99.5))
    shown = np.clip((stored[~padded] - low) / (high - low), 0, 1)
    close(film.pixels[~padded], 1 - shown if photometric == "MONOCHROME1" else shown)


def test_a_range_of_padding_values_is_left_out(read):
    film = read(PixelPaddingValue=4000, PixelPaddingRangeLimit=4095, WindowCenter=2048, WindowWidth=4096)
    close(film.pixels, np.where(TWELVE_BITS >= 4000, 0, TWELVE_BITS / 4095))
    assert "padding value 4000 to 4095 left out, shown black" in film.steps


def test_raw_detector_films_are_read_with_a_note(read):
    film = read(SOPClassUID=RAW_DX, Modality="DX")
    assert film.steps[0] == "raw detector values (for processing): the contrast is not the maker's"


# --- spacing, view ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "spacing", "step"),
    [
        ({"PixelSpacing": [0.2, 0.2]}, (0.2, 0.2), "spacing 0.2 × 0.2 mm (Pixel Spacing)"),
        (
            {"PixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "FIDUCIAL", "ImagerPixelSpacing": [0.3, 0.3]},
            (0.2, 0.2),
            "spacing 0.2 × 0.2 mm (Pixel Spacing, calibrated (FIDUCIAL))",
        ),
        (
            {"ImagerPixelSpacing": [0.15, 0.15]},
            (0.15, 0.15),
            "spacing 0.15 × 0.15 mm (Imager Pixel Spacing, at the detector)",
        ),
        (
            {"ImagerPixelSpacing": [0.15, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.1, 0.1),
            "spacing 0.1 × 0.1 mm (Imager Pixel Spacing divided by the magnification 1.5)",
        ),
        (
            {"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.15, 0.15]},
            (0.15, 0.15),
            "Pixel Spacing ignored: it makes no sense",
        ),
        ({"PixelSpacing": [-0.1, 0.1]}, None, "Pixel Spacing ignored: it makes no sense"),
    ],
)
def test_the_spacing_names_its_source(read, elements, spacing, step):
    film = read(**elements)
    assert film.spacing == (None if spacing is None else pytest.approx(spacing))
    assert step in film.steps


@pytest.mark.parametrize(
    ("elements", "shape", "spacing"),
    [
        ({"PixelAspectRatio": [2, 1]}, (256, 160), None),
        ({"PixelSpacing": [0.1, 0.2]}, (128, 320), (0.1, 0.1)),
        ({"PixelAspectRatio": [100, 1]}, (128, 160), None),
        ({"PixelAspectRatio": [1, 1]}, (128, 160), None),
    ],
)
def test_oblong_pixels_are_made_square(read, elements, shape, spacing):
    film = read(**elements)
    assert film.pixels.shape == shape
    assert film.spacing == spacing


def view_code(meaning: str) -> Sequence:
    code = Dataset()
    code.CodeMeaning = meaning
    return Sequence([code])


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "LL"}, "LATERAL"),
        ({"ViewPosition": "RL"}, "LATERAL"),
        ({"ViewPosition": "LATERAL"}, "LATERAL"),
        ({"ViewPosition": "LLO"}, None),
        ({"ViewPosition": "LLD", "SeriesDescription": "CHEST LATERAL"}, None),
        ({"ViewCodeSequence": view_code("postero-anterior")}, "PA"),
        ({"ViewCodeSequence": view_code("antero-posterior")}, "AP"),
        ({"ViewCodeSequence": view_code("left lateral")}, "LATERAL"),
        ({"ViewCodeSequence": view_code("antero-posterior oblique")}, None),
        ({"PatientOrientation": ["A", "F"]}, "LATERAL"),
        ({"PatientOrientation": ["L", "F"]}, None),  # said of PA and of AP films
        ({"SeriesDescription": "Chest PA"}, "PA"),
        ({"SeriesDescription": "W033 CHEST_AP PORTABLE"}, "AP"),
        ({"SeriesDescription": "Chest PA and lateral"}, None),  # a series of two: which one is this?
        ({"SeriesDescription": "Chest lateral decubitus"}, None),
        ({"SeriesDescription": "APICAL"}, None),
        ({}, None),
    ],
)
def test_the_view_is_told_only_when_the_header_is_sure(read, elements, view):
    assert read(**elements).view == view


def test_a_film_stored_with_the_patients_left_on_the_left_is_not_turned_silently(read):
    usual, mirrored = read(PatientOrientation=["L", "F"]), read(PatientOrientation=["R", "F"])
    assert np.array_equal(usual.pixels, mirrored.pixels)
    warning = (
        "the header says that the patient's left is on the left of the image (Patient Orientation): shown as stored"
    )
    assert warning in mirrored.steps
    assert warning not in usual.steps


# --- DICOM refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "DR"])
def test_secondary_captures_of_radiographs_are_read(read, modality):
    assert read(SOPClassUID=SC, Modality=modality).format == "DICOM"


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"SOPClassUID": SC, "Modality": "CT"}, "a CT image"),
        ({"SOPClassUID": SC, "Modality": "XC"}, "a photograph"),
        ({"Modality": "MG"}, "a mammogram"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.2", "Modality": "RF"}, "a fluoroscopy image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1", "Modality": "XA"}, "an angiogram"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.3", "Modality": "IO"}, "a dental film"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": None}, "“CT Image Storage”"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Modality": "DOC"}, "a document"),
        ({"SOPClassUID": "1.2.3.4.5", "Modality": "OT"}, "something else"),
    ],
)
def test_what_is_no_plain_radiograph_is_refused_by_name(tmp_path, elements, words):
    error = refusal(saved(header(TWELVE_BITS, **elements), tmp_path / "film"))
    assert str(error) == f"This file holds {words}, not a plain chest radiograph: choose a CR or DX film."
    assert error.rule == "modality"
    assert error.overridable


def test_a_makers_own_class_is_judged_by_its_modality(read):
    assert read(SOPClassUID="1.2.3.4.5", Modality="CR").format == "DICOM"


@pytest.mark.parametrize(
    ("part", "words"),
    [("HIP", "a HIP"), ("ANKLE", "an ANKLE"), ("LT_KNEES", "a KNEE"), ("L SPINE", "a SPINE"), ("FEET", "a FOOT")],
)
def test_films_of_other_parts_are_refused_by_the_headers_word(tmp_path, part, words):
    error = refusal(saved(header(TWELVE_BITS, BodyPartExamined=part), tmp_path / "film"))
    assert str(error) == f"The header says that this film shows {words}, not a chest."


def test_a_dx_film_names_its_part_by_code(tmp_path):
    film = header(TWELVE_BITS, SOPClassUID=DX, Modality="DX", BodyPartExamined=None)
    film.AnatomicRegionSequence = view_code("Hip joint")
    assert "a HIP, not a chest" in str(refusal(saved(film, tmp_path / "film")))


@pytest.mark.parametrize("part", ["CHEST", "PORT CHEST", "THORAX", "RIBS", "CHESTABDOMEN", "NECK AND CHEST", None])
def test_films_that_may_be_chests_are_read(read, part):
    assert read(BodyPartExamined=part).format == "DICOM"


def test_several_frames_are_refused_with_their_number(tmp_path):
    film = header(TWELVE_BITS, NumberOfFrames=3)
    film.PixelData = TWELVE_BITS.tobytes() * 3
    error = refusal(saved(film, tmp_path / "film"))
    assert str(error).startswith("This file holds 3 frames")
    assert error.rule == "multi-frame"


@pytest.mark.parametrize("stored", [np.full((128, 160), 700, np.uint16), TWELVE_BITS // 400, TWELVE_BITS % 2 * 4095])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 700, "WindowWidth": 2}])
def test_blank_films_are_refused(tmp_path, stored, window):
    error = refusal(saved(header(stored.astype(np.uint16), **window), tmp_path / "film"))
    assert error.rule == "blank"
    assert str(error).startswith("This image is blank")


def test_a_film_of_padding_alone_is_blank(tmp_path):
    film = header(TWELVE_BITS, PixelPaddingValue=0, PixelPaddingRangeLimit=4095)
    assert refusal(saved(film, tmp_path / "film")).rule == "blank"


def test_small_films_are_refused_with_their_size(tmp_path):
    error = refusal(saved(header(TWELVE_BITS[:127]), tmp_path / "film"))
    assert str(error).startswith("This image is only 160 × 127 pixels")


def test_dicom_bombs_are_refused_before_decoding(tmp_path):
    film = header(TWELVE_BITS, Rows=60_000, Columns=60_000)
    assert refusal(saved(film, tmp_path / "film")).rule == "too-large"


def test_a_header_without_an_image_is_refused(tmp_path):
    error = refusal(saved(header(TWELVE_BITS, PixelData=None), tmp_path / "film"))
    assert str(error) == "This DICOM file holds no image, only a header: export the film with its image."


def test_the_index_of_a_disc_is_refused():
    error = refusal(Path(get_testdata_file("DICOMDIR", download=False)))
    assert "DICOMDIR" in str(error)
    assert error.rule == "no-image"


@pytest.mark.parametrize(
    "elements",
    [
        {"BodyPartExamined": "JANE DOE KNEE", "SeriesDescription": "Doe PA"},
        {"Modality": "DOE"},
        {"SOPClassUID": "1.2.3", "Modality": "JANE"},
        {"BodyPartExamined": "DOE", "SeriesDescription": "Jane Doe", "ViewPosition": "JANE"},
        {"VOILUTFunction": "JANE", "WindowCenter": 2000, "WindowWidth": 1000},
    ],
)
def test_neither_steps_nor_refusals_repeat_what_may_name_a_patient(tmp_path, elements):
    path = saved(header(TWELVE_BITS, **elements), tmp_path / "Doe_Jane.dcm")
    try:
        film = read_film(path)
        text = " ".join((film.name, *film.steps))
    except FilmError as error:
        text = str(error)
    for word in ("DOE", "JANE", "4711", str(tmp_path).upper()):
        assert word not in text.upper()


def test_reading_an_odd_header_logs_nothing_and_warns_of_nothing(tmp_path, caplog):
    """pydicom's warnings quote the values they complain of; pytest turns any that escapes into an error."""
    path = saved(header(TWELVE_BITS, StudyDate="20200101"), tmp_path / "film")
    path.write_bytes(path.read_bytes().replace(b"20200101", b"JANE DOE").replace(b"1.2.3.4\0", b"JANE.DOE"))
    with caplog.at_level(logging.DEBUG):
        read_film(path)
    assert caplog.records == []
    assert not logging.getLogger("pydicom").disabled


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_8_bit_greys_are_display_values(picture, kind):
    film = picture(EIGHT_BITS, kind)
    close(film.pixels, EIGHT_BITS / 255)
    assert film.format == kind
    assert film.steps == (f"{kind} decoded, 8 bits", "8-bit values taken as display values (divided by 255)")
    assert (film.spacing, film.view) == (None, None)


def test_jpegs_are_read(picture, tmp_path):
    film = picture(EIGHT_BITS, "JPEG")
    close(film.pixels, np.asarray(Image.open(tmp_path / "picture")) / 255)
    assert film.format == "JPEG"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_adobe_deflate"}])
def test_16_bit_ramps_neither_wrap_nor_saturate(picture, kind, options):
    """docs/method.md 10, M8: a cast to 8 bits wraps at 256, a conversion to RGB saturates above 255."""
    ramp = np.linspace(0, 65535, 128 * 160).astype(np.uint16).reshape(128, 160)
    film = picture(ramp, kind, **(options if kind == "TIFF" else {}))
    low, high = np.percentile(ramp, (0.5, 99.5))
    close(film.pixels, np.clip((ramp - low) / (high - low), 0, 1))
    within = film.pixels.ravel()[200:-200]
    assert (np.diff(within) > 0).all()


def test_12_bits_in_a_16_bit_png_fill_the_range(picture):
    film = picture(TWELVE_BITS)
    assert film.pixels.max() == 1
    assert any(step.startswith("deeper than 8 bits: stretched from 2") for step in film.steps)


def test_float_tiffs_are_stretched(picture):
    values = (TWELVE_BITS / 7 - 100).astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(picture(values, "TIFF").pixels, np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_kept_in_colour_channels_keeps_its_depth(tmp_path, channels, kind):
    ramp = np.linspace(0, 65535, 128 * 160).astype(np.uint16).reshape(128, 160)
    stacked = np.dstack([ramp] * 3 + [np.full_like(ramp, 65535)] * (channels - 3))
    cv2.imwrite(str(tmp_path / f"film.{kind}"), stacked)
    film = read_film(tmp_path / f"film.{kind}")
    low, high = np.percentile(ramp, (0.5, 99.5))
    close(film.pixels, np.clip((ramp - low) / (high - low), 0, 1))


@pytest.mark.parametrize("values", [EIGHT_BITS, TWELVE_BITS])
def test_tiffs_whose_zero_is_white_are_inverted_once(tmp_path, picture, values):
    plain = picture(values, "TIFF")
    data = (tmp_path / "picture").read_bytes()
    photometric = struct.pack("<HHIH", 262, 3, 1, 1)
    assert data.count(photometric) == 1
    (tmp_path / "picture").write_bytes(data.replace(photometric, struct.pack("<HHIH", 262, 3, 1, 0)))
    film = read_film(tmp_path / "picture")
    close(film.pixels, 1 - plain.pixels)
    assert film.steps.count("inverted (TIFF WhiteIsZero)") == 1


def test_palette_pictures_of_greys_are_looked_up(picture):
    image = Image.fromarray(EIGHT_BITS).convert("P")
    image.putpalette([level for entry in range(256) for level in [255 - entry] * 3])
    close(picture(image).pixels, 1 - EIGHT_BITS / 255)


def test_an_opaque_alpha_channel_is_dropped_and_a_clear_one_shows_black(picture):
    opaque = np.full_like(EIGHT_BITS, 255)
    film = picture(Image.merge("LA", [Image.fromarray(EIGHT_BITS), Image.fromarray(opaque)]))
    close(film.pixels, EIGHT_BITS / 255)
    assert "opaque alpha channel dropped" in film.steps
    opaque[:20] = 0
    film = picture(Image.merge("LA", [Image.fromarray(EIGHT_BITS), Image.fromarray(opaque)]))
    close(film.pixels, np.where(opaque, EIGHT_BITS, 0) / 255)
    assert "transparent parts laid over black" in film.steps


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(picture, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    film = picture(np.linspace(0, 255, 128 * 160).astype(np.uint8).reshape(128, 160), kind, exif=exif)
    with (tmp_path / "picture").open("rb") as file, Image.open(file) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    close(film.pixels, upright / 255)
    assert film.pixels.shape == ((160, 128) if orientation > 4 else (128, 160))
    assert any(f"orientation tag {orientation}" in step for step in film.steps) == (orientation > 1)


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("values", [EIGHT_BITS, TWELVE_BITS])
def test_tiffs_are_turned_upright_exactly_once(picture, orientation, compression, values):
    """Pillow scrambles an uncompressed TIFF that is turned by 90° when it may map the file by its path."""
    exif = Image.Exif()
    exif[274] = orientation
    straight = picture(values, "TIFF").pixels
    assert np.array_equal(
        picture(values, "TIFF", exif=exif, compression=compression).pixels, UPRIGHT[orientation](straight)
    )


def deep_colour_tiff(values: np.ndarray, orientation: int) -> bytes:
    """A little-endian, uncompressed TIFF of 16-bit RGB, which Pillow cannot write."""
    height, width, samples = values.shape
    pixels = values.astype("<u2").tobytes()
    after = 8 + 2 + 12 * 10 + 4  # where the bits per sample lie, then the pixels
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, after),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, after + 2 * samples),
        (274, 3, 1, orientation),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    depths = struct.pack(f"<{samples}H", *[16] * samples)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + depths + pixels


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_16_bit_colour_channels_are_turned_upright_exactly_once(tmp_path, picture, orientation, kind):
    ramp = np.linspace(0, 65535, 128 * 160).astype(np.uint16).reshape(128, 160)
    straight = picture(ramp).pixels
    if kind == "TIFF":
        data = deep_colour_tiff(np.dstack([ramp] * 3), orientation)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        block = exif.tobytes().removeprefix(b"Exif\0\0")
        data = cv2.imencode(".png", np.dstack([ramp] * 3))[1].tobytes()
        data = data[:33] + chunk(b"eXIf", block) + data[33:]  # right after IHDR
    (tmp_path / "film").write_bytes(data)
    assert np.array_equal(read_film(tmp_path / "film").pixels, UPRIGHT[orientation](straight))


def greys_in(red: float, green: float, blue: float) -> np.ndarray:
    return np.rint(EIGHT_BITS[..., None] * np.array((red, green, blue))).astype(np.uint8)


def hues() -> np.ndarray:
    """A picture in which the colour goes its own way, whatever the brightness."""
    rows, columns = np.mgrid[0:128, 0:160] / 25
    channels = [np.sin(rows), np.sin(columns + 1), np.sin(rows + columns + 2)]
    return np.dstack([128 + 60 * channel for channel in channels]).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_equal_colour_channels_are_a_grey_film(picture, kind):
    film = picture(greys_in(1, 1, 1), kind)
    assert "three equal colour channels: one taken" in film.steps
    np.testing.assert_allclose(film.pixels, EIGHT_BITS / 255, atol=0 if kind != "JPEG" else 0.3)


@pytest.mark.parametrize("tint", [(0.8, 0.9, 1.0), (1.0, 0.9, 0.75)])
def test_a_blue_film_base_or_a_sepia_scan_is_read_as_grey(picture, tint):
    film = picture(greys_in(*tint))
    luminance = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2]
    np.testing.assert_allclose(film.pixels, luminance * EIGHT_BITS / 255, atol=0.01)
    assert "slight colour (a tint or coloured marks) turned to grey by luminance" in film.steps


def test_a_film_with_a_coloured_mark_is_read(picture):
    marked = greys_in(1, 1, 1)
    marked[10:40, 10:40] = (230, 20, 20)
    assert picture(marked).pixels.shape == (128, 160)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("colours", [hues(), greys_in(1, 0.4, 0.1)], ids=["photograph", "false colour"])
def test_colour_pictures_are_refused(tmp_path, colours, kind):
    Image.fromarray(colours).save(tmp_path / "picture", format=kind)
    error = refusal(tmp_path / "picture")
    assert str(error) == "This is a picture in colour, not an X-ray film: export the film in shades of grey."
    assert error.rule == "colour"
    assert error.overridable


def test_dicom_colour_is_read_when_grey_and_refused_when_not(tmp_path, read):
    film = read(greys_in(1, 1, 1), SOPClassUID=SC, Modality="OT")
    close(film.pixels, EIGHT_BITS / 255)
    path = saved(header(hues(), SOPClassUID=SC, Modality="OT"), tmp_path / "film")
    assert refusal(path).rule == "colour"


# --- picture refusals -------------------------------------------------------------------------------------------------


def test_a_missing_file_a_folder_and_an_empty_file_each_have_their_sentence(tmp_path):
    (tmp_path / "empty").touch()
    assert str(refusal(tmp_path / "none")).startswith("This file was not found")
    assert str(refusal(tmp_path)).startswith("This is a folder")
    assert str(refusal(tmp_path / "empty")).startswith("This file is empty")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Dear colleague, thank you for referring this patient", "none of these"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"PK\x03\x04...", "a compressed archive"),
        (b"\0\0\0\x18ftypheic....", "a HEIC or AVIF picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    ],
)
def test_other_formats_are_named(tmp_path, data, words):
    (tmp_path / "film.dcm").write_bytes(data)
    error = refusal(tmp_path / "film.dcm")
    assert str(error) == (
        f"A film must be a DICOM, PNG, JPEG or TIFF file; this one is {words}. Export it again as one of them."
    )


@pytest.mark.parametrize(("kind", "words"), [("GIF", "a GIF picture"), ("WEBP", "a WebP picture"), ("BMP", "a BMP")])
def test_other_picture_formats_are_named(tmp_path, kind, words):
    Image.fromarray(EIGHT_BITS).save(tmp_path / "film.png", format=kind)
    assert words in str(refusal(tmp_path / "film.png"))


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_several_pages_or_frames_are_refused_with_their_number(tmp_path, kind):
    pages = [Image.fromarray(np.roll(EIGHT_BITS, shift)) for shift in range(3)]
    pages[0].save(tmp_path / "film", format=kind, save_all=True, append_images=pages[1:])
    error = refusal(tmp_path / "film")
    assert str(error).startswith("This file holds 3 pages or frames")


def test_print_colours_are_refused(tmp_path):
    Image.fromarray(hues()).convert("CMYK").save(tmp_path / "film", format="JPEG")
    assert "print colours (CMYK)" in str(refusal(tmp_path / "film"))


def test_black_and_white_drawings_and_blank_pictures_are_refused(tmp_path):
    for values in (EIGHT_BITS > 128, np.full((128, 160), 90, np.uint8), np.full((128, 160), 9000, np.uint16)):
        Image.fromarray(values).save(tmp_path / "film", format="PNG")
        assert refusal(tmp_path / "film").rule == "blank"


def test_thumbnails_are_refused(tmp_path):
    Image.fromarray(EIGHT_BITS[:, :127]).save(tmp_path / "film", format="PNG")
    assert str(refusal(tmp_path / "film")).startswith("This image is only 127 × 128 pixels")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("kind", "values"), [("PNG", TWELVE_BITS), ("PNG", hues()), ("JPEG", EIGHT_BITS), ("TIFF", TWELVE_BITS)]
)
def test_pictures_cut_short_are_refused(tmp_path, kind, values, share):
    Image.fromarray(values).save(tmp_path / "film", format=kind)
    whole = (tmp_path / "film").read_bytes()
    (tmp_path / "film").write_bytes(whole[: int(len(whole) * share)])
    assert refusal(tmp_path / "film").rule == "undecodable"


@pytest.mark.parametrize("side", [10_100, 20_000])
def test_picture_bombs_are_refused_before_decoding(tmp_path, side):
    shape = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "film").write_bytes(bomb)
    assert refusal(tmp_path / "film").rule == "too-large"


def test_files_too_large_for_a_film_are_refused_unread(tmp_path):
    with (tmp_path / "film").open("wb") as file:
        file.truncate(500_000_001)  # sparse: takes no room
    assert str(refusal(tmp_path / "film")) == "This file is larger than 500 MB, which no single film is."


# --- the digest -------------------------------------------------------------------------------------------------------


def test_the_digest_names_the_stored_values_not_the_container(picture, read, tmp_path):
    digest = picture(TWELVE_BITS).sha256
    assert len(digest) == 64
    assert picture(TWELVE_BITS, "TIFF").sha256 == digest
    assert read(WindowCenter=10, WindowWidth=400).sha256 == digest
    changed = TWELVE_BITS.copy()
    changed[5, 5] += 1
    assert picture(changed).sha256 != digest
    assert picture(TWELVE_BITS.reshape(160, 128)).sha256 != digest


# --- what the tower takes ---------------------------------------------------------------------------------------------

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


def unnormalised(taken: np.ndarray) -> np.ndarray:
    return taken * STD[:, None, None] + MEAN[:, None, None]


def test_an_even_film_becomes_three_even_normalised_channels():
    taken = model_input(np.full((300, 200), 0.25, np.float32))
    assert taken.shape == (3, 224, 224)
    assert taken.dtype == np.float32
    np.testing.assert_allclose(taken, np.broadcast_to(((0.25 - MEAN) / STD)[:, None, None], taken.shape), atol=1e-6)


def test_the_film_is_squeezed_into_the_square_not_cropped():
    wide = np.zeros((100, 300), np.float32)
    wide[:, 200:] = 1
    seen = unnormalised(model_input(wide, size=96))[0]
    assert abs(seen[:, :60]).max() < 0.01
    assert abs(seen[:, 68:] - 1).max() < 0.01


def test_fine_stripes_are_averaged_not_picked():
    stripes = np.tile(np.array([0, 1], np.float32), (640, 320))
    seen = unnormalised(model_input(stripes, size=64))
    np.testing.assert_allclose(seen, 0.5, atol=0.02)


def test_edges_do_not_overshoot():
    blocks = np.kron(np.random.default_rng(0).integers(0, 2, (7, 9)), np.ones((60, 50))).astype(np.float32)
    seen = unnormalised(model_input(blocks))
    assert seen.min() > -1e-6
    assert seen.max() < 1 + 1e-6


def test_the_result_is_the_8_bit_image_processors_to_within_its_rounding():
    levels = np.random.default_rng(0).integers(80, 176, (7, 9))
    blocks = np.kron(levels, np.ones((60, 50))).astype(np.uint8)
    eight = np.asarray(Image.fromarray(blocks).resize((224, 224), Image.Resampling.BICUBIC))
    seen = unnormalised(model_input(blocks.astype(np.float32) / 255))
    np.testing.assert_allclose(seen * 255, np.broadcast_to(eight, seen.shape), atol=1.1)


def test_a_film_and_its_pixels_are_taken_alike(read):
    film = read()
    assert np.array_equal(model_input(film, 32), model_input(film.pixels, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        EIGHT_BITS,
        np.zeros((3, 9, 9), np.float32),
        np.full((9, 9), 2, np.float32),
        np.full((9, 9), np.nan, np.float32),
        np.zeros((0, 9), np.float32),
    ],
)
def test_what_is_no_films_pixels_is_a_programming_mistake(wrong):
    with pytest.raises(ValueError, match="film"):
        model_input(wrong)
