"""A closer look at single candidates: strain, network and data quality at each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.vetoes import Veto
from aframe_assets.sensitivity.candidates import FLAG_WINDOW
from aframe_assets.sensitivity.contributions import Response, respond
from aframe_assets.sensitivity.surroundings import Quality, edges, qualities, surroundings

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.store.job import Job
    from aframe_assets.strain.background_file import StrainFile
    from aframe_assets.strain.psd import Spectrum

AGREE = 0.02
"""Difference of a statistic from that of the search, relative to 1 or to itself, beyond which it is told."""


@dataclass(frozen=True)
class Examination:
    """What there is to see at a candidate.

    Attributes:
        rank: of the candidate.
        strain, output: pictures of the strain and of the network's output as PNG bytes, or None.
        response: of the network, or None.
        qualities: of each detector's data.
        vetoes: vetoed time within FLAG_WINDOW.
        place: where in its stretch it lies, in words.
        notes: what could not be looked at, and what does not agree.
    """

    rank: int
    strain: bytes | None = None
    output: bytes | None = None
    response: Response | None = None
    qualities: tuple[Quality, ...] = ()
    vetoes: tuple[Veto, ...] = ()
    place: str = ""
    notes: tuple[str, ...] = ()


def chosen(candidates: Sequence[Mapping[str, Any]], pages: int) -> list[Mapping[str, Any]]:
    """Candidates that get a page: the `pages` loudest, and as many more of those that match a catalogue."""
    loud = list(candidates[:pages])
    return loud + [c for c in candidates[pages:] if c["matches"]][:pages]


def examine(
    candidate: Mapping[str, Any],
    file: StrainFile,
    engine: Any | None,
    config: Config,
    calibration: Calibration | None,
    references: Mapping[str, Spectrum],
    vetoes: Sequence[Veto] = (),
) -> Examination:
    """Looks at one candidate.

    Args:
        candidate: a row of candidates.json.
        file: background strain of the chunk that it lies in.
        engine: the search's network, or None.
        config: of the search.
        calibration: of merger times.
        references: reference spectra by detector.
        vetoes: of the search.

    Raises:
        StrainError: a damaged file.
    """
    from aframe_assets.sensitivity.event_plots import LARGE, output_png, strain_png

    time, notes = candidate["detection_time"], []
    about = surroundings(file, config, time)
    response = None if engine is None else respond(about, engine, config, time, calibration)
    if response is not None and not abs(response.statistic - candidate["detection_statistic"]) <= AGREE * max(1, abs(response.statistic)):
        notes.append(
            f"Scored again for this page, the statistic is {response.statistic:.3f}, not {candidate['detection_statistic']:.3f}: "
            "the engine answers otherwise on this machine, or the strain has changed."
        )
    # without a plateau the middle of the window that was seen is the best guess
    centre = response.merger[0] if response and response.merger else time + config.inference.integration_window_length / 2
    near = tuple(v for v in vetoes if v.start <= time + FLAG_WINDOW and v.stop >= time - FLAG_WINDOW)
    return Examination(
        candidate["rank"],
        strain_png(about, config.conditioning, time, centre=centre, dpi=LARGE),
        output_png(response, time, centre) if response is not None and len(response.times) else None,
        response,
        tuple(qualities(about, centre, references)),
        near,
        edges(about, time),
        tuple(notes),
    )


def examinations(job: Job, candidates: Sequence[Mapping[str, Any]], vetoes: Sequence[Veto] = ()) -> list[Examination]:
    """Looks at each of `candidates`; what cannot be looked at is noted, and is no reason to fail.

    Args:
        job: of an asset that reads background_index, psd, engine and events.
        candidates: rows of candidates.json.
        vetoes: of the search.
    """
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.strain.background_index import INDEX_FILE, BackgroundIndex

    if not candidates:
        return []
    chunks = BackgroundIndex.read(job.path("background_index", INDEX_FILE)).of("test")
    engine, trouble = _engine(job)
    references = _references(job)
    calibration = Calibration.from_meta(job.handle("events").meta["merger_time_calibration"])
    calibration = calibration if calibration.num else None
    out = []
    for c in candidates:
        time = c["detection_time"]
        chunk = next((x for x in chunks if x.gps_start <= time < x.gps_start + x.duration), None)
        try:
            if chunk is None:
                raise LookupError("no background of its time is listed")
            seen = examine(c, _open(job, chunk), engine, job.config, calibration, references, vetoes)
        except (LookupError, OSError, RuntimeError, ValueError) as e:
            job.log.warning("candidate %d at GPS %.3f cannot be looked at: %s", c["rank"], time, e)
            seen = Examination(c["rank"], notes=(f"The strain about it cannot be shown: {e}",))
        notes = (*seen.notes, *([trouble] if trouble else []))
        out.append(seen if notes == seen.notes else Examination(**{**vars(seen), "notes": notes}))
    return out


def _open(job: Job, chunk: Any) -> StrainFile:
    """The chunk's strain, of which a remote store sends only what is read."""
    from aframe_assets.strain.background_file import StrainFile
    from aframe_assets.strain.background_index import require_chunk

    return StrainFile.open(job.store.open_ranges(require_chunk(job, chunk), chunk.file_name), job.config.ifos)


def _engine(job: Job) -> tuple[Any | None, str]:
    """The search's engine, or why there is none here."""
    from aframe_assets.engine.engine import load_engine

    try:
        return load_engine(job.path("engine")), ""
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as e:
        job.log.warning("the engine cannot be opened on this machine (%s): pages of candidates are without the network's output", e)
        return None, f"The search's engine cannot be opened on the machine that made this report: {e}"


def _references(job: Job) -> dict[str, Spectrum]:
    from aframe_assets.strain.psd import Spectrum, read_psd
    from aframe_assets.strain.stretch import StrainError

    try:
        found = read_psd(job.path("psd", "psd.hdf5"), "test", job.config.ifos)
    except StrainError:
        return {}
    return {ifo: Spectrum(f, psd) for ifo, (f, psd) in found.items()}
