"""Whether the SNR cut of the injections loses signals that the search would find."""

from __future__ import annotations

from dataclasses import dataclass

from aframe_assets.sensitivity.volume import Draws

WIDTH = 1.0
"""Range of network SNR above the cut whose accepted injections are looked at: 4 to 5 with the usual cut of 4 (reference 2.4)."""

SIGNIFICANCE = 0.00135
"""Probability of as many finds by accident below which they are no accident: 3 sigma, one-sided."""


@dataclass(frozen=True)
class QuietSignals:
    """Injections just above the SNR cut at one threshold.

    Attributes:
        cut: network SNR of the cut; signals up to `WIDTH` above it are counted.
        num, num_found: injected, and found.
        accidental: probability that noise alone finds an injection.
        probability: of `num_found` or more finds by accident (binomial); 1 without injections.
    """

    cut: float
    num: int
    num_found: int
    accidental: float
    probability: float

    @property
    def found_share(self) -> float | None:
        """None without injections."""
        return self.num_found / self.num if self.num else None

    @property
    def lost(self) -> bool:
        """More are found than by accident, so that some of the draws below the cut, which count as missed, would be found too."""
        return self.probability < SIGNIFICANCE

    @property
    def text(self) -> str:
        """The finding as a clause."""
        if not self.num:
            return f"no injection has an SNR of {self.cut:g} to {self.cut + WIDTH:g}: whether the SNR cut loses signals cannot be told"
        return (
            f"{self.found_share:.2%} of the {self.num} injections with SNR {self.cut:g} to {self.cut + WIDTH:g} are found, "
            f"{self.accidental:.2%} would be by accident"
            + (", so that quieter signals, which the SNR cut counts as missed, are found as well and V is too low" if self.lost else "")
        )


def quiet_signals(draws: Draws, threshold: float, accidental: float, cut: float) -> QuietSignals:
    """Count the accepted draws with SNR up to `WIDTH` above `cut`, and those of them at or above `threshold`.

    Args:
        cut: network SNR below which draws were rejected, waveforms.snr_threshold.
        accidental: probability of an accidental find at this threshold, FAR x 2 recovery windows.

    Raises:
        ValueError: draws without SNR.
    """
    from scipy.stats import binom

    if draws.snr is None:
        raise ValueError("draws have no SNR; expected the SNR that the injections were selected by")
    quiet = draws.accepted & (draws.snr >= cut) & (draws.snr < cut + WIDTH)
    num, found = int(quiet.sum()), int((quiet & (draws.statistic >= threshold)).sum())
    return QuietSignals(cut, num, found, accidental, float(binom.sf(found - 1, num, accidental)) if num else 1.0)
