"""Files -> Film: PNG, JPEG, TIFF and DICOM, told apart by their content; every step is recorded, what is no film is
refused.

    film = read_film("chest.dcm")     film.pixels (height, width), bone bright and air dark, 0 to 1
    model_input(film)                 (3, 224, 224), what the vision tower takes

A DICOM film goes through the standard's grey-scale pipeline in the standard's order (PS3.4 N.2): stored values,
modality LUT or rescale, VOI LUT or window, then the polarity. Up to there each step is a function of the stored value
alone, so it is worked out once per possible value, in float64, and looked up per pixel: exact, and quick for large
films.

    stored   (rows, columns)  what the file holds, decoded, before any step
    axis     (n,)             every possible stored value from the least to the greatest in the film, or, for values too
                              many to list, `stored` itself: each step takes it elementwise, so both forms serve
    sample   an index into arrays of the axis' shape that gives a thinned-out film: for percentiles

No message and no step repeats what a header says in free text: only words of our own lists, numbers and the standard's
names.
"""

import hashlib
import logging
import math
import re
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from emrrg_core.errors import FilmError

MAX_BYTES = 500_000_000
MAX_PIXELS = 100_000_000  # five times a full-size film at 0.1 mm: beyond it a file is a mistake or a decompression bomb
MIN_SIDE = 128  # below it a pneumothorax line or an interstitial pattern is smaller than a pixel
MIN_GREYS = 16  # fewer tones, or tones packed closer than this many stored values: blank, or a black and white drawing
TRIM = (0.5, 99.5)  # percentiles: collimator edges and burnt-in letters must not set the contrast

# Colour is judged on a reduced picture (JPEG's colour noise averages out), channels from 0 to 1. A tinted film (blue
# base, sepia scan) has one colour per brightness, so what counts is the distance from the tint usual at that
# brightness; a coloured letter or arrow strays from it in a small share of the pixels, a colour photograph in a large
# one. False-colour maps do have one colour per brightness, but a far stronger one than any film base.
COLOUR_SIDE = 256
STRAY_CHROMA, STRAY_SHARE = 0.08, 0.10
STRONG_CHROMA, STRONG_SHARE = 0.40, 0.20

# ImageNet's, which the tower expects (docs/method.md 6)
MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)


# Rules that a reader may override: the file can be read, and a person may know better than its header or our eye for
# chests. Each of them is applied by `read_film`, but for looks, which needs a model (`Reporter.check`).
OVERRIDABLE = frozenset({"modality", "body-part", "colour", "looks"})


@dataclass(frozen=True, eq=False)
class Film:
    """One radiograph as a radiologist expects it, and how it came to look so."""

    name: str  # neutral, given by the caller; never taken from the path or the header
    pixels: np.ndarray  # (height, width) float32 in [0, 1]: bone bright, air dark
    spacing: (
        tuple[float, float] | None
    )  # mm per pixel between rows, between columns (PS3.3 10.7.1.3); steps name its source
    view: str | None  # "PA", "AP", "LATERAL", or None when the file does not say for sure
    steps: tuple[str, ...]  # every step applied, in order, in words
    sha256: str  # of the stored values and their shape, before any step: lossless compression does not change it
    format: str  # "DICOM", "PNG", "JPEG" or "TIFF"
    overridden: tuple[str, ...] = ()  # the rules that refused it, and that the reader overrode
    annotated: bool | None = None  # whether the header says that names or the like are burned in; None: it does not say
    source_sha256: str | None = None  # of the film as read, where the reader cropped, straightened or turned it since

    @property
    def straightened(self) -> bool:
        """Whether the reader cropped, straightened, turned or mirrored it: no place in it is a place in its file."""
        return self.source_sha256 is not None


class _Reading(NamedTuple):
    stored: np.ndarray
    pixels: np.ndarray
    spacing: tuple[float, float] | None = None
    view: str | None = None
    annotated: bool | None = None


class _Rules:
    """Which rules the reader overrides, and which of them this film broke."""

    def __init__(self, anyway: Collection[str], steps: list[str]) -> None:
        self._anyway, self._steps = anyway, steps
        self.overridden: list[str] = []

    def broken(self, rule: str, fact: str, advice: str = "", *, overridable: bool = True) -> None:
        """Raises FilmError, or notes that the reader overrides this rule."""
        if not (overridable and rule in self._anyway):
            raise FilmError(f"{fact}{advice}.", rule=rule, overridable=overridable)
        self.overridden.append(rule)
        self._steps.append(f"rule {rule} overridden by the reader: {fact[0].lower()}{fact[1:]}")


