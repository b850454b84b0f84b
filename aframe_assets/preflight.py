"""What the files that an experiment names hold, and whether its engine is installed, looked at before anything starts.

Most of them are read late in the graph, a catalogue after days of search. `preflight` reads each with the reader that the graph
uses, so that a bad one is refused while it costs nothing. Only what the experiment names is read, and only its reader imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aframe_assets.config_load import preset
from aframe_assets.engine.support import not_installed

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.waveforms.priors import Prior


def preflight(config: Config) -> list[str]:
    """Everything that is wrong with the files and the platform that `config` names, a line each with its key; empty when nothing is.

    Read are segment lists, gates, catalogues, geometries of detectors, bundles and files of weights, and populations that are not named
    ones alone, with draws of them; where the population or the mass pairs are not the preset's, whether the pairs lie where injections are
    drawn. A network of another package is built and exported once, untrained. The first round of a study is asked.

    Args:
        config: with absolute paths, as `load_config` gives it.
    """
    out: list[str] = []

    def look(key: str, value: Any, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except UnicodeDecodeError:
            why = f"{value}: cannot be read as text"
        except (ValueError, OSError) as e:
            why = str(e)
        except Exception as e:  # libraries that read some formats raise anything
            why = f"{value}: {type(e).__name__}: {e}"
        words = " ".join(why.split())
        out.append(words if words.startswith(f"{key} = ") else f"{key}: {words}")
        return None

    _segment_lists(config, look)
    _catalogues(config, look)
    if config.detectors:
        from aframe_assets.waveforms.detectors import get_detector

        for ifo, file in config.detectors.items():
            look(f"detectors.{ifo}", file, lambda ifo=ifo, file=file: get_detector(ifo, file))
    _populations(config, look)
    _weights(config, look)
    _own_networks(config, look)
    _study(config, look)
    lacking = not_installed(config.engine.platform)
    if lacking:
        out.append(f"engine.platform: {config.engine.platform}: {lacking}")
    return out


def _segment_lists(config: Config, look: Callable[..., Any]) -> None:
    vetoes, named = config.vetoes, config.segments.files if config.segments.source == "files" else {}
    lists = [("segments.files", ifo, path) for ifo, path in named.items()]
    lists += [("vetoes.files", ifo, path) for ifo, paths in vetoes.files.items() for path in paths]
    if lists:
        from aframe_assets.segments.query import read_segments

        for key, ifo, path in lists:
            look(f"{key}.{ifo}", path, lambda path=path, key=key: read_segments(path, key))
    if vetoes.gates:
        from aframe_assets.segments.vetoes import read_gates

        for ifo, path in vetoes.gates.items():
            look(f"vetoes.gates.{ifo}", path, lambda path=path: read_gates(path))


def _catalogues(config: Config, look: Callable[..., Any]) -> None:
    from aframe_assets.segments.catalog import PACKAGED, catalogs

    several = config.sensitivity.catalog
    named = [("vetoes.catalog", config.vetoes.catalog), ("inference.exclude_catalog", config.inference.exclude_catalog)]
    named += [("sensitivity.catalog", name) for name in ([several] if isinstance(several, str) else several or [])]
    for key, name in named:
        if name and name != PACKAGED:
            look(key, name, lambda name=name: catalogs(name))


def _own_networks(config: Config, look: Callable[..., Any]) -> None:
    from aframe_assets.model.own_networks import is_registered

    trained = {
        "model.architecture": None if config.model.weights else config.model.architecture,
        "model.filter": None if config.model.filter_weights else config.model.filter,
    }
    for key, architecture in trained.items():
        if architecture is not None and is_registered(architecture.name):
            from aframe_assets.model.networks import Sky, require_usable

            look(f"{key}.name", architecture.name, lambda a=architecture: require_usable(a, Sky.of(config)))


def _study(config: Config, look: Callable[..., Any]) -> None:
    if config.model.tune is None or config.model.weights:
        return

    def first_round() -> None:
        from aframe_assets.model.tuning import ask

        try:
            ask(config, [], 0)
        except ModuleNotFoundError as e:
            raise ValueError(f"{e.name} is not installed; pip install 'aframe-dagster[tune]'") from None

    look("model.tune", config.model.tune.space, first_round)


def _weights(config: Config, look: Callable[..., Any]) -> None:
    from aframe_assets.model.importing import KEYS, PRETRAINED, check_agreement, find_bundle, is_weight_file

    def require_bundle(weights: str, asset: str) -> None:
        folder, own = find_bundle(weights, asset), config
        if weights != PRETRAINED:
            from aframe_assets.model.bundle import load_bundle

            load_bundle(folder)
        if asset == "filter_model":
            from aframe_assets.model.background_scores import filter_experiment

            own = filter_experiment(config)
        check_agreement(folder, own, asset)

    if is_weight_file(config.model.weights):
        from aframe_assets.model.weight_files import network_of_file, read_weight_file

        look("model.weights", config.model.weights, lambda: network_of_file(read_weight_file(config.model.weights), config))
    # the models of a comparison have been looked at, and the run's own is none of them
    named = {} if config.comparison.models else {"model": config.model.weights, "filter_model": config.model.filter_weights}
    for asset, weights in named.items():
        if weights and not is_weight_file(weights):
            look(KEYS[asset][0], weights, lambda weights=weights, asset=asset: require_bundle(weights, asset))


def _populations(config: Config, look: Callable[..., Any]) -> None:
    from aframe_assets.waveforms.prior_files import packaged

    named = {
        "waveforms.prior": config.waveforms.prior,
        "waveforms.validation_prior": config.waveforms.validation_prior,
        "injections.prior": config.injections.prior,
    }
    own = {key: name for key, name in named.items() if name and name not in packaged()}
    if not config.model.trains:
        own = {key: name for key, name in own.items() if key == "injections.prior"}
    base = preset(config.preset)
    pairs = base.get("sensitivity", {}).get("mass_combos", type(config.sensitivity)().mass_combos)
    prior = base.get("injections", {}).get("prior", type(config.injections)().prior)
    new = [tuple(p) for p in pairs] != list(config.sensitivity.mass_combos) or prior != config.injections.prior
    if not own and not new:
        return
    from aframe_assets.waveforms.priors import get_prior, require_possible

    usable = True
    for key, name in own.items():
        fine = look(key, name, lambda name=name: require_possible(get_prior(name)))
        usable = usable and (fine is not None or key != "injections.prior")
    if usable and new and config.injections.num_signals:
        look("sensitivity.mass_combos", config.sensitivity.mass_combos, lambda: _require_draws(config, get_prior(config.injections.prior)))


def _require_draws(config: Config, prior: Prior) -> None:
    import numpy as np

    from aframe_assets.sensitivity.population import LogNormalPair, Population

    sigma, population = config.sensitivity.target_sigma, Population.of(prior)
    steps = np.exp(sigma * np.linspace(-4, 4, 33))
    outside = []
    for a, b in config.sensitivity.mass_combos:
        pair = LogNormalPair(a, b, sigma)
        m1, m2 = (x.ravel() for x in np.meshgrid(a * steps, b * steps))
        # A density that falls off for ever has draws nowhere near a far pair either: signals in an area as wide as the target.
        densest = max(float(population.log_density(m1, m2, np.full(m1.shape, z)).max()) for z in population.redshift_range)
        signals = config.injections.num_signals * np.exp(densest) * 2 * np.pi * sigma**2 * a * b
        if pair.support(population)[0] == 0 or signals < 1e-6:
            outside.append(pair.label)
    if outside:
        raise ValueError(
            f"{', '.join(outside)}: the population of injections, {prior.name}, has no draws there; expected pairs inside it, or another "
            "injections.prior"
        )
