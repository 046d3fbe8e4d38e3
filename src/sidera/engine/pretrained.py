"""A trained recommender as a folder in the layout of Hugging Face, and back: local folders, nothing is sent anywhere.

    sidera.save_pretrained("runs/shop", "exported/shop")
    recommender = sidera.from_pretrained("exported/shop")       # answers as the run does
    run_of_pretrained("exported/shop", "runs/shop-again")       # a run folder, which every verb opens

``config.json`` says what the network is and how it is searched, ``model.safetensors`` holds its weights, ``README.md``
is a model card made from what the run knows of itself, ``catalog/`` are the items and their codes, without which the
weights mean nothing, ``expert/`` the counts beside the model, where the run has them. The manifest beside them has the
digests of all of these: a file that was cut off or edited is noticed before it is used. Who writes a longer README.md
changes no answer. A TIGER also goes out and in as a T5 of transformers (``models/generators/tiger_t5.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sidera
from sidera import artifacts
from sidera.bounds import shown
from sidera.catalog.catalog import Catalog
from sidera.config import written
from sidera.core import ArtifactError, InputError
from sidera.engine.expert import FOLDER as EXPERT
from sidera.engine.recommender import DEFAULT_BEAM, Recommender
from sidera.engine.run_folder import RUN_RECIPE, beam_of_run
from sidera.engine.serving import Parts, ServeConfig, open_steps
from sidera.engine.versions import current_folder
from sidera.loading import Opened, open_artifact
from sidera.models import RANKING, build_model, parse_model, role_of
from sidera.models.generators import tiger_t5
from sidera.ops.budget import budget_of
from sidera.ops.weights import put_weights

KIND = "pretrained"
CONFIG, WEIGHTS, CARD, CATALOG = "config.json", "model.safetensors", "README.md", "catalog"
FACTS = ("parameters", "steps", "best_step", "fit", "cpu_minutes", "precision")  # of a training, for the card


def save_pretrained(run: str | Path, folder: str | Path) -> Path:
    """Write the current version of a run to ``folder``, new, empty or written by this.

    InputError for a run that ranks candidates; ArtifactError for one that is damaged. Nothing is left half-written.
    """
    run, folder = Path(run), Path(folder)
    version = current_folder(run) if run.is_dir() else run
    opened = open_artifact(version / "model", "model")
    section = opened.recipe("model", dict)
    if role_of(parse_model(section)[0]) in RANKING:
        problem = f"{run} holds {section['name']!r}, which ranks candidates"
        raise InputError(problem, fix="save the model that finds them")
    recommender = Recommender.load(version)
    beam = beam_of_run(version) if recommender.snapshot.generates and (version / RUN_RECIPE).is_file() else DEFAULT_BEAM
    config = {
        "model_type": "sidera", "architectures": [type(recommender.model).__name__],
        "sidera_version": sidera.__version__, "model": section, "num_items": recommender.num_known,
        "codebook_id": recommender.catalog.codebook_id,
        "features": recommender.catalog.schema.digest, "beam": beam, "search": recommender.search,
        "version": opened.manifest.digest,
    }  # fmt: skip
    manifest = artifacts.Manifest(KIND, opened.manifest.digest, parents={"model": opened.manifest.digest})
    with artifacts.writing(folder, manifest) as staging:
        artifacts.write_tensors(recommender.snapshot.trained.state_dict(), staging / WEIGHTS)
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (staging / CARD).write_text(model_card(version, opened, config, recommender.catalog), encoding="utf-8")
        recommender.catalog.save(staging / CATALOG)
        if (version / EXPERT).is_dir():
            shutil.copytree(version / EXPERT, staging / EXPERT)
    return folder


def from_pretrained(folder: str | Path, device: str = "cpu") -> Recommender:
    """What :func:`save_pretrained` wrote, ready to answer; ArtifactError, in one line, for a folder that is damaged."""
    folder = Path(folder)
    opened = open_artifact(folder, KIND)
    config = opened.json(CONFIG, dict)
    catalog = Catalog.load(folder / CATALOG)

    def of(name: str, kind: type, low: int = 0) -> Any:
        return opened.typed(config, name, kind, low)

    section, number = of("model", dict), of("num_items", int, 1)
    catalog.check_codebook(of("codebook_id", str))
    catalog.check_features(of("features", str))
    if number > catalog.num_items:
        raise opened.damaged(f"it knows {number:,} items, the catalogue holds {catalog.num_items:,}")
    tensors = opened.tensor_file(WEIGHTS)
    with opened.believed(), budget_of(tensors):
        name, settings = parse_model(section)
        network = build_model(name, settings, catalog.at_training(number))
    put_weights(network, tensors, opened.damaged)
    recommender = Recommender(
        network.eval(), catalog, model_section=section, beam=of("beam", int, 1), search=of("search", str),
        device=device, num_known=number, version=of("version", str),
    )  # fmt: skip
    recommender.parts = Parts(open_steps(folder, ServeConfig(), recommender.snapshot))
    return recommender


def run_of_pretrained(folder: str | Path, run: str | Path) -> Recommender:
    """Make a new run folder of what :func:`save_pretrained` wrote. InputError where ``run`` holds something."""
    return _write_run(from_pretrained(folder), run, Path(folder) / EXPERT)


def save_t5(run: str | Path, folder: str | Path) -> Path:
    """Write the TIGER of a run as a T5 of transformers to a new or empty folder. InputError for another model."""
    recommender = Recommender.load(current_folder(Path(run)) if Path(run).is_dir() else run)
    return tiger_t5.save_t5(recommender.snapshot.trained, folder)


def run_of_t5(folder: str | Path, run: str | Path, catalog: Catalog, max_history: int) -> Recommender:
    """Make a new run folder of a T5 over the codes of ``catalog``: its ``save_pretrained``, or :func:`save_t5`."""
    model = tiger_t5.load_t5(folder, catalog, max_history)
    section, weights = {"name": "tiger", **written(model.config)}, Path(folder) / tiger_t5.WEIGHTS
    with open(weights, "rb") as file:
        version = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    recommender = Recommender(model, catalog, model_section=section, version=version)
    return _write_run(recommender, run)


def _write_run(recommender: Recommender, run: str | Path, expert: Path | None = None) -> Recommender:
    """The model last: a folder without one is no run."""
    run = Path(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{str(run)!r} is there already", fix="name a new folder")
    recommender.catalog.save(run / CATALOG)
    searched = {"beam": recommender.beam, "search": recommender.search}
    recipe = {"model": dict(recommender.snapshot.section), "eval": searched}
    artifacts.write_text(run / RUN_RECIPE, json.dumps(recipe, indent=2) + "\n")
    if expert is not None and expert.is_dir():
        shutil.copytree(expert, run / EXPERT)
    recommender.save_model(run / "model", digest=recommender.version, parents={})
    return recommender


def model_card(version: Path, opened: Opened, config: Mapping[str, Any], catalog: Catalog) -> str:
    """README.md: what the model is, what its training cost, what was measured, and how it is asked."""
    name, training = str(config["model"]["name"]), opened.info("training", dict)
    facts = {
        "model": name,
        "items": f"{catalog.num_items:,}, {int(catalog.removed.sum()):,} of them removed",
        "codes": " x ".join(map(str, catalog.level_sizes)) or "none",
        "codebook": config["codebook_id"],
        "weights": opened.manifest.digest,
        "data": str(opened.manifest.parents.get("data", "unknown")),
    }
    facts |= {key.replace("_", " "): f"{training[key]}" for key in FACTS if training.get(key) is not None}
    keys = [f"| `{key}` | `{shown(value)}` |" for key, value in sorted(config["model"].items())]
    tags = "tags: [recommendation, generative-recommendation, semantic-ids]"
    parts = [
        f"---\nlibrary_name: sidera\n{tags}\n---\n\n# {name}",
        "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]),
        "## Settings of the network",
        "\n".join(["| key | value |", "|---|---|", *keys]),
        "## Measured",
        measured(version),
        "## Ask it",
        '```python\nimport sidera\n\nrecommender = sidera.from_pretrained("this folder")\n'
        'recommender.recommend([["an item key", "another"]], k=10)\n```',
        "Items come and go without training: `recommender.use_catalog(recommender.catalog.with_items(...))`.",
    ]
    return "\n\n".join(parts) + "\n"


def measured(version: Path) -> str:
    """The official evaluation as a table, or that there is none."""
    try:
        record = open_artifact(version / "evaluation", "evaluation").json("metrics.json", dict)
        protocol, seen_modes = record["protocol"], record["metrics"]
        names = [name for name in next(iter(seen_modes.values())) if name.startswith(("recall", "ndcg"))]
        rows = []
        for name in names:
            rows.append(" | ".join(["", name, *(_cell(metrics[name]) for metrics in seen_modes.values()), ""]).strip())
        head = " | ".join(f"history {'kept' if seen == 'keep' else 'left out'}" for seen in seen_modes)
        what = f"{protocol['dataset']}, {protocol['split']}, {protocol['which']}, {protocol['rows']:,} rows"
    except (ArtifactError, LookupError, TypeError, StopIteration):
        return "Not measured."
    table = "\n".join([f"| | {head} |", "|---" * (len(seen_modes) + 1) + "|", *rows])
    return f"{what}; full ranking, item-level hits; in brackets 95 % intervals over users.\n\n{table}"


def _cell(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"
