"""Agent files are HCL1: the embedded host reads them as the library does with which the agent reads them."""

from pathlib import Path

import pytest

from driver.devhost import hcl1
from tests.conformance.encoder import Encoder, RefusedError

AGENTS = sorted((Path(__file__).resolve().parents[2] / "nomad-jobs").rglob("agent*.hcl"))

TEXTS = {
    "empty": "",
    "one-line-block": 'qemu { binary = "x"  accel = "auto" }',
    "labels": 'plugin "chv" {\n  config {\n    network "lan" { mode = "user" }\n    network "br" { a = 1 }\n  }\n}',
    "label-without-quotes": 'plugin chv {\n  config { data_dir = "/d" }\n}',
    "object-as-value": 'meta = { a = "1", b = "2" }',
    "block-twice": 'client { enabled = true }\nclient { gc_interval = "1m" }',
    "lists": 'a = ["x", "y",]\nb = []\nc = [1, 2.5, true]\nd = [{ k = "v" }, { l = "w" }]',
    "numbers": "a = 5\nb = -5\nc = 0.5\nd = 1e3\ne = 0x1f",
    "bools": "a = true\nb = false",
    "escapes": r'a = "x\ty \"z\" \\ \u00e9 \n"',
    "unicode": 'a = "bücher 🎉"',
    "interpolation-is-text": 'a = "${env "HOME"}/x"\nb = "${attr.x} and $${y} and %{z}"',
    "comments": "# one\na = 1 // two\n/* three\n*/ b = 2",
    "heredoc": "a = <<EOT\none\n  two\nEOT\n",
    "indented-heredoc": "a = <<-EOT\n    one\n      two\n    EOT\n",
    "quoted-keys": '"a b" = 1\n"c" { d = 2 }',
    "keys-with-dots": "a.b = 1\nc-d = 2",
    "value-twice": "a = 1\na = 2",
    "windows-line-ends": 'a = "x"\r\nb {\r\n  c = 1\r\n}\r\n',
    "no-end": 'a {\n  b = "c"',
    "no-quote": 'a = "b',
    "line-break-in-a-string": 'a = "b\nc"',
    "word-as-value": "a = b",
    "rubbish": "}{",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_hcl1_is_read_alike(encoder: Encoder, text: str) -> None:
    try:
        theirs: object = encoder.agent_tree(text)
    except RefusedError:
        theirs = "refused"
    try:
        ours: object = hcl1.parse(text)
    except hcl1.Hcl1Error:
        ours = "refused"
    assert ours == theirs


@pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.name)
def test_agent_file_is_read_alike(encoder: Encoder, path: Path) -> None:
    text = path.read_text()
    assert hcl1.parse(text) == encoder.agent_tree(text)


def test_there_are_agent_files() -> None:
    assert AGENTS
