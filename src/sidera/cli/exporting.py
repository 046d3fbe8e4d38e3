"""The verb ``export``: an answer's work as native code."""

from __future__ import annotations

from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_verb


def export_verb(arguments: Arguments) -> dict[str, Any]:
    """Compile, compare, sign."""
    from dataclasses import asdict

    from sidera.engine import versions
    from sidera.engine.compiling import check_exportable, export_run
    from sidera.engine.recommender import Recommender
    from sidera.engine.serving import ServeConfig

    folder = versions.current_folder(arguments.run)
    recommender = Recommender.load(folder, beam=arguments.beam, serve=ServeConfig(compiled=False))
    check_exportable(recommender.snapshot)
    asked = recommender.pipeline.asked(recommender.catalog.trie)
    done = export_run(
        folder, recommender.snapshot, asked, minutes=arguments.minutes, requests=arguments.requests, key=arguments.key
    )
    for name, why in done.refused.items():
        console.warn(f"{name} stays as it is: {why}")
    console.say(
        f"{done.out}: {', '.join(done.programs)}; {done.parity.equal:.1%} of {done.parity.requests} answers equal,"
        f" scores off by at most {done.parity.off:.1e}; sidera serve {arguments.run} opens it"
    )
    return asdict(done)


def add_export(verbs: Verbs) -> None:
    text = "compile what an answer costs; serve opens it where it was made, or with its key"
    parser = add_verb(verbs, "export", export_verb, text)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--beam", type=int, help="width of the search; default: the run's")
    parser.add_argument("--minutes", type=float, default=20.0, metavar="M", help="end the compiler after so long")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="compared with the model's answers")
    parser.add_argument("--key", metavar="FILE", help="key that signs; default: this machine's own")
