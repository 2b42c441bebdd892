"""A heat map over its film as a DICOM Secondary Capture (PS3.3 A.8.1), to be seen beside the film in any viewer."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from emrrg_core.explain.heat_map import heat_map, overlay
from emrrg_core.export import clean
from emrrg_core.export.dicom import Kind, Source, code, document, origin, referable, reference, to_bytes
from emrrg_core.films.film import Film, header_value
from emrrg_core.report.draft import Draft

KIND = Kind(SecondaryCaptureImageStorage, "OT", 9003, "EMRRG attention map, research only")
LONGEST = 1600  # pixels on the longer side of a picture


def picture(film: Film, draft: Draft, number: int, sentence: int | None) -> np.ndarray:
    """A film with the map of a sentence, or of the whole draft, laid over it: (height, width, 3) uint8 RGB, at most LONGEST pixels a side.

    number: of the film in draft.films. sentence: number in draft.sentences, None for the whole draft. Without a map: the film alone.
    """
    heat = heat_map(draft, number, (0, len(draft.tokens)) if sentence is None else draft.sentences[sentence])
    return overlay(_reduced(film.pixels), None if heat is None else _reduced(heat))


def _reduced(values: np.ndarray) -> np.ndarray:
    """(height, width) with its longer side at most LONGEST."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    scale = min(1.0, LONGEST / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BOX)).clip(0)


def to_dicom_capture(
    picture: np.ndarray,
    draft: Draft,
    films: Sequence[Source],
    *,
    film: int,
    sentence: int | None,
    at: datetime,
    burned_in: bool | None = None,
    turned: bool = False,
) -> bytes:
    """A film as displayed with a map laid over it. films: as for `to_dicom_sr`.

    picture    (height, width, 3) uint8 RGB, of any size
    film       its number in draft.films; sentence: whose map it is, its number in draft.sentences, None for the whole draft
    burned_in  whether its pixels show who the patient is; None, where nobody knows, leaves that out
    turned     rotated, mirrored or cropped: then neither where the patient's left is nor a spacing is true of it. So of every film that the
               reader straightened

    Raises FilmError as `origin` does, ValueError where the picture is of another form.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"a capture is (height, width, 3) uint8, not {picture.shape} {picture.dtype}")
    whose = origin(draft, films)
    header = whose.headers[film] or Dataset()
    made = document(KIND, whose, draft, at)
    made.ConversionType = "WSD"
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    made.BodyPartExamined = header_value(header, "BodyPartExamined") or "CHEST"  # of nothing else are drafts made
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.PatientOrientation = None  # type 2C: present, if only empty
    if not (turned or draft.films[film].source_sha256):
        _geometry(made, header, draft.films[film].height, draft.films[film].width, picture.shape[:2])
    if burned_in is not None:
        made.BurnedInAnnotation = "YES" if burned_in else "NO"
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if header_value(header, "LossyImageCompression") == "01" and keyword in header:
            made[keyword] = header[keyword]  # what was lost once stays lost (C.7.6.1.1.5)
    of = "its whole draft" if sentence is None else f"“{clean(draft.sentences[sentence].text)}”"
    made.DerivationDescription = (
        "Attention map of a machine's draft (EMRRG) laid over the film. Research and teaching only, not a medical device. "
        f"It shows where the model looked while it wrote, not why. Map of: {of}"
    )[:1024]
    if referable(header):
        item = reference(header)
        item.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
        made.SourceImageSequence = [item]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = picture.shape[:2]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = np.ascontiguousarray(picture).tobytes()
    made["PixelData"].VR = "OB"
    return to_bytes(made)


def _geometry(made: Dataset, header: Dataset, height: int, width: int, shown: tuple[int, ...]) -> None:
    """Orientation, and spacing where the header has one that the picture's size keeps true: the film alone, scaled.

    Pixel Spacing only: Imager Pixel Spacing is measured at the detector, and a capture has no attribute that says so.
    """
    if header_value(header, "PatientOrientation") is not None:
        made["PatientOrientation"] = header["PatientOrientation"]
    spacing = header_value(header, "PixelSpacing")
    rows, columns = shown
    if (
        spacing is None
        or len(spacing) != 2
        or min(spacing) <= 0
        or abs(height * columns - width * rows) > (height + width) / 2
    ):
        return
    # over the film as stored: `height` and `width` may have been made square
    scaled = spacing[0] * header.Rows / rows, spacing[1] * header.Columns / columns
    made.PixelSpacing = [DSfloat(value, auto_format=True) for value in scaled]
    for keyword in ("PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription"):
        if keyword in header:
            made[keyword] = header[keyword]
