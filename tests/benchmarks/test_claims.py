"""The check that committed results still speak of today's code: what it notices, what it lets pass."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "claims.py"
FILES = {
    "benchmarks/speed.py": 'from harness import finish\nRECIPE = "any/small.toml"\n\ndef main():\n'
    "    from sidera.ops.fast import add\n    finish(add(1, 2))\n",
    "benchmarks/harness.py": "def finish(value):\n    print(value)\n",
    "src/sidera/__init__.py": "",
    "src/sidera/ops/__init__.py": "",
    "src/sidera/ops/fast.py": '"""Adds."""\nfrom sidera.core import ONE\n\ndef add(a, b):\n'
    "    return a + b + 0 * ONE\n",
    "src/sidera/core.py": "ONE = 1\n",
    "src/sidera/unrelated.py": "TWO = 2\n",
    "recipes/any/small.toml": "[fit]\nlr = 1e-3\n",
}


@pytest.fixture
def claims():
    spec = importlib.util.spec_from_file_location("claims_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digests(claims, **changed: str) -> dict[str, str]:
    files = FILES | {name.replace("__", "/"): text for name, text in changed.items()}
    return claims.code_digests("benchmarks/speed.py", files.get)


def test_everything_that_a_script_reaches_is_in_its_digest(claims) -> None:
    assert set(digests(claims)) == set(FILES) - {"src/sidera/unrelated.py"}


@pytest.mark.parametrize(
    ("path", "text", "changed"),
    [
        ("src/sidera/ops/fast.py", FILES["src/sidera/ops/fast.py"].replace("Adds.", "Adds two numbers."), False),
        ("src/sidera/ops/fast.py", "# why\n" + FILES["src/sidera/ops/fast.py"], False),
        ("src/sidera/ops/fast.py", FILES["src/sidera/ops/fast.py"].replace("a + b", "b + a"), True),
        ("src/sidera/core.py", "ONE = 2\n", True),
        ("src/sidera/unrelated.py", "TWO = 3\n", False),
        ("recipes/any/small.toml", "# a word\n[fit]\nlr = 0.001\n", False),
        ("recipes/any/small.toml", "[fit]\nlr = 2e-3\n", True),
    ],
)
def test_code_counts_and_words_do_not(claims, path: str, text: str, changed: bool) -> None:
    today = claims.code_digests("benchmarks/speed.py", {**FILES, path: text}.get)
    assert claims.changed_since(digests(claims), today) == ([path] if changed else [])


def test_a_program_held_as_text_is_followed(claims) -> None:
    text = 'CHILD = """\nimport sys\nfrom sidera.unrelated import TWO\n"""\n'
    found = claims.code_digests("benchmarks/speed.py", {**FILES, "benchmarks/speed.py": text}.get)
    assert "src/sidera/unrelated.py" in found


def test_a_changed_claim_fails_until_it_is_confirmed_with_a_reason(claims, tmp_path, monkeypatch, capsys) -> None:
    record = {"name": "speed", "value": 3, "bar": 3, "pass": True, "context": {"command": "python benchmarks/speed.py"}}
    record["provenance"] = {"commit": "0123456789abcdef", "code": digests(claims)}
    (tmp_path / "speed.json").write_text(json.dumps(record))
    (tmp_path / "trials.json").write_text('{"title": "no claim"}')
    assert list(claims.claim_names(tmp_path)) == ["speed"]
    assert claims.check("speed", tmp_path, FILES.get)[1] == []

    today = {**FILES, "src/sidera/core.py": "ONE = 7\n"}
    line, changed = claims.check("speed", tmp_path, today.get)
    assert changed == ["src/sidera/core.py"]
    assert "0123456789" in line

    claims.confirm("speed", "golden answers are identical", tmp_path, today.get)
    line, changed = claims.check("speed", tmp_path, today.get)
    assert not changed
    assert "golden answers are identical" in line
    assert claims.check("speed", tmp_path, {**today, "src/sidera/core.py": "ONE = 8\n"}.get)[1]


def test_a_confirmation_needs_a_reason_and_a_known_claim(claims, capsys) -> None:
    for arguments in (["--confirm", "trie"], ["--confirm", "trie", "--why", " "], ["no_such_claim"]):
        with pytest.raises(SystemExit) as refused:
            claims.main(arguments)
        assert refused.value.code == 2
    assert "no claim 'no_such_claim'" in capsys.readouterr().err


def test_every_committed_claim_says_what_it_was_measured_with(claims) -> None:
    names = list(claims.claim_names())
    assert names
    for name in names:
        record = json.loads((claims.RESULTS / f"{name}.json").read_text())
        assert len(record["provenance"]["commit"]) == 40, name
        assert record["provenance"]["code"], name
        assert (record["pass"] is None) == (record["bar"] is None), f"{name}: nothing is passed without a bar"
        assert isinstance(claims.check(name)[0], str)