def read_film(path: Path | str, *, name: str | None = None, anyway: Collection[str] = ()) -> Film:
    """Read one film. The format is told by content, never by the file's name.

    anyway: rules of OVERRIDABLE that the reader overrides for this film; those that it breaks are in `Film.overridden` and
    in its steps. Raises FilmError, whose text is the reason in a sentence that names neither patient nor path, with the
    rule that failed (docs/refusals.md), and ValueError for a rule that cannot be overridden.
    """
    if stiff := sorted(set(anyway) - OVERRIDABLE):
        raise ValueError(f"{stiff} cannot be overridden, only {sorted(OVERRIDABLE)}")
    path = Path(path)
    kind = _kind(_head(path))
    steps: list[str] = []
    rules = _Rules(anyway, steps)
    with quiet_decoders():
        reading = _read_dicom(path, steps, rules) if kind == "DICOM" else _read_picture(path, kind, steps, rules)
    pixels = np.ascontiguousarray(np.clip(reading.pixels, 0, 1), dtype=np.float32)
    if not np.isfinite(pixels).all():  # a slope or window beyond all numbers
        raise _undecodable()
    return Film(
        name=name or "film",
        pixels=pixels,
        spacing=reading.spacing,
        view=reading.view,
        steps=tuple(steps),
        sha256=pixel_digest(reading.stored),
        format=kind,
        overridden=tuple(rules.overridden),
        annotated=reading.annotated,
    )


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "DICOM", "PNG", "JPEG" or "TIFF". Raises FilmError as `read_film` does for others."""
    return _kind(_head(path))


def kind_of_head(head: bytes) -> str:
    """Likewise, given these bytes: 132 of them tell."""
    return _kind(head)


def header_of(path: Path) -> pydicom.Dataset:
    """A DICOM file's header without its pixels. Call it, and look its values up, within `quiet_decoders`.

    Raises FilmError for a damaged file.
    """
    return _header(path, pixels=False)


def is_directory(header: pydicom.Dataset) -> bool:
    """Whether it is the index of a disc, a DICOMDIR (PS3.3 F.3)."""
    return _sop_class(header) == _DIRECTORY


def refuse_kind(header: pydicom.Dataset) -> None:
    """Raises the FilmError of `read_film` for what is no radiograph at all, told from its header alone (`header_of`)."""
    single = (_numbers(header, "NumberOfFrames") or [1.0])[0] <= 1
    _refuse_other_kinds(header, _Rules((), []), single=single, image="Rows" in header and "Columns" in header)


def refuse_blank(pixels: np.ndarray) -> None:
    """Raises FilmError for a part of a film, (height, width) in [0, 1], that holds hardly any grey tones."""
    _refuse_blank(np.rint(pixels[_thinned(pixels.shape)] * 255).astype(np.int64))


def model_input(film: Film | np.ndarray, size: int = 224) -> np.ndarray:
    """(3, size, size) float32 for the vision tower: resized to a square, the aspect not kept, then ImageNet's mean and
    deviation.

    Bicubic with antialiasing, as the released code's image processor does it, but from float pixels instead of 8-bit
    ones; overshoot at edges is cut off as 8 bits would. Raises ValueError for an array that is not (height, width) in
    [0, 1].
    """
    pixels = film.pixels if isinstance(film, Film) else np.asarray(film)
    if pixels.ndim != 2 or not np.issubdtype(pixels.dtype, np.floating) or not pixels.size:
        raise ValueError(f"a film is a (height, width) array of floats, not {pixels.shape} {pixels.dtype}")
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # written so that NaN fails too
        raise ValueError("a film's pixels lie between 0 and 1")
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))  # mode F
    square = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    return (square[None] - MEAN[:, None, None]) / STD[:, None, None]


# --- which kind of file -----------------------------------------------------------------------------------------------

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_FOREIGN = (  # formats people do try; named so that they know what they have
    (re.compile(rb"GIF8[79]a"), "a GIF picture"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "a WebP picture"),
    (re.compile(rb"BM"), "a BMP picture"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"....ftyp(hei|hev|mif|avi)", re.DOTALL), "a HEIC or AVIF picture"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "a compressed archive"),
)


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise FilmError("This is a folder, not a file: choose the film inside it.", rule="not-a-file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            limit = MAX_BYTES // 1_000_000
            raise FilmError(f"This file is larger than {limit} MB, which no single film is.", rule="too-large")
        with path.open("rb") as file:
            head = file.read(132)
    except FileNotFoundError as error:
        raise FilmError("This file was not found: check where it is and choose it again.", rule="missing") from error
    except OSError as error:
        raise FilmError("This file could not be opened: check that you may read it.", rule="unreadable") from error
    if not head:
        raise FilmError("This file is empty: copy or export the film again.", rule="empty")
    return head


def _kind(head: bytes) -> str:
    # DICOM first: its 128-byte preamble may carry another format's signature (PS3.10 7.1)
    if head[128:132] == b"DICM":
        return "DICOM"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    # without a preamble a data set begins with an element of group 0002 or 0008, low element numbers first
    if head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0":
        return "DICOM"
    if head[:3] in (b"\0\x02\0", b"\0\x08\0"):
        return "DICOM"
    words = next((words for pattern, words in _FOREIGN if pattern.match(head)), "none of these")
    raise FilmError(
        f"A film must be a DICOM, PNG, JPEG or TIFF file; this one is {words}. Export it again as one of them.",
        rule="unsupported-format",
    )


def _undecodable() -> FilmError:
    return FilmError(
        "This file is damaged or cut short and cannot be decoded: copy or export it again.", rule="undecodable"
    )


_quiet_lock = threading.Lock()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence the decoders' warnings and log lines: they quote header values, and those are a patient's.

    One film at a time: the filters are the whole process's.
    """
    logger = logging.getLogger("pydicom")
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


# --- pieces that every format uses ------------------------------------------------------------------------------------


def pixel_digest(stored: np.ndarray) -> str:
    """Of the values, not of how they were held: decoders differ in the integer type that they return for one film."""
    whole = "<i4" if stored.dtype.itemsize <= 2 else "<i8"
    kind = "<f8" if np.issubdtype(stored.dtype, np.floating) else whole
    values = np.ascontiguousarray(stored, dtype=kind)
    digest = hashlib.sha256(repr((stored.shape, kind)).encode())
    digest.update(values.data)
    return digest.hexdigest()


def _refuse_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise FilmError(f"This image has more than {limit} million pixels, which no single film has.", rule="too-large")
    if min(height, width) < MIN_SIDE:
        raise FilmError(
            f"This image is only {width} × {height} pixels; a film must have at least {MIN_SIDE} on its shorter side. "
            "A preview or thumbnail is not enough: export the full image.",
            rule="too-small",
        )


def _blank() -> FilmError:
    return FilmError("This image is blank or has hardly any grey tones: there is no film to read in it.", rule="blank")


def _refuse_blank(values: np.ndarray) -> None:
    """`values`: stored values (any shape), padding left out."""
    if values.size == 0:
        raise _blank()
    low, high = np.percentile(values, TRIM)
    closest = MIN_GREYS if np.issubdtype(values.dtype, np.integer) else 0
    if high <= low or high - low < closest or np.unique(values).size < MIN_GREYS:
        raise _blank()


