"""A procedural chest film of our own making, with a lesion at a known place and its true report.

No patient, no film and no report text went into it: it is drawn from a seed. Radiographic convention throughout: dense
is bright, and the left of the image is the PATIENT's right.

Anatomy lives in body coordinates: x from the midline in image widths (positive towards the image's right), y from the
top in image heights; `_Frame` turns them into pixels and tilts the patient by a degree or two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

LESIONS = (None, "nodule", "opacity", "effusion")
SIDES = ("left", "right")
SMALLEST = 128  # pixels, shorter side

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Phantom:
    """A drawn film and everything that is true of it.

    pixels   (height, width) float32 in [0, 1]
    lesion   None, "nodule", "opacity" or "effusion"
    side     the PATIENT's side of the lesion: "right" is the image's left half
    box      x, y, w, h of the lesion in pixels
    lungs    (height, width) bool: both lung fields as anatomy has them, the lesion's part included, the heart's not
    """

    pixels: Array
    lesion: str | None
    side: str | None
    box: tuple[int, int, int, int] | None
    lungs: Array
    findings: str
    impression: str

    def save_png(self, path: Path | str) -> None:
        """8-bit grey PNG."""
        _write(path, np.rint(self.pixels * 255).astype(np.uint8))

    def save_png16(self, path: Path | str) -> None:
        """16-bit grey PNG."""
        _write(path, np.rint(self.pixels * 65535).astype(np.uint16))

    def save_dicom(self, path: Path | str, *, monochrome1: bool = False, view: str = "PA") -> None:
        """A computed-radiography file (PS3.3 A.2): 12 bits of 16, explicit little endian, patient "Phantom"."""
        height, width = self.pixels.shape
        values = np.rint(self.pixels * 4095).astype("<u2")
        entropy = [values.tobytes().hex()[:4096], str(values.shape), str(monochrome1), view]
        study, series, instance = (
            generate_uid(entropy_srcs=[level, *entropy]) for level in ("study", "series", "image")
        )

        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.SOPClassUID, ds.SOPInstanceUID = ComputedRadiographyImageStorage, instance
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", view
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom", "PHANTOM", "", ""
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "1", "", ""
        ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber, ds.Laterality = "", 1, 1, ""
        # image rows run to the patient's left in a film read face to face; an AP film is shown the same way round
        ds.PatientOrientation = ["L", "F"]
        ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
        ds.ImagerPixelSpacing = [round(400 / height, 4)] * 2  # millimetres: the film is 40 cm tall
        ds.SamplesPerPixel, ds.Rows, ds.Columns = 1, height, width
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PhotometricInterpretation = "MONOCHROME1" if monochrome1 else "MONOCHROME2"
        ds.WindowCenter, ds.WindowWidth = 2048, 4096
        ds.PixelData = (4095 - values if monochrome1 else values).astype("<u2").tobytes()

        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, instance
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(path, ds, enforce_file_format=True)


def _write(path: Path | str, values: Array) -> None:
    done, encoded = cv2.imencode(".png", values)
    if not done:
        raise OSError(f"{path}: cannot encode the film as PNG")
    Path(path).write_bytes(encoded.tobytes())


def make_phantom(
    seed: int, *, height: int = 512, width: int = 448, lesion: str | None = "random", side: str = "random"
) -> Phantom:
    """Draw one film: the same seed and arguments give the same film; anatomy and exposure vary with the seed.

    lesion   None, "nodule", "opacity", "effusion" or "random" (each of the four equally often)
    side     the patient's "left" or "right", or "random"; without meaning where lesion is None
    """
    if min(height, width) < SMALLEST:
        raise ValueError(f"a phantom is at least {SMALLEST} pixels on its shorter side, not {height} × {width}")
    if lesion not in (*LESIONS, "random") or side not in (*SIDES, "random"):
        raise ValueError(f"unknown lesion {lesion!r} or side {side!r}")
    rng = np.random.default_rng([seed, height, width])
    # one stream a purpose: the anatomy of a seed is the same whatever lesion is asked for
    anatomy, disease, words, grain = rng.spawn(4)
    drawn_lesion, drawn_side = LESIONS[disease.integers(4)], SIDES[disease.integers(2)]
    lesion = drawn_lesion if lesion == "random" else lesion
    side = drawn_side if side == "random" else side

    chest = _Chest(_Frame(height, width, tilt=float(anatomy.uniform(-2.0, 2.0))), anatomy)
    density, box, place = chest.density, None, ""
    if lesion is not None:
        added, box, place = _LESIONS[lesion](chest, side, disease)
        density = density + added
    findings, impression = _report(lesion, side, place, words)
    return Phantom(
        pixels=_expose(density, anatomy, grain),
        lesion=lesion,
        side=side if lesion else None,
        box=box,
        lungs=chest.lungs,
        findings=findings,
        impression=impression,
    )


def phantom_set(n: int, seed: int = 0, **kw: Any) -> list[Phantom]:
    """n films, balanced over lesion × side (each run of eight holds each pair once), shuffled by the seed."""
    pairs = [(lesion, side) for lesion in LESIONS for side in SIDES]
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-n // len(pairs)))])[:n] if n else []
    seeds = rng.integers(2**31, size=n)
    return [
        make_phantom(int(own), lesion=pairs[pair][0], side=pairs[pair][1], **kw)
        for own, pair in zip(seeds, order, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class _Frame:
    """Body coordinates ↔ pixels."""

    height: int
    width: int
    tilt: float  # degrees

    @cached_property
    def _turn(self) -> tuple[float, float]:
        return float(np.cos(np.radians(self.tilt))), float(np.sin(np.radians(self.tilt)))

    @cached_property
    def grid(self) -> tuple[Array, Array]:
        """Body x and y of every pixel, each (height, width) float32."""
        cos, sin = self._turn
        right = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2)[None, :]
        down = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2)[:, None]
        return (cos * right + sin * down) / self.width, (cos * down - sin * right) / self.height + 0.5

    def pixel(self, x: Array, y: Array) -> Array:
        """Pixel coordinates (n, 2) of body points."""
        cos, sin = self._turn
        right, down = np.asarray(x) * self.width, (np.asarray(y) - 0.5) * self.height
        return np.stack(
            [cos * right - sin * down + self.width / 2, sin * right + cos * down + self.height / 2], axis=-1
        )

    def strokes(self, lines: list[tuple[Array, Array, float]]) -> Array:
        """Lines (x, y, thickness in image heights) as a (height, width) float32 layer in [0, 1]."""
        canvas = np.zeros((self.height, self.width), np.uint8)
        for x, y, thickness in lines:
            points = np.rint(self.pixel(x, y) * 16).astype(np.int32)[:, None]
            cv2.polylines(canvas, [points], False, 255, max(1, round(thickness * self.height)), cv2.LINE_AA, shift=4)
        return canvas.astype(np.float32) / 255


def _step(signed: Array, softness: float) -> Array:
    """0 outside, 1 inside, with a soft edge; signed > 0 is inside."""
    return np.clip(0.5 + signed / (2 * softness), 0, 1)


class _Chest:
    """A patient without disease: a density layer, the lung fields and where things are."""

    def __init__(self, frame: _Frame, rng: np.random.Generator) -> None:
        self.frame = frame
        self.x, self.y = frame.grid
        self.half_width = float(rng.uniform(0.365, 0.415))
        self.apex = float(rng.uniform(0.09, 0.13))
        self.base = {"right": float(rng.uniform(0.76, 0.81)), "left": float(rng.uniform(0.78, 0.83))}
        self.dome = float(rng.uniform(0.07, 0.11))
        self.midline = float(rng.uniform(-0.012, 0.012))
        heart_edge = float(rng.uniform(0.195, 0.245)) * self.half_width / 0.39
        heart = self._heart(heart_edge, rng)
        depth = {side: self._lung(side) for side in SIDES}
        fields = {side: depth[side] > 0 for side in SIDES}
        clear = heart < 0.5
        self.field = {side: fields[side] & clear for side in SIDES}  # each (height, width) bool
        self.lungs = self.field["left"] | self.field["right"]
        air = _step(np.maximum(depth["left"], depth["right"]), 0.008)
        self.density = self._draw(air, heart, rng)

    def lateral(self, y: Array) -> Array:
        """Distance of the lung's lateral border from the midline at height y."""
        t = np.clip((y - self.apex) / (0.62 - self.apex), 0, 1)
        return self.half_width * np.power(np.clip(1 - (1 - t) ** 2.3, 0, 1), 0.62)

    def diaphragm(self, side: str, out: Array) -> Array:
        """Height y of the diaphragm at a distance `out` from the midline: a dome, lowest in the costophrenic angle."""
        top = self.half_width * 0.42
        reach = np.where(out > top, self.half_width - top, top + 0.02)
        return self.base[side] - self.dome * np.clip(1 - ((out - top) / reach) ** 2, 0, 1)

    def outward(self, side: str) -> Array:
        """Distance of every pixel from the midline, positive on the side named (the PATIENT's)."""
        return (self.x - self.midline) * (1 if side == "left" else -1)

    def _lung(self, side: str) -> Array:
        out = self.outward(side)
        medial = 0.045 + 0.03 * np.clip((self.y - 0.2) / 0.4, 0, 1)
        inside = np.minimum(self.lateral(self.y) - out, out - medial)
        return np.minimum(inside, self.diaphragm(side, out) - self.y)

    def _heart(self, edge: float, rng: np.random.Generator) -> Array:
        """The heart (a tilted ellipse towards the patient's left), the aortic arch and the great vessels, in [0, 1]."""
        cx, cy = self.midline + edge * 0.36, float(rng.uniform(0.61, 0.64))
        angle = np.radians(rng.uniform(28, 40))
        x, y = self.x - cx, (self.y - cy) * 0.95
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        ellipse = 1 - np.sqrt((along / (edge * 0.80)) ** 2 + (across / (edge * 0.66)) ** 2)
        arch = 1 - np.sqrt(((self.x - self.midline - 0.048) / 0.042) ** 2 + ((self.y - 0.31) / 0.048) ** 2)
        stem = np.minimum(0.062 - np.abs(self.x - self.midline - 0.008), np.minimum(self.y - 0.22, 0.62 - self.y)) * 6
        return np.maximum(np.maximum(_step(ellipse, 0.06), _step(arch, 0.12)), _step(stem, 0.06) * 0.9)

    def _draw(self, air: Array, heart: Array, rng: np.random.Generator) -> Array:
        x, y = self.x - self.midline, self.y
        reach = np.interp(
            y[:, self.frame.width // 2], [0, 0.04, 0.10, 0.2, 0.36, 1], [0.14, 0.17, 0.37, 0.54, 0.52, 0.48]
        )
        body = _step(reach[:, None].astype(np.float32) - np.abs(x), 0.012)
        wall = 0.10 * np.clip(np.abs(x) / 0.45, 0, 1) ** 3  # more tissue is crossed towards the chest wall
        belly = 0.10 * np.clip((y - 0.7) / 0.3, 0, 1)
        density = body * (0.62 + wall + belly) - air * float(rng.uniform(0.40, 0.46))
        density += np.maximum(heart - 0.45 * (1 - air), 0) * air * float(rng.uniform(0.34, 0.40)) + 0.05 * heart
        spine = _step(0.042 - np.abs(x), 0.01) * (0.10 + 0.03 * np.cos(y * 2 * np.pi / 0.052))
        trachea = _step(0.018 - np.abs(x + 0.004), 0.006) * _step(0.36 - y, 0.02) * -0.13
        density += body * (spine + trachea)
        density += self._bones(body, rng) + self._vessels(air * (1 - heart), rng)
        return density.astype(np.float32)

    def _bones(self, body: Array, rng: np.random.Generator) -> Array:
        q = np.linspace(0, 1, 24)
        spacing, first = float(rng.uniform(0.064, 0.076)), float(rng.uniform(0.10, 0.13))
        edges, fronts, collar = [], [], []
        for sign in (-1.0, 1.0):
            for rib in range(9):
                y = first + rib * spacing - 0.022 * np.sin(np.pi * q) + (0.045 + 0.006 * rib) * q**2
                side_wall = self.lateral(np.array([first + rib * spacing + 0.05]))[0]
                x = self.midline + sign * (0.045 + q * max(side_wall - 0.035, 0.04))
                edges.append((x, y, 0.020))
                if 1 <= rib <= 7:
                    low = first + rib * spacing + 0.05 + 0.125 * q**1.3
                    fronts.append((self.midline + sign * (side_wall + 0.01 - q * (side_wall - 0.13)), low, 0.017))
            lift = float(rng.uniform(-0.012, 0.012))
            collar.append(
                (self.midline + sign * (0.04 + 0.40 * q), 0.155 + lift - 0.05 * q + 0.02 * np.sin(2 * np.pi * q), 0.024)
            )
        blur = 0.003 * self.frame.height
        thin = [(x, y, thickness * 0.45) for x, y, thickness in edges]
        shade = 0.075 * self.frame.strokes(edges) - 0.025 * self.frame.strokes(thin)
        shade += 0.035 * self.frame.strokes(fronts) + 0.11 * self.frame.strokes(collar)
        return cv2.GaussianBlur(shade * body, (0, 0), blur)

    def _vessels(self, air: Array, rng: np.random.Generator) -> Array:
        q = np.linspace(0, 1, 12)
        thick, thin = [], []
        for sign, hilum in ((-1.0, 0.445), (1.0, 0.425)):
            for _ in range(11):
                angle, length = float(rng.uniform(-1.25, 1.35)), float(rng.uniform(0.12, 0.26))
                bend = float(rng.normal(0, 0.03))
                x = self.midline + sign * (0.085 + length * q * np.cos(angle) + bend * q**2)
                y = hilum + length * q * np.sin(angle) + bend * q * (1 - q)
                thick.append((x[:6], y[:6], 0.011))
                thin.append((x, y, 0.005))
            knot = self.midline + sign * np.array([0.088, 0.100])
            thick.append((knot, np.array([hilum - 0.02, hilum + 0.045]), 0.032))
        layer = 0.075 * self.frame.strokes(thick) + 0.055 * self.frame.strokes(thin)
        return cv2.GaussianBlur(layer, (0, 0), 0.005 * self.frame.height) * air


def _expose(density: Array, anatomy: np.random.Generator, grain: np.random.Generator) -> Array:
    """Density → film: scatter, tube output and contrast of the day, grain."""
    height, width = density.shape
    contrast, brightness = anatomy.uniform(0.88, 1.08), anatomy.uniform(-0.03, 0.04)
    film = (density - 0.45) * contrast + 0.45 + brightness
    noise = grain.standard_normal((height, width), dtype=np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 1.2)
    film = film + 0.012 * noise + 0.02 * soft
    return np.clip(film + 0.02, 0, 1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- lesions

Added = tuple[Array, tuple[int, int, int, int], str]  # density (height, width), box, where it is in words


def _box(shape: Array) -> tuple[int, int, int, int]:
    x, y, w, h = cv2.boundingRect(shape.astype(np.uint8))
    return int(x), int(y), int(w), int(h)


def _centre(chest: _Chest, side: str, clearance: float, rng: np.random.Generator) -> tuple[float, float, str]:
    """A point of that lung at least `clearance` pixels from its border (or the best there is), and its zone."""
    field = np.pad(chest.field[side], 1).astype(np.uint8)
    depth = cv2.distanceTransform(field, cv2.DIST_L2, 3)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= min(clearance, 0.9 * float(depth.max())))
    pick = int(rng.integers(len(rows)))
    x, y = int(columns[pick]), int(rows[pick])
    top, bottom = np.flatnonzero(chest.field[side].any(axis=1))[[0, -1]]
    third = min(int(3 * (y - top) / max(bottom - top, 1)), 2)
    return float(x), float(y), ("upper", "mid", "lower")[third]


def _distance(chest: _Chest, x: float, y: float) -> Array:
    rows = (np.arange(chest.frame.height, dtype=np.float32) - y)[:, None]
    columns = (np.arange(chest.frame.width, dtype=np.float32) - x)[None, :]
    return np.hypot(rows, columns)


def _nodule(chest: _Chest, side: str, rng: np.random.Generator) -> Added:
    radius = float(rng.uniform(0.032, 0.055)) * min(chest.frame.height, chest.frame.width)
    x, y, zone = _centre(chest, side, 1.2 * radius, rng)
    disc = _step(radius - _distance(chest, x, y), max(0.12 * radius, 0.6))
    return disc * float(rng.uniform(0.24, 0.34)), _box(disc > 0.5), zone


def _opacity(chest: _Chest, side: str, rng: np.random.Generator) -> Added:
    radius = float(rng.uniform(0.085, 0.125)) * min(chest.frame.height, chest.frame.width)
    x, y, zone = _centre(chest, side, 0.8 * radius, rng)
    cloud = np.zeros(chest.density.shape, np.float32)
    for _ in range(7):  # overlapping puffs: an edge that cannot be drawn
        turn, away = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 0.6)) * radius
        spread = float(rng.uniform(0.35, 0.55)) * radius
        puff = _distance(chest, x + away * np.cos(turn), y + away * np.sin(turn))
        cloud = np.maximum(cloud, np.exp(-0.5 * (puff / spread) ** 2))
    cloud *= cv2.GaussianBlur(chest.field[side].astype(np.float32), (0, 0), 0.008 * chest.frame.height)
    return cloud * float(rng.uniform(0.26, 0.36)), _box(cloud > 0.35), zone


