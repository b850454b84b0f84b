"""Populations as files in bilby's syntax, read without evaluating or importing anything that a file names.

bilby's own reader imports what stands before a bracket and evaluates what stands in it. Here every line is parsed, and
only what is listed below passes; the priors are then made of bilby's classes by `aframe_assets.waveforms.priors`.

    mass_1_source = PowerLaw(alpha=-2.35, minimum=5, maximum=100)    a prior of bilby
    psi = 0                                                          a number stands for itself
    [0.9]                                                            from here on: a component of a mixture, with its weight

A frame is in the names, as in bilby: `mass_1_source`, `mass_2_source`, `chirp_mass_source` are masses in the source frame,
`mass_1`, `mass_2`, `chirp_mass` in the detector frame. What stands before the first weight all components share.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from aframe_assets.waveforms.literals import dotted, literal

Frame = Literal["source", "detector"]
FOLDER = Path(__file__).with_name("populations")

ANALYTIC = (
    *("Uniform", "LogUniform", "PowerLaw", "Gaussian", "Normal", "TruncatedGaussian", "TruncatedNormal", "HalfGaussian", "HalfNormal"),
    *("LogNormal", "LogGaussian", "Exponential", "Beta", "Gamma", "Triangular", "Sine", "Cosine", "DeltaFunction", "Interped"),
)
BOUNDED = ("ConditionalUniform", "ConditionalLogUniform", "ConditionalPowerLaw", "ConditionalTruncatedGaussian")
COSMOLOGICAL = ("UniformComovingVolume", "UniformSourceFrame")
CLASSES = (*ANALYTIC, *BOUNDED, *COSMOLOGICAL, "UniformInComponentsChirpMass", "UniformInComponentsMassRatio", "Constraint")
"""bilby's priors that a file may use. None of them reads a file or calls what it is given."""
_MODULES = ("bilby.core.prior.analytical.", "bilby.core.prior.conditional.", "bilby.core.prior.", "bilby.gw.prior.", "")
_SAYS_NOTHING = ("latex_label", "unit", "boundary")
"""Arguments that are for plots and samplers."""

DISTANCES = ("redshift", "luminosity_distance", "chirp_distance")
"""What may say how far a source is; `chirp_distance` is the luminosity distance that a binary of 1.4 + 1.4 solar masses would be as
loud at, luminosity distance x (1.2188 / detector-frame chirp mass)^(5/6), and needs detector-frame masses."""
ANGLES = ("a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl", "ra", "dec", "psi", "theta_jn", "phase")
DRAWN_MASSES = (("mass_1", "mass_2"), ("chirp_mass", "mass_ratio"))
FRAMED = ("mass_1", "mass_2", "chirp_mass", "total_mass")
"""Quantities that a redshift changes: `_source` is added to their names in the source frame."""
CONSTRAINED = (*FRAMED, "mass_ratio", "symmetric_mass_ratio")

ARGUMENTS: dict[str, Callable[..., dict[str, dict[str, float]]]] = {
    "gaussian_masses": lambda m1, m2, sigma=2.0: {
        "mass_1_source": {"mu": m1, "sigma": sigma},
        "mass_2_source": {"mu": m2, "sigma": sigma},
    },
    "log_normal_masses": lambda m1, m2, sigma=2.0: {
        "mass_1_source": {"mu": math.log(m1), "sigma": sigma},
        "mass_2_source": {"mu": math.log(m2), "sigma": sigma},
    },
}
"""Populations that take numbers, as `log_normal_masses(35, 20, 0.1)`: what these change in the file."""


FOR_VOLUME = (
    "a sensitive volume needs signals uniform in comoving volume or in the source frame (UniformComovingVolume, UniformSourceFrame) "
    "from an even sky: dec = Cosine() (or a band of it) and ra = Uniform(0, 2 * np.pi)"
)


