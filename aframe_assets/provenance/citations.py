"""What a result must credit: the data it is made of, with their licence, and the software and methods it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aframe_assets.config import Config

CC_BY = "https://creativecommons.org/licenses/by/4.0/"
ACKNOWLEDGEMENT = "https://gwosc.org/acknowledgement/"
"""Where GWOSC keeps the text that papers are asked to print."""


@dataclass(frozen=True)
class Source:
    """Something that is credited.

    Attributes:
        id: address that identifies it, a DOI where there is one.
        name: what it is.
        cite: how it is cited, in one line.
        licence: address of its licence; empty where it has none of its own or it is not known here.
        kind: 'data', 'paper' or 'software'.
    """

    id: str
    name: str
    cite: str
    licence: str = ""
    kind: str = "data"


_OPEN_12 = Source(
    "https://doi.org/10.1016/j.softx.2021.100658",
    "Open data from O1 and O2",
    "R. Abbott et al. (LIGO Scientific Collaboration and Virgo Collaboration), SoftwareX 13, 100658 (2021)",
    kind="paper",
)
_OPEN_3 = Source(
    "https://doi.org/10.3847/1538-4365/acdc9f",
    "Open data from O3",
    "R. Abbott et al. (LIGO Scientific, Virgo and KAGRA Collaborations), Astrophys. J. Suppl. 267, 29 (2023)",
    kind="paper",
)
_OPEN_4A = Source(
    "https://arxiv.org/abs/2508.18079",
    "Open data from O4a",
    "A. G. Abac et al. (LIGO Scientific, Virgo and KAGRA Collaborations), arXiv:2508.18079 (2025)",
    kind="paper",
)
_OPEN_4B = Source(
    "https://arxiv.org/abs/2605.27090",
    "Open data from O4b",
    "LIGO Scientific, Virgo and KAGRA Collaborations, arXiv:2605.27090 (2026)",
    kind="paper",
)
_RUNS = (
    (1126051217, 1137254417, "O1", "https://gwosc.org/O1/", _OPEN_12),
    (1164556817, 1187733618, "O2", "https://gwosc.org/O2/", _OPEN_12),
    (1238166018, 1253977218, "O3a", "https://gwosc.org/O3/O3a/", _OPEN_3),
    (1256655618, 1269363618, "O3b", "https://gwosc.org/O3/O3b/", _OPEN_3),
    # these two releases begin before their runs, with times that single analyses used
    (1368195220, 1389456018, "O4a", "https://gwosc.org/O4/O4a/", _OPEN_4A),
    (1396417050, 1422118818, "O4b", "https://gwosc.org/O4/O4b/", _OPEN_4B),
)
"""GPS start and stop of releases of observing runs, the page where GWOSC describes each, and the paper it asks to cite.

The pages show the DOIs of data sets too; they are not repeated here, where nobody could check them against the page.
"""

_OPEN_CHANNEL = re.compile(r"(^|:)(GW|L)OSC-")
"""Channels of GWOSC's frames, as H1:GWOSC-4KHZ_R1_STRAIN and, of O1 and O2, H1:LOSC-STRAIN."""

SOFTWARE = (
    Source(
        "https://doi.org/10.1103/PhysRevD.111.042010",
        "Aframe",
        "E. Marx et al., Phys. Rev. D 111, 042010 (2025), arXiv:2403.18661",
        kind="paper",
    ),
    Source("https://github.com/ML4GW/ml4gw", "ml4gw", "The ML4GW developers, ml4gw", kind="software"),
    Source("https://doi.org/10.3847/1538-4365/ab06fc", "bilby", "G. Ashton et al., Astrophys. J. Suppl. 241, 27 (2019)", kind="paper"),
    Source("https://doi.org/10.1016/j.softx.2021.100657", "GWpy", "D. M. Macleod et al., SoftwareX 13, 100657 (2021)", kind="paper"),
    Source("https://doi.org/10.3847/1538-4357/ac7c74", "Astropy", "Astropy Collaboration, Astrophys. J. 935, 167 (2022)", kind="paper"),
    Source("https://doi.org/10.7935/GT1W-FZ16", "LALSuite", "LIGO Scientific, Virgo and KAGRA Collaborations, LALSuite", kind="software"),
)
"""What every search of this package rests on."""


def data_sources(config: Config, spans: Iterable[tuple[float, float]]) -> list[Source]:
    """The data sets of a search, each with its paper, in order of time.

    Args:
        config: says where strain comes from.
        spans: GPS [start, stop) of all stretches, training too.

    Returns:
        nothing for simulated noise. Real data outside of the known observing runs are credited to GWOSC. Of detector frames only
        GWOSC's channels are known to be public, whenever they were taken: internal ones may be calibrated or cleaned otherwise, and the
        rules of the collaborations hold for them.
    """
    if config.strain.source == "simulated":
        return []
    if config.strain.source == "frames" and not all(_OPEN_CHANNEL.search(name) for name in config.strain.channels.values()):
        cite = "Detector frames; the collaborations' own rules on data and authorship hold for them"
        return [Source("https://www.ligo.org/", "Strain that is not known to be public", cite)]
    spans = set(spans)
    out: list[Source] = []
    known: set[tuple[float, float]] = set()
    for start, stop, name, address, paper in _RUNS:
        inside = {s for s in spans if s[0] < stop and s[1] > start}
        known |= inside
        if inside:
            cite = f"LIGO Scientific, Virgo and KAGRA Collaborations, {name} data release, {address}"
            out += [Source(address, f"Strain of observing run {name}", cite, CC_BY), paper]
    if spans - known:
        cite = "Gravitational Wave Open Science Center, https://gwosc.org"
        out.append(Source("https://gwosc.org/", "Strain outside of the observing runs known here", cite, CC_BY))
    return list({s.id: s for s in out}.values())


def statement(config: Config, sources: Iterable[Source]) -> str:
    """A sentence on data and licence for the foot of a page."""
    data = [s for s in sources if s.kind == "data"]
    if config.strain.source == "simulated":
        return "The noise of this search is simulated: no detector data are in it."
    if not all(s.licence == CC_BY for s in data):
        return "Some of the strain is not known to be public; the rules of the collaborations whose detectors it is of hold for it."
    names = ", ".join(s.name for s in data)
    return f"{names}: Gravitational Wave Open Science Center (gwosc.org), licence CC BY 4.0; text to print with results: {ACKNOWLEDGEMENT}"
