"""The verb ``cold``: what a run's recipe does for new users and new items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidera import console
from sidera.cli.parsing import Arguments, Verbs, add_threads_flag, add_verb


def cold_verb(arguments: Arguments) -> dict[str, Any]:
    """Train the recipe again without some items and users, add the items, and let the users ask."""
    from sidera.eval.cold import cold_lines
    from sidera.fit import distributed
    from sidera.pages.run import write_report
    from sidera.pages.runs import holds_lists
    from sidera.train.cold_start import FOLDER, ColdConfig, cold_start
    from sidera.train.recipe import Recipe

    config = ColdConfig(
        item_share=arguments.item_share, user_share=arguments.user_share, quota=arguments.quota,
        max_rows=arguments.rows, seed=arguments.seed,
    )  # fmt: skip
    recipe, out = Recipe.of_run(arguments.run, arguments.set), Path(arguments.run) / FOLDER
    with distributed.group(arguments.device) as device:
        record = cold_start(recipe, arguments.data, out, config, device=device)
    if record is None:
        return {"run": arguments.run, "finished": False}
    console.result(cold_lines(record))
    answer = {"run": arguments.run, "finished": True, "cold": out / "report", **record}
    if holds_lists(arguments.run):
        page = write_report(arguments.run, Path(arguments.run) / "report.html")
        console.say(f"report: {page}")
        answer["report"] = page
    return answer


def add_cold(verbs: Verbs) -> None:
    what = "new users and new items: the recipe trained again without some, and asked about them"
    parser = add_verb(verbs, "cold", cold_verb, what)
    parser.add_argument("run", help="run folder, whose recipe is trained again below RUN/cold")
    parser.add_argument("--data", required=True, help="the data folder it was trained on")
    parser.add_argument("--item-share", type=float, default=0.1, help="of the items, taken out of the log")
    parser.add_argument("--user-share", type=float, default=0.2, help="of the users, taken out and asked")
    parser.add_argument("--quota", type=float, default=0.1, help="share of slots for new items, measured beside none")
    parser.add_argument("--rows", type=int, default=1000, help="questions about new items, at most")
    parser.add_argument("--seed", type=int, default=0, help="of what is taken out and asked")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, e.g. fit.max_minutes=2"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_threads_flag(parser)