def _thinned(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Every k-th row and column, so that about a million pixels remain: enough for percentiles."""
    stride = max(1, math.isqrt(shape[0] * shape[1] // 1_000_000))
    return slice(None, None, stride), slice(None, None, stride)


def _stretched(values: np.ndarray, sample: np.ndarray, steps: list[str], why: str) -> np.ndarray:
    low, high = (float(edge) for edge in np.percentile(sample, TRIM))
    if not high > low:
        raise _blank()
    steps.append(f"{why}: stretched from {low:g} to {high:g} (percentiles {TRIM[0]} and {TRIM[1]})")
    return np.clip((values - low) / (high - low), 0, 1)


def _grey(colour: np.ndarray, full: float, steps: list[str], rules: _Rules) -> np.ndarray:
    """(height, width, 3) red, green, blue from 0 to `full` -> (height, width). Raises for a picture in colour."""
    red, green, blue = (colour[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        steps.append("three equal colour channels: one taken")
        return red
    height, width = red.shape
    scale = min(1.0, COLOUR_SIDE / max(height, width))
    reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(np.ascontiguousarray(colour), reduced, interpolation=cv2.INTER_AREA).astype(np.float32) / full
    small = small.reshape(-1, 3)
    chroma = small - small.mean(1, keepdims=True)
    brightness = np.minimum((small.mean(1) * 16).astype(int), 15)
    stray = np.zeros(len(small), dtype=np.float32)
    for level in np.unique(brightness):
        here = brightness == level
        stray[here] = np.ptp(chroma[here] - np.median(chroma[here], axis=0), axis=1)
    if (stray > STRAY_CHROMA).mean() > STRAY_SHARE or (np.ptp(small, axis=1) > STRONG_CHROMA).mean() > STRONG_SHARE:
        rules.broken("colour", "This is a picture in colour, not an X-ray film", ": export the film in shades of grey")
        steps.append("colour turned to grey by luminance")
    else:
        steps.append("slight colour (a tint or coloured marks) turned to grey by luminance")
    return 0.299 * red.astype(np.float32) + 0.587 * green.astype(np.float32) + 0.114 * blue.astype(np.float32)


# --- PNG, JPEG, TIFF --------------------------------------------------------------------------------------------------

_UPRIGHT = {  # EXIF tag 274: what turns the stored picture upright
    2: ("mirrored left to right", lambda a: a[:, ::-1]),
    3: ("turned by 180°", lambda a: a[::-1, ::-1]),
    4: ("mirrored top to bottom", lambda a: a[::-1]),
    5: ("mirrored along the diagonal", lambda a: a.swapaxes(0, 1)),
    6: ("turned 90° clockwise", lambda a: a[::-1].swapaxes(0, 1)),
    7: ("mirrored along the other diagonal", lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: ("turned 90° counter-clockwise", lambda a: a[:, ::-1].swapaxes(0, 1)),
}


def _read_picture(path: Path, kind: str, steps: list[str], rules: _Rules) -> _Reading:
    """8-bit grey values are taken as display values (divided by 255): whoever exported them chose the contrast.

    Deeper ones (16-bit, float) often fill only part of their range, 12 bits of 16 for one, so they are stretched
    between their own TRIM percentiles. Neither is ever cast to 8 bits.
    """
    values, full, bright_zero = _decoded_picture(path, kind, steps)
    stored = values
    if not np.isfinite(values).all():
        raise _undecodable()
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values = _without_alpha(values, full, steps)
    if values.ndim == 3:
        values = _grey(values, full, steps, rules)
    sample = values[_thinned(values.shape)]
    _refuse_blank(np.rint(sample).astype(np.int64) if np.issubdtype(stored.dtype, np.integer) else sample)
    if full == 255:
        steps.append("8-bit values taken as display values (divided by 255)")
        pixels = values / np.float32(255)
    else:
        pixels = _stretched(values.astype(np.float32), sample, steps, "deeper than 8 bits")
    if bright_zero:
        steps.append("inverted (TIFF WhiteIsZero)")
        pixels = 1 - pixels
    return _Reading(stored, pixels)


def _decoded_picture(path: Path, kind: str, steps: list[str]) -> tuple[np.ndarray, float, bool]:
    """The upright values ((height, width) or (height, width, 2, 3 or 4)), their full scale, and whether 0 still means
    white."""
    formats = ["JPEG", "MPO"] if kind == "JPEG" else [kind]  # MPO: a JPEG with further pictures behind the first
    try:
        # from an open file, not by path: Pillow 12 maps raw TIFFs given by path, and scrambles those turned by 90°
        with path.open("rb") as file, Image.open(file, formats=formats) as image:
            _refuse_size(image.height, image.width)
            _refuse_pages(image)
            if image.mode in ("CMYK", "LAB", "HSV"):
                raise FilmError(
                    f"This picture is in print colours ({image.mode}): export it in shades of grey.",
                    rule="unsupported-format",
                )
            depth = _sample_depth(path, image)
            tags = image.tag_v2 if kind == "TIFF" else {}  # type: ignore[attr-defined]
            bright_zero = tags.get(262) == 0
            orientation = tags.get(274) if kind == "TIFF" else image.getexif().get(274)
            image.load()  # raises for a file cut short
            turned = kind == "TIFF"  # Pillow and OpenCV turn TIFFs while loading, and nothing else
            mode = image.mode
            if mode in ("P", "PA"):
                mode = "RGBA" if "transparency" in image.info or mode == "PA" else "RGB"
                steps.append(f"{kind} decoded, palette looked up")
                values = np.asarray(image.convert(mode))
            elif mode in ("1", "L", "LA", "RGB", "RGBA", "YCbCr") and depth > 8:
                steps.append(f"{kind} decoded, {depth} bits")
                values = _deep_colour(path)
            elif mode in ("1", "L", "LA", "RGB", "RGBA", "YCbCr"):
                steps.append(f"{kind} decoded, {depth} bits")
                if mode in ("1", "L") and bright_zero:
                    steps.append("inverted (TIFF WhiteIsZero)")  # Pillow did so for 8 bits and fewer
                    bright_zero = False
                target = {"1": "L", "YCbCr": "RGB"}.get(mode, mode)
                values = np.asarray(image.convert(target) if target != mode else image)
            elif mode.startswith("I") or mode == "F":
                steps.append(f"{kind} decoded, {depth} bits{', float' if mode == 'F' else ''}")
                values = np.asarray(image)
            else:
                raise FilmError(
                    "This kind of picture is not supported: export it in shades of grey.", rule="unsupported-format"
                )
    except Image.DecompressionBombError as error:
        raise FilmError("This image has far more pixels than a film can have.", rule="too-large") from error
    except FilmError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files (OSError, SyntaxError, struct.error, ...)
        raise _undecodable() from error
    if orientation in _UPRIGHT:
        words, upright = _UPRIGHT[orientation]
        steps.append(f"{words} (orientation tag {orientation})")
        values = values if turned else upright(values)
    full = float(np.iinfo(values.dtype).max) if np.issubdtype(values.dtype, np.integer) else 1.0
    return values, full, bright_zero


def _refuse_pages(image: Image.Image) -> None:
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if pages > 1:
        raise FilmError(
            f"This file holds {pages} pages or frames, not one film: export the film alone as a single image.",
            rule="multi-frame",
        )


def _sample_depth(path: Path, image: Image.Image) -> int:
    """Bits per sample as the file states it: Pillow's mode hides 16-bit colour, which it would cut to 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # IHDR: after the signature, length, name, width and height
    if image.format == "TIFF":
        return int(max(np.atleast_1d(image.tag_v2.get(258, 1))))  # type: ignore[attr-defined]
    return 8


def _deep_colour(path: Path) -> np.ndarray:
    """16-bit colour, or 16-bit grey with alpha, as red, green, blue (, alpha)."""
    values = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim == 2:
        raise _undecodable()
    return values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _without_alpha(values: np.ndarray, full: float, steps: list[str]) -> np.ndarray:
    colour, alpha = values[..., :-1], values[..., -1]
    if (alpha == full).all():
        steps.append("opaque alpha channel dropped")
    else:
        steps.append("transparent parts laid over black")
        colour = np.rint(colour * (alpha[..., None] / np.float32(full))).astype(values.dtype)
    return colour[..., 0] if colour.shape[2] == 1 else colour


# --- DICOM: is it a film? ---------------------------------------------------------------------------------------------

_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_FILM_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    _FOR_PROCESSING,  # Digital X-Ray, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte Secondary Capture, if it has one frame
    "1.2.840.10008.5.1.4.1.1.7.3",  # Multi-frame Grayscale Word Secondary Capture, if it has one frame
    "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture, if it has one frame
}
_FILM_MODALITIES = {"CR", "DX", "RG", "DR", "OT", "HC", "SC", ""}  # DR and SC are not the standard's, but occur
_MODALITY_WORDS = {
    "CT": "a CT image",
    "MR": "an MR image",
    "US": "an ultrasound image",
    "IVUS": "an intravascular ultrasound image",
    "NM": "a nuclear medicine image",
    "PT": "a PET image",
    "MG": "a mammogram",
    "XA": "an angiogram",
    "RF": "a fluoroscopy image",
    "DF": "a fluoroscopy image",
    "DS": "a subtraction angiogram",
    "IO": "a dental film",
    "PX": "a panoramic dental film",
    "BMD": "a bone density scan",
    "XC": "a photograph",
    "GM": "a microscope picture",
    "SM": "a microscope picture",
    "ES": "an endoscopy picture",
    "OP": "a photograph of the eye",
    "OPT": "an optical tomogram of the eye",
    "OCT": "an optical coherence tomogram",
    "SEG": "a segmentation",
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a list of key images",
    "DOC": "a document",
    "ECG": "an ECG",
    "REG": "a registration",
    "RTIMAGE": "a radiotherapy image",
    "RTDOSE": "a radiotherapy dose",
    "RTSTRUCT": "a set of radiotherapy structures",
    "RTPLAN": "a radiotherapy plan",
}
_DIRECTORY = "1.2.840.10008.1.3.10"