def below_mass_1(reference_params: Mapping[str, float], mass_1: Any) -> dict[str, Any]:
    """Condition of a bilby prior: at most `mass_1`."""
    return {"minimum": reference_params["minimum"], "maximum": mass_1}


def below_mass_1_source(reference_params: Mapping[str, float], mass_1_source: Any) -> dict[str, Any]:
    """Condition of a bilby prior: at most `mass_1_source`."""
    return {"minimum": reference_params["minimum"], "maximum": mass_1_source}


CONDITIONS = {f.__name__: f.__name__.removeprefix("below_") for f in (below_mass_1, below_mass_1_source)}
CONDITIONS |= {f"{__name__}.{name}": variable for name, variable in CONDITIONS.items()}
CONDITIONS |= {"bilby.gw.prior.secondary_mass_condition_function": "mass_1"}
"""What `condition_func` may be, and the parameter it bounds by. With the module's name in front bilby finds it too."""


@dataclass(frozen=True)
class Line:
    """`name` = `kind`(*`values`, **`options`), line `number` of its file; `below` the parameter that bounds it from above."""

    name: str
    kind: str
    values: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    number: int
    below: str | None = None


@dataclass(frozen=True)
class PriorFile:
    """A population as written.

    Attributes:
        where: the file, for messages.
        frame: frame of the masses drawn.
        components: weights, which add to 1, and lines, the component's own before those all share.
    """

    where: str
    frame: Frame
    components: tuple[tuple[float, tuple[Line, ...]], ...]

    @property
    def volume_flaw(self) -> str | None:
        """Why no sensitive volume can be measured with these draws; None when it can.

        Redshifts must be uniform in comoving volume or in the source frame, and the sky, or a band of declinations, even.
        """
        bands = set()
        for _, lines in self.components:
            drawn = {line.name: line for line in lines}
            distance = next((drawn[d] for d in DISTANCES if d in drawn), None)
            if distance is None or distance.kind not in COSMOLOGICAL or distance.name == "chirp_distance":
                return f"{distance.name if distance else 'distance'} is drawn neither as {' nor as '.join(COSMOLOGICAL)}"
            for name, kind in (("dec", "Cosine"), ("ra", "Uniform")):
                if name not in drawn:
                    return f"{name} is not drawn, so it is 0 for every signal"
                if drawn[name].kind != kind:
                    return f"{name} is drawn as {drawn[name].kind}, not {kind}"
            low, high = _bounds(drawn["ra"], 0.0, 2 * math.pi)
            if abs(high - low - 2 * math.pi) > 1e-3:
                return f"ra from {low:g} to {high:g} does not go once around"
            low, high = _bounds(drawn["dec"], -math.pi / 2, math.pi / 2)
            if not low < high:
                return f"dec from {low:g} to {high:g} holds no sky"
            bands.add((low, high))
        return None if len(bands) == 1 else "its components draw different bands of declination"


def _bounds(line: Line, low: float, high: float) -> tuple[float, float]:
    """Minimum and maximum of a line of a prior that takes them first; `low` and `high` where it does not say."""
    given = dict(zip(("minimum", "maximum"), line.values, strict=False)) | dict(line.options)
    return float(given.get("minimum", low)), float(given.get("maximum", high))


def packaged() -> dict[str, Path]:
    """The files of the named populations: copy one, edit it, and give its path as the prior."""
    return {p.stem: p for p in sorted(FOLDER.glob("*.prior"))}


def path_of(name_or_path: str) -> Path | None:
    """The file behind what a configuration calls a prior; None where there is none."""
    word = _call(name_or_path)
    if word and word[1] in packaged():
        return packaged()[word[1]]
    path = Path(name_or_path)
    return path if path.is_file() else None