def _effusion(chest: _Chest, side: str, rng: np.random.Generator) -> Added:
    """Fluid in the costophrenic angle with a meniscus that climbs the chest wall."""
    out = chest.outward(side) / chest.half_width
    level = chest.base[side] - chest.dome - float(rng.uniform(-0.035, 0.03)) - 0.16 * np.clip(out - 0.3, 0, 1) ** 2.2
    fluid = _step(chest.y - level, 0.012)
    # fluid takes the place of air: it fills the lung up to the density of soft tissue and hides the diaphragm
    filled = (
        fluid * np.maximum(float(rng.uniform(0.62, 0.66)) - chest.density, 0) * (out > 0.05) * _step(1.04 - out, 0.03)
    )
    return filled, _box((fluid > 0.5) & chest.field[side]), "lower"


_LESIONS: dict[str, Callable[[_Chest, str, np.random.Generator], Added]] = {
    "nodule": _nodule,
    "opacity": _opacity,
    "effusion": _effusion,
}

# ---------------------------------------------------------------------------------------------------------- report

_FINDING = {
    "nodule": (
        "There is a rounded nodule in the {side} {zone} lung.",
        "A well-defined nodule projects over the {side} {zone} lung zone.",
        "A solitary pulmonary nodule is seen in the {side} {zone} lung zone.",
    ),
    "opacity": (
        "There is a patchy opacity in the {side} {zone} lung zone.",
        "An ill-defined airspace opacity is present in the {side} {zone} lung.",
        "Hazy opacity is seen in the {side} {zone} lung zone.",
    ),
    "effusion": (
        "There is a {side} pleural effusion with blunting of the costophrenic angle.",
        "The {side} costophrenic angle is blunted by a pleural effusion.",
        "A moderate {side} pleural effusion is present with a meniscus along the chest wall.",
    ),
}
_IMPRESSION = {
    "nodule": ("{Side} {zone} lung nodule.", "Solitary nodule in the {side} {zone} lung zone."),
    "opacity": ("{Side} {zone} lung opacity.", "Airspace opacity in the {side} {zone} lung zone."),
    "effusion": ("{Side} pleural effusion.", "Moderate {side} pleural effusion."),
    None: ("No acute cardiopulmonary abnormality.", "Normal chest radiograph.", "No acute disease of the chest."),
}
_LUNGS = {
    None: (
        "The lungs are clear.",
        "Both lungs are clear and well expanded.",
        "The lungs are clear without focal opacity.",
    ),
    # what is left to say of the lungs when the first sentence has named the lesion
    "nodule": ("The {other} lung is clear.", "The lungs are otherwise clear."),
    "opacity": ("The {other} lung is clear.", "The lungs are otherwise clear."),
    "effusion": ("The {other} lung is clear.", "The lungs are otherwise clear."),
}
_HEART = (
    "The heart is normal in size.",
    "Heart size is within normal limits.",
    "The cardiomediastinal silhouette is normal.",
)
_PLEURA = {
    "any": (
        "There is no pleural effusion or pneumothorax.",
        "No pleural effusion or pneumothorax is seen.",
        "Negative for pneumothorax or pleural effusion.",
    ),
    "effusion": ("There is no pneumothorax.", "No pneumothorax is seen."),
}
_BONES = ("The bony structures are intact.", "The visualized bones are unremarkable.", "No acute bony abnormality.")


def _report(lesion: str | None, side: str, zone: str, rng: np.random.Generator) -> tuple[str, str]:
    words = {"side": side, "Side": side.capitalize(), "zone": zone, "other": "left" if side == "right" else "right"}
    choices = [_LUNGS[lesion], _HEART, _PLEURA["effusion" if lesion == "effusion" else "any"], _BONES]
    if lesion is not None:
        choices.insert(0, _FINDING[lesion])
    sentences = [str(rng.choice(options)).format(**words) for options in choices]
    return " ".join(sentences), str(rng.choice(_IMPRESSION[lesion])).format(**words)