# words of Body Part Examined (PS3.16 Annex L) and of DX Anatomy Imaged (CID 4009), as vendors join and shorten them
_CHEST_WORDS = {
    "CHEST", "THORAX", "LUNG", "LUNGS", "RIB", "RIBS", "STERNUM", "HEART", "TRUNK", "BABYGRAM",
}  # fmt: skip
_OTHER_PARTS = {
    "SKULL", "HEAD", "BRAIN", "FACE", "FACIAL", "SINUS", "SINUSES", "ORBIT", "ORBITS", "MANDIBLE", "MAXILLA",
    "JAW", "TMJ", "NOSE", "NASAL", "ZYGOMA", "MASTOID", "TOOTH", "TEETH", "DENTAL", "NECK", "SPINE", "CSPINE",
    "TSPINE", "LSPINE", "SSPINE", "CTSPINE", "TLSPINE", "LSSPINE", "CERVICAL", "LUMBAR", "SACRUM", "COCCYX",
    "SCOLIOSIS", "ABDOMEN", "PELVIS", "BLADDER", "KIDNEY", "KUB", "LIVER", "COLON", "BREAST", "HIP", "HIPS",
    "FEMUR", "THIGH", "KNEE", "KNEES", "PATELLA", "LEG", "TIBIA", "FIBULA", "ANKLE", "ANKLES", "CALCANEUS",
    "HEEL", "FOOT", "FEET", "TOE", "TOES", "EXTREMITY", "EXTREMITIES", "SHOULDER", "SHOULDERS", "SCAPULA",
    "CLAVICLE", "ARM", "HUMERUS", "ELBOW", "FOREARM", "RADIUS", "ULNA", "WRIST", "WRISTS", "HAND", "HANDS",
    "FINGER", "FINGERS", "THUMB",
}  # fmt: skip