def read(name_or_path: str) -> PriorFile:
    """A named population (`demo_mixture`, `log_normal_masses(35, 20, 0.1)`) or a file.

    Raises:
        ValueError: unknown name, wrong numbers, or a file with anything that is not described above; with file and line.
    """
    path = path_of(name_or_path)
    if path is None:
        raise ValueError(f"prior '{name_or_path}' is neither a file nor one of {', '.join(packaged())}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read as text ({e})") from None
    word = _call(name_or_path)
    made = parse(text, str(path))
    if not (word and word[2] is not None and word[1] in packaged()):
        return made
    try:
        changes = ARGUMENTS[word[1]](*(float(x) for x in word[2].split(",") if x.strip()))
    except (TypeError, ValueError, KeyError):
        takes = " or ".join(f"{name}(mass_1, mass_2, sigma)" for name in ARGUMENTS)
        raise ValueError(f"prior '{name_or_path}': expected {takes} with positive numbers, or a name alone") from None
    return replace(made, components=tuple((w, tuple(_changed(line, changes) for line in lines)) for w, lines in made.components))


def parse(text: str, where: str) -> PriorFile:
    """The population that `text` describes; see the head of this module. Nothing in it is evaluated.

    Raises:
        ValueError: with `where`, line, and what is allowed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # backslashes in labels
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        _refuse(where, getattr(e, "lineno", None) or 1, "cannot be read; expected lines such as mass_1 = Uniform(minimum=5, maximum=100)")
    shared: list[Line] = []
    parts: list[tuple[float, list[Line]]] = []
    for node in body:
        try:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.List) and len(node.value.elts) == 1:
                parts.append((_weight(node.value.elts[0]), []))
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                (parts[-1][1] if parts else shared).append(_line(node.targets[0].id, node.value, node.lineno))
            else:
                raise ValueError("expected NAME = PRIOR(...), or [weight] before a component of a mixture")
        except (ValueError, TypeError, ArithmeticError, RecursionError) as e:
            _refuse(where, node.lineno, str(e))
    if parts:
        own = [line for _, lines in parts for line in lines if line.name in (*DISTANCES, "ra", "dec")]
        if own:
            _refuse(where, own[0].number, f"{own[0].name} is shared by all components; move it before the first [weight]")
        if abs(sum(weight for weight, _ in parts) - 1) > 1e-8:
            raise ValueError(f"{where}: the weights [...] add to {sum(weight for weight, _ in parts):.9g}; expected 1")
    components = tuple((weight, (*lines, *shared)) for weight, lines in parts) or ((1.0, tuple(shared)),)
    frames = [_frame(lines, where) for _, lines in components]
    if len(set(frames)) > 1:
        raise ValueError(f"{where}: components in the source and in the detector frame; expected one frame")
    return PriorFile(where, frames[0], components)


def _call(text: str) -> re.Match[str] | None:
    return re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", str(text))


def _refuse(where: str, line: int, why: str) -> NoReturn:
    raise ValueError(f"{where}, line {line}: {why}")


def _weight(node: ast.expr) -> float:
    value = literal(node)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"weight [{ast.unparse(node)}]: expected a number in (0, 1]")
    return float(value)


def _line(name: str, node: ast.expr, number: int) -> Line:
    if not isinstance(node, ast.Call):
        value = literal(node)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} = {ast.unparse(node)}: expected a number or a prior of bilby: {', '.join(CLASSES)}")
        return Line(name, "DeltaFunction", (), (("peak", value), ("name", name)), number)
    called = dotted(node.func) or ast.unparse(node.func)
    module, kind = next((m, called.removeprefix(m)) for m in _MODULES if called.startswith(m))
    if kind not in CLASSES:
        raise ValueError(f"{name}: '{module}{kind}' is not allowed; expected one of bilby's {', '.join(CLASSES)}")
    options: dict[str, Any] = {}
    below = None
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"{name}: '{ast.unparse(keyword)}' is not allowed; expected name=value")
        if keyword.arg == "condition_func":
            below = _condition(name, keyword.value)
        elif keyword.arg not in _SAYS_NOTHING:
            options[keyword.arg] = _value(keyword.value)
    if options.pop("name", name) != name:
        raise ValueError(f"{name}: the prior's own name differs; expected name='{name}' or none")
    if (kind in BOUNDED) != (below is not None):
        raise ValueError(f"{name}: condition_func belongs to {', '.join(BOUNDED)}, and these need it: {', '.join(CONDITIONS)}")
    if kind in COSMOLOGICAL:
        if name not in DISTANCES[:2]:
            raise ValueError(f"{name}: {kind} is a prior of {' or '.join(DISTANCES[:2])}")
        if options.setdefault("cosmology", "Planck15") != "Planck15":
            raise ValueError(f"{name}: cosmology '{options['cosmology']}'; expected 'Planck15', with which volumes are computed")
    options["name"] = name
    return Line(name, kind, tuple(_value(a) for a in node.args), tuple(options.items()), number, below)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(literal(n) for n in node.elts)
    if isinstance(node, ast.Call) and dotted(node.func) == "np.log" and len(node.args) == 1 and not node.keywords:
        return math.log(literal(node.args[0]))
    return literal(node)


def _condition(name: str, node: ast.expr) -> str:
    text = node.value if isinstance(node, ast.Constant) else dotted(node)
    if text not in CONDITIONS:
        raise ValueError(f"{name}: condition_func={ast.unparse(node)} is not allowed; expected one of {', '.join(CONDITIONS)}")
    return CONDITIONS[text]


def _changed(line: Line, changes: Mapping[str, Mapping[str, float]]) -> Line:
    return replace(line, options=tuple((dict(line.options) | dict(changes.get(line.name, {}))).items()))


def _frame(lines: tuple[Line, ...], where: str) -> Frame:
    """The frame of the masses drawn; refuses what a signal has no place for."""
    seen: dict[str, Line] = {}
    for line in lines:
        if line.name in seen:
            _refuse(where, line.number, f"{line.name} is also on line {seen[line.name].number}; expected it once")
        seen[line.name] = line
    drawn = {line.name for line in lines if line.kind != "Constraint"}
    pairs = {(s, pair): {f"{k}{s}" if k in FRAMED else k for k in pair} for s in ("", "_source") for pair in DRAWN_MASSES}
    chosen = [(suffix, pair) for (suffix, pair), names in pairs.items() if names <= drawn]
    if not chosen:
        wanted = "; or ".join(" and ".join(sorted(names)) for names in pairs.values())
        mixed = next((f"{a} and {b}_source" for a in FRAMED for b in FRAMED if {a, f"{b}_source"} <= drawn), None)
        if mixed:
            raise ValueError(f"{where}: {mixed}: mixes frames; expected {wanted}")
        draws = f"it draws {', '.join(sorted(drawn))}" if drawn else "it draws nothing"
        raise ValueError(
            f"{where}: a population without masses of both bodies ({draws}) cannot be used by the waveform "
            f"generators here; expected {wanted}"
        )
    suffix, pair = chosen[0]
    masses = pairs[suffix, pair]
    constrained = {f"{k}{suffix}" if k in FRAMED else k for k in CONSTRAINED}
    for line in lines:
        what, names = ("constraints on", constrained) if line.kind == "Constraint" else ("priors of", {*ANGLES, *DISTANCES, *masses})
        if line.name not in names:
            beside = " and ".join(sorted(masses))
            _refuse(where, line.number, f"{line.name}: beside {beside} expected {what} {', '.join(sorted(names))}")
        if line.below and line.below not in drawn:
            _refuse(where, line.number, f"{line.name} is bounded by {line.below}, which has no prior")
    if len(drawn & {*DISTANCES}) != 1:
        raise ValueError(f"{where}: expected a prior of redshift, of luminosity_distance or of chirp_distance, one of them")
    if "chirp_distance" in drawn and suffix:
        line = seen["chirp_distance"].number
        _refuse(where, line, "chirp_distance needs detector-frame masses; expected redshift or luminosity_distance")
    return "source" if suffix else "detector"