def _read_dicom(path: Path, steps: list[str], rules: _Rules) -> _Reading:
    header = _header(path)
    frames = _numbers(header, "NumberOfFrames") or [1.0]
    image = any(keyword in header for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    _refuse_other_kinds(header, rules, single=frames[0] <= 1, image=image)
    _refuse_other_parts(header, steps, rules)
    if frames[0] > 1:
        raise FilmError(
            f"This file holds {frames[0]:.0f} frames (a cine loop or a stack of slices): choose a single film.",
            rule="multi-frame",
        )
    _refuse_size(*(int((_numbers(header, keyword) or [0.0])[0]) for keyword in ("Rows", "Columns")))
    stored, photometric = stored_values(header, steps)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        pixels = _monochrome(header, stored, photometric, steps)
    else:
        pixels = _from_colour(header, stored, photometric, steps, rules)
    spacing = _spacing(header, steps)
    pixels, spacing = _square_pixels(header, pixels, spacing, steps)
    return _Reading(stored, pixels, spacing, _view(header, steps), _annotated(header, steps))


def _header(path: Path, *, pixels: bool = True) -> pydicom.Dataset:
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        known = (
            any(keyword in header for keyword in ("SOPClassUID", "Modality", "Rows"))
            or _sop_class(header) == _DIRECTORY
        )
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise _undecodable() from error
    if not known:
        raise _undecodable()
    return header


def header_value(header: pydicom.Dataset, keyword: str) -> Any:
    """An element's value, or None when it is absent, empty or not what its type allows (which pydicom notes only when
    asked)."""
    try:
        value = header.get(keyword)
    except Exception:
        return None
    return None if value in ("", None) else value


def _numbers(header: pydicom.Dataset, keyword: str) -> list[float]:
    value = header_value(header, keyword)
    if value is None:
        return []
    try:
        numbers = [float(number) for number in (value if isinstance(value, (MultiValue, list)) else [value])]
    except (TypeError, ValueError):
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []


def _items(header: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    value = header_value(header, keyword)
    return list(value) if isinstance(value, pydicom.Sequence) else []


def _text(header: pydicom.Dataset, keyword: str) -> str:
    return str(header_value(header, keyword) or "").strip().upper()


def _sop_class(header: pydicom.Dataset) -> str:
    meta = getattr(header, "file_meta", None) or FileMetaDataset()
    return str(header_value(header, "SOPClassUID") or header_value(meta, "MediaStorageSOPClassUID") or "")


def _refuse_other_kinds(header: pydicom.Dataset, rules: _Rules, *, single: bool, image: bool) -> None:
    """Only plain projection radiographs pass: by SOP Class (PS3.4 B.5), then by Modality (PS3.3 C.7.3.1.1.1).

    A class that is missing or a vendor's own is judged by Modality alone. Secondary captures carry the modality they
    captured. single: of one frame; no stack of slices is a film with a wrong word in its header. image: with pixels.
    """
    sop_class, modality = _sop_class(header), _text(header, "Modality")
    if sop_class == _DIRECTORY:
        raise FilmError(
            "This is the index of a disc (DICOMDIR), not a film: choose one of the images it lists.", rule="no-image"
        )
    public = UID(sop_class).name != sop_class  # else missing, or a vendor's own
    own = not public and modality in _FILM_MODALITIES - {"OT", "HC", "SC", ""}
    unnamed = not sop_class and modality in _FILM_MODALITIES
    if modality not in _FILM_MODALITIES or not (sop_class in _FILM_CLASSES or own or unnamed):
        words = _MODALITY_WORDS.get(modality) or (f"“{UID(sop_class).name}”" if public else "something else")
        rules.broken(
            "modality",
            f"This file holds {words}, not a plain chest radiograph",
            ": choose a CR or DX film",
            overridable=image and single,
        )
    if not image:
        raise FilmError(
            "This DICOM file holds no image, only a header: export the film with its image.", rule="no-image"
        )


def _refuse_other_parts(header: pydicom.Dataset, steps: list[str], rules: _Rules) -> None:
    """By Body Part Examined (PS3.3 C.7.3.1), or the Anatomic Region of a DX film (C.8.11.2). Unknown words pass."""
    texts = [_text(header, "BodyPartExamined")]
    texts += [_text(item, "CodeMeaning") for item in _items(header, "AnatomicRegionSequence")]
    for text in filter(None, texts):
        words = re.findall("[A-Z]+", text)
        if not _CHEST_WORDS.isdisjoint(words):
            return
        if other := next((word for word in words if word in _OTHER_PARTS), None):
            single = {"FEET": "FOOT", "TEETH": "TOOTH"}.get(other, other)
            single = single[:-1] if single[:-1] in _OTHER_PARTS else single
            article = "an" if single[0] in "AEIOU" and single != "ULNA" else "a"
            rules.broken("body-part", f"The header says that this film shows {article} {single}, not a chest")
            return
    known = "names no body part" if not any(texts) else "names a body part in words not known here"
    steps.append(f"the header {known}: taken to be a chest")


# --- DICOM: stored values ---------------------------------------------------------------------------------------------


def stored_values(header: pydicom.Dataset, steps: list[str]) -> tuple[np.ndarray, str]:
    """The decoded values with unused bits cleared (PS3.3 C.7.6.3.1, PS3.5 8.1.1), and the photometric interpretation
    they are in.

    (rows, columns) for one sample a pixel, else (rows, columns, 3) in RGB.
    """
    syntax = _transfer_syntax(header)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise _unsupported_syntax(syntax) from error
    if not decoder.is_available:
        raise _unsupported_syntax(syntax)
    allocated, used, high = (
        int((_numbers(header, keyword) or [0.0])[0]) for keyword in ("BitsAllocated", "BitsStored", "HighBit")
    )
    shift = 0
    if used and not syntax.is_encapsulated and used <= high < allocated:
        # the retired form where the value sits in the upper bits: read up to the high bit, then shift the rest away
        shift = high + 1 - used
        header.BitsStored = high + 1
    failure: Exception | None = None
    for plugin in _plugins(decoder.available_plugins):
        try:
            stored, properties = decoder.as_array(header, raw=False, decoding_plugin=plugin)
            break
        except NotImplementedError as error:  # a form of the syntax that this plugin lacks, 12-bit JPEG for one
            failure = failure or error
        except Exception as error:  # each plugin has its own kinds; a film no plugin decodes is refused below
            failure = error
    else:
        raise (_unsupported_syntax(syntax) if isinstance(failure, NotImplementedError) else _undecodable()) from failure
    if stored.ndim not in (2, 3) or (stored.ndim == 3 and stored.shape[2] != 3) or not np.isfinite(stored).all():
        raise _undecodable()
    if _sop_class(header) == _FOR_PROCESSING:
        steps.append("raw detector values (for processing): the contrast is not the maker's")
    steps.append(f"{syntax.name} decoded" + (f" ({plugin})" if plugin else ""))
    if _text(header, "LossyImageCompression") == "01":
        steps.append("compressed with loss earlier (header)")
    if shift:
        steps.append(f"stored bits {shift}..{high} of {allocated} used")
        stored = stored >> shift
        header.BitsStored = used
    elif 0 < used < allocated:
        steps.append(f"stored bits 0..{used - 1} of {allocated} used")
    if _numbers(header, "PixelRepresentation") == [1.0]:
        steps.append("signed values")
    return stored, str(properties["photometric_interpretation"])


def _transfer_syntax(header: pydicom.Dataset) -> UID:
    """As the file says, else as pydicom found the data set to be encoded (no meta header, PS3.10 7.1)."""
    if not isinstance(getattr(header, "file_meta", None), FileMetaDataset):
        header.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        header.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2" if implicit else explicit)
    return UID(header.file_meta.TransferSyntaxUID)


def _plugins(available: tuple[str, ...]) -> list[str]:
    """OpenJPEG's own plugin before GDCM's copy of it; a native syntax has no plugin, which pydicom writes as ''."""
    order = ("pylibjpeg", "pydicom", "gdcm", "pyjpegls", "pillow")
    return sorted(available, key=lambda name: order.index(name) if name in order else len(order)) or [""]


def _unsupported_syntax(syntax: UID) -> FilmError:
    words = syntax.name if syntax.name != syntax else "of an unknown kind"
    return FilmError(
        f"This film is compressed in a way that is not supported here ({words}): export it uncompressed.",
        rule="undecodable",
    )


# --- DICOM: the grey-scale pipeline -----------------------------------------------------------------------------------


def _monochrome(header: pydicom.Dataset, stored: np.ndarray, photometric: str, steps: list[str]) -> np.ndarray:
    """Stored values -> display values in [0, 1]: modality (C.11.1), VOI (C.11.2), polarity (C.7.6.3.1.2,
    C.8.11.3.1.2)."""
    least, most = stored.min(), stored.max()
    thin = _thinned(stored.shape)
    listed = np.issubdtype(stored.dtype, np.integer) and int(most) - int(least) < 2**16
    axis = np.arange(int(least), int(most) + 1, dtype=np.float64) if listed else stored.astype(np.float64)
    places = stored.astype(np.int64) - int(least) if listed else None
    padding = _padding(header, axis, stored.dtype, steps)
    sample = (places if places is not None else np.arange(stored.size).reshape(stored.shape))[thin].ravel()
    sample = sample[~padding.ravel()[sample]]
    raw = axis.ravel()[sample]
    _refuse_blank(raw.astype(np.int64) if np.issubdtype(stored.dtype, np.integer) else raw)

    values, changed = _modality(header, axis, steps)
    shown = _voi(header, values, sample, steps, display_ready=not changed and _depth(header) <= 8)
    if photometric == "MONOCHROME1":
        steps.append("inverted (MONOCHROME1)")
        shown = 1 - shown
    shape = _text(header, "PresentationLUTShape")
    if shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != (photometric == "MONOCHROME1"):
        steps.append(f"presentation LUT shape {shape} contradicts {photometric}: ignored")
    if padding.any():
        shown = np.where(padding, 0.0, shown)
    shown = shown.astype(np.float32)
    return shown[places] if places is not None else shown


def _depth(header: pydicom.Dataset) -> int:
    return int((_numbers(header, "BitsStored") or _numbers(header, "BitsAllocated") or [16.0])[0])


def _padding(header: pydicom.Dataset, axis: np.ndarray, dtype: np.dtype, steps: list[str]) -> np.ndarray:
    """Where the axis is padding (PS3.3 C.7.5.1.1.2): stored values from Pixel Padding Value to its Range Limit, either
    way round."""
    edges = _numbers(header, "PixelPaddingValue")[:1]
    if not edges or not np.issubdtype(dtype, np.integer):
        return np.zeros(axis.shape, dtype=bool)
    edges += _numbers(header, "PixelPaddingRangeLimit")[:1]
    # some writers give the value unsigned though the pixels are signed, or the other way round
    edges = [
        float(np.array(int(edge) % 2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype))
        for edge in edges
    ]
    inside: np.ndarray = (axis >= min(edges)) & (axis <= max(edges))
    if inside.any():
        limits = " to ".join(f"{edge:g}" for edge in sorted(set(edges)))
        steps.append(f"padding value {limits} left out, shown black")
    return inside


def _modality(header: pydicom.Dataset, axis: np.ndarray, steps: list[str]) -> tuple[np.ndarray, bool]:
    """PS3.3 C.11.1: the Modality LUT, else slope and intercept (of either sign). Also whether that changed anything."""
    if items := _items(header, "ModalityLUTSequence"):
        if (table := _table(items[0], axis)) is not None:
            steps.append(f"modality LUT ({table.entries.size} entries)")
            return table(axis), True
        steps.append("modality LUT damaged: ignored")
    slope, intercept = (_numbers(header, keyword)[:1] for keyword in ("RescaleSlope", "RescaleIntercept"))
    if not slope and not intercept:
        return axis, False
    factor, offset = (slope or [1.0])[0], (intercept or [0.0])[0]
    if factor == 0:
        steps.append("rescale slope 0: ignored")
        return axis, False
    steps.append(f"rescale slope {factor:g} intercept {offset:g}")
    return axis * factor + offset, (factor, offset) != (1.0, 0.0)


class _Table(NamedTuple):
    """A lookup table (PS3.3 C.11.1.1, C.11.2.1.1): values below `first` take the first entry, values past the end the
    last."""

    entries: np.ndarray  # float64
    first: int
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        places = np.rint(values - self.first).clip(0, self.entries.size - 1).astype(np.int64)
        return self.entries[places]


def _table(item: pydicom.Dataset, values: np.ndarray) -> _Table | None:
    """Read here, not with pydicom's apply_modality_lut and apply_voi: those wrap where the index does not fit the type
    of the pixels or of the entries (8-bit entries for 12-bit pixels), and refuse depths such as 12."""
    descriptor, data = _numbers(item, "LUTDescriptor"), header_value(item, "LUTData")
    if len(descriptor) != 3 or data is None:
        return None
    count, first, bits = (int(number) for number in descriptor)
    count = count % 2**16 or 2**16  # 0 stands for 65536
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # a negative first value, written unsigned
    if isinstance(data, bytes):
        word = "<u2" if item.original_encoding[1] is not False else ">u2"
        packed = len(data) in (count, count + 1)  # 8-bit entries, two to a word
        whole = data if packed else data[: len(data) // 2 * 2]
        entries = np.frombuffer(whole, dtype=np.uint8 if packed else word)
    else:
        entries = np.asarray(data).ravel() % 2**16
    if entries.size < count or not 0 < bits <= 16:
        return None
    return _Table(entries[:count].astype(np.float64), first, bits)


def _voi(
    header: pydicom.Dataset, values: np.ndarray, sample: np.ndarray, steps: list[str], *, display_ready: bool
) -> np.ndarray:
    """PS3.3 C.11.2, to [0, 1]: the first VOI LUT, else the first usable window, else a stated stretch.

    A LUT or window that leaves nearly one tone of a film that has many is a mistake of the header (seen where a window
    was kept while the values were rescaled): ignored, with a note.
    """
    if shown := _header_voi(header, values, steps):
        step, pixels = shown
        if np.ptp(np.percentile(pixels.ravel()[sample], TRIM)) >= MIN_GREYS / 255:
            steps.append(step)
            return pixels
        steps.append(f"{step} would leave nearly one tone: ignored")
    elif display_ready:
        steps.append("no window: 8-bit values taken as display values (divided by full scale)")
        signed = _numbers(header, "PixelRepresentation") == [1.0]
        full = 2.0 ** _depth(header)
        return (values + (full / 2 if signed else 0)) / (full - 1)
    return _stretched(values, values.ravel()[sample], steps, "no usable window")


def _header_voi(header: pydicom.Dataset, values: np.ndarray, steps: list[str]) -> tuple[str, np.ndarray] | None:
    if items := _items(header, "VOILUTSequence"):
        if (table := _table(items[0], values)) is not None and table.entries.max() > 0:
            # full scale is what the descriptor says (C.11.2.1.1), unless the entries plainly use another depth
            full, most = 2.0**table.bits - 1, float(table.entries.max())
            full = full if full / 2 < most <= full else most
            count = f", first of {len(items)}" if len(items) > 1 else ""
            return f"VOI LUT ({table.entries.size} entries of {table.bits} bits{count})", table(values) / full
        steps.append("VOI LUT damaged: ignored")
    function = _text(header, "VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        steps.append("unknown VOI LUT function: LINEAR taken")
        function = "LINEAR"
    windows = list(zip(_numbers(header, "WindowCenter"), _numbers(header, "WindowWidth"), strict=False))
    for center, width in windows:
        if width <= 0 or (function == "LINEAR" and width < 1):
            steps.append(f"window {center:g}/{width:g} ignored: the width makes no sense")
            continue
        count = f", first usable of {len(windows)}" if len(windows) > 1 else ""
        return f"window {center:g}/{width:g} ({function}{count})", _windowed(values, center, width, function)
    return None


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT), with the output range 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # LINEAR with width 1 is a threshold
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _from_colour(
    header: pydicom.Dataset, stored: np.ndarray, photometric: str, steps: list[str], rules: _Rules
) -> np.ndarray:
    """A secondary capture saved in colour: accepted when it shows shades of grey. No window applies to colour
    (C.11.2)."""
    full = 2.0 ** _depth(header) - 1
    if photometric == "PALETTE COLOR":
        try:
            stored = apply_color_lut(stored, header)
        except Exception as error:  # a palette may be damaged in as many ways as a file
            raise _undecodable() from error
        full = float(np.iinfo(stored.dtype).max)
        steps.append("palette looked up")
    if stored.ndim != 3 or not np.issubdtype(stored.dtype, np.integer):
        raise _undecodable()
    if stored.dtype.itemsize > 2:  # no 32-bit picture needs more than 16 bits, and OpenCV takes no more
        stored, full = (stored / full * 65535).astype(np.uint16), 65535.0
    grey = _grey(stored[..., :3], full, steps, rules)
    _refuse_blank(np.rint(grey[_thinned(grey.shape)] * (255 / full)).astype(np.int64))
    steps.append(f"colour values taken as display values (divided by {full:g})")
    return grey / np.float32(full)


# --- DICOM: geometry and view -----------------------------------------------------------------------------------------


def _spacing(header: pydicom.Dataset, steps: list[str]) -> tuple[float, float] | None:
    """mm between rows, between columns (PS3.3 10.7.1.3). A film has no true scale: the steps say at which plane it was
    measured."""
    for keyword, words in (
        ("PixelSpacing", "Pixel Spacing"),
        ("ImagerPixelSpacing", "Imager Pixel Spacing, at the detector"),
        ("NominalScannedPixelSpacing", "Nominal Scanned Pixel Spacing, on the scanned film"),
    ):
        numbers = _numbers(header, keyword)
        if not numbers:
            continue
        if len(numbers) != 2 or min(numbers) <= 0:
            steps.append(f"{words.split(',')[0]} ignored: it makes no sense")
            continue
        row, column = numbers
        magnification = (_numbers(header, "EstimatedRadiographicMagnificationFactor") or [0.0])[0]
        if keyword == "ImagerPixelSpacing" and magnification > 0:
            row, column = row / magnification, column / magnification
            words = f"Imager Pixel Spacing divided by the magnification {magnification:g}"
        elif keyword == "PixelSpacing" and _text(header, "PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL"):
            words += f", calibrated ({_text(header, 'PixelSpacingCalibrationType')})"
        elif keyword == "PixelSpacing" and numbers == _numbers(header, "ImagerPixelSpacing"):
            words += ", at the detector"
        steps.append(f"spacing {row:g} × {column:g} mm ({words})")
        return row, column
    return None


def _square_pixels(
    header: pydicom.Dataset, pixels: np.ndarray, spacing: tuple[float, float] | None, steps: list[str]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Films whose pixels are not square (PS3.3 C.7.6.3.1.7) are resampled to the finer of the two sides, or they look
    stretched."""
    row, column = spacing or (1.0, 1.0)
    aspect = _numbers(header, "PixelAspectRatio")  # vertical size, horizontal size
    if spacing is None and len(aspect) == 2 and min(aspect) > 0:
        row, column = aspect
    if 0.99 < row / column < 1.01:
        return pixels, spacing
    height, width = pixels.shape
    finer = min(row, column)
    if max(row, column) > 4 * finer or height * width * max(row, column) > MAX_PIXELS * finer:
        steps.append("the pixels' sides differ beyond belief: shown as stored")
        return pixels, spacing
    tall, wide = round(height * row / finer), round(width * column / finer)
    steps.append(f"pixels made square: {width} × {height} resampled to {wide} × {tall}")
    square = cv2.resize(pixels, (wide, tall), interpolation=cv2.INTER_LINEAR)
    return square, None if spacing is None else (row * height / tall, column * width / wide)


def _annotated(header: pydicom.Dataset, steps: list[str]) -> bool | None:
    """Burned In Annotation (PS3.3 C.7.6.1): whether the pixels hold text that identifies a patient."""
    said = {"YES": True, "NO": False}.get(_text(header, "BurnedInAnnotation"))
    if said:
        steps.append("the header says that text is burned in (Burned In Annotation)")
    return said


_VIEW_POSITIONS = {  # PS3.3 C.8.1.1 and C.8.11.5 View Position; oblique and decubitus positions are none of the three
    "PA": "PA",
    "AP": "AP",
    **dict.fromkeys(("LL", "RL", "LAT", "LLAT", "RLAT", "LATERAL", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL"),
}


def _view(header: pydicom.Dataset, steps: list[str]) -> str | None:
    """From View Position, else the View Code (CID 4010), else Patient Orientation (lateral only), else Series
    Description."""
    found: str | None = None
    if position := _text(header, "ViewPosition"):
        found, source = _VIEW_POSITIONS.get(position), "View Position"
    elif items := _items(header, "ViewCodeSequence"):
        found, source = _view_in_words(_text(items[0], "CodeMeaning")), "View Code"
    elif _faces(header)[:1] in ("A", "P"):  # rows run from back to front: seen from the side
        found, source = "LATERAL", "Patient Orientation"
    else:
        found, source = _view_in_words(_text(header, "SeriesDescription")), "Series Description"
    if found:
        steps.append(f"view {found} ({source})")
    if found != "LATERAL" and _faces(header)[:1] == "R":
        # not flipped: such a header is wrong as often as the film, and a side turned silently is worse than either
        steps.append(
            "the header says that the patient's left is on the left of the image (Patient Orientation): shown as stored"
        )
    return found


def _faces(header: pydicom.Dataset) -> str:
    """Where the rows run to (PS3.3 C.7.6.1.1.1): L, R, A, P, H or F first; empty unless columns run to head or feet."""
    value = header_value(header, "PatientOrientation")
    if not isinstance(value, MultiValue) or len(value) != 2:
        return ""
    along, down = (str(direction).upper() for direction in value)
    return along if down[:1] in ("F", "H") else ""


def _view_in_words(text: str) -> str | None:
    """The one view that a description names; None when it names several (a study of two films), or an oblique or
    decubitus one."""
    words = set(re.findall("[A-Z]+", text))
    if words & {"OBLIQUE", "OBL", "DECUBITUS", "DECUB", "LLD", "RLD", "LORDOTIC"}:
        return None
    found = set()
    if "PA" in words or "POSTEROANTERIOR" in words or {"POSTERO", "ANTERIOR"} <= words:
        found.add("PA")
    if "AP" in words or "ANTEROPOSTERIOR" in words or {"ANTERO", "POSTERIOR"} <= words:
        found.add("AP")
    if words & {"LAT", "LATERAL"}:
        found.add("LATERAL")
    return found.pop() if len(found) == 1 else None
